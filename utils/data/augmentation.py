"""Augmentation of training images: every draw is of (seed, image, epoch), so that all versions of
an image are changed alike.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import field
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from undegrade.utils.data.pixels import to_unit
from undegrade.utils.data.targets import Target
from undegrade.utils.random_fields import RandomFields
from undegrade.utils.ranges import PositiveShare, Share, Whole
from undegrade.utils.seeding import global_streams, numpy_generator


@dataclasses.dataclass(frozen=True)
class AugmentConfig:
    """Augmentation of training images, the same for the clean and the degraded version of an image,
    in the order of the keys.

    Attributes:
        flip: mirror left-right with probability 1/2 (before the degradation).
        crop_padding: pad by so many black pixels after the degradation and crop a random window of
            the old size.
        resized_crop: smallest share of the area of a random window (aspect ratio 3/4 to 4/3; 0.08
            is usual for ImageNet) that is cut out after the degradation and enlarged to the old
            size; null for none. Images are thus degraded as in evaluation.
        interpolation: of the enlarged window, and of what randaugment turns or shifts: bilinear |
            bicubic.
        randaugment: RandAugment (Cubuk et al. 2020) in timm's words, such as rand-m9-mstd0.5-inc1
            (m: magnitude of 10, mstd: its deviation, n: operations, inc: those that grow with the
            magnitude); what comes in at the border has the data set's mean; null for none.
        cutout: side of a square hole in pixels, filled with the data set's mean, centre uniform
            over the image (DeVries & Taylor 2017); 0 for none.
        erasing: probability that a rectangle is replaced by noise with the data set's mean and
            deviation (Zhong et al. 2020).
        erasing_area: smallest and largest share of the image that it covers.
        cutout_clean: cutout and erasing also for the clean version.
    """

    flip: bool = False
    crop_padding: Whole = 0
    resized_crop: PositiveShare | None = None
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    randaugment: str | None = None
    cutout: Whole = 0
    erasing: Share = 0.0
    erasing_area: list[PositiveShare] = field(default_factory=lambda: [0.02, 1 / 3])
    cutout_clean: bool = False

    def __post_init__(self) -> None:
        if self.resized_crop is not None and self.crop_padding:
            raise ValueError(f"resized_crop {self.resized_crop} and crop_padding {self.crop_padding} both cut: leave one out")
        if len(self.erasing_area) != 2 or self.erasing_area[0] > self.erasing_area[1]:
            raise ValueError(f"erasing_area {self.erasing_area} must be two shares of the image, the smaller one first")
        if self.randaugment is not None:
            _randaugment(self.randaugment, self.interpolation, (0.5, 0.5, 0.5))


class Augmentation:
    """`shape`, then `cut`, of images at rows of one size, each with a stream of its own.

    Args:
        config: what is done.
        rgb_mean, rgb_std: of the data set, range [0, 1].
        seed: of the run.
        own: appended to the names of the random streams, for a degradation that has its own.
    """

    def __init__(
        self, config: AugmentConfig, rgb_mean: Sequence[float], rgb_std: Sequence[float], seed: int, own: tuple[str, ...] = ()
    ) -> None:
        self.config, self.seed, self.own = config, seed, own
        self.mean, self.std = tuple(rgb_mean), tuple(rgb_std)

    def flips(self, streams: Sequence[str]) -> Tensor | None:
        """Which images are mirrored: bool [n]."""
        if not self.config.flip:
            return None
        return torch.from_numpy(self._whole("flip", streams, [0], [1])[:, 0] == 1)

    def shape(self, images: Tensor, streams: Sequence[str], is_cut: bool = False) -> Tensor:
        """Cropped and changed by RandAugment.

        Args:
            images: uint8 [k n, 3, S, S]: k versions of n images, which are changed alike.
            streams: one for each of the n images.
            is_cut: the images are random windows already (`windows_of`).

        Returns:
            [k n, 3, S, S], float in [0, 1] if something is interpolated, else uint8.
        """
        config, copies = self.config, _copies(images, streams)
        windows = self._windows(streams, images.shape[-1])
        if is_cut:
            pass
        elif config.resized_crop is not None:
            images = resized_crop(images, np.tile(windows, (copies, 1)), config.interpolation)
        elif config.crop_padding:
            corners = torch.from_numpy(windows[:, :2] + config.crop_padding)
            images = crop(images, corners.repeat(copies, 1), config.crop_padding)
        if config.randaugment is None:
            return images
        pixels = images if images.dtype == torch.uint8 else (images * 255).round().to(torch.uint8)
        transform = _randaugment(config.randaugment, config.interpolation, self.mean)
        return randaugmented(pixels, transform, self._names("randaugment", streams) * copies)

    def views(self, clean: Tensor, degraded: Tensor, streams: Sequence[str], is_cut: bool = False) -> dict[str, Tensor]:
        """Both versions of images cropped (unless random windows of theirs `is_cut` already),
        changed in colour and shape, and cut alike; `hole` where holes are yet to be cut.
        """
        config = self.config
        is_cut = is_cut and config.resized_crop is not None
        first = self.shape(clean, streams, is_cut)
        second = first if degraded is clean else self.shape(degraded, streams, is_cut)
        if config.erasing:  # slow, and noise has more than 256 values: nothing is left to be done
            return {"clean": self.cut(first, streams) if config.cutout_clean else first, "degraded": self.cut(second, streams)}
        hole = {"hole": self.centres(streams, clean.shape[-1])} if config.cutout else {}
        return {"clean": first, "degraded": second, **hole}

    def windows_of(self, images: Sequence[Tensor], streams: Sequence[str], size: int) -> Tensor:
        """A random window of each of n images uint8 [3, H, W], each of its own size, enlarged or
        shrunk to `size`: float [n, 3, size, size] in [0, 1]. Where `resized_crop` says so.
        """
        assert self.config.resized_crop is not None
        generators = [numpy_generator(*name) for name in self._names("crop", streams)]
        windows = [random_window(rng, image.shape[-2], self.config.resized_crop, image.shape[-1])
                   for rng, image in zip(generators, images, strict=True)]  # fmt: skip
        return resized_crop(images, np.array(windows), self.config.interpolation, size)

    def moved(self, values: Tensor, target: Target, flips: Tensor | None, streams: Sequence[str], size: int) -> Tensor:
        """The values [n, ...] of a target, flipped and cut like the images of `size` x `size`
        pixels that they belong to; `flips` is what `flips` gave.
        """
        if flips is not None:
            values = target.flip(values, flips, size)
        if self.config.resized_crop is None and not self.config.crop_padding:
            return values
        return target.cut(values, torch.from_numpy(self._windows(streams, size)), size)

    def centres(self, streams: Sequence[str], size: int) -> Tensor:
        """Where cutout's holes lie, int64 [n, 2]."""
        return torch.from_numpy(self._whole("cutout", streams, [0, 0], [size - 1] * 2))

    def cut(self, images: Tensor, streams: Sequence[str]) -> Tensor:
        """[k n, 3, S, S], uint8 or float in [0, 1] -> float with a hole, then a rectangle of noise
        in each.
        """
        config, images = self.config, as_unit(images)
        if config.cutout:
            images = fill_holes(images, self.centres(streams, images.shape[-1]), config.cutout, self.mean)
        if config.erasing:
            names = self._names("erasing", streams) * _copies(images, streams)
            noise = erased(images, config.erasing, config.erasing_area, names)
            mean, std = (torch.tensor(values)[:, None, None] for values in (self.mean, self.std))
            images = torch.where(noise.isnan(), images, (mean + std * noise).clamp(0, 1))
        return images

    def _whole(self, what: str, streams: Sequence[str], first: Sequence[int], last: Sequence[int]) -> np.ndarray:
        return RandomFields(self.seed, what, *self.own, keys=streams).integers(first, last)

    def _windows(self, streams: Sequence[str], size: int) -> np.ndarray:
        """What is cut out of each image, int64 [n, 4]: top, left, height, width; beyond the image
        by `crop_padding`.
        """
        if self.config.resized_crop is None:
            padding = self.config.crop_padding
            corners = self._whole("crop", streams, [0, 0], [2 * padding] * 2) if padding else np.zeros((len(streams), 2), np.int64)
            return np.concatenate([corners - padding, np.full_like(corners, size)], axis=1)
        generators = [numpy_generator(*name) for name in self._names("crop", streams)]
        windows = [random_window(rng, size, self.config.resized_crop) for rng in generators]
        return np.array(windows, dtype=np.int64).reshape(-1, 4)

    def _names(self, what: str, streams: Sequence[str]) -> list[tuple[object, ...]]:
        return [(self.seed, what, stream, *self.own) for stream in streams]


