"""Image files into uint8 arrays of one size.

Whatever a file holds becomes 8-bit RGB by a fixed rule or is refused by name:

- turned upright by the EXIF tag; colour profiles are not applied;
- transparency is dropped: the colours beneath it are used;
- of an animation the first frame;
- grey is repeated, a palette looked up, CMYK converted by Pillow (without profile: colours shift a
  little);
- 16-bit grey is divided by 257 and rounded; of 16-bit colour PNGs Pillow reads the upper 8 bits;
- 32-bit integer and floating-point pixels are refused: their range is not known.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".ppm", ".tif", ".tiff")


class BrokenImageError(ValueError):
    """An image file that cannot be decoded; the message names the file and the reason."""


class FileSlice(NamedTuple):
    """An image file that is a part of another file, such as a member of a tar file: `size` bytes
    from `offset` on.
    """

    path: Path
    offset: int
    size: int

    def __str__(self) -> str:
        return f"{self.path}[{self.offset}:{self.offset + self.size}]"

    def open(self) -> io.BytesIO:
        """Its bytes."""
        with self.path.open("rb") as file:
            file.seek(self.offset)
            return io.BytesIO(file.read(self.size))


def list_images(folder: Path) -> list[Path]:
    """Image files below `folder` by suffix, in sorted order (hidden files and folders left out)."""
    found = (p for p in folder.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file())
    return sorted(p for p in found if not any(part.startswith(".") for part in p.relative_to(folder).parts))


def center_crop(image: Image.Image, size: int, resize: int | None = None) -> Image.Image:
    """Square `size` x `size` centre of an image whose shorter side is first brought to `size`, or
    to `resize`.

    To `size`: halved with a box filter while at least twice too large, then bicubic: the rule of
    guided-diffusion's data loader, so that the published diffusion models see what they were
    trained on. To `resize`: bilinear with antialiasing, the usual preprocessing of ImageNet
    classifiers (256, then 224 of it).
    """
    while resize is None and min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = (resize or size) / min(image.size)
    if scale != 1:
        method = Image.Resampling.BILINEAR if resize else Image.Resampling.BICUBIC
        image = image.resize((round(image.width * scale), round(image.height * scale)), method)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return image.crop((left, top, left + size, top + size))


def read_image(path: str | Path | FileSlice, size: int | None, resize: int | None = None, *, smallest: int = 0) -> np.ndarray:
    """uint8 [3, size, size] of a file: RGB by the rules above, then `center_crop` to `size` (of a
    shorter side `resize`); without size the whole picture, [3, height, width].

    Raises:
        BrokenImageError: not an image, truncated, pixels of unknown range, or a shorter side below
            `smallest` pixels.
    """
    try:
        with Image.open(path.open() if isinstance(path, FileSlice) else path) as image:
            upright = _as_rgb(ImageOps.exif_transpose(image), image.format)
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = "no image format that Pillow knows" if isinstance(error, UnidentifiedImageError) else str(error)
        raise BrokenImageError(f"{path}: {reason}") from error
    if min(upright.size) < smallest:
        raise BrokenImageError(
            f"{path}: {upright.width} x {upright.height} px is too small to be enlarged to {size} (--enlarge true does it anyway)"
        )
    return np.asarray(upright if size is None else center_crop(upright, size, resize)).transpose(2, 0, 1)


def _as_rgb(image: Image.Image, file_format: str | None) -> Image.Image:
    if image.mode.startswith("I;16") or (image.mode == "I" and file_format == "PNG"):  # the latter until Pillow 10.2
        image = Image.fromarray(np.rint(np.asarray(image) / 257).astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise ValueError(f"its pixels ({image.mode}) are 32-bit numbers of unknown range, convert it to 8 or 16 bits")
    return image.convert("RGB")
