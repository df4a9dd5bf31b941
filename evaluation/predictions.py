"""What a system says of images without labels: its best classes, as rows of a CSV, and summed up
for a terminal.
"""

from __future__ import annotations

import collections
import csv
import dataclasses
import io
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from undegrade.utils.files import write_atomic
from undegrade.utils.interruption import Interrupted, Interruption

log = logging.getLogger(__name__)

PREDICTIONS = "predictions.csv"
_SHOWN = 20  # classes of the table


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What a system says of an image.

    Attributes:
        file: relative to its folder.
        classes: the best ones with their shares of the scores in [0, 1], best first.
        restored: of a system with a gate, whether the image was restored.
        words: for each of `classes` (`class_words`).
        members: the word of the best class of each member of the system, and its probability.
        row: the image's place among those that every view has.
    """

    file: str
    classes: list[tuple[str, float]]
    restored: bool | None = None
    words: list[str] = dataclasses.field(default_factory=list)
    members: list[tuple[str, float]] = dataclasses.field(default_factory=list)
    row: int = 0

    @property
    def agrees(self) -> bool:
        """Whether every member says what the system says."""
        return all(word == self.words[0] for word, _ in self.members)


class Answers(NamedTuple):
    """Of a system on a batch: logits [M,B,K] of its members, its scores [B,K], and bool [B], which
    images a gate restored (None: there is no gate).
    """

    logits: Tensor
    scores: Tensor
    restored: Tensor | None = None


def best_classes(
    answers: Answers, rows: Sequence[int], files: Sequence[str], classes: Sequence[str], words: Sequence[str], top: int
) -> list[Prediction]:
    """Of the images `rows`, numbers among all, of which `files` are the names; `words` are those of
    `classes`, `top` are wanted.
    """
    scores = answers.scores
    values, order = (scores / scores.sum(1, keepdim=True)).sort(dim=1, descending=True, stable=True)
    ways = [None] * len(rows) if answers.restored is None else answers.restored.tolist()
    shares, said = answers.logits.softmax(2).max(2)
    return [
        Prediction(
            files[row],
            [(classes[k], p) for k, p in zip(best, found, strict=True)],
            way,
            [words[k] for k in best],
            [(words[k], p) for k, p in zip(their_best, theirs, strict=True)],
            row,
        )
        for row, best, found, way, their_best, theirs in zip(
            rows, order[:, :top].tolist(), values[:, :top].tolist(), ways, said.T.tolist(), shares.T.tolist(), strict=True
        )
    ]


def write_csv(out: Path, predictions: Sequence[Prediction], top: int) -> None:
    """Write a row an image; columns as in `evaluation.predict.predict`."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    named = in_words(predictions)
    columns = ("class", *(["wnid"] if named else []), "confidence")
    gated = any(row.restored is not None for row in predictions)
    further = [f"{name}_{place}" for place in range(2, top + 1) for name in columns]
    writer.writerow(["file", *columns, *further, *(["restored"] if gated else [])])
    for row in predictions:
        cells = [
            cell
            for (name, share), word in zip(row.classes, row.words, strict=True)
            for cell in (word, *([name] if named else []), f"{share:.6f}")
        ]
        writer.writerow([row.file, *cells, *([("no", "yes")[row.restored]] if row.restored is not None else [])])
    write_atomic(out, text.getvalue())


def in_words(predictions: Sequence[Prediction]) -> bool:
    """Whether some class has a word that is not its name."""
    return any(name != word for row in predictions for (name, _), word in zip(row.classes, row.words, strict=True))


def csv_file(out: str | None) -> Path:
    """The CSV that `--out` means: a file, or a folder for it; None: in the working folder."""
    file = Path(out or PREDICTIONS)
    return file / PREDICTIONS if file.is_dir() else file


def say_broken(broken: Sequence[str], total: int) -> None:
    """A warning that names the images that cannot be read."""
    if broken:
        log.warning("left out %d of %d images that cannot be read:\n  %s", len(broken), total, "\n  ".join(broken))


def stopped(interruption: Interruption, done: int, readable: int, out: Path, report: Path | None) -> Interrupted:
    """What is raised when the labelling of images was stopped, and says where the `done` ones of
    those that were not found broken are.
    """
    places = " and ".join(str(place) for place in (out, report) if place is not None)
    said = f"{interruption.reason} after {done} of {readable} images, which are in {places}"
    stop = Interrupted(f"{said}; {readable - done} are missing")
    stop.go_on = "the same command begins anew"
    return stop


def print_summary(predictions: Sequence[Prediction]) -> None:
    """Images and mean confidence of each class on standard output, the most frequent first."""
    shares = collections.defaultdict(list)
    for row in predictions:
        shares[row.words[0], row.classes[0][0]].append(row.classes[0][1])
    ordered = sorted(shares.items(), key=lambda item: -len(item[1]))
    width = max(len("class"), *(len(word) for word, _ in shares))
    named = in_words(predictions)
    print(f"{'class'.ljust(width)}{'  wnid     ' * named}  images  mean confidence")
    for (word, name), found in ordered[:_SHOWN]:
        print(f"{word.ljust(width)}{f'  {name:9}' * named}  {len(found):6d}  {sum(found) / len(found):15.3f}")
    if len(ordered) > _SHOWN:
        print(f"... and {len(ordered) - _SHOWN} classes more")
