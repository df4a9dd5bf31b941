"""An image folder full of odd and hostile files, through adaptation, training, evaluation and
prediction: what is readable is used, the rest is named, no code runs, nothing hangs.
"""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path

import pytest

from tests.chaos.hostile_images import GOOD, build
from tests.chaos.launches import ADAPT, Launch, needs_mpiexec, ranks
from tests.scripts import Done

pytestmark = pytest.mark.slow

LIMIT = 300  # seconds of each command


class Folder:
    """The files, and which of them are pictures."""

    def __init__(self, root: Path) -> None:
        self.root, self.marker = root / "photos", root / "marker"
        self.listed = build(self.root, self.marker)

    def check(self, done: Done, status: int, *, names: bool) -> None:
        """No code was run, no traceback, no line that was cut by a name; every file that is no
        picture is named, if they shall be.
        """
        assert not self.marker.exists()
        assert "Traceback" not in done.err, done.err[-3000:]
        assert done.status == status, f"status {done.status}: {done.err[-3000:]}"
        assert not re.search(r"[\t\x1b]", done.err.replace("\x1b[A", "")), "a name is not escaped"
        if names:
            missing = [name for name in self.listed[False] if os.fsdecode(name).rpartition("/")[2] not in done.err]
            assert missing == []


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    return Folder(tmp_path_factory.mktemp("hostile"))


def test_there_are_about_a_hundred(folder: Folder) -> None:
    assert sum(map(len, folder.listed.values())) + 24 + 8 > 100


@needs_mpiexec
@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("output", ["png", "tar"])
def test_adaptation_makes_all_pictures_and_names_the_others(output: str, count: int, folder: Folder, tmp_path: Path) -> None:
    words = ("--include", "tests.chaos.toys", "--adapter", "mirror", "--base_samples", folder.root, "--save_dir", tmp_path / "out")
    words += ("--output", output, *(("--shard_size", 20) if output == "tar" else ()))
    done = ranks(count, ADAPT, *words).finish(LIMIT)
    folder.check(done, 1, names=True)
    rows = [json.loads(line) for line in (tmp_path / "out/manifest.jsonl").read_text().splitlines()]
    made = {row["key"] for row in rows if "error" not in row}
    for name in folder.listed[True]:
        key = os.fsdecode(name)
        assert {key, key.rpartition(".")[0]} & made, f"{key} was not made"
    for name in folder.listed[False]:
        assert not {os.fsdecode(name), os.fsdecode(name).rpartition(".")[0]} & made
    files = {(row["file"], row.get("offset")) for row in rows if "error" not in row}
    assert len(files) == len(made) and all((tmp_path / "out" / file).is_file() for file, _ in files)
    again = ranks(count, ADAPT, *words, "--skip_broken", "true").finish(LIMIT)
    folder.check(again, 0, names=True)
    assert "adapted 0 images" in again.err


@pytest.fixture(scope="module")
def trained(folder: Folder, tmp_path_factory: pytest.TempPathFactory) -> tuple[Done, Path]:
    """A training of two epochs on the folder, and where its runs are."""
    root = tmp_path_factory.mktemp("trained")
    given = ("-c", "configs/ind/ImageFolder/ResNet20_clean.yaml", "--save_dir", root, "--run_id", "one", "-d", "cpu")
    small = ("--data.image_size", 32, "--bs", 20, "--loop.epochs", 2, "--data.dataset", folder.root)
    return Launch(sys.executable, "train.py", *given, *small).finish(LIMIT), root


def test_training_uses_all_pictures_and_names_the_others(folder: Folder, trained: tuple[Done, Path]) -> None:
    done, root = trained
    folder.check(done, 0, names=False)
    assert re.search(r"left out \d+ of \d+ files", done.err)
    (found,) = re.findall(r"(\d+) training and (\d+) validation images", done.err)
    assert sum(map(int, found)) >= 0.8 * (2 * GOOD + len(folder.listed[True]))
    assert list(root.glob("**/one/DONE"))


@pytest.mark.parametrize("words", [("--corruption", "clean,jpeg"), ("--predict",)], ids=["evaluation", "prediction"])
def test_evaluation_and_prediction_use_all_pictures(
    words: tuple[str, ...], folder: Folder, trained: tuple[Done, Path], tmp_path: Path
) -> None:
    trained[0].check()
    (run,) = trained[1].glob("**/one")
    predicted = words == ("--predict",)
    more = (folder.root, "--out", tmp_path / "p.csv") if predicted else ("--out", tmp_path)
    done = Launch(sys.executable, "test.py", "-r", run, *words, *more).finish(LIMIT)
    folder.check(done, int(predicted), names=predicted)
    if predicted:
        found = re.search(r"\((\d+) images\)", done.out)
        assert found is not None and int(found[1]) >= 2 * GOOD + len(folder.listed[True])
