"""Fit the rules `gate` and `fitted` of an ensemble's YAML on validation images under known degradations.

    python evaluation/fit_command.py -c configs/ensemble/Digits/ResNet20_gate.yaml --views.adapted adapted/dda/Digits/validation
    python evaluation/fit_command.py -c configs/ensemble/Digits/ResNet20_gate.yaml --views.adapted adapted/dda/Digits/validation \
        --max_loss 2.5 --signals image,change,members

The adapted validation images are made before, under the same degradations (docs/systems/restoration.md). Each rule is
written to the folder `rules` (--rules), where test_ensemble.py finds it.
"""

from __future__ import annotations

import undegrade.utils.quick_start  # noqa: F401  before the rest

# isort: split
import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from annotated_types import Interval
from torch import Tensor

from undegrade.evaluation.config import EvaluationConfig, SystemConfig, expand, fill_names
from undegrade.evaluation.ensemble import Member, Scorer
from undegrade.evaluation.fitted.apply import image_digests, members_in, rule_path, signals_of
from undegrade.evaluation.fitted.gate import Observed, accuracies, fit_gate, guaranteed
from undegrade.evaluation.fitted.guarantee import images_needed
from undegrade.evaluation.fitted.pool import Pool, fit_pool, fit_sides
from undegrade.evaluation.fitted.rule import FittedMember, FittedRule, class_digest, first_other, two_sides, write_rule
from undegrade.evaluation.fitted.signals import GROUPS, member_signals, signal_names
from undegrade.evaluation.opening import member_view, needed_members, open_members, open_source
from undegrade.evaluation.results import percent
from undegrade.utils.command_line import ScriptParser, typed
from undegrade.utils.config import build, dotted_keys, merge, read_all
from undegrade.utils.data.cells import CLEAN, Cell
from undegrade.utils.data.perturbations.registry import find_perturbation
from undegrade.utils.data.perturbations.watermark import WATERMARK
from undegrade.utils.data.sources.image_source import ImageSource
from undegrade.utils.data.sources.readable import without_broken
from undegrade.utils.data.views import check_view
from undegrade.utils.device import choose_device
from undegrade.utils.errors import run_main
from undegrade.utils.progress import progress_bar
from undegrade.utils.provenance import provenance
from undegrade.utils.ranges import Count
from undegrade.utils.runs import find_checkpoint
from undegrade.utils.seeding import numpy_generator

KNOWN = "clean,jpeg,blur,noise,noise+noise+noise,blur+noise,noise+jpeg,blur+noise+jpeg,pixmix"
Points = Annotated[float, Interval(gt=0, lt=100)]


@dataclasses.dataclass(frozen=True)
class Seen:
    """A system on the validation images.

    Attributes:
        logits: [M, N, K] of each cell.
        pixels: [N, S] of each cell, the signals of images.
        labels: int64 [N].
    """

    logits: dict[Cell, Tensor]
    pixels: dict[Cell, Tensor]
    labels: Tensor


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    p = ScriptParser(__doc__, dotted_keys(EvaluationConfig))
    p.add_argument("-c", "--config", nargs="+", required=True, help="YAML of an ensemble; of several the later ones win")
    p.add_argument("-d", "--device", help="cpu, cuda, cuda:N, or GPU numbers such as 0,1")
    p.add_argument("--corruption", help=f"degradations joined by commas, with clean (default: data.corruptions, else {KNOWN})")
    p.add_argument("--dataset", help="data set name or image folder")
    p.add_argument("--limit", type=typed(Count), help="class-balanced subset of so many validation images")
    p.add_argument("--runs", default="runs", help="root of the runs, for checkpoints by name")
    p.add_argument(
        "--max_loss", type=typed(Points),
        help="points of accuracy that a gate may lose: with 95 %% confidence, no more of clean images, nor of degraded ones like "
        "those that it is fitted on (half of the images then fit it, the other half choose its threshold)",
    )  # fmt: skip
    p.add_argument("--signals", default="image,change", help=f"what a gate looks at, joined by commas: {', '.join(GROUPS)}")
    p.add_argument(
        "--check", type=typed(Count),
        help="with --max_loss: also fit on so many random halves of the images, and count how often the others keep the promise",
    )  # fmt: skip
    args, overrides = p.parse(argv)
    if args.check is not None and args.max_loss is None:
        raise ValueError("--check goes with --max_loss, whose promise it checks: add that, or leave it out")
    data = {key: getattr(args, key) for key in ("dataset", "limit") if getattr(args, key) is not None}
    data |= {} if args.corruption is None else {"corruptions": args.corruption.split(",")}
    tree = merge(
        merge({"data": {"split": "validation"}}, read_all(args.config)), merge({"data": data, "runs": args.runs}, overrides)
    )
    names = signal_names(args.signals.split(","))
    fit(build(EvaluationConfig, tree), choose_device(args.device), names, args.max_loss and args.max_loss / 100, args.check)


