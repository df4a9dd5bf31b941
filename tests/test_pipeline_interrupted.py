"""Pipelines that are told to end: the stage that runs hears of it, and the same command goes on."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import psutil
import pytest

from tests.chaos.launches import Launch, wait_until
from undegrade.utils.interruption import STATUS

STAGE = """
import pathlib, signal, sys, time
name, folder = sys.argv[sys.argv.index("--name") + 1], pathlib.Path(__file__).parent
heard = []
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
    signal.signal(number, lambda number, frame: heard.append(signal.Signals(number).name))
mode = (folder / "mode").read_text()
(folder / f"{name}.started").touch()
while mode in ("wait", "deaf") and not (heard and mode == "wait"):
    time.sleep(0.02)
(folder / f"{name}.heard").write_text(" ".join(heard))
sys.exit(75 if mode in ("wait", "stop") else 0)
"""
PIPELINE = """
stages:
  first: {{script: "{folder}/stage.py", args: {{name: first}}}}
  second: {{script: "{folder}/stage.py", args: {{name: second}}}}
"""


def pipeline(folder: Path, mode: str, *words: object) -> Launch:
    """The pipeline of two stages that end at once (`go`), on a signal (`wait`), never (`deaf`), or
    by themselves with the status 75 (`stop`).
    """
    for name, text in (("stage.py", STAGE), ("pipeline.yaml", PIPELINE.format(folder=folder)), ("mode", mode)):
        (folder / name).write_text(text)
    return Launch(sys.executable, "utils/pipeline.py", "-c", folder / "pipeline.yaml", "--out", folder / "out", *words)


def started(folder: Path, launch: Launch) -> None:
    assert wait_until(lambda: (folder / "first.started").exists() or not launch.running, 60) and launch.running


@pytest.mark.parametrize(("name", "told"), [("SIGTERM",) * 2, ("SIGINT",) * 2, ("SIGUSR1",) * 2, ("SIGHUP", "SIGTERM")])
def test_a_signal_is_passed_on_to_the_stage_and_the_same_command_goes_on(tmp_path: Path, name: str, told: str) -> None:
    launch = pipeline(tmp_path, "wait")
    started(tmp_path, launch)
    os.killpg(launch.process.pid, getattr(signal, name))  # as a terminal does
    done = launch.finish(60)
    ending = f"stopped: {name} was received in stage 'first', which ended with status 75; the same command goes on from there"
    assert done.status == STATUS and done.err.splitlines()[-1] == ending
    assert (tmp_path / "first.heard").read_text() == told  # once
    assert not (tmp_path / "second.started").exists() and not list((tmp_path / "out").rglob("*.json"))
    assert "all 2 stages done" in pipeline(tmp_path, "go").finish(60).check().err


def test_the_stage_is_told_when_the_time_is_over(tmp_path: Path) -> None:
    done = pipeline(tmp_path, "wait", "--max_time", "1s").finish(60)
    assert done.status == STATUS and "the 1 seconds of --max_time are over in stage 'first'" in done.err
    assert (tmp_path / "first.heard").read_text() == "SIGTERM"
    done = pipeline(tmp_path, "go", "--max_time", "0.001s").finish(60)
    assert done.status == STATUS and "--max_time are over before stage 'first'" in done.err
    pipeline(tmp_path, "go").finish(60).check()
    pipeline(tmp_path, "go", "--max_time", "0.001s").finish(60).check()  # nothing was left


def test_a_stage_that_stops_by_itself_stops_the_pipeline(tmp_path: Path) -> None:
    done = pipeline(tmp_path, "stop").finish(60)
    assert done.status == STATUS and "stopped: it was stopped in stage 'first', which ended with status 75; the same" in done.err


def test_a_second_interrupt_kills_a_stage_that_does_not_end(tmp_path: Path) -> None:
    launch = pipeline(tmp_path, "deaf")
    started(tmp_path, launch)
    (stage,) = psutil.Process(launch.process.pid).children()
    launch.process.send_signal(signal.SIGINT)
    assert not wait_until(lambda: not launch.running, 1)
    launch.process.send_signal(signal.SIGINT)
    assert launch.finish(60).status == 130
    assert wait_until(lambda: not stage.is_running(), 30)


def test_a_time_that_is_not_understood_is_refused_before_anything_runs(tmp_path: Path) -> None:
    done = pipeline(tmp_path, "go", "--max_time", "soon").finish(60)
    assert done.status == 2 and "duration 'soon'" in done.err and not (tmp_path / "first.started").exists()
