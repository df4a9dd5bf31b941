"""Numbers that a paper published, for comparison with our own."""

from __future__ import annotations

import dataclasses
from typing import Annotated

from annotated_types import Interval

from undegrade.evaluation.results import MEAN
from undegrade.utils.choices import check_choice
from undegrade.utils.data.perturbations.registry import CLEAN, find_perturbation
from undegrade.utils.ranges import Count

AVERAGE, CLEAN_HEADING, UNSEEN = "Avg", "Clean", "Unseen"  # headings that a table makes itself


@dataclasses.dataclass(frozen=True)
class PublishedConfig:
    """A YAML of published accuracies.

    Attributes:
        source: citation.
        columns: corruption or degradation -> heading of its column, in the table's order.
        rows: `<data set> <architecture>` -> approach -> corruption -> accuracy in percent, mean
            over its levels. Cells may be missing; `mean`, where only that was published, is over
            all columns.
        severities: of the corruptions, where the numbers are of some only; they stand beside
            results of the same severities alone.
        against: systems of ours that all others are compared with, paired by image.
        made_by: command that writes a results file, for the message when one is missing;
            `{dataset}` is replaced.
    """

    source: str
    columns: dict[str, str]
    rows: dict[str, dict[str, dict[str, Annotated[float, Interval(ge=0, le=100)]]]]
    severities: list[Count] = dataclasses.field(default_factory=list)
    against: list[str] = dataclasses.field(default_factory=list)
    made_by: str = ""


def check_published(config: PublishedConfig) -> None:
    """Raise ValueError on an unknown corruption, a heading used twice, or a cell without column."""
    headings = [AVERAGE, CLEAN_HEADING, UNSEEN]
    for name, heading in config.columns.items():
        find_perturbation(name)
        if name == CLEAN:
            raise ValueError(f"columns: clean images have the column {CLEAN_HEADING!r} of themselves: leave {name!r} out")
        if heading in headings:
            raise ValueError(
                f"columns: heading {heading!r} of {name!r} is taken: give every column its own, not {', '.join(headings)}"
            )
        headings.append(heading)
    for dataset, approaches in config.rows.items():
        for approach, cells in approaches.items():
            for name in cells:
                check_choice(name, [*config.columns, MEAN], "column", f"rows.{dataset}.{approach}")


def published_rows(config: PublishedConfig, key: str) -> dict[str, dict[str, float]]:
    """Approach -> heading -> accuracy in percent, for `<data set> <architecture>`; empty when
    nothing was published for it.
    """
    headings = {**config.columns, MEAN: AVERAGE}
    return {name: {headings[c]: value for c, value in cells.items()} for name, cells in config.rows.get(key, {}).items()}
