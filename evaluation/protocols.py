"""In which order a predictor that adapts itself sees the test images, and when it starts anew: as
data, worked out before anything is predicted.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args, get_type_hints

import numpy as np

from undegrade.utils.choices import check_choice
from undegrade.utils.data.cells import CLEAN, Cell
from undegrade.utils.data.perturbations.passages import Passage
from undegrade.utils.data.perturbations.registry import find_perturbation
from undegrade.utils.ranges import Positive, Seed
from undegrade.utils.seeding import numpy_generator
from undegrade.utils.yaml_trees import parse_value

PATH = (1, 2, 3, 4, 5, 4, 3, 2, 1)
"""Severities of a corruption that comes and goes."""


@dataclasses.dataclass(frozen=True)
class Protocol:
    """Of predictors that adapt themselves; a frozen one answers alike whatever the order.

    Attributes:
        shifts: `reset`: one test set after the other, anew at each; `continual`: never anew;
            `gradual`: never anew, and each corruption comes and goes, severity 1 to 5 and back,
            of which those asked for count at their first time; `mixed`: all at once in random
            order. In the last two, sets without a severity (`clean`, degradations) come first, one
            after the other, anew at each.
        order: of the images of a test set: `shuffled`, `listing` (by class in image folders),
            `by_class`: each class mostly within some stretches of the stream, or `smooth`: of
            passages such as gaussian_noise~fog by how far the change has come (clean images:
            shuffled), after one another.
        delta: of `by_class`: parameter of the Dirichlet distribution over as many stretches as
            there are classes; the smaller, the more of a class comes together.
        seed: of the order.
    """

    shifts: Literal["reset", "continual", "gradual", "mixed"] = "reset"
    order: Literal["shuffled", "listing", "by_class", "smooth"] = "shuffled"
    delta: Positive = 0.1
    seed: Seed = 0

    def __post_init__(self) -> None:
        if self.order == "smooth" and self.shifts in ("gradual", "mixed"):
            raise ValueError(
                f"protocol {self.shifts}+smooth: smooth streams change by themselves, write continual+smooth or reset+smooth"
            )

    @property
    def key(self) -> str:
        """All of it that matters, as text that `read_protocol` reads."""
        parts: list[str] = [self.shifts, self.order]
        if self.order == "by_class":
            parts.append(f"delta={self.delta:g}")
        if self.order != "listing" or self.shifts == "mixed":
            parts.append(f"seed={self.seed}")
        return "+".join(parts)


def read_protocol(text: str) -> dict[str, object]:
    """Keys of a protocol from its words joined by `+`, in any order: `mixed`, `continual+listing`,
    `by_class+delta=0.05`.

    Raises:
        ValueError: a word that is none (names the closest), or two of a kind.
    """
    kinds: dict[str, str] = {word: name for name in ("shifts", "order") for word in get_args(get_type_hints(Protocol)[name])}
    keys: dict[str, object] = {}
    for word in text.split("+"):
        name, sign, value = word.partition("=")
        check_choice(f"{name}{sign}", [*kinds, "delta=", "seed="], "word", f"--protocol {text}")
        name = name if sign else kinds[word]
        if name in keys:
            raise ValueError(f"--protocol {text}: {word} is a second {name}, leave one out")
        keys[name] = parse_value(value) if sign else word
    return keys


class Stretch(NamedTuple):
    """Images that come one after the other, without a reset in between.

    Attributes:
        cells: they are of.
        place: int [n], which of the cells.
        rows: int [n], which image of it.
        anew: whether the predictor starts anew before it.
    """

    cells: tuple[Cell, ...]
    place: np.ndarray
    rows: np.ndarray
    anew: bool


def stretches(
    protocol: Protocol, cells: Sequence[Cell], labels: Sequence[int] | np.ndarray, keys: Sequence[str] = ()
) -> list[Stretch]:
    """The stream of all test sets.

    Args:
        protocol: see there.
        cells: in their order.
        labels: [N] of the images, the same of every cell.
        keys: N of them; of `smooth` streams.

    Raises:
        ValueError: `smooth` and a test set that does not change.
    """

    def alone(cell: Cell, anew: bool) -> Stretch:
        rows = ordered(protocol, cell, labels, keys)
        return Stretch((cell,), np.zeros(len(rows), int), rows, anew)

    if protocol.shifts in ("reset", "continual"):
        return [alone(cell, protocol.shifts == "reset" or not number) for number, cell in enumerate(cells)]
    apart = [cell for cell in cells if cell.corruption == CLEAN or cell.severity not in PATH]
    shifted = [cell for cell in cells if cell not in apart]
    first = [alone(cell, True) for cell in apart]
    if not shifted:
        return first
    if protocol.shifts == "gradual":
        path = [Cell(name, severity) for name in dict.fromkeys(cell.corruption for cell in shifted) for severity in PATH]
        return first + [alone(cell, not number) for number, cell in enumerate(path)]
    place = np.repeat(np.arange(len(shifted)), len(labels))
    rows = np.tile(np.arange(len(labels)), len(shifted))
    if protocol.order == "by_class":
        order = _by_class(protocol, np.asarray(labels)[rows], "mixed")
    else:
        order = numpy_generator("protocol", protocol.seed, "mixed").permutation(len(rows))
    return [*first, Stretch(tuple(shifted), place[order], rows[order], True)]


def ordered(protocol: Protocol, cell: Cell, labels: Sequence[int] | np.ndarray, keys: Sequence[str] = ()) -> np.ndarray:
    """int [N], the rows of the images of one test set in the order in which they come; see
    `stretches`.
    """
    if protocol.order == "smooth" and cell.corruption != CLEAN:
        passage = find_perturbation(cell.corruption)
        if not isinstance(passage, Passage):
            raise ValueError(
                f"--protocol {protocol.key}: {cell.corruption} does not change on the way; give --corruption smooth, or passages "
                "such as gaussian_noise~fog"
            )
        return np.argsort(passage.places(keys), kind="stable")
    if protocol.order == "listing":
        return np.arange(len(labels))
    if protocol.order == "by_class":
        return _by_class(protocol, np.asarray(labels), cell.folder)
    return numpy_generator("protocol", protocol.seed, cell.folder).permutation(len(labels))


def _by_class(protocol: Protocol, labels: np.ndarray, name: str) -> np.ndarray:
    """Images of each class distributed over stretches by shares from a Dirichlet distribution;
    stretches one after the other, class by class in random order within each (Gong et al. 2022).
    """
    generator = numpy_generator("protocol", protocol.seed, "by_class", name)
    classes = np.unique(labels)
    parts: list[list[np.ndarray]] = [[] for _ in classes]
    for label in classes:
        own = generator.permutation(np.flatnonzero(labels == label))
        ends = np.cumsum(generator.dirichlet(np.full(len(classes), protocol.delta)))[:-1]
        for part, rows in zip(parts, np.split(own, (ends * len(own)).round().astype(int)), strict=True):
            part.append(rows)
    return np.concatenate([rows for part in parts for rows in (part[i] for i in generator.permutation(len(part)))])
