"""Test cells: which are asked for, and the three ways in which their images come to be."""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.perturbing import corrupt, degrade, draw
from tests.photo_like import photo_like, save_all
from undegrade.utils.data.cells import Cell, drawn_cell, parse_cells, parse_severities, sweep_cells
from undegrade.utils.data.perturbations.corruptions import CORRUPTIONS
from undegrade.utils.data.perturbations.perturbation import PerturbationOptions
from undegrade.utils.data.sources.image_source import ImageSource, array_source
from undegrade.utils.data.views import FolderTree, OnTheFly, ReleasedArrays, open_view


def make_source(count: int = 6, side: int = 32) -> ImageSource:
    """A clean test set in its published order, two classes in turn."""
    names = [f"test_{i:05d}" for i in range(count)]
    return array_source("Toy/test", photo_like(count, side).numpy(), np.arange(count) % 2, ["cat", "dog"], names)


CLEAN = make_source()
TINY = PerturbationOptions(constants="tiny")


# --- names of cells


def test_a_corruption_has_a_cell_for_each_severity() -> None:
    assert parse_cells(["fog"], [1, 5]) == [Cell("fog", 1), Cell("fog", 5)]


def test_all_is_the_fifteen_of_the_benchmark() -> None:
    assert parse_cells(["all"], [3]) == [Cell(name, 3) for name in CORRUPTIONS]
    assert len(CORRUPTIONS) == 15


def test_degradations_and_sequences_have_one_cell_whatever_the_severities() -> None:
    names = ["clean", "jpeg", "blur+noise+jpeg", "weak_seq"]
    expected = [Cell("clean", 0), Cell("jpeg"), Cell("blur+noise+jpeg"), Cell("weak_seq", 0)]
    assert parse_cells(names, [1, 2]) == expected


