"""The watermark of ImageNet-W: where it is drawn, with which font, and as a perturbation and a view
like the others.
"""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.fonts import SIDE, SIZE, make_font
from tests.perturbing import draw
from tests.photo_like import photo_like, save_all
from undegrade.image_adapt.adapters import Adapter
from undegrade.image_adapt.config import AdaptConfig, InputConfig
from undegrade.image_adapt.settings import settings_of
from undegrade.image_adapt.work import plan_jobs
from undegrade.utils.data.batches import BatchSet
from undegrade.utils.data.cells import Cell, parse_cells, sweep_cells
from undegrade.utils.data.perturbations import watermark as module
from undegrade.utils.data.perturbations.corruptions import ALL_CORRUPTIONS
from undegrade.utils.data.perturbations.degradations import DegradationCompat
from undegrade.utils.data.perturbations.perturbation import PERTURBATIONS, PerturbationOptions
from undegrade.utils.data.perturbations.registry import find_perturbation
from undegrade.utils.data.perturbations.watermark import TEXT, WATERMARK, font_file
from undegrade.utils.data.sources.image_source import array_source
from undegrade.utils.data.sources.images import Resize
from undegrade.utils.data.views import FolderTree, OnTheFly


@pytest.fixture
def font(tmp_path: Path) -> str:
    return make_font(tmp_path / "rectangles.ttf", *TEXT[:2])


def marked_by(font: str | None) -> PerturbationOptions:
    return PerturbationOptions(compat=DegradationCompat(watermark_font=font))


def watermark(images: torch.Tensor, keys: list[str], font: str | None = None) -> torch.Tensor:
    return find_perturbation(WATERMARK).apply(images, 0, keys, 0, marked_by(font))


def grey(value: int, side: int, count: int = 1) -> torch.Tensor:
    return torch.full((count, 3, side, side), value, dtype=torch.uint8)


# --- pixels


def test_two_characters_stand_three_times_from_a_hundredth_of_the_width_and_four_tenths_of_the_height(font: str) -> None:
    expected = np.zeros((SIDE, SIDE), bool)
    for x in (7, 7 + 2 * SIZE, 7 + 4 * SIZE):
        expected[280 + 90 - 80 : 280 + 90, x + 10 : x + 100] = True
        expected[280 + 90 - 40 : 280 + 90 - 20, x + SIZE : x + SIZE + 50] = True
    found = watermark(grey(0, SIDE), ["a"], font)[0].numpy()
    assert (found == np.where(expected, 128, 0)).all()


def test_white_is_laid_over_the_image_with_half_opacity(font: str) -> None:
    red = torch.tensor([200, 100, 0], dtype=torch.uint8)[:, None, None].repeat(1, SIDE, SIDE)[None]
    found = watermark(red, ["a"], font)[0]
    assert found[:, 0, 0].tolist() == [200, 100, 0]
    assert found[:, 300, 30].tolist() == [round(v + (255 - v) * 128 / 255) for v in (200, 100, 0)]


