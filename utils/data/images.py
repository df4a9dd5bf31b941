"""Image files into uint8 arrays of one size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".ppm", ".tif", ".tiff")


class BrokenImageError(ValueError):
    """An image file that cannot be decoded; the message names the file and the reason."""


def list_images(folder: Path) -> list[Path]:
    """Image files below `folder` by suffix, in sorted order (hidden files and folders left out)."""
    found = (p for p in folder.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file())
    return sorted(p for p in found if not any(part.startswith(".") for part in p.relative_to(folder).parts))


def center_crop(image: Image.Image, size: int) -> Image.Image:
    """Square `size` x `size` centre of an image whose shorter side is first brought to `size`.

    Halved with a box filter while at least twice too large, then bicubic: the rule of guided-diffusion's data loader, so that the
    published diffusion models see what they were trained on.
    """
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    if scale != 1:
        image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return image.crop((left, top, left + size, top + size))


def read_image(path: str | Path, size: int) -> np.ndarray:
    """uint8 [3, size, size] of a file, RGB, turned upright by its EXIF tag, centre-cropped.

    Raises:
        BrokenImageError: not an image, or truncated.
    """
    try:
        with Image.open(path) as image:
            upright = ImageOps.exif_transpose(image).convert("RGB")
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = "no image format that Pillow knows" if isinstance(error, UnidentifiedImageError) else str(error)
        raise BrokenImageError(f"{path}: {reason}") from error
    return np.asarray(center_crop(upright, size)).transpose(2, 0, 1)
