"""Networks from checkpoints on disk, with the checks that a user needs: kind, classes, architecture."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from models.classifiers import Classifier, from_description, load_network_state
from models.diffusion import Denoiser
from models.diffusion import from_description as denoiser_from_description
from utils.checkpoint import load_checkpoint
from utils.runs import resolve_checkpoint

log = logging.getLogger(__name__)


def _check_classes(path: Path, found: Sequence[str], expected: Sequence[str]) -> None:
    if found and list(found) != list(expected):
        first = next((f"class {i} is {a!r} there, {b!r} here" for i, (a, b) in enumerate(zip(found, expected)) if a != b), "")  # noqa: B905
        raise ValueError(
            f"checkpoint {path} was trained on {len(found)} classes, the data set has {len(expected)}"
            + (f" ({first})" if first else "")
            + ": choose a checkpoint of this data set"
        )


def load_classifier(reference: str | Path, save_dir: str | Path = "runs", classes: Sequence[str] | None = None) -> Classifier:
    """A classifier in eval mode.

    Args:
        reference: checkpoint file, run folder, or run name under `save_dir` (latest finished run).
        save_dir: root of the runs.
        classes: class names that the data set has; a checkpoint with others is refused.

    Raises:
        FileNotFoundError, ValueError: missing, foreign (no description of its network inside), or of other classes.
    """
    path = resolve_checkpoint(reference, save_dir)
    state, description = load_checkpoint(path, kind="classifier")
    if not description:
        raise ValueError(
            f"checkpoint {path} does not say what network it holds; start a run from it instead "
            "(model.arch and model.init_from in a training config), the run's own checkpoint will say it"
        )
    if classes is not None:
        _check_classes(path, description.get("classes", []), classes)
    log.info("classifier %s from %s", description["arch"], path)
    return from_description(description, state).eval()


def initialise_classifier(classifier: Classifier, reference: str | Path, save_dir: str | Path, classes: Sequence[str]) -> None:
    """Load the weights that `reference` names into `classifier`; a file without description is matched by its tensor names.

    Raises:
        FileNotFoundError, ValueError: missing, another architecture, or other classes.
    """
    path = resolve_checkpoint(reference, save_dir)
    state, description = load_checkpoint(path, kind="classifier")
    if description and description["arch"] != classifier.arch:
        raise ValueError(f"checkpoint {path} holds a {description['arch']}, model.arch is {classifier.arch}: make them equal")
    _check_classes(path, description.get("classes", []), classes)
    try:
        load_network_state(classifier, state)
    except ValueError as error:
        raise ValueError(f"checkpoint {path}: {error}") from error
    log.info("weights from %s", path)


def load_denoiser(reference: str | Path, save_dir: str | Path = "runs") -> Denoiser:
    """A frozen diffusion model in eval mode.

    Raises:
        FileNotFoundError, ValueError: missing, of another kind, or without description.
    """
    path = resolve_checkpoint(reference, save_dir)
    state, description = load_checkpoint(path, kind="diffusion")
    if not description:
        raise ValueError(
            f"checkpoint {path} does not say what diffusion model it holds: train one with train.py -c configs/diffusion/..."
        )
    log.info("diffusion model from %s", path)
    return denoiser_from_description(description, state).eval().requires_grad_(False)
