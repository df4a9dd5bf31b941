"""Keys of an evaluation's command line that would change nothing: refused, with what to use."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from undegrade.evaluation.config import EvaluationConfig, MemberConfig, expand, members_of
from undegrade.evaluation.opening import member_view
from undegrade.utils.command_line import check_effect
from undegrade.utils.config import Tree
from undegrade.utils.data.cells import CLEAN, GROUPS, Cell
from undegrade.utils.data.perturbations.registry import find_perturbation, options_without_effect
from undegrade.utils.data.sources.registry import source_keys_without_effect
from undegrade.utils.data.views import RAW

_OWN_FLAGS = {"checkpoint": "-r", "arch": "--arch", "view": "--view"}  # of test.py


def check_keys(config: EvaluationConfig, given: Tree) -> None:
    """Raise ValueError where a key has no effect on the results.

    Args:
        config: what is evaluated.
        given: the keys of the command line, those that its flags stand for among them.
    """
    out, config = config.out, expand(config)
    cells = config.data.cells()
    used = {name for system in config.systems.values() for cell in cells for name in members_of(system, cell, config.members)}
    raw = any(member_view(config, name) == RAW for name in used)
    reasons = _of_members(config, used, out) | _of_cells(config, cells, raw) | source_keys_without_effect(config.data, "data")
    check_effect(given, reasons)


def check_keys_of_prediction(config: EvaluationConfig, given: Tree, system: str | None) -> None:
    """The same of `--predict`; `system` as there."""
    config = expand(config)
    chosen = config.systems.get(system or list(config.systems)[-1])
    used = set(members_of(chosen, Cell(CLEAN, 0), config.members)) if chosen else set(config.members)
    kept = ("data", "members", "systems", "views", "rules", "batch_size")  # of the data: see check_prediction
    others = {key: "--predict writes the classes of images alone" for key in given if key not in kept}
    check_effect(given, others | _of_members(config, used, out=""))


def check_keys_of_dense(given: Tree) -> None:
    """The same of networks for masks and points."""
    frozen = "networks for masks and points are evaluated as they are"
    check_effect(given, {"overwrite": "results of masks and points are always written anew", "members.model.predictor": frozen})


def check_own_flags(given: Tree) -> None:
    """Raise ValueError for a key that test.py sets itself or has no use for."""
    one = "one checkpoint is evaluated, test_ensemble.py takes"
    reasons = {"systems": f"{one} systems", "degradations": f"{one} a member for each degradation"}
    reasons |= {f"members.model.{key}": f"use {flag}" for key, flag in _OWN_FLAGS.items()}
    known = [field.name for field in dataclasses.fields(MemberConfig)]
    reasons |= {
        f"members.{name}": f"{one} several members, the one here is `model` (--members.model.mean, ...: {', '.join(known)})"
        for name in given.get("members", {})
        if name != "model"
    }
    check_effect(given, reasons)


def _of_members(config: EvaluationConfig, used: Iterable[str], out: str) -> dict[str, str]:
    """Of the members in use, what stands for them, and the rest."""
    views = {config.members[name].view for name in used}
    texts = [out, *(config.members[name].checkpoint for name in used), *(config.views.get(view, view) for view in views)]
    reasons = dict[str, str]()
    if not config.only:  # the rest of a configuration may be of the systems that are left out
        reasons |= {f"members.{name}": "no system has this member here" for name in config.members if name not in used}
        reasons |= {f"views.{name}": "no member looks at this view" for name in config.views if name not in views}
    adapting = any(config.members[name].predictor.get("name", "frozen") != "frozen" for name in used)
    reasons["protocol"] = "" if adapting else "all members are frozen, they answer alike in whatever order (test.py --tta adapts)"
    reasons["rules"] = "" if any(system.fitted for system in config.systems.values()) else "no system has a fitted rule"
    reasons["arch"] = "" if any("{arch}" in text for text in texts) else "`{arch}` stands in no checkpoint, view or folder"
    return reasons


def _of_cells(config: EvaluationConfig, cells: Iterable[Cell], raw: bool) -> dict[str, str]:
    """What the images of the cells do not depend on."""
    data = config.data
    listed = [n for name in data.corruptions for n in GROUPS.get(name, (name,))]
    without = f"{', '.join(listed)} has no severities" if listed else "a sweep has all levels"
    names = [cell.corruption for cell in cells]
    reasons = {"data.severities": "" if any(find_perturbation(name).by_severity for name in listed) else without}
    if not raw:
        released = "all members look at images that are perturbed already"
        return reasons | {f"data.{key}": released for key in ("seed", "constants", "compat", "perturbations")}
    clean = "" if set(names) != {CLEAN} else "clean images have nothing that is drawn"
    return {**reasons, "data.seed": clean, **options_without_effect(names, "data")}
