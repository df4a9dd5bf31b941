"""Fitted rules in an evaluation: their files, what they are checked against, scores, decisions."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from undegrade.evaluation.config import EvaluationConfig, SystemConfig, fill_names
from undegrade.evaluation.ensemble import Member, Scorer, slices
from undegrade.evaluation.fitted.rule import FittedMember, FittedRule, first_other, pixel_digests, read_rule, view_facts
from undegrade.evaluation.fitted.signals import pixel_signals
from undegrade.evaluation.logit_store import StoredLogits, read_logits, write_logits
from undegrade.utils.data.cells import Cell
from undegrade.utils.data.pixels import to_unit
from undegrade.utils.data.sources.image_source import ImageSource
from undegrade.utils.data.views import FolderTree

log = logging.getLogger(__name__)

_PART = 256  # images whose pixels are looked at at a time


def rule_path(config: EvaluationConfig, system: SystemConfig) -> Path:
    """The file of a system's fitted rule."""
    assert system.fitted is not None
    return Path(fill_names(config, config.rules)) / system.fitted


def read_rules(config: EvaluationConfig) -> dict[str, FittedRule]:
    """The fitted rule of each system that has one.

    Raises:
        FileNotFoundError, ValueError: see `read_rule`; the file holds another kind of rule.
    """
    rules = {}
    for name, system in config.systems.items():
        if system.fitted is None:
            continue
        path = rule_path(config, system)
        rules[name] = read_rule(path)
        if rules[name].rule != system.rule:
            raise ValueError(f"system {name!r}: {path} holds the rule {rules[name].rule!r}, not {system.rule!r}: name another file")
    return rules


def fitted_members(
    config: EvaluationConfig, system: SystemConfig, digests: Mapping[str, str], folders: Mapping[str, Path | None]
) -> dict[str, FittedMember]:
    """A system's members as a fitted rule knows them. Those with the view and the predictor of the
    first are what a gate keeps where it restores nothing.

    Args:
        config: expanded.
        system: of it.
        digests: of each member (`Member.digest`).
        folders: of each member's images; None of those that are corrupted on the fly.
    """
    views = {name: config.views.get(config.members[name].view, config.members[name].view) for name in system.members}
    ways = {name: (views[name], config.members[name].predictor) for name in system.members}
    return {
        name: FittedMember(digests[name], view_facts(folders[name]), ways[name] == ways[system.members[0]])
        for name in system.members
    }


def members_in(
    config: EvaluationConfig, system: SystemConfig, members: Mapping[str, Member], cell: Cell
) -> dict[str, FittedMember]:
    """The same of an evaluation; `cell` is one of those that are evaluated."""
    used = {name: members[name] for name in system.members}
    folders = {name: m.view.folder(cell) if isinstance(m.view, FolderTree) else None for name, m in used.items()}
    return fitted_members(config, system, {name: member.digest for name, member in used.items()}, folders)


def check_rules(
    rules: Mapping[str, FittedRule], config: EvaluationConfig, members: Mapping[str, Member], source: ImageSource, cell: Cell
) -> None:
    """Raise ValueError where a rule was fitted for something else, or on the images that are
    evaluated.

    Args:
        rules: by system.
        config: expanded.
        members: those in use.
        source: the clean images.
        cell: one of those that are evaluated.
    """
    for name, rule in rules.items():
        where = f"the rule of system {name!r}"
        rule.check(where, members_in(config, config.systems[name], members, cell), source.classes, source.frame)
    if rules and source.listing_of is not None:
        log.warning("the clean images are not there: that no rule was fitted on them, %s, cannot be checked", ", ".join(rules))
    elif rules:
        digests = image_digests(source)
        for name, rule in rules.items():
            rule.check_unseen(f"the rule of system {name!r}", digests)


def image_digests(source: ImageSource) -> list[str]:
    """Of the pixels of each image."""
    parts = (source.images(range(part.start, part.stop)) for part in slices(len(source), _PART))
    return [digest for images in parts for digest in pixel_digests(images)]


def signals_of(names: Sequence[str], first: Member, other: Member, scorer: Scorer, cell: Cell) -> Tensor:
    """[N, S] of the images of a cell, from the cache where they are there: those of `names` that
    are about pixels or features.

    Args:
        names: of signals.
        first: member that sees the image as it is.
        other: member that sees the adapted one.
        scorer: whose cache is used.
        cell: whose images.
    """
    seen = [member.view.identity(cell) for member in (first, other)]
    identity = " ".join([*seen, *names, first.digest if "feature_distance" in names else ""])
    folder = scorer.cache and scorer.cache / f"signals-{first.name}-{other.name}"
    path = folder and folder / f"{cell.folder.replace('/', '-')}.npz"
    stored = read_logits(path, identity, exact=True)
    if stored is None:
        sources = [member.view.source(cell) for member in (first, other)]
        parts = []
        for part in slices(len(sources[0]), _PART):
            image, adapted = (to_unit(source.images(range(part.start, part.stop))) for source in sources)
            parts.append(pixel_signals(names, image, adapted, first.predictor))
        stored = StoredLogits(torch.cat(parts))
        write_logits(path, identity, stored)
    return stored[:]


def fitted_scores(
    rule: FittedRule, members: Sequence[Member], scorer: Scorer, cell: Cell
) -> tuple[Iterator[Tensor], Tensor | None]:
    """(scores of a cell, float64 [B, K] for some images at a time; bool [N], which of them a gate
    restored).
    """
    logits = torch.stack([scorer.logits(member, cell) for member in members])
    restored = (
        None
        if rule.gate is None
        else rule.restored(logits, signals_of(rule.signals, members[0], members[first_other(rule.members)], scorer, cell))
    )
    parts = slices(logits.shape[1], 4096)
    return (rule.scores(logits[:, part], None if restored is None else restored[part]) for part in parts), restored
