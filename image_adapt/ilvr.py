"""Iterative latent variable refinement (Choi et al. 2021): low frequencies are replaced, not
pulled; no gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from undegrade.image_adapt.reverse import ReverseChain
from undegrade.models.diffusion.denoiser import Denoiser
from undegrade.models.diffusion.sampling import draw_noise


class ILVR(ReverseChain):
    """Keeps an image's low frequencies by replacing those of each step (Choi et al. 2021, algorithm
    1).

    After the step from level i to i - 1 the low frequencies phi_D of x are those of the image
    noised afresh to that level: x + phi_D(noised - x). A step costs one pass forward through the
    network, half or less of what `DDA` takes.

    Args:
        denoiser, downscale_factor, chain: see `ReverseChain`.
        range_t: steps from levels i <= range_t are left free (as many as `range_t` + 1). DDA's
            first version (2022) had 20, with N = 50 on a chain of 100 and D = 8.
        reference_mismatch: noise the image, like the published code, to level i although x is at
            level i - 1 by then.

    Raises:
        ValueError: any option outside its range; names the value and the range.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        *,
        downscale_factor: int = 8,
        range_t: int = 20,
        reference_mismatch: bool = False,
        **chain: Any,
    ) -> None:
        super().__init__(denoiser, downscale_factor=downscale_factor, **chain)
        if not 0 <= range_t < self.start_step:
            raise ValueError(
                f"range_t {range_t} is outside 0..{self.start_step - 1}: steps from levels above it are held to the image, "
                f"and the first of {self.start_step} is from level {self.start_step - 1}"
            )
        self.range_t = range_t
        self.reference_mismatch = reference_mismatch

    def _step(self, x: Tensor, reference: Tensor, generators: Sequence[torch.Generator], i: int) -> Tensor:
        step = self._reverse_step(x, i)
        x = step.mean + step.std * draw_noise(x.shape[1:], generators, x)
        if i <= self.range_t:
            return x
        noised = self._noised(reference, i if self.reference_mismatch else i - 1, generators)
        return x + self.low_pass(noised - x)
