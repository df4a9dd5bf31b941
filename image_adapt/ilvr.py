"""Iterative latent variable refinement (Choi et al. 2021): low frequencies are replaced, not
pulled; no gradient.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from undegrade.image_adapt.adapter import option
from undegrade.image_adapt.reverse import START_STEP, ChainOptions, ReverseChain
from undegrade.models.diffusion.denoiser import Denoiser
from undegrade.models.diffusion.sampling import draw_noise
from undegrade.utils.ranges import Count, Whole


@dataclasses.dataclass(frozen=True)
class ILVROptions(ChainOptions):
    """Options of `ILVR`, by default those of DDA's first version (2022: N = 50 on a chain of 100).

    Attributes:
        range_t: reverse steps from levels i <= range_t of the chain are left free, as many as
            range_t + 1.
        reference_mismatch: noise the input, like the published code, to level i although the step
            has reached level i - 1.
    """

    downscale_factor: Count = option(8, "D")
    range_t: Whole = 20
    reference_mismatch: bool = False


class ILVR(ReverseChain):
    """Keeps an image's low frequencies by replacing those of each step (Choi et al. 2021, algorithm
    1).

    After the step from level i to i - 1 the low frequencies phi_D of x are those of the image
    noised afresh to that level: x + phi_D(noised - x). A step costs one pass forward through the
    network, half or less of what `DDA` takes.

    Args:
        denoiser: see `ReverseChain`.
        options: `precision` and `digest` of `ReverseChain`, and those of `ILVROptions`.

    Raises:
        ValueError: any option outside its range; names the value and the range.
    """

    Options = ILVROptions

    def __init__(self, denoiser: Denoiser, **options: Any) -> None:
        super().__init__(denoiser, **options)
        range_t = self.options.range_t
        if range_t >= self.start_step:
            raise ValueError(
                f"range_t {range_t} is outside 0..{self.start_step - 1}: steps from levels above it are held to the image, "
                f"and the first of {self.start_step} is from level {self.start_step - 1}"
            )

    @classmethod
    def without_effect(cls, options: Any) -> dict[str, str]:
        """See `Adapter.without_effect`."""
        if options.noise_level is not None or options.range_t + 1 < (options.start_step or START_STEP):
            return super().without_effect(options)
        return dict.fromkeys(
            ("downscale_factor", "border", "reference_mismatch"), f"range_t {options.range_t} leaves all steps free"
        )

    def _step(self, x: Tensor, reference: Tensor, generators: Sequence[torch.Generator], i: int) -> Tensor:
        step = self._reverse_step(x, i)
        x = step.mean + step.std * draw_noise(x.shape[1:], generators, x)
        if i <= self.options.range_t:
            return x
        noised = self._noised(reference, i if self.options.reference_mismatch else i - 1, generators)
        return x + self.low_pass(noised - x)