def fit(
    config: EvaluationConfig, device: torch.device, signals: Sequence[str], max_loss: float | None = None, check: int | None = None
) -> list[Path]:
    """Fit all rules of a configuration; returns their files.

    Args:
        config: of an ensemble.
        device: of its members.
        signals: names, of gates.
        max_loss: share of the images that a gate may lose (None: no promise).
        check: how many random halves the promise is checked on (None: none).

    Raises:
        ValueError: no system has a fitted rule; test images or test corruptions; a gate without
            adapted images; too few images for the promise; and what evaluations raise.
    """
    config = expand(config)
    if config.data.split == "test":
        raise ValueError("data.split test: rules are fitted on validation images, never on test images; leave it out")
    systems = {name: system for name, system in config.systems.items() if system.fitted is not None}
    if not systems:
        raise ValueError("no system has the rule gate or fitted: add one with `rule: gate` and `fitted: <its file>`")
    cells = _known_cells(config)
    config = dataclasses.replace(config, systems=systems)
    used = needed_members(config, cells)
    checkpoints = {n: find_checkpoint(fill_names(config, config.members[n].checkpoint), config.runs) for n in used[cells[0]]}
    for name in checkpoints:
        check_view(member_view(config, name))
    folder = rule_path(config, next(iter(systems.values()))).parent / "validation" if config.cache else None
    source = without_broken(open_source(config, checkpoints), folder)
    if check is not None and max_loss is not None and len(source) < 4 * images_needed(max_loss):
        raise ValueError(
            f"--check fits on a half of the images what the other half judges: {len(source)} validation images are too few, give "
            f"{4 * images_needed(max_loss)} or leave it out"
        )
    members = open_members(config, checkpoints, source, device)
    with progress_bar(total=len(cells) * len(members) * len(source), unit="img", desc="scoring") as bar:
        asked = dict.fromkeys(members, cells)
        scorer = Scorer(folder, config.batch_size, bar.update, protocol=config.protocol, cells=asked)
        fitted = {name: members_in(config, system, members, cells[0]) for name, system in systems.items()}
        others = {name: first_other(found) for name, found in fitted.items()}
        seen = {n: _seen(scorer, members, system, source, cells, signals, others[n]) for n, system in systems.items()}
    fitted_on = {
        "dataset": Path(config.data.dataset).name, "split": config.data.split, "images": len(source),
        "cells": [cell.folder for cell in cells], "pixels": image_digests(source) if source.listing_of is None else [],
    }  # fmt: skip
    paths = []
    for name, system in systems.items():
        common = {
            "members": fitted[name], "classes": class_digest(source.classes),
            "frame": source.frame, "fitted_on": fitted_on, "provenance": provenance(),
        }  # fmt: skip
        rule = _fit(name, system, seen[name], signals, common, max_loss)
        paths.append(rule_path(config, system))
        write_rule(paths[-1], rule)
        if rule.gate is not None:
            _print_gate(name, rule, seen[name])
            if check is not None and max_loss is not None:
                print(_checked(rule, seen[name], signals, max_loss, check))
        parts = zip(system.members, rule.pool.weights, rule.pool.temperatures, strict=True)
        print(f"{name}: " + ", ".join(f"{m} weight {w:.2f} temperature {t:.2f}" for m, w, t in parts))
        print(f"written: {paths[-1]}")
    return paths


def _known_cells(config: EvaluationConfig) -> list[Cell]:
    """Those to fit on."""
    data = config.data if config.data.corruptions else dataclasses.replace(config.data, corruptions=KNOWN.split(","))
    cells = data.cells()
    for cell in cells:
        stages = re.split("[+~]", cell.corruption)
        if unknown := [name for name in stages if find_perturbation(name).by_severity or name == WATERMARK]:
            raise ValueError(
                f"--corruption {cell.corruption}: {unknown[0]} is a corruption of tests, rules are fitted on known degradations "
                f"and their sequences alone, such as {KNOWN}"
            )
    return cells


def _seen(
    scorer: Scorer,
    members: Mapping[str, Member],
    system: SystemConfig,
    source: ImageSource,
    cells: Sequence[Cell],
    signals: Sequence[str],
    other: int,
) -> Seen:
    """`other` is the place of the member whose image is the adapted one."""
    own, logits, pixels = [members[name] for name in system.members], {}, {}
    for cell in cells:
        scorer.prepare(own, cell)
        logits[cell] = torch.stack([scorer.logits(member, cell) for member in own])
        if system.rule == "gate":
            pixels[cell] = signals_of(signals, own[0], own[other], scorer, cell)
    return Seen(logits, pixels, source.labels)


