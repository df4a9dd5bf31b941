"""The package as a user calls it from Python."""

from __future__ import annotations

import csv
import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import undegrade
from tests.adapting import save_images
from tests.api import CLASSIFIERS, demo_runs
from tests.scripts import run_script
from undegrade.evaluation.config import EvaluationConfig
from undegrade.evaluation.fitted.pool import Pool
from undegrade.evaluation.fitted.rule import FittedMember, FittedRule, Gate, class_digest, write_rule
from undegrade.evaluation.predict_inputs import open_predictors
from undegrade.utils.config import build
from undegrade.utils.runs import find_checkpoint

ENSEMBLE = "configs/ensemble/Digits/ResNet20_diffaud.yaml"
DDA = "configs/adapt/Digits/dda.yaml"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return demo_runs(tmp_path_factory.mktemp("runs"))


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    save_images(tmp_path / "photos", ["a.png", "b/c.png", "b/d.png"])
    return tmp_path / "photos"


def images(count: int = 3) -> torch.Tensor:
    return torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


# --- systems


def test_the_package_names_its_functions_and_an_unknown_one() -> None:
    assert {"load", "wrap", "corrupt", "evaluate"} <= set(dir(undegrade))
    assert all(callable(getattr(undegrade, name)) for name in undegrade.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'predict'"):
        undegrade.predict  # noqa: B018


def test_images_of_every_kind_are_answered_alike(runs: Path, tmp_path: Path) -> None:
    system, x = undegrade.load(CLASSIFIERS[0], runs=runs), images()
    expected = [one.confidences for one in system.predict(x, top=3)]
    array, unit = x.movedim(1, -1).numpy(), x.float() / 255
    pictures = [Image.fromarray(one) for one in array]
    pictures[0].save(tmp_path / "0.png")
    for given in (array, unit, unit.double(), pictures, (one for one in x), [tmp_path / "0.png", *pictures[1:]]):
        np.testing.assert_allclose([one.confidences for one in system.predict(given, top=3)], expected, atol=1e-6)
    (single,) = system.predict(x[0], top=99)
    assert single.name == "0" and single.way == "raw" and len(single.names) == 10
    assert single.names == [str(number) for number in single.classes] and sum(single.confidences) == pytest.approx(1)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (torch.zeros(2, 1, 4, 4, dtype=torch.uint8), r"shape \[2, 1, 4, 4\]"),
        (torch.full((3, 4, 4), 255.0), "from 255 to 255: scale them"),
        (np.zeros((4, 4, 3), np.int32), "dtype int32"),
        (5, "type int"),
    ],
)
def test_what_is_no_image_is_refused(runs: Path, given: object, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        undegrade.load(CLASSIFIERS[0], runs=runs).predict(given)  # type: ignore[arg-type]


def test_broken_files_are_named_and_left_out(runs: Path, photos: Path, caplog: pytest.LogCaptureFixture) -> None:
    (photos / "bad.jpg").write_bytes(b"no image")
    system = undegrade.load(CLASSIFIERS[0], runs=runs)
    found = system.predict(photos)
    assert [one.name for one in found] == ["a.png", "b/c.png", "b/d.png"]
    assert len(found.broken) == 1 and "bad.jpg" in found.broken[0] and "bad.jpg" in caplog.text
    assert [*found.table().columns[:3]] == ["name", "way", "class_1"]
    with pytest.raises(ValueError, match="none of the images can be read"):
        system.predict(photos / "bad.jpg")


def test_an_ensemble_says_what_the_commands_say(runs: Path, photos: Path, tmp_path: Path) -> None:
    adapted, out = tmp_path / "adapted", tmp_path / "found.csv"
    words = ("-c", DDA, "--runs", runs, "--base_samples", photos, "--save_dir", adapted)
    run_script("image_adapt/scripts/image_sample.py", *words).check()
    words = ("-c", ENSEMBLE, "--runs", runs, "--predict", photos, "--views.adapted", adapted, "--out", out, "--top", 2)
    run_script("test_ensemble.py", *words).check()
    rows = [*csv.DictReader(out.open())]
    system = undegrade.load(ENSEMBLE, runs=runs)
    found = system.predict(photos, top=2)
    assert [(one.name, one.names[0], one.way) for one in found] == [(row["file"], row["class"], "both") for row in rows]
    assert [one.confidences[1] for one in found] == pytest.approx([float(row["confidence_2"]) for row in rows], abs=1e-5)
    made = [np.asarray(image) for image in system.adapt(photos)]
    stored = [np.asarray(Image.open(adapted / name)) for name in ("a.png", "b/c.png", "b/d.png")]
    assert all(np.array_equal(one, other) for one, other in zip(made, stored, strict=True))


def test_explain_shows_views_and_members(runs: Path) -> None:
    system = undegrade.load(ENSEMBLE, runs=runs, adapter="median_filter")
    why = system.explain(images(1))
    assert why.prediction == system.predict(images(1))[0]
    assert {name: one.way for name, one in why.members.items()} == {"degraded": "raw", "adapted": "adapted"}
    assert why.raw.size == why.adapted["adapted"].size == (32, 32) and why.gate is None
    with pytest.raises(ValueError, match="explain takes one image"):
        system.explain(images(2))


def gated(runs: Path, root: Path, threshold: float, adapter: str = "median_filter") -> undegrade.System:
    """A system that restores images whose logarithm of the noise level is above `threshold`."""
    checkpoint = str(find_checkpoint(CLASSIFIERS[0], runs))
    tree = {
        "members": {"own": {"checkpoint": checkpoint}, "other": {"checkpoint": checkpoint, "view": "adapted"}},
        "systems": {"gated": {"members": ["own", "other"], "rule": "gate", "fitted": "gate.json"}},
        "views": {"adapted": "somewhere"}, "rules": str(root),
    }  # fmt: skip
    config = build(EvaluationConfig, {**tree, "cache": False})
    _, digests, classes = open_predictors(config, {name: Path(checkpoint) for name in config.members}, torch.device("cpu"))
    plain = undegrade.load(CLASSIFIERS[0], runs=runs, adapter=adapter)
    members = {
        "own": FittedMember(digests["own"], kept=True),
        "other": FittedMember(digests["other"], dict(plain.adapters["adapted"].facts)),
    }
    gate = Gate(["noise", "disagreement"], [0.0, 0.0], [1.0, 1.0], [1.0, 0.0], 0.0, threshold)
    write_rule(root / "gate.json", FittedRule("gate", members, class_digest(classes), "32", {}, Pool([1.0, 1.0], [1.0, 1.0]), gate))
    (root / "gated.yaml").write_text(repr(tree).replace("'", '"'))
    return undegrade.load(root / "gated.yaml", runs=runs, adapter=adapter)


def test_a_gate_says_which_way_each_image_went(runs: Path, tmp_path: Path) -> None:
    flat = torch.full((1, 3, 32, 32), 90, dtype=torch.uint8)
    system = gated(runs, tmp_path, threshold=-4.0)
    assert [one.way for one in system.predict(torch.cat([flat, images(1)]))] == ["raw", "adapted"]
    gate = system.explain(flat).gate
    assert gate is not None and [*gate] == ["noise", "disagreement", "odds", "threshold"]
    assert gate["odds"] == pytest.approx(gate["noise"]) and gate["threshold"] == -4.0
    with pytest.raises(ValueError, match="fitted to its members as they are"):
        system.with_tta("bn")


def test_what_cannot_be_loaded_is_refused_with_the_mend(runs: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no checkpoint 'nothing'"):
        undegrade.load("nothing", runs=runs)
    with pytest.raises(ValueError, match="unknown system 'DifAUD'.*did you mean 'DiffAUD'"):
        undegrade.load(ENSEMBLE, runs=runs, system="DifAUD")
    with pytest.raises(ValueError, match="the adapter dda has a model: give a YAML"):
        undegrade.load(CLASSIFIERS[0], runs=runs, adapter="dda")
    with pytest.raises(ValueError, match=r"what makes them is not known: give adapter="):
        undegrade.load(ENSEMBLE, runs=runs, overrides={"views": {"adapted": "elsewhere"}})
    with pytest.raises(ValueError, match="looks at images as they are: load it with adapter="):
        undegrade.load(CLASSIFIERS[0], runs=runs).adapt(images())


# --- networks of one's own


def network() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(4, 3)
    )


def test_a_module_answers_as_it_does_itself_and_adapts_itself() -> None:
    own, x = network(), images(6)
    system = undegrade.wrap(own, classes=["a", "b", "c"], image_size=32, mean=[0.5] * 3, std=[0.2] * 3)
    with torch.no_grad():
        expected = own((x / 255 - 0.5) / 0.2).softmax(1)
    found = system.predict(x, top=1)
    assert [one.confidences[0] for one in found] == pytest.approx(expected.amax(1).tolist(), abs=1e-5)
    assert {one.names[0] for one in found} <= {"a", "b", "c"}
    adapting = system.with_tta("tent", lr=0.01)
    first = adapting.predict(x)
    assert first != found and adapting.predict(x) != first
    adapting.reset()
    assert adapting.predict(x) == first
    assert system.predict(x, top=1) == found, "the system itself stays as it is"
    with pytest.raises(ValueError, match="unknown predictor 'tnt'.*did you mean 'tent'"):
        system.with_tta("tnt")
    with pytest.raises(ValueError, match='training="Digits"'):
        system.with_tta("eata").predict(x)


def test_a_network_of_timm_by_name() -> None:
    system = undegrade.wrap("resnet10t", pretrained=False)
    assert len(system.classes) == 1000 and system.classes[0].startswith("n0")
    assert system.image_size == 176 and system.resize is not None
    assert system.predict(Image.new("L", (300, 200)), top=2)[0].way == "raw"


def test_a_network_that_is_no_classifier_is_refused() -> None:
    with pytest.raises(ValueError, match=r"gives \[1, 3, 8, 8\]"):
        undegrade.wrap(torch.nn.Identity(), image_size=8)
    with pytest.raises(ValueError, match="2 names of classes for the 3 classes"):
        undegrade.wrap(network(), classes=["a", "b"], image_size=8)


# --- evaluation, images made worse, lists


def test_an_evaluation_has_the_numbers_of_the_command(runs: Path, tmp_path: Path) -> None:
    table = undegrade.evaluate(undegrade.load(CLASSIFIERS[0], runs=runs), "Digits", ["clean", "fog", "jpeg"], 3, limit=40)
    words = ("-r", CLASSIFIERS[0], "--runs", runs, "--dataset", "Digits", "--corruption", "clean,fog,jpeg", "--severity", 3)
    run_script("test.py", *words, "--limit", 40, "--out", tmp_path).check()
    rows = [*csv.DictReader((tmp_path / "results.csv").open())]
    assert [*table.corruption] == [row["corruption"] for row in rows]
    for name, column in (("accuracy", "accuracy"), ("low", "ci95_low"), ("high", "ci95_high")):
        assert table[name].tolist() == pytest.approx([float(row[column]) for row in rows], abs=1e-6)


def test_an_evaluation_refuses_other_classes() -> None:
    with pytest.raises(ValueError, match="has 10 classes.*the system 3"):
        undegrade.evaluate(undegrade.wrap(network(), image_size=32), "Digits", "clean")


def test_corrupted_images_are_of_the_kind_that_was_given() -> None:
    x = images(2)
    made = undegrade.corrupt(x, "gaussian_noise", 3)
    assert made.dtype == torch.uint8 and made.shape == x.shape and not torch.equal(made, x)
    array = x[0].movedim(0, -1).numpy()
    assert np.array_equal(undegrade.corrupt(array, "gaussian_noise", 3), made[0].movedim(0, -1).numpy())
    assert np.array_equal(
        np.asarray(undegrade.corrupt(Image.fromarray(array), "gaussian_noise", 3)), made[0].movedim(0, -1).numpy()
    )
    assert torch.equal(undegrade.corrupt([x[0]], "gaussian_noise", 3)[0], made[0])
    unit = undegrade.corrupt(x[0].double() / 255, "gaussian_noise", 3)
    assert unit.dtype == torch.float64 and torch.allclose(unit * 255, made[0].double())
    assert not torch.equal(undegrade.corrupt(x, "gaussian_noise", 3, seed=1), made)
    own = [undegrade.corrupt(x[0], "fog", 3, keys=[key]) for key in ("a", "b")]
    assert not torch.equal(*own)


def test_levels_and_severities_are_told_apart() -> None:
    x = images(1)
    assert torch.equal(undegrade.degrade(x, "jpeg", 101), x)
    assert undegrade.degrade(x, "blur+noise", [1.0, 5]).shape == undegrade.degrade(x, "strong_seq").shape == x.shape
    with pytest.raises(ValueError, match=r"jpeg has no severities.*use degrade"):
        undegrade.corrupt(x, "jpeg", 3)
    with pytest.raises(ValueError, match=r"fog has severities.*use corrupt"):
        undegrade.degrade(x, "fog", 3)
    with pytest.raises(ValueError, match="unknown perturbation 'fogg'"):
        undegrade.corrupt(x, "fogg")


def test_lists_have_a_line_for_every_name() -> None:
    lists = [getattr(undegrade, name)() for name in undegrade.__all__ if name.startswith("list_")]
    assert len(lists) == 5
    for rows, known in zip(lists, ("dda", "distillation", "fog", "tent", "gate"), strict=True):
        assert known in rows and all(rows.values()), [name for name, line in rows.items() if not line]
    assert dataclasses.is_dataclass(undegrade.Prediction)
