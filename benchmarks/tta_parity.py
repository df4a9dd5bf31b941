"""Test-time adaptation against a public implementation: same network, same batches, same random
numbers; the largest differences of logits and parameters after each step, and the time of both.

    git clone https://github.com/mariodoebler/test-time-adaptation && pip install yacs einops
    python -m benchmarks.tta_parity --reference test-time-adaptation

The reference's methods are imported as they are. What they import of its models and data sets is
left out, and its random augmentations are replaced by ours in both, which draw the same numbers.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import importlib
import math
import sys
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import undegrade.evaluation.tta as methods
from undegrade.evaluation.predictors import PREDICTORS
from undegrade.evaluation.surroundings import Surroundings
from undegrade.evaluation.tta.augmentation import strong_augmentation
from undegrade.models.classification.classifier import Classifier, build_classifier, final_layers
from undegrade.utils.config import build
from undegrade.utils.data.pixels import to_unit
from undegrade.utils.data.sources.image_source import ImageSource, array_source

# ours -> class of the reference, its settings beside those of `settings`, ours
METHODS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "bn": ("norm", "BNTest", {}),
    "bn_ema": ("norm", "BNEMA", {}),
    "tent": ("tent", "Tent", {}),
    "eata": ("eata", "EATA", {}),
    "sar": ("sar", "SAR", {}),
    "cotta": ("cotta", "CoTTA", {}),
    "rotta": ("rotta", "RoTTA", {}),
    "deyo": ("deyo", "DeYO", {}),
    "roid": ("roid", "ROID", {}),
    "lame": ("lame", "LAME", {}),
}
CLASSES, SIDE, BATCH, STEPS, FISHER = 10, 32, 64, 6, 128


class _Settings(dict):  # type: ignore[type-arg]
    """Keys as attributes, as the reference's configuration has them."""

    __getattr__ = dict.__getitem__


def settings() -> Any:
    """The reference's configuration for CIFAR-10-C."""
    sections = {
        "OPTIM": {"METHOD": "Adam", "STEPS": 1, "LR": 1e-3, "BETA": 0.9, "WD": 0.0, "MOMENTUM": 0.9},
        "MODEL": {"ADAPTATION": "", "ARCH": "Standard", "EPISODIC": False, "RESET_AFTER_NUM_UPDATES": 0, "CKPT_PATH": ""},
        "CORRUPTION": {"DATASET": "cifar10_c"},
        "TEST": {"BATCH_SIZE": BATCH, "WINDOW_LENGTH": 1, "N_AUGMENTATIONS": 4},
        "BN": {"ALPHA": 0.1},
        "M_TEACHER": {"MOMENTUM": 0.999},
        "COTTA": {"RST": 0.01, "AP": 0.92},
        "SAR": {"RESET_CONSTANT_EM": 0.2},
        "EATA": {"FISHER_ALPHA": 1.0, "D_MARGIN": 0.4, "MARGIN_E0": 0.4},
        "SOURCE": {"NUM_SAMPLES": FISHER, "PERCENTAGE": 1.0, "NUM_WORKERS": 0},
        "DEYO": {"REWEIGHT_ENT": True, "REWEIGHT_PLPD": True, "PLPD": 0.2, "MARGIN": 0.5, "AUG_TYPE": "patch", "PATCH_LEN": 4,
                 "OCCLUSION_SIZE": 0, "ROW_START": 0, "COLUMN_START": 0},
        "ROTTA": {"MEMORY_SIZE": 64, "UPDATE_FREQUENCY": 64, "NU": 0.001, "ALPHA": 0.05, "LAMBDA_T": 1.0, "LAMBDA_U": 1.0},
        "ROID": {"USE_WEIGHTING": True, "USE_PRIOR_CORRECTION": True, "USE_CONSISTENCY": True, "MOMENTUM_SRC": 0.99,
                 "MOMENTUM_PROBS": 0.9, "TEMPERATURE": 1 / 3},
        "LAME": {"AFFINITY": "rbf", "KNN": 5, "SIGMA": 1.0, "FORCE_SYMMETRY": False},
    }  # fmt: skip
    return _Settings({name: _Settings(keys) for name, keys in sections.items()}, DATA_DIR="", MIXED_PRECISION=False)


class _Wrapped(nn.Module):
    """Our classifier as the reference wants a model."""

    model_preprocess = None

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.network, self.normalise = classifier.network, classifier.normalise
        self.classifier = classifier

    def forward(self, x: Tensor) -> Tensor:
        return self.network(self.normalise(x))  # type: ignore[no-any-return]


def reference_class(folder: Path, module: str, name: str, images: ImageSource) -> Any:
    """A class of the reference, without the packages that only its models and data sets need."""
    root = str(folder / "classification")
    if not Path(root).is_dir():
        raise FileNotFoundError(f"{root} is not there: give --reference the folder of the clone")
    for taken in [key for key in sys.modules if key.split(".")[0] in ("methods", "utils", "models", "datasets", "augmentations")]:
        del sys.modules[taken]
    parts = {"models": {}, "models.model": {"ResNetDomainNet126": type("Nothing", (), {}), "split_up_model": _split}}
    parts |= {"datasets": {}, "datasets.data_loading": {"get_source_loader": lambda **keys: (None, _Loader(images))}}
    for key, attributes in parts.items():
        stand_in: Any = types.ModuleType(key)
        vars(stand_in).update(attributes)
        sys.modules[key] = stand_in
    for package in ("methods", "utils", "augmentations"):
        stand_in = sys.modules[package] = types.ModuleType(package)
        stand_in.__path__ = [f"{root}/{package}"]
    found = importlib.import_module(f"methods.{module}")
    if hasattr(found, "get_tta_transforms"):
        vars(found)["get_tta_transforms"] = lambda size, padding_mode="edge", cotta_augs=True: strong_augmentation(
            size[0], padding_mode, cotta_augs
        )
    return getattr(found, name)


