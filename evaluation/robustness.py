"""Robustness in the units of ImageNet-C: mean error, mCE, relative mCE; the gaps of ImageNet-W; and
the calibration error.

Sources: Hendrycks and Dietterich, ICLR 2019 (mCE); Li et al., A Whac-A-Mole Dilemma, CVPR 2023,
arXiv:2212.04825 (ImageNet-W: a watermark that many networks take for the class carton, on whose
photographs it often is); Guo et al., ICML 2017 (expected calibration error).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from undegrade.evaluation.results import CLEAN, MEAN, Result, percent
from undegrade.utils.data.cells import level_text
from undegrade.utils.data.perturbations.c_bar import IMAGENET_C_BAR
from undegrade.utils.data.perturbations.corruptions import CORRUPTIONS
from undegrade.utils.data.perturbations.watermark import WATERMARK

CARTON = "n02971356"  # number 478 of the 1,000
_GAPS = {"IN-W gap": "accuracy", "carton gap": "carton_accuracy",
         "delta P(carton)": "p_carton", "delta P(carton|carton)": "carton_p_carton"}  # fmt: skip

_ALEXNET_SIZE = 224
ALEXNET_CLEAN_ERROR = 0.4348
# top-1 error of torchvision's AlexNet on ImageNet-C, severities 1 to 5, 50,000 images
ALEXNET_ERRORS: dict[str, tuple[float, float, float, float, float]] = {
    "gaussian_noise": (0.69528, 0.82542, 0.93554, 0.98138, 0.99452),
    "shot_noise": (0.71224, 0.85108, 0.93574, 0.98182, 0.99146),
    "impulse_noise": (0.78374, 0.89808, 0.94870, 0.98720, 0.99548),
    "defocus_blur": (0.65624, 0.73202, 0.85036, 0.91364, 0.94714),
    "glass_blur": (0.64308, 0.75054, 0.88806, 0.91622, 0.93344),
    "motion_blur": (0.58430, 0.70048, 0.82108, 0.89750, 0.92638),
    "zoom_blur": (0.70008, 0.76992, 0.80784, 0.84198, 0.87198),
    "snow": (0.71726, 0.88392, 0.86468, 0.91870, 0.94952),
    "frost": (0.61390, 0.79734, 0.88790, 0.89942, 0.93430),
    "fog": (0.67474, 0.76050, 0.84378, 0.87260, 0.94500),
    "brightness": (0.45140, 0.48502, 0.54048, 0.62166, 0.72440),
    "contrast": (0.64548, 0.76150, 0.88874, 0.97760, 0.99270),
    "elastic_transform": (0.52596, 0.70116, 0.55686, 0.64076, 0.80554),
    "pixelate": (0.52218, 0.54620, 0.73728, 0.87092, 0.91262),
    "jpeg_compression": (0.51002, 0.54718, 0.57294, 0.65458, 0.74778),
}


def errors_by_corruption(rows: Sequence[Result], benchmark: Collection[str] = CORRUPTIONS) -> dict[str, dict[int, float]]:
    """corruption -> severity -> error in [0, 1], of one system's rows on the corruptions of the
    benchmark, by default the 15 of ImageNet-C.
    """
    errors: dict[str, dict[int, float]] = {}
    for row in rows:
        if row.corruption in benchmark and row.severity is not None:
            errors.setdefault(row.corruption, {})[int(row.severity)] = 1 - row.accuracy
    return errors


def mean_error(errors: dict[str, dict[int, float]], benchmark: Collection[str] = CORRUPTIONS) -> float | None:
    """Mean over corruptions of the mean error over severities, in [0, 1]; None unless all of the
    benchmark's corruptions are there.
    """
    if set(errors) != set(benchmark):
        return None
    return float(np.mean([np.mean(list(by_severity.values())) for by_severity in errors.values()]))


def mce(errors: dict[str, dict[int, float]], clean_error: float | None = None) -> float | None:
    """Mean corruption error in %: per corruption the errors summed over severities, divided by
    AlexNet's; mean over the 15.

    Args:
        errors: see `errors_by_corruption`.
        clean_error: of the system on clean images; given, the relative mCE: both sums less the
            clean errors.

    Returns:
        None unless all 15 corruptions are there with all 5 severities.
    """
    if _lacking(errors):
        return None
    ratios = []
    for name, by_severity in errors.items():
        own, alexnet = sum(by_severity.values()), sum(ALEXNET_ERRORS[name])
        if clean_error is not None:
            own, alexnet = own - len(by_severity) * clean_error, alexnet - len(by_severity) * ALEXNET_CLEAN_ERROR
        ratios.append(own / alexnet)
    return 100 * float(np.mean(ratios))


def _lacking(errors: dict[str, dict[int, float]]) -> str:
    """Which cells of the benchmark are not there, in words; "" for none."""
    count = sum(1 for name, values in ALEXNET_ERRORS.items() for s in range(1, len(values) + 1) if s in errors.get(name, {}))
    return "" if count == 75 else f"{count} of the 75 cells were evaluated"


def outside_of_mce(classes: Sequence[str], image_size: int, constants: str | None) -> str:
    """Why AlexNet's errors are no unit for the errors of an evaluation; "" where they are.

    Args:
        classes: of the data set.
        image_size: side of the images that are corrupted and classified.
        constants: set of the corruption constants; None: of the image size.
    """
    if len(classes) != 1000 or classes[0] != "n01440764":
        return "the classes are not the 1,000 of ImageNet"
    if image_size != _ALEXNET_SIZE:
        return f"the images have {image_size} pixels, not {_ALEXNET_SIZE}"
    return "" if constants in (None, "imagenet") else f"the corruptions have the constants of {constants}"


def summary(rows: Sequence[Result], outside: str) -> dict[str, float]:
    """`clean error`, `mean error`, under its protocol `mCE` and `relative mCE`, `C-bar error` (the
    mean error on ImageNet-C-bar, for which there is no mCE), and `watermark_gaps`, of one system,
    in %.

    What its rows cannot say is left out.

    Args:
        rows: of one system.
        outside: see `outside_of_mce`.
    """
    errors = errors_by_corruption(rows)
    c_bar = mean_error(errors_by_corruption(rows, IMAGENET_C_BAR), IMAGENET_C_BAR)
    clean = next((1 - row.accuracy for row in rows if row.corruption == CLEAN), None)
    values = {
        "clean error": None if clean is None else 100 * clean,
        "mean error": None if (mean := mean_error(errors)) is None else 100 * mean,
        "mCE": None if outside else mce(errors),
        "relative mCE": None if outside or clean is None else mce(errors, clean),
        "C-bar error": None if c_bar is None else 100 * c_bar,
    }
    return {name: value for name, value in values.items() if value is not None} | watermark_gaps(rows)


def watermark_gaps(rows: Sequence[Result]) -> dict[str, float]:
    """ImageNet-W's metrics of one system, in points: what the watermark adds to accuracy and to the
    probability of carton.

    Args:
        rows: of one system.

    Returns:
        `IN-W gap` (accuracy on watermarked minus clean images), `delta P(carton)`, and `carton gap`
        and `delta P(carton|carton)`, the same over the images of the carton class; nothing where
        one of the two rows is missing or has no `carton_metrics`, the first two where there are no
        images of the carton class.
    """
    known = {row.corruption: {"accuracy": row.accuracy, **row.metrics} for row in rows if "p_carton" in row.metrics}
    if CLEAN not in known or WATERMARK not in known:
        return {}
    marked, clean = known[WATERMARK], known[CLEAN]
    return {gap: 100 * (marked[name] - clean[name]) for gap, name in _GAPS.items() if name in marked and name in clean}


def summary_table(rows: Sequence[Result], outside: str) -> str:
    """One line a system for the terminal: `summary`, and the means over cells of top-5 accuracy and
    calibration error; and what mCE is of, or why there is only a mean error.
    """
    lines: dict[str, dict[str, float]] = {}
    for name in dict.fromkeys(row.system for row in rows):
        own = [row for row in rows if row.system == name and row.corruption != MEAN]
        lines[name] = summary(own, outside)
        for metric, heading in (("top5", "top-5"), ("calibration_error", "calibration error")):
            if known := [row.metrics[metric] for row in own if metric in row.metrics]:
                lines[name][heading] = 100 * float(np.mean(known))
    headings = list(dict.fromkeys(heading for said in lines.values() for heading in said))
    width = max(map(len, [*lines, "in %"]))
    text = ["  ".join(["in %".ljust(width), *headings])]
    for name, said in lines.items():
        cells = (percent(said[h]) if h in said else "-" for h in headings)
        text.append("  ".join([name.ljust(width), *(cell.rjust(len(h)) for cell, h in zip(cells, headings, strict=True))]))
    if "mCE" in headings:
        text.append(f"mCE: errors in units of AlexNet's, {rows[0].n} images a cell (ImageNet-C has 50000)")
    elif "mean error" in headings:
        text.append(f"mean error over the 15 corruptions, no mCE: {outside or _lacking(errors_by_corruption(rows))}")
    return "\n".join(text) + "\n"


@dataclasses.dataclass(frozen=True)
class Outcomes:
    """What scores say, image by image.

    Attributes:
        right: bool [N], whether the highest score is that of the label.
        confidence: float [N], the highest score's share of all.
        top5: bool [N], whether the label is among the five best; None of 5 classes or fewer.
        carton: float [N], the share of the class carton; None where there is no such class.
        predicted: int [N], the class of the highest score.
    """

    right: np.ndarray
    confidence: np.ndarray
    predicted: np.ndarray
    top5: np.ndarray | None
    carton: np.ndarray | None


def outcomes(parts: Iterable[Tensor], labels: Tensor, carton: int | None = None) -> Outcomes:
    """Go through scores without keeping them.

    Args:
        parts: [B, K] of some images at a time, none of them negative.
        labels: int64 [N] of all of them.
        carton: index of the class carton (None: the images are not of ImageNet-W).
    """
    found: list[tuple[Tensor, ...]] = []
    start = 0
    for scores in parts:
        own, shares = labels[start : start + len(scores)], scores / scores.sum(1, keepdim=True)
        top5 = (scores.topk(5).indices == own[:, None]).any(1) if scores.shape[1] > 5 else torch.empty(0)
        of_carton = torch.empty(0) if carton is None else shares[:, carton]
        predicted = scores.argmax(1)
        found.append((predicted == own, shares.amax(1), predicted, top5, of_carton))
        start += len(scores)
    every = [torch.cat(values).numpy() for values in zip(*found, strict=True)]
    return Outcomes(*every[:3], *(values if len(values) else None for values in every[3:]))


def further_metrics(found: Outcomes, labels: np.ndarray, carton: int | None = None) -> dict[str, float]:
    """`calibration_error`; `mean_confidence`, an estimate of the accuracy without labels;
    `effective_classes`, e to the entropy of the distribution of the predictions, 1 where all are of
    one class; of more than 5 classes `top5` (how often the label is among the five best); and
    `carton_metrics`.

    Args:
        found: of N images.
        labels: int [N].
        carton: as for `outcomes`.
    """
    shares = np.bincount(found.predicted) / len(found.predicted)
    metrics = {
        "calibration_error": calibration_error(found.confidence, found.right),
        "mean_confidence": float(found.confidence.mean()),
        "effective_classes": float(np.exp(-(shares[shares > 0] * np.log(shares[shares > 0])).sum())),
    }
    if found.top5 is not None:
        metrics["top5"] = float(found.top5.mean())
    return metrics if found.carton is None else metrics | carton_metrics(found.carton, found.right, labels == carton)


def collapsed_rows(rows: Sequence[Result], classes: int) -> dict[str, list[Result]]:
    """Of each system whose predictions have run into few classes on some test set, the rows of
    those: the effective number is below a quarter of what is possible.

    Args:
        rows: of cells and means; without `effective_classes` they say nothing.
        classes: K.
    """
    found: dict[str, list[Result]] = {}
    for row in rows:
        effective = row.metrics.get("effective_classes")
        if effective is not None and effective < min(classes, row.n) / 4:
            found.setdefault(row.system, []).append(row)
    return found


def collapsed(rows: Sequence[Result], classes: int) -> list[str]:
    """A line for each system of `collapsed_rows`."""
    lines = []
    for system, found in collapsed_rows(rows, classes).items():
        cells = [f"{r.corruption} {level_text(r.severity)} ({r.metrics['effective_classes']:.1f})" for r in found[:3]]
        lines.append(
            f"{system}: predictions run into few of the {classes} classes on {len(found)} test sets, such as {', '.join(cells)}"
        )
    return lines


def calibration_error(confidence: np.ndarray, right: np.ndarray, bins: int = 15) -> float:
    """Expected calibration error in [0, 1]: mean over images of |accuracy - confidence| of their
    bin of confidence.

    torchmetrics gives the same, except that it has a bin of its own for a confidence of exactly 1
    and puts bounds into the upper bin; it takes five times as long (top-5: twenty times) and 2.4
    core seconds to import, as long as all else of an evaluation from cached logits.

    Args:
        confidence: [N] in [0, 1], of the class that was chosen.
        right: bool [N], whether it is the label.
        bins: of equal width over (0, 1].
    """
    place = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    gaps = np.bincount(place, right - confidence, bins)  # sum over a bin's images of accuracy - confidence
    return float(np.abs(gaps).sum() / len(right))


def carton_metrics(p_carton: np.ndarray, right: np.ndarray, own: np.ndarray) -> dict[str, float]:
    """What a row needs for `watermark_gaps`.

    Args:
        p_carton: [N], probability of the class carton.
        right: bool [N], whether the image was classified correctly.
        own: bool [N], whether it is of the class carton.

    Returns:
        `p_carton`, mean probability of carton; where some images are of that class also their
        number `carton_n`, the accuracy on them `carton_accuracy`, and `carton_p_carton`, their mean
        probability of carton; all but the number in [0, 1].
    """
    metrics = {"p_carton": float(p_carton.mean(dtype=float))}
    if own.any():
        metrics["carton_n"] = int(own.sum())
        metrics["carton_accuracy"] = float(right[own].mean())
        metrics["carton_p_carton"] = float(p_carton[own].mean(dtype=float))
    return metrics
