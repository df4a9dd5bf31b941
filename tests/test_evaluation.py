"""test.py against accuracies worked out from the network itself."""

from __future__ import annotations

import itertools
import json
import math
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torch import Tensor

from tests.checkpoints import finished_run, save_random
from tests.scoring import LIMIT, logits_by_hand, rows_of
from tests.scripts import run_script
from tests.test_watermark import make_font
from undegrade.models.classification.classifier import Classifier
from undegrade.utils.data.cells import Cell
from undegrade.utils.data.perturbations.corruptions import CORRUPTIONS
from undegrade.utils.data.perturbations.degradations import DegradationCompat
from undegrade.utils.data.perturbations.perturbation import PerturbationOptions
from undegrade.utils.data.perturbations.watermark import TEXT
from undegrade.utils.data.sources.registry import open_source
from undegrade.utils.data.views import OnTheFly

FIELDS = ["system", "dataset", "corruption", "severity", "rule", "n", "correct", "accuracy", "ci95_low", "ci95_high"]
FIELDS += ["metrics"]


@pytest.fixture(scope="module")
def digits() -> OnTheFly:
    return OnTheFly(open_source("Digits", "test", limit=LIMIT))


def test_combined_deg_means_the_degradations_of_the_run_beside_the_corruptions_that_are_named(tmp_path: Path) -> None:
    data = {"dataset": "Digits", "degradations": ["saltpepper", "weak_seq"]}
    path = finished_run(tmp_path, "deg_all/Digits/x", config={"data": data})
    run_script("test.py", "-r", path, "--dt", "combined_deg", "--corruption", "clean", "--limit", 2, "--out", tmp_path).check()
    assert Counter(row["corruption"] for row in rows_of(tmp_path)) == {"saltpepper": 26, "weak_seq": 1, "clean": 1, "mean": 1}
    done = run_script("test.py", "-r", save_random(tmp_path / "x.safetensors"), "--dt", "combined_deg")
    assert done.status == 2 and "it names none: give them, --dt jpeg,blur, or --dt all for the four" in done.err
    words = ("-c", "configs/ensemble/Digits/ResNet20_diffaud.yaml", "--dt", "combined_deg")
    done = run_script("test_ensemble.py", *words)
    assert done.status == 2 and "keeps the sweep of the configuration" in done.err


def test_clean_images_are_the_default_and_rows_equal_the_network_by_hand(classifier: Path, tmp_path: Path) -> None:
    done = run_script("test.py", "-r", classifier, "--out", tmp_path).check()
    source = open_source("Digits", "test")
    logits = logits_by_hand(classifier, source.images(range(len(source))))
    right = int((logits.argmax(1) == source.labels).sum())
    (row,) = rows_of(tmp_path)
    assert list(row) == FIELDS
    n = len(source)
    assert n == 359 and 0 < right < n  # a network that is always right or wrong would show nothing
    centre, half = right / n + 1.92073 / n, 1.959964 * math.sqrt(right * (n - right) / n**3 + 0.96036 / n**2)  # Wilson, by hand
    low, high = ((centre + sign * half) / (1 + 3.841459 / n) for sign in (-1, 1))
    expected = ["ResNet20_clean", "Digits", "clean", 0, "first", n, right, right / n]
    assert list(row.values())[:8] == expected
    assert (row["ci95_low"], row["ci95_high"]) == pytest.approx((low, high), abs=1e-5)
    better = (logits > logits.gather(1, source.labels[:, None])).sum(1)  # classes before the right one
    assert row["metrics"]["top5"] == pytest.approx(float((better < 5).double().mean()))
    assert row["accuracy"] < row["metrics"]["top5"] < 1 and 0 < row["metrics"]["calibration_error"] < 1
    files = {"results.json", "results.csv", "correct.npz", "heat_map.png", "severity.png", "logits"}
    assert {p.name for p in tmp_path.iterdir()} == files
    assert f"{100 * right / n:.1f}" in done.out


