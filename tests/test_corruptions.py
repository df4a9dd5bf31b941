from __future__ import annotations

import importlib.util
from pathlib import Path

import imagecorruptions
import numpy as np
import pytest
import torch

from tests.perturbing import corrupt
from tests.photo_like import photo_like
from undegrade.utils.data.perturbations import corruption_weather
from undegrade.utils.data.perturbations.corruption_constants import CONSTANT_SETS, CONSTANTS
from undegrade.utils.data.perturbations.corruptions import (
    ALL_CORRUPTIONS,
    CORRUPTIONS,
    EXTRA_CORRUPTIONS,
    FAMILIES,
    FUNCTIONS,
    default_constants,
)

STOCHASTIC = ("gaussian_noise", "shot_noise", "impulse_noise", "glass_blur", "motion_blur", "snow", "frost", "fog")
STOCHASTIC += ("elastic_transform", "speckle_noise", "spatter")


# --- what the result depends on


@pytest.mark.parametrize("name", ALL_CORRUPTIONS)
def test_layout_in_memory_does_not_matter(name: str) -> None:
    """Files are read with the channels last."""
    images = photo_like(3, 32)
    other = images.contiguous(memory_format=torch.channels_last)
    outs = [corrupt(batch, name, 3, keys=list("abc"), seed=0, constants="imagenet") for batch in (images, other)]
    assert torch.equal(*outs)


@pytest.mark.parametrize("name", ALL_CORRUPTIONS)
def test_images_may_be_smaller_than_what_a_corruption_moves(name: str) -> None:
    images = photo_like(1, 5)
    assert corrupt(images, name, 5, keys=["a"], seed=0, constants="imagenet").shape == images.shape


@pytest.mark.parametrize(("constants", "size"), CONSTANT_SETS.items())
@pytest.mark.parametrize("name", ALL_CORRUPTIONS)
def test_every_corruption_changes_images_of_its_size_and_keeps_type_and_shape(name: str, constants: str, size: int) -> None:
    image = photo_like(1, size)
    for severity in range(1, 6):
        out = corrupt(image, name, severity, keys=["a"], seed=0, constants=constants)
        assert out.dtype == torch.uint8
        assert out.shape == image.shape
        if name != "spatter":  # may hit no pixel
            assert not torch.equal(out, image)


@pytest.mark.parametrize("name", ALL_CORRUPTIONS)
def test_images_that_are_not_square_keep_their_shape(name: str) -> None:
    image = photo_like(1, 64)[:, :, :48].contiguous()
    assert corrupt(image, name, 3, keys=["a"], seed=0, constants="tiny").shape == (1, 3, 48, 64)


@pytest.mark.parametrize("name", ALL_CORRUPTIONS)
def test_result_does_not_depend_on_batch_or_order(name: str) -> None:
    images, keys = photo_like(5, 32), list("abcde")
    severities = torch.tensor([1, 2, 3, 4, 5])
    whole = corrupt(images, name, severities, keys=keys, seed=1)
    order = [3, 0, 4, 2, 1]
    assert torch.equal(corrupt(images[order], name, severities[order], keys=[keys[i] for i in order], seed=1), whole[order])
    for i in range(5):
        assert torch.equal(corrupt(images[i : i + 1], name, i + 1, keys=[keys[i]], seed=1)[0], whole[i])


@pytest.mark.parametrize("name", STOCHASTIC)
def test_another_key_or_seed_gives_another_draw(name: str) -> None:
    image = photo_like(1, 64)
    out = corrupt(image, name, 5, keys=["a"], seed=0)
    assert not torch.equal(out, corrupt(image, name, 5, keys=["b"], seed=0))
    assert not torch.equal(out, corrupt(image, name, 5, keys=["a"], seed=1))


