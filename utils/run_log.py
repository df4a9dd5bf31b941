"""What a run writes while it goes: metrics.jsonl, and lines on the console above the progress
bar.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TextIO

from tqdm import tqdm

from undegrade.utils.files import write_atomic

log = logging.getLogger(__name__)


class _TqdmHandler(logging.Handler):
    """Log lines that do not tear the progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stderr)


def setup_logging(quiet: bool = False) -> None:
    """Console logging for scripts: messages only, WARNING and above named as such."""
    handler = _TqdmHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    logging.basicConfig(level=logging.WARNING if quiet else logging.INFO, handlers=[handler], force=True)
    for noisy in ("accelerate", "PIL", "matplotlib", "httpx"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


def read_rows(path: Path, number: str | None = None) -> list[dict[str, Any]]:
    """Rows of a JSON-lines file, none if it is not there. A last line that a kill cut off is left
    out, with a message.

    Args:
        path: the file.
        number: an entry of each row that must be a number.

    Raises:
        ValueError: another line is damaged; names it.
    """
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n") if path.exists() else []
    rows: list[dict[str, Any]] = []
    for place, line in enumerate(lines, 1):
        try:
            row = json.loads(line) if line else None
            if row is not None and not (isinstance(row, dict) and (number is None or isinstance(row.get(number), int))):
                raise ValueError("not a row of this file")
        except (ValueError, RecursionError) as error:
            if place == len(lines):  # whole lines end with a line break
                log.warning("%s: its last line was cut off, and is left out", path)
                break
            raise ValueError(f"{path}, line {place} is damaged ({error}): remove that line, or the file") from error
        if row is not None:
            rows.append(row)
    return rows


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Replace a JSON-lines file by these rows, in one step."""
    write_atomic(path, "".join(json.dumps(row) + "\n" for row in rows))


class RunLog:
    """metrics.jsonl of one run; does nothing when `folder` is None (other ranks).

    On resume, rows of epochs that will be run again are dropped, so that each epoch stands in the
    file once.
    """

    def __init__(self, folder: Path | None, resume_epoch: int = 0) -> None:
        self._file: TextIO | None = None
        if folder is None:
            return
        path = folder / "metrics.jsonl"
        kept = [row for row in read_rows(path, "epoch") if row["epoch"] <= resume_epoch]
        if len(kept) < resume_epoch:
            log.warning("%s lacks %d of the %d epochs that are done", path, resume_epoch - len(kept), resume_epoch)
        write_rows(path, kept)
        self._file = path.open("a", encoding="utf-8")

    def write(self, epoch: int, step: int, metrics: Mapping[str, float]) -> None:
        """One row: epoch (1-based), optimiser steps done, and the metrics (`train/loss`,
        `validation/accuracy`, ...).
        """
        if self._file is None:
            return
        row = {"epoch": epoch, "step": step, **{k: round(float(v), 6) for k, v in metrics.items()}}
        self._file.write(json.dumps(row, allow_nan=True) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())  # before the state that follows it

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
