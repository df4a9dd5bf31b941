"""What there is, by name, with a line each; rows of other packages included.

undegrade list                  # everything
undegrade list perturbations    # what corrupt and degrade do
undegrade list runs --runs runs/demo/models
"""

from __future__ import annotations

import undegrade.utils.quick_start  # noqa: F401  before the rest

# isort: split
import datetime
from collections.abc import Callable, Mapping, Sequence

from undegrade.listing import list_adapters, list_methods, list_perturbations, list_predictors, list_rules
from undegrade.utils.command_line import ScriptParser
from undegrade.utils.download_command import listing
from undegrade.utils.errors import run_main
from undegrade.utils.runs import DONE, finished_names, finished_runs
from undegrade.utils.weights import registry

LISTS: dict[str, tuple[str, Callable[[], Mapping[str, str]]]] = {  # noun -> (what it is for, names and lines)
    "adapters": ("make the adapted images: --adapter", list_adapters),
    "methods": ("train networks: method.name of a YAML", list_methods),
    "perturbations": ("make images worse: undegrade corrupt, --corruption", list_perturbations),
    "predictors": ("adapt a classifier to what it sees: --tta", list_predictors),
    "rules": ("make one answer of several members': rule of an ensemble", list_rules),
}


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    p = ScriptParser(__doc__)
    everything = [*LISTS, "weights", "runs"]
    p.add_argument("what", nargs="?", choices=everything, help="one of them (default: all)")
    p.add_argument("--runs", default="runs", help="root of the runs")
    args, _ = p.parse(argv)
    for place, name in enumerate([args.what] if args.what else everything):
        print("\n" * bool(place), end="")
        if name in LISTS:
            about, rows = LISTS[name]
            print(_table(f"{name}: {about}", rows()))
        elif name == "weights":
            print(f"weights: undegrade download <name>\n{listing(registry().values())}")
        else:
            print(_table(f"runs: finished ones under {args.runs}/, the name is what --system and -r take", _runs(args.runs)))


def _table(title: str, rows: Mapping[str, str]) -> str:
    width = max(map(len, rows), default=0)
    return "\n".join([title, *(f"  {name.ljust(width)}  {text}".rstrip() for name, text in rows.items())])


def _runs(root: str) -> dict[str, str]:
    """Name -> how many, and the latest."""
    rows = {}
    for name in finished_names(root):
        runs = finished_runs(root, name)
        when = datetime.datetime.fromtimestamp((runs[-1] / DONE).stat().st_mtime)
        rows[name] = f"{when:%Y-%m-%d %H:%M}  {runs[-1].name}" + (f" ({len(runs)} runs)" if len(runs) > 1 else "")
    return rows or {"(none)": ""}


if __name__ == "__main__":
    run_main(main)
