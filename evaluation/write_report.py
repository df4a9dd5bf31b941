"""The HTML report of an evaluation: table, plots, pictures with predictions, the configurations
behind them.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure

from undegrade.evaluation.config import members_of
from undegrade.evaluation.costs import shows_costs
from undegrade.evaluation.evaluate import Evaluation, gains, system_scores
from undegrade.evaluation.fitted.apply import fitted_scores
from undegrade.evaluation.fitted.rule import first_other, two_sides
from undegrade.evaluation.opening import member_view
from undegrade.evaluation.report.html import write_report
from undegrade.evaluation.report.plots import cost_plot, heat_map, severity_plot
from undegrade.evaluation.report.plots_gates import gated, restored_plot
from undegrade.evaluation.report.plots_pictures import Picture, image_grid
from undegrade.evaluation.results import MEAN, Result, percent
from undegrade.evaluation.robustness import collapsed
from undegrade.utils.config import dump_yaml, to_tree
from undegrade.utils.data.cells import CLEAN, Cell, level_text
from undegrade.utils.data.sources.class_names import class_words
from undegrade.utils.data.views import RAW
from undegrade.utils.provenance import command, provenance, without_folders

_PICTURES = (
    "Test images with their true class, as {0} sees them, what its members say of each version where it has several, and what {0} "
    "says (green: right)"
)
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
        costs = cost_plot(evaluation.rows, evaluation.costs)
        figures["Accuracy against what adaptation costs (side by side: the same costs)"] = costs
    _, best = first_and_best(evaluation.rows)
    figures[_PICTURES.format(best.system)] = _pictures(evaluation, best.system)
    if gated(evaluation.rows):
        figures["What gates restore"] = restored_plot(evaluation.rows)
        for name, rule in evaluation.rules.items():
            if rule.gate is not None:
                heading = f"{name}: the image as it is and adapted, what each side says of it, and which one the gate takes"
                figures[heading] = _decisions(evaluation, name)
    origin = {"command": command(), "seed": config.data.seed, **provenance()}
    count = len(evaluation.correct)
    name = Path(config.data.dataset).name
    write_report(
        path,
        title=f"{name}: {count} system{'s' * (count > 1)} on {len(evaluation.source)} {config.data.split} images",
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


def first_and_best(rows: list[Result]) -> tuple[Result, Result]:
    """Rows of the first system and of that in the headline: their means, where there are any."""
    means = [row for row in rows if row.corruption == MEAN] or rows
    return means[0], max(means, key=lambda row: row.accuracy)


def _summary(rows: list[Result]) -> str:
    first, best = first_and_best(rows)
    if best.system == first.system:
        return f"{first.system} is best: {percent(100 * first.accuracy)} % of {first.n} predictions."
    best_accuracy, low, high = (percent(100 * share) for share in (best.accuracy, best.ci95_low, best.ci95_high))
    return (
        f"{best.system} classifies {best_accuracy} % correctly (95 % interval {low} to {high}), "
        f"{first.system} {percent(100 * first.accuracy)} %, mean over corruptions."
    )


def _shown(evaluation: Evaluation, system: str) -> dict[Cell, list[str]]:
    """Cells of a system of which an image is shown, and its members there."""
    chosen = evaluation.config.systems[system]
    every = {cell: members_of(chosen, cell, evaluation.members) for cell in evaluation.cells}
    cells = [cell for cell, names in every.items() if names]
    cells = [cell for cell in cells if cell.corruption != CLEAN] or cells
    picks = np.unique(np.linspace(0, len(cells) - 1, min(EXAMPLE_ROWS, len(cells))).astype(int))
    return {cells[i]: every[cells[i]] for i in picks}


def _pictures(evaluation: Evaluation, system: str) -> Figure:
    """One image a row: clean with its true class, then each version of it that `system` looks at,
    with what the members say that see it, then what the system says.
    """
    source, shown = evaluation.source, _shown(evaluation, system)
    words, picks = class_words(source.classes), [(7 * i) % len(source) for i in range(len(shown))]
    true = [int(source.labels[pick]) for pick in picks]
    columns: dict[str, list[Picture]] = {}
    if source.listing_of is None:
        images = source.images(picks)
        columns["clean"] = [Picture(pixels_of(image), words[label]) for image, label in zip(images, true, strict=True)]
    for view in dict.fromkeys(member_view(evaluation.config, name) for names in shown.values() for name in names):
        heading = "corrupted" if view == RAW or Path(view) == source.listing_of else "adapted"
        heading = f"{heading} ({Path(view).name})" if heading in columns else heading
        columns[heading] = [
            _seen(evaluation, cell, pick, [name for name in names if member_view(evaluation.config, name) == view], len(names) > 1)
            for (cell, names), pick in zip(shown.items(), picks, strict=True)
        ]
    answers = [answer_of(evaluation, system, cell, pick) for cell, pick in zip(shown, picks, strict=True)]
    columns[f"{system} says"] = [Picture(None, words[k], k == label) for k, label in zip(answers, true, strict=True)]
    levels = [f"{cell.corruption}\nseverity {level_text(cell.severity)}" for cell in shown]
    return image_grid(columns, [f"{level}\ntrue: {words[label]}" for level, label in zip(levels, true, strict=True)])


def _seen(evaluation: Evaluation, cell: Cell, pick: int, names: list[str], several: bool) -> Picture:
    """An image as some members of a system see it, and what they say, if the system has more."""
    if not names:
        return Picture(None)
    members = [evaluation.members[name] for name in names]
    image = pixels_of(members[0].view.source(cell).images([pick])[0])
    if not several:
        return Picture(image)
    words, label = class_words(evaluation.source.classes), int(evaluation.source.labels[pick])
    said = [int(torch.argmax(evaluation.scorer.logits(member, cell, slice(pick, pick + 1)))) for member in members]
    right = None if len({k == label for k in said}) > 1 else said[0] == label
    return Picture(image, ", ".join(words[k] for k in said), right)


def answer_of(evaluation: Evaluation, system: str, cell: Cell, pick: int) -> int:
    """The class that a system finds for an image."""
    chosen = evaluation.config.systems[system]
    members = [evaluation.members[name] for name in members_of(chosen, cell, evaluation.members)]
    scores, _ = system_scores(evaluation.scorer, chosen, evaluation.rules.get(system), members, cell)
    return int(torch.cat([part.argmax(1) for part in scores])[pick])


def pixels_of(image: torch.Tensor) -> np.ndarray:
    """[H,W,3] of [3,H,W]."""
    return image.permute(1, 2, 0).numpy()


def _decisions(evaluation: Evaluation, system: str) -> Figure:
    """One image a row, one that is restored where there is any."""
    rule, source = evaluation.rules[system], evaluation.source
    members = [evaluation.members[name] for name in evaluation.config.systems[system].members]
    words = class_words(source.classes)
    labels: list[str] = []
    columns: dict[str, list[Picture]] = {"as it is": [], "adapted": []}
    for cell in _shown(evaluation, system):
        logits = torch.stack([evaluation.scorer.logits(member, cell) for member in members])
        _, restored = fitted_scores(rule, members, evaluation.scorer, cell)
        assert restored is not None
        places = restored.nonzero()[:, 0] if restored.any() else torch.arange(len(source))
        pick = int(places[7 * len(labels) % len(places)])
        label = int(source.labels[pick])
        sides = zip(columns.values(), two_sides(rule.members, rule.pool, logits), (0, first_other(rule.members)), strict=True)
        for pictures, p, place in sides:
            image, said = members[place].view.source(cell).images([pick])[0], int(p[pick].argmax())
            pictures.append(Picture(pixels_of(image), words[said], said == label))
        decision = "restored" if restored[pick] else "kept"
        labels.append(f"{cell.corruption}\ntrue: {words[label]}, {decision}")
    return image_grid(columns, labels)


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
            where = settings.parent.relative_to(view)
            out[f"view {without_folders(view)} (settings.json of {where})"] = settings.read_text("utf-8")
    return out
