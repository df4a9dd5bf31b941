"""The HTML report of an evaluation: table, plots, pictures with predictions, the configurations
behind them.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from undegrade.evaluation.costs import shows_costs
from undegrade.evaluation.ensemble import Member
from undegrade.evaluation.evaluate import Evaluation, gains
from undegrade.evaluation.fitted.apply import fitted_scores
from undegrade.evaluation.fitted.rule import first_other, two_sides
from undegrade.evaluation.opening import member_view
from undegrade.evaluation.report.html import write_report
from undegrade.evaluation.report.plots import Picture, cost_plot, heat_map, image_grid, severity_plot
from undegrade.evaluation.report.plots_gates import gated, restored_plot
from undegrade.evaluation.results import MEAN, Result, percent
from undegrade.evaluation.robustness import collapsed
from undegrade.utils.config import dump_yaml, to_tree
from undegrade.utils.data.cells import CLEAN, Cell, level_text
from undegrade.utils.data.views import RAW
from undegrade.utils.provenance import provenance

EXAMPLE_ROWS = 8  # pictures: one image for each of so many cells


def write_evaluation_report(path: str | Path, evaluation: Evaluation) -> None:
    """Write one self-contained HTML file.

    Args:
        path: file to write.
        evaluation: what `evaluation.evaluate.evaluate` returned.
    """
    config = evaluation.config
    figures = {"Accuracy of each system on each corruption": heat_map(evaluation.rows)}
    figures["Accuracy with 95 % intervals"] = severity_plot(evaluation.rows)
    if shows_costs(evaluation.rows, evaluation.costs):
        figures["Accuracy against what adaptation costs"] = cost_plot(evaluation.rows, evaluation.costs)
    figures["Test images as each view shows them, with the predictions made on them (green: right)"] = _pictures(evaluation)
    if gated(evaluation.rows):
        figures["What gates restore"] = restored_plot(evaluation.rows)
        for name, rule in evaluation.rules.items():
            if rule.gate is not None:
                heading = f"{name}: the image as it is and adapted, what each side says of it, and which one the gate takes"
                figures[heading] = _decisions(evaluation, name)
    origin = {
        "command": " ".join(["python", *(_relative(a) for a in sys.argv)]),
        "seed": config.data.seed,
        **provenance(),
    }
    name = Path(config.data.dataset).name
    write_report(
        path,
        title=f"{name}: {len(evaluation.correct)} systems on {len(evaluation.source)} {config.data.split} images",
        summary=_summary(evaluation.rows),
        rows=evaluation.rows,
        figures=figures,
        configs=_configs(evaluation),
        provenance=origin,
        notes=[
            f"{len(evaluation.source)} {config.data.split} images, each under every corruption; "
            "intervals of means are clustered by image.",
            *gains(evaluation.correct),
            *collapsed(evaluation.rows, len(evaluation.source.classes)),
        ],
    )


def _relative(word: str) -> str:
    """Command words without the folders of this machine."""
    path = Path(word)
    return path.name if path.is_absolute() else word


def _summary(rows: list[Result]) -> str:
    means = [row for row in rows if row.corruption == MEAN] or rows
    first, best = means[0], max(means, key=lambda row: row.accuracy)
    if best.system == first.system:
        return f"{first.system} is best: {percent(100 * first.accuracy)} % of {first.n} predictions."
    best_accuracy, low, high = (percent(100 * share) for share in (best.accuracy, best.ci95_low, best.ci95_high))
    return (
        f"{best.system} classifies {best_accuracy} % correctly (95 % interval {low} to {high}), "
        f"{first.system} {percent(100 * first.accuracy)} %, mean over corruptions."
    )


def _shown(evaluation: Evaluation) -> list[Cell]:
    """Cells of which an image is shown."""
    cells = [cell for cell in evaluation.cells if cell.corruption != CLEAN] or [Cell(CLEAN, 0)]
    return [cells[i] for i in np.unique(np.linspace(0, len(cells) - 1, min(EXAMPLE_ROWS, len(cells))).astype(int))]


def _pictures(evaluation: Evaluation) -> Figure:
    """One image a row: clean, then every view with the prediction of the first member that looks at
    it.
    """
    shown = _shown(evaluation)
    looks: dict[str, Member] = {}
    for member in evaluation.members.values():
        looks.setdefault(member.view.name, member)
    source = evaluation.source
    picks = [(7 * i) % len(source) for i in range(len(shown))]
    first = next(iter(evaluation.members.values()))
    columns = {}
    if first.view.name == RAW and not first.predictor.stateful:  # a stateful one may not have come to the clean images
        columns["clean"] = _column(first, [Cell(CLEAN, 0)] * len(shown), picks, evaluation)
    for member in looks.values():
        view = member_view(evaluation.config, member.name)
        heading = "corrupted" if view == RAW or Path(view) == source.listing_of else "adapted"
        columns[f"{heading} ({member.name})" if heading in columns else heading] = _column(member, shown, picks, evaluation)
    places = zip(shown, picks, strict=True)
    labels = [f"{c.corruption}\nseverity {level_text(c.severity)}, {source.classes[int(source.labels[i])]}" for c, i in places]
    return image_grid(columns, labels)


def _decisions(evaluation: Evaluation, system: str) -> Figure:
    """One image a row, one that is restored where there is any."""
    rule, source = evaluation.rules[system], evaluation.source
    members = [evaluation.members[name] for name in evaluation.config.systems[system].members]
    labels: list[str] = []
    columns: dict[str, list[Picture]] = {"as it is": [], "adapted": []}
    for cell in _shown(evaluation):
        logits = torch.stack([evaluation.scorer.logits(member, cell) for member in members])
        _, restored = fitted_scores(rule, members, evaluation.scorer, cell)
        assert restored is not None
        places = restored.nonzero()[:, 0] if restored.any() else torch.arange(len(source))
        pick = int(places[7 * len(labels) % len(places)])
        label = int(source.labels[pick])
        sides = zip(columns.values(), two_sides(rule.members, rule.pool, logits), (0, first_other(rule.members)), strict=True)
        for pictures, p, place in sides:
            image, said = members[place].view.source(cell).images([pick])[0], int(p[pick].argmax())
            pictures.append(Picture(image.permute(1, 2, 0).numpy(), source.classes[said], said == label))
        decision = "restored" if restored[pick] else "kept"
        labels.append(f"{cell.corruption}\n{source.classes[label]}, {decision}")
    return image_grid(columns, labels)


def _column(member: Member, cells: list[Cell], picks: list[int], evaluation: Evaluation) -> list[Picture]:
    pictures = []
    for cell, i in zip(cells, picks, strict=True):
        image: Tensor = member.view.source(cell).images([i])[0]
        label = int(torch.argmax(evaluation.scorer.logits(member, cell, slice(i, i + 1))))
        right = label == int(evaluation.source.labels[i])
        pictures.append(Picture(image.permute(1, 2, 0).numpy(), evaluation.source.classes[label], right))
    return pictures


def _configs(evaluation: Evaluation) -> dict[str, str]:
    """The evaluation's own YAML, that of each member's training run, and the settings of adapted
    images.
    """
    config = evaluation.config
    out = {"evaluation": dump_yaml(to_tree(config))}
    for name, path in evaluation.checkpoints.items():
        beside = path.parent / "config.yaml"
        if beside.is_file():
            out[f"member {name}"] = beside.read_text(encoding="utf-8")
    for view in dict.fromkeys(member_view(config, name) for name in evaluation.members):
        settings = next(iter(sorted(Path(view).glob("*/*/settings.json"))), None)
        if settings is not None:
            out[f"view {_relative(view)} (settings.json of {settings.parent.relative_to(view)})"] = settings.read_text("utf-8")
    return out
