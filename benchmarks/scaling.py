"""How cost grows with batch, images, ranks and image size: `python -m benchmarks.scaling` prints
exponents.

The exponent is the slope of log cost over log size by least squares: 1 is proportional, 0 does not
grow, -1 is halved by twice as many.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure

from benchmarks.measure import core_seconds
from benchmarks.memory import evaluation, with_files
from benchmarks.networks import classifier, images
from benchmarks.report import write_json
from undegrade.evaluation.ensemble import Member, Scorer
from undegrade.evaluation.predictors import Frozen
from undegrade.image_adapt.dda import DDA
from undegrade.image_adapt.work import adapt_batch
from undegrade.models.diffusion.denoiser import Denoiser, build_denoiser, describe
from undegrade.utils.checkpoint import save_checkpoint
from undegrade.utils.data.cells import CLEAN, Cell
from undegrade.utils.data.perturbations.corruptions import CORRUPTIONS
from undegrade.utils.data.perturbations.perturbation import PERTURBATIONS, PerturbationOptions
from undegrade.utils.data.sources.registry import open_source
from undegrade.utils.data.views import OnTheFly
from undegrade.utils.device import keep_freed_memory
from undegrade.utils.errors import run_main
from undegrade.utils.figures import INK, PALETTE, new_figure, save, tidy
from undegrade.utils.progress import progress_bar
from undegrade.utils.provenance import provenance
from undegrade.utils.seeding import seed_everything

ROOT = Path(__file__).resolve().parents[1]
CPU = torch.device("cpu")


@dataclasses.dataclass(frozen=True)
class Curve:
    """Cost of sizes.

    Attributes:
        name: what costs.
        over: what the sizes are.
        unit: of the cost.
        sizes, costs: measured.
        exponent: of the power law through them.
        ideal: the exponent that nothing can be better than.
    """

    name: str
    over: str
    unit: str
    sizes: list[int]
    costs: list[float]
    ideal: float

    @property
    def exponent(self) -> float:
        return fitted_exponent(self.sizes, self.costs)


def fitted_exponent(sizes: Sequence[float], costs: Sequence[float]) -> float:
    """b of cost = a size^b, by least squares of the logarithms.

    Raises:
        ValueError: fewer than two sizes, or a number that is not positive.
    """
    if len(sizes) < 2 or min(*sizes, *costs) <= 0:
        raise ValueError(f"an exponent needs two sizes or more, and positive numbers: got sizes {list(sizes)}, costs {list(costs)}")
    return float(np.polyfit(np.log(sizes), np.log(costs), 1)[0])


def _median(step: Callable[[], object], repeats: int) -> float:
    step()
    return statistics.median(core_seconds(step) for _ in range(repeats))


def _small_denoiser(size: int) -> Denoiser:
    seed_everything(0)
    return build_denoiser(size, [32, 64]).eval()


def _pixels(count: int, size: int) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(images(count, size).transpose(0, 3, 1, 2)))


def adaptation_by_batch(quick: bool) -> list[Curve]:
    """DDA with a small U-Net at 32 x 32, two guided steps, for each image of a batch."""
    adapter = DDA(_small_denoiser(32), start_step=2)
    batches, costs = [1, 2] if quick else [1, 2, 4, 8, 16, 32], []
    for batch in batches:
        keys, pixels = [str(i) for i in range(batch)], _pixels(batch, 32)
        seconds = _median(lambda p=pixels, k=keys, b=batch: adapt_batch(adapter, p, k, 0, b, CPU), 1 if quick else 5)  # type: ignore[misc]
        costs.append(seconds / batch)
    return [Curve("adaptation of an image", "batch", "core s", batches, costs, 0.0)]


def evaluation_by_images(quick: bool) -> list[Curve]:
    """Time of a pass over images in memory; peak memory of a whole evaluation of files."""
    network = classifier("ResNet20").to(memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    counts, costs = [5, 10] if quick else [40, 80, 160, 320], []
    for count in counts:
        member = Member("one", Frozen(network), "", OnTheFly(open_source("Digits", "test", limit=count)))
        costs.append(_median(lambda m=member: Scorer(None).logits(m, Cell(CLEAN, 0)), 1 if quick else 5))  # type: ignore[misc]
    files = [20, 40] if quick else [500, 2000, 8000]
    peaks = [with_files(evaluation, count, apart=not quick) for count in files]
    return [
        Curve("evaluation", "images", "core s", counts, costs, 1.0),
        Curve("peak memory of an evaluation", "images", "MiB", files, peaks, 0.0),
    ]


def adaptation_by_ranks(quick: bool) -> list[Curve]:
    """Wall time of image_sample.py on 1 and 2 MPI ranks of a thread each, without their start;
    nothing where no mpiexec is.
    """
    mpiexec = shutil.which("mpiexec", path=str(Path(sys.executable).parent)) or shutil.which("mpiexec")
    if mpiexec is None:
        return []
    count = 4 if quick else 64
    with tempfile.TemporaryDirectory() as folder:
        denoiser, checkpoint = _small_denoiser(32), Path(folder) / "small.safetensors"
        save_checkpoint(checkpoint, denoiser.unet.state_dict(), describe(denoiser))
        costs = []
        for ranks in (1, 2):
            words = ["--model_path", checkpoint, "--save_dir", f"{folder}/{ranks}", "--dataset", "Digits", "--limit", count,
                     "--corruption", "contrast", "--batch_size", max(1, count // 8), "--N", 2 if quick else 8]  # fmt: skip
            command = [mpiexec, "-n", ranks, sys.executable, ROOT / "image_adapt/scripts/image_sample.py", *words]
            variables = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
            done = subprocess.run([str(w) for w in command], env=variables, capture_output=True, text=True, check=False)
            said = re.search(r"adapted \d+ images in ([\d.]+) s", done.stdout + done.stderr)
            if done.returncode or said is None:
                raise RuntimeError(f"image_sample.py on {ranks} rank(s) failed:\n{done.stdout}{done.stderr}")
            costs.append(max(float(said[1]), 0.05))
    return [Curve(f"adaptation of {count} images", "ranks", "s", [1, 2], costs, -1.0)]


def corruptions_by_size(quick: bool) -> list[Curve]:
    """The 15 corruptions at severity 3, for each image of a batch."""
    sizes, costs = [32, 48] if quick else [32, 64, 128, 224], []
    options = PerturbationOptions(constants="imagenet")
    for size in sizes:
        pixels, keys = _pixels(2, size), ["a", "b"]

        def every(p: torch.Tensor = pixels, k: list[str] = keys) -> None:
            for name in CORRUPTIONS:
                PERTURBATIONS[name].apply(p, 3, k, 0, options)

        costs.append(_median(every, 1 if quick else 3) / len(keys))
    return [Curve("15 corruptions of an image", "side in pixels", "core s", sizes, costs, 2.0)]


def unet_by_size(quick: bool) -> list[Curve]:
    """A forward pass of the small U-Net, batch 4."""
    sizes, costs = [16, 32] if quick else [16, 32, 64, 128], []
    for size in sizes:
        denoiser = _small_denoiser(size).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        x, t = torch.randn(4, 3, size, size), torch.full((4,), 10)
        with torch.inference_mode():
            costs.append(_median(lambda d=denoiser, x=x, t=t: d.unet(x, t), 1 if quick else 5) / 4)  # type: ignore[misc]
    return [Curve("U-Net, forward, of an image", "side in pixels", "core s", sizes, costs, 2.0)]


PARTS: dict[str, Callable[[bool], list[Curve]]] = {
    "batch": adaptation_by_batch,
    "images": evaluation_by_images,
    "ranks": adaptation_by_ranks,
    "corruptions": corruptions_by_size,
    "unet": unet_by_size,
}


def plot(curves: Sequence[Curve]) -> Figure:
    """Costs over sizes, both axes logarithmic, with the fitted power law; one panel a curve."""
    figure = new_figure(3.1 * len(curves), 3.1)
    for axes, curve in zip(figure.subplots(1, len(curves), squeeze=False).ravel(), curves, strict=True):
        sizes, costs = np.array(curve.sizes, float), np.array(curve.costs)
        line = np.exp(np.log(costs).mean()) * (sizes / np.exp(np.log(sizes).mean())) ** curve.exponent
        axes.plot(sizes, line, color=INK, linewidth=1)
        axes.plot(sizes, costs, "o", color=PALETTE[0])
        axes.set_xscale("log", base=2)
        axes.set_yscale("log", base=2)
        axes.yaxis.set_major_formatter("{x:.4g}")
        middle = (costs.min() * costs.max()) ** 0.5
        axes.set_ylim(min(costs.min() * 0.8, middle / 3), max(costs.max() * 1.25, middle * 3))  # what is flat shall look flat
        axes.set_xticks(curve.sizes, [str(size) for size in curve.sizes])
        axes.set_xlabel(f"{curve.over}: exponent {curve.exponent:.2f} (ideal {curve.ideal:g})", fontsize=9)
        axes.set_title(f"{curve.name}, {curve.unit}", fontsize=9)
        tidy(axes)
    return figure


def main(argv: Sequence[str] | None = None) -> list[Curve]:
    """Run the command line; prints the exponents, writes `<out>/scaling.json` and `scaling.png`."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="tiny sizes: whether everything runs, not how it grows")
    parser.add_argument("--out", type=Path, default=Path("runs/bench"))
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    keep_freed_memory()
    curves: list[Curve] = []
    with progress_bar(PARTS.items(), unit="part") as bar:
        for name, part in bar:
            bar.set_postfix_str(name)
            curves += part(args.quick)
    for curve in curves:
        values = ", ".join(f"{size}: {cost:.3g}" for size, cost in zip(curve.sizes, curve.costs, strict=True))
        print(f"{curve.name} ~ {curve.over}^{curve.exponent:.2f} (ideal {curve.ideal:g}); {curve.unit} {values}")
    content = [{**dataclasses.asdict(curve), "exponent": curve.exponent} for curve in curves]
    write_json({"machine": {**provenance(), "threads": 1}, "curves": content}, args.out / "scaling.json")
    save(plot(curves), args.out / "scaling.png")
    print(f"written: {args.out}/scaling.json, scaling.png")
    return curves


if __name__ == "__main__":
    run_main(main)
