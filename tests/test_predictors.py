"""Predictors that adapt themselves: order of cells and images, reset, cached logits; and rows of
other modules, as docs/extending tells them.
"""

from __future__ import annotations

import csv
import dataclasses
import json
import re
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor

from tests.checkpoints import specialists
from tests.documents import write_block
from tests.photo_like import photo_like, save_all
from tests.scoring import LIMIT, logits_by_hand, rows_of
from tests.scripts import run_script
from undegrade.evaluation.config import EvaluationConfig, expand
from undegrade.evaluation.ensemble import Member, Scorer
from undegrade.evaluation.predictors import PREDICTORS, build_predictor
from undegrade.evaluation.protocols import Protocol
from undegrade.evaluation.rules import RULES, combine
from undegrade.evaluation.surroundings import Surroundings
from undegrade.models.classification.loading import load_classifier
from undegrade.utils.config import build
from undegrade.utils.data.cells import Cell
from undegrade.utils.data.sources.image_source import array_source
from undegrade.utils.data.sources.registry import open_source
from undegrade.utils.data.views import OnTheFly

COUNT = 5
SOURCE = array_source(
    "Toy/test", photo_like(COUNT, 8).numpy(), np.arange(COUNT) % 2, list("ab"), [f"{i:02d}" for i in range(COUNT)]
)
CELLS = [Cell("gaussian_noise", 1), Cell("fog", 2), Cell("snow", 3)]


class Counting:
    """Logit 0 of a batch is the number of images before it since the reset, logit 1 needs a
    gradient.
    """

    stateful, identity, num_classes, device = True, "", 2, torch.device("cpu")

    def __init__(self) -> None:
        self.seen, self.asked = -1000, 0

    def reset(self) -> None:
        self.seen = 0

    def predict(self, x: Tensor) -> Tensor:
        weight = torch.ones(3, 1, 1, requires_grad=True)
        (gradient,) = torch.autograd.grad((x * weight).sum(), weight)
        logits = torch.stack([torch.full((len(x),), float(self.seen)), gradient.sum().expand(len(x))], 1)
        self.seen, self.asked = self.seen + len(x), self.asked + len(x)
        return logits


def member_of(**changes: object) -> Member:
    return dataclasses.replace(Member("counting", Counting(), "digest", OnTheFly(SOURCE, 1)), **changes)  # type: ignore[arg-type]


def firsts(member: Member, cells: list[Cell], cache: Path | None = None, size: int = 2, shifts: str = "reset") -> list[list[float]]:
    """Logit 0 of each image of each cell."""
    scorer = Scorer(cache, size, protocol=build(Protocol, {"shifts": shifts, "order": "listing"}))
    return [scorer.logits(member, cell)[:, 0].tolist() for cell in cells]


def asked(member: Member) -> int:
    assert isinstance(member.predictor, Counting)
    return member.predictor.asked


def test_a_predictor_starts_anew_at_each_cell_or_never() -> None:
    alone = [0.0, 0.0, 2.0, 2.0, 4.0]  # in batches of two
    assert firsts(member_of(), CELLS) == [alone] * 3
    continual = [[value + COUNT * i for value in alone] for i in range(3)]
    assert firsts(member_of(), CELLS, shifts="continual") == continual


def test_batches_have_the_size_that_was_asked_for_on_a_cpu_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("undegrade.evaluation.ensemble._CPU_PIXELS", 8 * 8)
    assert firsts(member_of(), CELLS[:1], size=4) == [[0, 0, 0, 0, 4]]


@pytest.mark.parametrize("shifts", ["reset", "continual"])
def test_cached_logits_are_read_a_second_time(tmp_path: Path, shifts: str) -> None:
    member = member_of()
    first = firsts(member, CELLS, tmp_path, shifts=shifts)
    assert firsts(member, CELLS, tmp_path, shifts=shifts) == first and asked(member) == 3 * COUNT


@pytest.mark.parametrize(
    "change",
    [{"digest": "other options"}, {"view": OnTheFly(SOURCE.subset([1, 0, 2, 3, 4]), 1)}],
    ids=["options", "order of the images"],
)
def test_other_circumstances_are_computed_anew(tmp_path: Path, change: dict) -> None:
    member = member_of()
    firsts(member, CELLS[:1], tmp_path)
    firsts(dataclasses.replace(member, **change), CELLS[:1], tmp_path)
    assert asked(member) == 2 * COUNT
    firsts(member, CELLS[:1], tmp_path, shifts="continual")
    assert asked(member) == 3 * COUNT


def test_another_batch_size_and_version_are_computed_anew(tmp_path: Path) -> None:
    member = member_of()
    assert firsts(member, CELLS[:1], tmp_path, 2) != firsts(member, CELLS[:1], tmp_path, 3)
    firsts(member, CELLS[:1], tmp_path, 3)
    assert asked(member) == 2 * COUNT
    member.predictor.identity = "2"  # type: ignore[misc]
    firsts(member, CELLS[:1], tmp_path, 3)
    assert asked(member) == 3 * COUNT


