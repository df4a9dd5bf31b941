"""test.py and test_ensemble.py against accuracies worked out from the networks themselves."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from torch import Tensor

from models.classifiers import Classifier, describe
from models.loading import load_classifier
from models.rules import INPUT_RULES, RULES
from tests.scripts import Done, run_script
from trainers.evaluation import EvaluationConfig, check_systems
from utils.checkpoint import save_checkpoint
from utils.config import build
from utils.data.cells import Cell, FolderTree, OnTheFly
from utils.data.corruptions import CORRUPTIONS
from utils.data.sources import open_source

FIELDS = ["system", "dataset", "corruption", "severity", "rule", "n", "correct", "accuracy", "ci95_low", "ci95_high"]
LIMIT = 10


def rows_of(out: Path) -> list[dict]:
    return json.loads((out / "results.json").read_text())["rows"]


def logits_by_hand(checkpoint: Path, images: Tensor) -> Tensor:
    with torch.no_grad():
        return load_classifier(checkpoint)(images.float() / 255)


@pytest.fixture(scope="module")
def digits() -> OnTheFly:
    return OnTheFly(open_source("Digits", "test", limit=LIMIT))


@pytest.fixture(scope="module")
def adapted(tmp_path_factory: pytest.TempPathFactory, save_adapted: Callable[[Path, str], None]) -> Path:
    """A view on disk: the digits mirrored, `<view>/jpeg/random/<class>/<name>.png`."""
    folder = tmp_path_factory.mktemp("adapted") / "test"
    save_adapted(folder, "test")
    return folder


def view_of(adapted: Path, digits: OnTheFly) -> Tensor:
    return FolderTree(adapted, digits.clean).source(Cell("jpeg")).images(range(LIMIT))


@pytest.fixture(scope="module")
def other(classifier: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A second classifier: the first one, disturbed."""
    network = load_classifier(classifier)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in network.parameters():
            p += 0.3 * p.std() * torch.randn(p.shape, generator=generator) if p.numel() > 1 else 0
    path = tmp_path_factory.mktemp("other") / "best.safetensors"
    save_checkpoint(path, network.network.state_dict(), {**describe(network), "classes": [str(d) for d in range(10)]})
    return path


# --- one checkpoint


def test_clean_images_are_the_default_and_rows_equal_the_network_by_hand(classifier: Path, tmp_path: Path) -> None:
    done = run_script("test.py", "-r", classifier, "--out", tmp_path).check()
    source = open_source("Digits", "test")
    right = int((logits_by_hand(classifier, source.images(range(len(source)))).argmax(1) == source.labels).sum())
    (row,) = rows_of(tmp_path)
    assert list(row) == FIELDS
    n = len(source)
    assert n == 359 and 0 < right < n  # a network that is always right or wrong would show nothing
    centre, half = right / n + 1.92073 / n, 1.959964 * math.sqrt(right * (n - right) / n**3 + 0.96036 / n**2)  # Wilson, by hand
    low, high = ((centre + sign * half) / (1 + 3.841459 / n) for sign in (-1, 1))
    expected = ["ResNet20_clean", "Digits", "clean", 0, "first", n, right, right / n]
    assert list(row.values())[:8] == expected
    assert (row["ci95_low"], row["ci95_high"]) == pytest.approx((low, high), abs=1e-5)
    assert {p.name for p in tmp_path.iterdir()} == {"results.json", "results.csv", "heat_map.png", "severity.png", "logits"}
    assert f"{100 * right / n:.1f}" in done.out


def test_every_level_of_a_degradation_is_a_row(classifier: Path, runs: Path, digits: OnTheFly, tmp_path: Path) -> None:
    run_script("test.py", "-r", "ind/Digits/ResNet20_clean", "--runs", runs, "--dt", "noise", "--limit", LIMIT, "--out", tmp_path).check()
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


def test_results_lie_below_the_run_by_mode_and_cells(runs: Path) -> None:
    words = ("-r", runs / "ind/Digits/ResNet20_clean/one", "--limit", LIMIT)
    run_script("test.py", *words, "-m", "trial", "--dt", "noise", "--corruption", "clean,jpeg").check()
    out = runs / "ind/Digits/ResNet20_clean/one/trial/noise-clean-jpeg"
    corruptions = [row["corruption"] for row in rows_of(out)]
    assert corruptions[:2] == ["clean", "jpeg"] and corruptions.count("noise") == 51


