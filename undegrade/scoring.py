"""The accuracy of a system under corruptions, as a table."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from undegrade.evaluation.config import TestDataConfig
from undegrade.evaluation.ensemble import slices
from undegrade.evaluation.results import Result, cell_result, mean_result
from undegrade.system import System
from undegrade.utils.config import build
from undegrade.utils.data.cells import CLEAN, Cell
from undegrade.utils.data.sources.image_source import ImageSource
from undegrade.utils.data.views import RAW, open_view
from undegrade.utils.progress import progress_bar

if TYPE_CHECKING:
    import pandas as pd

_PART = 512  # images that are corrupted at a time


def evaluate(
    system: System,
    data: str | Path = "Digits",
    corruptions: str | Sequence[str] = (CLEAN, "all"),
    severities: int | Sequence[int] = 5,
    *,
    root: str | Path = "data",
    split: str = "test",
    limit: int | None = None,
    constants: str | None = None,
    seed: int = 0,
    progress: bool = False,
) -> pd.DataFrame:
    """Accuracies of a system with 95 % intervals.

    Images are corrupted as test_ensemble.py does it, cut as the system's classifiers want them and
    adapted at once, with noise that is drawn by their pixels; nothing is stored. What
    test_ensemble.py adds: stored images and logits, several systems compared by image, further
    metrics, a report.

    Args:
        system: of `load` or `wrap`. Members that adapt themselves start anew at each corruption.
        data: data set ("Digits", "CIFAR10", "Imagenet", ...) or image folder (`<class>/*`, or
            `<train, val, test>/<class>/*`); its classes are the system's, in their order.
        corruptions: names, "all" for the 15 of ImageNet-C, "clean", degradations and sequences (a
            level is drawn for each image).
        severities: of the corruptions, 1 to 5.
        root: folder of downloaded data sets.
        split: "test", "validation" or "train".
        limit: class-balanced subset of so many images.
        constants: see `corrupt`.
        seed: of the corruption.
        progress: show a bar on standard error.

    Returns:
        A row a cell, then the mean over all corrupted ones: corruption, severity (0: clean; None:
        drawn), n (predictions), accuracy, low, high (in [0, 1]). Intervals are Wilson's, that of
        the mean is clustered by image.

    Raises:
        ValueError, FileNotFoundError: an unknown data set, corruption or severity; files that are
            not there; classes that are not the system's.
    """
    import pandas as pd

    given = {"dataset": str(data), "root": str(root), "split": split, "limit": limit, "constants": constants, "seed": seed}
    names = [corruptions] if isinstance(corruptions, str) else list(corruptions)
    levels = [severities] if isinstance(severities, int) else list(severities)
    config = build(TestDataConfig, {**given, "corruptions": names, "severities": levels})
    if config.has_photographs:
        side, interpolation = system.resize or (None, None)
        config = config.fitted(system.image_size, side, interpolation)
    source = config.open(config.split)
    if list(source.classes) != system.classes:
        raise ValueError(
            f"{source.name} has {len(source.classes)} classes ({', '.join(source.classes[:3])}, ...), the system "
            f"{len(system.classes)} ({', '.join(system.classes[:3])}, ...): name the system's classes as the data set does"
        )
    view, right, rows = open_view(RAW, source, config.seed, config), dict[Cell, np.ndarray](), list[Result]()
    cells = config.cells()
    with progress_bar(total=len(cells), unit="cell", desc="evaluating", disable=not progress) as bar:
        for cell in cells:
            system.reset()
            right[cell] = _right(system, view.source(cell))
            rows.append(cell_result(system.name, source.name, *cell, system.rule.rule, right[cell]))
            bar.update()
    corrupted = {cell: found for cell, found in right.items() if cell.corruption != CLEAN}
    if len(corrupted) > 1:
        rows.append(mean_result(system.name, source.name, system.rule.rule, corrupted))
    table = pd.DataFrame([dataclasses.asdict(row) for row in rows]).rename(columns={"ci95_low": "low", "ci95_high": "high"})
    return table[["corruption", "severity", "n", "accuracy", "low", "high"]]


def _right(system: System, source: ImageSource) -> np.ndarray:
    """Bool [N], whether each image is classified correctly."""
    found = [
        scores.argmax(1)
        for scores in system.scores(
            (source.images(range(part.start, part.stop)) for part in slices(len(source), _PART)), framed=True
        )
    ]
    return (torch.cat(found) == source.labels).numpy()
