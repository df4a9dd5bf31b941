"""Networks that restore an image in one pass, from files of several kinds, and their tiles."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from undegrade.models.restoration.estimates import noise_level
from undegrade.models.restoration.ffdnet import FFDNet
from undegrade.utils.checkpoint import load_checkpoint
from undegrade.utils.extras import import_extra

log = logging.getLogger(__name__)

KIND = "restorer"
_FIRST = "model.0.weight"
_EXTRA = "restoration"


class Restorer(nn.Module):
    """A network of images [0,1] of any sides.

    Args:
        network: (images [B,3,H,W] in [0,1], noise [B]) -> the same shape.
        name: of its kind, for messages.
        takes_noise: whether it looks at `noise`.
    """

    def __init__(self, network: nn.Module, name: str, takes_noise: bool) -> None:
        super().__init__()
        self.network, self.name, self.takes_noise = network, name, takes_noise

    def forward(self, x: Tensor, noise: Tensor | None = None) -> Tensor:
        """Restored images, [B,3,H,W], about [0,1].

        Args:
            x: [B,3,H,W] in [0,1].
            noise: [B] in the unit of x; None: estimated by `noise_level`.
        """
        if not self.takes_noise:
            return self.network(x)  # type: ignore[no-any-return]
        return self.network(x, noise_level(x) if noise is None else noise)  # type: ignore[no-any-return]


def tiled(restore: Callable[[Tensor], Tensor], x: Tensor, side: int, overlap: int) -> Tensor:
    """Images restored in tiles, so that memory does not grow with the image; where tiles overlap
    they fade into each other.

    Args:
        restore: [B,3,h,w] -> the same shape.
        x: [B,3,H,W].
        side: of a tile in pixels, at most.
        overlap: pixels that neighbours share, at least; below `side`.
    """
    height, width = x.shape[-2:]
    if max(height, width) <= side:
        return restore(x)
    total, weights = torch.zeros_like(x), x.new_zeros(1, 1, height, width)
    for top in _starts(height, side, overlap):
        for left in _starts(width, side, overlap):
            part = x[..., top : top + side, left : left + side]
            weight = _ramp(part.shape[-2], overlap).to(x)[:, None] * _ramp(part.shape[-1], overlap).to(x)
            total[..., top : top + side, left : left + side] += weight * restore(part)
            weights[..., top : top + side, left : left + side] += weight
    return total / weights


def _starts(length: int, side: int, overlap: int) -> list[int]:
    """Where tiles start: the first at the one end, the last at the other, the others evenly."""
    count = max(1, -(-(length - overlap) // (side - overlap)))
    return [round(number * (length - side) / max(1, count - 1)) for number in range(count)]


def _ramp(length: int, overlap: int) -> Tensor:
    """Weights of a tile along one side: rising over the overlap, 1 in the middle, falling."""
    place = torch.arange(1, length + 1, dtype=torch.float64)
    return torch.minimum(place, place.flip(0)).clamp(max=overlap + 1) / (overlap + 1)


def open_restorer(path: str | Path) -> Restorer:
    """A frozen restorer in eval mode from a file: one that was trained here, FFDNet's published
    weights, or any network for restoration that spandrel knows.

    Raises:
        FileNotFoundError, ValueError: missing, damaged, holds Python objects, of an unknown network
            or of one that enlarges.
    """
    state, _ = load_checkpoint(path, kind=KIND)
    if state.get(_FIRST, torch.empty(0)).shape[1:] == (13, 3, 3):
        found = Restorer(_ffdnet(state), "FFDNet", True)
    else:
        descriptor = _by_spandrel(path, state)
        found = Restorer(_Spandrel(descriptor), descriptor.architecture.name, False)
    log.info("%s from %s, %s weights", found.name, path, f"{sum(p.numel() for p in found.parameters()):,}")
    return found.eval().requires_grad_(False)


def nafnet(width: int, blocks: Sequence[int]) -> Restorer:
    """NAFNet (Chen et al., ECCV 2022) with random weights, which does nothing at first.

    Args:
        width: channels at the highest resolution.
        blocks: on each level of the encoder.

    Raises:
        ValueError: spandrel is not installed.
    """
    import_extra("spandrel", _EXTRA, "NAFNet")
    from spandrel.architectures.NAFNet import NAFNet  # noqa: PLC0415  an extra

    network = NAFNet(width=width, middle_blk_num=1, enc_blk_nums=list(blocks), dec_blk_nums=[1] * len(blocks))
    return Restorer(network, "NAFNet", False)


def _ffdnet(state: dict[str, Tensor]) -> FFDNet:
    network = FFDNet(len(state[_FIRST]), sum(name.endswith(".weight") for name in state))
    network.load_state_dict(state)
    return network


class _Spandrel(nn.Module):
    """A network with spandrel's padding and range."""

    def __init__(self, descriptor: Any) -> None:
        super().__init__()
        self.descriptor, self.model = descriptor, descriptor.model

    def forward(self, x: Tensor) -> Tensor:
        if self.descriptor.input_channels == 1:  # of grey images: colour by colour
            return self.descriptor(x.flatten(0, 1)[:, None]).view_as(x)  # type: ignore[no-any-return]
        return self.descriptor(x)  # type: ignore[no-any-return]


def _by_spandrel(path: str | Path, state: dict[str, Tensor]) -> Any:
    spandrel = import_extra("spandrel", _EXTRA, f"{path}, a network other than FFDNet,")
    try:
        found = spandrel.ModelLoader(device="cpu").load_from_state_dict(state)
    except spandrel.UnsupportedModelError as error:
        first = ", ".join(list(state)[:3])
        raise ValueError(
            f"{path}: spandrel {spandrel.__version__} knows no network with such weights ({first}, ...): give FFDNet, SwinIR, "
            "NAFNet, SCUNet, DRUNet, DnCNN, FBCNN, Restormer or another one that it reads"
        ) from error
    name, colours = found.architecture.name, (found.input_channels, found.output_channels)
    if not isinstance(found, spandrel.ImageModelDescriptor) or found.purpose != "Restoration":
        raise ValueError(f"{path}: {name} is for {found.purpose}, and enlarges {found.scale} times: give one for restoration")
    if colours not in ((3, 3), (1, 1)):
        raise ValueError(f"{path}: {name} makes {colours[1]} channels of {colours[0]}: give one for colours (3) or for grey (1)")
    return found