def test_every_level_of_a_degradation_is_a_row(classifier: Path, runs: Path, digits: OnTheFly, tmp_path: Path) -> None:
    name = ("-r", "ind/Digits/ResNet20_clean", "--runs", runs)
    run_script("test.py", *name, "--dt", "noise", "--limit", LIMIT, "--out", tmp_path).check()
    *cells, mean = rows_of(tmp_path)
    assert [row["severity"] for row in cells] == list(range(51))
    assert {row["corruption"] for row in cells} == {"noise"} and mean["corruption"] == "mean"
    assert mean["n"] == 51 * LIMIT and mean["accuracy"] == pytest.approx(sum(row["accuracy"] for row in cells) / 51)
    for level in (0, 7, 50):
        images = digits.source(Cell("noise", level)).images(range(LIMIT))
        right = int((logits_by_hand(classifier, images).argmax(1) == digits.clean.labels).sum())
        assert cells[level]["correct"] == right and cells[level]["n"] == LIMIT


def test_all_corruptions_of_a_severity(classifier: Path, digits: OnTheFly, tmp_path: Path) -> None:
    words = ("-r", classifier, "--corruption", "all", "--severity", 5, "--limit", LIMIT, "--out", tmp_path)
    run_script("test.py", *words).check()
    *cells, mean = rows_of(tmp_path)
    assert [row["corruption"] for row in cells] == list(CORRUPTIONS) and len(cells) == 15
    assert {row["severity"] for row in cells} == {5} == {mean["severity"]}
    for row in cells[::4]:
        images = digits.source(Cell(row["corruption"], 5)).images(range(LIMIT))
        assert row["correct"] == int((logits_by_hand(classifier, images).argmax(1) == digits.clean.labels).sum())


def test_where_carton_is_among_the_classes_the_watermark_gives_the_gaps_of_imagenet_w(tmp_path: Path) -> None:
    draw, classes = np.random.default_rng(0), ("n01440764", "n02971356", "n04004767")
    for folder, count in [(f"test/{c}", n) for c, n in zip(classes, (5, 4, 3), strict=True)] + [(f"train/{c}", 1) for c in classes]:
        (tmp_path / "photos" / folder).mkdir(parents=True)
        for i in range(count):
            pixels = draw.integers(0, 256, (4, 4, 3), dtype=np.uint8)
            Image.fromarray(pixels).resize((64, 64)).save(tmp_path / "photos" / folder / f"{i}.png")
    checkpoint, font = save_random(tmp_path / "net.safetensors", classes=classes), make_font(tmp_path / "font.ttf", *TEXT[:2])
    words = ("-r", checkpoint, "--dataset", tmp_path / "photos", "--corruption", "clean,watermark,fog", "--severity", 1)
    done = run_script("test.py", *words, "--data.compat.watermark_font", font, "--out", tmp_path / "out").check()
    source = open_source(str(tmp_path / "photos"), "test")
    view, own = OnTheFly(source, options=PerturbationOptions(compat=DegradationCompat(watermark_font=font))), source.labels == 1
    *rows, mean = rows_of(tmp_path / "out")
    values = []
    for row, cell in zip(rows, (Cell("clean", 0), Cell("watermark", 0), Cell("fog", 1)), strict=True):
        scores = logits_by_hand(checkpoint, view.source(cell).images(range(12))).softmax(1)
        right = (scores.argmax(1) == source.labels).double()
        values.append([float(v) for v in (right.mean(), scores[:, 1].mean(), right[own].mean(), scores[own, 1].mean())])
        found = row["metrics"]
        assert [row["accuracy"], *(found[k] for k in ("p_carton", "carton_accuracy", "carton_p_carton"))] == pytest.approx(
            values[-1]
        )
        assert (row["n"], found["carton_n"]) == (12, 4)
    assert mean["corruption"] == "mean" and mean["metrics"] == {}
    heading, line = next((a, b) for a, b in itertools.pairwise(done.out.splitlines()) if a.startswith("in %"))
    told = dict(zip(re.split(r"\s{2,}", heading)[1:], line.split()[1:], strict=True))
    gaps = 100 * (np.array(values[1]) - values[0])
    assert abs(gaps[1]) > 0.1
    names = ("IN-W gap", "delta P(carton)", "carton gap", "delta P(carton|carton)")
    assert [told[name] for name in names] == [f"{gap:.1f}" for gap in gaps]


def test_for_other_classes_the_watermark_is_a_cell_like_any(classifier: Path, tmp_path: Path) -> None:
    font = make_font(tmp_path / "font.ttf", *TEXT[:2])
    words = ("-r", classifier, "--corruption", "clean,watermark", "--limit", LIMIT, "--out", tmp_path / "out")
    done = run_script("test.py", *words, "--data.compat.watermark_font", font).check()
    rows = rows_of(tmp_path / "out")
    assert [row["corruption"] for row in rows] == ["clean", "watermark"] and all(list(row) == FIELDS for row in rows)
    assert "carton" not in done.out and "IN-W" not in done.out


