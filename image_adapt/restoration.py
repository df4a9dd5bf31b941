"""Restoration in one pass: a network that was trained to undo degradations, such as FFDNet, NAFNet
or SwinIR, without any diffusion.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from undegrade.image_adapt.adapter import Adapter, Context, Passes
from undegrade.models.restoration.estimates import noise_level
from undegrade.models.restoration.restorer import Restorer, open_restorer, tiled
from undegrade.utils.checkpoint import file_digest, split_entry
from undegrade.utils.data.pixels import signed_to_unit, unit_to_signed
from undegrade.utils.ranges import Count, NotNegative, Whole
from undegrade.utils.runs import find_checkpoint


@dataclasses.dataclass(frozen=True)
class RestorationOptions:
    """Options of `Restoration`.

    Attributes:
        noise: standard deviation of the noise in grey levels (0 to 255) that networks such as
            FFDNet are told (null: estimated of each image, by its finest wavelets).
        noise_scale: factor on an estimated level.
        tile: side in pixels of the parts in which larger images are restored (null: whole).
        overlap: pixels that neighbouring tiles share.
    """

    noise: NotNegative | None = None
    noise_scale: NotNegative = 1.0
    tile: Count | None = None
    overlap: Whole = 16

    def __post_init__(self) -> None:
        if self.tile is not None and self.overlap >= self.tile:
            raise ValueError(f"overlap {self.overlap}: tiles of {self.tile} px share fewer pixels than they have")


class Restoration(Adapter):
    """One pass of a network.

    Args:
        restorer: frozen, on its device.
        options: of `RestorationOptions`.
        digest: names the restorer in settings; called when it is asked for.

    Raises:
        ValueError: a noise level for a network that is not told one.
    """

    Options = RestorationOptions
    needs_model = True
    passes = Passes(1)

    def __init__(self, restorer: Restorer, options: RestorationOptions, digest: Callable[[], str] | None = None) -> None:
        if not restorer.takes_noise and (options.noise is not None or options.noise_scale != 1):
            raise ValueError(f"noise: {restorer.name} is not told a noise level, leave noise and noise_scale out")
        super().__init__(options)
        self.restorer, self._digest = restorer, digest

    @classmethod
    def open(cls, options: Any, context: Context) -> Adapter:
        """The network in the file, or of the run, that the context names."""
        if context.precision != "float32":
            raise ValueError(f"--precision {context.precision}: restorers calculate in float32, leave it out")
        path = find_checkpoint(context.model or "", context.runs, dataset=context.dataset)
        return cls(open_restorer(path).to(context.device), options, lambda: file_digest(split_entry(path)[0]))

    @classmethod
    def without_effect(cls, options: Any) -> dict[str, str]:
        found = {} if options.tile is not None else {"overlap": "images are restored whole, give --tile, too"}
        return found if options.noise is None else found | {"noise_scale": "the level is given by --noise"}

    def identity(self) -> dict[str, Any]:
        """The options, and the network."""
        return {**super().identity(), "model": self._digest and self._digest()}

    def describe(self) -> str:
        """Which network it is."""
        return f"one pass of {self.restorer.name}"

    def network(self) -> nn.Module:
        """See `Adapter.network`."""
        return _Pass(self)

    @torch.inference_mode()
    def adapt(self, x: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        """See `Adapter.adapt`; nothing is drawn."""
        return self.restored(x)

    def restored(self, x: Tensor) -> Tensor:
        """Images [B, 3, H, W] in [-1, 1], restored."""
        unit, options = signed_to_unit(x).clamp(0, 1), self.options
        noise = None
        if self.restorer.takes_noise:
            given = None if options.noise is None else unit.new_full((len(unit),), options.noise / 255)
            noise = noise_level(unit) * options.noise_scale if given is None else given
        side, overlap = options.tile or max(unit.shape[-2:]), options.overlap
        return unit_to_signed(tiled(lambda part: self.restorer(part, noise), unit, side, overlap))


class _Pass(nn.Module):
    """The adapter as a module."""

    def __init__(self, adapter: Restoration) -> None:
        super().__init__()
        self.restorer, self.adapter = adapter.restorer, adapter

    def forward(self, x: Tensor) -> Tensor:
        return self.adapter.restored(x)
