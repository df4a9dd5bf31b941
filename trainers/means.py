"""Means over the images of an epoch, exact whatever the batch sizes and the number of processes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor


class ImageMeans:
    """Sums of what `Method.forward` gives, over the images of all batches."""

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator, self.images = accelerator, 0
        self.totals: dict[str, Tensor] = {}

    def add(self, out: Mapping[str, Tensor], images: int) -> None:
        """What a batch of `images` images gave: scalars are means over them, others have a value
        for each.

        Raises:
            ValueError: a tensor of another shape.
        """
        self.images += images
        for name, value in out.items():
            if value.shape not in ((), (images,)):
                raise ValueError(
                    f"{name!r} of the method has the shape {list(value.shape)}: give a scalar, the mean over the batch, or a value "
                    f"for each of its {images} images"
                )
            total = value.detach().double().sum() if value.ndim else value.detach().double() * images
            self.totals[name] = self.totals[name] + total if name in self.totals else total

    def state_dict(self) -> dict[str, Any]:
        """The sums of this process, on the CPU."""
        return {"images": self.images, "totals": {name: total.cpu() for name, total in self.totals.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from the sums of `state_dict`."""
        self.images = state["images"]
        self.totals = {name: total.to(self.accelerator.device) for name, total in state["totals"].items()}

    def means(self) -> dict[str, float]:
        """Means over all images of all processes, by name."""
        names = sorted(self.totals)
        images = torch.tensor(self.images, dtype=torch.float64, device=self.accelerator.device)
        *sums, count = self.accelerator.reduce(torch.stack([*(self.totals[n] for n in names), images])).tolist()
        return {name: total / count for name, total in zip(names, sums, strict=True)}
