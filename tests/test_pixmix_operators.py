"""Each operator against Pillow's or torchvision's, image by image."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageFilter, ImageOps
from torchvision.transforms.v2 import functional

from tests.photo_like import photo_like, to_array
from undegrade.utils.data.perturbations import pixmix_operators as operators

Apply = Callable[[Image.Image, float], Image.Image]
BILINEAR, AFFINE = Image.Resampling.BILINEAR, Image.Transform.AFFINE


def _images(height: int, width: int) -> torch.Tensor:
    """Photo-like ones, one of one colour, one of noise, one of two colours."""
    images = photo_like(12, max(height, width))[:, :, :height, :width].contiguous()
    generator = torch.Generator().manual_seed(0)
    images[0] = 77
    images[1] = torch.randint(0, 256, images[1].shape, generator=generator).to(torch.uint8)
    images[2] = (torch.rand(images[2].shape, generator=generator) < 0.5) * 200
    return images


def _enhanced(name: str) -> Apply:
    return lambda image, factor: getattr(ImageEnhance, name)(image).enhance(factor)


def _moved(*matrix: float | None) -> Apply:
    """The matrix with the parameter where there is None."""

    def apply(image: Image.Image, by: float) -> Image.Image:
        return image.transform(image.size, AFFINE, tuple(by if part is None else part for part in matrix), BILINEAR)

    return apply


# ours, Pillow's, lowest and highest parameter, whether it is a whole number
CASES: dict[str, tuple[Callable[..., torch.Tensor], Apply, float, float, bool]] = {
    "autocontrast": (lambda images, _: operators.autocontrast(images), lambda image, _: ImageOps.autocontrast(image), 0, 1, False),
    "equalize": (lambda images, _: operators.equalize(images), lambda image, _: ImageOps.equalize(image), 0, 1, False),
    "posterize": (lambda images, _: operators.posterize(images, 4), lambda image, _: ImageOps.posterize(image, 4), 0, 1, False),
    "solarize": (operators.solarize, lambda image, threshold: ImageOps.solarize(image, int(threshold)), 0, 256, True),
    "rotate": (operators.rotate, lambda image, degrees: image.rotate(degrees, BILINEAR), -40, 40, True),
    "shear_x": (lambda images, by: operators.affine(images, (1, by, 0, 0, 1, 0)), _moved(1, None, 0, 0, 1, 0), -0.3, 0.3, False),
    "shear_y": (lambda images, by: operators.affine(images, (1, 0, 0, by, 1, 0)), _moved(1, 0, 0, None, 1, 0), -0.3, 0.3, False),
    "translate_x": (lambda images, by: operators.affine(images, (1, 0, by, 0, 1, 0)), _moved(1, 0, None, 0, 1, 0), -9, 9, True),
    "translate_y": (lambda images, by: operators.affine(images, (1, 0, 0, 0, 1, by)), _moved(1, 0, 0, 0, 1, None), -9, 9, True),
    "color": (operators.color, _enhanced("Color"), 0.1, 1.5, False),
    "contrast": (operators.contrast, _enhanced("Contrast"), 0.1, 1.5, False),
    "brightness": (operators.brightness, _enhanced("Brightness"), 0.1, 1.5, False),
    "sharpness": (operators.sharpness, _enhanced("Sharpness"), 0.1, 1.5, False),
    "greyscale": (lambda images, _: operators.greyscale(images), lambda image, _: image.convert("L").convert("RGB"), 0, 1, False),
    "gaussian_blur": (operators.gaussian_blur, lambda image, radius: image.filter(ImageFilter.GaussianBlur(radius)), 0, 6.5, False),
}


@pytest.mark.parametrize(("height", "width"), [(32, 32), (8, 8), (48, 31), (2, 3)])
@pytest.mark.parametrize("name", CASES)
def test_operator_equals_pillows(name: str, height: int, width: int) -> None:
    ours, theirs, lowest, highest, whole = CASES[name]
    images = _images(height, width)
    parameter = lowest + (highest - lowest) * torch.linspace(0, 1, len(images), dtype=torch.float64)
    parameter = parameter.round() if whole else parameter
    expected = [
        np.asarray(theirs(Image.fromarray(to_array(image)), float(by))) for image, by in zip(images, parameter, strict=True)
    ]
    assert np.array_equal(ours(images, parameter).permute(0, 2, 3, 1).numpy(), np.stack(expected))


def test_hue_is_torchvisions_to_one_grey_level() -> None:
    images, turn = _images(24, 24), torch.linspace(-0.5, 0.5, 12, dtype=torch.float64)
    expected = torch.stack([functional.adjust_hue(image, float(by)) for image, by in zip(images, turn, strict=True)])
    assert (operators.shifted_hue(images, turn).int() - expected.int()).abs().max() <= 1
    assert torch.equal(operators.shifted_hue(images, torch.zeros(12)), images)
