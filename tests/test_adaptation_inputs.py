"""image_sample.py: published arrays, severities drawn by image, subsets, trees that differ,
pictures that do not fit.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.adapting import adapt, digits, manifest_of, pixels, pngs, save_images
from tests.photo_like import photo_like, save_all
from undegrade.image_adapt.config import AdaptConfig, InputConfig
from undegrade.image_adapt.work import plan_jobs
from undegrade.utils.data.cells import Cell
from undegrade.utils.data.perturbations.degradations import REFERENCE
from undegrade.utils.data.sources.image_source import ImageSource, array_source
from undegrade.utils.data.sources.registry import open_source
from undegrade.utils.data.sources.released import CIFAR
from undegrade.utils.data.views import FolderTree, OnTheFly, ReleasedArrays

LABELS = [3, 0, 9]
CIFAR10_CLASSES = CIFAR["CIFAR10"].classes


def save_arrays(folder: Path, *corruptions: str, labels: list[int] = LABELS) -> np.ndarray:
    """The published layout with three images; returns the pixels of the first corruption, [15, 32,
    32, 3].
    """
    folder.mkdir()
    images = photo_like(5 * len(labels), 32).numpy().transpose(0, 2, 3, 1)
    for shift, name in enumerate(corruptions):
        np.save(folder / f"{name}.npy", np.roll(images, shift, axis=2))
    np.save(folder / "labels.npy", np.tile(np.array(labels), 5))
    return images


def keys(labels: list[int] = LABELS) -> list[str]:
    return [f"{CIFAR10_CLASSES[label]}/test_{i:05d}" for i, label in enumerate(labels)]


# --- arrays


@pytest.mark.parametrize("layout", [(), ("--dataset", "cifar10c")])
def test_published_arrays_become_a_tree_whose_keys_are_those_of_the_clean_test_set(
    ddpm: Path, tmp_path: Path, layout: tuple[str, ...]
) -> None:
    images = save_arrays(tmp_path / "in", "fog", "snow")
    words = ("--base_samples", tmp_path / "in", *layout, "--corruption", "fog,snow", "--severity", "2,5", "--batch_size", 4)
    adapt(ddpm, tmp_path / "out", *words).check()
    assert set(pngs(tmp_path / "out")) == {f"{c}/{s}/{key}.png" for c in ("fog", "snow") for s in (2, 5) for key in keys()}
    assert [row["label"] for row in manifest_of(tmp_path / "out/fog/2")] == [0, 3, 9]
    # the rows that were read are those of the severity: adapted from files they give the same bytes
    rows = torch.from_numpy(images[3:6].transpose(0, 3, 1, 2))
    save_all(tmp_path / "files/fog/2", [f"{key}.png" for key in keys()], rows)
    words = ("--base_samples", tmp_path / "files", "--dataset", "cifar10c", "--corruption", "fog", "--severity", 2)
    adapt(ddpm, tmp_path / "again", *words, "--batch_size", 4).check()
    assert pngs(tmp_path / "again/fog/2") == pngs(tmp_path / "out/fog/2")


def test_arrays_come_out_as_arrays_that_are_read_like_the_tree_of_images(ddpm: Path, tmp_path: Path) -> None:
    images = save_arrays(tmp_path / "in", "fog")
    words = ("--base_samples", tmp_path / "in", "--corruption", "fog", "--severity", "1-5", "--output", "npy")
    adapt(ddpm, tmp_path / "out", *words).check()
    array = np.load(tmp_path / "out/fog.npy")
    assert (array.dtype, array.shape) == (np.uint8, images.shape)
    assert np.load(tmp_path / "out/labels.npy").tolist() == LABELS * 5
    names = [f"test_{i:05d}" for i in range(3)]
    clean = array_source("CIFAR10/test", images[:3].transpose(0, 3, 1, 2), np.array(LABELS), CIFAR10_CLASSES, names)
    for severity in (1, 4):
        cell = Cell("fog", severity)
        from_array = ReleasedArrays(tmp_path / "out", clean).source(cell).images([0, 1, 2])
        assert from_array.equal(FolderTree(tmp_path / "out", clean).source(cell).images([0, 1, 2]))
    assert "adapted 0 images" in adapt(ddpm, tmp_path / "out", *words).check().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--severity", "random"), "arrays of the severities 1..5: name corruptions and severities, not ['fog/random']"),
        (("--corruption", "jpeg"), "arrays of the severities 1..5: name corruptions and severities, not ['jpeg/random']"),
        (("--corruption", "snow"), "snow.npy does not exist"),
        (("--output", "npy"), "--output npy needs --severity 1-5 of each corruption, and nothing else"),
        (("--output", "npy", "--severity", "1-5", "--num_samples", "2"), "--output npy is for whole test sets"),
        (("--input.compat.salt_value", "1"), "input.compat is about degrading clean images"),
    ],
)
def test_what_arrays_cannot_give_is_refused(ddpm: Path, tmp_path: Path, words: tuple[str, ...], message: str) -> None:
    save_arrays(tmp_path / "in", "fog", labels=[1, 1, 0])
    done = adapt(ddpm, tmp_path / "out", "--base_samples", tmp_path / "in", "--corruption", "fog", *words)
    assert done.status == 2 and message in done.err
    assert not (tmp_path / "out").exists()


def test_arrays_of_a_hundred_classes_need_the_clean_set_for_clean_images_only(ddpm: Path, tmp_path: Path) -> None:
    save_arrays(tmp_path / "in", "fog", labels=[1, 50, 99])
    words = ("--base_samples", tmp_path / "in", "--input.root", tmp_path / "none", "--corruption")
    (job,) = plan_jobs(AdaptConfig("x", input=InputConfig(folder=str(tmp_path / "in"), corruptions=["fog"])), 32)
    assert job.source.keys == ["aquarium_fish/test_00000", "mouse/test_00001", "worm/test_00002"]
    done = adapt(ddpm, tmp_path / "out", *words, "fog,clean")
    assert done.status == 2 and "CIFAR100 is not, or not intact" in done.err and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "words", [("--dataset", "CIFAR10", "--input.root"), ("--base_samples", "in", "--corruption", "clean", "--input.root")]
)
def test_a_root_of_corrupted_images_is_no_clean_set(ddpm: Path, tmp_path: Path, words: tuple[str, ...]) -> None:
    save_arrays(tmp_path / "in", "fog")
    given = [str(tmp_path / "in") if word == "in" else word for word in words]
    done = adapt(ddpm, tmp_path / "out", "--corruption", "fog", *given, tmp_path / "in")
    message = (
        f"{tmp_path / 'in'} holds corrupted images only: adapt those with --base_samples {tmp_path / 'in'}, or point input.root"
    )
    assert done.status == 2 and message in done.err and not (tmp_path / "out").exists()


def test_output_arrays_of_other_keys_are_refused(ddpm: Path, tmp_path: Path) -> None:
    done = adapt(ddpm, tmp_path / "out", "--corruption", "fog", "--severity", "1-5", "--limit", 3, "--output", "npy")
    assert done.status == 2 and "--output npy is for whole test sets with keys <class>/test_00000" in done.err


# --- severity drawn, degradations as published


def test_severity_random_draws_one_for_each_image_and_says_it(ddpm: Path, tmp_path: Path) -> None:
    adapt(ddpm, tmp_path, "--corruption", "gaussian_noise,jpeg", "--severity", "random", "--limit", 12, "--batch_size", 4).check()
    source = open_source("Digits", "test", limit=12)
    view = OnTheFly(source)
    for name in ("gaussian_noise", "jpeg"):
        rows = {row["key"]: row["level"] for row in manifest_of(tmp_path / name / "random")}
        assert [rows[key] for key in source.keys] == view.levels(Cell(name), source.keys).tolist()
    levels = {row["level"] for row in manifest_of(tmp_path / "gaussian_noise/random")}
    assert levels <= {1, 2, 3, 4, 5} and len(levels) > 2


def test_an_adapted_image_of_a_drawn_severity_is_that_of_its_severity(ddpm: Path, tmp_path: Path) -> None:
    words = ("--corruption", "contrast", "--limit", 4, "--batch_size", 4)
    adapt(ddpm, tmp_path, *words, "--severity", "random").check()
    adapt(ddpm, tmp_path, *words, "--severity", "1-5").check()
    for row in manifest_of(tmp_path / "contrast/random"):
        same = tmp_path / "contrast" / f"{row['level']:g}" / row["file"]
        assert np.abs(pixels(tmp_path / "contrast/random" / row["file"]) - pixels(same)).max() <= 1


def test_degradations_can_be_those_of_the_published_code(ddpm: Path, tmp_path: Path) -> None:
    digits(ddpm, tmp_path / "right", "--corruption", "saltpepper").check()
    digits(ddpm, tmp_path / "published", "--corruption", "saltpepper", "--input.compat.salt_value", 1).check()
    settings = json.loads((tmp_path / "published/saltpepper/random/settings.json").read_text())
    assert settings["input"]["compat"]["salt_value"] == 1
    assert "compat" not in json.loads((tmp_path / "right/saltpepper/random/settings.json").read_text())["input"]
    assert pngs(tmp_path / "right") != pngs(tmp_path / "published")
    given = InputConfig(corruptions=["saltpepper"], limit=6, compat=REFERENCE)
    (job,) = plan_jobs(AdaptConfig("x", input=given), 32)
    expected = OnTheFly(open_source("Digits", "test", limit=6), options=given).source(Cell("saltpepper")).images(range(6))
    assert job.source.images(range(6)).equal(expected)


# --- subsets


def pets(*names: str) -> ImageSource:
    """Images of one class, `a`."""
    return array_source("pets", np.zeros((len(names), 3, 8, 8), np.uint8), np.zeros(len(names), int), ["a"], names)


def test_listed_images_come_out_as_in_a_run_over_all(ddpm: Path, tmp_path: Path) -> None:
    digits(ddpm, tmp_path / "all").check()
    every = pngs(tmp_path / "all/jpeg/random")
    names = list(every)[1::2]
    (tmp_path / "list.txt").write_text(f"# remark\n\n./{names[0]}\n{names[1].removesuffix('.png')}\n{names[2]}\n")
    digits(ddpm, tmp_path / "some", "--list", tmp_path / "list.txt").check()
    some = pngs(tmp_path / "some")
    assert some.keys() == {f"{cell}/{name}" for cell in ("gaussian_noise/5", "jpeg/random") for name in names}
    assert some.items() <= pngs(tmp_path / "all").items()  # the same bytes with other companions


@pytest.mark.parametrize(
    ("text", "message"),
    [("a/b\nc/d.png\na/c.jpg\n", "1 of 3 images are not in pets, e.g. c/d.png"), ("# no\n", "it is empty")],
)
def test_list_that_names_no_image_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "list.txt").write_text(text)
    with pytest.raises(ValueError, match=rf"--list .*list\.txt: {message} \(keys there look like a/b\)"):
        pets("b", "c").listed(tmp_path / "list.txt", "--list")
    with pytest.raises(FileNotFoundError, match="--list .*none.txt does not exist; expected a file with one image key or path"):
        pets("b").listed(tmp_path / "none.txt", "--list")


def test_names_with_points_are_found_with_and_without_suffix(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("a/x.1\na/x.2.png\n")
    assert pets("x.1", "x.2", "x").listed(tmp_path / "list.txt", "--list").keys == ["a/x.1", "a/x.2"]


def test_a_class_that_is_called_like_a_split_is_found(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("test/a/x.png\ntest/y\n")
    source = dataclasses.replace(pets("x", "y"), keys=["a/x", "test/y"])
    assert source.listed(tmp_path / "list.txt", "--list").keys == ["a/x", "test/y"]


def imagenetc(tmp_path: Path, severities: tuple[int, ...] = (1, 2)) -> tuple[object, ...]:
    names = [f"n0{k}/{i}.png" for k in range(4) for i in range(3)]
    save_images(tmp_path / "in", [f"fog/{s}/{name}" for s in severities for name in names])
    return "--base_samples", tmp_path / "in", "--dataset", "imagenetc", "--corruption", "fog", "--severity", "1,2"


@pytest.mark.parametrize("flag", ["--num_samples", "--limit"])
def test_subset_of_a_tree_is_the_same_in_every_cell_and_even_over_its_folders(ddpm: Path, tmp_path: Path, flag: str) -> None:
    adapt(ddpm, tmp_path / "out", *imagenetc(tmp_path), flag, 4).check()
    first, second = (set(pngs(tmp_path / "out/fog" / s)) for s in "12")
    assert first == second and sorted(name[:3] for name in first) == ["n00", "n01", "n02", "n03"]


def test_trees_that_differ_are_said_and_refused_where_a_subset_would_not_be_the_same(ddpm: Path, tmp_path: Path) -> None:
    words = imagenetc(tmp_path)
    (tmp_path / "in/fog/2/n01/2.png").unlink()
    done = adapt(ddpm, tmp_path / "out", *words).check()
    assert "fog/2 lacks 1 images that fog/1 has, e.g. n01/2" in done.err
    assert len(pngs(tmp_path / "out")) == 23
    (tmp_path / "list.txt").write_text("n01/2\nn01/1\n")
    done = adapt(ddpm, tmp_path / "less", *words, "--list", tmp_path / "list.txt")
    assert done.status == 2
    assert "fog/2 lacks 1 of the 2 images that were chosen from fog/1, e.g. n01/2" in done.err


# --- folders


def test_layout_without_severities_is_read_once(ddpm: Path, tmp_path: Path) -> None:
    save_images(tmp_path / "in", ["fog/val/n01/a.png"])
    words = ("--base_samples", tmp_path / "in", "--dataset", "imagenet", "--corruption", "fog", "-c", tmp_path / "given.yaml")
    for severities, told in (("[1, 2, 3]", "1 images in 1 cells"), ("[3]", "adapted 0 images")):  # the same images
        (tmp_path / "given.yaml").write_text(f"input: {{severities: {severities}}}")
        assert told in adapt(ddpm, tmp_path / "out", *words).check().err


def test_adapted_tree_of_drawn_levels_is_read_by_its_layout(ddpm: Path, tmp_path: Path) -> None:
    save_images(tmp_path / "in", ["jpeg/random/n01/a.png", "fog/random/n01/a.png"])
    words = ("--base_samples", tmp_path / "in", "--dataset", "imagenetc", "--corruption", "jpeg,fog", "--severity", "random")
    adapt(ddpm, tmp_path / "out", *words).check()
    assert set(pngs(tmp_path / "out")) == {"jpeg/random/n01/a.png", "fog/random/n01/a.png"}


def test_corruption_of_a_plain_folder_is_refused(ddpm: Path, tmp_path: Path) -> None:
    save_images(tmp_path / "in", ["a.png"])
    done = adapt(ddpm, tmp_path / "out", "--base_samples", tmp_path / "in", "--corruption", "fog")
    layouts = "(imagenetc, imagenet, cifar10, cifar10c; imagenetw without --corruption)"
    message = f"--corruption fog has no meaning for a plain folder: give its layout with --dataset {layouts}, or"
    assert done.status == 2 and message in done.err


def test_small_pictures_are_enlarged_up_to_twice_and_beyond_only_when_asked(ddpm: Path, tmp_path: Path) -> None:
    for side in (15, 16, 28):
        save_images(tmp_path / "in", [f"{side}.png"], side)
    words = ("--base_samples", tmp_path / "in")
    done = adapt(ddpm, tmp_path / "out", *words)
    assert done.status == 1 and set(pngs(tmp_path / "out")) == {"16.png", "28.png"}
    assert "15.png: 15 x 15 px is too small to be enlarged to 32 (--enlarge true does it anyway)" in done.err
    adapt(ddpm, tmp_path / "out", *words, "--enlarge", "true").check()
    assert set(pngs(tmp_path / "out")) == {"15.png", "16.png", "28.png"}
