"""How much of the classes a frozen network sees: logistic regression on its features, of a
classifier or of a diffusion model at several time steps.

    python evaluation/linear_probe.py -r repfusion/Digits/ResNet20_hint --labels all,100
    python evaluation/linear_probe.py -r diffusion/Digits/ddpm --steps 0,99 --inputs clean,noised

Features are means over the places of a map, brought to mean 0 and deviation 1 by the training
images. The regression is scikit-learn's, with its usual weight of the penalty. Choose a time step
by the accuracy on validation images; that on test images is what is reported. `<out>/all` and
`<out>/100` have the results of test images for those numbers of labels, as test.py writes them;
those of several calls come together. Of several time steps there is probe.png.
"""

from __future__ import annotations

import undegrade.utils.quick_start  # noqa: F401  before the rest

# isort: split
import dataclasses
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from undegrade.evaluation.result_files import RESULTS, ResultFiles
from undegrade.evaluation.results import CLEAN, cell_result, percent, wilson_interval
from undegrade.models.classification.classifier import Classifier, as_map
from undegrade.models.classification.loading import load_classifier
from undegrade.models.diffusion.features import DiffusionFeatures
from undegrade.models.diffusion.loading import denoiser_digest, diffusers_folder, load_denoiser, open_denoiser
from undegrade.utils.checkpoint import file_digest, read_description
from undegrade.utils.choices import check_choice
from undegrade.utils.command_line import ScriptParser
from undegrade.utils.config import build, dotted_keys
from undegrade.utils.data.pixels import to_signed, to_unit
from undegrade.utils.data.sources.image_source import ImageSource
from undegrade.utils.data.sources.registry import SourceConfig
from undegrade.utils.device import choose_device
from undegrade.utils.errors import run_main
from undegrade.utils.figures import PALETTE, new_figure, save, tidy
from undegrade.utils.provenance import listing_digest, provenance
from undegrade.utils.runs import find_checkpoint
from undegrade.utils.seeding import torch_generator

_BATCH, _ITERATIONS = 64, 2000
Reader = Callable[[Tensor, Sequence[str]], Tensor]


@dataclasses.dataclass(frozen=True)
class ProbeConfig:
    """What is probed on.

    Attributes:
        data: see SourceConfig.
    """

    data: SourceConfig = dataclasses.field(default_factory=SourceConfig)


class Probe(NamedTuple):
    """One regression.

    Attributes:
        feature: what it sees.
        step, shown: time step and input of a diffusion model; None of a classifier.
        labels: as asked for.
        validation: accuracy on validation images.
        right: bool [n], which test images are right.
    """

    feature: str
    step: int | None
    shown: str | None
    labels: str
    validation: float
    right: np.ndarray

    @property
    def system(self) -> str:
        """Name of a row."""
        return self.feature if self.step is None else f"{self.feature}, t {self.step}, {self.shown}"


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    p = ScriptParser(__doc__, dotted_keys(ProbeConfig))
    p.add_argument("-r", "--checkpoint", required=True, help="checkpoint, run folder or run name, or a folder of diffusers")
    p.add_argument("--runs", default="runs", help="root of the runs")
    p.add_argument("--labels", default="all", help="numbers of labelled training images, class-balanced: all,100")
    p.add_argument(
        "--feature", default="", help="pooled (default) or a stage; of a diffusion model branch (default), block or a path"
    )
    p.add_argument("--steps", default="100", help="time steps of a diffusion model: 0,50,100")
    p.add_argument("--inputs", default="clean", help="what a diffusion model is shown: clean,noised")
    p.add_argument("--name", default="", help="of the system in the results of a classifier (default: the feature)")
    p.add_argument("--out", default="runs/probe", help="folder of what is written")
    p.add_argument("--overwrite", action="store_true", help="leave out the results that are there")
    p.add_argument("--device", default=None, help="cpu, cuda, mps (default: the fastest that is there)")
    args, overrides = p.parse(argv)
    config = build(ProbeConfig, overrides)
    sources = {split: config.data.open(split) for split in ("train", "validation", "test")}
    counts = _counts(args.labels, len(sources["train"]))
    readers, digest = _readers(args, choose_device(args.device), sources["train"])
    probes: list[Probe] = []
    print(f"{'feature':10} {'time step':>9} {'input':>7} {'labels':>6} {'validation':>10} {'test':>6}  95 % interval")
    for (feature, step, shown), reader in readers.items():
        features = {split: read(source, reader) for split, source in sources.items()}
        for labels, count in counts.items():
            one = Probe(feature, step, shown, labels, *probe(features, sources, count))
            probes.append(one)
            result = cell_result(one.system, "", CLEAN, 0, "", one.right)
            shares = (percent(100 * value) for value in (one.validation, result.accuracy, result.ci95_low, result.ci95_high))
            text = "{:>10} {:>6}  [{}, {}]".format(*shares)
            print(f"{feature:10} {'-' if step is None else step:>9} {shown or '-':>7} {labels:>6} {text}", flush=True)
    written = [_write(Path(args.out) / labels, config, sources["test"], probes, labels, args, digest) for labels in counts]
    if len({one.step for one in probes}) > 1:
        written.append(Path(args.out) / "probe.png")
        save(plot(probes), written[-1])
    print("written: " + ", ".join(map(str, written)))