def test_second_call_reads_the_logits_and_writes_the_same_bytes(classifier: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("-r", classifier, "--corruption", "clean,gaussian_noise", "--severity", "1-3", "--limit", LIMIT, "--out", tmp_path)
    first = run_script("test.py", *words).check()
    files = {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in tmp_path.rglob("*") if p.is_file()}
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
    run_script("test.py", *words, "--data.seed", 9).check()
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
        (("--corruption", "gausian_noise"), "unknown corruption or degradation 'gausian_noise': did you mean 'gaussian_noise'?"),
        (("--corruption", "fog", "--severity", "6"), "severities [6] for fog: choose from 1, 2, 3, 4, 5"),
        (("--corruption", "fog", "--severity", "high"), "--severity 'high': write one of 1..5"),
        (("--dt", "nois"), "unknown degradation 'nois': did you mean 'noise'?"),
        (("--dataset", "nowhere/images"), "image folder nowhere/images does not exist"),
        (("--corupton", "fog"), "unknown option '--corupton': did you mean '--corruption'?"),
        (("--data.sevrities", "[5]"), "unknown config key 'sevrities' in section 'data': did you mean 'severities'?"),
        (("--limit", "0"), "a limit of 0 images leaves nothing"),
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


# --- systems of several members


def ensemble_yaml(path: Path, classifier: Path, other: Path, adapted: Path, systems: dict) -> Path:
    members = {
        "plain": {"checkpoint": str(classifier)},
        "mirrored": {"checkpoint": str(other), "view": "shown"},
        "third": {"checkpoint": str(other)},
        "unused": {"checkpoint": "no/such/run"},
    }
    tree = {"members": members, "views": {"shown": str(adapted)}, "systems": systems, "data": {"dataset": "Digits", "limit": LIMIT}}
    path.write_text(yaml.safe_dump(tree, sort_keys=False))
    return path


def expected_prediction(rule: str, a: Tensor, b: Tensor, classify: Callable[[Tensor], Tensor]) -> Tensor:
    """Class of one image from the two members' logits [10], by the rule's own words."""
    p, q = a.double().softmax(0), b.double().softmax(0)
    entropy = [-(x * x.log()).sum() for x in (p, q)]
    confidence, variance = [x.max() for x in (p, q)], [x.var() for x in (p, q)]
    tied = (a if a.argmax() == b.argmax() else a + b).argmax()
    certainty = {"entropy": entropy[::-1], "confidence": confidence, "var": variance}
    if rule.endswith("_fuse"):
        u = torch.stack(certainty[rule.removesuffix("_fuse")]).softmax(0)
        return classify(u)
    table = {
        "first": p, "second": q, "sum": p + q,
        "entropy": p if entropy[0] < entropy[1] else q,
        "confidence": p if confidence[0] > confidence[1] else q,
        "var": p if variance[0] > variance[1] else q,
        "entropy_sum": entropy[1] * p + entropy[0] * q,
        "confidence_sum": confidence[0] * p + confidence[1] * q,
    }  # fmt: skip
    return tied if rule == "vote" else table[rule].argmax()


def test_every_rule_scores_what_its_formula_says(
    classifier: Path, other: Path, adapted: Path, digits: OnTheFly, tmp_path: Path
) -> None:
    rules = [*RULES, *INPUT_RULES]
    systems = {f"by {rule}": {"members": ["plain", "mirrored"], "rule": rule} for rule in rules}
    systems |= {"three": {"members": ["plain", "mirrored", "third"], "rule": "sum"}}
    config = ensemble_yaml(tmp_path / "e.yaml", classifier, other, adapted, systems)
    run_script("test_ensemble.py", "-c", config, "--corruption", "jpeg", "--out", tmp_path / "out").check()
    rows = {row["system"]: row for row in rows_of(tmp_path / "out")}
    assert list(rows) == list(systems) and {row["rule"] for row in rows.values()} == set(rules)

    raw, shown = digits.source(Cell("jpeg")).images(range(LIMIT)), view_of(adapted, digits)
    a, b, c = logits_by_hand(classifier, raw), logits_by_hand(other, shown), logits_by_hand(other, raw)
    labels = digits.clean.labels
    for rule in rules:
        right = 0
        for i in range(LIMIT):

            def mixed(u: Tensor, i: int = i) -> Tensor:
                mixture = u[0] * raw[i : i + 1] + u[1] * shown[i : i + 1]
                return logits_by_hand(classifier, mixture)[0].argmax()

            right += int(expected_prediction(rule, a[i], b[i], mixed) == labels[i])
        assert rows[f"by {rule}"]["correct"] == right, rule
    three = (a.softmax(1) + b.softmax(1) + c.softmax(1)).argmax(1)
    assert rows["three"]["correct"] == int((three == labels).sum())
    assert len({row["correct"] for row in rows.values()}) > 1  # the rules differ on these images


def test_gain_over_the_first_system_is_printed(classifier: Path, other: Path, adapted: Path, tmp_path: Path) -> None:
    systems = {"one": {"members": ["plain"]}, "two": {"members": ["mirrored"]}}
    config = ensemble_yaml(tmp_path / "e.yaml", classifier, other, adapted, systems)
    done = run_script("test_ensemble.py", "-c", config, "--corruption", "jpeg", "--out", tmp_path / "out").check()
    one, two = (row["accuracy"] for row in rows_of(tmp_path / "out"))
    assert f"two minus one: {100 * (two - one):+.1f} points, 95 % interval [" in done.out


def positional(tmp_path: Path, config: Path, classifier: Path, other: Path, adapted: Path, *more: object) -> Done:
    words = (config, classifier, "--second_model_prefix", other, "--data_prefix2", adapted, "--corruption", "jpeg")
    return run_script("test_ensemble.py", *words, "--limit", LIMIT, "--out", tmp_path / "out", *more)


def test_published_command_line_takes_two_checkpoints_and_every_rule(
    classifier: Path, other: Path, adapted: Path, tmp_path: Path
) -> None:
    config = Path("configs/ensemble/Digits/diffaud.yaml")  # its own members are not there, and not asked for
    report = tmp_path / "report.html"
    positional(tmp_path, config, classifier, other, adapted, "--ensemble", "all", "--metrics", "accuracy", "--report", report).check()
    rows = {row["rule"]: row for row in rows_of(tmp_path / "out")}
    assert list(rows) == [*RULES, *INPUT_RULES]
    own = ensemble_yaml(tmp_path / "e.yaml", classifier, other, adapted, {"sum": {"members": ["plain", "mirrored"], "rule": "sum"}})
    run_script("test_ensemble.py", "-c", own, "--corruption", "jpeg", "--out", tmp_path / "own", "--data.constants", "imagenet").check()
    assert rows_of(tmp_path / "own")[0] == rows["sum"]
    positional(tmp_path, config, classifier, other, adapted, "--ensemble", "vote,sum").check()
    assert [row["rule"] for row in rows_of(tmp_path / "out")] == ["vote", "sum"]
    positional(tmp_path, config, classifier, other, adapted).check()
    assert [row["rule"] for row in rows_of(tmp_path / "out")] == ["sum"]


def test_second_member_is_the_first_checkpoint_on_its_own_view_by_default(classifier: Path, adapted: Path, tmp_path: Path) -> None:
    words = ("configs/ensemble/Digits/diffaud.yaml", classifier, "--data_prefix2", adapted, "--ensemble", "second")
    run_script("test_ensemble.py", *words, "--corruption", "jpeg", "--limit", LIMIT, "--out", tmp_path / "out").check()
    digits = OnTheFly(open_source("Digits", "test", limit=LIMIT))
    predicted = logits_by_hand(classifier, view_of(adapted, digits)).argmax(1)
    assert rows_of(tmp_path / "out")[0]["correct"] == int((predicted == digits.clean.labels).sum())


def test_report_is_one_self_contained_file(classifier: Path, other: Path, adapted: Path, tmp_path: Path) -> None:
    systems = {"alone": {"members": ["plain"]}, "DiffAUD": {"members": ["plain", "mirrored"], "rule": "sum"}}
    config = ensemble_yaml(tmp_path / "e.yaml", classifier, other, adapted, systems)
    (adapted / "jpeg/random/settings.json").write_text('{"adapter": "mirror", "made": "by hand"}')
    words = ("--corruption", "clean,gaussian_noise,jpeg", "--severity", 5, "--out", tmp_path / "out", "--report", tmp_path / "r.html")
    done = run_script("test_ensemble.py", "-c", config, *words)
    assert done.status == 2 and "no images for clean/0 under" in done.err and "jpeg/random" in done.err
    words = ("--corruption", "jpeg", *words[2:])
    assert f"report: {tmp_path / 'r.html'}" in run_script("test_ensemble.py", "-c", config, *words).check().out
    html = (tmp_path / "r.html").read_text()
    sources = re.findall(r'(?:src|href)\s*=\s*"([^"]*)"', html)
    assert sources and all(s.startswith(("data:", "#")) for s in sources)
    assert "@import" not in html and "<script src" not in html and "url(http" not in html
    for row in rows_of(tmp_path / "out"):
        assert row["system"] in html and f"{100 * row['accuracy']:.1f}" in html
    assert "name: ind/Digits/ResNet20_clean" in html  # the member's training run
    assert "by hand" in html  # what made the adapted images
    assert str(tmp_path.parent) not in html.split("<pre")[0]


@pytest.mark.parametrize(
    ("systems", "message"),
    [
        ({"x": {"members": ["plane"]}}, "unknown member 'plane' in system 'x': did you mean 'plain'?"),
        ({"x": {"members": ["plain"], "rule": "summ"}}, "unknown rule 'summ' in system 'x': did you mean 'sum'?"),
        ({"x": {"members": []}}, "system 'x' has no members: name some of plain"),
        ({"x": {"members": ["plain"], "ruel": "sum"}}, "unknown config key 'ruel' in section 'systems.x': did you mean 'rule'?"),
    ],
)
def test_mistakes_in_systems_are_named(systems: dict, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        check_systems(build(EvaluationConfig, {"members": {"plain": {"checkpoint": "a"}}, "systems": systems}))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--ensemble", "sum"), "--ensemble needs the first checkpoint"),
        (("--second_model_prefix", "x"), "--second_model_prefix needs the first checkpoint"),
        (("--data_prefix2", "x"), "--data_prefix2 needs the first checkpoint"),
        (("one.safetensors", "two.safetensors"), "unexpected arguments ['two.safetensors']"),
        (("one.safetensors", "--ensemble", "majority"), "unknown rule 'majority'"),
        (("one.safetensors", "--ensmble", "sum"), "unknown option '--ensmble': did you mean '--ensemble'?"),
    ],
)
def test_mistakes_in_the_published_command_line_are_named(words: tuple[str, ...], message: str) -> None:
    done = run_script("test_ensemble.py", "configs/ensemble/Digits/diffaud.yaml", *words, "--corruption", "jpeg")
    assert done.status == 2 and message in done.err


def test_view_that_is_missing_is_named(classifier: Path, tmp_path: Path) -> None:
    words = ("configs/ensemble/Digits/diffaud.yaml", classifier, "--data_prefix2", tmp_path / "none", "--corruption", "jpeg")
    done = run_script("test_ensemble.py", *words)
    assert done.status == 2 and "is neither `raw` nor an existing folder" in done.err


def test_adapted_images_are_paired_by_key_and_missing_ones_named(classifier: Path, adapted: Path, tmp_path: Path) -> None:
    few = tmp_path / "few"
    for path in sorted(adapted.rglob("*.png"))[:-1]:
        target = few / path.relative_to(adapted)
        target.parent.mkdir(parents=True, exist_ok=True)
        os.link(path, target)
    words = ("configs/ensemble/Digits/diffaud.yaml", classifier, "--data_prefix2", few, "--corruption", "jpeg")
    done = run_script("test_ensemble.py", *words, "--out", tmp_path / "out")
    missing = sorted(adapted.rglob("*.png"))[-1]
    assert done.status == 2 and "1 of 359 images are missing" in done.err and f"9/{missing.stem}" in done.err
