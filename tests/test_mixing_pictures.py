"""What PixMix mixes in: made here, or from a folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.photo_like import photo_like, save_all
from undegrade.utils.data.perturbations.mixing_pictures import (
    KINDS,
    MADE,
    count_pictures,
    describe_pictures,
    filter_texture,
    mixing_picture,
)


@pytest.mark.parametrize(("height", "width"), [(32, 32), (8, 8), (64, 48), (130, 130)])
@pytest.mark.parametrize("kind", KINDS)
def test_pictures_are_made_without_a_folder_and_each_is_another(kind: str, height: int, width: int) -> None:
    assert count_pictures(kind, None) == MADE == 300
    made = [mixing_picture(kind, None, index, height, width) for index in (0, 1, 2, 299)]
    assert all(picture.shape == (3, height, width) and picture.dtype == torch.uint8 for picture in made)
    assert all(picture.float().std() > 3 for picture in made)
    assert len({picture.numpy().tobytes() for picture in made}) == 4
    again = mixing_picture.__wrapped__(kind, None, 299, height, width)
    assert torch.equal(again, made[-1]) and mixing_picture(kind, None, 299, height, width) is made[-1]


def test_a_picture_is_the_same_at_another_size() -> None:
    for index in (0, 3, 6):  # Julia sets: sizes differ by sampling alone
        small, large = (mixing_picture("fractals", None, index, side, side).double() for side in (32, 128))
        assert (torch.nn.functional.avg_pool2d(large, 4) - small).abs().mean() < 12
    wide, square = (mixing_picture("fractals", None, 0, height, 64) for height in (32, 64))
    assert torch.equal(wide, square[:, 16:48])


def test_textures_have_the_few_frequencies_of_their_filters() -> None:
    shares = []
    for seed in range(20):
        wave = filter_texture(np.random.default_rng(seed), 64)
        power = np.sort((np.abs(np.fft.fft2(wave - wave.mean((1, 2), keepdims=True))) ** 2).sum(0).ravel())[::-1]
        shares.append(power[: len(power) // 10].sum() / power.sum())
    assert np.mean(shares) > 0.85  # white noise: a third of it in the strongest tenth


def test_pictures_of_a_folder_are_cut_to_the_ratio_of_the_images(tmp_path: Path) -> None:
    wide = np.zeros((20, 60, 3), dtype=np.uint8)
    wide[:, 18:42] = 200
    Image.fromarray(wide).save(tmp_path / "a.png")
    (tmp_path / "deeper").mkdir()
    Image.fromarray(wide[..., 0]).save(tmp_path / "deeper/b.png")  # grey becomes RGB
    for index in range(count_pictures("fractals", str(tmp_path))):
        assert mixing_picture("fractals", str(tmp_path), index, 10, 10).unique().tolist() == [200]
    assert mixing_picture("fractals", str(tmp_path), 0, 10, 30)[0, 5, [0, 15, 29]].tolist() == [0, 200, 0]


def test_a_folder_is_known_by_its_pictures_not_by_its_place(tmp_path: Path) -> None:
    for name in ("one", "two"):
        save_all(tmp_path / name, ["a.png", "b.png"], photo_like(2, 16))
    first, second = (describe_pictures("features", str(tmp_path / name)) for name in ("one", "two"))
    assert first == second and first.startswith("2 pictures ")
    save_all(tmp_path / "three", ["a.png", "c.png"], photo_like(2, 16))
    assert describe_pictures("features", str(tmp_path / "three")) != first


def test_a_folder_without_pictures_is_refused_by_the_name_of_its_key(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(FileNotFoundError, match=f"perturbations.pixmix.features {folder} is no folder with pictures"):
            count_pictures("features", str(folder))
