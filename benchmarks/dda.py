"""DDA as it is published against ours with the same output: time of a guided chain, memory of an
image, passes of the U-Net.

The reference way is the published formulas on the network of guided-diffusion-sdk, whose weights
are open to gradients, with the gradient through the network. Ours is `image_adapt.dda.DDA` with the
options of the published program, the same weights and the same noise. Random weights: time and
memory do not depend on them.
"""

from __future__ import annotations

import multiprocessing
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.measure import Row, in_turn, timed_row
from benchmarks.memory import peak
from benchmarks.networks import forward_work, published_unet, randomised
from undegrade.image_adapt.config import adapt_schema
from undegrade.image_adapt.dda import DDA
from undegrade.image_adapt.lowpass import LowPass
from undegrade.models.diffusion.denoiser import build_denoiser
from undegrade.models.diffusion.inference_blocks import frozen
from undegrade.models.diffusion.openai import denoiser_from_openai
from undegrade.models.diffusion.openai_flags import ModelFlags
from undegrade.utils.config import build, read_yaml

WEIGHT, DOWNSCALE, STEPS = 6.0, 4, 2
CONFIGS = Path(__file__).resolve().parent.parent / "configs" / "adapt" / "ImageFolder"
CLOSE = 1e-4  # the largest difference between both outputs, in [-1, 1]


def flags_of(quick: bool) -> ModelFlags:
    """The published 256 px network's kinds of blocks, smaller."""
    size = {"image_size": 16, "num_channels": 32, "channel_mult": "1,2", "attention_resolutions": "8"}
    if not quick:
        size = {"image_size": 64, "num_channels": 64, "channel_mult": "1,2,3,4", "attention_resolutions": "16"}
    kinds = {"num_head_channels": 32, "resblock_updown": True, "use_scale_shift_norm": True, "learn_sigma": True}
    return ModelFlags(**size, **kinds, num_res_blocks=1)  # type: ignore[arg-type]


def rows(quick: bool = False) -> list[Row]:
    """Time, memory and passes.

    Raises:
        AssertionError: ours is not what the published formulas give.
    """
    warnings.filterwarnings("ignore", category=FutureWarning)
    flags, batch = flags_of(quick), 2 if quick else 4
    published, ours, free = (make(flags, batch) for make in WAYS.values())
    difference = (published() - ours()).abs().max().item()
    assert difference <= CLOSE, f"outputs differ by {difference}"
    taken = in_turn({"reference": published, "ours": ours, "free": free}, 1 if quick else 5)
    network = frozen(denoiser_from_openai(_weights(flags), flags))  # fewer operations than the published one
    work = 2 * STEPS * batch * forward_work(network.unet, flags.image_size, torch.zeros(1))
    name = f"DDA, {batch} images of {flags.image_size} px, {STEPS} guided steps"
    note = f"largest difference between both outputs {difference:.1e}; a pass forward and one backward a step"
    return [
        timed_row(name, taken["reference"], taken["ours"], work, required=1.3, note=note),
        timed_row(f"{name}, ours without Jacobian", taken["reference"], taken["free"], note="another result: see the fast preset"),
        _memory(flags, 1 if quick else 4),
        _passes(),
    ]


def _weights(flags: ModelFlags) -> dict[str, Tensor]:
    return randomised(published_unet(flags)).state_dict()


def _images(flags: ModelFlags, batch: int) -> Tensor:
    return torch.rand(batch, 3, flags.image_size, flags.image_size, generator=torch.Generator().manual_seed(0)) * 2 - 1


def _streams(batch: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in range(batch)]


