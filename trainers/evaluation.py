"""Evaluation of systems on test cells: rows, table, JSON, CSV and plots. A system is members and a rule."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from dataclasses import field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from tqdm import tqdm

from models.ensemble import Member, Scorer
from models.loading import load_classifier
from models.rules import INPUT_RULES, RULES
from utils.checkpoint import file_digest
from utils.choices import check_choice
from utils.data.cells import CLEAN, Cell, open_view, parse_cells, sweep_cells
from utils.data.degradations import DEGRADATIONS
from utils.data.image_source import ImageSource
from utils.data.sources import open_source
from utils.plots import heat_map, save, severity_plot
from utils.results import Result, cell_result, mean_result, paired_difference, write_csv, write_json
from utils.runs import resolve_checkpoint
from utils.tables import table

log = logging.getLogger(__name__)

Hits = dict[Cell, np.ndarray]


@dataclasses.dataclass(frozen=True)
class TestDataConfig:
    """What is evaluated on.

    Attributes:
        dataset: `Digits`, `CIFAR10`, `CIFAR100`, or an image folder.
        root: where downloaded data sets lie.
        split: test | validation (for tuning) | train.
        image_size: side in pixels, for image folders.
        limit: class-balanced subset of so many images.
        corruptions: names; `all` is the 15 of ImageNet-C; degradations get a level drawn for each image; `clean`.
        severities: of the corruptions, 1..5.
        sweep: degradations to be evaluated at every level; `all` for the four.
        constants: set of the corruption constants: cifar | tiny | imagenet (null: by image size).
        seed: of the corruption.
    """

    dataset: str = "Digits"
    root: str = "data"
    split: Literal["test", "validation", "train"] = "test"
    image_size: int | None = None
    limit: int | None = None
    corruptions: list[str] = field(default_factory=list)
    severities: list[int] = field(default_factory=lambda: [1, 2, 3, 4, 5])
    sweep: list[str] = field(default_factory=list)
    constants: Literal["cifar", "tiny", "imagenet"] | None = None
    seed: int = 0

    def cells(self) -> list[Cell]:
        """The cells asked for.

        Raises:
            ValueError: none, or an unknown name.
        """
        swept = [n for name in self.sweep for n in (DEGRADATIONS if name == "all" else [name])]
        for name in swept:
            check_choice(name, DEGRADATIONS, "degradation")
        cells = parse_cells(self.corruptions, self.severities) + [cell for name in swept for cell in sweep_cells(name)]
        if not cells:
            raise ValueError(
                "nothing to evaluate on: name corruptions (data.corruptions, --corruption) or a sweep (data.sweep, --dt)"
            )
        return cells


@dataclasses.dataclass(frozen=True)
class MemberConfig:
    """An ensemble member.

    Attributes:
        checkpoint: file, run folder or run name.
        view: `raw` (corrupted on the fly), a folder of adapted images, or the published `.npy` folder; a name of `views` stands for
            its value.
    """

    checkpoint: str
    view: str = "raw"


@dataclasses.dataclass(frozen=True)
class SystemConfig:
    """A row of the table.

    Attributes:
        members: names of members, in the rule's order.
        rule: see models/rules.py.
        double_softmax: as the reference program computed entropy and confidence.
    """

    members: list[str]
    rule: str = "first"
    double_softmax: bool = False


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """An evaluation YAML.

    Attributes:
        members: by name; `MemberConfig` keys.
        systems: by the name shown in tables; `SystemConfig` keys.
        views: short names of views; `{dataset}` and `{arch}` are replaced here and in the members' checkpoints.
        arch: for `{arch}`.
        data: see TestDataConfig.
        out: folder of results.json, results.csv, plots and the logit cache.
        runs: root of the runs, for checkpoints by name.
        batch_size: images a forward pass.
        cache: keep logits in `<out>/logits`, so that another rule or a second call costs no forward pass.
    """

    members: dict[str, MemberConfig]
    systems: dict[str, SystemConfig]
    views: dict[str, str] = field(default_factory=dict)
    arch: str = "ResNet20"
    data: TestDataConfig = field(default_factory=TestDataConfig)
    out: str = "runs/evaluation"
    runs: str = "runs"
    batch_size: int = 256
    cache: bool = True


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What came out: the rows of the table, and right or wrong for each system, cell and image."""

    rows: list[Result]
    hits: dict[str, Hits]
    members: dict[str, Member]
    source: ImageSource


def check_systems(config: EvaluationConfig) -> None:
    """Raise ValueError on a system with an unknown member or rule, or without members."""
    for name, system in config.systems.items():
        if not system.members:
            raise ValueError(f"system {name!r} has no members: name some of {', '.join(config.members)}")
        for member in system.members:
            check_choice(member, config.members, "member", f"system {name!r}")
        check_choice(system.rule, [*RULES, *INPUT_RULES], "rule", f"system {name!r}")


