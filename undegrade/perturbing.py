"""Images made worse on purpose: `corrupt` by a severity, `degrade` by a level in its own unit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from undegrade.pictures import pixel_key, uint8_images
from undegrade.utils.data.perturbations.perturbation import Perturbation, PerturbationOptions
from undegrade.utils.data.perturbations.registry import find_perturbation

if TYPE_CHECKING:
    import numpy.typing as npt

ImageOrImages = TypeVar("ImageOrImages", bound="Image.Image | npt.NDArray[Any] | Tensor | list[Any]")
_OPTIONS = {name: PerturbationOptions(constants=name) for name in (None, "cifar", "tiny", "imagenet")}


def corrupt(
    images: ImageOrImages,
    name: str,
    severity: int = 5,
    *,
    seed: int = 0,
    keys: Sequence[str] | None = None,
    constants: Literal["cifar", "tiny", "imagenet"] | None = None,
) -> ImageOrImages:
    """Images under one of the corruptions of ImageNet-C and its like (Hendrycks and Dietterich,
    ICLR 2019, arXiv:1903.12261).

    Args:
        images: a Pillow image; a tensor [3,H,W] or [B,3,H,W] or an array [H,W,3] or [B,H,W,3],
            uint8 in 0..255 or floating point in [0,1]; or a list of these, which may differ in
            size.
        name: of `list_perturbations()`, one that has severities ("gaussian_noise", "fog", ...).
        severity: 1 to 5; 5 is the worst.
        seed: of the random numbers, at least 0. The result depends on image, name, severity, key
            and seed only.
        keys: one string for each image, which names its random stream (default: a digest of the
            pixels, so that different images have different noise).
        constants: of which released set: "cifar" (32 px), "tiny" (64 px), "imagenet" (224 px);
            None: by the image's size.

    Returns:
        What was given, of the same type, shape, dtype, range and device.

    Raises:
        ValueError: an unknown name (with the closest), a severity that does not exist, or what is
            no image (says what is taken).
    """
    row = find_perturbation(name)
    if not row.by_severity:
        raise ValueError(f"{name} has no severities but levels ({row.description}): use degrade(images, {name!r}, level)")
    return _perturbed(images, row, severity, seed, keys, constants)


def degrade(
    images: ImageOrImages,
    name: str,
    level: float | Sequence[float] | None = None,
    *,
    seed: int = 0,
    keys: Sequence[str] | None = None,
) -> ImageOrImages:
    """Images under a degradation at a level in its own unit, or under a sequence of several.

    Args:
        images: see `corrupt`.
        name: "jpeg", "blur", "noise", "saltpepper", a sequence of them such as "blur+noise+jpeg"
            (`list_perturbations()` says the units), or what has one level only ("strong_seq").
        level: JPEG quality 1..101, standard deviation in pixels 0..5 or in grey levels 0..50, share
            of values 0..0.25; one a stage of a sequence. None: drawn for each image.
        seed: see `corrupt`.
        keys: see `corrupt`.

    Returns:
        What was given, of the same type, shape, dtype, range and device.

    Raises:
        ValueError: an unknown name (with the closest), a level out of range, or what is no image.
    """
    row = find_perturbation(name)
    if row.by_severity:
        raise ValueError(f"{name} has severities, not levels: use corrupt(images, {name!r}, severity)")
    return _perturbed(images, row, level if level is not None else row.drawn, seed, keys, None)


def _perturbed(images: Any, row: Perturbation, level: Any, seed: int, keys: Sequence[str] | None, constants: str | None) -> Any:
    if isinstance(images, (list, tuple)):
        if keys is not None and len(keys) != len(images):
            raise ValueError(f"{len(keys)} keys for {len(images)} images: give one for each")
        return [
            _perturbed(image, row, level, seed, None if keys is None else [keys[i]], constants) for i, image in enumerate(images)
        ]
    if isinstance(images, Image.Image):
        content = (images if images.mode == "RGB" else images.convert("RGB")).tobytes()
        rgb = np.frombuffer(content, dtype=np.uint8).reshape(images.height, images.width, 3)
        return Image.frombytes("RGB", images.size, _perturbed(rgb, row, level, seed, keys, constants).tobytes())
    if not isinstance(images, (Tensor, np.ndarray)):
        raise ValueError(f"an image of type {type(images).__name__}: give a Pillow image, a tensor, an array, or a list of these")
    pixels = uint8_images(images)
    names = [pixel_key(image) for image in pixels.numpy()] if keys is None else list(keys)
    if level is None:
        levels: Any = row.draw(names, seed)
    elif row.by_severity and isinstance(level, int):
        levels = level
    else:
        levels = torch.as_tensor(level, dtype=torch.float64)
        levels = levels.expand(len(pixels), len(row.stages)) if len(row.stages) > 1 else levels
    out = row.apply(pixels, levels, names, seed, _OPTIONS[constants])
    return _as_given(out.clone() if out.data_ptr() == pixels.data_ptr() else out, images)  # never the caller's own memory


def _as_given(pixels: Tensor, images: Tensor | np.ndarray) -> Tensor | np.ndarray:
    """uint8 [B,3,H,W] as what it was made of."""
    if isinstance(images, np.ndarray):
        out = np.ascontiguousarray(pixels.numpy().transpose(0, 2, 3, 1))
        out = out[0] if images.ndim == 3 else out
        return out if images.dtype == np.uint8 else (out / 255).astype(images.dtype)
    if images.ndim == 3:
        pixels = pixels[0]
    return pixels.to(images.device) if images.dtype == torch.uint8 else (pixels / 255).to(images)