def _fit(
    name: str, system: SystemConfig, seen: Seen, signals: Sequence[str], common: Mapping[str, Any], max_loss: float | None
) -> FittedRule:
    if system.rule == "fitted":
        logits, labels = torch.cat(list(seen.logits.values()), 1), seen.labels.repeat(len(seen.logits))
        return FittedRule("fitted", pool=fit_pool(logits, labels), **common)
    if all(member.kept for member in common["members"].values()):
        raise ValueError(
            f"system {name!r}: a gate chooses between members that see the image as it is, the first one's view and predictor, "
            "and others, and there are no others: add a member with another view"
        )
    order = numpy_generator("gate", len(seen.labels)).permutation(len(seen.labels))
    return _fit_gate(seen, order, signals, max_loss, common)


def _fit_gate(
    seen: Seen, order: np.ndarray, signals: Sequence[str], max_loss: float | None, common: Mapping[str, Any]
) -> FittedRule:
    """A gate from the images at `order`; with a promise, the first half of them fits it, and the
    second chooses its threshold.
    """
    clean = next((cell for cell in seen.logits if cell.corruption == CLEAN), None)
    if max_loss is not None and clean is None:
        raise ValueError("--max_loss is about clean images, too: add clean to --corruption")
    members, fitting = common["members"], order if max_loss is None else order[: len(order) // 2]
    logits = torch.cat([values[:, torch.from_numpy(fitting)] for values in seen.logits.values()], 1)
    labels = seen.labels[torch.from_numpy(fitting)].repeat(len(seen.logits))
    pool = fit_sides(logits, labels, [member.kept for member in members.values()])
    observed = _observed(members, pool, seen, signals)
    gate, promise = fit_gate([values.rows(fitting) for values in observed.values()], signals), None
    if max_loss is not None:
        rest = {cell: values.rows(order[len(fitting) :]) for cell, values in observed.items()}
        assert clean is not None
        gate, promise = guaranteed(gate, rest[clean], [v for cell, v in rest.items() if cell != clean], max_loss)
    return FittedRule("gate", pool=pool, gate=gate, guarantee=promise, **common)


def _observed(members: Mapping[str, FittedMember], pool: Pool, seen: Seen, signals: Sequence[str]) -> dict[Cell, Observed]:
    found = {}
    for cell, logits in seen.logits.items():
        kept, other = two_sides(members, pool, logits)
        every = torch.cat([seen.pixels[cell], member_signals(signals, kept, other)], 1)
        found[cell] = Observed(every, kept, other, seen.labels)
    return found


def _checked(rule: FittedRule, seen: Seen, signals: Sequence[str], max_loss: float, count: int) -> str:
    """On how many random halves of the images the promise, made on them, is kept on the others."""
    common = {"members": rule.members, "classes": rule.classes, "frame": rule.frame, "fitted_on": rule.fitted_on}
    kept, largest = 0, 0.0
    for number in range(count):
        order = numpy_generator("halves", number).permutation(len(seen.labels))
        half = len(order) // 2
        made = _fit_gate(seen, order[:half], signals, max_loss, common)
        assert made.gate is not None
        observed = _observed(made.members, made.pool, seen, signals)
        losses = {}
        for cell, values in observed.items():
            found = accuracies(made.gate, values.rows(order[half:]))
            losses[cell] = found["kept"] - found["gated"]
        degraded = [loss for cell, loss in losses.items() if cell.corruption != CLEAN]
        lost = max([float(np.mean(degraded)) if degraded else 0.0, *(v for cell, v in losses.items() if cell.corruption == CLEAN)])
        kept, largest = kept + (lost <= max_loss), max(largest, lost)
    return (
        f"the promise of at most {percent(100 * max_loss)} points was kept on {kept} of {count} random halves of the images "
        f"(largest loss {percent(100 * largest, digits=2)} points; by chance alone a half may miss it)"
    )


def _print_gate(name: str, rule: FittedRule, seen: Seen) -> None:
    assert rule.gate is not None
    gate, observed = rule.gate, _observed(rule.members, rule.pool, seen, rule.signals)
    width = max(len(cell.folder) for cell in observed)
    print(f"{name}: accuracy in % on {len(seen.labels)} {rule.fitted_on['split']} images, and the share of them that is restored")
    print(f"{'images'.ljust(width)}  as they are  adapted  gated  restored")
    for cell, values in observed.items():
        found = [percent(100 * share) for share in accuracies(gate, values).values()]
        print(f"{cell.folder.ljust(width)}  {found[0]:>11}  {found[1]:>7}  {found[2]:>5}  {found[3]:>8}")
    weights = ", ".join(f"{signal} {weight:+.2f}" for signal, weight in zip(gate.signals, gate.weights, strict=True))
    print(f"weights, in standard deviations: {weights}; intercept {gate.intercept:+.2f}")
    if gate.threshold is None:
        print("no threshold could be shown to keep the promise: nothing is restored")
    elif rule.guarantee is not None:
        print(
            f"promised: at most {percent(100 * rule.guarantee['max_loss'])} points lost; threshold {gate.threshold:+.2f} log odds"
        )


if __name__ == "__main__":
    run_main(main)
