"""Classifiers from checkpoints on disk, with the checks that a user needs: kind, classes,
architecture.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from undegrade.models.classification.classifier import Classifier, build_classifier, published_normalisation
from undegrade.models.classification.weights import (
    foreign_format,
    from_description,
    load_network_state,
    network_of,
    unnamed,
    without_wrappers,
)
from undegrade.utils.checkpoint import load_checkpoint
from undegrade.utils.runs import resolve_checkpoint

log = logging.getLogger(__name__)


def _check_classes(path: Path, found: Sequence[str], expected: Sequence[str]) -> None:
    if found and list(found) != list(expected):
        pairs = itertools.zip_longest(map(repr, found), map(repr, expected), fillvalue="none")
        first = next(f"class {i} is {a} there, {b} here" for i, (a, b) in enumerate(pairs) if a != b)
        mend = ": choose a checkpoint of this data set"
        if all(len(name) == 4 and name.isdecimal() for name in expected):
            mend += ", or name the classes of its numbered folders in classes.txt (`0000 <class>` a line)"
        counts = f"{len(found)} classes, the data set has {len(expected)} ({first})"
        raise ValueError(f"checkpoint {path} was trained on {counts}{mend}")


def load_classifier(
    reference: str | Path,
    save_dir: str | Path = "runs",
    classes: Sequence[str] | None = None,
    arch: str | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    class_order: str | None = "as given",
    among: Sequence[str] | None = None,
) -> Classifier:
    """A classifier in eval mode.

    Args:
        reference: checkpoint file, run folder, or run name under `save_dir` (latest finished run).
        save_dir: root of the runs.
        classes: class names that the data set has; a checkpoint with others is refused.
        arch: name of the network (`models.classification.classifier.build_classifier`), for a file
            of another program, which does not say it: a state dict of timm, torchvision,
            mm-classification or FusionDistill; `classes` is needed then. None: as the file's name
            says (`network_of`).
        mean, std: input normalisation per channel, in place of the one that the checkpoint has.
            Files of mm-classification have that program's, other files of timm networks have
            timm's.
        class_order: how `classes` are numbered, where a file of another program can know it
            (`ImageSource.class_order`).
        among: all classes of the networks that are meant, where `classes` are some of them
            (`ImageSource.among`): a network that has all answers with `classes` only.

    Raises:
        FileNotFoundError, ValueError: missing, foreign without `arch` or with classes in an order
            of one's own, of another network than `arch`, of other classes, or of unknown
            normalisation.
    """
    path = resolve_checkpoint(reference, save_dir)
    state, description = load_checkpoint(path, kind="classifier")
    network_classes = classes
    if among is not None and list(description.get("classes", among)) != list(classes or ()):
        network_classes = among
    arch = arch if description else network_of(path, arch)
    if not description and (arch is None or classes is None):
        raise unnamed(path)
    if description:
        if "untrained" in description:
            log.warning("%s: %s is not trained yet; its classes mean nothing, its features do", path, description["untrained"])
        _check_arch(path, description, arch, "arch")
        if network_classes is not None:
            _check_classes(path, description.get("classes", []), network_classes)
        try:
            classifier = from_description(description, state)
        except ValueError as error:
            raise ValueError(f"checkpoint {path}: {error}") from error
    else:
        assert arch is not None and classes is not None and network_classes is not None
        if class_order is None:
            raise ValueError(
                f"checkpoint {path} does not say which class is which number, and the names {', '.join(classes[:3])}, ... do not, "
                "either: list the classes in the network's order in a file, one a line, and give it as data.classes (or call "
                f"their folders 0 to {len(classes) - 1})"
            )
        log.info("checkpoint %s: its %d classes are numbered %s", path, len(network_classes), class_order)
        classifier = build_classifier(arch, len(network_classes), (0.0,) * 3, (1.0,) * 3)
        _load_state(path, classifier, state)
        found = _normalisation(classifier, state, description)
        if None in found and (mean is None or std is None):
            raise ValueError(f"checkpoint {path} does not say with which mean and std its {arch} was trained: give both")
        classifier.set_normalisation(*found)
    classifier.set_normalisation(mean, std)
    if network_classes is among is not None and classes is not None:
        _restrict(path, classifier, classes, among)
    log.info("classifier %s from %s", classifier.arch, path)
    return classifier.eval()


def _restrict(path: Path, classifier: Classifier, classes: Sequence[str], among: Sequence[str]) -> None:
    """Let a network of the classes `among` answer with `classes` only."""
    if classifier.num_classes != len(among):
        raise ValueError(
            f"checkpoint {path} has {classifier.num_classes} classes, the images are for networks of {len(among)}: choose one"
        )
    place = {name: number for number, name in enumerate(among)}
    classifier.restrict([place[name] for name in classes])
    log.info("checkpoint %s: of its %d classes it chooses among the %d of the images", path, len(among), len(classes))


def initialise_classifier(classifier: Classifier, reference: str | Path, save_dir: str | Path, classes: Sequence[str]) -> None:
    """Load the weights that `reference` names into `classifier`, and the normalisation that belongs
    to them.

    A file without description is matched by its tensor names (timm's, mm-classification's, or those
    of our own networks); where nothing says its normalisation, that of `classifier` stays.

    Raises:
        FileNotFoundError, ValueError: missing, another architecture, or other classes.
    """
    path = resolve_checkpoint(reference, save_dir)
    state, description = load_checkpoint(path, kind="classifier")
    _check_arch(path, description, classifier.arch, "model.arch")
    _check_classes(path, description.get("classes", []), classes)
    _load_state(path, classifier, state)
    if not description.get("classes"):
        log.info(
            "checkpoint %s does not name its classes: they are taken to be %s, ..., in this order", path, ", ".join(classes[:3])
        )
    classifier.set_normalisation(*_normalisation(classifier, state, description))
    log.info("weights from %s", path)


def _check_arch(path: Path, description: Mapping[str, Any], arch: str | None, what: str) -> None:
    found = description.get("arch", "network without name")
    if description and arch is not None and arch not in (found, f"{found}.{description.get('tag')}"):
        raise ValueError(f"checkpoint {path} holds a {found}, {what} is {arch}: make them equal")


def _load_state(path: Path, classifier: Classifier, state: Mapping[str, Tensor]) -> None:
    try:
        load_network_state(classifier, state)
    except ValueError as error:
        raise ValueError(f"checkpoint {path}: {error}") from error


def _normalisation(
    classifier: Classifier, state: Mapping[str, Tensor], description: Mapping[str, Any]
) -> tuple[Sequence[float] | None, Sequence[float] | None]:
    """(mean, std) that belong to weights: their description's, mm-classification's, or timm's; None
    where nothing says.
    """
    if description:
        return description.get("mean"), description.get("std")
    names = without_wrappers(state)
    program = foreign_format(names)
    return published_normalisation(classifier) if program is None else program.normalisation(names)