@pytest.mark.parametrize(("constants", "height", "width"), [("imagenet", 224, 224), ("tiny", 45, 67)])
@pytest.mark.parametrize("name", ALL_CORRUPTIONS)
def test_bytes_of_an_image_are_the_same_in_every_batch(name: str, constants: str, height: int, width: int) -> None:
    # Odd sizes, flat areas and batches that are cut into parts: no rounding may depend on a
    # neighbour.
    images, keys = photo_like(7, 224)[:, :, :height, :width].contiguous(), list("abcdefg")
    images[:, :, height // 2 : height // 2 + 20] = 77
    for severity in (1, 3, 5):
        whole = corrupt(images, name, severity, keys=keys, seed=1, constants=constants)
        for i in (0, 5, 6):
            assert torch.equal(corrupt(images[i : i + 1], name, severity, keys=[keys[i]], seed=1, constants=constants)[0], whole[i])


def test_input_is_left_alone() -> None:
    images = photo_like(1, 32)
    before = images.clone()
    for name in ALL_CORRUPTIONS:
        corrupt(images, name, 5, keys=["a"], seed=0)
    assert torch.equal(images, before)


# --- details


def test_spatter_without_a_drop_leaves_the_image() -> None:
    images = photo_like(1, 32)
    out = FUNCTIONS["spatter"](images, [np.random.default_rng(0)], 0.1, 0.01, 1, 0.7, 0.5, False)
    assert torch.allclose(out, images.to(out.dtype))


def test_impulse_noise_is_half_salt_half_pepper_for_each_channel_value() -> None:
    grey = torch.full((4, 3, 128, 128), 128, dtype=torch.uint8)
    out = corrupt(grey, "impulse_noise", 5, keys=list("abcd"), seed=0)
    for value in (0, 255):
        assert (out == value).double().mean().item() == pytest.approx(0.035, abs=0.0017)  # 4 standard errors
    assert not torch.equal(out[:, 0], out[:, 1])


def test_float_results_are_truncated() -> None:
    # contrast .75 about the mean of 0 and 3 is 0.375 and 2.625: rounding would give 0 and 3
    image = torch.tensor([0, 3], dtype=torch.uint8).repeat(16).expand(1, 3, 32, 32).contiguous()
    assert corrupt(image, "contrast", 1, keys=["a"], seed=0).unique().tolist() == [0, 2]


# --- tables


def test_names_order_and_families() -> None:
    assert ALL_CORRUPTIONS == CORRUPTIONS + EXTRA_CORRUPTIONS
    assert (len(CORRUPTIONS), len(EXTRA_CORRUPTIONS)) == (15, 4)
    assert list(CORRUPTIONS) == imagecorruptions.get_corruption_names("common")
    assert list(EXTRA_CORRUPTIONS) == imagecorruptions.get_corruption_names("validation")
    for family in ("noise", "blur", "weather", "digital"):
        assert list(FAMILIES[family]) == imagecorruptions.get_corruption_names(family)


def test_constants_are_complete() -> None:
    assert set(CONSTANTS) == set(ALL_CORRUPTIONS)
    for name, sets in CONSTANTS.items():
        assert list(sets) == list(CONSTANT_SETS), name
        assert all(len(rows) == 5 for rows in sets.values()), name


@pytest.mark.parametrize(
    ("name", "constants", "severity", "expected"),
    [
        ("gaussian_noise", "cifar", 4, (0.09,)),
        ("shot_noise", "tiny", 5, (15,)),
        ("impulse_noise", "imagenet", 5, (0.27,)),
        ("defocus_blur", "tiny", 4, (2.5, 0.01)),
        ("glass_blur", "tiny", 4, (0.7, 2, 1)),
        ("motion_blur", "cifar", 5, (9, 2.5)),
        ("zoom_blur", "imagenet", 3, (1.21, 0.02)),
        ("snow", "cifar", 5, (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8)),
        ("frost", "tiny", 2, (0.9, 0.4, 0.3)),
        ("fog", "cifar", 5, (1.5, 1.75)),
        ("contrast", "cifar", 1, (0.75,)),
        ("elastic_transform", "tiny", 5, (10.24, 1.92, 1.28)),
        ("elastic_transform", "imagenet", 1, pytest.approx((488, 170.8, 24.4))),
        ("jpeg_compression", "cifar", 1, (80,)),
        ("pixelate", "imagenet", 5, (0.25,)),
        ("saturate", "tiny", 5, (30, 0.2)),
        ("spatter", "imagenet", 5, (0.67, 0.4, 1, 0.65, 1.5, True)),
        ("speckle_noise", "cifar", 2, (0.1,)),
        ("brightness", "cifar", 5, (0.3,)),
        ("gaussian_blur", "tiny", 4, (1.25,)),
    ],
)
def test_constants_are_the_published_ones(name: str, constants: str, severity: int, expected: object) -> None:
    assert CONSTANTS[name][constants][severity - 1] == expected


@pytest.mark.parametrize(
    ("size", "constants"),
    [(28, "cifar"), (32, "cifar"), (45, "cifar"), (46, "tiny"), (64, "tiny"), (119, "tiny"), (120, "imagenet")]
    + [(size, "imagenet") for size in (224, 256, 512)],
)
def test_default_constants_are_those_of_the_nearest_size(size: int, constants: str) -> None:
    assert default_constants(size) == constants


# --- errors


@pytest.mark.parametrize("severity", [0, 6, -1])
def test_severity_out_of_range_names_the_range(severity: int) -> None:
    with pytest.raises(ValueError, match=f"severity {severity} is out of range: allowed: 1, 2, 3, 4, 5"):
        corrupt(photo_like(1, 32), "fog", severity, keys=["a"], seed=0)


def test_severity_of_the_wrong_kind_is_refused() -> None:
    images = photo_like(2, 32)
    with pytest.raises(ValueError, match="severity 1.5 is out of range"):
        corrupt(images, "fog", 1.5, keys=["a", "b"], seed=0)
    with pytest.raises(ValueError, match=r"\[3\]: expected \[2\]"):
        corrupt(images, "fog", torch.tensor([1, 2, 3]), keys=["a", "b"], seed=0)


def test_unknown_names_name_the_closest() -> None:
    with pytest.raises(ValueError, match="unknown perturbation 'gausian_noise'.*did you mean 'gaussian_noise'"):
        corrupt(photo_like(1, 32), "gausian_noise", 1, keys=["a"], seed=0)
    with pytest.raises(ValueError, match="unknown set of corruption constants 'cifar10'.*did you mean 'cifar'"):
        corrupt(photo_like(1, 32), "fog", 1, keys=["a"], seed=0, constants="cifar10")


def test_images_of_the_wrong_kind_are_refused() -> None:
    with pytest.raises(ValueError, match="expected a torch.uint8 tensor"):
        corrupt(photo_like(1, 32).float() / 255, "fog", 1, keys=["a"], seed=0)


def test_photographs_of_frost_are_the_downloaded_ones_or_it_is_said_how_to_bring_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = corruption_weather.frost_folder()
    corruption_weather._frost_photograph.cache_clear()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setenv("UNDEGRADE_WEIGHTS", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    message = r"frost needs photographs \(frost_photographs is not in .*undegrade download.*\); or pip install 'undegrade\[frost\]'"
    with pytest.raises(ValueError, match=message):
        corrupt(photo_like(1, 32), "frost", 1, keys=["a"], seed=0)
    (tmp_path / "frost_photographs").symlink_to(installed)
    assert corruption_weather.frost_folder() == tmp_path / "frost_photographs"
    corrupt(photo_like(1, 32), "frost", 1, keys=["a"], seed=0)
