"""Image files into uint8 arrays of one size.

Whatever a file holds becomes 8-bit RGB by a fixed rule or is refused by name:

- turned upright by the EXIF orientation tag, the only one that is looked at; colour profiles are
  not applied;
- transparency is dropped: the colours beneath it are used;
- of an animation the first frame;
- grey is repeated, a palette looked up, CMYK converted by Pillow (without profile: colours shift a
  little);
- 16-bit grey is divided by 257 and rounded; of 16-bit colour Pillow reads the upper 8 bits;
- 32-bit integer and floating-point pixels are refused: their range is not known.

Only decoders of `_FORMATS` look at a file, whatever its name says: others that Pillow has start
programs or are hardly ever used. What can go wrong with a file, in any way, is a BrokenImageError.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import io
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError

from undegrade.utils.paths import escaped

IMAGE_SUFFIXES = (
    ".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".ppm", ".tif", ".tiff", ".jpe", ".jfif", ".mpo", ".apng", ".dib", ".pgm",
    ".pbm", ".pnm", ".jp2", ".j2k", ".avif", ".tga",
)  # fmt: skip
MAX_PIXELS = 2**28 // 3  # 89,478,485: 256 MiB as RGB; Pillow warns of larger ones
INTERPOLATIONS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}

_FORMATS = ("PNG", "JPEG", "MPO", "BMP", "DIB", "GIF", "WEBP", "PPM", "TIFF", "JPEG2000", "AVIF")
_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE, 8: Image.Transpose.ROTATE_90,
}  # fmt: skip


class BrokenImageError(ValueError):
    """An image file that cannot be decoded; the message names the file and the reason."""


class Resize(NamedTuple):
    """To what the shorter side of a photograph is brought before the centre is cut, and how."""

    side: int
    interpolation: str = "bilinear"  # a name of INTERPOLATIONS


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


def center_crop(image: Image.Image, size: int, resize: Resize | None = None) -> Image.Image:
    """Square `size` x `size` centre of an image whose shorter side is first brought to `size`, or
    to that of `resize`.

    To `size`: halved with a box filter while at least twice too large, then bicubic: the rule of
    guided-diffusion's data loader, so that the published diffusion models see what they were
    trained on. With `resize`, with antialiasing: byte for byte torchvision's `Resize` and
    `CenterCrop`, the usual preprocessing of ImageNet classifiers (256, then 224 of it).
    """
    width, height = image.size
    if resize is not None:
        short = min(width, height)
        sides = [int(resize.side * side / short) for side in image.size]  # truncated
        image = image.resize((sides[0], sides[1]), INTERPOLATIONS[resize.interpolation])
        left, top = round((image.width - size) / 2), round((image.height - size) / 2)  # halves to even
        return image.crop((left, top, left + size, top + size))
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    if scale != 1:
        image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return image.crop((left, top, left + size, top + size))


@contextlib.contextmanager
def opened(path: str | Path | FileSlice) -> Iterator[Image.Image]:
    """The image in a file for the time of the block; its pixels are not decoded yet.

    Raises:
        BrokenImageError: for whatever goes wrong, within the block too.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's of odd metadata and sizes: what matters is read or refused here
            source = path.open() if isinstance(path, FileSlice) else path
            with Image.open(source, formats=_formats(str(path))) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise Image.DecompressionBombError  # as Pillow does at twice as many
                yield image
    except BrokenImageError:
        raise
    except Exception as error:
        # decoders of damaged data raise struct.error, TypeError, zlib.error, MemoryError, ...
        raise BrokenImageError(f"{escaped(path)}: {_reason(error)}") from error


def _formats(name: str) -> tuple[str, ...]:
    known = _known_formats()
    return (*known, "TGA") if name.lower().endswith(".tga") else known  # any bytes may pass for one: it has no mark


@functools.cache
def _known_formats() -> tuple[str, ...]:
    Image.preinit()
    for plugin in ("Avif", "Jpeg2K", "Mpo", "Tga", "Tiff", "WebP"):
        with contextlib.suppress(ImportError):  # AVIF came with Pillow 11.3
            importlib.import_module(f"PIL.{plugin}ImagePlugin")
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "none of the image formats that are read"
    if isinstance(error, Image.DecompressionBombError):
        return f"more than the {MAX_PIXELS:,} pixels that are read: make it smaller"
    text = escaped(error)
    return text if text and isinstance(error, (OSError, ValueError)) else f"{type(error).__name__} {text}".rstrip()


def image_size(path: str | Path | FileSlice) -> tuple[int, int]:
    """Width and height of a file as it is shown, from its header.

    Raises:
        BrokenImageError: no image.
    """
    with opened(path) as image:
        return image.size


def read_image(path: str | Path | FileSlice, size: int | None, resize: Resize | None = None, *, smallest: int = 0) -> np.ndarray:
    """uint8 [3, size, size] of a file: RGB by the rules above, then `center_crop` to `size`
    (after `resize`); without size the whole picture, [3, height, width].

    Raises:
        BrokenImageError: not an image, truncated, more than `MAX_PIXELS`, pixels of unknown range,
            or a shorter side below `smallest` pixels.
    """
    with opened(path) as image:
        upright = _as_rgb(_turned(image), image.format)
        if min(upright.size) < smallest:
            raise ValueError(
                f"{upright.width} x {upright.height} px is too small to be enlarged to {size} (--enlarge true does it anyway)"
            )
        return np.asarray(upright if size is None else center_crop(upright, size, resize)).transpose(2, 0, 1)


def _turned(image: Image.Image) -> Image.Image:
    image.load()  # PNG files may have their EXIF behind the pixels
    try:
        turn = _TURNS.get(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # damaged EXIF says nothing; the pixels do not depend on it
        turn = None
    return image if turn is None else image.transpose(turn)


def _as_rgb(image: Image.Image, file_format: str | None) -> Image.Image:
    # mode I: 16 bits of PGM, and of PNG until Pillow 10.2
    if image.mode.startswith("I;16") or (image.mode == "I" and file_format in ("PNG", "PPM")):
        image = Image.fromarray(np.rint(np.asarray(image) / 257).astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise ValueError(f"its pixels ({image.mode}) are 32-bit numbers of unknown range, convert it to 8 or 16 bits")
    return image.convert("RGB")
