"""DDA against its published formulas as guided-diffusion runs them: largest difference, time, memory for each image.

    python -m benchmarks.dda
    python -m benchmarks.dda --device cuda --bf16

One row a variant. `published`: U-Net of the package guided-diffusion-sdk with weights open to gradients, its diffusion, gradient
through the network. `ours`: `image_adapt.dda.DDA` with the options of the published program and the same noise. `jacobian_free`:
the same without a pass backward, another result. Random weights: time and memory do not depend on them. On a CPU time is that of
the process, so that other programs disturb it less, and memory the largest resident size of a process for each batch size.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from image_adapt.dda import DDA
from image_adapt.lowpass import LowPass
from models.guided_diffusion import denoiser_from_openai
from models.model_flags import ModelFlags

DOWNSCALE, WEIGHT = 4, 6.0


def published(network: torch.nn.Module, images: Tensor, noise: list[Tensor], steps: int) -> Tensor:
    """The published loop: start one level above the first step, noise before guidance, one norm over the batch, zero border."""
    from guided_diffusion.script_util import create_gaussian_diffusion  # noqa: PLC0415  of the development packages

    diffusion = create_gaussian_diffusion(steps=1000, learn_sigma=True, noise_schedule="linear", timestep_respacing="100")
    low_pass = LowPass(images.shape[-1], DOWNSCALE, "zero")
    x = diffusion.q_sample(images, torch.full((len(images),), steps, device=images.device), noise[0])
    for k, i in enumerate(reversed(range(steps)), start=1):
        x = x.detach().requires_grad_()
        step = diffusion.p_mean_variance(network, x, torch.full((len(x),), i, device=x.device), clip_denoised=True)
        drawn = step["mean"] + (i > 0) * (step["log_variance"] / 2).exp() * noise[k]
        distance = torch.linalg.norm(low_pass(images) - low_pass(step["pred_xstart"]))
        x = drawn - WEIGHT * torch.autograd.grad(distance, x)[0]
    return x.detach()


def variants(args: argparse.Namespace, batch: int, only: str | None = None) -> dict[str, Callable[[], Tensor]]:
    """Adaptation of `batch` images by each variant, on networks of the same weights."""
    from tests.openai_networks import created, randomise  # noqa: PLC0415  needs the development packages

    flags = ModelFlags(
        image_size=args.image_size, num_channels=args.num_channels, num_res_blocks=args.num_res_blocks, attention_resolutions="16",
        num_head_channels=32, resblock_updown=True, use_scale_shift_norm=True, learn_sigma=True,
    )  # fmt: skip
    network = created(flags).eval()
    randomise(network)
    shape = (3, args.image_size, args.image_size)
    images = (torch.rand(batch, *shape, generator=torch.Generator().manual_seed(0)) * 2 - 1).to(args.device)

    def streams() -> list[torch.Generator]:
        return [torch.Generator().manual_seed(seed) for seed in range(batch)]

    drawn = streams()
    noise = [torch.stack([torch.randn(shape, generator=g) for g in drawn]).to(args.device) for _ in range(args.steps + 1)]
    made: dict[str, Callable[[], Tensor]] = {}
    for name, guidance in (("ours", "full"), ("jacobian_free", "jacobian_free")):
        if only in (None, name):
            weights = {key: value.clone() for key, value in network.state_dict().items()}
            adapter = DDA(
                denoiser_from_openai(weights, flags).to(args.device), start_step=args.steps, guidance_weight=WEIGHT,
                downscale_factor=DOWNSCALE, guidance_norm="batch", border="zero", start_mismatch=True, guidance=guidance,
                autocast=args.bf16,
            )  # fmt: skip
            made[name] = lambda adapter=adapter: adapter.adapt(images, streams())  # type: ignore[misc]
    if only in (None, "published"):
        network.to(args.device)
        made = {"published": lambda: published(network, images, noise, args.steps), **made}
    return made


def seconds(run: Callable[[], Tensor], device: str) -> float:
    """Of one call: of the process on a CPU, by the clock on a GPU."""
    if device == "cpu":
        start = time.process_time()
        run()
        return time.process_time() - start
    torch.cuda.synchronize()
    begin = time.perf_counter()
    run()
    torch.cuda.synchronize()
    return time.perf_counter() - begin


def peak(args: argparse.Namespace, name: str, batch: int) -> float:
    """MiB that a variant needs at most, in a process of its own."""
    words = [f"--{flag}={getattr(args, flag)}" for flag in ("image_size", "num_channels", "num_res_blocks", "device")]
    command = [
        sys.executable,
        "-m",
        "benchmarks.dda",
        *words,
        "--steps=2",
        "--bf16" * args.bf16,
        f"--peak_of={name}",
        f"--batch={batch}",
    ]
    return float(subprocess.run([w for w in command if w], check=True, capture_output=True, text=True).stdout.split()[-1])


def run_once(args: argparse.Namespace) -> float:
    """MiB that this process has needed at most after one adaptation."""
    variants(args, args.batch, args.peak_of)[args.peak_of]()
    if args.device != "cpu":
        return torch.cuda.max_memory_allocated() / 2**20
    status = Path("/proc/self/status").read_text()  # getrusage would go on from the size of the parent process
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for flag, value in (
        ("image_size", 64),
        ("num_channels", 64),
        ("num_res_blocks", 1),
        ("steps", 2),
        ("batch", 4),
        ("repeats", 5),
    ):
        parser.add_argument(f"--{flag}", type=int, default=value)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--bf16", action="store_true", help="our networks in bfloat16")
    parser.add_argument("--peak_of", help="only run this variant once and print the largest memory")
    args = parser.parse_args()
    warnings.filterwarnings("ignore", category=FutureWarning)
    torch.set_num_threads(args.threads)
    if args.peak_of:
        print(run_once(args))
        return
    runs = variants(args, args.batch)
    first = {name: run() for name, run in runs.items()}
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(args.repeats):  # interleaved, so that a slow minute hits all
        for name, run in runs.items():
            taken[name].append(seconds(run, args.device))
    print(f"{'variant':<14} {'difference':>10} {'s/image step':>12} {'faster':>7} {'MiB/image':>9} {'share':>6}")
    memory = {name: (peak(args, name, 8) - peak(args, name, 2)) / 6 for name in runs}
    usual = statistics.median(taken["published"])
    for name in runs:
        median = statistics.median(taken[name])
        apart = (first[name] - first["published"]).abs().max().item()
        print(
            f"{name:<14} {apart:10.1e} {median / args.batch / args.steps:12.4f} {usual / median:7.2f} "
            f"{memory[name]:9.1f} {memory[name] / memory['published']:6.2f}"
        )


if __name__ == "__main__":
    main()
