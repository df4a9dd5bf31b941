"""Targets: what is told of an image beside its label, and how it moves with the image.

An `ImageSource` that has one carries its kind, a `Target`, and reads its values, a row for each
image. In training batches the values are flipped and cut like their images, and lie under
`batch["target"]`; `clean` and `degraded` share them as they share the geometry. Another kind is
another class with the two methods of `Target` (docs/extending/target.md).
"""

from __future__ import annotations

import dataclasses
from typing import Protocol

import torch
from torch import Tensor

IGNORED = 255  # class of pixels of a mask that are neither learnt nor judged


class Target(Protocol):
    """How values [n, ...] of n images of `size` x `size` pixels move; what is given is not
    changed.
    """

    def flip(self, values: Tensor, flips: Tensor, size: int) -> Tensor:
        """Mirrored left-right where `flips` (bool [n]) says so."""
        ...

    def cut(self, values: Tensor, windows: Tensor, size: int) -> Tensor:
        """As after the window of each image, `windows` (int64 [n, 4]: top, left, height, width, may
        reach beyond the image), was cut out and brought to `size` x `size`.
        """
        ...


@dataclasses.dataclass(frozen=True)
class Mask:
    """The class of each pixel: int64 [n, size, size], `IGNORED` where it has none.

    Attributes:
        classes: names; a value is an index into them.
        swap: pairs of classes that change places in a mirrored image, such as left and right eye.
        outside: class of what a window holds beyond the image.
    """

    swap: tuple[tuple[int, int], ...] = ()
    outside: int = 0
    classes: tuple[str, ...] = ()

    def flip(self, values: Tensor, flips: Tensor, size: int) -> Tensor:
        """See `Target`."""
        mirrored = values.flip(-1)
        for a, b in self.swap:
            mirrored = torch.where(mirrored == a, b, torch.where(mirrored == b, a, mirrored))
        return torch.where(flips[:, None, None], mirrored, values)

    def cut(self, values: Tensor, windows: Tensor, size: int) -> Tensor:
        """See `Target`; each pixel has the class of the nearest one."""
        middles = 2 * torch.arange(size) + 1  # of pixels, in halves: whole numbers, nothing is rounded
        rows, columns = (windows[:, i, None] + middles * windows[:, i + 2, None] // (2 * size) for i in (0, 1))
        beyond = [(places < 0) | (places >= size) for places in (rows, columns)]
        images = torch.arange(len(values))[:, None, None]
        taken = values[images, rows.clamp(0, size - 1)[:, :, None], columns.clamp(0, size - 1)[:, None]]
        return taken.masked_fill(beyond[0][:, :, None] | beyond[1][:, None], self.outside)


@dataclasses.dataclass(frozen=True)
class Points:
    """Places in the image: float [n, P, 2] of (x, y) in pixels, the middle of the first pixel at
    (0, 0). Points that a window leaves out keep their places beyond it; NaN, a point that the image
    does not show, stays NaN.

    Attributes:
        swap: pairs of points that change places in a mirrored image.
        names: of the points.
        unit: two points whose distance is the unit of errors, such as the outer corners of the eyes
            (None: the diagonal of the image is).
    """

    swap: tuple[tuple[int, int], ...] = ()
    names: tuple[str, ...] = ()
    unit: tuple[int, int] | None = None

    def flip(self, values: Tensor, flips: Tensor, size: int) -> Tensor:
        """See `Target`."""
        order = list(range(values.shape[1]))
        for a, b in self.swap:
            order[a], order[b] = order[b], order[a]
        x, y = values[:, order].unbind(-1)
        return torch.where(flips[:, None, None], torch.stack([size - 1 - x, y], -1), values)

    def cut(self, values: Tensor, windows: Tensor, size: int) -> Tensor:
        """See `Target`."""
        corner, sides = windows[:, None, [1, 0]], windows[:, None, [3, 2]]
        return (values + 0.5 - corner) * (size / sides) - 0.5