def test_a_cell_missing_in_the_cache_makes_a_predictor_that_is_never_reset_go_through_those_before(tmp_path: Path) -> None:
    continual = partial(firsts, cache=tmp_path, shifts="continual")
    whole = firsts(member_of(), CELLS, shifts="continual")
    assert continual(member_of(), CELLS[:2]) == whole[:2]
    late = member_of()
    assert continual(late, CELLS) == whole
    assert asked(late) == 3 * COUNT  # two cached cells again, and the third
    (tmp_path / "counting/fog-2.npz").unlink()
    mended = member_of()
    assert continual(mended, CELLS) == whole and asked(mended) == 2 * COUNT
    assert continual(member_of(), CELLS[::-1]) == [whole[0], whole[1], whole[2]], "the order of the cells counts"


def test_without_a_cache_earlier_cells_can_be_asked_for_again() -> None:
    scorer, member = Scorer(None, 2, protocol=Protocol("continual")), member_of()
    made = [scorer.logits(member, cell) for cell in CELLS]
    for cell, logits in zip(CELLS, made, strict=True):
        assert torch.equal(scorer.logits(member, cell), logits)


def test_after_an_interruption_the_predictor_does_not_go_on_from_the_middle_of_a_cell() -> None:
    scorer, member = Scorer(None, 2, protocol=Protocol("continual", "listing")), member_of()
    scorer.logits(member, CELLS[0])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scorer, "on_images", lambda n: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            scorer.logits(member, CELLS[1])
    assert scorer.logits(member, CELLS[1])[:, 0].tolist() == [5, 5, 7, 7, 9]


# --- the sections of a YAML


def config_with(**predictor: object) -> EvaluationConfig:
    members = {"m": {"checkpoint": "a", "predictor": predictor}}
    return build(EvaluationConfig, {"members": members, "systems": {"s": {"members": ["m"]}}})


