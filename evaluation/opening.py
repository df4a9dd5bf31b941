"""What an evaluation opens before it scores: members, checkpoints and the clean images."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from undegrade.evaluation.config import EvaluationConfig, fill_names, members_of
from undegrade.evaluation.ensemble import Member
from undegrade.evaluation.predictors import Predictor, build_predictor
from undegrade.evaluation.surroundings import Surroundings
from undegrade.models.classification.inputs import INPUT_KEYS, checkpoint_inputs
from undegrade.models.classification.loading import load_classifier
from undegrade.utils.checkpoint import file_digest
from undegrade.utils.data.cells import Cell
from undegrade.utils.data.sources.image_source import ImageSource
from undegrade.utils.data.views import RAW, open_view
from undegrade.utils.runs import find_checkpoint

log = logging.getLogger(__name__)


def needed_members(config: EvaluationConfig, cells: Sequence[Cell]) -> dict[Cell, list[str]]:
    """Cell -> the members that some system has there; ValueError for a system without any cell."""
    for name, system in config.systems.items():
        if not any(members_of(system, cell, config.members) for cell in cells):
            raise ValueError(f"system {name!r} has no member for any of the cells {', '.join(c.folder for c in cells[:5])}")
    wanted = {cell: {m for s in config.systems.values() for m in members_of(s, cell, config.members)} for cell in cells}
    return {cell: [name for name in config.members if name in names] for cell, names in wanted.items()}


def open_source(config: EvaluationConfig, checkpoints: Mapping[str, Path]) -> ImageSource:
    """The clean images; photographs as the networks want them, where these agree and no view shows
    images that were cut before.
    """
    data = config.data
    if not data.has_photographs:
        return data.open(data.split)
    wanted = {name: checkpoint_inputs(path, config.members[name].arch) for name, path in checkpoints.items()}
    first, *others = set(wanted.values())
    if first is not None and not others and {member_view(config, name) for name in checkpoints} == {RAW}:
        data = data.fitted(*first)
    source = data.open(data.split)
    unlike = [f"; {name} wants {inputs}" for name, inputs in wanted.items() if inputs is not None and str(inputs) != source.frame]
    log.info(
        "images of %s: %s (pixels: the centre of a shorter side)%s; %s", source.name, source.frame, "".join(unlike), INPUT_KEYS
    )
    return source


def open_members(
    config: EvaluationConfig, checkpoints: dict[str, Path], source: ImageSource, device: torch.device
) -> dict[str, Member]:
    members, views = {}, {}
    for name, path in checkpoints.items():
        folder = member_view(config, name)
        if folder not in views:
            views[folder] = open_view(folder, source, config.data.seed, config.data)
        members[name] = Member(
            name, *member_predictor(config, name, path, source.classes, device, source.class_order, source.among), views[folder]
        )
    return members


def member_predictor(
    config: EvaluationConfig,
    name: str,
    path: Path,
    classes: Sequence[str] | None,
    device: torch.device,
    class_order: str | None,
    among: Sequence[str] | None = None,
) -> tuple[Predictor, str]:
    """The predictor of a member on its device, and the digest of both (`Member.digest`); see
    `load_classifier`.
    """
    given = config.members[name]
    classifier = load_classifier(path, config.runs, classes, given.arch, given.mean, given.std, class_order, among)
    classifier = classifier.to(device).to(memory_format=torch.channels_last)
    cache = Path(config.out) / "logits" / "worked_out" if config.cache else None

    def find(further: str) -> Path:
        return find_checkpoint(fill_names(config, further), config.runs)

    around = Surroundings(config.data.open_training, cache, file_digest(path), find)
    predictor, options = build_predictor(given.predictor, f"members.{name}.predictor", classifier, around)
    network = [file_digest(path), *(str(value) for value in (given.arch, given.mean, given.std) if value is not None)]
    if classes is not None and among is not None:
        network.append(f"{len(classes)} of {len(among)}: {' '.join(classes)}")
    return predictor, " ".join(filter(None, [*network, options]))


def member_view(config: EvaluationConfig, name: str) -> str:
    """The view of a member: `raw` or a folder."""
    view = config.members[name].view
    return fill_names(config, config.views.get(view, view))
