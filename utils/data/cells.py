"""Test cells: pairs of a perturbation and its level, and the words of command lines that mean them.

How the images of a cell come to be is a matter of views (utils/data/views.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from undegrade.utils.data.perturbations.c_bar import IMAGENET_C_BAR
from undegrade.utils.data.perturbations.common_3d import COMMON_3D
from undegrade.utils.data.perturbations.corruptions import CORRUPTIONS
from undegrade.utils.data.perturbations.passages import PASSAGES
from undegrade.utils.data.perturbations.registry import CLEAN as CLEAN
from undegrade.utils.data.perturbations.registry import find_perturbation

GROUPS: dict[str, tuple[str, ...]] = {
    "all": CORRUPTIONS,
    "imagenet-c-bar": tuple(IMAGENET_C_BAR),
    "imagenet-3dcc-2d": tuple(COMMON_3D),
    "smooth": PASSAGES,
}
"""Words that stand for several perturbations: the 15 of ImageNet-C, the 10 of ImageNet-C-bar, the
3 of ImageNet-3DCC that need no depth, and passages from each of the 15 into the next.
"""


class Cell(NamedTuple):
    """One test set: a column of a result table.

    Attributes:
        corruption: name of a perturbation: `clean`, one of the ImageNet-C corruptions, a
            degradation, or a sequence such as `blur+noise+jpeg`.
        severity: 1..5 for corruptions; the level in the perturbation's own unit; None draws a
            severity or level for each image.
    """

    corruption: str
    severity: float | None = None

    @property
    def folder(self) -> str:
        """`<corruption>/<severity>`, with `random` for levels drawn image by image."""
        return f"{self.corruption}/{level_text(self.severity)}"


def level_text(severity: float | None) -> str:
    """A level as folders and messages have it: `random` where one is drawn for each image."""
    return "random" if severity is None else f"{severity:g}"


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


def sweep_cells(name: str) -> list[Cell]:
    """A cell for every level of a perturbation: 101 for jpeg, 51 for noise and blur, 26 for
    saltpepper, 5 for a corruption.

    A sequence, whose sweep would be a product, is one cell: a level drawn for each image and stage.
    """
    return [Cell(name, level) for level in find_perturbation(name).sweep] or [drawn_cell(name)]


def drawn_cell(name: str) -> Cell:
    """The cell of a perturbation whose level is drawn for each image, or is its only one."""
    return Cell(name, find_perturbation(name).drawn)


def parse_cells(names: Sequence[str], severities: Sequence[int] | None) -> list[Cell]:
    """Cells for every perturbation named: of corruptions one for each severity, of all others one,
    whose level is drawn for each image.

    Args:
        names: those of `GROUPS`, `clean`, and what `find_perturbation` knows.
        severities: None: drawn for each image.

    Raises:
        ValueError: an unknown name (with the closest), or a severity outside 1..5.
    """
    listed = [name for given in names for name in GROUPS.get(given, (given,))]
    return [Cell(name, level) for name in listed for level in find_perturbation(name).cells(severities)]
