"""What adaptation costs, as its launches noted it beside the images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from undegrade.evaluation.results import MEAN, Result
from undegrade.utils.data.manifest import PROVENANCE
from undegrade.utils.data.views import RAW
from undegrade.utils.files import parse_json, read_lines

_MEND = "remove it, only what is said of the costs goes"


class Cost(NamedTuple):
    """Of the adaptation of an image, and of the classifier to it.

    Attributes:
        passes: of networks that adapt images, those backward counted like those forward.
        ms: milliseconds of one rank, reading and writing included; of a classifier that is adapted
            its own passes, too.
        parameters: of the networks that adapt images.
        memory: megabytes that a rank took at most.
    """

    passes: int
    ms: float
    parameters: int = 0
    memory: float = 0.0


class PredictorCost(NamedTuple):
    """Of a predictor.

    Attributes:
        ms: milliseconds an image; 0 where unknown.
        moved: numbers that its steps change.
    """

    ms: float = 0.0
    moved: int = 0


PREDICTOR_COST = "cost.json"


def read_predictor_cost(path: Path) -> PredictorCost:
    """What `PREDICTOR_COST` beside the logits of a member says; all 0 without the file.

    Raises:
        ValueError: it is damaged.
    """
    return PredictorCost(**parse_json(path.read_text(encoding="utf-8"), path, _MEND)) if path.is_file() else PredictorCost()


def evaluation_costs(results: Path, meta: Mapping[str, Any]) -> tuple[dict[str, Cost], dict[str, int]]:
    """System -> its cost, where known, and the numbers that its members move, of a results file.

    Args:
        results: path of the file; the logits lie beside it.
        meta: of the file.
    """
    views = meta.get("views", {})  # of the members that were looked at
    systems = {name: [m for m in system["members"] if m in views] for name, system in meta.get("systems", {}).items()}
    found = {name: read_predictor_cost(results.parent / "logits" / name / PREDICTOR_COST) for name in views}
    costs = system_costs(systems, views, {name: cost.ms for name, cost in found.items()})
    return costs, {name: sum(found[member].moved for member in members) for name, members in systems.items()}


def view_cost(view: str) -> Cost | None:
    """Of the images of a view: the mean over its cells; None where no launch of ours noted it.

    Raises:
        ValueError: a note is damaged.
    """
    if view == RAW:
        return Cost(0, 0.0)
    noted = []
    for path in sorted(Path(view).glob(f"*/*/{PROVENANCE}")):
        lines = [parse_json(line, path, _MEND) for line in read_lines(path)]
        noted += [_noted(line, path) for line in lines if isinstance(line, dict) and "ms_an_image_and_rank" in line][-1:]
    if not noted:
        return None
    last, memory = noted[-1], max(cost.memory for cost in noted)
    return Cost(last.passes, sum(cost.ms for cost in noted) / len(noted), last.parameters, memory)


def _noted(line: Mapping[str, Any], path: Path) -> Cost:
    passes, ms, further = line.get("passes"), line["ms_an_image_and_rank"], (line.get("parameters", 0), line.get("peak_mb", 0.0))
    counts: list[Any] = list(passes.values()) if isinstance(passes, dict) else [None]
    if not all(isinstance(n, int) for n in (*counts, further[0])) or not all(isinstance(v, float) for v in (ms, further[1])):
        raise ValueError(f"{path} is damaged (passes {passes!r}, ms {ms!r} are no numbers): {_MEND}")
    return Cost(sum(counts), ms, *further)


def system_costs(members: Mapping[str, Sequence[str]], views: Mapping[str, str], adapting: Mapping[str, float]) -> dict[str, Cost]:
    """System -> what the images that its members look at cost together, those of one view once, and
    those of its predictors that adapt themselves; without systems of which it is not known. The
    passes of frozen classifiers are not counted.

    Args:
        members: of each system.
        views: of each member, `raw` or a folder.
        adapting: milliseconds an image of members whose classifier is adapted.
    """
    known = {view: view_cost(view) for view in set(views.values())}
    costs = {}
    for system, names in members.items():
        parts = [known[view] for view in dict.fromkeys(views[name] for name in names)]
        found = [part for part in parts if part is not None]
        if found and len(found) == len(parts):
            own = sum(adapting.get(name, 0.0) for name in dict.fromkeys(names))
            costs[system] = Cost(
                sum(part.passes for part in found), own + sum(part.ms for part in found),
                sum(part.parameters for part in found), max(part.memory for part in found),
            )  # fmt: skip
    return costs


def shows_costs(rows: Sequence[Result], costs: Mapping[str, Cost]) -> bool:
    """Whether a plot of accuracy against costs would show something: the mean of a system whose
    images were adapted.
    """
    return any(row.corruption == MEAN and row.system in costs and costs[row.system].ms > 0 for row in rows)


def cost_lines(costs: Mapping[str, Cost]) -> list[str]:
    """A table for standard output; nothing where nothing was adapted."""
    if not any(cost.ms for cost in costs.values()):
        return []
    width = max(map(len, costs))
    lines = [f"{name.ljust(width)}  {cost.passes:6d}  {cost.ms:22.1f}" for name, cost in costs.items()]
    return [f"{'adaptation of an image'.ljust(width)}  passes  milliseconds of a rank", *lines]