@pytest.mark.parametrize(
    ("names", "severities", "message"),
    [
        (["fog"], [0], "fog severity 0 is out of range"),
        (["fog"], [1, 6], "fog severity 6 is out of range"),
        (["fog"], [], "fog without a severity: choose from 1, 2, 3, 4, 5"),
        (["gausian_noise"], [5], "unknown perturbation 'gausian_noise': did you mean 'gaussian_noise'? allowed: "),
        (["jpg"], [5], "unknown perturbation 'jpg': did you mean 'jpeg'? allowed: "),
        (["blur+spatter"], [5], "unknown stage 'spatter' in sequence 'blur+spatter'"),
        (["blur+clean"], [5], "unknown stage 'clean' in sequence 'blur+clean'"),
    ],
)
def test_a_cell_that_does_not_exist_is_reported(names: list[str], severities: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        parse_cells(names, severities)


@pytest.mark.parametrize(("text", "expected"), [("5", [5]), ("1,3,5", [1, 3, 5]), ("1-5", [1, 2, 3, 4, 5]), ("2-2", [2])])
def test_severities_are_a_number_a_list_or_a_range(text: str, expected: list[int]) -> None:
    assert parse_severities(text) == expected


@pytest.mark.parametrize("text", ["high", "1,", "1-", "1..5", "-3"])
def test_severities_of_another_form_are_reported(text: str) -> None:
    message = f"--severity {text!r}: write one of 1..5, several joined by commas, or a range such as 1-5"
    with pytest.raises(ValueError, match=re.escape(message)):
        parse_severities(text)


def test_the_drawn_cell_is_where_adapted_images_for_training_lie() -> None:
    assert [drawn_cell(name).folder for name in ("jpeg", "fog", "blur+noise", "weak_seq", "clean")] == [
        "jpeg/random", "fog/random", "blur+noise/random", "weak_seq/0", "clean/0"
    ]  # fmt: skip
    assert parse_cells(["fog", "weak_seq"], None) == [Cell("fog"), Cell("weak_seq", 0)]


def test_what_has_no_sweep_is_one_cell() -> None:
    assert [sweep_cells(name) for name in ("blur+noise", "weak_seq")] == [[Cell("blur+noise")], [Cell("weak_seq", 0)]]


def test_a_sweep_has_a_cell_for_each_level_in_the_own_unit() -> None:
    assert sweep_cells("blur")[:3] == [Cell("blur", 0.0), Cell("blur", 0.1), Cell("blur", 0.2)]
    assert [len(sweep_cells(name)) for name in ("jpeg", "noise", "blur", "saltpepper")] == [101, 51, 51, 26]


@pytest.mark.parametrize(
    ("cell", "folder"), [(Cell("fog", 3), "fog/3"), (Cell("blur", 0.1), "blur/0.1"), (Cell("jpeg"), "jpeg/random"),
                         (Cell("clean", 0), "clean/0")],
)  # fmt: skip
def test_the_folder_of_a_cell_is_corruption_and_severity(cell: Cell, folder: str) -> None:
    assert cell.folder == folder


# --- made as they are read


@pytest.mark.parametrize("name", ["gaussian_noise", "jpeg_compression", "motion_blur"])
def test_on_the_fly_corruptions_are_those_of_corrupt(name: str) -> None:
    source = OnTheFly(CLEAN, seed=3).source(Cell(name, 4))
    expected = corrupt(CLEAN.images(range(6)), name, 4, keys=CLEAN.keys, seed=3, constants="cifar")
    assert torch.equal(source.images(range(6)), expected)
    assert (source.keys, source.classes, source.labels.tolist()) == (CLEAN.keys, CLEAN.classes, CLEAN.labels.tolist())


@pytest.mark.parametrize("name", ["noise", "saltpepper", "blur+noise+jpeg"])
def test_on_the_fly_degradations_are_those_of_degrade_at_levels_drawn_by_key(name: str) -> None:
    source = OnTheFly(CLEAN, seed=3).source(Cell(name))
    level = draw(name, CLEAN.keys, 3)
    assert torch.equal(source.images(range(6)), degrade(CLEAN.images(range(6)), name, level, keys=CLEAN.keys, seed=3))


def test_a_level_that_is_given_holds_for_every_image() -> None:
    source = OnTheFly(CLEAN, seed=3).source(Cell("noise", 20.0))
    assert torch.equal(source.images(range(6)), degrade(CLEAN.images(range(6)), "noise", 20.0, keys=CLEAN.keys, seed=3))


def test_a_named_sequence_has_its_own_levels() -> None:
    (cell,) = parse_cells(["strong_seq"], [])
    expected = degrade(CLEAN.images(range(6)), "strong_seq", 0, keys=CLEAN.keys, seed=3)
    assert torch.equal(OnTheFly(CLEAN, seed=3).source(cell).images(range(6)), expected)


@pytest.mark.parametrize("cell", [Cell("shot_noise", 5), Cell("elastic_transform", 2), Cell("noise"), Cell("weak_seq", 0)])
def test_an_image_is_the_same_in_every_batch(cell: Cell) -> None:
    source = OnTheFly(CLEAN, seed=1).source(cell)
    whole = source.images(range(6))
    assert torch.equal(source.images([4, 1]), whole[[4, 1]])
    assert torch.equal(source.subset([3, 2]).images([1]), whole[[2]])


def test_the_clean_cell_is_the_clean_source() -> None:
    source = OnTheFly(CLEAN).source(Cell("clean", 0))
    assert torch.equal(source.images(range(6)), CLEAN.images(range(6))) and source.keys == CLEAN.keys


def test_constants_follow_the_image_size_unless_given() -> None:
    large, cell = make_source(2, 64), Cell("gaussian_noise", 5)
    views = [OnTheFly(large), OnTheFly(large, options=TINY), OnTheFly(large, options=PerturbationOptions(constants="cifar"))]
    by_size, tiny, cifar = (view.source(cell).images([0, 1]) for view in views)
    assert torch.equal(by_size, tiny) and not torch.equal(by_size, cifar)


def test_the_identity_of_images_made_on_the_fly_covers_all_that_they_depend_on() -> None:
    fog, noise = Cell("fog", 3), Cell("noise")
    identities = [
        OnTheFly(CLEAN, 0).identity(fog), OnTheFly(CLEAN, 1).identity(fog), OnTheFly(CLEAN, 0, TINY).identity(fog),
        OnTheFly(CLEAN, 0).identity(Cell("fog", 4)), OnTheFly(CLEAN, 0).identity(noise), OnTheFly(CLEAN, 1).identity(noise),
        OnTheFly(CLEAN.subset([0, 1]), 0).identity(fog), OnTheFly(make_source(side=40), 0).identity(fog),
    ]  # fmt: skip
    assert len(set(identities)) == len(identities)
    assert OnTheFly(make_source(), 0).identity(fog) == OnTheFly(CLEAN, 0, PerturbationOptions(constants="cifar")).identity(fog)
    assert OnTheFly(CLEAN, 0, TINY).identity(noise) == OnTheFly(CLEAN, 0).identity(noise)  # these have no such constants


# --- published arrays


def write_released(root: Path, count: int = 6) -> np.ndarray:
    """fog.npy of 5 severities whose red channel is 10 * severity + number, and labels.npy; returns
    the array.
    """
    images = np.zeros((5 * count, 32, 32, 3), np.uint8)
    images[..., 0] = (10 * (1 + np.arange(5))[:, None] + np.arange(count)).reshape(-1, 1, 1)
    images[:, 0, 31, 2] = 255  # the upper right corner is blue
    root.mkdir(exist_ok=True)
    np.save(root / "fog.npy", images)
    np.save(root / "labels.npy", np.tile(np.arange(count) % 2, 5))
    return images


def test_released_severities_are_consecutive_blocks_of_rows(tmp_path: Path) -> None:
    write_released(tmp_path)
    for severity in (1, 3, 5):
        source = ReleasedArrays(tmp_path, CLEAN).source(Cell("fog", severity))
        images = source.images(range(6))
        assert images.shape == (6, 3, 32, 32)
        assert images[:, 0, 7, 9].tolist() == [10 * severity + i for i in range(6)]
        assert images[0, 2].nonzero().tolist() == [[0, 31]]
        assert (source.keys, source.labels.tolist(), source.classes) == (CLEAN.keys, [0, 1, 0, 1, 0, 1], CLEAN.classes)


def test_released_images_of_a_limited_test_set_are_found_by_key(tmp_path: Path) -> None:
    write_released(tmp_path)
    few = CLEAN.subset([5, 2])
    source = ReleasedArrays(tmp_path, few).source(Cell("fog", 1))
    assert source.images([0, 1])[:, 0, 0, 0].tolist() == [15, 12]
    assert source.rgb_mean == few.rgb_mean


def test_released_clean_images_are_those_of_the_test_set(tmp_path: Path) -> None:
    write_released(tmp_path)
    view = ReleasedArrays(tmp_path, CLEAN)
    assert view.source(Cell("clean", 0)) is CLEAN
    assert view.identity(Cell("clean", 0)) != view.identity(Cell("fog", 1))


def test_a_degradation_has_no_released_arrays(tmp_path: Path) -> None:
    write_released(tmp_path)
    with pytest.raises(ValueError, match=r"unknown corruption 'jpeg' in the released arrays: .*allowed: gaussian_noise, "):
        ReleasedArrays(tmp_path, CLEAN).source(Cell("jpeg"))


@pytest.mark.parametrize("missing", ["fog.npy", "labels.npy"])
def test_a_missing_released_file_is_reported_with_where_to_get_it(tmp_path: Path, missing: str) -> None:
    write_released(tmp_path)
    (tmp_path / missing).unlink()
    message = rf"{re.escape(str(tmp_path / missing))} does not exist; CIFAR-10-C is record 2535967 .*zenodo\.org: unpack"
    with pytest.raises(FileNotFoundError, match=message):
        ReleasedArrays(tmp_path, CLEAN).source(Cell("fog", 1))


@pytest.mark.parametrize(
    "array", [np.zeros((29, 32, 32, 3), np.uint8), np.zeros((30, 3, 32, 32), np.uint8), np.zeros((30, 32, 32, 3))]
)
def test_released_arrays_of_another_shape_or_type_are_reported(tmp_path: Path, array: np.ndarray) -> None:
    write_released(tmp_path)
    np.save(tmp_path / "fog.npy", array)
    message = rf"fog\.npy: expected uint8 \[5 x N, 32, 32, 3\], found {array.dtype} {re.escape(str(array.shape))}"
    with pytest.raises(ValueError, match=message):
        ReleasedArrays(tmp_path, CLEAN).source(Cell("fog", 1))


def test_too_few_released_labels_are_reported(tmp_path: Path) -> None:
    write_released(tmp_path)
    np.save(tmp_path / "labels.npy", np.zeros(6, np.int64))
    with pytest.raises(ValueError, match=r"labels\.npy: expected \[30\] labels as fog\.npy has images, found \(6,\)"):
        ReleasedArrays(tmp_path, CLEAN).source(Cell("fog", 1))


def test_released_labels_of_another_test_set_are_noticed(tmp_path: Path) -> None:
    write_released(tmp_path)
    np.save(tmp_path / "labels.npy", np.tile((np.arange(6) + 1) % 2, 5))
    with pytest.raises(ValueError, match=r"fog\.npy: 6 of 6 images are missing, e\.g\. cat/test_00000"):
        ReleasedArrays(tmp_path, CLEAN).source(Cell("fog", 1))


def test_the_identity_of_released_images_changes_with_cell_and_file(tmp_path: Path) -> None:
    write_released(tmp_path)
    view = ReleasedArrays(tmp_path, CLEAN)
    before = view.identity(Cell("fog", 1))
    assert before == view.identity(Cell("fog", 1)) != view.identity(Cell("fog", 2))
    os.utime(tmp_path / "fog.npy", (1, 1))
    assert view.identity(Cell("fog", 1)) != before


# --- folders of images


def write_tree(root: Path, cell: Cell, source: ImageSource) -> torch.Tensor:
    """The images of a source, inverted, as files in the adapter's layout; returns them."""
    images = 255 - source.images(range(len(source)))
    save_all(root / cell.folder, [f"{key}.png" for key in source.keys], images)
    return images


def test_images_of_a_folder_tree_are_paired_by_key(tmp_path: Path) -> None:
    images = write_tree(tmp_path, Cell("fog", 3), CLEAN)
    shuffled = CLEAN.subset([3, 0, 5])
    source = FolderTree(tmp_path, shuffled).source(Cell("fog", 3))
    assert (source.keys, source.labels.tolist()) == (shuffled.keys, [1, 0, 1])
    assert torch.equal(source.images([0, 1, 2]), images[[3, 0, 5]])


def test_a_folder_tree_without_some_images_names_them(tmp_path: Path) -> None:
    write_tree(tmp_path, Cell("fog", 3), CLEAN)
    (tmp_path / "fog/3/dog/test_00003.png").unlink()
    message = f"{tmp_path}/fog/3: 1 of 6 images are missing, e.g. dog/test_00003; adapt all of them (the same command goes on "
    message += "where it was stopped, without --limit or --num_samples), or evaluate with the same --limit"
    with pytest.raises(ValueError, match=re.escape(message)):
        FolderTree(tmp_path, CLEAN).source(Cell("fog", 3))


def test_a_cell_without_folder_is_reported_with_those_there_are_and_the_command(tmp_path: Path) -> None:
    write_tree(tmp_path, Cell("fog", 3), CLEAN)
    message = (
        f"no images for snow/5 under {tmp_path} (there: fog/3); make them with: mpiexec -n 2 python "
        f"image_adapt/scripts/image_sample.py -c <config> --corruption snow --save_dir {tmp_path}, or unpack them there if "
        "they are of a released set"
    )
    with pytest.raises(FileNotFoundError, match=re.escape(message)):
        FolderTree(tmp_path, CLEAN).source(Cell("snow", 5))


def test_the_identity_of_a_folder_tree_changes_with_its_files(tmp_path: Path) -> None:
    cell = Cell("fog", 3)
    write_tree(tmp_path, cell, CLEAN)
    view, path = FolderTree(tmp_path, CLEAN), tmp_path / "fog/3/cat/test_00000.png"
    identities = [view.identity(cell), FolderTree(tmp_path, CLEAN.subset([0])).identity(cell)]
    os.utime(path, (1, 1))
    identities.append(view.identity(cell))
    path.unlink()
    identities.append(view.identity(cell))
    assert len(set(identities)) == 4
    assert view.identity(cell) == identities[-1]


# --- choosing a view


def test_a_view_is_raw_or_a_folder_of_arrays_or_of_images(tmp_path: Path) -> None:
    assert open_view("raw", CLEAN, 3, TINY) == OnTheFly(CLEAN, 3, TINY)
    assert open_view(str(tmp_path), CLEAN, 3) == FolderTree(tmp_path, CLEAN, OnTheFly(CLEAN, 3))
    write_released(tmp_path)
    assert open_view(str(tmp_path), CLEAN, 3) == ReleasedArrays(tmp_path, CLEAN)


def test_a_view_that_does_not_exist_is_reported() -> None:
    with pytest.raises(
        FileNotFoundError, match=r"view 'adapted/dda' is neither `raw` nor an existing folder of images or \.npy files"
    ):
        open_view("adapted/dda", CLEAN, 0)


def test_views_are_named_for_tables_and_caches() -> None:
    names = [view.name for view in (OnTheFly(CLEAN), ReleasedArrays(Path("c"), CLEAN), FolderTree(Path("runs/dda/test"), CLEAN))]
    assert names == ["raw", "released", "dda/test"]
