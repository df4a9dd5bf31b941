"""test_ensemble.py: rules against their formulas, the published command line, the report."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from torch import Tensor

from tests.scoring import LIMIT, logits_by_hand, rows_of
from tests.scripts import Done, run_script
from undegrade.evaluation.config import EvaluationConfig, expand
from undegrade.evaluation.rules import RULES
from undegrade.models.classification.classifier import describe
from undegrade.models.classification.loading import load_classifier
from undegrade.utils.checkpoint import load_checkpoint, save_checkpoint
from undegrade.utils.config import build
from undegrade.utils.data.cells import Cell
from undegrade.utils.data.sources.registry import open_source
from undegrade.utils.data.views import FolderTree, OnTheFly


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
        "first": p, "second": q, "sum": p + q, "first_and_mean": p + q,
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
    rules = list(RULES)
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
    config = Path("configs/ensemble/Digits/ResNet20_diffaud.yaml")  # its own members are not there, and not asked for
    report = tmp_path / "report.html"
    more = ("--ensemble", "all", "--metrics", "accuracy", "--report", report)
    positional(tmp_path, config, classifier, other, adapted, *more).check()
    rows = {row["rule"]: row for row in rows_of(tmp_path / "out")}
    assert list(rows) == list(RULES)
    own = ensemble_yaml(tmp_path / "e.yaml", classifier, other, adapted, {"sum": {"members": ["plain", "mirrored"], "rule": "sum"}})
    words = ("--corruption", "jpeg", "--out", tmp_path / "own")
    run_script("test_ensemble.py", "-c", own, *words).check()
    assert rows_of(tmp_path / "own")[0] == rows["sum"]
    anew = ("--overwrite", "true")
    positional(tmp_path, config, classifier, other, adapted, "--ensemble", "vote,sum", *anew).check()
    assert [row["rule"] for row in rows_of(tmp_path / "out")] == ["vote", "sum"]
    positional(tmp_path, config, classifier, other, adapted, *anew).check()
    assert [row["rule"] for row in rows_of(tmp_path / "out")] == ["sum"]


def test_second_member_is_the_first_checkpoint_on_its_own_view_by_default(classifier: Path, adapted: Path, tmp_path: Path) -> None:
    words = ("configs/ensemble/Digits/ResNet20_diffaud.yaml", classifier, "--data_prefix2", adapted, "--ensemble", "second")
    run_script("test_ensemble.py", *words, "--corruption", "jpeg", "--limit", LIMIT, "--out", tmp_path / "out").check()
    digits = OnTheFly(open_source("Digits", "test", limit=LIMIT))
    predicted = logits_by_hand(classifier, view_of(adapted, digits)).argmax(1)
    assert rows_of(tmp_path / "out")[0]["correct"] == int((predicted == digits.clean.labels).sum())


def test_report_is_one_self_contained_file(classifier: Path, other: Path, adapted: Path, tmp_path: Path) -> None:
    systems = {"alone": {"members": ["plain"]}, "DiffAUD": {"members": ["plain", "mirrored"], "rule": "sum"}}
    config = ensemble_yaml(tmp_path / "e.yaml", classifier, other, adapted, systems)
    (adapted / "jpeg/random/settings.json").write_text('{"adapter": "mirror", "made": "by hand"}')
    words = ("--out", tmp_path / "out", "--report", tmp_path / "r.html", "--corruption")
    done = run_script("test_ensemble.py", "-c", config, *words, "clean,gaussian_noise,jpeg")
    assert done.status == 2 and "no images for clean/0 under" in done.err and "jpeg/random" in done.err
    assert f"report: {tmp_path / 'r.html'}" in run_script("test_ensemble.py", "-c", config, *words, "jpeg").check().out
    html = (tmp_path / "r.html").read_text()
    sources = re.findall(r'(?:src|href)\s*=\s*"([^"]*)"', html)
    assert sources and all(s.startswith(("data:", "#")) for s in sources)
    assert "@import" not in html and "<script src" not in html and "url(http" not in html
    for row in rows_of(tmp_path / "out"):
        assert row["system"] in html and f"{100 * row['accuracy']:.1f}" in html
    assert "name: ind/Digits/ResNet20_clean" in html  # the member's training run
    assert "by hand" in html  # what made the adapted images
    assert str(tmp_path.parent) not in html.split("<pre")[0]


def test_data_of_later_files_lies_over_the_first_and_keys_of_training_are_passed_over(
    classifier: Path, other: Path, adapted: Path, tmp_path: Path
) -> None:
    config = ensemble_yaml(tmp_path / "e.yaml", classifier, other, adapted, {"one": {"members": ["plain"]}})
    words = ("-c", config, "configs/_compat/fusiondistill.yaml", "--corruption", "blur", "--out", tmp_path / "out")
    run_script("test_ensemble.py", *words).check()
    meta = json.loads((tmp_path / "out/results.json").read_text())["meta"]
    assert meta["compat"] == {"rounding": "truncate", "salt_value": 1, "blur_intermediate": "uint8"}
    assert (meta["seed"], meta["images"]) == (0, LIMIT)


@pytest.mark.parametrize(
    ("systems", "message"),
    [
        ({"x": {"members": ["plane"]}}, "unknown member 'plane' in system 'x': did you mean 'plain'?"),
        ({"x": {"members": ["plain"], "rule": "summ"}}, "unknown ensemble rule 'summ' in system 'x': did you mean 'sum'?"),
        ({"x": {"members": []}}, "system 'x' has no members: name some of plain"),
        ({"x": {"members": ["plain"], "ruel": "sum"}}, "unknown config key 'ruel' in section 'systems.x': did you mean 'rule'?"),
    ],
)
def test_mistakes_in_systems_are_named(systems: dict, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        expand(build(EvaluationConfig, {"members": {"plain": {"checkpoint": "a"}}, "systems": systems}))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--ensemble", "sum"), "--ensemble needs the first checkpoint"),
        (("--second_model_prefix", "x"), "--second_model_prefix needs the first checkpoint"),
        (("--data_prefix1", "x"), "--data_prefix1 needs the first checkpoint"),
        (("--data_prefix2", "x"), "--data_prefix2 needs the first checkpoint"),
        (("one.safetensors", "--ensemble", "sda"), "--ensemble sda and --originckpt <source classifier> go together"),
        (("one.safetensors", "--originckpt", "x"), "--ensemble sda and --originckpt <source classifier> go together"),
        (("a", "--originckpt", "b", "--ensemble", "sda", "--second_model_prefix", "c"), "both name the other checkpoint"),
        (("one.safetensors", "two.safetensors"), "unexpected arguments ['two.safetensors']"),
        (("one.safetensors", "--ensemble", "majority"), "unknown ensemble rule 'majority'"),
        (("one.safetensors", "--ensmble", "sum"), "unknown option '--ensmble': did you mean '--ensemble'?"),
    ],
)
def test_mistakes_in_the_published_command_line_are_named(words: tuple[str, ...], message: str) -> None:
    done = run_script("test_ensemble.py", "configs/ensemble/Digits/ResNet20_diffaud.yaml", *words, "--corruption", "jpeg")
    assert done.status == 2 and message in done.err


def test_view_that_is_missing_is_named(classifier: Path, tmp_path: Path) -> None:
    words = (
        "configs/ensemble/Digits/ResNet20_diffaud.yaml",
        classifier,
        "--data_prefix2",
        tmp_path / "none",
        "--corruption",
        "jpeg",
    )
    done = run_script("test_ensemble.py", *words)
    assert done.status == 2 and "is neither `raw` nor an existing folder" in done.err


def test_adapted_images_are_paired_by_key_and_missing_ones_named(classifier: Path, adapted: Path, tmp_path: Path) -> None:
    few = tmp_path / "few"
    for path in sorted(adapted.rglob("*.png"))[:-1]:
        target = few / path.relative_to(adapted)
        target.parent.mkdir(parents=True, exist_ok=True)
        os.link(path, target)
    words = ("configs/ensemble/Digits/ResNet20_diffaud.yaml", classifier, "--data_prefix2", few, "--corruption", "jpeg")
    done = run_script("test_ensemble.py", *words, "--out", tmp_path / "out")
    missing = sorted(adapted.rglob("*.png"))[-1]
    assert done.status == 2 and "1 of 359 images are missing" in done.err and f"9/{missing.stem}" in done.err


def test_the_network_of_files_of_other_programs_is_named_for_both_members(classifier: Path, tmp_path: Path) -> None:
    state, description = load_checkpoint(classifier)
    torch.save(state, tmp_path / "foreign.pth")
    words = ("configs/ensemble/Digits/ResNet20_diffaud.yaml", tmp_path / "foreign.pth", "--second_model_prefix", classifier)
    more = ("--corruption", "jpeg", "--limit", LIMIT, "--out", tmp_path / "out")
    statistics = [word for m in ("first", "second") for k in ("mean", "std") for word in (f"--members.{m}.{k}", description[k])]
    assert "does not say with which mean and std its ResNet20 was" in run_script("test_ensemble.py", *words, *more).err
    assert "not those of ResNet56" in run_script("test_ensemble.py", *words, *more, "--arch", "ResNet56").err
    run_script("test_ensemble.py", *words, *more, "--arch", "ResNet20", *statistics, "--ensemble", "first,second").check()
    first, second = rows_of(tmp_path / "out")
    assert first["correct"] == second["correct"]


def test_sda_sums_the_source_classifier_on_raw_images_and_the_checkpoint_on_adapted_ones(
    classifier: Path, other: Path, adapted: Path, tmp_path: Path
) -> None:
    common = ("--data_prefix2", adapted, "--corruption", "jpeg", "--limit", LIMIT, "--out", tmp_path / "out")
    config = "configs/ensemble/Digits/ResNet20_diffaud.yaml"
    run_script("test_ensemble.py", config, classifier, "--second_model_prefix", other, "--ensemble", "sum", *common).check()
    expected = rows_of(tmp_path / "out")[0]["correct"]
    run_script("test_ensemble.py", config, other, "--originckpt", classifier, "--ensemble", "sda", *common).check()
    row = rows_of(tmp_path / "out")[1]  # beside those of the same members
    assert (row["system"], row["rule"], row["correct"]) == ("sda", "sum", expected)
