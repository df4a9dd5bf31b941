"""Stages that need only some of those before them: what runs again, and what runs side by side."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from tests.stages import STAGE, run, texts
from undegrade.utils.config import build
from undegrade.utils.errors import Stopped
from undegrade.utils.stages import PipelineConfig, commands

SLOW = """
import os, pathlib, sys, time
name = sys.argv[sys.argv.index("--name") + 1]
print("threads", os.environ.get("OMP_NUM_THREADS"), flush=True)
if pathlib.Path(f"fail_{name}").exists():
    sys.exit("no images")
def note(what):
    with open("times.txt", "a") as file:
        file.write(f"{what} {name}\\n")
note("begins")
time.sleep(0.6)
note("ends")
with open("log.txt", "a") as log:
    log.write(" ".join(sys.argv[1:]) + "\\n")
"""
PIPELINE = """
variables: {value: 1}
stages:
  clean: {script: stage.py, args: {name: clean}}
  specialist: {script: stage.py, args: {name: "specialist_{each}"}, each: [blur, noise], needs: [clean]}
  student: {script: stage.py, args: {name: student}, needs: [specialist]}
  diffusion: {script: stage.py, args: {name: diffusion, value: "{value}"}, needs: []}
  adapt: {script: stage.py, args: {name: adapt}, needs: [diffusion], mpi: true}
  evaluate: {script: stage.py, args: {name: evaluate}, needs: [adapt, student]}
  table: {script: stage.py, args: {name: table}, shown: true}
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("undegrade.utils.stages.find_mpiexec", lambda: None)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    (tmp_path / "stage.py").write_text(STAGE)
    (tmp_path / "pipeline.yaml").write_text(PIPELINE)
    return tmp_path


def _events() -> list[str]:
    return Path("times.txt").read_text().splitlines()


def test_only_what_needs_a_changed_stage_is_run_again() -> None:
    assert run() == ["clean", "specialist_blur", "specialist_noise", "student", "diffusion", "adapt", "evaluate", "table"]
    assert run("--value", "2") == ["diffusion", "adapt", "evaluate", "table"]


def test_a_stage_waits_for_all_commands_of_those_that_it_needs_and_without_a_word_for_all_before() -> None:
    config = build(PipelineConfig, {"stages": {name: {"script": "a.py"} for name in ("one", "two")}})
    assert [command.needs for command in commands(config, {})] == [[], ["one"]]
    stages = {"one": {"script": "a.py", "each": ["x", "y"]}, "two": {"script": "a.py", "when": "", "needs": ["one"]},
              "three": {"script": "a.py", "needs": ["two"]}}  # fmt: skip
    assert [command.needs for command in commands(build(PipelineConfig, {"stages": stages}), {})] == [[], [], ["one-x", "one-y"]]


def test_a_stage_cannot_need_one_that_does_not_come_before_it() -> None:
    with pytest.raises(ValueError, match=r"unknown stage before it 'too' in stage 'one' needs: did you mean 'two'\?|allowed: $"):
        texts({"stages": {"one": {"script": "a.py", "needs": ["too"]}, "two": {"script": "a.py"}}})


def test_stages_that_do_not_need_each_other_run_side_by_side(
    caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("stage.py").write_text(SLOW)
    caplog.set_level("INFO")
    assert len(run("--jobs", "2")) == 8
    events = _events()
    assert events[:2] == ["begins clean", "begins diffusion"] or events[:2] == ["begins diffusion", "begins clean"]
    orders = (("clean", "specialist_blur"), ("specialist_noise", "student"), ("student", "evaluate"), ("evaluate", "table"))
    for first, then in orders:
        assert events.index(f"ends {first}") < events.index(f"begins {then}")
    alone = events[events.index("begins adapt") :]  # which is two processes
    assert alone[1] == "ends adapt"
    cores = len(os.sched_getaffinity(0))
    assert Path("runs/pipeline/stages/clean.log").read_text() == f"threads {max(1, cores // 2)}\n"
    assert capsys.readouterr().out == f"threads {max(1, cores // 2)}\n\n"  # of the table, which is shown
    assert re.search(r"specialist-blur: done in \d+ s", caplog.text)


def test_a_failed_stage_is_told_with_its_last_lines_after_those_beside_it_have_ended(caplog: pytest.LogCaptureFixture) -> None:
    Path("stage.py").write_text(SLOW)
    Path("fail_clean").touch()
    ending = r"stage 'clean' failed with status 1(?s:.*)stages/clean\.log\n    threads \d+\n    no images"
    with pytest.raises(Stopped, match=ending):
        run("--jobs", "2")
    assert _events() == ["begins diffusion", "ends diffusion"]
    assert "stage 'clean' has failed; waiting for the end of diffusion" in caplog.text
    Path("fail_clean").unlink()
    assert "diffusion" not in run("--jobs", "2")