def _copies(images: Tensor, streams: Sequence[str] | Tensor) -> int:
    return len(images) // max(1, len(streams))


def as_unit(images: Tensor) -> Tensor:
    """New, float in [0, 1]: of uint8 by `to_unit`, of such floats a copy."""
    return images.clone() if images.is_floating_point() else to_unit(images)


def flipped(images: Tensor, flips: Tensor | None) -> Tensor:
    """Images [n, 3, S, S], mirrored left-right where `flips` (bool [n]) says so."""
    if flips is None:
        return images
    mirrored = images.clone()
    mirrored[flips] = images[flips].flip(-1)
    return mirrored


def crop(images: Tensor, corners: Tensor, padding: int) -> Tensor:
    """The window at `corners` (int64 [n, 2]: top, left) of each of [n, 3, S, S], padded by black,
    of the old size.
    """
    count, channels, _, size = images.shape
    side, along = size + 2 * padding, torch.arange(size)
    padded = F.pad(images, (padding,) * 4).view(count, channels, side * side)
    rows, columns = corners[:, :1] + along, corners[:, 1:] + along
    places = (rows[:, :, None] * side + columns[:, None]).view(count, 1, size * size)
    return padded.gather(2, places.expand(-1, channels, -1)).view(images.shape)


def fill_holes(images: Tensor, centres: Tensor, side: int, colour: Sequence[float]) -> Tensor:
    """`colour` (3 numbers) wherever a square around `centres` (int64 [n, 2]: row, column) covers an
    image.

    Args:
        images: float [k n, 3, S, S], finite: k versions of n images, which get the same holes;
            written into.
        centres, side, colour: of the holes.

    Returns:
        `images`.
    """
    places = torch.arange(images.shape[-1], device=images.device) - (centres[:, :, None] - side // 2)
    inside = (places >= 0) & (places < side)
    hole = (inside[:, 0, None, :, None] & inside[:, 1, None, None, :]).to(images)
    versions = images.view(_copies(images, centres), *hole.shape[:1], *images.shape[1:])
    # a product and a sum, exact with 0 and 1: many times faster than masked writing
    versions.mul_(1 - hole).add_(hole * torch.tensor(colour, device=images.device)[:, None, None])
    return images


def random_window(rng: np.random.Generator, rows: int, smallest: float, columns: int | None = None) -> tuple[int, int, int, int]:
    """(top, left, height, width) within `rows` and `columns` (None: as many): area uniform in
    [smallest, 1] of the image's, log of width / height uniform in log [3/4, 4/3].

    The usual rule of ImageNet training: draw again where it does not fit; after ten times the
    middle, as large as the ratios allow.
    """
    columns = rows if columns is None else columns
    for _ in range(10):
        area, ratio = rows * columns * rng.uniform(smallest, 1), np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3)))
        height, width = round(np.sqrt(area / ratio)), round(np.sqrt(area * ratio))
        if 0 < height <= rows and 0 < width <= columns:
            return int(rng.integers(rows - height + 1)), int(rng.integers(columns - width + 1)), height, width
    height, width = min(rows, round(columns * 4 / 3)), min(columns, round(rows * 4 / 3))
    return (rows - height) // 2, (columns - width) // 2, height, width


