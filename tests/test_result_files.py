"""Results of one configuration come together in a folder, those of another are refused; damaged
files are named.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.checkpoints import save_random
from tests.scoring import LIMIT, rows_of
from tests.scripts import run_script
from undegrade.evaluation.result_files import ResultFiles, read_json, write_json
from undegrade.evaluation.results import Result, cell_result, mean_result
from undegrade.utils.config import Tree, merge
from undegrade.utils.data.cells import Cell
from undegrade.utils.provenance import listing_digest

FACTS: Tree = {
    "seed": 0,
    "images": 13,
    "members": {"a": "digest"},
    "views": {"a": "raw"},
    "systems": {"one": {"members": ["a"], "rule": "first"}},
    "configuration": {"members": {"a": {}}, "systems": {"one": {}}},
    "provenance": [{"commit": "1"}],
}
CELLS = [Cell("clean", 0), Cell("fog", 5), Cell("jpeg", 0), Cell("jpeg")]


def right_of(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).random(13) < 0.6


def added(files: ResultFiles, *cells: Cell, system: str = "one") -> ResultFiles:
    for cell in cells:
        right = right_of(CELLS.index(cell))
        files.add(cell_result(system, "Digits", *cell, "first", right), right)
    return files


def test_results_of_one_configuration_come_together_whatever_the_calls(tmp_path: Path) -> None:
    added(ResultFiles(tmp_path / "once", FACTS), *CELLS).write(finished=True)
    for cell in (*CELLS, CELLS[1]):
        added(ResultFiles(tmp_path / "loop", FACTS), cell).write(finished=True)
    for name in ("results.json", "results.csv", "correct.npz"):
        assert (tmp_path / "loop" / name).read_bytes() == (tmp_path / "once" / name).read_bytes()
    rows, _ = read_json(tmp_path / "loop/results.json")
    assert rows[-1] == mean_result("one", "Digits", "first", {cell: right_of(CELLS.index(cell)) for cell in CELLS[1:]})
    assert [(row.corruption, row.severity) for row in rows[2:4]] == [("jpeg", 0), ("jpeg", None)], "level 0 is no random level"


def test_further_members_and_systems_join_and_what_made_the_rows_is_kept(tmp_path: Path) -> None:
    added(ResultFiles(tmp_path, FACTS), CELLS[1]).write(finished=True)
    of_others = {"members": {"b": "other"}, "views": {"b": "x"}, "systems": {"two": {"members": ["b"], "rule": "first"}}}
    changes = {**of_others, "configuration": {"systems": {"two": {}}}, "provenance": [{"commit": "2"}]}
    added(ResultFiles(tmp_path, {**FACTS, **changes}), CELLS[1], system="two").write(finished=True)
    rows, meta = read_json(tmp_path / "results.json")
    assert [row.system for row in rows] == ["one", "two"]
    assert {key: list(meta[key]) for key in ("members", "views", "systems")} == {
        "members": ["a", "b"], "views": ["a", "b"], "systems": ["one", "two"],
    }  # fmt: skip
    assert list(meta["configuration"]["systems"]) == ["one", "two"] and meta["provenance"] == [{"commit": "1"}, {"commit": "2"}]


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        ({"seed": 1}, "seed is 0 there and 1 here"),
        ({"images": 7}, "images is 13 there and 7 here"),
        ({"batch_size": 10}, "batch_size is None there and 10 here"),
        ({"members": {"a": "other"}}, "members.a is digest there and other here"),
        ({"views": {"a": "adapted"}}, "views.a is raw there and adapted here"),
        ({"systems": {"one": {"rule": "sum"}}}, "systems.one is {'members': ['a'], 'rule': 'first'} there and"),
    ],
)
def test_results_of_another_configuration_are_refused_by_what_differs(tmp_path: Path, changes: Tree, difference: str) -> None:
    added(ResultFiles(tmp_path, FACTS), CELLS[1]).write(finished=True)
    before = (tmp_path / "results.json").read_bytes()
    message = f"results.json holds results of another configuration ({difference}"
    with pytest.raises(ValueError, match=re.escape(message)):
        ResultFiles(tmp_path, merge(FACTS, changes))
    assert (tmp_path / "results.json").read_bytes() == before
    rows = added(ResultFiles(tmp_path, merge(FACTS, changes), overwrite=True), CELLS[0]).write(finished=True)
    assert [row.corruption for row in rows] == ["clean"]


def test_rows_so_far_have_no_mean_and_the_next_call_goes_on_from_them(tmp_path: Path) -> None:
    rows = added(ResultFiles(tmp_path, FACTS), *CELLS[:3]).write()
    assert [row.corruption for row in rows] == ["clean", "fog", "jpeg"]
    rows = added(ResultFiles(tmp_path, FACTS), CELLS[3]).write(finished=True)
    assert [row.corruption for row in rows] == ["clean", "fog", "jpeg", "jpeg", "mean"]


def whole(tmp_path: Path) -> Path:
    added(ResultFiles(tmp_path, FACTS), *CELLS).write(finished=True)
    return tmp_path


@pytest.mark.parametrize("damage", ["missing", "empty", "cut", "other"])
def test_rows_without_their_images_are_refused(tmp_path: Path, damage: str) -> None:
    path = whole(tmp_path) / "correct.npz"
    if damage == "missing":
        path.unlink()
    elif damage == "other":  # of rows that had something else right
        added(ResultFiles(tmp_path / "x", FACTS), CELLS[0]).write()
        path.write_bytes((tmp_path / "x/correct.npz").read_bytes())
    else:
        path.write_bytes(path.read_bytes()[: {"empty": 0, "cut": 300}[damage]])
    with pytest.raises(ValueError, match=r"correct.npz does not go with the rows of results.json .*: choose another --out, or"):
        ResultFiles(tmp_path, FACTS)


@given(st.data())
def test_any_damage_of_a_file_is_one_named_error_or_harmless(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    folder = whole(tmp_path_factory.mktemp("damaged"))
    path = folder / data.draw(st.sampled_from(["results.json", "correct.npz"]))
    content = bytearray(path.read_bytes())
    start = data.draw(st.integers(0, len(content)))
    content[start : start + data.draw(st.integers(0, 40))] = data.draw(st.binary(max_size=40))
    path.write_bytes(content)
    try:
        ResultFiles(folder, FACTS)
    except ValueError as error:
        assert str(path) in str(error) or "results.json" in str(error)


ROW = '{"system": "a", "dataset": "d", "corruption": "fog", "severity": 5, "rule": "r", "n": 2, "correct": 1, "accuracy": 0.5'


@pytest.mark.parametrize(
    ("content", "place"),
    [
        ("{", ""), ("[]", ""), ('{"rows": []}', "meta"), ('{"meta": {}, "rows": [{"system": "x"}]}', "rows.0.dataset"),
        ('{"meta": {}, "rows": [' + ROW + ', "ci95_low": "0", "ci95_high": 1}]}', "rows.0.ci95_low"),
        ('{"meta": {}, "rows": [' + ROW + ', "ci95_low": 0, "ci95_high": NaN}]}', "rows.0.ci95_high"),
        ('{"meta": {}, "rows": [' + ROW.replace("2", "0") + ', "ci95_low": 0, "ci95_high": 1}]}', "rows.0"),
        ('{"meta": ' + "[" * 100_000, "recursion limit"), ("\x00\xff", ""),
    ],
)  # fmt: skip
def test_something_else_is_no_results_file_and_the_place_is_named(tmp_path: Path, content: str, place: str) -> None:
    (tmp_path / "odd.json").write_text(content)
    with pytest.raises(ValueError, match=rf"odd.json is no results file \(.*{place}.*\): remove it and write it again"):
        read_json(tmp_path / "odd.json")


NAMES, SHARES = st.text(max_size=5), st.floats(0, 1)
ROWS = st.builds(
    Result, NAMES, NAMES, NAMES, st.none() | st.floats(0, 1e6), NAMES, st.just(3), st.integers(0, 3), SHARES, SHARES, SHARES,
    st.dictionaries(NAMES, st.integers(0, 9) | SHARES),
)  # fmt: skip


@given(st.lists(ROWS))
def test_any_rows_are_read_as_they_were_written(tmp_path_factory: pytest.TempPathFactory, rows: list[Result]) -> None:
    path = tmp_path_factory.mktemp("rows") / "r.json"
    write_json(path, rows, {"a": [1, {"b": None}]})
    assert read_json(path) == (rows, {"a": [1, {"b": None}]})


# --- by the scripts


def test_a_loop_over_corruptions_with_one_out_is_one_evaluation(classifier: Path, tmp_path: Path) -> None:
    words = ("-r", classifier, "--limit", LIMIT, "--severity", "2,5", "--out", tmp_path / "out")
    run_script("test.py", *words, "--corruption", "fog,snow").check()
    whole = rows_of(tmp_path / "out")
    (tmp_path / "out").rename(tmp_path / "whole")
    for corruption in ("fog", "snow"):
        done = run_script("test.py", *words, "--corruption", corruption).check()
    assert rows_of(tmp_path / "out") == whole and len(whole) == 5
    assert "fog" in done.out and "2 rows of the same configuration are there" in done.err
    meta = json.loads((tmp_path / "out/results.json").read_text())["meta"]
    assert meta["members"]["model"] and meta["views"] == {"model": "raw"} and meta["images"] == LIMIT
    assert meta["listing"] == listing_digest(*listing_of(tmp_path / "out"))
    assert meta["configuration"]["data"]["dataset"] == "Digits" and "libraries" in meta["provenance"][0]


def listing_of(out: Path) -> tuple[list[str], np.ndarray]:
    with np.load(out / "logits/images.npz") as stored:
        return stored["keys"].tolist(), stored["labels"]


def test_an_evaluation_of_other_weights_or_images_leaves_what_is_there(classifier: Path, tmp_path: Path) -> None:
    words = ("--corruption", "clean", "--out", tmp_path / "out")
    run_script("test.py", "-r", classifier, "--limit", LIMIT, *words).check()
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    other = save_random(tmp_path / "other.safetensors", seed=9)
    for given_words, difference in (((other, "--limit", LIMIT), "members.model is"), ((classifier, "--limit", 12), "images is 10")):
        done = run_script("test.py", "-r", *given_words, *words)
        assert done.status == 2 and difference in done.err
    (tmp_path / "out/results.json").unlink()
    done = run_script("test.py", "-r", classifier, "--limit", 12, *words)
    assert done.status == 2 and "holds logits of another listing (10 images, 12 here, or of other names or labels)" in done.err
    assert all(path.read_bytes() == content for path, content in before.items() if path.name != "results.json")
    run_script("test.py", "-r", classifier, "--limit", 12, *words, "--overwrite", "true").check()
    assert rows_of(tmp_path / "out")[0]["n"] == 12
