"""What the public functions take as images, as Pillow images with a name each."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from undegrade.utils.data.sources.image_files import find_images, list_images
from undegrade.utils.data.sources.images import BrokenImageError, read_image

Images: TypeAlias = "str | Path | Image.Image | np.ndarray | Tensor | Iterable[Any]"
"""An image, several, or an iterable of these:

- a path of a file or of a folder, of which all images below it are meant, in sorted order;
- a Pillow image of any mode;
- a tensor [3,H,W] or [B,3,H,W], uint8 in 0..255 or floating point in [0,1];
- a numpy array [H,W,3] or [B,H,W,3], as Pillow and OpenCV's RGB have it, of the same ranges.
"""

_ACCEPTED = (
    "give a path, a folder, a Pillow image, a tensor [3,H,W] or [B,3,H,W], an array [H,W,3] or [B,H,W,3] (uint8, or floating "
    "point in [0,1]), or an iterable of these"
)

_CHANNELS_FIRST = {3: (2, 0, 1), 4: (0, 3, 1, 2)}  # of an array's axes, by their number


class Picture(NamedTuple):
    """An image.

    Attributes:
        name: its file as given (below a folder: relative to it), else its place, from 0 on.
        key: of its random stream: the name of a file without suffix, else a digest of the pixels.
        image: mode RGB.
    """

    name: str
    key: str
    image: Image.Image


def pictures(given: Images, broken: list[str]) -> Iterator[Picture]:
    """The images, one by one as they are asked for.

    Args:
        given: see `Images`.
        broken: files that are no images are added to it, with the reason, and left out.

    Raises:
        FileNotFoundError: a path that does not exist.
        ValueError: a folder without images, or what is no image (wrong type, shape or range).
    """
    count = itertools.count()
    return _each(given, broken, count)


def _each(given: Any, broken: list[str], count: Iterator[int]) -> Iterator[Picture]:
    if isinstance(given, (str, Path)):
        yield from _files(Path(given), broken)
    elif isinstance(given, Image.Image):
        image = given if given.mode == "RGB" else given.convert("RGB")
        yield Picture(str(next(count)), pixel_key(np.asarray(image).transpose(2, 0, 1)), image)
    elif isinstance(given, (Tensor, np.ndarray)):
        for pixels in uint8_images(given).numpy():
            yield Picture(str(next(count)), pixel_key(pixels), Image.fromarray(pixels.transpose(1, 2, 0)))
    elif isinstance(given, Iterable):
        for one in given:
            yield from _each(one, broken, count)
    else:
        raise ValueError(f"an image of type {type(given).__name__}: {_ACCEPTED}")


def image_files(path: Path, quietly: bool = False) -> list[Path]:
    """The files that a path means: those of the images below a folder in sorted order, or the one
    itself.

    Args:
        path: of a folder or a file.
        quietly: do not say what else is in the folder.

    Raises:
        FileNotFoundError: it does not exist.
        ValueError: a folder without images.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist: give a folder of images, or an image")
    files = [path] if path.is_file() else find_images(path)[0] if quietly else list_images(path)
    if not files:
        raise ValueError(f"no images under {path}: give a folder of images, or an image")
    return files


def _files(path: Path, broken: list[str]) -> Iterator[Picture]:
    for file in image_files(path):
        try:
            image = Image.fromarray(np.ascontiguousarray(read_image(file, None).transpose(1, 2, 0)))
        except BrokenImageError as error:
            broken.append(str(error))
            continue
        name = file.relative_to(path) if path.is_dir() else file
        key = name.with_suffix("") if path.is_dir() else Path(file.stem)
        yield Picture(name.as_posix(), key.as_posix(), image)


def uint8_images(given: Tensor | np.ndarray) -> Tensor:
    """uint8 [B,3,H,W] on the CPU, of a tensor [3,H,W] or [B,3,H,W] or an array [H,W,3] or
    [B,H,W,3]; floating point in [0,1] is rounded to the nearest of 256 levels.

    Raises:
        ValueError: another shape, dtype or range.
    """
    channels = -1 if isinstance(given, np.ndarray) else -3
    if given.ndim not in (3, 4) or given.shape[channels] != 3 or 0 in given.shape:
        raise ValueError(f"images of shape {list(given.shape)}: {_ACCEPTED}")
    if isinstance(given, np.ndarray):
        pixels = torch.from_numpy(given.transpose(_CHANNELS_FIRST[given.ndim]).copy())
    else:
        pixels = given.detach().cpu()
    if pixels.is_floating_point():
        low, high = pixels.aminmax()
        if not (low >= 0 and high <= 1):
            raise ValueError(f"floating-point images from {low:g} to {high:g}: scale them to [0,1], or give uint8 in 0..255")
        pixels = (pixels * 255).round().to(torch.uint8)
    if pixels.dtype != torch.uint8:
        raise ValueError(f"images of dtype {given.dtype}: give uint8 in 0..255, or floating point in [0,1]")
    return (pixels if pixels.ndim == 4 else pixels[None]).contiguous()


def pixel_key(pixels: np.ndarray) -> str:
    """A name of the pixels, uint8 [3,H,W]: the same image has the same random numbers."""
    return hashlib.blake2b(np.ascontiguousarray(pixels).data, digest_size=8).hexdigest()