def _write(
    out: Path, config: ProbeConfig, source: ImageSource, probes: Sequence[Probe], labels: str, args: Any, digest: str
) -> Path:
    own = {one.system if one.step is not None or not args.name else args.name: one for one in probes if one.labels == labels}
    facts = {
        "dataset": config.data.dataset, "split": "test", "images": len(source), "frame": source.frame, "labels": labels,
        "listing": listing_digest(source.keys, source.labels), "members": dict.fromkeys(own, digest), "views": {}, "systems": {},
        "configuration": {}, "provenance": [provenance()],
    }  # fmt: skip
    files = ResultFiles(out, facts, args.overwrite)
    for name, one in own.items():
        more = {"validation_accuracy": one.validation} | ({} if one.step is None else {"time_step": one.step})
        files.add(cell_result(name, Path(config.data.dataset).name, CLEAN, 0, "linear probe", one.right, more), one.right)
    files.write(finished=True)
    return out / RESULTS


def _counts(text: str, there: int) -> dict[str, int]:
    counts = {}
    for word in text.split(","):
        if word != "all" and not (word.isdecimal() and 0 < int(word) <= there):
            raise ValueError(f"--labels {word}: give `all`, or a number from 1 to {there}, the training images there are")
        counts[word] = there if word == "all" else int(word)
    return counts


def _readers(args: Any, device: torch.device, source: ImageSource) -> tuple[dict[tuple[str, int | None, str | None], Reader], str]:
    """What reads features, by feature, time step and input; and a digest of the network."""
    folder = diffusers_folder(args.checkpoint)
    path = None if folder is not None else find_checkpoint(args.checkpoint, args.runs)
    if path is not None and read_description(path).get("kind") != "diffusion":
        classifier = load_classifier(path, args.runs).to(device)
        feature = args.feature or "pooled"
        return {(feature, None, None): of_classifier(classifier, feature, device)}, file_digest(path)
    denoiser = load_denoiser(path) if path is not None else open_denoiser(folder or args.checkpoint, {})
    if denoiser.image_size != source.image_size:
        raise ValueError(f"{args.checkpoint} is of images of {denoiser.image_size} px: give --data.image_size, or other images")
    readers: dict[tuple[str, int | None, str | None], Reader] = {}
    for shown in args.inputs.split(","):
        features = DiffusionFeatures(
            denoiser.to(device), [args.feature or "branch"], check_choice(shown, ("clean", "noised"), "--inputs") == "noised"
        )
        for word in args.steps.split(","):
            if not word.isdecimal() or int(word) >= denoiser.diffusion_steps:
                raise ValueError(f"--steps {word}: give numbers from 0 to {denoiser.diffusion_steps - 1}, joined by commas")
            readers[args.feature or "branch", int(word), shown] = of_diffusion_model(features, int(word), device)
    return readers, file_digest(path) if path is not None else denoiser_digest(folder or args.checkpoint, {})


