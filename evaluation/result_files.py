"""The files of an evaluation: `results.json` (what all rows are of, and a row a line),
`results.csv`, and `correct.npz`, which images each row has right. Results of one configuration come
together in one folder, those of another are refused.
"""

from __future__ import annotations

import csv
import io
import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from undegrade.evaluation.results import CLEAN, MEAN, Result, mean_result
from undegrade.utils.data.cells import Cell, level_text
from undegrade.utils.files import write_atomic
from undegrade.utils.yaml_trees import merge

log = logging.getLogger(__name__)

RESULTS, CORRECT = "results.json", "correct.npz"
_BY_NAME = ("members", "views", "systems")  # of what all rows are of: results with further names come to them
_MEND = "choose another --out, or start anew there with --overwrite true"


class ResultFiles:
    """The rows of a folder, those of earlier evaluations of the same configuration included.

    Args:
        out: the folder.
        meta: what the rows to come are of. `configuration` and `provenance` (a list) say how they
            were made and may differ from those of earlier rows; `members`, `views` and `systems`
            may have further names; all else must be the same.
        overwrite: leave out what is there; it is replaced by the first `write`.

    Raises:
        ValueError: there are results of another configuration (names what differs), or files that
            are damaged.
    """

    def __init__(self, out: Path, meta: Mapping[str, Any], overwrite: bool = False) -> None:
        self.out, self.meta = out, json.loads(json.dumps(meta))
        self.rows: dict[tuple[str, Cell], Result] = {}
        self.correct: dict[str, dict[Cell, np.ndarray]] = {}
        path = out / RESULTS
        if overwrite or not path.is_file():
            return
        rows, there = read_json(path)
        _check_same(path, there, self.meta)
        right = read_correct(out / CORRECT, rows)
        for row in rows:
            if row.corruption != MEAN:
                self.add(row, right[row.system, row.corruption, row.severity])
        for key in (*_BY_NAME, "configuration"):
            self.meta[key] = merge(there.get(key, {}), self.meta.get(key, {}))
        earlier = there.get("provenance", [])
        self.meta["provenance"] = [*earlier, *(entry for entry in self.meta["provenance"] if entry not in earlier)]
        if self.meta["provenance"] != earlier:
            log.warning("%s has rows that another version or machine made: see its `provenance`", path)
        log.info("%s: %d rows of the same configuration are there, what is evaluated now joins them", path, len(self.rows))

    def add(self, row: Result, right: np.ndarray) -> None:
        """Take a row, in the place of an earlier one of its system and cell.

        Args:
            row: of a cell.
            right: bool [n], which images are right.
        """
        cell = Cell(row.corruption, row.severity)
        self.rows[row.system, cell] = row
        self.correct.setdefault(row.system, {})[cell] = right

    def with_means(self) -> list[Result]:
        """The rows system by system, each system's mean over its degraded cells at its end."""
        out = []
        for name, by_cell in self.correct.items():
            own = [self.rows[name, cell] for cell in by_cell]
            degraded = {cell: right for cell, right in by_cell.items() if cell.corruption != CLEAN}
            out += own
            if len(degraded) > 1:
                out.append(mean_result(name, own[0].dataset, own[0].rule, degraded))
        return out

    def write(self, finished: bool = False) -> list[Result]:
        """Write all files and return the rows; those of means only when the evaluation has
        finished.
        """
        rows = self.with_means() if finished else list(self.rows.values())
        places = [(name, cell) for name, by_cell in self.correct.items() for cell in by_cell]
        buffer = io.BytesIO()
        np.savez(
            buffer,
            rows=np.array([json.dumps([name, *cell]) for name, cell in places]),
            bits=np.packbits([self.correct[name][cell] for name, cell in places], axis=1),
        )
        write_atomic(self.out / CORRECT, buffer.getvalue())  # before the rows, which need it
        write_json(self.out / RESULTS, rows, self.meta)
        write_csv(self.out / "results.csv", rows)
        return rows


def write_json(path: str | os.PathLike[str], rows: Sequence[Any], meta: Mapping[str, Any]) -> None:
    """Write rows, dataclasses, and `meta` atomically, one row a line. The same rows and meta give
    the same bytes: keep dates and durations out.

    Raises:
        ValueError: a number is not finite.
        TypeError: `meta` holds what JSON cannot.
    """
    lines = ",\n  ".join(json.dumps(vars(row), ensure_ascii=False, allow_nan=False) for row in rows)
    head = json.dumps(dict(meta), ensure_ascii=False, allow_nan=False, sort_keys=True)
    write_atomic(path, f'{{\n "meta": {head},\n "rows": [\n  {lines}\n ]\n}}\n')


@dataclass(frozen=True)
class _Content:
    """A results file."""

    __pydantic_config__ = {"extra": "forbid"}
    meta: dict[str, Any]
    rows: list[Result]


def read_json(path: str | os.PathLike[str]) -> tuple[list[Result], dict[str, Any]]:
    """(rows, meta) of a file of `write_json`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the content is not what `write_json` writes: says where.
    """
    import pydantic  # see utils.config

    try:
        content = pydantic.TypeAdapter(_Content).validate_json(Path(path).read_bytes(), strict=True)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        reason = " ".join(filter(None, [".".join(map(str, first["loc"])), first["msg"]]))
        raise ValueError(f"{path} is no results file ({reason}): remove it and write it again with the evaluation") from error
    return content.rows, content.meta


def write_csv(path: str | os.PathLike[str], rows: Sequence[Result]) -> None:
    """Write the rows atomically as CSV: the names of the fields and of all metrics, then one line a
    row.
    """
    text = io.StringIO()
    names = [f.name for f in fields(Result)][:-1] + list(dict.fromkeys(name for row in rows for name in row.metrics))
    writer = csv.DictWriter(text, names, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows({**vars(row), **row.metrics} for row in rows)
    write_atomic(path, text.getvalue())


def _check_same(path: Path, there: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    """Raise ValueError unless rows of both may stand in one file."""
    pairs = {key: (there.get(key), here.get(key)) for key in {**there, **here} if key not in ("configuration", "provenance")}
    for key in _BY_NAME:
        first, second = (value or {} for value in pairs.pop(key, ({}, {})))
        pairs |= {f"{key}.{name}": (first[name], second[name]) for name in first if name in second}
    differing = [f"{key} is {old} there and {new} here" for key, (old, new) in pairs.items() if old != new]
    if differing:
        raise ValueError(f"{path} holds results of another configuration ({'; '.join(differing[:3])}): {_MEND}")


def read_correct(path: Path, rows: Sequence[Result]) -> dict[tuple[str, str, float | None], np.ndarray]:
    """Which images each row of a cell has right, by system, corruption and severity.

    Raises:
        ValueError: missing, damaged, or of other rows.
    """
    try:
        with np.load(path) as stored:
            places = [tuple(json.loads(str(text))) for text in stored["rows"]]
            bits = dict(zip(places, stored["bits"], strict=True))
        found = {}
        for row in rows:
            if row.corruption != MEAN:
                place = row.system, row.corruption, row.severity
                found[place] = np.unpackbits(bits[place], count=row.n).astype(bool)
                if found[place].sum() != row.correct or len(bits[place]) != (row.n + 7) // 8:
                    raise ValueError(f"it has another count for {row.system}, {row.corruption} {level_text(row.severity)}")
    except Exception as error:  # a damaged archive raises almost any of them
        raise ValueError(f"{path} does not go with the rows of {RESULTS} ({type(error).__name__}: {error}): {_MEND}") from error
    return found