def _published(flags: ModelFlags, batch: int) -> Callable[[], Tensor]:
    from guided_diffusion.script_util import create_gaussian_diffusion  # noqa: PLC0415  of the development packages

    network, images, drawn = randomised(published_unet(flags)), _images(flags, batch), _streams(batch)
    noise = [torch.stack([torch.randn(images.shape[1:], generator=g) for g in drawn]) for _ in range(STEPS + 1)]
    diffusion = create_gaussian_diffusion(steps=1000, learn_sigma=True, noise_schedule="linear", timestep_respacing="100")
    low_pass = LowPass(flags.image_size, DOWNSCALE, "zero")

    def adapt() -> Tensor:
        """Starts one level above the first step, takes one norm over the batch, adds noise before
        guidance.
        """
        x = diffusion.q_sample(images, torch.full((batch,), STEPS), noise[0])
        for k, i in enumerate(reversed(range(STEPS)), start=1):
            x = x.detach().requires_grad_()
            step = diffusion.p_mean_variance(network, x, torch.full((batch,), i), clip_denoised=True)
            moved = step["mean"] + (i > 0) * (step["log_variance"] / 2).exp() * noise[k]
            distance = torch.linalg.norm(low_pass(images) - low_pass(step["pred_xstart"]))
            x = moved - WEIGHT * torch.autograd.grad(distance, x)[0]
        return x.detach()

    return adapt


def _ours(flags: ModelFlags, batch: int, guidance: str = "full") -> Callable[[], Tensor]:
    adapter = DDA(
        denoiser_from_openai(_weights(flags), flags), start_step=STEPS, guidance_weight=WEIGHT, downscale_factor=DOWNSCALE,
        guidance_norm="batch", border="zero", start_mismatch=True, guidance=guidance,
    )  # fmt: skip
    images = _images(flags, batch)
    return lambda: adapter.adapt(images, _streams(batch))


def _without_jacobian(flags: ModelFlags, batch: int) -> Callable[[], Tensor]:
    return _ours(flags, batch, "jacobian_free")


WAYS: dict[str, Callable[[ModelFlags, int], Callable[[], Tensor]]] = {
    "reference": _published,
    "ours": _ours,
    "free": _without_jacobian,
}


def _memory(flags: ModelFlags, few: int) -> Row:
    """What a further image in the batch takes, by the peaks of fresh processes."""
    many = 4 * few
    needed = {way: (_peak(flags, many, way) - _peak(flags, few, way)) / (many - few) for way in ("reference", "ours")}
    name = f"memory of DDA for each image of {flags.image_size} px"
    repeats = {way: [value] for way, value in needed.items()}
    ratio = needed["reference"] / needed["ours"]
    return Row(name, "MiB", needed["reference"], needed["ours"], ratio, required=2.0, repeats=repeats)


def _peak(flags: ModelFlags, batch: int, way: str) -> float:
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_adapt_once, flags, batch, way).result()


def _adapt_once(flags: ModelFlags, batch: int, way: str) -> float:
    warnings.filterwarnings("ignore", category=FutureWarning)
    torch.set_num_threads(1)
    WAYS[way](flags, batch)()
    return peak()


def _passes() -> Row:
    """Counted on a tiny network with the shipped configurations; a gradient through the network
    counts as one.
    """
    counted = {way: _count(name) for way, name in (("reference", "dda.yaml"), ("ours", "fast.yaml"))}
    repeats = {way: [value] for way, value in counted.items()}
    ratio = counted["reference"] / counted["ours"]
    note = "accuracy: header of configs/adapt/ImageFolder/fast.yaml"
    return Row("U-Net passes an image, fast preset", "passes", **counted, ratio=ratio, required=8.0, note=note, repeats=repeats)


def _count(name: str) -> float:
    config: Any = build(adapt_schema(), read_yaml(CONFIGS / name))
    denoiser = build_denoiser(8, [8], learn_sigma=False)
    adapter = DDA(denoiser, **vars(config.dda))
    calls: list[int] = []
    denoiser.unet.register_forward_hook(lambda *_: calls.append(1))
    adapter.adapt(torch.zeros(1, 3, 8, 8), _streams(1))
    return len(calls) * (2.0 if adapter.uses_gradient else 1.0)
