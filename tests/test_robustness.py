"""mCE against a published vector; ImageNet-W's gaps and the calibration error by hand."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torchmetrics.functional.classification import multiclass_accuracy, multiclass_calibration_error

from undegrade.evaluation.results import Result, cell_result
from undegrade.evaluation.robustness import (
    ALEXNET_ERRORS,
    calibration_error,
    carton_metrics,
    collapsed,
    errors_by_corruption,
    further_metrics,
    mce,
    mean_error,
    outcomes,
    outside_of_mce,
    summary,
    summary_table,
    watermark_gaps,
)
from undegrade.utils.data.perturbations.corruptions import CORRUPTIONS

# torchvision's ResNet-50 v1 on 5,000 images of ImageNet-C, mean error over severities in %
RESNET50 = (68.536, 70.904, 74.012, 61.096, 73.232, 61.868, 63.684, 67.848, 62.684, 54.500, 32.156, 60.896, 55.044, 55.140, 46.156)


def resnet50() -> dict[str, dict[int, float]]:
    return {name: dict.fromkeys(range(1, 6), error / 100) for name, error in zip(CORRUPTIONS, RESNET50, strict=True)}


def test_mce_of_a_known_network_is_the_known_one() -> None:
    errors = resnet50()
    assert mean_error(errors) == pytest.approx(0.6052, abs=5e-5)
    assert mce(errors) == pytest.approx(76.37, abs=0.02)
    assert mce(errors, clean_error=0.2387) == pytest.approx(104.3, abs=0.15)


def test_alexnet_itself_has_mce_of_one_hundred() -> None:
    errors = {name: dict(enumerate(values, 1)) for name, values in ALEXNET_ERRORS.items()}
    assert mce(errors) == pytest.approx(100) and mce(errors, 0.4348) == pytest.approx(100)
    assert mce({name: {5: by_severity[5]} for name, by_severity in errors.items()}) is None


def test_means_of_alexnet_are_those_of_the_published_table() -> None:
    means = {"gaussian_noise": 0.886428, "glass_blur": 0.826268, "brightness": 0.564592, "jpeg_compression": 0.606500}
    assert {name: round(float(np.mean(ALEXNET_ERRORS[name])), 6) for name in means} == means
    assert tuple(ALEXNET_ERRORS) == CORRUPTIONS


def test_without_all_corruptions_there_is_no_mean() -> None:
    errors = resnet50()
    del errors["fog"]
    assert mean_error(errors) is None and mce(errors) is None


def rows(hits: dict[tuple[str, int], list[bool]]) -> list[Result]:
    return [cell_result("s", "d", name, severity, "first", np.array(right)) for (name, severity), right in hits.items()]


CLEAN_ROW = {("clean", 0): [True, True, True, False]}


def test_summary_names_what_the_rows_can_say() -> None:
    given = rows({**CLEAN_ROW, ("jpeg", 30): [False] * 4})
    assert summary(given, "") == {"clean error": 25.0}, "degradations are not of the benchmark"
    full = given + rows({(name, 5): [True, False] for name in CORRUPTIONS})
    assert errors_by_corruption(full)["fog"] == {5: 0.5} and "jpeg" not in errors_by_corruption(full)
    assert summary(full, "") == {"clean error": 25.0, "mean error": 50.0}


def test_mce_is_of_all_75_cells_of_imagenet_alone_and_else_the_reason_is_said() -> None:
    classes = ["n01440764", *map(str, range(999))]
    assert outside_of_mce(classes, 224, None) == outside_of_mce(classes, 224, "imagenet") == ""
    full = rows({**CLEAN_ROW, **{(name, s): [True, False] for name in CORRUPTIONS for s in range(1, 6)}})
    assert set(summary(full, "")) == {"clean error", "mean error", "mCE", "relative mCE"}
    assert "mCE: errors in units of AlexNet's, 4 images a cell (ImageNet-C has 50000)" in summary_table(full, "")
    for outside, reason in (
        (outside_of_mce(["cat", "dog"], 224, None), "the classes are not the 1,000 of ImageNet"),
        (outside_of_mce(classes, 64, None), "the images have 64 pixels, not 224"),
        (outside_of_mce(classes, 224, "cifar"), "the corruptions have the constants of cifar"),
    ):
        assert set(summary(full, outside)) == {"clean error", "mean error"}
        assert f"mean error over the 15 corruptions, no mCE: {reason}\n" in summary_table(full, outside)
    few = [row for row in full if row.severity in (0, 5)]
    assert "mean error over the 15 corruptions, no mCE: 15 of the 75 cells were evaluated\n" in summary_table(few, "")
    assert "mCE" not in summary_table([row for row in full if row.corruption != "fog"], "")


def test_calibration_error_by_hand() -> None:
    probabilities = np.array([[0.9, 0.1], [0.9, 0.1], [0.4, 0.6], [0.45, 0.55]])
    labels = np.array([0, 1, 1, 1])
    # with 2 bins all confidences share the upper one: |3/4 - (0.9 + 0.9 + 0.6 + 0.55) / 4|
    confidence, right = probabilities.max(1), probabilities.argmax(1) == labels
    assert calibration_error(confidence, right, bins=2) == pytest.approx(0.0125)
    # with 10 bins: (0.5, 0.6]: 0.55 and 0.6, both right; (0.8, 0.9]: one right of two
    assert calibration_error(confidence, right, bins=10) == pytest.approx((0.85 + 0.8) / 4)
    assert calibration_error(np.ones(3), np.array([True] * 3)) == 0.0


# --- ImageNet-W: three classes, the last one carton

CLEAN_SCORES = np.array([[0.7, 0.2, 0.1], [0.1, 0.9, 0.0], [0.5, 0.1, 0.4], [0.1, 0.3, 0.6]])
MARKED_SCORES = np.array([[0.1, 0.2, 0.7], [0.1, 0.6, 0.3], [0.2, 0.1, 0.7], [0.1, 0.1, 0.8]])
LABELS = np.array([0, 1, 2, 2])


def carton(probabilities: np.ndarray, labels: np.ndarray, index: int) -> dict[str, float]:
    return carton_metrics(probabilities[:, index], probabilities.argmax(1) == labels, labels == index)


def scored(name: str, probabilities: np.ndarray, labels: np.ndarray = LABELS) -> Result:
    metrics = carton(probabilities, labels, 2)
    return cell_result("s", "d", name, 0, "first", probabilities.argmax(1) == labels, metrics)


def test_carton_metrics_by_hand() -> None:
    expected = {"p_carton": 1.1 / 4, "carton_n": 2, "carton_accuracy": 0.5, "carton_p_carton": 0.5}
    assert carton(CLEAN_SCORES, LABELS, 2) == pytest.approx(expected)
    assert carton(CLEAN_SCORES, LABELS, 0) == pytest.approx(
        {"p_carton": 0.35, "carton_n": 1, "carton_accuracy": 1.0, "carton_p_carton": 0.7}
    )
    assert carton(CLEAN_SCORES[:2], LABELS[:2], 2) == pytest.approx({"p_carton": 0.05}), "no photograph of carton"


def test_gaps_are_watermarked_minus_clean_in_points() -> None:
    given = [scored("clean", CLEAN_SCORES), scored("watermark", MARKED_SCORES)]
    # right of four: 3 both times (the first image is lost, the third won); of carton's two: 1, then
    # both
    expected = {"IN-W gap": 0.0, "carton gap": 50.0, "delta P(carton)": 100 * (2.5 - 1.1) / 4, "delta P(carton|carton)": 25.0}
    assert watermark_gaps(given) == watermark_gaps(given[::-1]) == pytest.approx(expected)
    assert summary(given, "") == pytest.approx({"clean error": 25.0, **expected})
    heading, line, _ = summary_table(given, "").split("\n")
    assert heading.split("  ")[-4:] == list(expected) and line.split()[-4:] == ["0.0", "50.0", "35.0", "25.0"]


def test_without_photographs_of_carton_only_their_gaps_are_missing() -> None:
    given = [scored("clean", CLEAN_SCORES[:2], LABELS[:2]), scored("watermark", MARKED_SCORES[:2], LABELS[:2])]
    assert watermark_gaps(given) == pytest.approx({"IN-W gap": -50.0, "delta P(carton)": 45.0})


def test_there_are_no_gaps_without_both_cells_or_for_rows_that_do_not_know_carton() -> None:
    clean, marked = scored("clean", CLEAN_SCORES), scored("watermark", MARKED_SCORES)
    old = [dataclasses.replace(row, metrics={}) for row in (clean, marked)]
    for given in ([clean], [marked], [clean, scored("fog", MARKED_SCORES)], old, [clean, old[1]], []):
        assert watermark_gaps(given) == {}
    assert summary(old, "") == {"clean error": 25.0}


@pytest.mark.parametrize("classes", [3, 10])
def test_metrics_of_scores_are_those_of_torchmetrics(classes: int) -> None:
    generator = torch.Generator().manual_seed(0)
    scores = 2 * (3 * torch.randn(500, classes, generator=generator, dtype=torch.float64)).softmax(1)
    labels = torch.randint(0, classes, (500,), generator=generator)
    found = further_metrics(outcomes(scores.split(200), labels), labels.numpy())
    reference = {"calibration_error": multiclass_calibration_error(scores / 2, labels, classes, n_bins=15)}
    if classes > 5:
        reference["top5"] = multiclass_accuracy(scores, labels, classes, average="micro", top_k=5)
    shares = torch.bincount(scores.argmax(1)) / len(scores)
    reference["effective_classes"] = torch.distributions.Categorical(shares).entropy().exp()
    reference["mean_confidence"] = (scores / 2).amax(1).mean()
    assert found == pytest.approx({name: float(value) for name, value in reference.items()}, abs=1e-6)


def test_predictions_that_have_run_into_one_class_are_told_of() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(40) % 10
    one_class = torch.rand(40, 10, generator=generator) + 5 * torch.nn.functional.one_hot(torch.tensor(3), 10)
    all_classes = torch.nn.functional.one_hot(labels, 10) + 0.1
    rows = []
    for system, scores in (("gone", one_class), ("well", all_classes)):
        found = outcomes([scores], labels)
        rows.append(cell_result(system, "d", "fog", 5, "first", found.right, further_metrics(found, labels.numpy())))
    assert collapsed(rows, 10) == ["gone: predictions run into few of the 10 classes on 1 test sets, such as fog 5 (1.0)"]


def test_a_confidence_of_one_is_of_the_uppermost_bin() -> None:
    confidence, right = np.array([1.0] * 10 + [0.95] * 10), np.array([True] * 9 + [False] + [True] * 10)
    assert calibration_error(confidence, right) == pytest.approx(0.025)  # |19/20 - (10 + 9.5) / 20|; torchmetrics: 0.075
