from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO

import imagedegrade.im
import imagedegrade.np
import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage

from tests.perturbing import degrade
from tests.photo_like import photo_like, to_array
from undegrade.utils.data.perturbations.degradations import DEGRADATIONS, REFERENCE, DegradationCompat
from undegrade.utils.data.perturbations.registry import find_perturbation

IMAGES = photo_like(1, 32)
ARRAY = to_array(IMAGES[0])


class Stream:
    """One of numpy's streams, read in imagedegrade's order: pixel by pixel, the channels of each
    together.
    """

    def __init__(self) -> None:
        self.state = np.random.RandomState(7)  # noqa: NPY002

    def random(self, shape: Sequence[int]) -> np.ndarray:
        return self.state.random(shape[1:] + shape[:1]).transpose(2, 0, 1)[None]

    def standard_normal(self, shape: Sequence[int]) -> np.ndarray:
        return self.state.standard_normal(shape[1:] + shape[:1]).transpose(2, 0, 1)[None]


def operated(name: str, level: float, compat: DegradationCompat) -> np.ndarray:
    """[H, W, 3] by the operator of that name with the numbers of `Stream`."""
    (out,) = DEGRADATIONS[name].function(IMAGES, torch.tensor([level], dtype=torch.float64), Stream(), compat)
    return to_array(out)


@pytest.mark.parametrize("quality", [1, 10, 50, 75, 100])
def test_jpeg_is_bit_equal_to_imagedegrade_and_pil(quality: int) -> None:
    buffer = BytesIO()
    Image.fromarray(ARRAY).save(buffer, "JPEG", quality=quality)
    expected = np.asarray(Image.open(buffer))
    assert np.array_equal(expected, np.asarray(imagedegrade.im.jpeg(Image.fromarray(ARRAY), quality)))
    for compat in (None, REFERENCE):
        out = degrade(IMAGES, "jpeg", float(quality), keys=["a"], seed=0, compat=compat)
        assert np.array_equal(to_array(out[0]), expected)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (5, 3), (17, 18), (33, 47), (64, 64)])
def test_jpeg_is_bit_equal_to_pil_at_every_quality_and_any_size(height: int, width: int) -> None:
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (100, 3, height, width), dtype=np.uint8))
    images[::2] = photo_like(50, 64)[:, :, :height, :width]
    found = degrade(images, "jpeg", torch.arange(1.0, 101.0), keys=[""] * 100, seed=0)
    for quality, (image, out) in enumerate(zip(images, found, strict=True), 1):
        buffer = BytesIO()
        Image.fromarray(to_array(image)).save(buffer, "JPEG", quality=quality)
        assert np.array_equal(to_array(out), np.asarray(Image.open(buffer))), quality


@pytest.mark.parametrize("sigma", [1.0, 10.0, 50.0])
def test_reference_noise_is_bit_equal_to_imagedegrade_given_the_same_stream(sigma: float) -> None:
    np.random.seed(7)  # noqa: NPY002  imagedegrade draws from the global generator
    expected = np.clip(imagedegrade.np.noise(ARRAY, sigma), 0, 255).astype(np.uint8)
    assert np.array_equal(operated("noise", sigma, REFERENCE), expected)


@pytest.mark.parametrize("p", [0.01, 0.1, 0.25])
def test_reference_saltpepper_is_bit_equal_to_imagedegrade_given_the_same_stream(p: float) -> None:
    np.random.seed(7)  # noqa: NPY002
    expected = imagedegrade.np.saltpepper(ARRAY, p).astype(np.uint8)
    assert np.array_equal(operated("saltpepper", p, REFERENCE), expected)
    assert (expected == 1).mean() > p / 4  # its salt is the value 1


def test_reference_blur_is_bit_equal_to_imagedegrade_at_every_sweep_level() -> None:
    for sigma in find_perturbation("blur").sweep:
        expected = imagedegrade.np.blur(ARRAY, sigma)
        level = torch.tensor([sigma])  # float32 as a batch carries it
        out = degrade(IMAGES, "blur", level, keys=["a"], seed=0, compat=REFERENCE)
        assert np.array_equal(to_array(out[0]), expected), sigma


def test_right_salt_is_imagedegrades_own_image_level_salt() -> None:
    np.random.seed(7)  # noqa: NPY002
    expected = imagedegrade.np.saltpepper(ARRAY, 0.2, (0, 255)).astype(np.uint8)
    assert np.array_equal(operated("saltpepper", 0.2, DegradationCompat()), expected)


def test_right_blur_is_scipys_of_floats_at_every_sweep_level() -> None:
    """But for pixels that lie within a thousandth of a grey level from the middle of two."""
    images = photo_like(1, 200)[:, :, :150]  # several stretches of 64 pixels, in both directions
    levels = find_perturbation("blur").sweep
    found = degrade(images.repeat(len(levels), 1, 1, 1), "blur", torch.tensor(levels), keys=[""] * len(levels), seed=0)
    for sigma, out in zip(levels, found, strict=True):
        exact = ndimage.gaussian_filter(images[0].numpy().astype(float), (0, sigma, sigma), truncate=3.0, mode="nearest")
        assert np.abs(out.numpy() - exact).max() < 0.501, sigma
        assert (out.numpy() == np.rint(exact)).mean() > 0.999, sigma