def _split(model: _Wrapped, arch: str, dataset: str) -> tuple[Callable[[Tensor], Tensor], nn.Module]:
    head = model.classifier.get_submodule(f"network.{final_layers(model.classifier.network)[0]}")
    return lambda x: model.classifier.features(x, ["pooled"])["pooled"], head


class _Loader:
    """Batches of the training images in the order in which ours come."""

    def __init__(self, images: ImageSource) -> None:
        self.images = Surroundings(lambda: images).training_images(FISHER, "")

    def __len__(self) -> int:
        return math.ceil(len(self.images) / BATCH)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return (self.images.batch(number, BATCH, torch.device("cpu")) for number in range(len(self)))


def toy_images(count: int, seed: int) -> ImageSource:
    """Smooth random pictures with labels, whose classes differ by colour."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, CLASSES, count)
    colours = np.random.default_rng(0).uniform(0.2, 0.8, (CLASSES, 3, 1, 1))
    coarse = generator.normal(0, 0.25, (count, 3, 4, 4)).repeat(SIDE // 4, 2).repeat(SIDE // 4, 3)
    pixels = (255 * (colours[labels] + coarse).clip(0, 1)).astype(np.uint8)
    return array_source("Toy/train", pixels, labels, [str(k) for k in range(CLASSES)], [f"{i:04d}" for i in range(count)])


def trained(images: ImageSource) -> Classifier:
    """A small ResNet that knows the classes a little, so that no method has nothing to do."""
    torch.manual_seed(0)
    classifier = build_classifier("ResNet20", CLASSES, (0.5,) * 3, (0.25,) * 3)
    optimizer = torch.optim.Adam(classifier.parameters(), 1e-2)
    pixels = to_unit(images.images(range(len(images))))
    for step in range(12):
        rows = slice(step * BATCH % len(images), step * BATCH % len(images) + BATCH)
        loss = nn.functional.cross_entropy(classifier.train()(pixels[rows]), images.labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return classifier.eval()


@dataclasses.dataclass(frozen=True)
class Outcome:
    """Of one method.

    Attributes:
        logits, parameters: largest absolute differences after each step.
        moved: how far the parameters went in all, at most.
        seconds: a step of the reference and of ours, medians.
    """

    logits: list[float]
    parameters: list[float]
    moved: float
    seconds: tuple[float, float]


def compare(name: str, folder: Path, classifier: Classifier, images: ImageSource) -> Outcome:
    """A method beside the reference's, step by step."""
    module, class_name, changes = METHODS[name]
    theirs_class = reference_class(folder, module, class_name, images)
    start = torch.cat([parameter.detach().flatten() for parameter in classifier.parameters()])
    theirs = theirs_class(settings(), _Wrapped(copy.deepcopy(classifier)), CLASSES)
    if name == "rotta":  # its call has an argument too many where no mixed precision is used
        calculate = theirs.loss_calculation
        theirs.loss_calculation = lambda *_: calculate()
    row = PREDICTORS[name]
    options = {"eata": {"images": FISHER, "batch": BATCH}, "cotta": {"augmentations": 4}}.get(name, {}) | changes
    ours = row.build(copy.deepcopy(classifier), build(row.options, options), Surroundings(lambda: images))
    ours.reset()
    test = to_unit(toy_images(BATCH * STEPS, 7).images(range(BATCH * STEPS)))
    logits, parameters, seconds = [], [], ([], [])  # type: ignore[var-annotated]
    for step, batch in enumerate(test.split(BATCH)):
        found = []
        for place in (0, 1):
            torch.manual_seed(step)
            if place:
                ours._random = torch.get_rng_state()
            before = time.perf_counter()
            found.append((ours.predict if place else theirs)(batch.clone()).detach())  # what a step leaves is given back in it
            seconds[place].append(time.perf_counter() - before)
        expected, own = found
        logits.append((expected - (own.exp() if name == "lame" else own)).abs().max().item())
        of_theirs = torch.cat([p.detach().flatten() for p in _network(theirs).parameters()])
        of_ours = torch.cat([p.detach().flatten() for p in ours.classifier.network.parameters()])
        parameters.append((of_theirs - of_ours).abs().max().item())
    return Outcome(logits, parameters, (of_ours - start).abs().max().item(), (np.median(seconds[0]), np.median(seconds[1])))


def _network(theirs: Any) -> nn.Module:
    found = next(module for module in theirs.model.modules() if isinstance(module, _Wrapped))
    return found.network


def main(argv: list[str] | None = None) -> None:
    """Run the command line."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    p.add_argument("--reference", required=True, type=Path, help="folder of the clone")
    p.add_argument("--methods", default=",".join(METHODS), help="some of them, joined by commas")
    args = p.parse_args(argv)
    assert methods
    images = toy_images(4 * BATCH, 3)
    classifier = trained(images)
    print(f"{'method':8} {'logits':>10} {'parameters':>10} {'moved':>8} {'theirs, ms':>10} {'ours, ms':>9}")
    for name in args.methods.split(","):
        found = compare(name, args.reference, classifier, images)
        times = " ".join(f"{1000 * value:>9.1f}" for value in found.seconds)
        print(f"{name:8} {max(found.logits):10.2e} {max(found.parameters):10.2e} {found.moved:8.4f}  {times}", flush=True)


if __name__ == "__main__":
    main()
