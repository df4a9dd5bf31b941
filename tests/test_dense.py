"""Learning masks and points, and judging what was learnt, from the command line on."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.checkpoints import Parents
from tests.scripts import Done, run_script
from tests.test_dense_data import write_faces, write_wflw
from undegrade.evaluation.dense import rows_of
from undegrade.evaluation.dense_pictures import points_shown, shown
from undegrade.evaluation.ratios import Ratios, draws, interval
from undegrade.trainers.config import OptimizerConfig, TrainConfig
from undegrade.trainers.dense import (
    BiSeNetConfig,
    HeatmapConfig,
    Landmarks,
    LandmarksConfig,
    Segmentation,
    SegmentationConfig,
    build_landmarks,
    build_segmentation,
)
from undegrade.trainers.method import Context
from undegrade.trainers.optimizer import learning_rate_factor
from undegrade.utils.checkpoint import read_description
from undegrade.utils.config import read_yaml
from undegrade.utils.data.cells import Cell
from undegrade.utils.data.sources.registry import open_source
from undegrade.utils.data.targets import IGNORED, Points
from undegrade.utils.figures import sample_grid

SHORT = ("--loop.epochs", 1, "--data.limit", 16, "-d", "cpu")

# --- tasks


def test_segmentation_sums_up_what_it_saw_of_each_image() -> None:
    task = Segmentation(("background", "a", "b"))
    target = torch.tensor([[[0, 0], [1, 1]], [[1, 1], [1, IGNORED]]])
    logits = torch.nn.functional.one_hot(torch.tensor([[[0, 1], [1, 1]], [[1, 1], [0, 2]]]), 3).permute(0, 3, 1, 2) * 50.0
    batch = {"target": target, "key": ["x", "y"]}
    means = {name: values.double().mean().item() for name, values in task.metrics((logits, logits), batch).items()}
    summary = task.summary({**means, "loss": 1.0})
    assert summary == {"loss": 1.0, "miou": pytest.approx((1 / 3 + 4 / 6) / 2), "pixel_accuracy": pytest.approx(5 / 7)}
    one = task.loss(logits, batch, 0.0)
    assert one.item() == pytest.approx(2 * 50 / 7, rel=1e-4) and task.loss((logits, logits), batch, 0.0) == 2 * one


def test_landmarks_leave_out_points_that_are_not_in_the_image() -> None:
    task = Landmarks(Points(names=("a", "b")))
    target = torch.tensor([[[3.0, 4.0], [40.0, 4.0]], [[float("nan"), 0.0], [-5.0, 0.0]]])
    batch = {"target": target, "clean": torch.zeros(2, 3, 16, 16)}
    output = torch.zeros(2, 2, 16, 16)
    output[0, 0, 4, 3] = 1
    output[:, 1] = 7.0
    metrics = task.metrics(output, batch)
    assert metrics["judged"].tolist() == [True, False] and metrics["error"].tolist() == [0, 0]
    assert task.loss(output, batch, 0.0) < 0.1
    assert task.summary({"loss": 1.0, "error": 0.1, "judged": 0.5}) == {"loss": 1.0, "nme": 0.2}
    with pytest.raises(ValueError, match="points have no classes"):
        task.loss(output, batch, 0.1)


def test_the_learning_rate_falls_by_a_power_of_what_is_left() -> None:
    config = OptimizerConfig(lr=0.005, schedule="poly", power=0.9, min_lr=0.001)
    assert [learning_rate_factor(config, epoch, 10) for epoch in (0, 10)] == [1, pytest.approx(0.2)]
    assert learning_rate_factor(config, 5, 10) == pytest.approx(0.2 + 0.8 * 0.5**0.9)


@pytest.mark.parametrize("method", ["segmentation", "landmarks"])
def test_images_without_masks_or_points_are_refused(method: str) -> None:
    source = open_source("Digits", "validation")
    context = Context(source, [], TrainConfig("x"))
    with pytest.raises(ValueError, match=f"method {method} learns (masks|points), and Digits/validation has none"):
        if method == "segmentation":
            build_segmentation(BiSeNetConfig("ResNet20"), SegmentationConfig(), context)
        else:
            build_landmarks(HeatmapConfig("ResNet20"), LandmarksConfig(), context)


# --- intervals


def test_intervals_are_those_of_images_drawn_again() -> None:
    rng = np.random.default_rng(0)
    errors = rng.exponential(size=(400, 1))
    ratios = Ratios(errors, np.ones((400, 1)))
    low, high = interval(ratios.value(draws(400)))
    half = 1.96 * errors.std(ddof=1) / 20
    assert ratios.value()[0] == pytest.approx(errors.mean())
    assert (low, high) == pytest.approx((errors.mean() - half, errors.mean() + half), abs=half / 4)
    assert (draws(400).sum(1) == 400).all() and np.array_equal(draws(5), draws(5))


def test_classes_that_do_not_occur_are_not_in_the_mean() -> None:
    ratios = Ratios(np.array([[1.0, 0, 0], [2.0, 0, 3.0]]), np.array([[2.0, 0, 0], [4.0, 0, 3.0]]))
    assert ratios.value()[0] == 0.75 and ratios.each() == [0.5, None, 1.0]
    assert np.isnan(Ratios(np.zeros((2, 1)), np.zeros((2, 1))).value()[0])


def test_subsets_of_faces_have_their_own_errors(tmp_path: Path) -> None:
    write_wflw(tmp_path)
    source = open_source("WFLW", "test", tmp_path, image_size=20)
    errors = np.arange(1.0, 6.0)[:, None]
    ratios = Ratios(errors, np.ones((5, 1)))
    found = dict.fromkeys((Cell("clean", 0), Cell("fog", 5), Cell("snow", 5)), ratios)
    clean, fog, snow, mean = rows_of("x", "WFLW", "nme", found, source)
    assert (clean.value, clean.n) == (3, 5) and clean.ci95_low < 3 < clean.ci95_high
    assert clean.metrics == {
        "nme_largepose": 5, "n_largepose": 1, "nme_illumination": 2.5, "n_illumination": 4, "nme_blur": 5, "n_blur": 1,
    }  # fmt: skip
    assert dataclasses.replace(mean, corruption="fog") == fog == dataclasses.replace(snow, corruption="fog")


# --- pictures


def test_pictures_show_image_truth_and_prediction_side_by_side() -> None:
    images = torch.full((2, 3, 64, 64), 100, dtype=torch.uint8)
    masks = torch.zeros(2, 64, 64, dtype=torch.int64)
    masks[0, :32], masks[1] = 3, IGNORED
    picture = shown(images, masks, masks * 0)
    bare = sample_grid(images.permute(0, 2, 3, 1).repeat_interleave(3, 0).numpy(), 3, 2)
    assert picture.shape == bare.shape
    changed = (picture != bare).any(-1)
    assert changed.sum() == 32 * 64 * 4 and changed[2:66, 132:260].all()  # the upper half of the second tile
    points = points_shown(images, torch.tensor([[[5.0, 7.0]]] * 2), torch.full((2, 1, 2), float("nan")))
    marked = (points != bare).any(-1)
    assert points.shape == bare.shape and marked.sum() == 2 * 9 and marked[2 + 14, 132 + 10]


# --- from the command line


def trained(config: str, root: Path, *arguments: object) -> Path:
    run_script("train.py", "-c", config, "--save_dir", root, "--run_id", "x", *SHORT, *arguments).check()
    return next(root.glob("*/*/*/x"))


def evaluated(run: Path, *arguments: object) -> Done:
    return run_script("test.py", "-r", run, "-d", "cpu", "--limit", 4, *arguments)


def test_masks_are_learnt_from_a_classifier_on_and_judged(tmp_path: Path) -> None:
    Parents(tmp_path, open_source("Digits", "train", limit=20)).make("ind/Digits/ResNet20_clean", "ResNet20")
    start = ("--model.init_from", "ind/Digits/ResNet20_clean", "--model.width", 8)
    run = trained("configs/segmentation/DigitScenes/ResNet20.yaml", tmp_path, *start)
    description = read_description(run / "best.safetensors")
    assert description["kind"] == "segmenter" and description["image_size"] == 48 and len(description["classes"]) == 11
    assert description["initial_weights"] is not None
    logged = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert {"validation/miou", "validation/pixel_accuracy", "validation/loss", "train/miou"} <= logged[-1].keys()
    cells = ("--corruption", "clean,fog,jpeg_compression", "--severity", 5)
    done = evaluated(run, *cells, "--pictures", 2, "--batch_size", 1, "--out", tmp_path / "out").check()
    assert "Mean intersection over union in %, 4 images of DigitScenes" in done.out
    content = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [row["corruption"] for row in content["rows"]] == ["clean", "fog", "jpeg_compression", "mean"]
    clean = content["rows"][0]
    assert clean["metric"] == "miou" and clean["n"] == 4 and 0 <= clean["ci95_low"] <= clean["ci95_high"] <= 1
    shares = [value for name, value in clean["metrics"].items() if name.startswith("iou_")]
    assert clean["value"] == pytest.approx(np.mean(shares)) and "iou_background" in clean["metrics"]
    assert Image.open(tmp_path / "out" / "pictures" / "fog-5.png").size == (3 * (2 * 48 + 2) + 2, 2 * (2 * 48 + 2) + 2)
    wrong = evaluated(run, "--corruption", "clean", "--dataset", "DigitPoints")
    assert wrong.status != 0 and "knows 11 classes (background, 0, 1, ...), DigitPoints/test has 0 classes: choose" in wrong.err


def test_points_are_learnt_and_judged(tmp_path: Path) -> None:
    run = trained("configs/landmark/DigitPoints/ResNet20.yaml", tmp_path, "--model.width", 8, "--dt", "blur")
    assert read_description(run / "best.safetensors")["points"] == ["top", "bottom", "left", "right", "centroid"]
    assert read_yaml(run / "config.yaml")["data"]["degradations"] == ["blur"]
    evaluated(run, "--corruption", "clean,fog", "--pictures", 1).check()
    found = next((run / "eval").rglob("results.json"))
    rows = json.loads(found.read_text())["rows"]
    assert [(row["metric"], row["n"]) for row in rows] == [("nme", 4)] * 7  # clean, five severities, their mean
    assert all(row["ci95_low"] <= row["value"] <= row["ci95_high"] for row in rows)
    assert (found.parent / "pictures/clean-0.png").is_file()


def test_flags_that_do_not_go_with_the_checkpoint_are_refused(tmp_path: Path) -> None:
    run = trained("configs/landmark/DigitPoints/ResNet20.yaml", tmp_path, "--loop.epochs", 0, "--model.width", 8)
    for given, message in (
        (("--arch", "resnet18"), "says itself which network it holds"),
        (("--overwrite", "true"), "--overwrite has no effect here"),
        (("--members.model.predictor.name", "frozen"), "has no effect here"),
    ):
        done = run_script("test.py", "-r", run, "--corruption", "clean", *given)
        assert done.status != 0 and message in done.err
    done = run_script("test.py", "-r", run, "--predict", tmp_path)
    assert done.status != 0 and re.search("--predict .* finds masks or points: use --pictures 8", done.err)
    Parents(tmp_path, open_source("Digits", "train", limit=20)).make("ind/Digits/c", "ResNet20")
    done = run_script("test.py", "-r", "ind/Digits/c", "--runs", tmp_path, "--corruption", "clean", "--pictures", 2)
    assert done.status != 0 and "--pictures shows masks and points, a classifier has neither" in done.err


@pytest.mark.parametrize(
    ("config", "write", "metric"),
    [("segmentation/CelebAMaskHQ/ResNet18", write_faces, "iou_skin"), ("landmark/WFLW/HRNet18", write_wflw, "nme_illumination")],
)
def test_published_layouts_are_learnt_and_judged(config: str, write: Callable[[Path], Path], metric: str, tmp_path: Path) -> None:
    write(tmp_path)
    sizes = ("--data.root", tmp_path, "--data.image_size", 64, "--data.workers", 0, "--bs", 4)
    run = trained(f"configs/{config}.yaml", tmp_path / "runs", *sizes)
    evaluated(run, "--corruption", "clean", "--out", tmp_path / "out").check()
    (row,) = json.loads((tmp_path / "out" / "results.json").read_text())["rows"]
    assert metric in row["metrics"] and row["dataset"] == config.split("/")[1]
