from __future__ import annotations

from io import BytesIO

import imagedegrade.im
import imagedegrade.np
import numpy as np
import pytest
import torch
from PIL import Image

from tests.photo_like import photo_like, to_array
from utils.data.degradations import CORRECT, DEGRADATIONS, REFERENCE, degrade, sweep_levels

IMAGES = photo_like(1, 32)
ARRAY = to_array(IMAGES[0])


@pytest.mark.parametrize("quality", [1, 10, 50, 75, 100])
def test_jpeg_is_bit_equal_to_imagedegrade_and_pil(quality: int) -> None:
    buffer = BytesIO()
    Image.fromarray(ARRAY).save(buffer, "JPEG", quality=quality)
    expected = np.asarray(Image.open(buffer))
    assert np.array_equal(expected, np.asarray(imagedegrade.im.jpeg(Image.fromarray(ARRAY), quality)))
    for compat in (None, REFERENCE):
        out = degrade(IMAGES, "jpeg", float(quality), keys=["a"], seed=0, compat=compat)
        assert np.array_equal(to_array(out[0]), expected)


@pytest.mark.parametrize("sigma", [1.0, 10.0, 50.0])
def test_reference_noise_is_bit_equal_to_imagedegrade_given_the_same_stream(sigma: float) -> None:
    np.random.seed(7)  # noqa: NPY002  imagedegrade draws from the global generator
    expected = np.clip(imagedegrade.np.noise(ARRAY, sigma), 0, 255).astype(np.uint8)
    out = DEGRADATIONS["noise"].function(ARRAY, sigma, np.random.RandomState(7), REFERENCE)  # noqa: NPY002
    assert np.array_equal(out, expected)


@pytest.mark.parametrize("p", [0.01, 0.1, 0.25])
def test_reference_saltpepper_is_bit_equal_to_imagedegrade_given_the_same_stream(p: float) -> None:
    np.random.seed(7)  # noqa: NPY002
    expected = imagedegrade.np.saltpepper(ARRAY, p).astype(np.uint8)
    out = DEGRADATIONS["saltpepper"].function(ARRAY, p, np.random.RandomState(7), REFERENCE)  # noqa: NPY002
    assert np.array_equal(out, expected)
    assert (expected == 1).mean() > p / 4  # its salt is the value 1


def test_reference_blur_is_bit_equal_to_imagedegrade_at_every_sweep_level() -> None:
    for sigma in sweep_levels("blur"):
        expected = imagedegrade.np.blur(ARRAY, sigma)
        level = torch.tensor([sigma])  # float32 as a batch carries it
        out = degrade(IMAGES, "blur", level, keys=["a"], seed=0, compat=REFERENCE)
        assert np.array_equal(to_array(out[0]), expected), sigma


def test_right_salt_is_imagedegrades_own_image_level_salt() -> None:
    np.random.seed(7)  # noqa: NPY002
    expected = imagedegrade.np.saltpepper(ARRAY, 0.2, (0, 255)).astype(np.uint8)
    out = DEGRADATIONS["saltpepper"].function(ARRAY, 0.2, np.random.RandomState(7), CORRECT)  # noqa: NPY002
    assert np.array_equal(out, expected)
