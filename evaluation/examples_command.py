"""A figure of a finished evaluation: for each corruption a typical test image, degraded and adapted,
with what the first and the best system say of it.

    python evaluation/examples_command.py runs/demo --corruption gaussian_noise,impulse_noise,fog --out before_after.png

The columns are headed by the accuracies of both systems. Typical is, of the four outcomes that an
image can have (either system right or wrong), the most frequent one under that corruption. Of its
images the first is shown, in the order of the data set, in which each column begins at a place of its
own: nothing is picked by hand. Logits are those that the evaluation stored in the folder.
"""

from __future__ import annotations

import undegrade.utils.quick_start  # noqa: F401  before the rest

# isort: split
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from undegrade.evaluation.config import EvaluationConfig, members_of
from undegrade.evaluation.evaluate import Evaluation, evaluate
from undegrade.evaluation.report.plots_pictures import Picture, image_grid
from undegrade.evaluation.result_files import RESULTS, read_json
from undegrade.evaluation.results import percent
from undegrade.evaluation.write_report import answer_of, first_and_best, pixels_of
from undegrade.utils.choices import check_choice
from undegrade.utils.command_line import ScriptParser
from undegrade.utils.config import build, merge
from undegrade.utils.data.cells import Cell, parse_severities
from undegrade.utils.data.sources.class_names import class_words
from undegrade.utils.device import choose_device
from undegrade.utils.errors import run_main
from undegrade.utils.figures import save


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    p = ScriptParser(__doc__)
    p.add_argument("folder", help="of an evaluation: where its results.json lies")
    p.add_argument("--corruption", required=True, help="a column for each, joined by commas")
    p.add_argument("--severity", default="5", help="of them (5)")
    p.add_argument("--system", help="the second system (default: the best one)")
    p.add_argument("--out", required=True, help="the figure, such as before_after.png")
    args, _ = p.parse(argv)
    _, meta = read_json(Path(args.folder) / RESULTS)
    data = {"corruptions": args.corruption.split(","), "severities": parse_severities(args.severity)}
    config = build(EvaluationConfig, merge(meta["configuration"], {"data": data, "out": args.folder}))
    evaluation = evaluate(config, choose_device("cpu"))
    save(examples(evaluation, args.system), args.out)
    print(f"written: {args.out}")


def examples(evaluation: Evaluation, system: str | None = None) -> Figure:
    """A column for each cell of an evaluation: the test image with its true class, the degraded one
    with the answer of the first system, the adapted one with that of `system`.

    Args:
        evaluation: with systems that all have members on these cells.
        system: its name, by default that of the best system.

    Raises:
        ValueError: there is no such system.
    """
    first, best = (row.system for row in first_and_best(evaluation.rows))
    second = best if system is None else check_choice(system, evaluation.config.systems, "system")
    words, source = class_words(evaluation.source.classes), evaluation.source
    columns: dict[str, list[Picture]] = {}
    for number, cell in enumerate(evaluation.cells):
        right = [evaluation.correct[name][cell] for name in (first, second)]
        pick = typical(right[0], right[1], number * len(source) // len(evaluation.cells))
        shares = " → ".join(percent(100 * float(each.mean())) for each in right)
        label = int(source.labels[pick])
        pictures = [Picture(pixels_of(source.images([pick])[0]), words[label])]
        for name in (first, second):
            said = answer_of(evaluation, name, cell, pick)
            pictures.append(Picture(_last_seen(evaluation, name, cell, pick), words[said], said == label))
        columns[f"{cell.corruption.replace('_', ' ')}\n{shares} %"] = pictures
    return image_grid(columns, ["test image:\ntrue class", f"degraded:\n{first} says", f"and adapted:\n{second} says"])


def typical(first: np.ndarray, second: np.ndarray, start: int = 0) -> int:
    """The place of an image that has the most frequent outcome.

    Args:
        first, second: bool [n], which images either system has right.
        start: the first such image from here on is taken; after the last one comes number 0.
    """
    outcome = 2 * first.astype(int) + second
    frequent = outcome == np.bincount(outcome).argmax()
    return int((np.argmax(np.roll(frequent, -start)) + start) % len(frequent))


def _last_seen(evaluation: Evaluation, system: str, cell: Cell, pick: int) -> np.ndarray:
    """An image as the last member of a system sees it, which is the adapted one where there is one."""
    name = members_of(evaluation.config.systems[system], cell, evaluation.members)[-1]
    return pixels_of(evaluation.members[name].view.source(cell).images([pick])[0])


if __name__ == "__main__":
    run_main(main)
