"""Systems with a member for each degradation, the oracle among them; how often images are made;
what a failure leaves.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.checkpoints import specialists
from tests.scoring import rows_of
from undegrade.evaluation.config import EvaluationConfig, expand
from undegrade.evaluation.evaluate import Evaluation, evaluate
from undegrade.utils.config import Tree, build, merge
from undegrade.utils.data.cells import Cell
from undegrade.utils.data.sources.image_source import ImageSource
from undegrade.utils.data.views import OnTheFly
from undegrade.utils.interruption import Interrupted, Interruption

IMAGES = 30
DEGRADATIONS = ["saltpepper", "noise"]
ORACLE, VOTE = "Base separate (Oracle)", "Ensemble"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of two specialists with weights of their own."""
    root = tmp_path_factory.mktemp("specialists")
    specialists(root, *DEGRADATIONS)
    return root


def tree_of(root: Path, out: Path, *corruptions: str) -> Tree:
    return {
        "degradations": DEGRADATIONS,
        "members": {"{deg}": {"checkpoint": "sl/{dataset}/{arch}-{arch}/{deg}"}},
        "systems": {
            ORACLE: {"members": ["{corruption}"]},
            VOTE: {"members": ["{deg}"], "rule": "vote"},
            **{f"only {deg}": {"members": [deg]} for deg in DEGRADATIONS},
        },
        "data": {"dataset": "Digits", "limit": IMAGES, "corruptions": list(corruptions), "severities": [5]},
        "out": str(out),
        "runs": str(root),
    }


def evaluation(tree: Tree, **changes: object) -> Evaluation:
    return evaluate(build(EvaluationConfig, merge(tree, changes)), torch.device("cpu"))


# --- members by degradation


def test_a_member_a_degradation_is_written_once_and_stands_for_all(tmp_path: Path) -> None:
    tree = tree_of(tmp_path, tmp_path / "{dataset}-{arch}", "clean")
    config = expand(build(EvaluationConfig, tree))
    assert {name: member.checkpoint for name, member in config.members.items()} == {
        deg: f"sl/{{dataset}}/{{arch}}-{{arch}}/{deg}" for deg in DEGRADATIONS
    }
    assert config.systems[VOTE].members == DEGRADATIONS
    assert config.systems[ORACLE].members == ["{corruption}"]  # of each cell
    assert config.out == f"{tmp_path}/Digits-ResNet20"
    assert expand(config) == config


