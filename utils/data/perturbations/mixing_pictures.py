"""The pictures that PixMix mixes into images: fractals and what the first layer of a network looks
for.

They are those of a folder, or are made here, so that nothing need be downloaded: 300 fractals and
300 textures of first-layer filters. Picture i depends on i and its size alone, is made when it is
first asked for (a fractal takes 2 ms at 32 px and 18 ms at 224 px) and kept in memory.
"""

from __future__ import annotations

import functools
import hashlib
import math
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image as PILImage
from PIL import ImageOps
from torch import Tensor

from undegrade.utils.data.sources.image_files import list_images
from undegrade.utils.data.sources.images import read_image
from undegrade.utils.seeding import numpy_generator

Array = NDArray[np.float64]
Generator = np.random.Generator

MADE = 300
KINDS = ("fractals", "features")
_SMOOTH_TO = 128  # pictures below this side are made at twice of it and halved
_ORBIT = 40  # iterations of a Julia set
_JUMPS = (8, 24)  # of a point of the chaos game: those that are not drawn, those that are


def count_pictures(kind: str, folder: str | None) -> int:
    """How many pictures a set has.

    Args:
        kind: one of `KINDS`.
        folder: of pictures, any depth; None for those that are made here.

    Raises:
        FileNotFoundError: no such folder, or no picture in it.
    """
    return MADE if folder is None else len(_listed(kind, folder))


def describe_pictures(kind: str, folder: str) -> str:
    """Number of the pictures in a folder, and a digest of their names and sizes."""
    listed = _listed(kind, folder)
    entries = [f"{path.relative_to(folder)} {path.stat().st_size}" for path in listed]
    return f"{len(listed)} pictures {hashlib.sha256(chr(10).join(entries).encode()).hexdigest()[:16]}"


@functools.lru_cache(maxsize=1024)  # 154 MB at 224 px
def mixing_picture(kind: str, folder: str | None, index: int, height: int, width: int) -> Tensor:
    """uint8 [3, height, width]: picture `index` of a set, the middle of it where its sides have
    another ratio.

    Raises:
        BrokenImageError: a file that is no image.
    """
    if folder is not None:
        whole = PILImage.fromarray(read_image(_listed(kind, folder)[index], None).transpose(1, 2, 0))
        fitted = ImageOps.fit(whole, (width, height), PILImage.Resampling.BILINEAR)
        return torch.from_numpy(np.asarray(fitted).transpose(2, 0, 1).copy())
    side = max(height, width)
    finer = 2 if side < _SMOOTH_TO else 1
    make = filter_texture if kind == "features" else (julia_set, chaos_game, flame)[index % 3]
    picture = make(numpy_generator("mixing picture", kind, index), finer * side)
    picture = picture.reshape(3, side, finer, side, finer).mean(axis=(2, 4))
    top, left = (side - height) // 2, (side - width) // 2
    return torch.from_numpy(np.rint(255 * picture[:, top : top + height, left : left + width]).astype(np.uint8))


@functools.lru_cache(maxsize=8)
def _listed(kind: str, folder: str) -> list[Path]:
    found = list_images(Path(folder))
    if not found:
        raise FileNotFoundError(
            f"perturbations.pixmix.{kind} {folder} is no folder with pictures: name one, or leave it out for pictures made here"
        )
    return found


def _coloured(rng: Generator, tone: Array) -> Array:
    """[3, H, W] in 0..1 from tones [H, W] in 0..1: five random colours, blended into each other."""
    colours = rng.random((3, 5))
    return np.stack([np.interp(tone, np.linspace(0, 1, 5), channel) for channel in colours])


def julia_set(rng: Generator, side: int) -> Array:
    """[3, side, side]: how soon z^2 + c leaves, and inside how near it comes to 0, for a c near the
    border of the Mandelbrot set.
    """
    angle, outwards = rng.uniform(0, 2 * math.pi), rng.uniform(1, 1.1)
    c_real = outwards * (math.cos(angle) / 2 - math.cos(2 * angle) / 4)
    c_imaginary = outwards * (math.sin(angle) / 2 - math.sin(2 * angle) / 4)
    reach, middle = rng.uniform(0.3, 1.4), rng.uniform(-0.4, 0.4, 2)
    axis = np.linspace(-reach, reach, side, dtype=np.float32)
    x, y = (plane.copy() for plane in np.broadcast_arrays(axis + np.float32(middle[0]), (axis + np.float32(middle[1]))[:, None]))
    steps, nearest = np.zeros_like(x), np.full_like(x, 4)
    for _ in range(_ORBIT):
        x, y = np.clip(x * x - y * y + np.float32(c_real), -1e3, 1e3), np.clip(2 * x * y + np.float32(c_imaginary), -1e3, 1e3)
        size = x * x + y * y
        steps += size < 16
        np.minimum(nearest, size, out=nearest)
    inside = np.minimum(np.sqrt(nearest), 1)
    return _coloured(rng, np.where(steps < _ORBIT, np.sqrt(steps / _ORBIT), inside))