@pytest.mark.parametrize(
    ("predictor", "message"),
    [
        ({"name": "frozn"}, "unknown predictor 'frozn' in members.m.predictor: did you mean 'frozen'?"),
        ({"name": "frozen", "lr": 1}, "config key 'lr' in section 'members.m.predictor'"),
        ({"name": "tent", "rl": 1.0}, "unknown config key 'rl' in section 'members.m.predictor': did you mean 'lr'?"),
        ({"name": "tent", "optimizer": "sdg"}, "'sdg' in config key 'members.m.predictor.optimizer': did you mean 'sgd'?"),
    ],
)
def test_mistakes_in_a_predictor_are_named(predictor: dict, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        expand(config_with(**predictor))


# --- rows of other modules


@pytest.fixture
def apart(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A working folder of one's own; rows and modules of this test are forgotten at its end."""
    for registry in (PREDICTORS, RULES):
        monkeypatch.setattr(registry, "_rows", dict(registry._rows))
        monkeypatch.setattr(registry, "_origins", dict(registry._origins))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    for name in ("my_tent", "my_rule"):
        monkeypatch.delitem(sys.modules, name, raising=False)


@pytest.fixture
def tent(apart: None, runs: Path, tmp_path: Path) -> Callable[..., list[dict]]:
    """`tent(*words)`: rows of the documented ensemble."""
    write_block("extending/predictor.md", "python", tmp_path / "my_tent.py")
    config = write_block("extending/predictor.md", "yaml", tmp_path / "tent.yaml")

    def evaluate(*words: object) -> list[dict]:
        given = ("-c", config, "--include", "my_tent", "--runs", runs, "--corruption", "gaussian_noise,fog", "--severity", 5)
        more = ("--limit", LIMIT, "--out", tmp_path / "out", "--overwrite", "true")
        run_script("test_ensemble.py", *given, *more, *words).check()
        return rows_of(tmp_path / "out")

    return evaluate


def times(folder: Path) -> dict[str, int]:
    return {path.relative_to(folder).as_posix(): path.stat().st_mtime_ns for path in sorted(folder.rglob("*-5.npz"))}


def test_the_documented_predictor_stands_beside_a_frozen_member(
    tent: Callable[..., list[dict]], classifier: Path, tmp_path: Path
) -> None:
    rows = tent("--batch_size", 5)
    first, logits = times(tmp_path / "out/logits"), tmp_path / "out/logits"
    assert tent("--batch_size", 5) == rows and times(logits) == first, "from the cache"
    assert json.loads((tmp_path / "out/results.json").read_text())["meta"]["batch_size"] == 5
    images = OnTheFly(open_source("Digits", "test", limit=LIMIT)).source(Cell("fog", 5)).images(range(LIMIT))
    by_hand, adapted = logits_by_hand(classifier, images), torch.from_numpy(np.load(logits / "tent/fog-5.npz")["logits"])
    assert np.allclose(np.load(logits / "source/fog-5.npz")["logits"], by_hand, atol=1e-4)
    assert not torch.allclose(adapted, by_hand, atol=1e-2)
    both = combine("sum", torch.stack([by_hand, adapted])).argmax(1)
    labels = open_source("Digits", "test", limit=LIMIT).labels
    (found,) = [row for row in rows if row["system"] == "both" and row["corruption"] == "fog"]
    assert found["correct"] == int((both == labels).sum())

    def changed_by(*words: object) -> set[str]:
        before = times(logits)
        tent(*words)
        return {name for name, time in times(logits).items() if before[name] != time}

    of_tent = {"tent/fog-5.npz", "tent/gaussian_noise-5.npz"}
    assert changed_by("--batch_size", 4) == of_tent, "frozen logits do not depend on the batch size"
    assert changed_by("--batch_size", 4, "--members.tent.predictor.lr", 0.01) == of_tent
    assert changed_by("--batch_size", 4, "--protocol", "continual") == of_tent


def test_the_first_batch_of_each_cell_meets_the_network_as_it_was(tent: Callable[..., list[dict]], tmp_path: Path) -> None:
    def logits(*words: object) -> np.ndarray:
        tent("--batch_size", 5, *words)
        return np.load(tmp_path / "out/logits/tent/fog-5.npz")["logits"]

    after_noise = logits()
    (tmp_path / "out/logits/tent/fog-5.npz").unlink()
    assert np.array_equal(after_noise, logits("--corruption", "fog")), "noise before it makes no difference"
    continual = logits("--protocol", "continual")
    assert not np.array_equal(after_noise[:5], continual[:5])


def test_a_report_shows_what_a_predictor_that_is_never_reset_said(tent: Callable[..., list[dict]], tmp_path: Path) -> None:
    tent("--batch_size", 5, "--protocol", "continual", "--report", tmp_path / "r.html")
    before = times(tmp_path / "out/logits")
    tent("--batch_size", 5, "--protocol", "continual", "--report", tmp_path / "r.html")
    assert times(tmp_path / "out/logits") == before


def test_a_rule_that_mixes_images_is_refused_with_it(tent: Callable[..., list[dict]], runs: Path, tmp_path: Path) -> None:
    tree = yaml.safe_load((tmp_path / "tent.yaml").read_text())
    tree["systems"]["both"]["rule"] = "entropy_fuse"
    (tmp_path / "tent.yaml").write_text(yaml.safe_dump(tree))
    words = ("-c", tmp_path / "tent.yaml", "--include", "my_tent", "--runs", runs)
    save_all(tmp_path / "photos", ["a.png"], photo_like(1, 32))
    for more in (("--corruption", "fog", "--out", tmp_path / "out"), ("--predict", tmp_path / "photos", "--system", "both")):
        done = run_script("test_ensemble.py", *words, *more)
        assert done.status == 2 and "system 'both': rule 'entropy_fuse' mixes the images" in done.err and "'tent'" in done.err
        assert not (tmp_path / "out").exists()


def test_new_images_are_predicted_in_batches_in_the_order_of_their_files(
    tent: Callable[..., list[dict]], runs: Path, classifier: Path, tmp_path: Path
) -> None:
    tent("--batch_size", 5)  # registers the predictor
    images = photo_like(5, 32)
    save_all(tmp_path / "photos", [f"{i}.png" for i in range(5)], images)
    words = ("-c", tmp_path / "tent.yaml", "--include", "my_tent", "--runs", runs, "--system", "tent", "--batch_size", 2)
    size = ("--data.image_size", 32, "--predict", tmp_path / "photos", "--out", tmp_path / "p.csv")
    for _ in range(2):
        run_script("test_ensemble.py", *words, *size).check()
    given = config_with(name="my_tent").members["m"].predictor
    predictor, _ = build_predictor(given, "here", load_classifier(classifier), Surroundings(lambda: SOURCE))
    predictor.reset()
    shares = torch.cat([predictor.predict(images[i : i + 2].float() / 255).detach().softmax(1) for i in (0, 2, 4)])
    with (tmp_path / "p.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["confidence"]) for row in rows] == pytest.approx(shares.amax(1).tolist(), abs=1e-4)


def test_the_documented_rule_works_by_its_name(apart: None, runs: Path, classifier: Path, tmp_path: Path) -> None:
    root = tmp_path / "runs"
    jpeg = specialists(root, "jpeg")["jpeg"]
    (root / "ind").symlink_to(runs / "ind")
    write_block("extending/rule.md", "python", tmp_path / "my_rule.py")
    config = write_block("extending/rule.md", "yaml", tmp_path / "pair.yaml")
    words = ("--include", "my_rule", "--runs", root, "--corruption", "fog", "--severity", 5, "--limit", LIMIT)
    run_script("test_ensemble.py", "-c", config, *words, "--out", tmp_path / "out").check()
    source = OnTheFly(open_source("Digits", "test", limit=LIMIT)).source(Cell("fog", 5))
    logits = torch.stack([logits_by_hand(path, source.images(range(LIMIT))) for path in (classifier, jpeg)])
    expected = logits.softmax(-1).log().mean(0).argmax(1)
    (row,) = rows_of(tmp_path / "out")
    assert (row["rule"], row["correct"]) == ("product", int((expected == source.labels).sum()))
    pair = (config, classifier, "--second_model_prefix", jpeg, "--ensemble", "product", "--out", tmp_path / "two")
    run_script("test_ensemble.py", *pair, *words).check()
    assert rows_of(tmp_path / "two")[0]["correct"] == row["correct"]