def evaluate(config: EvaluationConfig, device: torch.device) -> Evaluation:
    """Score every system on every cell and write `<out>/results.json` and its companions; rows are written as cells are done.

    Raises:
        ValueError, FileNotFoundError: see `check_systems`, `TestDataConfig.cells`, `load_classifier`, `open_view`.
    """
    check_systems(config)
    cells, data, out = config.data.cells(), config.data, Path(config.out)
    source = open_source(data.dataset, data.split, data.root, data.image_size, data.limit)
    members = _members(config, source, device)
    dataset = Path(data.dataset).name
    hits: dict[str, Hits] = {name: {} for name in config.systems}
    meta: dict[str, Any] = {"dataset": dataset, "split": data.split, "images": len(source), "seed": data.seed,
                            "constants": data.constants, "members": {n: m.digest for n, m in members.items()}}  # fmt: skip
    with tqdm(
        total=len(cells) * len(members) * len(source), unit="img", desc="scoring", dynamic_ncols=True, mininterval=1.0
    ) as bar:
        scorer = Scorer(out / "logits" if config.cache else None, config.batch_size, bar.update)
        for number, cell in enumerate(cells, 1):
            bar.set_postfix_str(cell.folder)
            for name, system in config.systems.items():
                chosen = [members[m] for m in system.members]
                scores = scorer.scores(system.rule, chosen, cell, system.double_softmax)
                hits[name][cell] = (scores.argmax(1) == source.labels).numpy()
            bar.update(max(0, number * len(members) * len(source) - bar.n))  # cached cells move the bar too
            write_json(out / "results.json", _rows(config, dataset, hits), meta)
    rows = _rows(config, dataset, hits)
    _write_companions(out, rows)
    return Evaluation(rows, hits, members, source)


def _members(config: EvaluationConfig, source: ImageSource, device: torch.device) -> dict[str, Member]:
    used = [name for name in config.members if any(name in system.members for system in config.systems.values())]
    members = {}
    for name in used:
        path = member_checkpoint(config, name)
        classifier = load_classifier(path, config.runs, source.classes).to(device).to(memory_format=torch.channels_last)
        view = open_view(member_view(config, name), source, config.data.seed, config.data.constants)
        members[name] = Member(name, classifier, file_digest(path), view)
    return members


def _fill(config: EvaluationConfig, text: str) -> str:
    return text.replace("{dataset}", Path(config.data.dataset).name).replace("{arch}", config.arch)


def member_checkpoint(config: EvaluationConfig, name: str) -> Path:
    """The checkpoint file of a member."""
    return resolve_checkpoint(_fill(config, config.members[name].checkpoint), config.runs)


def member_view(config: EvaluationConfig, name: str) -> str:
    """The view of a member: `raw` or a folder."""
    view = config.members[name].view
    return _fill(config, config.views.get(view, view))


def _rows(config: EvaluationConfig, dataset: str, hits: dict[str, Hits]) -> list[Result]:
    rows = []
    for name, by_cell in hits.items():
        rule = config.systems[name].rule
        rows += [cell_result(name, dataset, c.corruption, c.severity or 0, rule, right) for c, right in by_cell.items()]
        scored = {(c.corruption, c.severity or 0): right for c, right in by_cell.items() if c.corruption != CLEAN}
        if len(scored) > 1:
            rows.append(mean_result(name, dataset, rule, scored))
    return rows


def _write_companions(out: Path, rows: Sequence[Result]) -> None:
    write_csv(out / "results.csv", rows)
    save(heat_map(rows), out / "heat_map.png")
    save(severity_plot(rows), out / "severity.png")


def print_outcome(evaluation: Evaluation, out: str) -> None:
    """The table on standard output, and what each system gains over the first (paired by image)."""
    print(table(evaluation.rows))
    for line in gains(evaluation.hits):
        print(line)
    print(f"written: {out}/results.json, results.csv, heat_map.png, severity.png")


def gains(hits: dict[str, Hits]) -> list[str]:
    """`B minus A: +x points [low, high]` for every system B against the first, A, over all corrupted cells."""
    first, *others = hits
    lines = []
    for other in others:
        cells = [c for c in hits[first] if c.corruption != CLEAN]
        if cells:
            a, b = ({(c.corruption, c.severity or 0): hits[s][c] for c in cells} for s in (other, first))
            difference, low, high = (100 * v for v in paired_difference(a, b))
            lines.append(f"{other} minus {first}: {difference:+.1f} points, 95 % interval [{low:+.1f}, {high:+.1f}]")
    return lines
