"""Classes and confidences of images without labels, as rows of a CSV."""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Sequence
from pathlib import Path

from undegrade.utils.files import write_atomic


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


def write_table(out: Path, predictions: Sequence[Prediction], top: int) -> None:
    """Write the CSV that `evaluation.predict.predict` describes; `top`: classes an image."""
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
