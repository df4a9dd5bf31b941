"""Robustness in the units of ImageNet-C: mean error, mCE, relative mCE; the gaps of ImageNet-W; and
the calibration error.

Sources: Hendrycks and Dietterich, ICLR 2019 (mCE); Li et al., A Whac-A-Mole Dilemma, CVPR 2023,
arXiv:2212.04825 (ImageNet-W: a watermark that many networks take for the class carton, on whose
photographs it often is); Guo et al., ICML 2017 (expected calibration error).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
from torch import Tensor

from undegrade.evaluation.results import CLEAN, MEAN, Result, percent
from undegrade.utils.data.perturbations.c_bar import IMAGENET_C_BAR
from undegrade.utils.data.perturbations.corruptions import CORRUPTIONS
from undegrade.utils.data.perturbations.watermark import WATERMARK

CARTON = "n02971356"  # number 478 of the 1,000
_GAPS = {"IN-W gap": "accuracy", "carton gap": "carton_accuracy",
         "delta P(carton)": "p_carton", "delta P(carton|carton)": "carton_p_carton"}  # fmt: skip

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

    With severities missing the sums run over those that are there, in both.

    Args:
        errors: see `errors_by_corruption`.
        clean_error: of the system on clean images; given, the relative mCE: both sums less the
            clean errors.

    Returns:
        None unless all 15 corruptions are there.
    """
    if set(errors) != set(CORRUPTIONS):
        return None
    ratios = []
    for name, by_severity in errors.items():
        own = sum(by_severity.values())
        alexnet = sum(ALEXNET_ERRORS[name][severity - 1] for severity in by_severity)
        if clean_error is not None:
            own, alexnet = own - len(by_severity) * clean_error, alexnet - len(by_severity) * ALEXNET_CLEAN_ERROR
        ratios.append(own / alexnet)
    return 100 * float(np.mean(ratios))


def summary(rows: Sequence[Result], imagenet: bool) -> dict[str, float]:
    """`clean error`, `mean error`, for ImageNet `mCE` and `relative mCE`, `C-bar error` (the mean
    error on ImageNet-C-bar, for which there is no mCE), and `watermark_gaps`, of one system, in %.

    What its rows cannot say is left out.

    Args:
        rows: of one system.
        imagenet: whether AlexNet's errors stand for the data set; for others no agreed baseline
            exists.
    """
    errors = errors_by_corruption(rows)
    c_bar = mean_error(errors_by_corruption(rows, IMAGENET_C_BAR), IMAGENET_C_BAR)
    clean = next((1 - row.accuracy for row in rows if row.corruption == CLEAN), None)
    values = {
        "clean error": None if clean is None else 100 * clean,
        "mean error": None if (mean := mean_error(errors)) is None else 100 * mean,
        "mCE": mce(errors) if imagenet else None,
        "relative mCE": mce(errors, clean) if imagenet and clean is not None else None,
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


def is_imagenet(classes: Sequence[str]) -> bool:
    """Whether these are the 1,000 classes of ImageNet, in whose units mCE is."""
    return len(classes) == 1000 and classes[0] == "n01440764"


def summary_table(rows: Sequence[Result], imagenet: bool) -> str:
    """One line a system for the terminal: `summary`, and the means over cells of top-5 accuracy and
    calibration error.
    """
    lines: dict[str, dict[str, float]] = {}
    for name in dict.fromkeys(row.system for row in rows):
        own = [row for row in rows if row.system == name and row.corruption != MEAN]
        lines[name] = summary(own, imagenet)
        for metric, heading in (("top5", "top-5"), ("calibration_error", "calibration error")):
            if known := [row.metrics[metric] for row in own if metric in row.metrics]:
                lines[name][heading] = 100 * float(np.mean(known))
    headings = list(dict.fromkeys(heading for said in lines.values() for heading in said))
    width = max(map(len, [*lines, "in %"]))
    text = ["  ".join(["in %".ljust(width), *headings])]
    for name, said in lines.items():
        cells = (percent(said[h]) if h in said else "-" for h in headings)
        text.append("  ".join([name.ljust(width), *(cell.rjust(len(h)) for cell, h in zip(cells, headings, strict=True))]))
    return "\n".join(text) + "\n"


def further_metrics(scores: Tensor, labels: Tensor, carton: int | None = None) -> dict[str, float]:
    """`calibration_error`, of more than 5 classes `top5` (how often the label is among the five
    best), and `carton_metrics`.

    Args:
        scores: [N, K], none of them negative.
        labels: int64 [N].
        carton: index of the class carton (None: the images are not of ImageNet-W).
    """
    probabilities = (scores / scores.sum(1, keepdim=True)).numpy()
    metrics = {"calibration_error": calibration_error(probabilities, labels.numpy())}
    if scores.shape[1] > 5:
        metrics["top5"] = float((scores.topk(5).indices == labels[:, None]).any(1).double().mean())
    return metrics if carton is None else metrics | carton_metrics(probabilities, labels.numpy(), carton)


def calibration_error(probabilities: np.ndarray, labels: np.ndarray, bins: int = 15) -> float:
    """Expected calibration error in [0, 1]: mean over images of |accuracy - confidence| of their
    bin of confidence.

    torchmetrics gives the same, except that it has a bin of its own for a confidence of exactly 1
    and puts bounds into the upper bin; it takes five times as long (top-5: twenty times) and 2.4
    core seconds to import, as long as all else of an evaluation from cached logits.

    Args:
        probabilities: [N, K], rows that sum to 1.
        labels: int [N].
        bins: of equal width over (0, 1].
    """
    confidence = probabilities.max(1)
    right = probabilities.argmax(1) == labels
    place = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    gaps = np.bincount(place, right - confidence, bins)  # sum over a bin's images of accuracy - confidence
    return float(np.abs(gaps).sum() / len(labels))


def carton_metrics(probabilities: np.ndarray, labels: np.ndarray, carton: int) -> dict[str, float]:
    """What a row needs for `watermark_gaps`.

    Args:
        probabilities: [N, K], rows that sum to 1.
        labels: int [N].
        carton: index of the carton class.

    Returns:
        `p_carton`, mean probability of carton; where some images are of that class also their
        number `carton_n`, the accuracy on them `carton_accuracy`, and `carton_p_carton`, their mean
        probability of carton; all but the number in [0, 1].
    """
    metrics = {"p_carton": float(probabilities[:, carton].mean(dtype=float))}
    own = probabilities[labels == carton]
    if len(own):
        metrics["carton_n"] = len(own)
        metrics["carton_accuracy"] = float((own.argmax(1) == carton).mean())
        metrics["carton_p_carton"] = float(own[:, carton].mean(dtype=float))
    return metrics
