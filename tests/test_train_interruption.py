"""train.py that is stopped and started again, one writer a run, what a run says of its origin."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.loops import last_of
from tests.scripts import Done, run_script
from undegrade.trainers.origin import record_launch
from undegrade.utils.checkpoint import load_checkpoint, read_description
from undegrade.utils.data.sources.registry import open_source
from undegrade.utils.interruption import STATUS
from undegrade.utils.lock import locked
from undegrade.utils.provenance import listing_digest

CLEAN = "configs/ind/Digits/ResNet20_clean.yaml"
NAME = "ind/Digits/ResNet20_clean"
SMALL = ("--data.limit", 40, "--loop.epochs", 2, "--bs", 10)


def train(root: Path, *words: object) -> Done:
    return run_script("train.py", "-c", CLEAN, "--save_dir", root, *SMALL, *words)


def launches(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "provenance.jsonl").read_text().splitlines()]


def test_a_run_without_id_that_is_stopped_says_how_it_goes_on_and_ends_as_one_that_was_not(tmp_path: Path) -> None:
    train(tmp_path, "--run_id", "whole").check()
    whole = tmp_path / NAME / "whole"
    done = train(tmp_path, "--max_time", "0.001s")
    (run,) = (path for path in (tmp_path / NAME).iterdir() if path != whole)
    assert done.status == STATUS
    assert f"{run} is saved after epoch 0 of 2 and 1 of 4 batches" in done.err
    assert done.err.rstrip().endswith(f"train.py -r {run} goes on from there")
    done = run_script("train.py", "-r", run).check()
    assert f"resuming {run} after epoch 0 of 2 and 1 of 4 batches" in done.err
    for name in ("metrics.jsonl", "best.safetensors"):
        assert (run / name).read_bytes() == (whole / name).read_bytes()
    assert len(launches(run)) == 2 and len(launches(whole)) == 1


def test_a_run_with_an_id_goes_on_by_the_same_command(tmp_path: Path) -> None:
    done = train(tmp_path, "--run_id", "a", "--max_time", "0.001s")
    assert done.status == STATUS and done.err.rstrip().endswith("the same command goes on from there")
    train(tmp_path, "--run_id", "a").check()
    assert last_of(tmp_path / NAME / "a")["progress"]["epoch"] == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--max_time", "soon"), "duration 'soon'"),
        (("--loop.save_every", "soon"), "loop.save_every: duration 'soon'"),
        (("--loop.save_every", 0), "loop.save_every"),
    ],
)
def test_times_that_are_not_understood_are_refused_before_there_is_a_run(tmp_path: Path, words: tuple, message: str) -> None:
    done = train(tmp_path, *words)
    assert done.status == 2 and message in done.err and not list(tmp_path.iterdir())


def test_a_run_and_a_soup_have_one_writer_each(tmp_path: Path) -> None:
    train(tmp_path, "--run_id", "a").check()
    soup = ("-c", "configs/deg_all/Digits/ResNet20_soups.yaml", "--save_dir", tmp_path, "--run_id", "s", "--data.limit", 40)
    members = ("--members", f"[{NAME}]", "--name", "soup")
    with locked(tmp_path / NAME / "a", "test"), locked(tmp_path / "soup/s", "test"):
        refused = train(tmp_path, "--run_id", "a"), run_script("utils/model_soups.py", *soup, *members)
    for done in refused:
        assert done.status == 2 and "is in use: process" in done.err and "(test)" in done.err
    run_script("utils/model_soups.py", *soup, *members).check()


def test_a_run_and_its_checkpoint_say_what_they_were_made_of(tmp_path: Path) -> None:
    train(tmp_path, "--run_id", "a").check()
    parent = tmp_path / NAME / "a/best.safetensors"
    train(tmp_path, "--run_id", "b", "--model.init_from", parent, "--rs", 5).check()
    run = tmp_path / NAME / "b"
    (row,) = launches(run)
    source = open_source("Digits", "train", limit=40)
    assert row["listings"]["train"] == {"images": 40, "digest": listing_digest(source.keys, source.labels)}
    assert row["weights"] == {str(parent): read_description(run / "best.safetensors")["initial_weights"]}
    assert {"commit", "libraries", "cpu", "processes", "seed"} <= row.keys()
    description = read_description(run / "best.safetensors")
    assert description["configuration"]["model"]["init_from"] == "best.safetensors" and description["configuration"]["seed"] == 5
    assert str(tmp_path) not in json.dumps(description)
    assert description["made_by"]["libraries"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert load_checkpoint(run / "best.safetensors", "classifier")[1] == description


def test_a_run_never_goes_on_with_other_teachers_under_the_same_name(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    few, more = open_source("Digits", "train", limit=20), open_source("Digits", "train", limit=30)
    record_launch(tmp_path, 1, 1, {"teacher": "a"}, {"train": few})
    record_launch(tmp_path, 1, 1, {"other": "b"}, {"train": few})
    assert not caplog.text
    record_launch(tmp_path, 1, 1, {"teacher": "b"}, {"train": more})
    assert "the train images are not those of the launch before: 30 now" in caplog.text
    with pytest.raises(ValueError, match=r"other weights than teacher now names \(digest b before, c now\).*--run ID"):
        record_launch(tmp_path, 1, 1, {"teacher": "c"}, {"train": more})
    assert len(launches(tmp_path)) == 3
