"""The plots beside `results.json`, drawn again only when something that they show has changed."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path

from PIL import Image

from undegrade.evaluation import results, tables
from undegrade.evaluation.costs import Cost, shows_costs
from undegrade.evaluation.results import Result
from undegrade.utils.files import write_atomic

_KEY = "drawn of"  # of a text in the PNG


def save_plots(out: Path, rows: Sequence[Result], costs: Mapping[str, Cost]) -> list[str]:
    """Write `heat_map.png` and `severity.png`, and `costs.png` where `costs` says what the
    adaptation of a system took and there is a mean to show; returns the names. A file is kept that
    is whole and says that it was drawn of the same values by the same code: drawing takes longer
    than a second evaluation.

    Raises:
        ValueError: see `heat_map` and `severity_plot`.
    """
    drawn_of = hashlib.sha256(json.dumps([[vars(row) for row in rows], costs]).encode() + _code()).hexdigest()
    names = ["heat_map", "severity", *(["costs"] if shows_costs(rows, costs) else [])]
    if stale := [name for name in names if _drawn_of(out / f"{name}.png") != drawn_of]:
        from undegrade.evaluation.report.plots import cost_plot, heat_map, severity_plot
        from undegrade.utils.figures import png_bytes

        draw = {
            "heat_map": lambda: heat_map(rows),
            "severity": lambda: severity_plot(rows),
            "costs": lambda: cost_plot(rows, costs),
        }
        for name in stale:
            write_atomic(out / f"{name}.png", png_bytes(draw[name](), {_KEY: drawn_of}))
    return [f"{name}.png" for name in names]


@functools.cache
def _code() -> bytes:
    """What draws: our modules and the version of matplotlib."""
    ours = [Path(__file__).with_name("plots.py"), Path(str(results.__file__)), Path(str(tables.__file__))]
    ours.append(Path(__file__).parents[2] / "utils" / "figures.py")
    return b"".join(path.read_bytes() for path in ours) + metadata.version("matplotlib").encode()


def _drawn_of(path: Path) -> str | None:
    """What a plot says of itself; None when it is not there, is damaged or says nothing."""
    try:
        with Image.open(path) as image:
            said = image.info.get(_KEY)
            image.verify()
            return said
    except (OSError, SyntaxError, ValueError):
        return None
