"""Classifier-free guidance: a class-conditional network with a null label, pulled away from what it
predicts without a class.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from undegrade.models.diffusion.denoiser import Denoiser


class Guided(nn.Module):
    """eps = eps_null + s (eps_class - eps_null) (Ho & Salimans 2022, equation 6, s = 1 + w); the
    variance is that of the class.

    Takes the place of a `Denoiser` in `models.diffusion.sampling`. Both predictions come from one
    pass over twice the batch.
    """

    def __init__(self, denoiser: Denoiser, scale: float, channels: int) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.prediction = denoiser.prediction
        self.scale = scale
        self.channels = channels

    def forward(self, x: Tensor, tau: Tensor, y: Tensor) -> tuple[Tensor, Tensor | None]:
        """As `Denoiser.forward`, for labels y [B] that are known."""
        null = torch.full_like(y, self.denoiser.num_classes or 0)
        eps, r = self.denoiser(torch.cat([x, x]), torch.cat([tau, tau]), torch.cat([y, null]))
        conditional, unconditional = eps.chunk(2)
        pulled = (unconditional + self.scale * (conditional - unconditional))[:, : self.channels]
        return torch.cat([pulled, conditional[:, self.channels :]], 1), None if r is None else r[: len(x)]


def guided(denoiser: Denoiser, scale: float, channels: int | None = None) -> Denoiser | Guided:
    """The class-conditional denoiser with guidance.

    Args:
        denoiser: with null label unless `scale` is 1.
        scale: s. 1 is the denoiser itself: one pass, no guidance.
        channels: guide so many of the first channels (None: all; the published DiT guides 3 of its
            4).

    Raises:
        ValueError: a scale below 1; channels that there are not; no null label.
    """
    if scale < 1:
        raise ValueError(f"guidance scale {scale:g} is below 1: give 1 for no guidance, or more")
    count = denoiser.channels if channels is None else channels
    if not 1 <= count <= denoiser.channels:
        raise ValueError(f"{count} guided channels: this diffusion model has {denoiser.channels}, give 1..{denoiser.channels}")
    if scale == 1:
        return denoiser
    if not denoiser.null_label:
        raise ValueError(
            f"guidance scale {scale:g} needs a model with a null label, and this one was trained without: use 1, or train one "
            "with method.label_dropout above 0"
        )
    return Guided(denoiser, scale, count)