def test_results_lie_below_the_run_by_mode_and_cells(runs: Path) -> None:
    words = ("-r", runs / "ind/Digits/ResNet20_clean/one", "--limit", LIMIT)
    run_script("test.py", *words, "-m", "trial", "--dt", "noise", "--corruption", "clean,jpeg").check()
    out = runs / "ind/Digits/ResNet20_clean/one/trial/noise-clean-jpeg"
    corruptions = [row["corruption"] for row in rows_of(out)]
    assert corruptions[:2] == ["clean", "jpeg"] and corruptions.count("noise") == 51


def test_second_call_reads_the_logits_and_writes_the_same_bytes(
    classifier: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("-r", classifier, "--corruption", "clean,gaussian_noise", "--severity", "1-3", "--limit", LIMIT, "--out", tmp_path)
    first = run_script("test.py", *words).check()
    files = {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in tmp_path.rglob("*") if p.is_file()}
    assert (tmp_path / "logits/images.npz").is_file()  # which images the logits are of
    files = {path: state for path, state in files.items() if path.stem not in ("images", "correct")}
    assert sum(p.suffix == ".npz" for p in files) == 4

    def never(*_: object) -> Tensor:
        raise AssertionError("the network was asked again")

    with monkeypatch.context() as patch:
        patch.setattr(Classifier, "forward", never)
        second = run_script("test.py", *words).check()
    assert second.out == first.out
    for path, (content, changed) in files.items():
        assert path.suffix == ".png" or path.read_bytes() == content
        assert path.suffix != ".npz" or path.stat().st_mtime_ns == changed
    # other images, other logits
    run_script("test.py", *words, "--data.seed", 9, "--overwrite", "true").check()
    assert all(p.stat().st_mtime_ns != changed for p, (_, changed) in files.items() if p.stem.startswith("gaussian"))


def test_data_section_of_a_yaml_and_flags_over_it(classifier: Path, tmp_path: Path) -> None:
    config = tmp_path / "data.yaml"
    config.write_text("data: {dataset: Digits, split: validation, corruptions: [clean], limit: 20}\n")
    run_script("test.py", "-r", classifier, "-c", config, "--out", tmp_path / "out", "--limit", 12).check()
    (row,) = rows_of(tmp_path / "out")
    assert row["n"] == 12
    assert json.loads((tmp_path / "out/results.json").read_text())["meta"]["split"] == "validation"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--corruption", "gausian_noise"), "unknown perturbation 'gausian_noise': did you mean 'gaussian_noise'?"),
        (("--corruption", "fog", "--severity", "6"), "fog severity 6 is out of range"),
        (("--corruption", "fog", "--severity", "high"), "--severity 'high': write one of 1..5"),
        (("--dt", "nois"), "unknown perturbation 'nois': did you mean 'noise'?"),
        (("--dataset", "nowhere/images"), "image folder nowhere/images does not exist"),
        (("--corupton", "fog"), "unknown option '--corupton': did you mean '--corruption'?"),
        (("--data.sevrities", "[5]"), "unknown config key 'sevrities' in section 'data': did you mean 'severities'?"),
    ],
)
def test_mistakes_on_the_command_line_are_named(classifier: Path, tmp_path: Path, words: tuple[str, ...], message: str) -> None:
    done = run_script("test.py", "-r", classifier, "--out", tmp_path / "out", *words)
    assert done.status == 2 and message in done.err and done.err.startswith("error: ")


def test_checkpoint_that_is_missing_or_of_another_kind_is_named(ddpm: Path, runs: Path) -> None:
    done = run_script("test.py", "-r", "sl/Digits/nothing", "--runs", runs)
    assert done.status == 2 and "no checkpoint 'sl/Digits/nothing'" in done.err and "ind/Digits/ResNet20_clean" in done.err
    done = run_script("test.py", "-r", ddpm, "--limit", 10)
    assert done.status == 2 and "holds a diffusion model, a classifier model is needed" in done.err


def test_checkpoint_of_other_classes_is_refused(classifier: Path, tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        for i in range(5):
            path = tmp_path / "pets" / name / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (32, 32), (40 * i, 90, 20)).save(path)
    done = run_script("test.py", "-r", classifier, "--dataset", tmp_path / "pets", "--out", tmp_path / "out")
    assert done.status == 2
    assert "was trained on 10 classes, the data set has 2" in done.err and "class 0 is '0' there, 'cat' here" in done.err


