"""Networks that normalise the images that they are given."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn


class NormalisedNetwork(nn.Module):
    """Base of networks that take images in [0,1].

    Args:
        mean, std: per channel, on the scale of [0,1].

    Attributes:
        mean, std: buffers [1,3,1,1], not in the state dict.

    Raises:
        ValueError: mean or std is not three finite numbers, or a std is not positive.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.ones(1, 3, 1, 1), persistent=False)
        self._normalisation: dict[str, list[float]] = {}
        self.set_normalisation(mean, std)

    @property
    def normalisation(self) -> dict[str, list[float]]:
        """`mean` and `std` as they were given, for a description."""
        return {name: list(values) for name, values in self._normalisation.items()}

    def set_normalisation(self, mean: Sequence[float] | None = None, std: Sequence[float] | None = None) -> None:
        """Replace mean and std (per channel, on the scale of [0,1]; None: as it is).

        Raises:
            ValueError: not three finite numbers, or a std that is not positive.
        """
        for name, values in (("mean", mean), ("std", std)):
            if values is None:
                continue
            if len(values) != 3 or not all(math.isfinite(value) for value in values):
                raise ValueError(f"normalisation {name} must be 3 numbers (red, green, blue), got {list(values)}")
            if name == "std" and min(values) <= 0:
                raise ValueError(f"normalisation std must be positive, got {list(values)}")
            # Kept beside the float32 buffer so that the description repeats the numbers that were
            # given.
            self._normalisation[name] = [float(value) for value in values]
            self.get_buffer(name).copy_(torch.tensor(values).view(1, 3, 1, 1))

    def normalise(self, x: Tensor) -> Tensor:
        """Images in [0,1] [B,3,H,W] -> what the network takes.

        Raises:
            ValueError: `x` is not a float tensor of three-channel images.
        """
        if x.ndim != 4 or x.shape[1] != 3 or not x.is_floating_point():
            raise ValueError(
                f"a network takes float images in [0,1] of shape [B,3,H,W], not {x.dtype} {list(x.shape)}; "
                "divide uint8 images by 255"
            )
        return (x - self.mean) / self.std
