"""Test cells: (corruption, severity) -> a source of images, whichever way the images come to be.

A *view* gives one `ImageSource` a cell. `OnTheFly` corrupts or degrades a clean source as it is
read, `ReleasedArrays` reads the published CIFAR-10-C layout (`<corruption>.npy`, `labels.npy`),
`FolderTree` reads `<root>/<corruption>/<severity>/<class>/*` as the adapter writes it. Images of
two views are paired by key, never by position.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from undegrade.utils.choices import check_choice
from undegrade.utils.data.perturbations.corruptions import ALL_CORRUPTIONS, CORRUPTIONS, SEVERITIES
from undegrade.utils.data.perturbations.degradations import sweep_levels
from undegrade.utils.data.perturbations.registry import (
    ONE_LEVEL,
    PERTURBATIONS,
    check_perturbation,
)

CLEAN = "clean"


@dataclasses.dataclass(frozen=True)
class Cell:
    """One column of a result table.

    Attributes:
        corruption: `clean`, one of the ImageNet-C corruptions, a degradation, or a sequence such as
            `blur+noise+jpeg`.
        severity: 1..5 for corruptions; the level in the degradation's own unit; None draws a
            severity or level for each image.
    """

    corruption: str
    severity: float | None = None

    @property
    def folder(self) -> str:
        """`<corruption>/<severity>`, with `random` for levels drawn image by image."""
        return f"{self.corruption}/{'random' if self.severity is None else f'{self.severity:g}'}"

    @property
    def is_corruption(self) -> bool:
        """Whether it belongs to the ImageNet-C family (severities 1..5)."""
        return self.corruption in ALL_CORRUPTIONS


def parse_severities(text: str, also: str = "") -> list[int]:
    """`5`, `1,3,5` or `1-5` as a list.

    Args:
        text: of the flag.
        also: what the caller takes besides, for the message.

    Raises:
        ValueError: not of these forms.
    """
    first, dash, last = text.partition("-")
    try:
        return list(range(int(first), int(last) + 1)) if dash else [int(s) for s in text.split(",")]
    except ValueError:
        forms = "one of 1..5, several joined by commas, or a range such as 1-5"
        raise ValueError(f"--severity {text!r}: write {forms}{also}") from None


def sweep_cells(degradation: str) -> list[Cell]:
    """A cell for every level of a degradation (101 for jpeg, 51 for noise and blur, 26 for
    saltpepper), 5 for a corruption.

    A sequence, whose sweep would be a product, is one cell: a level drawn for each image and stage.
    """
    if degradation in (*ALL_CORRUPTIONS, *ONE_LEVEL) or "+" in degradation:
        return parse_cells([degradation], SEVERITIES)
    return [Cell(degradation, level) for level in sweep_levels(degradation)]


def parse_cells(corruptions: Sequence[str], severities: Sequence[int]) -> list[Cell]:
    """Cells for every corruption (each severity) and every degradation (level drawn for each image)
    named; `all` is the 15.

    Raises:
        ValueError: an unknown name (with the closest), or a severity outside 1..5.
    """
    cells: list[Cell] = []
    for name in [n for given in corruptions for n in (CORRUPTIONS if given == "all" else [given])]:
        if name in ALL_CORRUPTIONS:
            wrong = [s for s in severities if s not in (1, 2, 3, 4, 5)]
            if wrong or not severities:
                raise ValueError(f"severities {list(severities)} for {name}: choose from 1, 2, 3, 4, 5")
            cells += [Cell(name, int(s)) for s in severities]
        elif name == CLEAN:
            cells.append(Cell(CLEAN, 0))
        else:
            if "+" in name:
                check_perturbation(name)
            else:
                check_choice(name, [*PERTURBATIONS, CLEAN], "corruption or degradation")
            cells.append(Cell(name, 0 if name in ONE_LEVEL else None))
    return cells
