"""Systems in a folder: `config.json` (what it is), `members/<number>-<name>/` (a classifier each,
as `models.classification.saved` writes them), `adapters/<number>-<view>/` (an adaptation YAML and
its model), `rule.json` (the numbers of a fitted rule) and README.md. Nothing in it is code or a
pickle.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterable
from dataclasses import field
from pathlib import Path
from typing import Any

import torch

from undegrade.evaluation.config import SystemConfig
from undegrade.evaluation.fitted.rule import read_rule, write_rule
from undegrade.evaluation.predictors import Frozen, Predictor, build_predictor
from undegrade.evaluation.surroundings import Surroundings
from undegrade.models.classification.classifier import Classifier
from undegrade.models.classification.inputs import described_inputs
from undegrade.models.classification.saved import CONFIG, WEIGHTS, frame_words, open_classifier, save_classifier
from undegrade.origin import Origin
from undegrade.saved_adapters import open_adapter_folder, save_adapter
from undegrade.system import System
from undegrade.utils.config import build
from undegrade.utils.data.sources.images import Resize
from undegrade.utils.data.sources.registry import SourceConfig
from undegrade.utils.data.views import RAW
from undegrade.utils.device import choose_device
from undegrade.utils.files import read_object, write_atomic
from undegrade.utils.model_card import USAGE, Card, listed, training_lines
from undegrade.view_adapter import ViewAdapter

_KEY = "undegrade_system"  # of config.json
_VERSION = 1
_MEND = "take another copy of the folder"
_RULE = "rule.json"


@dataclasses.dataclass(frozen=True)
class SavedMember:
    """A member in config.json.

    Attributes:
        view: what it looks at.
        predictor: `name` and options.
        training: keys of the data set whose clean images the predictor may ask for.
        outputs: those of the network's that are the answer; None: all.
        channels_last: memory layout of its weights, on which the last digits depend.
        digest: of the checkpoint and the predictor, as results files name it.
    """

    view: str
    predictor: dict[str, Any]
    training: dict[str, Any] | None = None
    outputs: list[int] | None = None
    channels_last: bool = False
    digest: str = ""


@dataclasses.dataclass(frozen=True)
class SavedSystem:
    """What config.json says; see `undegrade.system.System`.

    Attributes:
        version: of this layout.
        adapters: view -> settings that its images would be stored with.
    """

    version: int
    name: str
    classes: list[str]
    rule: SystemConfig
    members: dict[str, SavedMember]
    image_size: int
    batch_size: int
    resize: int | None = None
    interpolation: str | None = None
    adapters: dict[str, dict[str, Any]] = field(default_factory=dict)


def is_saved(source: str | Path) -> bool:
    """Whether a path is a folder of `save_pretrained`: of a system, or of a classifier."""
    return is_system(Path(source)) or (Path(source) / WEIGHTS).is_file() and (Path(source) / CONFIG).is_file()


def is_system(folder: Path) -> bool:
    """Whether it is a folder of a saved system."""
    return (folder / CONFIG).is_file() and _KEY in read_object(folder / CONFIG, _MEND)


def numbered(names: Iterable[str]) -> dict[str, str]:
    """A folder's name for each name, which may hold what paths may not."""
    return {name: f"{place}-{re.sub(r'[^A-Za-z0-9_+.-]', '-', name)}" for place, name in enumerate(names, 1)}


def save_system(folder: Path, system: System) -> None:
    """Write all but the card.

    Raises:
        ValueError: a network of one's own, a predictor that reads further checkpoints, or a model
            of an adapter that cannot be written without a pickle.
    """
    members, facts = {}, {}
    for name, place in numbered(system.members).items():
        classifier, members[name] = saved_member(system, name)
        save_classifier(folder / "members" / place, classifier)
    for view, place in numbered(system.adapters).items():
        facts[view] = save_adapter(folder / "adapters" / place, system.adapters[view])
    if system.fitted is not None:
        write_rule(folder / _RULE, system.fitted)
    resize = system.resize
    found = SavedSystem(
        _VERSION, system.name, system.classes, system.rule, members, system.image_size, system.batch_size,
        resize and resize.side, resize and resize.interpolation, facts,
    )  # fmt: skip
    write_atomic(folder / CONFIG, json.dumps({_KEY: dataclasses.asdict(found)}, indent=1) + "\n")