def resized_crop(
    images: Tensor | Sequence[Tensor], windows: np.ndarray, interpolation: str = "bilinear", size: int | None = None
) -> Tensor:
    """The window (n x (top, left, height, width)) of each of uint8 [n, 3, S, S], enlarged to S x S,
    or of images of any sizes to `size`; float in [0, 1].
    """
    if size is None:
        assert isinstance(images, Tensor)
        size = images.shape[-1]
    cuts = (to_unit(image[:, t : t + h, left : left + w]) for image, (t, left, h, w) in zip(images, windows, strict=True))
    enlarged = [F.interpolate(cut[None], (size, size), mode=interpolation, antialias=True) for cut in cuts]
    return torch.cat(enlarged).clamp(0, 1) if enlarged else torch.empty(0, 3, size, size)


@functools.lru_cache
def _randaugment(text: str, interpolation: str, mean: tuple[float, ...]) -> Callable[[Image.Image], Image.Image]:
    """timm's RandAugment.

    Raises:
        ValueError: words that timm does not know.
    """
    from timm.data.auto_augment import rand_augment_transform  # here, since it takes seconds

    resample = Image.Resampling.BICUBIC if interpolation == "bicubic" else Image.Resampling.BILINEAR
    hparams: dict[str, Any] = {"img_mean": tuple(round(255 * value) for value in mean), "interpolation": resample}
    try:
        transform = rand_augment_transform(text, hparams)
        for operation in transform.ops:
            if operation.name.startswith("Posterize"):
                operation.aug_fn = _posterize
        return transform
    except (AssertionError, ValueError, KeyError) as error:
        raise ValueError(f"augment.randaugment {text!r}: write it as timm does, e.g. rand-m9-mstd0.5-inc1 ({error})") from error


def _posterize(image: Image.Image, bits: int, **_: object) -> Image.Image:
    """Timm's, with 0 bits left, too: black, as Pillow made it before it refused that."""
    return image.point(lambda value: value & (0xFF << (8 - bits) & 0xFF)) if bits < 8 else image


def randaugmented(images: Tensor, transform: Callable[[Image.Image], Image.Image], streams: Iterable[tuple[object, ...]]) -> Tensor:
    """uint8 [n, 3, S, S], each changed by `transform` with the stream of its name."""
    changed = [images.numpy()[:0]]
    for image, stream in zip(images, streams, strict=True):
        with global_streams(*stream):
            picture = transform(Image.fromarray(image.permute(1, 2, 0).numpy()))
        changed.append(np.asarray(picture).transpose(2, 0, 1)[None])
    return torch.from_numpy(np.concatenate(changed))


def erased(images: Tensor, probability: float, area: Sequence[float], streams: Iterable[tuple[object, ...]]) -> Tensor:
    """Standard normal noise where timm's RandomErasing replaces pixels of [n, 3, S, S], NaN
    elsewhere.
    """
    from timm.data.random_erasing import RandomErasing  # here, since it takes seconds

    erase = RandomErasing(probability, area[0], area[1], mode="pixel", device="cpu")
    noise = torch.full_like(images, float("nan"))
    for patch, stream in zip(noise, streams, strict=True):
        with global_streams(*stream):
            erase(patch)
    return noise
