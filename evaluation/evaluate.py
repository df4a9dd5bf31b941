"""Evaluation of systems on test cells: rows, table, JSON, CSV and plots. A system is members and a
rule.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from undegrade.evaluation.config import EvaluationConfig, expand, fill_names, members_of
from undegrade.evaluation.ensemble import Member, Scorer
from undegrade.evaluation.report.plots import heat_map, severity_plot
from undegrade.evaluation.results import Result, cell_result, mean_result, paired_difference, write_csv, write_json
from undegrade.evaluation.robustness import CARTON, calibration_error, carton_metrics, is_imagenet, summary_table
from undegrade.evaluation.tables import table
from undegrade.models.classification.classifier import Classifier
from undegrade.models.classification.loading import load_classifier
from undegrade.utils.checkpoint import file_digest
from undegrade.utils.data.cells import CLEAN, Cell
from undegrade.utils.data.perturbations.watermark import WATERMARK
from undegrade.utils.data.sources.image_source import ImageSource
from undegrade.utils.data.views import check_view, open_view
from undegrade.utils.figures import save
from undegrade.utils.files import write_atomic
from undegrade.utils.runs import find_checkpoint

log = logging.getLogger(__name__)

_WRITE_EVERY = 5.0  # seconds: the file is written whole, and a cached cell takes less time than that

Hits = dict[Cell, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What came out: the rows of the table, and right or wrong for each system, cell and image;
    `config` with all members.

    `members` and their `checkpoints` are those that some system has on some cell.
    """

    config: EvaluationConfig
    rows: list[Result]
    hits: dict[str, Hits]
    members: dict[str, Member]
    checkpoints: dict[str, Path]
    source: ImageSource


def evaluate(config: EvaluationConfig, device: torch.device) -> Evaluation:
    """Score every system on every cell and write `<out>/results.json` and its companions; rows
    every few seconds, as they come.

    Raises:
        ValueError, FileNotFoundError: see `expand`, `TestDataConfig.cells`, `load_classifier`,
            `open_view`.
    """
    config = expand(config)
    cells, data, out = config.data.cells(), config.data, Path(config.out)
    for name, system in config.systems.items():
        if not any(members_of(system, cell, config.members) for cell in cells):
            raise ValueError(f"system {name!r} has no member for any of the cells {', '.join(c.folder for c in cells[:5])}")
    needed = {cell: [n for n in config.members if _needs(config, cell, n)] for cell in cells}
    used = [name for name in config.members if any(name in names for names in needed.values())]
    checkpoints = {n: find_checkpoint(fill_names(config, config.members[n].checkpoint), config.runs) for n in used}
    for name in used:
        check_view(member_view(config, name))
    dataset, source = Path(data.dataset).name, data.open(data.split)
    members = _members(config, checkpoints, source, device)
    hits: dict[str, Hits] = {name: {} for name in config.systems}
    meta: dict[str, Any] = {"dataset": dataset, "split": data.split, "images": len(source), "seed": data.seed,
                            "constants": data.constants, "members": {n: m.digest for n, m in members.items()}}  # fmt: skip
    if config.degradations:
        meta["degradations"] = config.degradations
    for key, changed in data.changed().items():
        meta[key] = changed
        log.warning("degradations are computed with data.%s: %s", key, changed)
    total = sum(map(len, needed.values())) * len(source)
    in_w = CARTON in source.classes and any(cell.corruption == WATERMARK for cell in cells)
    carton = source.classes.index(CARTON) if in_w else None
    rows: list[Result] = []
    bar = tqdm(total=total, unit="img", desc="scoring", dynamic_ncols=True, mininterval=1.0)
    with bar, _written(out / "results.json", meta) as keep:
        scorer = Scorer(out / "logits" if config.cache else None, config.batch_size, bar.update)
        done = 0
        for cell in cells:
            bar.set_postfix_str(cell.folder)
            scorer.prepare([members[n] for n in needed[cell]], cell)
            for name, system in config.systems.items():
                chosen = [members[m] for m in members_of(system, cell, members)]
                if chosen:
                    scores = scorer.scores(system.rule, chosen, cell, system.double_softmax)
                    right = hits[name][cell] = (scores.argmax(1) == source.labels).numpy()
                    further = _further_metrics(scores, source.labels, carton)
                    rows.append(cell_result(name, dataset, cell.corruption, cell.severity or 0, system.rule, right, **further))
            done += len(needed[cell]) * len(source)
            bar.update(max(0, done - bar.n))  # cached cells move the bar too
            keep(rows)
    rows = _with_means(config, dataset, rows, hits)
    write_json(out / "results.json", rows, meta)
    _write_companions(out, rows)
    if config.cache:  # what the rows of the logit files are
        buffer = io.BytesIO()
        np.savez(buffer, keys=np.array(source.keys), labels=source.labels.numpy())
        write_atomic(out / "logits" / "images.npz", buffer.getvalue())
    return Evaluation(config, rows, hits, members, checkpoints, source)


