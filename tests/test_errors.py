"""The one line in which mistakes of the user end."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from tests.scripts import run_script
from undegrade.utils.errors import run_main

PIPELINE = ("utils/pipeline.py", "-c", "configs/pipelines/diffaud.yaml", "--dry_run", "--dataset")


@pytest.mark.parametrize(
    ("number", "paths", "message"),
    [
        (errno.ENOENT, ("a/b",), "a/b is not there"),
        (errno.ENOSPC, ("x.png",), "x.png cannot be written, the disk is full: free some space, and start the same command again"),
        (errno.EACCES, ("a", None, "b"), "b may not be read or written by you: change its permissions, or name another one"),
        (errno.EIO, ("a",), f"a cannot be used: {os.strerror(errno.EIO).lower()}"),
        (errno.EIO, (), os.strerror(errno.EIO).lower()),
    ],
)
def test_what_the_system_answers_is_said_in_words(
    number: int, paths: tuple[str | None, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise OSError(number, os.strerror(number), *paths)

    with pytest.raises(SystemExit):
        run_main(fail)
    assert capsys.readouterr().err == f"error: {message}\n"


def test_a_configuration_without_its_flag_is_named_with_it() -> None:
    path = "configs/ind/Digits/ResNet20_clean.yaml"
    done = run_script("train.py", path)
    assert done.status == 2 and f"{path} stands alone, a configuration goes after -c: train.py -c {path} ..." in done.err
    done = run_script("train.py", "-c", path, "--dt", "fog", "snow")
    assert "unexpected arguments ['snow']: a list is one word" in done.err


def test_a_dry_run_knows_the_data_sets(tmp_path: Path) -> None:
    done = run_script(*PIPELINE, "Digts")
    assert done.status == 2 and "unknown dataset 'Digts': did you mean 'Digits'?" in done.err
    done = run_script(*PIPELINE, tmp_path / "none")
    assert done.status == 2 and f"image folder {tmp_path}/none does not exist; expected" in done.err