def saved_member(system: System, name: str) -> tuple[Classifier, SavedMember]:
    """The classifier of a member, which knows its classes and images from now on, and its lines in
    config.json.

    Raises:
        ValueError: it reads further checkpoints, or it is not known where it comes from.
    """
    predictor, origin = system.members[name], system.origins.get(name)
    if getattr(predictor, "files", None):
        raise ValueError(
            f"member {name!r} of {system.name} reads further checkpoints ({origin and origin.predictor}): not saved yet"
        )
    if isinstance(predictor, Frozen):
        classifier = predictor.classifier
    elif origin is not None:
        classifier = origin.open()  # as it was before it adapted itself
    else:
        raise ValueError(f"where member {name!r} of {system.name} comes from is not known: load it with undegrade.load")
    if classifier.outputs is None:
        frame = system.resize or (None, None)
        known = {"classes": system.classes, "image_size": system.image_size, "resize": frame[0], "interpolation": frame[1]}
        classifier.about = {**known, **classifier.about}
    weights = [p for p in classifier.parameters() if p.ndim == 4]
    channels_last = any(p.is_contiguous(memory_format=torch.channels_last) and not p.is_contiguous() for p in weights)
    outputs = None if classifier.outputs is None else classifier.outputs.tolist()
    given = {"name": "frozen"} if origin is None else dict(origin.predictor)
    training = None if origin is None or isinstance(predictor, Frozen) else origin.training
    digest = "" if origin is None else origin.digest
    return classifier, SavedMember(system.views[name], given, training, outputs, channels_last, digest)


def open_saved(folder: str | Path, device: str | None = None) -> System:
    """The system in a folder of `save_pretrained`, with the answers of the saved one to the bit; of
    a classifier's folder that classifier alone.

    Args:
        folder: see `is_saved`.
        device: "cpu", "cuda", "cuda:N" (default: a GPU if there is one).

    Raises:
        FileNotFoundError, ValueError: a file that is missing or damaged, a model that is referred
            to and not there, or that is another one by now.
    """
    folder, on = Path(folder), choose_device(device)
    if not is_system(folder):
        return _alone(folder, on)
    path = folder / CONFIG
    tree = read_object(path, _MEND)[_KEY]
    try:
        saved = build(SavedSystem, tree)
    except ValueError as error:
        raise ValueError(f"{path} is damaged, or of another version of undegrade ({error}): {_MEND}") from error
    if saved.version != _VERSION:
        raise ValueError(f"{path} has the layout {saved.version}, this version of undegrade reads {_VERSION}: install a newer one")
    members: dict[str, Predictor] = {}
    origins = {}
    for name, place in numbered(saved.members).items():
        members[name], origins[name] = _open_member(saved.members[name], folder / "members" / place, name, on)
        if members[name].num_classes != len(saved.classes):
            raise ValueError(f"{path}: member {name!r} has {members[name].num_classes} classes, not {len(saved.classes)}: {_MEND}")
    places = numbered(saved.adapters)
    adapters = {view: _open_view(folder / "adapters" / places[view], view, facts, on) for view, facts in saved.adapters.items()}
    views = {name: member.view for name, member in saved.members.items()}
    if not set(views.values()) <= {RAW, *adapters} or not set(saved.rule.members) <= set(members):
        raise ValueError(f"{path} names views or members that it does not have: {_MEND}")
    rule = read_rule(folder / _RULE) if saved.rule.fitted is not None else None
    resize = None if saved.resize is None else Resize(saved.resize, saved.interpolation or "bilinear")
    return System(
        saved.name, saved.classes, saved.rule, members, views, adapters, saved.image_size, resize, rule, saved.batch_size, origins
    )


