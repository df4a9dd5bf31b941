"""The adapted images of a view, made as they are needed."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from undegrade.evaluation.fitted.rule import adapter_facts
from undegrade.image_adapt.adapter import Adapter
from undegrade.pictures import Picture
from undegrade.utils.data.pixels import from_signed, to_signed
from undegrade.utils.data.sources.images import center_crop
from undegrade.utils.seeding import torch_generator


@dataclasses.dataclass(frozen=True)
class ViewAdapter:
    """What makes the images of a view.

    Attributes:
        adapter: opened.
        facts: settings that its images would be stored with, as JSON takes them.
        seed: of its noise.
        batch_size: images at a time.
        rounding: of grey levels.
        device: where it works.
        settings: configuration that it was opened with; None where that is not known.
    """

    adapter: Adapter
    facts: Mapping[str, Any]
    seed: int
    batch_size: int
    rounding: str
    device: torch.device
    settings: Any = None

    def adapt(self, given: Sequence[Picture]) -> list[Image.Image]:
        """The adapted images: squares of the adapter's size, or of those that take any size each at
        its own.
        """
        side = self.adapter.image_size
        step = self.batch_size if side is not None else 1
        return [image for start in range(0, len(given), step) for image in self._batch(given[start : start + step], side)]

    def _batch(self, batch: Sequence[Picture], side: int | None) -> Iterator[Image.Image]:
        cut = [one.image if side is None else center_crop(one.image, side) for one in batch]
        pixels = torch.from_numpy(np.stack([np.asarray(image) for image in cut])).movedim(-1, 1)
        generators = [torch_generator(self.seed, "adapt", one.key) for one in batch]
        out = self.adapter.adapt(to_signed(pixels).to(self.device), generators)
        return (Image.fromarray(image) for image in from_signed(out, self.rounding).movedim(1, -1).cpu().numpy())


def open_view_adapter(settings: Any, device: torch.device) -> ViewAdapter:
    """The adapter of a configuration (`image_adapt.config.adapt_schema`).

    Raises:
        FileNotFoundError, ValueError: a model that is missing or does not fit; an option outside
            its range.
    """
    from undegrade.image_adapt.scripts.adapter_flags import open_adapter  # here, since diffusion models take seconds to import

    opened = open_adapter(settings, {}, device)
    own = {"adapter": settings.adapter, **opened.identity(), "precision": settings.precision, "rounding": settings.rounding}
    facts = adapter_facts(json.loads(json.dumps(own)))
    return ViewAdapter(opened, facts, settings.seed, settings.batch_size, settings.rounding, device, settings)
