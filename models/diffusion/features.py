"""What a diffusion model sees in an image: the maps in the middle of its U-Net, its "h-space", at a
time step of choice (Yang & Wang 2023, "Diffusion model as representation learner"; Kwon et al.
2023, "Diffusion models already have a semantic latent space").
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from undegrade.models.diffusion.denoiser import Denoiser
from undegrade.utils.choices import check_choice

_SLACK = 1e-3  # what resizing and rounding may leave outside of [-1, 1]


class _EnoughError(Exception):
    """The last of the maps is there: what comes after it need not be computed."""


class DiffusionFeatures(nn.Module):
    """Maps of a frozen diffusion model.

    The pass ends with the last of the maps: nothing behind it, such as the whole way up of a U-Net,
    is computed, and the maps are bit for bit those of a whole pass.

    Args:
        denoiser: any; it is frozen.
        layers: `branch`, the last convolution in the middle of the U-Net, before it is added to
            what the block is given, as RepFusion published it; `block`, what the middle gives; or
            the path of any module of the network whose output is a map, such as
            `down_blocks.1`.
        noised: whether the network is shown the image noised to the level of its time step, as in
            its training. RepFusion shows it the clean image at any time step, so that the time
            alone says what it looks for; noised, features of a late step see nothing.

    Raises:
        ValueError: a layer that the network does not have.
    """

    def __init__(self, denoiser: Denoiser, layers: Sequence[str] = ("branch",), noised: bool = False) -> None:
        super().__init__()
        self.denoiser = denoiser.eval().requires_grad_(False)
        self.layers, self.noised = list(layers), noised
        modules = dict(denoiser.unet.named_modules())
        named = {name: path for name, path in _usual(denoiser.unet).items() if path in modules}
        self._modules_of = {}
        for layer in self.layers:
            known = [*named, *(path for path in modules if path.count(".") == 1)]  # those of all depths would be hundreds
            if layer not in named and layer not in modules:
                check_choice(layer, known, "layer", type(denoiser.unet).__name__)
            self._modules_of[layer] = modules[named.get(layer, layer)]

    @torch.no_grad()
    def forward(self, x: Tensor, t: Tensor, noise: Tensor | None = None, y: Tensor | None = None) -> list[Tensor]:
        """A map [B, C, h, w] of each layer.

        Args:
            x: images [B,3,S,S] in [-1, 1].
            t: time steps [B] int64 of the whole chain.
            noise: standard normal [B,3,S,S], where `noised`.
            y: labels [B] of a conditional network; None for its null label.

        Raises:
            ValueError: images outside of [-1, 1]; time steps outside of the chain; a conditional
                network without null label and without labels; an output that is no map.
        """
        low, high = x.amin().item(), x.amax().item()
        if low < -1 - _SLACK or high > 1 + _SLACK:
            raise ValueError(
                f"images reach from {low:.2f} to {high:.2f}: a diffusion model takes [-1, 1], not what a classifier's mean and std "
                "make of them; give 2 * x - 1 of images x in [0, 1]"
            )
        if t.min() < 0 or t.max() >= self.denoiser.diffusion_steps:
            raise ValueError(
                f"time steps from {int(t.min())} to {int(t.max())}: this diffusion model has 0..{self.denoiser.diffusion_steps - 1}"
            )
        if self.noised:
            assert noise is not None
            x = self.denoiser.schedule().q_sample(x, t, noise)
        taken: dict[str, Tensor] = {}
        handles = [module.register_forward_hook(self._filing(layer, taken)) for layer, module in self._modules_of.items()]
        try:
            self.denoiser(x, t, y)
        except _EnoughError:
            pass
        finally:
            for handle in handles:
                handle.remove()
        return [taken[layer] for layer in self.layers]

    def _filing(self, layer: str, taken: dict[str, Tensor]) -> Any:
        def file(_module: nn.Module, _inputs: Any, output: Any) -> None:
            if not isinstance(output, Tensor) or output.ndim != 4:
                shape = list(output.shape) if isinstance(output, Tensor) else type(output).__name__
                raise ValueError(f"layer {layer} gives {shape}, a map [B, C, h, w] is needed: take branch, block or a convolution")
            taken[layer] = output
            if len(taken) == len(self._modules_of):
                raise _EnoughError

        return file


def _usual(unet: nn.Module) -> dict[str, str]:
    last = len(getattr(getattr(unet, "mid_block", None), "resnets", ())) - 1
    return {"branch": f"mid_block.resnets.{last}.conv2", "block": "mid_block"}


class Standardised(nn.Module):
    """Maps with mean 0 and standard deviation 1 in each channel, by statistics of other images; of
    each time step its own where `steps` are given.

    Without it the differences between images are small beside those between channels and between
    time steps, and students of mean squared errors learn little else.

    Args:
        channels: of the maps.
        steps: time steps that have their own statistics (None: all share one).
    """

    def __init__(self, channels: int, steps: Sequence[int] | None = None) -> None:
        super().__init__()
        rows = 1 if steps is None else len(steps)
        self.register_buffer("steps", None if steps is None else torch.tensor(sorted(steps)))
        for name in ("count", "total", "squares"):  # in double precision, since they are differences of sums
            self.register_buffer(name, torch.zeros(rows, 1 if name == "count" else channels, dtype=torch.float64))

    def _rows(self, t: Tensor) -> Tensor:
        steps = self.get_buffer("steps") if self._buffers["steps"] is not None else None
        return torch.zeros_like(t) if steps is None else torch.searchsorted(steps, t)

    def add(self, maps: Tensor, t: Tensor) -> None:
        """Take maps [B, C, h, w] of the time steps t [B] into the statistics."""
        flat, rows = maps.double().flatten(2), self._rows(t)
        self.get_buffer("count").index_add_(0, rows, flat.new_full((len(flat), 1), flat.shape[2]))
        self.get_buffer("total").index_add_(0, rows, flat.sum(2))
        self.get_buffer("squares").index_add_(0, rows, flat.square().sum(2))

    def forward(self, maps: Tensor, t: Tensor) -> Tensor:
        count, total, squares = (self.get_buffer(name) for name in ("count", "total", "squares"))
        mean = total / count.clamp(min=1)
        std = (squares / count.clamp(min=1) - mean.square()).clamp(min=1e-12).sqrt()
        rows = self._rows(t)
        mean, std = (value[rows].to(maps.dtype)[:, :, None, None] for value in (mean, std))
        return (maps - mean) / std
