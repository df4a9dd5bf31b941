"""What a run writes while it goes: metrics.jsonl, TensorBoard events, and lines on the console
above the progress bar.
"""

from __future__ import annotations

import json
import logging
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from tqdm import tqdm

from undegrade.utils.files import write_atomic

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


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


class RunLog:
    """metrics.jsonl and TensorBoard of one run; does nothing when `folder` is None (other ranks).

    On resume, rows of epochs that will be run again are dropped, so that each epoch stands in the
    file once.
    """

    def __init__(self, folder: Path | None, resume_epoch: int = 0, tensorboard: bool = True) -> None:
        self._file: TextIO | None = None
        self._writer: SummaryWriter | None = None
        if folder is None:
            return
        path = folder / "metrics.jsonl"
        rows = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        kept = [row for row in rows if row.endswith("}") and json.loads(row)["epoch"] <= resume_epoch]  # a kill may cut the last
        write_atomic(path, "".join(row + "\n" for row in kept))
        self._file = path.open("a", encoding="utf-8")
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(folder))

    def write(self, epoch: int, step: int, metrics: Mapping[str, float]) -> None:
        """One row: epoch (1-based), optimiser steps done, and the metrics (`train/loss`,
        `validation/accuracy`, ...).
        """
        if self._file is None:
            return
        row = {"epoch": epoch, "step": step, **{k: round(float(v), 6) for k, v in metrics.items()}}
        self._file.write(json.dumps(row, allow_nan=True) + "\n")
        self._file.flush()
        if self._writer is not None:
            for name, value in metrics.items():
                if math.isfinite(value):
                    self._writer.add_scalar(name, value, step)
            self._writer.flush()

    def close(self) -> None:
        """Close the files."""
        for handle in (self._file, self._writer):
            if handle is not None:
                handle.close()