def _open_member(saved: SavedMember, folder: Path, name: str, device: torch.device) -> tuple[Predictor, Origin]:
    def opened() -> Classifier:
        classifier = open_classifier(folder)
        if saved.outputs is not None:
            classifier.restrict(saved.outputs)
        classifier = classifier.to(device)
        return classifier.to(memory_format=torch.channels_last) if saved.channels_last else classifier

    def training() -> Any:
        return build(SourceConfig, saved.training or {}).open("train")

    predictor, _ = build_predictor(saved.predictor, f"members.{name}.predictor", opened(), Surroundings(training))
    return predictor, Origin(opened, saved.predictor, saved.training, saved.digest)


def _open_view(folder: Path, view: str, facts: dict[str, Any], device: torch.device) -> ViewAdapter:
    found = open_adapter_folder(folder, device)
    if dict(found.facts) != facts:
        differing = [key for key in facts | dict(found.facts) if facts.get(key) != found.facts.get(key)]
        raise ValueError(
            f"{folder}: the adapter of view {view!r} is another one than the system was saved with (differs in "
            f"{', '.join(differing)}); bring the model that it was saved with"
        )
    return found


def _alone(folder: Path, device: torch.device) -> System:
    """A system of a classifier's folder."""
    classifier = open_classifier(folder)
    inputs = described_inputs(classifier.about)
    if inputs is None:
        raise ValueError(
            f"{folder / WEIGHTS} does not say how large its images are: load it with undegrade.load(..., overrides=...)"
        )
    classes = classifier.about.get("classes") or [str(number) for number in range(classifier.num_classes)]
    member = Frozen(classifier.to(device).to(memory_format=torch.channels_last))
    resize = None if inputs.resize is None else Resize(inputs.resize, inputs.interpolation or "bilinear")
    return System(folder.name, classes, SystemConfig(["model"]), {"model": member}, {"model": RAW}, {}, inputs.image_size, resize)


def system_card(system: System) -> Card:
    """What the folder says of itself."""
    looks = {
        RAW: "the image as it is",
        **{view: f"the image adapted by {a.facts['adapter']}" for view, a in system.adapters.items()},
    }
    about = [
        f"Classifies images whose degradation is unknown, by undegrade: {len(system.members)} classifier"
        f"{'s' * (len(system.members) > 1)}, rule `{system.rule.rule}`.",
        f"Classes ({len(system.classes)}): {listed(system.classes)}.",
    ]
    parts, trees = [], []
    for name in system.members:
        classifier, saved = saved_member(system, name)
        told = "; ".join([classifier.arch, f"looks at {looks[saved.view]}", *training_lines(classifier.about)])
        method = saved.predictor["name"]
        parts.append(f"`{name}`: {told}" + ("" if method == "frozen" else f"; adapts itself by {method} to what it sees"))
        if classifier.about.get("configuration"):
            trees.append((f"The training's configuration of `{name}`", classifier.about["configuration"]))
    for view, one in system.adapters.items():
        parts.append(f"view `{view}`: {one.facts['adapter']}, passes of a network an image: {one.adapter.passes.forward}")
        trees.append((f"The adapter's settings of view `{view}`", dict(one.facts)))
    frame = {"image_size": system.image_size, **(dict(zip(("resize", "interpolation"), system.resize or (), strict=False)))}
    limits = [f"Classifiers see {frame_words(frame)}."]
    if any(predictor.stateful for predictor in system.members.values()):
        limits.append("It adapts itself: an answer depends on the other images and their order.")
    if any(one.adapter.passes.forward > 1 for one in system.adapters.values()):
        limits.append("The adapter knows the kind of images that its model was trained on, and moves others towards those.")
    return Card(system.name, about, USAGE, parts, limits, trees)
