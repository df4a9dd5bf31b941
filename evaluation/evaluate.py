"""Evaluation of systems on test cells: rows, table, JSON, CSV and plots. A system is members and a
rule.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from undegrade.evaluation.config import EvaluationConfig, SystemConfig, expand, fill_names, members_of
from undegrade.evaluation.costs import Cost, PredictorCost, cost_lines, system_costs
from undegrade.evaluation.ensemble import Member, Scorer, check_rule
from undegrade.evaluation.fitted.apply import check_rules, fitted_scores, read_rules
from undegrade.evaluation.fitted.rule import FittedRule
from undegrade.evaluation.logit_store import keep_listing, stored_bytes
from undegrade.evaluation.opening import member_view, needed_members, open_members, open_source
from undegrade.evaluation.predictors import Frozen
from undegrade.evaluation.report.save_plots import save_plots
from undegrade.evaluation.result_files import ResultFiles
from undegrade.evaluation.results import Result, cell_result, difference_words
from undegrade.evaluation.robustness import CARTON, collapsed, further_metrics, outcomes, outside_of_mce, summary_table
from undegrade.evaluation.tables import table
from undegrade.utils.config import to_tree
from undegrade.utils.data.cells import CLEAN, Cell
from undegrade.utils.data.perturbations.watermark import WATERMARK
from undegrade.utils.data.sources.image_source import ImageSource
from undegrade.utils.data.sources.readable import without_broken
from undegrade.utils.data.views import check_view
from undegrade.utils.interruption import Interrupted, Interruption
from undegrade.utils.lock import locked
from undegrade.utils.progress import progress_bar
from undegrade.utils.provenance import listing_digest, provenance
from undegrade.utils.runs import find_checkpoint

log = logging.getLogger(__name__)

_LARGE = 1e9  # bytes of logits that are worth a line
_WRITE_EVERY = 5.0  # seconds: the file is written whole, and a cached cell takes less time than that


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What came out.

    Attributes:
        config: with all members.
        rows: of the table, those of earlier evaluations in the same folder included.
        correct: of each system, cell and image of them whether it was classified correctly.
        cells: that were evaluated now.
        members: those that some system has on some cell.
        checkpoints: theirs.
        source: the images.
        scorer: knows the logits.
        costs: what the adaptation of the images of systems took, where that is known.
        adapting: members whose classifier is adapted, and what that takes.
        plots: names of the files.
        rules: of systems with a fitted rule.
    """

    config: EvaluationConfig
    rows: list[Result]
    correct: dict[str, dict[Cell, np.ndarray]]
    cells: list[Cell]
    members: dict[str, Member]
    checkpoints: dict[str, Path]
    source: ImageSource
    scorer: Scorer
    costs: dict[str, Cost]
    adapting: dict[str, PredictorCost]
    plots: list[str]
    rules: dict[str, FittedRule]


def evaluate(config: EvaluationConfig, device: torch.device, interruption: Interruption | None = None) -> Evaluation:
    """Score every system on every cell and write `<out>/results.json` and its companions; rows
    every few seconds, as they come.

    Args:
        config: what is evaluated.
        device: of the members.
        interruption: asked after each batch.

    Raises:
        Interrupted: the rows so far are written, and the logits of the cells that they are of.
        ValueError, FileNotFoundError: see `expand`, `TestDataConfig.cells`, `load_classifier`,
            `open_view`, `check_rule`, `ResultFiles`; or another process writes into `out`.
    """
    config = expand(config)
    rules = read_rules(config)
    needed = needed_members(config, config.data.cells())
    used = [name for name in config.members if any(name in names for names in needed.values())]
    checkpoints = {n: find_checkpoint(fill_names(config, config.members[n].checkpoint), config.runs) for n in used}
    for name in used:
        check_view(member_view(config, name))
    out = Path(config.out)
    source = without_broken(open_source(config, checkpoints), out / "logits" if config.cache else None)
    members = open_members(config, checkpoints, source, device)
    for name, system in config.systems.items():
        for cell in needed:
            check_rule(system.rule, {m: members[m].predictor for m in members_of(system, cell, members)}, name)
    check_rules(rules, config, members, source, next(iter(needed)))
    with locked(out, "evaluation"):
        files = ResultFiles(out, result_facts(config, members, source, list(needed), rules), config.overwrite)
        if config.cache:
            keep_listing(out / "logits", source, config.overwrite)
            asked = [members[name].predictor for names in needed.values() for name in names]
            size = sum(stored_bytes(len(source), predictor.num_classes, _exact(config)) for predictor in asked)
            if size > _LARGE:
                log.info("logits are kept in %s/logits, %.1f GB in all (--cache false keeps none)", out, size / 1e9)
        scorer = _score(config, needed, members, source, files, interruption or Interruption(), rules)
        rows = files.write(finished=True)
        seen = {name: member_view(config, name) for name in used}
        of = {name: [m for cell in needed for m in members_of(system, cell, members)] for name, system in config.systems.items()}
        adapting = {name: scorer.cost(member) for name, member in members.items() if not isinstance(member.predictor, Frozen)}
        costs = system_costs(of, seen, {name: cost.ms for name, cost in adapting.items()})
        plots = save_plots(out, rows, costs)
    return Evaluation(
        config, rows, files.correct, list(needed), members, checkpoints, source, scorer, costs, adapting, plots, rules
    )