@contextlib.contextmanager
def _written(path: Path, meta: dict[str, Any]) -> Iterator[Callable[[list[Result]], None]]:
    """What to call with the rows so far after each cell: they are written every few seconds, and
    when an error ends the block.
    """
    kept: list[Result] = []
    last = time.monotonic()

    def keep(rows: list[Result]) -> None:
        nonlocal last
        kept[:] = rows
        if time.monotonic() - last > _WRITE_EVERY:
            write_json(path, kept, meta)
            last = time.monotonic()

    try:
        yield keep
    finally:
        if kept:
            write_json(path, kept, meta)


def _further_metrics(scores: Tensor, labels: Tensor, carton: int | None) -> dict[str, float]:
    """Top-5 accuracy (of more than 5 classes), calibration error and `carton_metrics` of scores [N,
    K], none of them negative.
    """
    probabilities = (scores / scores.sum(1, keepdim=True)).numpy()
    metrics = {"calibration_error": calibration_error(probabilities, labels.numpy())}
    if scores.shape[1] > 5:
        metrics["top5"] = float((scores.topk(5).indices == labels[:, None]).any(1).double().mean())
    if carton is not None:
        metrics |= carton_metrics(probabilities, labels.numpy(), carton)
    return metrics


def _needs(config: EvaluationConfig, cell: Cell, member: str) -> bool:
    return any(member in members_of(system, cell, config.members) for system in config.systems.values())


def _members(
    config: EvaluationConfig, checkpoints: dict[str, Path], source: ImageSource, device: torch.device
) -> dict[str, Member]:
    members, views = {}, {}
    for name, path in checkpoints.items():
        given, folder = config.members[name], member_view(config, name)
        if folder not in views:
            views[folder] = open_view(folder, source, config.data.seed, config.data)
        network = [file_digest(path), *(str(value) for value in (given.arch, given.mean, given.std) if value is not None)]
        classifier = member_classifier(config, name, path, source.classes, device)
        members[name] = Member(name, classifier, " ".join(network), views[folder])
    return members


def member_classifier(
    config: EvaluationConfig, name: str, path: Path, classes: Sequence[str] | None, device: torch.device
) -> Classifier:
    """The classifier of a member on its device; see `load_classifier`."""
    given = config.members[name]
    classifier = load_classifier(path, config.runs, classes, given.arch, given.mean, given.std)
    return classifier.to(device).to(memory_format=torch.channels_last)


def member_view(config: EvaluationConfig, name: str) -> str:
    """The view of a member: `raw` or a folder."""
    view = config.members[name].view
    return fill_names(config, config.views.get(view, view))


def _with_means(config: EvaluationConfig, dataset: str, rows: list[Result], hits: dict[str, Hits]) -> list[Result]:
    """The rows system by system, each system's mean over its cells at its end."""
    out = []
    for name, by_cell in hits.items():
        out += [row for row in rows if row.system == name]
        scored = {(c.corruption, c.severity or 0): right for c, right in by_cell.items() if c.corruption != CLEAN}
        if len(scored) > 1:
            out.append(mean_result(name, dataset, config.systems[name].rule, scored))
    return out


def _write_companions(out: Path, rows: Sequence[Result]) -> None:
    write_csv(out / "results.csv", rows)
    save(heat_map(rows), out / "heat_map.png")
    save(severity_plot(rows), out / "severity.png")


def print_outcome(evaluation: Evaluation) -> None:
    """The table on standard output, and what each system gains over the first (paired by image)."""
    print(table(evaluation.rows))
    print(summary_table(evaluation.rows, is_imagenet(evaluation.source.classes)))
    for line in gains(evaluation.hits):
        print(line)
    print(f"written: {evaluation.config.out}/results.json, results.csv, heat_map.png, severity.png")


def gains(hits: dict[str, Hits]) -> list[str]:
    """`B minus A: +x points [low, high]` for every system B against the first, A, over the
    corrupted cells that both have.
    """
    first, *others = hits
    lines = []
    for other in others:
        cells = [c for c in hits[first] if c.corruption != CLEAN and c in hits[other]]
        if cells:
            a, b = ({(c.corruption, c.severity or 0): hits[s][c] for c in cells} for s in (other, first))
            difference, low, high = (100 * v for v in paired_difference(a, b))
            lines.append(f"{other} minus {first}: {difference:+.1f} points, 95 % interval [{low:+.1f}, {high:+.1f}]")
    return lines
