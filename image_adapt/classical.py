"""Classical image processing as adapters, without weights: OpenCV's filters against noise, and what
answers fog, contrast and brightness, where diffusion does nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np
import torch
from annotated_types import Interval
from torch import Tensor

from undegrade.image_adapt.adapter import Adapter
from undegrade.models.restoration.estimates import noise_level
from undegrade.utils.data.pixels import from_signed, to_signed, to_unit
from undegrade.utils.ranges import Count, Positive


class Classical(Adapter):
    """A function of one image, uint8 [H,W,3] in RGB."""

    def process(self, image: np.ndarray) -> np.ndarray:
        """The processed image, uint8 [H,W,3]."""
        raise NotImplementedError

    def adapt(self, x: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        """See `Adapter.adapt`; nothing is drawn."""
        images = from_signed(x).permute(0, 2, 3, 1).cpu().numpy()
        done = np.stack([self.process(np.ascontiguousarray(image)) for image in images])
        return to_signed(torch.from_numpy(done).permute(0, 3, 1, 2)).to(x)


@dataclasses.dataclass(frozen=True)
class NonLocalMeansOptions:
    """Options of `NonLocalMeans`.

    Attributes:
        strength: h in grey levels; larger takes more noise and more detail away (null: 0.8 times
            the noise that is estimated of the image).
        patch: side in pixels of what is compared, an odd number.
        window: side in pixels of where it is looked for, an odd number.
    """

    strength: Positive | None = None
    patch: Count = 7
    window: Count = 21

    def __post_init__(self) -> None:
        _check_odd(patch=self.patch, window=self.window)


class NonLocalMeans(Classical):
    """Each pixel is the mean of those with like surroundings (Buades et al. 2005)."""

    Options = NonLocalMeansOptions

    def process(self, image: np.ndarray) -> np.ndarray:
        cv2, options = _cv2(), self.options
        strength = options.strength or 0.8 * 255 * noise_level(to_unit(torch.from_numpy(image).permute(2, 0, 1)[None])).item()
        return cv2.fastNlMeansDenoisingColored(image, None, strength, strength, options.patch, options.window)  # type: ignore[no-any-return]


@dataclasses.dataclass(frozen=True)
class BilateralOptions:
    """Options of `Bilateral`.

    Attributes:
        colour: difference in grey levels up to which pixels are mixed.
        space: distance in pixels up to which they are.
    """

    colour: Positive = 50.0
    space: Positive = 3.0


class Bilateral(Classical):
    """A blur that stops at edges (Tomasi and Manduchi 1998)."""

    Options = BilateralOptions

    def process(self, image: np.ndarray) -> np.ndarray:
        return _cv2().bilateralFilter(image, 0, self.options.colour, self.options.space)  # type: ignore[no-any-return]


@dataclasses.dataclass(frozen=True)
class MedianOptions:
    """Options of `Median`.

    Attributes:
        kernel: side of the window in pixels, an odd number.
    """

    kernel: Count = 3

    def __post_init__(self) -> None:
        _check_odd(kernel=self.kernel)


class Median(Classical):
    """Each value is the median of its window, colour by colour: against impulse noise."""

    Options = MedianOptions

    def process(self, image: np.ndarray) -> np.ndarray:
        return _cv2().medianBlur(image, self.options.kernel)  # type: ignore[no-any-return]


@dataclasses.dataclass(frozen=True)
class DeblockingOptions:
    """Options of `Deblocking`.

    Attributes:
        block: side of the blocks in pixels: 8 of JPEG.
        threshold: steps in grey levels between blocks up to this are smoothed.
    """

    block: Annotated[int, Interval(ge=4)] = 8
    threshold: Positive = 20.0


class Deblocking(Classical):
    """The two pixels on either side of a block's border move towards each other where the step is
    small, as by the filter of H.263 (annex J): against JPEG.
    """

    Options = DeblockingOptions

    def process(self, image: np.ndarray) -> np.ndarray:
        out = image.astype(np.float32)
        for axis in (0, 1):
            view = np.moveaxis(out, axis, 0)
            for border in range(self.options.block, len(view) - 1, self.options.block):
                a, b, c, d = (view[border + offset].copy() for offset in (-2, -1, 0, 1))
                step = (a - 4 * b + 4 * c - d) / 8
                step = np.where(np.abs(c - b) <= self.options.threshold, step, 0)
                view[border - 1], view[border] = b + step, c - step
        return out.round().clip(0, 255).astype(np.uint8)


@dataclasses.dataclass(frozen=True)
class ClaheOptions:
    """Options of `Clahe`.

    Attributes:
        clip: limit of the contrast.
        tiles: of the image along each side.
    """

    clip: Positive = 2.0
    tiles: Count = 2


class Clahe(Classical):
    """Equalised histograms of the lightness, tile by tile, with limited contrast (Zuiderveld
    1994): against fog and low contrast.
    """

    Options = ClaheOptions

    def process(self, image: np.ndarray) -> np.ndarray:
        cv2 = _cv2()
        return _lightness(image, cv2.createCLAHE(self.options.clip, (self.options.tiles, self.options.tiles)).apply)


class Equalize(Classical):
    """The equalised histogram of the lightness."""

    def process(self, image: np.ndarray) -> np.ndarray:
        return _lightness(image, _cv2().equalizeHist)


@dataclasses.dataclass(frozen=True)
class StretchOptions:
    """Options of `Stretch`.

    Attributes:
        cut: share in percent of the darkest and of the brightest values that become black and
            white.
    """

    cut: Positive = 1.0


class Stretch(Classical):
    """The values' range is stretched to all of it, alike for all colours: against low contrast and
    wrong brightness.
    """

    Options = StretchOptions

    def process(self, image: np.ndarray) -> np.ndarray:
        low, high = np.percentile(image, [self.options.cut, 100 - self.options.cut])
        if high <= low:
            return image
        return ((image - low) * (255 / (high - low))).round().clip(0, 255).astype(np.uint8)  # type: ignore[no-any-return]


class GreyWorld(Classical):
    """Each colour is scaled so that all have one mean (Buchsbaum 1980): against a cast of
    colour.
    """

    def process(self, image: np.ndarray) -> np.ndarray:
        means = image.reshape(-1, 3).mean(0)
        return (image * (means.mean() / means.clip(1e-3))).round().clip(0, 255).astype(np.uint8)  # type: ignore[no-any-return]


CLASSICAL: dict[str, type[Classical]] = {
    "non_local_means": NonLocalMeans, "bilateral": Bilateral, "median_filter": Median, "deblocking": Deblocking, "clahe": Clahe,
    "equalize": Equalize, "stretch": Stretch, "grey_world": GreyWorld,
}  # fmt: skip


def _cv2() -> Any:
    from undegrade.utils.data.perturbations.opencv import cv2  # noqa: PLC0415  importing it takes time

    return cv2


def _check_odd(**sides: int) -> None:
    for name, side in sides.items():
        if side % 2 == 0:
            raise ValueError(f"{name} {side} is no odd number, such as 3")


def _lightness(image: np.ndarray, change: Any) -> np.ndarray:
    """The image with its lightness (L of CIE Lab) changed."""
    cv2 = _cv2()
    lab = cv2.cvtColor(image, cv2.COLOR_RGB2LAB)
    lab[..., 0] = change(np.ascontiguousarray(lab[..., 0]))
    return cv2.cvtColor(lab, cv2.COLOR_LAB2RGB)  # type: ignore[no-any-return]