def result_facts(
    config: EvaluationConfig,
    members: Mapping[str, Member],
    source: ImageSource,
    cells: Sequence[Cell],
    rules: Mapping[str, FittedRule] | None = None,
) -> dict[str, Any]:
    """What the rows of an evaluation are of, and how they were made: `meta` of `ResultFiles`."""
    data, moving = config.data, [member for member in members.values() if member.predictor.stateful]
    tree = to_tree(config)
    del tree["overwrite"]
    for key in ("corruptions", "severities", "sweep"):  # the rows say it, those of several evaluations together
        del tree["data"][key]
    facts: dict[str, Any] = {
        "dataset": data.dataset, "split": data.split, "images": len(source), "classes": len(source.classes), "frame": source.frame,
        "listing": listing_digest(source.keys, source.labels), "seed": data.seed, "constants": data.constants, **data.changed(),
        "members": {name: member.digest for name, member in members.items()},
        "views": {name: member_view(config, name) for name in members},
        "systems": {name: dataclasses.asdict(system) for name, system in config.systems.items()},
        "configuration": tree, "provenance": [provenance()],
    }  # fmt: skip
    if moving:
        facts |= {"batch_size": config.batch_size, "protocol": config.protocol.key}
    if moving and config.protocol.shifts != "reset":
        facts["cells"] = [cell.folder for cell in cells]  # their order matters
    if rules:
        facts["fitted"] = {name: rule.digest for name, rule in rules.items()}
    if config.degradations:
        facts["degradations"] = config.degradations
    return facts


def _score(
    config: EvaluationConfig,
    needed: Mapping[Cell, list[str]],
    members: Mapping[str, Member],
    source: ImageSource,
    files: ResultFiles,
    interruption: Interruption,
    rules: Mapping[str, FittedRule],
) -> Scorer:
    """Go through the cells in their order; rows so far are written every few seconds and when an
    error ends it.
    """
    dataset, out = Path(config.data.dataset).name, Path(config.out)
    for key, changed in config.data.changed().items():
        log.warning("degradations are computed with data.%s: %s", key, changed)
    in_w = CARTON in source.classes and any(cell.corruption == WATERMARK for cell in needed)
    carton = source.classes.index(CARTON) if in_w else None
    done, total, added, last = 0, sum(map(len, needed.values())) * len(source), 0, time.monotonic()
    bar = progress_bar(total=total, unit="img", desc="scoring")

    def on_images(count: int) -> None:
        bar.update(count)
        if interruption.due:
            raise Interrupted(f"{interruption.reason} in {bar.n} of {total} images, the rows of whole cells are in {out}")

    cells = {member: [cell for cell, names in needed.items() if member in names] for member in members}
    cache = out / "logits" if config.cache else None
    scorer = Scorer(cache, config.batch_size, on_images, _exact(config), config.protocol, cells)
    try:
        for cell, names in needed.items():
            bar.set_postfix_str(cell.folder)
            scorer.prepare([members[n] for n in names], cell)
            for name, system in config.systems.items():
                if chosen := [members[m] for m in members_of(system, cell, members)]:
                    scores, restored = system_scores(scorer, system, rules.get(name), chosen, cell)
                    found = outcomes(scores, source.labels, carton)
                    metrics = further_metrics(found, source.labels.numpy(), carton) | restored
                    files.add(cell_result(name, dataset, *cell, system.rule, found.right, metrics), found.right)
                    added += 1
            done += len(names) * len(source)
            bar.update(max(0, done - bar.n))  # cached cells move the bar too
            if time.monotonic() - last > _WRITE_EVERY:
                files.write()
                last = time.monotonic()
    except BaseException:
        if added:
            files.write()
        raise
    finally:
        bar.close()
    return scorer


def system_scores(
    scorer: Scorer, system: SystemConfig, rule: FittedRule | None, members: Sequence[Member], cell: Cell
) -> tuple[Iterator[Tensor], dict[str, float]]:
    """Scores of a system on a cell, some images at a time, and what share a gate restores."""
    if rule is None:
        return scorer.scores(system.rule, members, cell, system.double_softmax), {}
    scores, restored = fitted_scores(rule, members, scorer, cell)
    return scores, {} if restored is None else {"restored": float(restored.float().mean())}


def _exact(config: EvaluationConfig) -> bool:
    """Whether logits need all their digits: `double_softmax` decides by the last of float32."""
    return any(system.double_softmax for system in config.systems.values())


def print_outcome(evaluation: Evaluation, report: str | None = None) -> None:
    """The table on standard output, and what each system gains over the first (paired by image);
    `report`: an HTML file to be written, too.
    """
    print(table(evaluation.rows))
    source = evaluation.source
    print(summary_table(evaluation.rows, outside_of_mce(source.classes, source.image_size, evaluation.config.data.constants)))
    for line in gains(evaluation.correct):
        print(line)
    for line in [*cost_lines(evaluation.costs), *collapsed(evaluation.rows, len(source.classes))]:
        print(line)
    for name, cost in evaluation.adapting.items():
        print(f"{name}: {cost.moved:,} numbers of the classifier move, {cost.ms:.1f} ms an image")
    print(f"written: {evaluation.config.out}/{', '.join(['results.json', 'results.csv', *evaluation.plots])}")
    if report is not None:
        from undegrade.evaluation.write_report import write_evaluation_report  # half a second, with matplotlib

        write_evaluation_report(report, evaluation)
        print(f"report: {report}")


def gains(correct: Mapping[str, Mapping[Cell, np.ndarray]]) -> list[str]:
    """`B minus A: +x points [low, high]` for every system B against the first, A, over the
    corrupted cells that both have.
    """
    first, *others = correct
    lines = []
    for other in others:
        cells = [c for c in correct[first] if c.corruption != CLEAN and c in correct[other]]
        if cells:
            a, b = ({c: correct[s][c] for c in cells} for s in (other, first))
            lines.append(f"{other} minus {first}: {difference_words(a, b, ', 95 % interval')}")
    return lines