def test_only_some_systems_are_evaluated_without_opening_the_members_of_others(root: Path, tmp_path: Path) -> None:
    tree = tree_of(root, tmp_path, "clean")
    tree["members"]["untrained"] = {"checkpoint": "not/there"}
    tree["systems"]["later"] = {"members": ["untrained"]}
    found = evaluation(tree, only=[VOTE, "only noise"])
    assert {row.system for row in found.rows} == {VOTE, "only noise"}
    with pytest.raises(ValueError, match="unknown system 'latre' in only: did you mean 'later'"):
        evaluation(tree, only=["latre"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"degradations": []}, "member '{deg}' stands for one a degradation: name them, degradations: [jpeg, blur, ...]"),
        ({"systems": {VOTE: {"members": ["{dge}"]}}}, "unknown member '{dge}' in system 'Ensemble'"),
        (
            {"members": {"{deg}": {"checkpoint": "all"}}},
            "member '{deg}' has the checkpoint 'all': write {deg} in both or in neither",
        ),
        ({"members": {"x": {"checkpoint": "a/{deg}"}}}, "member 'x' has the checkpoint 'a/{deg}': write {deg} in both"),
    ],
)
def test_mistakes_with_placeholders_are_named(tmp_path: Path, changes: Tree, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        expand(build(EvaluationConfig, merge(tree_of(tmp_path, tmp_path, "clean"), changes)))


def test_oracle_is_the_specialist_of_the_cells_degradation_and_has_no_other_cells(root: Path, tmp_path: Path) -> None:
    done = evaluation(tree_of(root, tmp_path, *DEGRADATIONS, "clean", "fog"))
    cells = {deg: Cell(deg) for deg in DEGRADATIONS}
    assert list(done.correct[ORACLE]) == list(cells.values())
    assert len(done.correct["only noise"]) == len(done.correct[VOTE]) == 4
    for deg, other in zip(DEGRADATIONS, DEGRADATIONS[::-1], strict=True):
        assert np.array_equal(done.correct[ORACLE][cells[deg]], done.correct[f"only {deg}"][cells[deg]])
        assert not np.array_equal(done.correct[ORACLE][cells[deg]], done.correct[f"only {other}"][cells[deg]])
    rows = {(row["system"], row["corruption"]): row for row in rows_of(tmp_path)}
    assert rows[ORACLE, "noise"]["correct"] == rows["only noise", "noise"]["correct"]
    assert [corruption for system, corruption in rows if system == ORACLE] == [*DEGRADATIONS, "mean"]
    assert rows[ORACLE, "mean"]["n"] == 2 * IMAGES


def test_system_without_any_cell_is_refused_before_anything_is_scored(root: Path, tmp_path: Path) -> None:
    message = f"system {ORACLE!r} has no member for any of the cells clean/0, fog/5"
    with pytest.raises(ValueError, match=re.escape(message)):
        evaluation(tree_of(root, tmp_path / "out", "clean", "fog"))
    assert not (tmp_path / "out").exists()


# --- cost and failure


def watch(monkeypatch: pytest.MonkeyPatch, fail_at: str = "") -> Counter[str]:
    """How many images of each cell are made from here on; those of one cell cannot be."""
    made: Counter[str] = Counter()
    original = OnTheFly.source

    def source(self: OnTheFly, cell: Cell) -> ImageSource:
        found = original(self, cell)

        def read(rows: np.ndarray) -> Tensor:
            if cell.corruption == fail_at:
                raise OSError("disk gone")
            made[cell.corruption] += len(rows)
            return found.images(rows)

        return dataclasses.replace(found, read=read)

    monkeypatch.setattr(OnTheFly, "source", source)
    return made


def test_images_of_a_cell_are_made_once_for_all_members_and_systems(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, tree = watch(monkeypatch), tree_of(root, tmp_path, "fog", *DEGRADATIONS)
    for again in range(2):
        evaluation(tree, cache=False)
        assert made == dict.fromkeys(("fog", *DEGRADATIONS), IMAGES * (again + 1))
    for _ in range(2):  # from the cache the second time
        evaluation(tree)
        assert made["fog"] == 3 * IMAGES


def test_results_are_complete_up_to_the_cell_that_failed(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = {(r["system"], r["corruption"]): r for r in _rows(root, tmp_path / "whole")}
    watch(monkeypatch, fail_at="clean")
    with pytest.raises(OSError, match="disk gone"):
        _rows(root, tmp_path / "part")
    rows = {(r["system"], r["corruption"]): r for r in rows_of(tmp_path / "part")}
    assert rows == {place: row for place, row in whole.items() if place[1] in DEGRADATIONS}
    assert len(rows) == 2 * 4
    assert json.loads((tmp_path / "part/results.json").read_text())["meta"]["images"] == IMAGES


class AfterCells(Interruption):
    """It is time to stop in the cell after `cells`."""

    def __init__(self, cells: int) -> None:
        super().__init__()
        self.batches = 2 * cells  # two members

    @property
    def reason(self) -> str | None:
        self.batches -= 1
        return "SIGTERM was received" if self.batches < 0 else None


def test_an_evaluation_that_is_stopped_keeps_whole_cells_and_the_next_call_goes_on(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = _rows(root, tmp_path / "whole")
    config = build(EvaluationConfig, tree_of(root, tmp_path / "part", *DEGRADATIONS, "clean"))
    with pytest.raises(Interrupted, match="SIGTERM was received in 150 of 180 images, the rows of whole cells are in"):
        evaluate(config, torch.device("cpu"), AfterCells(2))
    assert {row["corruption"] for row in rows_of(tmp_path / "part")} == set(DEGRADATIONS)
    made = watch(monkeypatch)
    assert _rows(root, tmp_path / "part") == whole
    assert made == {"clean": IMAGES}


def _rows(root: Path, out: Path) -> list[dict]:
    evaluation(tree_of(root, out, *DEGRADATIONS, "clean"))
    return rows_of(out)
