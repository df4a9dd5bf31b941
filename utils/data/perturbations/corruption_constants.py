"""Constants of the common corruptions (Hendrycks and Dietterich, ICLR 2019, arXiv:1903.12261) in
their released sets.

`CONSTANTS[corruption][set][severity - 1]` holds the arguments of the corruption's function after
(image, generator):

- "cifar": CIFAR-10-C and CIFAR-100-C, 32 px;
- "tiny": Tiny-ImageNet-C and ImageNet-64x64-C, 64 px;
- "imagenet": ImageNet-C, 224 px.

Lengths are in pixels of that size, grey levels on [0, 1]. A set's constants at another image size
make another benchmark: with "imagenet" at 32 px the first severity of seven corruptions is as hard
as the last of "cifar".
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

CONSTANT_SETS: dict[str, int] = {"cifar": 32, "tiny": 64, "imagenet": 224}
"""The constant sets and the image side in pixels that each was made for."""

Severities = tuple[tuple[Any, ...], ...]


def _each(*values: float) -> Severities:
    """Five severities of a corruption with one parameter."""
    return tuple((value,) for value in values)


_ZOOM_SMALL: Severities = ((1.06, 0.01), (1.11, 0.01), (1.16, 0.01), (1.21, 0.01), (1.26, 0.01))

CONSTANTS: dict[str, dict[str, Severities]] = {
    # standard deviation
    "gaussian_noise": {
        "cifar": _each(0.04, 0.06, 0.08, 0.09, 0.10),
        "tiny": _each(0.04, 0.08, 0.12, 0.15, 0.18),
        "imagenet": _each(0.08, 0.12, 0.18, 0.26, 0.38),
    },
    # photons at white
    "shot_noise": {
        "cifar": _each(500, 250, 100, 75, 50),
        "tiny": _each(250, 100, 50, 30, 15),
        "imagenet": _each(60, 25, 12, 5, 3),
    },
    # share of channel values hit
    "impulse_noise": {
        "cifar": _each(0.01, 0.02, 0.03, 0.05, 0.07),
        "tiny": _each(0.01, 0.02, 0.05, 0.08, 0.14),
        "imagenet": _each(0.03, 0.06, 0.09, 0.17, 0.27),
    },
    # disk radius, sigma of its anti-aliasing
    "defocus_blur": {
        "cifar": ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)),
        "tiny": ((0.5, 0.6), (1, 0.1), (1.5, 0.1), (2.5, 0.01), (3, 0.1)),
        "imagenet": ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)),
    },
    # sigma, largest offset, iterations
    "glass_blur": {
        "cifar": ((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)),
        "tiny": ((0.1, 1, 1), (0.5, 1, 1), (0.6, 1, 2), (0.7, 2, 1), (0.9, 2, 2)),
        "imagenet": ((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2)),
    },
    # radius, sigma
    "motion_blur": {
        "cifar": ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)),
        "tiny": ((10, 1), (10, 1.5), (10, 2), (10, 2.5), (12, 3)),
        "imagenet": ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15)),
    },
    # stop and step of the zoom factors `numpy.arange(1, stop, step)`: its rounding decides how many
    # there are and to how many pixels each enlarges
    "zoom_blur": {
        "cifar": _ZOOM_SMALL,
        "tiny": _ZOOM_SMALL,
        "imagenet": ((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03)),
    },
    # noise mean, noise standard deviation, zoom, threshold, motion radius, motion sigma, image
    # weight
    "snow": {
        "cifar": (
            (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
            (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
            (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
            (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
            (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
        ),
        "tiny": (
            (0.1, 0.2, 1, 0.6, 8, 3, 0.8),
            (0.1, 0.2, 1, 0.5, 10, 4, 0.8),
            (0.15, 0.3, 1.75, 0.55, 10, 4, 0.7),
            (0.25, 0.3, 2.25, 0.6, 12, 6, 0.65),
            (0.3, 0.3, 1.25, 0.65, 14, 12, 0.6),
        ),
        "imagenet": (
            (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
            (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
            (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
            (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
            (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
        ),
    },
    # image weight, frost weight, scale of the photographs
    "frost": {
        "cifar": ((1, 0.2, 0.2), (1, 0.3, 0.2), (0.9, 0.4, 0.2), (0.85, 0.4, 0.2), (0.75, 0.45, 0.2)),
        "tiny": ((1, 0.3, 0.3), (0.9, 0.4, 0.3), (0.8, 0.45, 0.3), (0.75, 0.5, 0.3), (0.7, 0.55, 0.3)),
        "imagenet": ((1, 0.4, 1.0), (0.8, 0.6, 1.0), (0.7, 0.7, 1.0), (0.65, 0.7, 1.0), (0.6, 0.75, 1.0)),
    },
    # amount, decay of the height map's roughness from one scale to the next
    "fog": {
        "cifar": ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)),
        "tiny": ((0.4, 3), (0.7, 3), (1, 2.5), (1.5, 2), (2, 1.75)),
        "imagenet": ((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4)),
    },
    # added to the HSV value
    "brightness": {
        "cifar": _each(0.05, 0.1, 0.15, 0.2, 0.3),
        "tiny": _each(0.1, 0.2, 0.3, 0.4, 0.5),
        "imagenet": _each(0.1, 0.2, 0.3, 0.4, 0.5),
    },
    # factor on the distance to the channel mean
    "contrast": {
        "cifar": _each(0.75, 0.5, 0.4, 0.3, 0.15),
        "tiny": _each(0.4, 0.3, 0.2, 0.1, 0.05),
        "imagenet": _each(0.4, 0.3, 0.2, 0.1, 0.05),
    },
    # displacement, its smoothing sigma, shift of the affine's points. The released ImageNet-C has
    # 244, not 224.
    "elastic_transform": {
        "cifar": ((0, 0, 2.56), (1.6, 6.4, 2.24), (2.56, 1.92, 1.92), (3.2, 1.28, 1.6), (3.2, 0.96, 0.96)),
        "tiny": ((0, 0, 5.12), (3.2, 19.2, 3.84), (6.4, 5.12, 3.84), (6.4, 1.92, 1.92), (10.24, 1.92, 1.28)),
        "imagenet": (
            (244 * 2, 244 * 0.7, 244 * 0.1),
            (244 * 2, 244 * 0.08, 244 * 0.2),
            (244 * 0.05, 244 * 0.01, 244 * 0.02),
            (244 * 0.07, 244 * 0.01, 244 * 0.02),
            (244 * 0.12, 244 * 0.01, 244 * 0.02),
        ),
    },
    # factor on the image side
    "pixelate": {
        "cifar": _each(0.95, 0.9, 0.85, 0.75, 0.65),
        "tiny": _each(0.9, 0.8, 0.7, 0.6, 0.5),
        "imagenet": _each(0.6, 0.5, 0.4, 0.3, 0.25),
    },
    # quality
    "jpeg_compression": {
        "cifar": _each(80, 65, 58, 50, 40),
        "tiny": _each(65, 58, 50, 40, 25),
        "imagenet": _each(25, 18, 15, 10, 7),
    },
    # standard deviation, relative to the pixel
    "speckle_noise": {
        "cifar": _each(0.06, 0.1, 0.12, 0.16, 0.2),
        "tiny": _each(0.15, 0.2, 0.25, 0.3, 0.35),
        "imagenet": _each(0.15, 0.2, 0.35, 0.45, 0.6),
    },
    # sigma
    "gaussian_blur": {
        "cifar": _each(0.4, 0.6, 0.7, 0.8, 1),
        "tiny": _each(0.5, 0.75, 1, 1.25, 1.5),
        "imagenet": _each(1, 2, 3, 4, 6),
    },
    # noise mean, noise standard deviation, sigma of its blur, threshold, strength (water) or sigma
    # (mud), is it mud
    "spatter": {
        "cifar": (
            (0.62, 0.1, 0.7, 0.7, 0.5, False),
            (0.65, 0.1, 0.8, 0.7, 0.5, False),
            (0.65, 0.3, 1, 0.69, 0.5, False),
            (0.65, 0.1, 0.7, 0.69, 0.6, True),
            (0.65, 0.1, 0.5, 0.68, 0.6, True),
        ),
        "tiny": (
            (0.62, 0.1, 0.7, 0.7, 0.6, False),
            (0.65, 0.1, 0.8, 0.7, 0.6, False),
            (0.65, 0.3, 1, 0.69, 0.6, False),
            (0.65, 0.1, 0.7, 0.68, 0.6, True),
            (0.65, 0.1, 0.5, 0.67, 0.6, True),
        ),
        "imagenet": (
            (0.65, 0.3, 4, 0.69, 0.6, False),
            (0.65, 0.3, 3, 0.68, 0.6, False),
            (0.65, 0.3, 2, 0.68, 0.5, False),
            (0.65, 0.3, 1, 0.65, 1.5, True),
            (0.67, 0.4, 1, 0.65, 1.5, True),
        ),
    },
    # factor on the HSV saturation, then offset
    "saturate": {
        "cifar": ((0.3, 0), (0.1, 0), (1.5, 0), (2, 0.1), (2.5, 0.2)),
        "tiny": ((0.3, 0), (0.1, 0), (2, 0), (5, 0.1), (30, 0.2)),
        "imagenet": ((0.3, 0), (0.1, 0), (2, 0), (5, 0.1), (20, 0.2)),
    },
}


class Between(NamedTuple):
    """How the constants of a severity that is no whole number follow from those of its neighbours.

    Attributes:
        untouched: the constants of severity 0, None for one that is as at severity 1.
        inverse: interpolate 1 / constant.
    """

    untouched: tuple[float | None, ...]
    inverse: bool = False

    def constants(self, rows: Severities, severity: float) -> tuple[float, ...]:
        """The constants of a severity in (0, 5) between the rows of its neighbours, linearly."""
        low = math.floor(severity)
        above = rows[low]
        below = rows[low - 1] if low else tuple(b if a is None else a for a, b in zip(self.untouched, above, strict=True))
        share = severity - low
        if self.inverse:
            return tuple(1 / ((1 - share) / a + share / b) for a, b in zip(below, above, strict=True))
        return tuple((1 - share) * a + share * b for a, b in zip(below, above, strict=True))


# The rows of severity 0 are those that CCC (Press et al., NeurIPS 2023, arXiv:2306.05401) sets
# below ImageNet-C's constants; below the other sets they stand by analogy.
BETWEEN: dict[str, Between] = {
    "gaussian_noise": Between((0,)),
    "shot_noise": Between((math.inf,), inverse=True),
    "impulse_noise": Between((0,)),
    "defocus_blur": Between((0, 0)),
    "glass_blur": Between((0, 0, 0)),
    "motion_blur": Between((0, 0)),
    "zoom_blur": Between((1, 0.01)),
    "snow": Between((0.1, 0.3, 3, 1, 10, 4, 1)),
    "frost": Between((1, 0, None)),
    "fog": Between((0, 2)),
    "brightness": Between((0,)),
    "contrast": Between((1,)),
    "elastic_transform": Between((0, 999, 0)),
    "pixelate": Between((1,)),
    "jpeg_compression": Between((85,)),
}