@pytest.mark.parametrize(("side", "size"), [(224, 36), (384, 62), (512, 82), (518, 84), (256, 41), (64, 10), (32, 5)])
def test_size_of_the_text_follows_the_image(side: int, size: int, font: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, load = [], module._load
    monkeypatch.setattr(module, "_load", lambda path, pixels: asked.append(pixels) or load(path, pixels))
    watermark(grey(0, side), ["a"], font)
    assert asked == [size]


def test_no_images_give_no_images(font: str) -> None:
    assert watermark(grey(0, 32, 0), [], font).shape == (0, 3, 32, 32)


# --- the published one


def test_a_real_font_gives_the_published_check_value() -> None:
    try:
        path = font_file()
    except FileNotFoundError:
        pytest.skip("no font with Chinese characters is installed")
    found = watermark(grey(0, 224), ["a"])[0, 0].numpy()
    rows, columns = np.nonzero(found)
    bolder = "Regular" in path.name
    near = 1 if bolder else 0
    assert [columns.min(), columns.max(), rows.min(), rows.max()] == pytest.approx([3, 216, 100, 134], abs=near)
    assert found.max() == 128 and (found > 0).mean() == pytest.approx(0.061 if bolder else 0.054, abs=0.001)


@pytest.mark.parametrize("side", [224, 256, 100])
def test_pixels_are_those_of_the_published_transform(side: int) -> None:
    published = pytest.importorskip("imagenet_w").AddWatermark(side)
    image = photo_like(1, side)
    expected = published(Image.fromarray(image[0].permute(1, 2, 0).numpy()))
    assert (watermark(image, ["a"])[0].permute(1, 2, 0).numpy() == np.asarray(expected)).all()


# --- fonts


def test_a_font_that_is_not_there_or_none_is_reported_with_what_brings_one(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileNotFoundError, match=r"data\.compat\.watermark_font gone\.ttf does not exist"):
        watermark(grey(0, 32), ["a"], "gone.ttf")
    monkeypatch.setattr(module, "_FONTS", (("/nowhere", "x.ttf"), ("no_such_package", "x.ttf"), ("numpy", "x.ttf")))
    with pytest.raises(FileNotFoundError, match="none is installed: pip install 'undegrade.watermark.' .* fonts-noto-cjk-extra"):
        watermark(grey(0, 32), ["a"])


def test_the_first_installed_font_is_taken(font: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Path(font).parent
    other = Path(make_font(folder / "other.ttf", *TEXT[:2]))
    rows = (("/nowhere", "x.ttf"), (str(folder), "gone.ttf"), (str(folder), "other.ttf"), (str(folder), Path(font).name))
    monkeypatch.setattr(module, "_FONTS", rows)
    assert font_file() == other


@pytest.mark.parametrize("characters", ["", TEXT[0]])
def test_a_font_without_the_characters_and_a_file_that_is_no_font_are_refused(tmp_path: Path, characters: str) -> None:
    poor = make_font(tmp_path / "poor.ttf", *characters or "a")
    with pytest.raises(ValueError, match=rf"font .*poor\.ttf lacks the characters {TEXT[:2]}: name another"):
        watermark(grey(0, 32), ["a"], poor)
    (tmp_path / "text.ttf").write_text("no font")
    with pytest.raises(ValueError, match=r"text\.ttf is not a font that can be read"):
        watermark(grey(0, 32), ["a"], str(tmp_path / "text.ttf"))


# --- as a perturbation


def test_it_is_a_perturbation_of_one_level_and_none_of_the_corruptions(font: str) -> None:
    assert WATERMARK in PERTURBATIONS and WATERMARK not in ALL_CORRUPTIONS
    assert draw(WATERMARK, ["a", "b"], 0).tolist() == [0, 0] and find_perturbation(WATERMARK).unit(torch.zeros(2)).tolist() == [
        1,
        1,
    ]
    with pytest.raises(ValueError, match="unknown perturbation 'watermrk': did you mean 'watermark'"):
        find_perturbation("watermrk")


def test_its_cell_is_one_folder() -> None:
    assert parse_cells([WATERMARK, "all"], [5])[0] == Cell(WATERMARK, 0) and len(parse_cells(["all"], [5])) == 15
    assert sweep_cells(WATERMARK) == [Cell(WATERMARK, 0)]
    assert Cell(WATERMARK, 0).folder == "watermark/0"


def source_of(side: int = 64):  # noqa: ANN201
    images = photo_like(4, side).numpy()
    return array_source("pets", images, np.arange(4) % 2, ["cat", "dog"], [str(i) for i in range(4)])


def test_training_batches_and_views_have_it(font: str) -> None:
    source, options = source_of(), marked_by(font)
    expected = watermark(source.images(range(4)), source.keys, font)
    assert torch.equal(BatchSet(source, [WATERMARK], 4, 0, options=options)[0, 0]["degraded"], expected / 255)
    cell = Cell(WATERMARK, 0)
    assert torch.equal(OnTheFly(source, options=options).source(cell).images(range(4)), expected)


def test_logits_of_another_font_are_not_taken_from_a_cache(font: str) -> None:
    other = make_font(Path(font).parent / "other.ttf", *TEXT[:2])
    views = [OnTheFly(source_of(), options=marked_by(name)) for name in (font, font, other)]
    assert views[0].identity(Cell(WATERMARK, 0)) == views[1].identity(Cell(WATERMARK, 0)) != views[2].identity(Cell(WATERMARK, 0))


def test_images_adapted_under_another_font_are_not_mixed(font: str, tmp_path: Path) -> None:
    other = make_font(tmp_path / "other.ttf", *TEXT[:2])
    settings = []
    for name in (font, other):
        given = InputConfig(corruptions=[WATERMARK, "weak_seq"], limit=2, compat=DegradationCompat(watermark_font=name))
        config = AdaptConfig(str(tmp_path / "out"), input=given)
        marked, sequence = plan_jobs(config, 32)
        assert marked.folder == tmp_path / "out" / "watermark" / "0"
        settings.append(settings_of(config, Adapter(), marked))
        assert "font" not in settings_of(config, Adapter(), sequence)["input"]
    assert [row["input"]["font"].split()[0] for row in settings] == ["rectangles.ttf", "other.ttf"]


# --- files


@pytest.mark.parametrize("layout", ["val", "watermark/0"])
def test_a_view_reads_its_images_from_val_as_imagenet_w_has_them_or_from_its_own_folder(tmp_path: Path, layout: str) -> None:
    source = source_of()
    marked = 255 - source.images(range(4))
    save_all(tmp_path / layout, [f"{key}.png" for key in source.keys], marked)
    view = FolderTree(tmp_path, source)
    cell = Cell(WATERMARK, 0)
    assert torch.equal(view.source(cell).images(range(4)), marked)
    before = view.identity(cell)
    (tmp_path / layout / f"{source.keys[0]}.png").write_bytes(b"")
    assert view.identity(cell) != before
    with pytest.raises(FileNotFoundError, match=r"no images for fog/5 under"):
        view.source(Cell("fog", 5))


def test_its_own_folder_comes_before_val(tmp_path: Path) -> None:
    source = source_of()
    for layout, value in (("val", 10), ("watermark/0", 20)):
        save_all(tmp_path / layout, [f"{key}.png" for key in source.keys], grey(value, 64, 4))
    assert FolderTree(tmp_path, source).source(Cell(WATERMARK, 0)).images([0]).unique().tolist() == [20]


def test_files_of_the_size_that_evaluation_shows_are_taken_whole(tmp_path: Path) -> None:
    """ImageNet-W at 224 px, as ImageNet-C; larger files are cut like the clean photographs."""
    clean = dataclasses.replace(source_of(56), resize=Resize(64))
    images = photo_like(4, 64)
    save_all(tmp_path / "whole" / "val", [f"{key}.png" for key in clean.keys], images[:, :, :56, :56])
    save_all(tmp_path / "large" / "val", [f"{key}.png" for key in clean.keys], images)
    whole, large = (FolderTree(tmp_path / name, clean).source(Cell(WATERMARK, 0)).images(range(4)) for name in ("whole", "large"))
    assert torch.equal(whole, images[:, :, :56, :56]) and torch.equal(large, images[:, :, 4:60, 4:60])


def test_a_missing_cell_names_the_command_that_makes_it(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=re.escape("no images for watermark/0 under")):
        FolderTree(tmp_path, source_of()).source(Cell(WATERMARK, 0))
