"""Weights and gates from the command line: fitted on validation images, used by test_ensemble.py,
refused where they do not belong.
"""

from __future__ import annotations

import csv
import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.adapting import SCRIPT, save_images
from tests.checkpoints import finished_run
from tests.scoring import logits_by_hand, rows_of
from tests.scripts import Done, run_script
from undegrade.evaluation.fitted.rule import pixel_digests, read_rule, write_rule
from undegrade.evaluation.fitted.signals import pixel_signals
from undegrade.utils.config import dump_yaml
from undegrade.utils.data.cells import Cell
from undegrade.utils.data.perturbations.perturbation import PerturbationOptions
from undegrade.utils.data.pixels import to_unit
from undegrade.utils.data.sources.registry import open_source
from undegrade.utils.data.views import open_view

FIT, TEST = ("clean", "noise", "blur+noise"), ("clean", "gaussian_noise")
IMAGES = 20


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classifiers with random weights, adapted images of two filters, a configuration."""
    root = tmp_path_factory.mktemp("gate")
    for seed, name in enumerate(("one", "two")):
        finished_run(root / "runs", name, seed=seed)
    for adapter in ("clahe", "median_filter"):
        for split, cells in (("validation", FIT), ("test", TEST)):
            words = (
                "-c",
                "configs/adapt/Digits/filter.yaml",
                "--adapter",
                adapter,
                "--split",
                split,
                "--corruption",
                ",".join(cells),
            )
            save = ("--limit", IMAGES, "--save_dir", root / adapter / split)
            run_script(SCRIPT, *words, *save).check()
    members = {
        "raw": {"checkpoint": "one"}, "also": {"checkpoint": "two"}, "adapted": {"checkpoint": "two", "view": "adapted"},
        "moved": {"checkpoint": "one", "predictor": {"name": "bn"}},
    }  # fmt: skip
    systems = {
        "votes": {"members": ["raw", "also", "adapted"], "rule": "fitted", "fitted": "votes.json"},
        "gate": {"members": ["raw", "also", "adapted"], "rule": "gate", "fitted": "gate.json"},
        "tta": {"members": ["raw", "moved"], "rule": "gate", "fitted": "tta.json"},
    }
    tree = {"members": members, "systems": systems, "views": {"adapted": str(root / "clahe/test")}, "runs": str(root / "runs"),
            "rules": str(root / "rules"), "data": {"dataset": "Digits", "limit": IMAGES, "constants": "imagenet"}}  # fmt: skip
    (root / "gate.yaml").write_text(dump_yaml(tree))
    return root


def fit(root: Path, *words: object, adapter: str = "clahe") -> Done:
    views = ("--runs", root / "runs", "--views.adapted", root / adapter / "validation")
    return run_script("evaluation/fit_command.py", "-c", root / "gate.yaml", *views, "--corruption", ",".join(FIT), *words)


def score(root: Path, out: Path, *words: object) -> Done:
    cells = ("--corruption", ",".join(TEST), "--severity", 5, "--out", out)
    return run_script("test_ensemble.py", "-c", root / "gate.yaml", "--runs", root / "runs", *cells, *words)


@pytest.fixture(scope="module")
def fitted(root: Path) -> Done:
    return fit(root).check()


def test_rules_are_fitted_told_and_used(root: Path, fitted: Done, tmp_path: Path) -> None:
    assert f"gate: accuracy in % on {IMAGES} validation images" in fitted.out and "noise/random" in fitted.out
    assert "weights, in standard deviations: noise" in fitted.out
    rule = read_rule(root / "rules/gate.json")
    assert [member.kept for member in rule.members.values()] == [True, True, False]
    assert rule.fitted_on["split"] == "validation" and len(rule.fitted_on["pixels"]) == IMAGES
    score(root, tmp_path, "--report", tmp_path / "report.html").check()
    source = open_source("Digits", "test", limit=IMAGES)
    cell = Cell("gaussian_noise", 5)
    views = [open_view(text, source, 0, PerturbationOptions(constants="imagenet")) for text in ("raw", str(root / "clahe/test"))]
    raw, adapted = (view.source(cell).images(range(IMAGES)) for view in views)
    weights = {name: root / f"runs/{name}/one/best.safetensors" for name in ("one", "two")}
    logits = torch.stack(
        [logits_by_hand(weights["one"], raw), logits_by_hand(weights["two"], raw), logits_by_hand(weights["two"], adapted)]
    )
    restored = rule.restored(logits, pixel_signals(rule.signals, to_unit(raw), to_unit(adapted), None))
    assert restored is not None
    rows = {(row["system"], row["corruption"]): row for row in rows_of(tmp_path)}
    row = rows["gate", "gaussian_noise"]
    assert row["metrics"]["restored"] == pytest.approx(float(restored.float().mean()), abs=0.051)
    assert row["correct"] == pytest.approx(int((rule.scores(logits, restored).argmax(1) == source.labels).sum()), abs=1)
    votes = read_rule(root / "rules/votes.json")
    assert rows["votes", "gaussian_noise"]["correct"] == pytest.approx(
        int((votes.scores(logits, None).argmax(1) == source.labels).sum()), abs=1
    )
    assert "restored" not in rows["votes", "gaussian_noise"]["metrics"]
    page = (tmp_path / "report.html").read_text()
    assert "What gates restore" in page and "what each side says of it" in page
    assert score(root, tmp_path).check().out.count("gate minus votes") == 1, "again, from the cache"


def test_photographs_are_labelled_and_each_way_is_told(root: Path, fitted: Done, tmp_path: Path) -> None:
    save_images(tmp_path / "photos", [f"{number}.png" for number in range(5)])
    run_script(SCRIPT, "--adapter", "clahe", "--base_samples", tmp_path / "photos", "--save_dir", tmp_path / "adapted").check()
    words = ("--predict", tmp_path / "photos", "--views.adapted", tmp_path / "adapted", "--out", tmp_path / "p.csv")
    config = ("-c", root / "gate.yaml", "--runs", root / "runs", "--data.image_size", 32)
    run_script("test_ensemble.py", *config, *words, "--system", "gate").check()
    rows = list(csv.DictReader((tmp_path / "p.csv").open()))
    assert len(rows) == 5 and {row["restored"] for row in rows} <= {"yes", "no"}
    run_script("test_ensemble.py", *config, *words, "--system", "votes").check()
    assert "restored" not in next(csv.reader((tmp_path / "p.csv").open()))
    other = ("--adapter", "clahe", "--clahe.clip", 4, "--base_samples", tmp_path / "photos", "--save_dir", tmp_path / "other")
    run_script(SCRIPT, *other).check()
    done = run_script("test_ensemble.py", *config, *words, "--system", "gate", "--views.adapted", tmp_path / "other")
    assert done.status == 2 and "was fitted for member 'adapted' on images of clahe" in done.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--data.split", "test"), "data.split test: rules are fitted on validation images, never on test images"),
        (("--corruption", "clean,fog"), "--corruption fog: fog is a corruption of tests"),
        (("--corruption", "noise+gaussian_noise"), "gaussian_noise is a corruption of tests"),
        (("--max_loss", "0.5"), "10 images, half of the validation images, cannot show it"),
        (("--max_loss", "30", "--corruption", "noise"), "--max_loss is about clean images, too: add clean to --corruption"),
        (("--check", "10"), "--check goes with --max_loss"),
        (("--max_loss", "0"), "--max_loss"),
        (("--signals", "image,feature"), "unknown group of signals 'feature'"),
        (("--systems", "{votes: {members: [raw], rule: sum}}"), "rule 'sum', fitted 'votes.json'"),
        (("--systems.gate.members", "[raw, also]"), "there are no others: add a member with another view"),
        (("--views.adapted", "nowhere"), "view 'nowhere' is neither"),
    ],
)
def test_what_a_rule_cannot_be_fitted_on_is_refused(root: Path, words: tuple[str, ...], message: str) -> None:
    done = fit(root, *words, "--rules", root / "refused")
    assert done.status == 2 and message in done.err, done.err
    assert not (root / "refused/gate.json").exists()


def test_rules_that_do_not_fit_an_evaluation_are_refused(root: Path, fitted: Done, tmp_path: Path) -> None:
    leaked = tmp_path / "leaked"
    shutil.copytree(root / "rules", leaked, ignore=shutil.ignore_patterns("validation"))
    for path in leaked.iterdir():
        rule = read_rule(path)
        seen = {**rule.fitted_on, "pixels": pixel_digests(open_source("Digits", "test", limit=IMAGES).images(range(IMAGES)))}
        write_rule(path, dataclasses.replace(rule, fitted_on=seen))
    cases = [
        (("--rules", tmp_path), "fit the rule on validation images by python evaluation/fit_command.py"),
        (("--views.adapted", root / "median_filter/test"), "was fitted for member 'adapted' on images of clahe"),
        (("--members.also.checkpoint", "one"), "was fitted for another member 'also'"),
        (("--systems.gate.fitted", "votes.json"), "holds the rule 'fitted', not 'gate'"),
        (("--rules", leaked), f"was fitted on the labels of {IMAGES} of the {IMAGES} images that are evaluated"),
    ]  # fmt: skip
    for words, message in cases:
        done = score(root, tmp_path / "out", *words)
        assert done.status == 2 and message in done.err, done.err


def test_a_promise_is_written_down_checked_and_told(root: Path) -> None:
    words = ("--max_loss", 45, "--check", 3, "--rules", root / "promised", "--signals", "image,change,members,features")
    done = fit(root, *words)
    assert done.status == 2 and "20 validation images are too few, give 24 or leave it out" in done.err
    done = fit(root, *words, "--max_loss", 50).check()
    rule = read_rule(root / "promised/gate.json")
    assert rule.guarantee is not None and rule.guarantee["max_loss"] == 0.5 and rule.guarantee["images"] == IMAGES // 2
    assert rule.signals[-1] == "feature_distance" and len(rule.gate.weights) == 8
    assert "the promise of at most 50.0 points was kept on" in done.out and "of 3 random halves" in done.out
    assert json.loads((root / "promised/gate.json").read_text())["provenance"]


def test_a_gate_of_an_adapting_member_knows_its_protocol(root: Path, fitted: Done) -> None:
    rule = read_rule(root / "rules/tta.json")
    assert [member.kept for member in rule.members.values()] == [True, False]
    assert "bn" in rule.members["moved"].digest
    assert np.isfinite(rule.gate.weights).all() and rule.gate.weights[rule.signals.index("change")] == 0, (
        "one view: nothing changes"
    )
