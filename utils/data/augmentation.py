"""Augmentation of training images: every draw is of (seed, image, epoch), so that all versions of an image are changed alike."""

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

from utils.data.pixels import to_unit
from utils.seeding import global_streams, numpy_generator


@dataclasses.dataclass(frozen=True)
class AugmentConfig:
    """Augmentation of training images, the same for the clean and the degraded version of an image, in the order of the keys.

    Attributes:
        flip: mirror left-right with probability 1/2 (before the degradation).
        crop_padding: pad by so many black pixels after the degradation and crop a random window of the old size.
        resized_crop: smallest share of the area of a random window (aspect ratio 3/4 to 4/3; 0.08 is usual for ImageNet) that is
            cut out after the degradation and enlarged to the old size; null for none. Images are thus degraded as in evaluation.
        interpolation: of the enlarged window, and of what randaugment turns or shifts: bilinear | bicubic.
        randaugment: RandAugment (Cubuk et al. 2020) in timm's words, such as rand-m9-mstd0.5-inc1 (m: magnitude of 10, mstd: its
            deviation, n: operations, inc: those that grow with the magnitude); what comes in at the border has the data set's mean;
            null for none.
        cutout: side of a square hole in pixels, filled with the data set's mean, centre uniform over the image (DeVries & Taylor
            2017); 0 for none.
        erasing: probability that a rectangle is replaced by noise with the data set's mean and deviation (Zhong et al. 2020).
        erasing_area: smallest and largest share of the image that it covers.
        cutout_clean: cutout and erasing also for the clean version.
    """

    flip: bool = False
    crop_padding: int = 0
    resized_crop: float | None = None
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    randaugment: str | None = None
    cutout: int = 0
    erasing: float = 0.0
    erasing_area: list[float] = field(default_factory=lambda: [0.02, 1 / 3])
    cutout_clean: bool = False

    def __post_init__(self) -> None:
        if self.resized_crop is not None and (self.crop_padding or not 0 < self.resized_crop <= 1):
            raise ValueError(
                f"augment.resized_crop {self.resized_crop} must be a share above 0 and at most 1, with crop_padding 0 "
                f"(it is {self.crop_padding})"
            )
        if not 0 <= self.erasing <= 1:
            raise ValueError(f"augment.erasing {self.erasing:g} must be a probability between 0 and 1")
        area = self.erasing_area
        if len(area) != 2 or not 0 < area[0] <= area[1] <= 1:
            raise ValueError(f"augment.erasing_area {area} must be two shares of the image, the smaller one first")
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
        self._places: dict[str, tuple[tuple[int, ...], np.ndarray]] = {}  # drawn once for all versions of an image

    def shape(self, images: Tensor, streams: Sequence[str]) -> Tensor:
        """Cropped and changed by RandAugment: uint8 [n, 3, S, S] -> float [n, 3, S, S] in [0, 1]."""
        config, size = self.config, images.shape[-1]
        windows = np.array([self._place(stream, size)[0] for stream in streams], dtype=np.int64).reshape(-1, 4)
        if config.resized_crop is not None:
            cropped = resized_crop(images, windows, config.interpolation)
        elif config.crop_padding:
            cropped = to_unit(crop(images, windows, config.crop_padding))
        else:
            cropped = to_unit(images)
        if config.randaugment is None:
            return cropped
        pixels = (cropped * 255).round().to(torch.uint8)
        transform = _randaugment(config.randaugment, config.interpolation, self.mean)
        return to_unit(randaugmented(pixels, transform, self._names("randaugment", streams)))

    def cut(self, images: Tensor, streams: Sequence[str]) -> Tensor:
        """Float [n, 3, S, S] in [0, 1] -> the same with a hole or a rectangle of noise in each."""
        config, size = self.config, images.shape[-1]
        mean, std = (torch.tensor(values)[:, None, None] for values in (self.mean, self.std))
        if config.cutout:
            centres = np.array([self._place(stream, size)[1] for stream in streams], dtype=np.int64).reshape(-1, 2)
            images = torch.where(holes(centres, config.cutout, size), mean, images)
        if config.erasing:
            noise = erased(images, config.erasing, config.erasing_area, self._names("erasing", streams))
            images = torch.where(noise.isnan(), images, (mean + std * noise).clamp(0, 1))
        return images

    def _place(self, stream: str, size: int) -> tuple[tuple[int, ...], np.ndarray]:
        """Window (top, left, height, width) and centre of the hole of an image."""
        if stream in self._places:
            return self._places[stream]
        rng = numpy_generator(self.seed, "crop", stream, *self.own)
        top, left = rng.integers(0, 2 * self.config.crop_padding + 1, 2)
        centre = rng.integers(0, size, 2)
        share = self.config.resized_crop
        window = (top, left, size, size) if share is None else random_window(rng, size, share)
        self._places[stream] = window, centre
        return window, centre

    def _names(self, what: str, streams: Sequence[str]) -> list[tuple[object, ...]]:
        return [(self.seed, what, stream, *self.own) for stream in streams]


