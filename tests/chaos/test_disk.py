"""A disk that is full, and a folder that nobody may write to: one line, nothing lost, and the same
command goes on once there is room.

The disk is a small one in memory that only the launch sees, which needs Linux and the right to make
it (`unshare`).
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.adapting import SHORT
from tests.chaos.launches import ADAPT, MPIEXEC, assert_one_line, assert_same_tree, needs_mpiexec, tree_of
from tests.chaos.test_kill_training import assert_same_run
from tests.scripts import Done, launch

UNSHARE = shutil.which("unshare")


def _may_mount() -> bool:
    if UNSHARE is None:
        return False
    words = [UNSHARE, "-rm", "sh", "-c", "mount -t tmpfs tmpfs /mnt"]
    return subprocess.run(words, capture_output=True, check=False).returncode == 0


pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not _may_mount(), reason="a disk in memory cannot be mounted here (unshare -rm)"),
]

# the command on a small disk, on a larger one, and what both left
SMALL_THEN_LARGE = """
mount -t tmpfs -o size={size} tmpfs {disk}
{command} >{notes}/out1 2>{notes}/err1; echo $? >{notes}/status1
cp -a {disk} {notes}/small
mount -o remount,size=1g {disk}
{command} >{notes}/out2 2>{notes}/err2; echo $? >{notes}/status2
cp -a {disk} {notes}/large
"""
READ_ONLY = """
mount --bind {disk} {disk}
mount -o remount,ro,bind {disk}
{command} >{notes}/out1 2>{notes}/err1; echo $? >{notes}/status1
"""


def on_a_disk(script: str, folder: Path, *words: object, size: str = "") -> list[Done]:
    """What each call of the command left; its `{disk}` is `<folder>/disk`."""
    disk, notes = folder / "disk", folder / "notes"
    for path in (disk, notes):
        path.mkdir(exist_ok=True)
    command = shlex.join(str(word).format(disk=disk) for word in words)
    launch(UNSHARE, "-rm", "sh", "-c", script.format(disk=disk, notes=notes, size=size, command=command), timeout=600).check()
    calls = range(1, 1 + len(list(notes.glob("status*"))))
    texts = [[(notes / f"{name}{n}").read_text(errors="replace") for name in ("status", "out", "err")] for n in calls]
    return [Done(int(status), out, err) for status, out, err in texts]


def no_litter(folder: Path) -> None:
    assert [name for name in tree_of(folder) if name.endswith(".tmp") or ".lock" in name] == []


def adaptation(ddpm: Path, save_dir: str | Path, *words: object) -> tuple[object, ...]:
    given = ("--corruption", "gaussian_noise,jpeg", "--limit", 40, "--batch_size", 4)
    return sys.executable, ADAPT, "--model_path", ddpm, "--save_dir", save_dir, *SHORT, *given, *words


@needs_mpiexec
@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("words", [(), ("--output", "tar", "--shard_size", 10)], ids=["a file an image", "shards"])
def test_adaptation_on_a_full_disk_goes_on_when_there_is_room(
    words: tuple[object, ...], ranks: int, ddpm: Path, tmp_path: Path
) -> None:
    launcher = () if ranks == 1 else (MPIEXEC, "-n", ranks)
    launch(*adaptation(ddpm, tmp_path / "whole", *words)).check()
    command = (*launcher, *adaptation(ddpm, "{disk}/out", *words))
    full, again = on_a_disk(SMALL_THEN_LARGE, tmp_path, *command, size="200k")
    assert_one_line(full, "No space left on device")
    kept = tree_of(tmp_path / "notes/small/out")
    whole = tree_of(tmp_path / "whole")
    pictures = [name for name in kept if name.endswith((".png", ".tar"))]
    assert pictures and all(kept[name] == whole[name] for name in pictures)  # what was finished is whole
    no_litter(tmp_path / "notes/small")
    again.check()
    assert_same_tree(tmp_path / "notes/large/out", tmp_path / "whole")


@pytest.mark.parametrize("size", ["1m", "5m", "9m"])
def test_training_on_a_full_disk_goes_on_when_there_is_room(size: str, tmp_path: Path) -> None:
    given = (sys.executable, "train.py", "-c", "configs/ind/Digits/ResNet20_clean.yaml", "--run_id", "one", "-d", "cpu")
    given += ("--bs", 20, "--data.limit", 40, "--loop.epochs", 4, "--save_dir")
    launch(*given, tmp_path / "whole").check()
    full, again = on_a_disk(SMALL_THEN_LARGE, tmp_path, *given, "{disk}", size=size)
    if full.status:  # the largest may be large enough
        assert_one_line(full, "No space left on device")
    no_litter(tmp_path / "notes/small")
    again.check()
    assert_same_run(tmp_path / "notes/large", tmp_path / "whole")


def test_evaluation_on_a_full_disk_goes_on_when_there_is_room(classifier: Path, tmp_path: Path) -> None:
    given = (sys.executable, "test.py", "-r", classifier, "--corruption", "all", "--severity", 5, "--limit", 100, "--out")
    launch(*given, tmp_path / "whole").check()
    full, again = on_a_disk(SMALL_THEN_LARGE, tmp_path, *given, "{disk}/out", size="40k")
    assert_one_line(full, "No space left on device")
    no_litter(tmp_path / "notes/small")
    again.check()
    tables = [(place / "results.csv").read_bytes() for place in (tmp_path / "notes/large/out", tmp_path / "whole")]
    assert tables[0] == tables[1]


def test_a_read_only_folder_is_said_in_one_line(ddpm: Path, classifier: Path, tmp_path: Path) -> None:
    train = (sys.executable, "train.py", "-c", "configs/ind/Digits/ResNet20_clean.yaml", "--save_dir", "{disk}", "--data.limit", 40)
    evaluate = (sys.executable, "test.py", "-r", classifier, "--limit", 20, "--out", "{disk}/out")
    for command in (adaptation(ddpm, "{disk}/out"), train, evaluate):
        (done,) = on_a_disk(READ_ONLY, tmp_path, *command)
        assert_one_line(done, "Read-only file system", tmp_path)
        assert not list((tmp_path / "disk").iterdir())
