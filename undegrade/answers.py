"""What a system answers."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from PIL import Image

if TYPE_CHECKING:
    import pandas as pd


@dataclasses.dataclass(frozen=True)
class Prediction:
    """The best classes of an image, best first.

    Attributes:
        name: the image's file, below a folder relative to it; of other images their place.
        classes: numbers of the classes, from 0 on.
        names: of the same classes; words, where they are called by their numbers in WordNet.
        confidences: their shares of the system's scores, in [0, 1].
        way: what the answer was made of: "raw" (the image as it is), "adapted" (the adapted one),
            or "both". Of a system with a gate what the gate decided for this image.
        wnids: numbers in WordNet of the same classes ("n01440764"); empty for other classes.
    """

    name: str
    classes: list[int]
    names: list[str]
    confidences: list[float]
    way: str
    wnids: list[str] = dataclasses.field(default_factory=list)


class Predictions(list[Prediction]):
    """Predictions in the order of the images.

    Attributes:
        broken: files that could not be read, with the reason; they are left out.
    """

    def __init__(self, rows: Iterable[Prediction] = (), broken: Sequence[str] = ()) -> None:
        super().__init__(rows)
        self.broken = list(broken)

    def table(self) -> pd.DataFrame:
        """A row an image: name, way, class_1, (wnid_1,) confidence_1, class_2, ..."""
        import pandas as pd

        rows: list[dict[str, str | float]] = []
        for found in self:
            row: dict[str, str | float] = {"name": found.name, "way": found.way}
            for place, (name, share) in enumerate(zip(found.names, found.confidences, strict=True), 1):
                number = {f"wnid_{place}": found.wnids[place - 1]} if found.wnids else {}
                row |= {f"class_{place}": name, **number, f"confidence_{place}": share}
            rows.append(row)
        return pd.DataFrame(rows)


@dataclasses.dataclass(frozen=True)
class Explanation:
    """How a system came to its answer on an image.

    Attributes:
        prediction: the answer.
        raw: the image as classifiers see it.
        adapted: what they see of the adapted one, by view.
        members: each classifier's own answer.
        gate: None without one; else its signals by name, `odds` (log odds that restoring helps) and
            `threshold` (above which the image is restored; None: never).
    """

    prediction: Prediction
    raw: Image.Image
    adapted: dict[str, Image.Image]
    members: dict[str, Prediction]
    gate: dict[str, float | None] | None
