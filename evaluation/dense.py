"""Evaluation of networks for masks and points: rows, intervals, pictures.

A measure is a mean of ratios of sums over images: of intersection and union for each class (mean
intersection over union), or of errors and their number (normalised mean error). Its interval is of
the images (evaluation/ratios.py), which are drawn alike for every cell.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from undegrade.evaluation.config import EvaluationConfig
from undegrade.evaluation.dense_pictures import points_shown, shown
from undegrade.evaluation.ensemble import cpu_batch
from undegrade.evaluation.ratios import INTERVAL, RATIOS, Ratios, draws, interval, write_ratios
from undegrade.evaluation.result_files import RESULTS, write_json
from undegrade.evaluation.results import CLEAN, MEAN, percent
from undegrade.models.dense.landmarks import decode
from undegrade.models.dense.loading import DenseNetwork, load_dense
from undegrade.models.dense.scores import check_mask, overlaps, point_errors
from undegrade.models.dense.segmentation import BiSeNet
from undegrade.utils.checkpoint import file_digest
from undegrade.utils.data.cells import Cell, level_text
from undegrade.utils.data.pixels import to_unit
from undegrade.utils.data.sources.image_source import ImageSource
from undegrade.utils.data.sources.readable import without_broken
from undegrade.utils.data.targets import Mask, Points
from undegrade.utils.data.views import open_view
from undegrade.utils.figures import save
from undegrade.utils.interruption import Interrupted, Interruption
from undegrade.utils.lock import locked
from undegrade.utils.progress import progress_bar
from undegrade.utils.provenance import listing_digest, provenance

log = logging.getLogger(__name__)

MIOU, NME = "miou", "nme"
METRICS = {MIOU: "Mean intersection over union in %", NME: "Normalised mean error in %"}


@dataclasses.dataclass(frozen=True)
class DenseResult:
    """One row: a network on one cell, or (`corruption="mean"`) the mean over the corrupted cells.

    Attributes:
        system, dataset, corruption, severity: as those of `evaluation.results.Result`.
        metric: `miou`, in [0, 1], the higher the better; or `nme`, in units of a length of the
            data set, the lower the better.
        n: images.
        value, ci95_low, ci95_high: of the metric.
        metrics: `iou_<class>` of each class that occurs; or `nme_<group>` of groups of images with
            their numbers, `n_<group>`.
    """

    system: str
    dataset: str
    corruption: str
    severity: float | None
    metric: str
    n: int
    value: float
    ci95_low: float
    ci95_high: float
    metrics: Mapping[str, float]


def evaluate_dense(
    config: EvaluationConfig, device: torch.device, pictures: int = 0, interruption: Interruption | None = None
) -> list[DenseResult]:
    """Judge the network of the only member on every cell, print a table, and write
    `<out>/results.json`, beside it `ratios.npz` with the parts of each image; what is there is
    replaced.

    Args:
        config: what is evaluated.
        device: of the network.
        pictures: so many images of each cell are shown in `<out>/pictures/<cell>.png`: the image,
            its truth, the prediction.
        interruption: asked after each batch.

    Raises:
        Interrupted: nothing is written.
        ValueError, FileNotFoundError: the data set has other classes or points than the network, or
            see `load_dense`, `open_view`, `TestDataConfig.cells`.
    """
    ((system, _),), (member,) = config.systems.items(), config.members.values()
    cells, out = config.data.cells(), Path(config.out)
    network, description = load_dense(Path(member.checkpoint))
    network.set_normalisation(member.mean, member.std)
    network = network.to(device).to(memory_format=torch.channels_last)
    source = without_broken(config.data.open(config.data.split), out if config.cache else None)
    _check_fits(network, source, member.checkpoint)
    if source.image_size != description.get("image_size", source.image_size):
        log.warning("the network learnt images of %s px, these have %d", description["image_size"], source.image_size)
    view = open_view(member.view, source, config.data.seed, config.data)
    metric, dataset = MIOU if isinstance(network, BiSeNet) else NME, Path(config.data.dataset).name
    size = min(config.batch_size, cpu_batch(source.image_size)) if device.type == "cpu" else config.batch_size
    found: dict[Cell, Ratios] = {}
    with locked(out, "evaluation"), progress_bar(total=len(cells) * len(source), unit="img", desc="judging") as bar:

        def on_images(count: int) -> None:
            bar.update(count)
            if interruption is not None and interruption.due:
                raise Interrupted(f"{interruption.reason} in {bar.n} of {bar.total} images, nothing is written")

        for cell in cells:
            bar.set_postfix_str(cell.folder)
            seen = view.source(cell)
            found[cell], predicted = _judged(network, device, seen, source, size, pictures, on_images)
            if pictures:
                _show(out / "pictures" / f"{cell.folder.replace('/', '-')}.png", network, seen, source, predicted)
        results = rows_of(system, dataset, metric, found, source)
        write_ratios(out / RATIOS, found)
        write_json(out / RESULTS, results, _facts(config, member.checkpoint, member.view, source))
    print(table(results))
    print(f"written: {out}/{RESULTS}{', pictures/' if pictures else ''}")
    return results


def _check_fits(network: DenseNetwork, source: ImageSource, checkpoint: str) -> None:
    target = source.target
    if isinstance(network, BiSeNet):
        kind, own, there = "classes", network.classes, target.classes if isinstance(target, Mask) else ()
    else:
        kind, own, there = "points", network.points, target.names if isinstance(target, Points) else ()
    if own != there:
        known, has = (f"{len(names)} {kind}" + f" ({', '.join(names[:3])}, ...)" * bool(names) for names in (own, there))
        raise ValueError(
            f"checkpoint {checkpoint} knows {known}, {source.name} has {has}: choose the data set that it was trained on"
        )


def _judged(
    network: DenseNetwork,
    device: torch.device,
    seen: ImageSource,
    source: ImageSource,
    size: int,
    kept: int,
    on_images: Callable[[int], None],
) -> tuple[Ratios, Tensor]:
    """What the network makes of the images of a cell, `seen`, whose truth `source` has, in batches
    of `size`; and its predictions of the first `kept`.
    """
    parts, predictions = [], []
    for start in range(0, len(source), size):
        rows = range(start, min(start + size, len(source)))
        with torch.inference_mode():
            output = network(to_unit(seen.images(rows)).to(device, memory_format=torch.channels_last))
        target = source.targets(rows).to(device)
        if isinstance(network, BiSeNet):
            check_mask(target, network.classes, [source.keys[row] for row in rows])
            predicted = output.argmax(1)
            above, below = overlaps(predicted, target, len(network.classes))
        else:
            assert isinstance(source.target, Points)
            predicted = decode(output.float(), source.image_size)
            above, below = (v[:, None] for v in point_errors(predicted, target, source.image_size, source.target.unit))
        parts.append((above.double().cpu().numpy(), below.double().cpu().numpy()))
        predictions.append(predicted[: max(0, kept - start)].cpu())
        on_images(len(rows))
    return Ratios(*(np.concatenate(side) for side in zip(*parts, strict=True))), torch.cat(predictions)


def _show(path: Path, network: DenseNetwork, seen: ImageSource, source: ImageSource, predicted: Tensor) -> None:
    """A picture of the first images of a cell, for as many as there are predictions."""
    rows = range(len(predicted))
    path.parent.mkdir(parents=True, exist_ok=True)
    draw = shown if isinstance(network, BiSeNet) else points_shown
    save(draw(seen.images(rows), source.targets(rows), predicted), path)


def rows_of(system: str, dataset: str, metric: str, found: Mapping[Cell, Ratios], source: ImageSource) -> list[DenseResult]:
    """A row for each cell, and the mean over the corrupted ones where there are several."""
    drawn = draws(len(source))
    samples = {cell: ratios.value(drawn) for cell, ratios in found.items()}
    rows = []
    for cell, ratios in found.items():
        (value,), metrics = ratios.value(), _further(metric, ratios, source)
        if np.isnan(value):
            raise ValueError(
                f"none of the {len(source)} images of {source.name} can be judged: no pixel has a class, or no point is seen"
            )
        rows.append(DenseResult(system, dataset, *cell, metric, len(source), float(value), *interval(samples[cell]), metrics))
    corrupted = [row for row in rows if row.corruption != CLEAN]
    if len(corrupted) > 1:
        together = np.mean([values for cell, values in samples.items() if cell.corruption != CLEAN], axis=0)
        severities = {row.severity for row in corrupted}
        known = [name for name in corrupted[0].metrics if all(name in row.metrics for row in corrupted)]
        rows.append(
            DenseResult(
                system, dataset, MEAN, severities.pop() if len(severities) == 1 else None, metric, len(source),
                float(np.mean([row.value for row in corrupted])), *interval(together),
                {name: float(np.mean([row.metrics[name] for row in corrupted])) for name in known},
            )
        )  # fmt: skip
    return rows


def _further(metric: str, ratios: Ratios, source: ImageSource) -> dict[str, float]:
    if metric == MIOU:
        assert isinstance(source.target, Mask)
        shares = zip(source.target.classes, ratios.each(), strict=True)
        return {f"iou_{name}": share for name, share in shares if share is not None}
    found: dict[str, float] = {}
    for name, members in source.groups.items():
        own = members.numpy()
        (value,) = Ratios(ratios.above[own], ratios.below[own]).value()
        if not np.isnan(value):
            found |= {f"nme_{name}": float(value), f"n_{name}": int(own.sum())}
    return found


def table(rows: Sequence[DenseResult]) -> str:
    """Text for the terminal: the metric in percent with its interval, and the further metrics of
    clean images and of the mean.
    """
    first = rows[0]
    width = max(len(_name(row)) for row in rows)
    lines = [f"{METRICS[first.metric]}, {first.n} images of {first.dataset}, 95 % interval over images"]
    for row in rows:
        low, value, high = (percent(100 * x, digits=2) for x in (row.ci95_low, row.value, row.ci95_high))
        lines.append(f"{_name(row):{width}}  {value:>6}  [{low}, {high}]")
        if row.metrics and row.corruption in (CLEAN, MEAN):
            shares = [f"{name} {percent(100 * x, digits=1)}" for name, x in row.metrics.items() if not name.startswith("n_")]
            lines.append(f"{'':{width}}  {', '.join(shares)}")
    return "\n".join(lines) + "\n"


def _name(row: DenseResult) -> str:
    without = row.corruption == CLEAN or (row.corruption == MEAN and row.severity is None)
    return row.corruption if without else f"{row.corruption} {level_text(row.severity)}"


def _facts(config: EvaluationConfig, checkpoint: str, view: str, source: ImageSource) -> dict[str, Any]:
    data = config.data
    return {
        "dataset": data.dataset, "split": data.split, "images": len(source), "frame": source.frame, "view": view,
        "listing": listing_digest(source.keys, source.labels), "seed": data.seed, "constants": data.constants, **data.changed(),
        "checkpoint": file_digest(checkpoint), "interval": INTERVAL, "provenance": [provenance()],
    }  # fmt: skip
