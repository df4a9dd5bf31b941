"""Which part of a photograph the views of an ensemble show: the same for all members, whatever was
cut and enlarged before.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from tests.adapting import manifest_of
from tests.photo_like import photo_like, save_all
from undegrade.image_adapt.adapters import Adapter
from undegrade.image_adapt.config import AdaptConfig, InputConfig
from undegrade.image_adapt.mpi import World
from undegrade.image_adapt.work import plan_jobs, run_jobs
from undegrade.utils.data.cells import Cell
from undegrade.utils.data.sources.image_source import ImageSource
from undegrade.utils.data.sources.registry import open_source
from undegrade.utils.data.views import FolderTree, OnTheFly

KEYS = ["n01/a", "n02/b"]
FOG = Cell("fog", 5)


class Unchanged(Adapter):
    """An adapter."""

    def adapt(self, x: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        return x


@pytest.fixture
def clean(tmp_path: Path) -> ImageSource:
    """Two photographs of 300 x 300 pixels, read as ImageNet is: 224 of 256."""
    photos = photo_like(2, 300).float().unfold(2, 12, 12).unfold(3, 12, 12).mean((4, 5))  # without noise, which resizing removes
    photos = torch.nn.functional.interpolate(photos, size=300, mode="bicubic").clamp(0, 255).to(torch.uint8)
    save_all(tmp_path / "val", [f"{key}.png" for key in KEYS], photos)
    (tmp_path / "classes.txt").write_text("n01\nn02\n")
    return open_source("Imagenet", "test", tmp_path)


@pytest.fixture
def released(tmp_path: Path, clean: ImageSource) -> Path:
    """As ImageNet-C is released: JPEG files of the 224 x 224 pixels that classifiers see."""
    save_all(tmp_path / "imagenetc" / FOG.folder, [f"{key}.JPEG" for key in KEYS], clean.images([0, 1]))
    return tmp_path / "imagenetc"


def adapted(save_dir: Path, given: InputConfig) -> Path:
    """The tree that an adapter which changes nothing leaves, of a model for 256 x 256 pixels."""
    config = AdaptConfig(str(save_dir), input=given)
    run_jobs(plan_jobs(config, 256), Unchanged(), config, World(), torch.device("cpu"))
    return save_dir


def difference(tree: Path, clean: ImageSource, cell: Cell) -> float:
    """Mean over pixels, grey levels."""
    return (FolderTree(tree, clean).source(cell).images([0, 1]).float() - clean.images([0, 1]).float()).abs().mean().item()


def test_released_images_of_the_final_size_are_not_resized(released: Path, clean: ImageSource) -> None:
    source = FolderTree(released, clean).source(FOG)
    for key, image in zip(source.keys, source.images([0, 1]), strict=True):
        with Image.open(released / FOG.folder / f"{key}.JPEG") as file:
            assert np.array_equal(image.permute(1, 2, 0).numpy(), np.asarray(file))


def test_images_adapted_from_released_ones_show_the_part_that_these_show(
    released: Path, clean: ImageSource, tmp_path: Path
) -> None:
    given = InputConfig(folder=str(released), layout="imagenetc", corruptions=["fog"])
    tree = adapted(tmp_path / "adapted", given)
    assert {row["input_side"] for row in manifest_of(tree / FOG.folder)} == {224}
    with Image.open(tree / FOG.folder / "n01/a.png") as file:
        assert file.size == (256, 256)
    assert difference(tree, clean, FOG) < 2
    before = FolderTree(tree, clean).identity(FOG)
    _forget_sides(tree)
    assert difference(tree, clean, FOG) > 4  # the centre, larger
    assert FolderTree(tree, clean).identity(FOG) != before


def _forget_sides(tree: Path) -> None:
    rows = [{k: v for k, v in row.items() if k != "input_side"} for row in manifest_of(tree / FOG.folder)]
    (tree / FOG.folder / "manifest.jsonl").write_text("\n".join(map(json.dumps, rows)))


@pytest.mark.parametrize("below", [None, "clean/0"])
def test_images_adapted_from_whole_photographs_show_the_part_that_the_clean_ones_show(
    clean: ImageSource, tmp_path: Path, below: str | None
) -> None:
    """From the data set (None), or from a tree of photographs."""
    given = InputConfig(dataset="Imagenet", root=str(tmp_path), corruptions=["clean"])
    if below:
        (tmp_path / "photos/clean").mkdir(parents=True)
        (tmp_path / "val").rename(tmp_path / "photos" / below)
        given = InputConfig(folder=str(tmp_path / "photos"), layout="imagenetc", corruptions=["clean"])
    assert difference(adapted(tmp_path / "adapted", given), clean, Cell("clean", 0)) < 2


def test_a_data_set_is_corrupted_before_it_is_enlarged_for_the_model_as_the_raw_member_sees_it(
    clean: ImageSource, tmp_path: Path
) -> None:
    noise = Cell("gaussian_noise", 3)
    given = InputConfig(dataset="Imagenet", root=str(tmp_path), corruptions=["gaussian_noise"], severities=[3])
    tree = adapted(tmp_path / "adapted", given)
    assert {row["input_side"] for row in manifest_of(tree / noise.folder)} == {224}
    raw = OnTheFly(clean).source(noise).images([0, 1]).float()
    back = FolderTree(tree, clean).source(noise).images([0, 1]).float()
    added = [(images - clean.images([0, 1]).float()).flatten() for images in (raw, back)]
    assert torch.corrcoef(torch.stack(added))[0, 1] > 0.8  # the same draw of the noise, smoothed; of another it is 0
    with pytest.raises(ValueError, match=r"Imagenet has 224 px images, too small to be enlarged to the 512 px.*--enlarge true"):
        plan_jobs(AdaptConfig(str(tmp_path / "x"), input=given), 512)


def test_a_tree_of_whole_photographs_is_cut_as_the_clean_ones(clean: ImageSource, tmp_path: Path) -> None:
    (tmp_path / "photos/fog").mkdir(parents=True)
    (tmp_path / "photos/fog/5").symlink_to(tmp_path / "val")
    assert difference(tmp_path / "photos", clean, FOG) == 0