def flipped(images: Tensor, flips: Tensor | None) -> Tensor:
    """Images [n, 3, S, S], mirrored left-right where `flips` (bool [n]) says so."""
    return images if flips is None else torch.where(flips[:, None, None, None], images.flip(-1), images)


def crop(images: Tensor, windows: np.ndarray, padding: int) -> Tensor:
    """The window (n x (top, left, ...)) of each of [n, 3, S, S], padded by black, of the old size."""
    size = images.shape[-1]
    padded = np.pad(images.numpy(), ((0, 0), (0, 0), (padding, padding), (padding, padding)))
    views = np.lib.stride_tricks.sliding_window_view(padded, (size, size), axis=(2, 3))
    return torch.from_numpy(views[np.arange(len(images)), :, windows[:, 0], windows[:, 1]])


def random_window(rng: np.random.Generator, size: int, smallest: float) -> tuple[int, int, int, int]:
    """(top, left, height, width): area uniform in [smallest, 1] of the image's, log of width / height uniform in log [3/4, 4/3].

    The usual rule of ImageNet training: draw again where it does not fit, the whole image after ten times.
    """
    for _ in range(10):
        area, ratio = size**2 * rng.uniform(smallest, 1), np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3)))
        height, width = round(np.sqrt(area / ratio)), round(np.sqrt(area * ratio))
        if 0 < height <= size and 0 < width <= size:
            return int(rng.integers(size - height + 1)), int(rng.integers(size - width + 1)), height, width
    return 0, 0, size, size


def resized_crop(images: Tensor, windows: np.ndarray, interpolation: str = "bilinear") -> Tensor:
    """The window (n x (top, left, height, width)) of each of uint8 [n, 3, S, S], enlarged to S x S; float in [0, 1]."""
    size = images.shape[-1]
    cuts = (to_unit(image[:, t : t + h, left : left + w]) for image, (t, left, h, w) in zip(images, windows, strict=True))
    enlarged = [F.interpolate(cut[None], (size, size), mode=interpolation, antialias=True) for cut in cuts]
    return torch.cat(enlarged).clamp(0, 1) if enlarged else to_unit(images)


def holes(centres: np.ndarray, side: int, size: int) -> Tensor:
    """Where a square around `centres` (n x (row, column)) covers an image: bool [n, 1, size, size]."""
    first = centres[:, :, None] - side // 2
    inside = torch.from_numpy((np.arange(size) >= first) & (np.arange(size) < first + side))
    return (inside[:, 0, :, None] & inside[:, 1, None, :])[:, None]


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
        return rand_augment_transform(text, hparams)
    except (AssertionError, ValueError, KeyError) as error:
        raise ValueError(f"augment.randaugment {text!r}: write it as timm does, e.g. rand-m9-mstd0.5-inc1 ({error})") from error


def randaugmented(images: Tensor, transform: Callable[[Image.Image], Image.Image], streams: Iterable[tuple[object, ...]]) -> Tensor:
    """uint8 [n, 3, S, S], each changed by `transform` with the stream of its name."""
    changed = [images.numpy()[:0]]
    for image, stream in zip(images, streams, strict=True):
        with global_streams(*stream):
            picture = transform(Image.fromarray(image.permute(1, 2, 0).numpy()))
        changed.append(np.asarray(picture).transpose(2, 0, 1)[None])
    return torch.from_numpy(np.concatenate(changed))


def erased(images: Tensor, probability: float, area: Sequence[float], streams: Iterable[tuple[object, ...]]) -> Tensor:
    """Standard normal noise where timm's RandomErasing replaces pixels of [n, 3, S, S], NaN elsewhere."""
    from timm.data.random_erasing import RandomErasing  # here, since it takes seconds

    erase = RandomErasing(probability, area[0], area[1], mode="pixel", device="cpu")
    noise = torch.full_like(images, float("nan"))
    for patch, stream in zip(noise, streams, strict=True):
        with global_streams(*stream):
            erase(patch)
    return noise