def of_classifier(classifier: Classifier, feature: str, device: torch.device) -> Reader:
    """Reads a feature of a classifier, uint8 [B,3,S,S] -> [B,D]."""

    def reader(images: Tensor, keys: Sequence[str]) -> Tensor:
        found = classifier.features(to_unit(images).to(device), [feature])[feature]
        return as_map(classifier, feature, found).mean((2, 3))

    return reader


def of_diffusion_model(features: DiffusionFeatures, step: int, device: torch.device) -> Reader:
    """Reads a feature of a diffusion model at a time step; noise is of the image's key."""

    def reader(images: Tensor, keys: Sequence[str]) -> Tensor:
        noise = torch.stack([torch.randn(images.shape[1:], generator=torch_generator("probe", key, step)) for key in keys])
        t = torch.full((len(images),), step, device=device)
        return features(to_signed(images).to(device), t, noise.to(device))[0].mean((2, 3))

    return reader


@torch.no_grad()
def read(source: ImageSource, reader: Reader) -> np.ndarray:
    """Features [N,D] of all images, float64."""
    parts = []
    for start in range(0, len(source), _BATCH):
        rows = np.arange(start, min(start + _BATCH, len(source)))
        parts.append(reader(source.images(rows), [source.keys[i] for i in rows]).double().cpu().numpy())
    return np.concatenate(parts)


def probe(features: dict[str, np.ndarray], sources: dict[str, ImageSource], count: int) -> tuple[float, np.ndarray]:
    """(accuracy on validation images, which test images are right) of a regression on `count`
    training images.
    """
    from sklearn.linear_model import LogisticRegression  # noqa: PLC0415  a second
    from sklearn.pipeline import make_pipeline  # noqa: PLC0415
    from sklearn.preprocessing import StandardScaler  # noqa: PLC0415

    place = {key: row for row, key in enumerate(sources["train"].keys)}
    rows = [place[key] for key in sources["train"].limited(count).keys]
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=_ITERATIONS))
    model.fit(features["train"][rows], sources["train"].labels[rows].numpy())
    right = {s: np.asarray(model.predict(features[s]) == sources[s].labels.numpy()) for s in ("validation", "test")}
    return float(right["validation"].mean()), right["test"]


def plot(probes: Sequence[Probe]) -> Figure:
    """Test accuracy against the time step, a line for each input and number of labels."""
    figure = new_figure(6.4, 3.6)
    axes = figure.subplots()
    lines = list(dict.fromkeys((one.shown, one.labels) for one in probes))
    for colour, (shown, labels) in zip(itertools.cycle(PALETTE), lines, strict=False):
        own = sorted((one for one in probes if (one.shown, one.labels) == (shown, labels)), key=lambda one: one.step or 0)
        steps = [one.step or 0 for one in own]
        axes.plot(steps, [100 * one.right.mean() for one in own], "o-", color=colour, label=f"{shown} images, {labels} labels")
        bounds = [wilson_interval(int(one.right.sum()), len(one.right)) for one in own]
        low, high = ([100 * value for value in values] for values in zip(*bounds, strict=True))
        axes.fill_between(steps, low, high, color=colour, alpha=0.15, linewidth=0)
    axes.set(xlabel="time step", ylabel="test accuracy of a linear probe, %")
    axes.legend(frameon=False)
    tidy(axes)
    return figure


if __name__ == "__main__":
    run_main(main)
