"""Restorers: networks that undo degradations in one pass, trained on pairs of images. The target is
the clean image, or what a slower adapter made of the degraded one, which is distilled so.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from undegrade.models.restoration.ffdnet import FFDNet
from undegrade.models.restoration.restorer import KIND, Restorer, nafnet
from undegrade.trainers.method import Context, Method
from undegrade.utils.checkpoint import load_checkpoint
from undegrade.utils.data.batches import Batch
from undegrade.utils.data.perturbations.registry import find_perturbation
from undegrade.utils.data.pixels import from_signed, to_unit, unit_to_signed
from undegrade.utils.figures import sample_grid
from undegrade.utils.ranges import Count

_PICTURED = 8
_EPSILON = 1e-3  # of the Charbonnier loss


@dataclasses.dataclass(frozen=True)
class RestorerConfig:
    """The network that is trained.

    Attributes:
        network: ffdnet (plain convolutions on half the sides, told a blind estimate of the noise
            level; Zhang et al. 2018) | nafnet (a U-Net of gated blocks; Chen et al., ECCV 2022; of
            spandrel).
        channels: width of ffdnet's layers, and of nafnet's highest resolution, where each level
            below has twice as many.
        layers: convolutions of ffdnet.
        blocks: blocks of nafnet on each level of its encoder, highest resolution first; its decoder
            has one on each, and there is one in the middle.
        init_from: checkpoint file, run folder or run name of a restorer to start from, of the same
            network and widths.
    """

    network: Literal["ffdnet", "nafnet"] = "ffdnet"
    channels: Count = 64
    layers: Count = 8
    blocks: list[Count] = field(default_factory=lambda: [1, 1])
    init_from: str | None = None


@dataclasses.dataclass(frozen=True)
class RestorationConfig:
    """Pairs of images.

    Attributes:
        name: restoration.
        target: clean (the image before it was degraded) | adapted (what the adapter of
            `data.adapted` made of it; `data.adapted_view: adapted`).
    """

    name: str = "restoration"
    target: Literal["clean", "adapted"] = "clean"


class Restoration(Method):
    """L = E sqrt(|f(x) - y|^2 + eps^2) over channel values (Charbonnier), x the degraded image, y
    the clean or the adapted one.

    Args:
        student: what is trained.
        target: view of a batch that is y.
        shown: degraded images, uint8 [n, 3, S, S], of the picture.
    """

    monitors = {"loss": "min", "psnr": "max"}

    def __init__(self, student: Restorer, target: str, shown: Tensor) -> None:
        super().__init__()
        self.student, self.target, self.shown = student, target, shown

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """`loss`, and `psnr` [B] of each image in dB."""
        difference = self.student(batch["degraded"]) - batch[self.target]
        squared = difference.square()
        psnr = -10 * squared.flatten(1).mean(1).clamp(min=1e-10).log10()
        return {"loss": (squared + _EPSILON**2).sqrt().mean(), "psnr": psnr.detach()}

    def export(self, parts: Mapping[str, nn.Module]) -> tuple[dict[str, Tensor], dict[str, Any]]:
        student = parts["student"]
        assert isinstance(student, Restorer)
        return student.network.state_dict(), {"kind": KIND, "network": student.name}

    def picture(self, parts: Mapping[str, nn.Module]) -> np.ndarray:
        """Degraded images, below them the restored ones."""
        device = next(self.parameters()).device
        with torch.no_grad():
            restored = from_signed(unit_to_signed(parts["student"](to_unit(self.shown).to(device)))).cpu()
        return sample_grid(torch.cat([self.shown, restored]).permute(0, 2, 3, 1).numpy(), columns=len(self.shown), scale=2)


def build_restoration(model: RestorerConfig, config: RestorationConfig, context: Context) -> Method:
    """The method that trains a restorer.

    Raises:
        ValueError: no degradation; a target without images; a start that does not fit.
    """
    data = context.config.data
    if not context.degradations:
        raise ValueError("data.degradations are none: name what the restorer shall undo, such as [jpeg, blur, noise]")
    if config.target == "adapted" and (data.adapted is None or data.adapted_view != "adapted"):
        raise ValueError(
            "method.target adapted needs adapted images beside the degraded ones: give data.adapted <folder> and "
            "data.adapted_view adapted"
        )
    student = build_restorer(model)
    if model.init_from:
        state, _ = load_checkpoint(context.find_checkpoint(model.init_from), kind=KIND)
        if _shapes(state) != _shapes(student.network.state_dict()):
            raise ValueError(
                f"model.init_from {model.init_from} is another network than {student.name} of these widths: give its "
                "model.network, channels and layers or blocks, or leave it out"
            )
        student.network.load_state_dict(state)
    return Restoration(student, config.target, _shown(context))


def build_restorer(model: RestorerConfig) -> Restorer:
    """A restorer with random weights."""
    if model.network == "ffdnet":
        return Restorer(FFDNet(model.channels, model.layers), "FFDNet", True)
    return nafnet(model.channels, model.blocks)


def _shapes(state: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in state.items()}


def _shown(context: Context) -> Tensor:
    """An image for each degradation, over and over."""
    source, names = context.source, context.degradations
    rows = np.arange(min(_PICTURED, len(source)))
    images, keys = source.images(rows), [source.keys[i] for i in rows]
    out = []
    for i, key in enumerate(keys):
        kind = find_perturbation(names[i % len(names)])
        out.append(kind.apply(images[i : i + 1], kind.draw([key], 0), [key], 0, context.config.data))
    return torch.cat(out)