# --- what is evaluated on when nothing is said, and what the run says


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    """Root of a run that was trained on saltpepper, a sequence and a corruption, degraded as in the
    published code.
    """
    compat = {"rounding": "truncate", "salt_value": 1, "blur_intermediate": "uint8"}
    data = {"dataset": "Digits", "degradations": ["saltpepper", "blur+noise", "fog"], "compat": compat, "limit": 3, "seed": 7}
    config = {"data": {**data, "batch_size": 20, "augment": {"flip": True}, "validation": "test"}}
    finished_run(tmp_path, "sl/Digits/ResNet20-ResNet20/mixed", config=config)
    return tmp_path


def test_degradations_that_the_run_was_trained_on_are_the_default(trained: Path) -> None:
    """By the path of the published commands; levels of a sequence are drawn for each image."""
    path = "saved/mixed/SLTrainer/ResNet20-20_Digits/train/latest/model_best.pth"
    run_script("test.py", "-r", path, "--runs", trained, "--limit", LIMIT).check()
    run = trained / "sl/Digits/ResNet20-ResNet20/mixed/one"
    rows = rows_of(run / "eval/saltpepper-fog-blur+noise")
    counts = Counter(row["corruption"] for row in rows)
    assert counts == {"saltpepper": 26, "fog": 5, "blur+noise": 1, "mean": 1}
    assert {row["n"] for row in rows if row["corruption"] != "mean"} == {LIMIT}  # the run's own limit is of training


def test_every_severity_of_a_corruption_is_a_row(trained: Path) -> None:
    words = ("-r", "sl/Digits/ResNet20-ResNet20/mixed", "--runs", trained, "--out", trained / "out")
    run_script("test.py", *words, "--dt", "gaussian_noise,saltpepper", "--limit", LIMIT).check()
    rows = [(row["corruption"], row["severity"]) for row in rows_of(trained / "out")]
    assert rows[:5] == [("gaussian_noise", severity) for severity in (1, 2, 3, 4, 5)] and len(rows) == 5 + 26 + 1


@pytest.mark.parametrize("config", [(), ("-c", "configs/sl/Digits/ResNet20-20.yaml")], ids=["alone", "with a training YAML"])
def test_degradations_are_computed_as_they_were_in_training(trained: Path, config: tuple[str, ...]) -> None:
    """The keys of a training YAML that are of training alone are passed over."""
    words = ("-r", "sl/Digits/ResNet20-ResNet20/mixed", "--runs", trained, "--out", trained / "out", "--limit", LIMIT)
    done = run_script("test.py", *words, *config, "--corruption", "noise,blur").check()
    meta = json.loads((trained / "out/results.json").read_text())["meta"]
    assert meta["compat"] == {"rounding": "truncate", "salt_value": 1, "blur_intermediate": "uint8"}
    assert meta["seed"] == 0 and meta["images"] == LIMIT
    assert "degradations are computed with data.compat" in done.err
    options = PerturbationOptions(compat=DegradationCompat(**meta["compat"]))
    digits = OnTheFly(open_source("Digits", "test", limit=LIMIT), options=options)
    checkpoint = trained / "sl/Digits/ResNet20-ResNet20/mixed/one/best.safetensors"
    stored = np.load(trained / "out/logits/model/blur-random.npz")["logits"]
    by_hand = logits_by_hand(checkpoint, digits.source(Cell("blur")).images(range(LIMIT)))
    assert np.allclose(stored, by_hand, atol=1e-4)
    right = logits_by_hand(checkpoint, OnTheFly(digits.clean).source(Cell("blur")).images(range(LIMIT)))
    assert not np.allclose(stored, right, atol=1e-4)


def test_degradations_of_a_training_yaml_are_swept(trained: Path) -> None:
    config = trained / "train.yaml"
    config.write_text("name: x\ndata: {degradations: [saltpepper], limit: 5}\nmethod: {name: supervised}\n")
    words = ("-r", "sl/Digits/ResNet20-ResNet20/mixed", "--runs", trained, "--out", trained / "out", "--limit", LIMIT)
    run_script("test.py", *words, "-c", config).check()
    assert {row["corruption"] for row in rows_of(trained / "out")} == {"saltpepper", "mean"}