def chaos_game(rng: Generator, side: int, bend: bool = False) -> Array:
    """[3, side, side]: where points lie that jump by one of 3 to 6 contracting affine maps, drawn
    at random at each jump; brightness is the logarithm of their number.
    """
    maps, points = int(rng.integers(3, 7)), max(512, side * side // 6)
    angles, scales = rng.uniform(0, 2 * math.pi, (2, maps)), rng.uniform(0.45, 0.9, (2, maps))
    a, d = scales[0] * np.cos(angles[0]), scales[0] * np.sin(angles[0])
    b, e = -scales[1] * np.sin(angles[1]), scales[1] * np.cos(angles[1])
    c, f = rng.uniform(-1, 1, (2, maps))
    tones = rng.random(maps)
    x, y, tone = rng.uniform(-1, 1, (3, points))
    drawn = []
    for jump in range(sum(_JUMPS)):
        of = rng.integers(maps, size=points)
        x, y = a[of] * x + b[of] * y + c[of], d[of] * x + e[of] * y + f[of]
        if bend:  # the flame's "bubble": far points come near
            shrink = 4 / (x * x + y * y + 4)
            x, y = x * shrink, y * shrink
        tone = (tone + tones[of]) / 2
        if jump >= _JUMPS[0]:
            drawn.append((x, y, tone))
    xs, ys, drawn_tones = (np.concatenate(column) for column in zip(*drawn, strict=True))
    places = []
    for values in (ys, xs):
        low, high = np.percentile(values[::16], (1, 99))
        places.append(np.clip((values - low) / max(high - low, 1e-9) * side, 0, side - 1).astype(np.int64))
    pixel = places[0] * side + places[1]
    count = np.bincount(pixel, minlength=side * side)
    mean = np.bincount(pixel, drawn_tones, minlength=side * side) / np.maximum(count, 1)
    light = (np.log1p(count) / math.log1p(count.max())).reshape(side, side) ** 0.7
    background = 0.3 * rng.random((3, 1, 1))
    return light * _coloured(rng, np.clip(mean, 0, 1).reshape(side, side)) + (1 - light) * background


def flame(rng: Generator, side: int) -> Array:
    """[3, side, side]: a chaos game whose maps are bent, as those of fractal flames."""
    return chaos_game(rng, side, bend=True)


def filter_texture(rng: Generator, side: int) -> Array:
    """[3, side, side]: what filters like those of a trained first layer answer to most.

    Such filters are Gabor functions: they have one frequency, direction and colour. The pictures
    are noise that one to three of them let through, 3 to 40 periods a picture, or one period to
    three for a blob of colour.
    """
    down, across = np.fft.fftfreq(side, 1 / side)[:, None], np.fft.rfftfreq(side, 1 / side)
    picture = np.zeros((3, side, side))
    for _ in range(int(rng.integers(1, 4))):
        blob, angle = rng.random() < 0.25, rng.uniform(0, math.pi)
        periods = min(rng.uniform(1, 3) if blob else math.exp(rng.uniform(math.log(3), math.log(40))), side / 3)
        y, x = periods * math.sin(angle), periods * math.cos(angle)
        passed = sum(np.exp(-((down - s * y) ** 2 + (across - s * x) ** 2) / (2 * (0.2 * periods + 0.5) ** 2)) for s in (1, -1))
        wave = np.fft.irfft2(np.fft.rfft2(rng.standard_normal((side, side))) * passed, s=(side, side))
        colour = rng.standard_normal(3)
        picture += (colour / np.linalg.norm(colour))[:, None, None] * wave / max(wave.std(), 1e-12)
    return np.clip(0.5 + 0.25 * picture, 0, 1)
