"""Pipelines that repeat their stages for each value of a variable, and stages that run once after
all of them.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.stages import STAGE, run, texts
from undegrade.utils import stages
from undegrade.utils.config import build
from undegrade.utils.errors import Stopped
from undegrade.utils.pipeline import main
from undegrade.utils.stages import PipelineConfig, commands

CONFIG = """
variables: {out: results, seeds: "1,2", seed: "1", degs: "jpeg,noise", word: ""}
repeat: {seed: "{seeds}"}
stages:
  first: {script: stage.py, args: {name: "first-{seed}", word: "{word}"}}
  second: {each: ["{degs}", all], script: stage.py, args: {name: "second-{seed}-{each}"}}
  table: {once: true, script: stage.py, args: {name: table, seeds: "{seeds}"}}
"""
ONE = ["first-1", "second-1-jpeg", "second-1-noise", "second-1-all"]
TWO, THREE = ([name.replace("-1", f"-{seed}") for name in ONE] for seed in (2, 3))


@pytest.fixture
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A working folder with that pipeline."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(stages, "find_mpiexec", lambda: None)
    Path("stage.py").write_text(STAGE)
    Path("pipeline.yaml").write_text(CONFIG)


@pytest.mark.usefixtures("_folder")
def test_stages_run_for_each_value_and_a_stage_once_after_all_of_them() -> None:
    assert run() == [*ONE, *TWO, "table"]
    assert Path("log.txt").read_text().splitlines()[-1] == "--name table --seeds 1,2"
    assert run() == []
    assert sorted(p.relative_to("results/stages").as_posix() for p in Path("results/stages").rglob("*.json"))[:2] == [
        "seed1/first.json", "seed1/second-all.json",
    ]  # fmt: skip


@pytest.mark.usefixtures("_folder")
def test_more_values_leave_finished_ones_as_they_are() -> None:
    run()
    assert run("--seeds", "1,2,3") == [*THREE, "table"]
    assert run("--seeds", "3,1,2") == ["table"]
    assert run("--seeds", "2") == ["table"]
    assert run("--seeds", "2") == []


@pytest.mark.usefixtures("_folder")
def test_what_changes_in_every_repetition_is_run_again_in_each_and_the_last_stage_after_them() -> None:
    run()
    Path("pipeline.yaml").write_text(CONFIG.replace('"{degs}", all', '"{degs}"'))
    assert run() == ["table"]  # it depends on all stages: one is gone
    assert run("--word", "x") == [*ONE[:3], *TWO[:3], "table"]


@pytest.mark.usefixtures("_folder")
def test_a_failed_repetition_goes_on_from_there() -> None:
    Path("fail_second-2-noise").touch()
    with pytest.raises(Stopped, match="stage 'seed2/second-noise' failed with status 3"):
        run()
    Path("fail_second-2-noise").unlink()
    assert run() == [*TWO[2:], "table"]


def test_each_takes_the_values_of_a_variable_and_others_beside_them() -> None:
    config = {
        "variables": {"degs": "jpeg,blur+noise"},
        "stages": {"a": {"each": ["{degs}", "clean"], "script": "a.py", "args": {"dt": "{each}"}}},
    }
    assert texts(config) == {"a-jpeg": "a.py --dt jpeg", "a-blur+noise": "a.py --dt blur+noise", "a-clean": "a.py --dt clean"}
    assert texts(config, degs="fog") == {"a-fog": "a.py --dt fog", "a-clean": "a.py --dt clean"}
    with pytest.raises(ValueError, match="'degz'.*'a'.*'degs'"):
        texts({"variables": {"degs": "x"}, "stages": {"a": {"each": ["{degz}"], "script": "a.py"}}})


def test_each_takes_several_variables_and_runs_for_all_combinations() -> None:
    config = {
        "variables": {"streams": "1,2"},
        "stages": {"a": {"each": {"size": "4,16", "stream": "{streams}"}, "script": "a.py", "args": {"of": "{size}/{stream}"}}},
    }
    assert texts(config) == {f"a-{n}-{s}": f"a.py --of {n}/{s}" for n in (4, 16) for s in (1, 2)}
    with pytest.raises(ValueError, match="'sise' in stage 'a': did you mean 'size'.*folder, family, size$"):
        texts({"stages": {"a": {"each": {"size": "4"}, "script": "a.py", "args": {"of": "{sise}"}}}})


def test_the_stage_id_of_a_repetition_does_not_depend_on_the_others() -> None:
    config = {"variables": {"seed": "1"}, "stages": {"a": {"script": "a.py", "args": {"seed": "{seed}"}}}}
    config["stages"]["end"] = {"script": "end.py", "once": True}

    def identities(seeds: str) -> dict[str, str]:
        return {c.name: c.identity for c in commands(build(PipelineConfig, {**config, "repeat": {"seed": seeds}}), {})}

    few, many = identities("1"), identities("2,1")
    assert few["seed1/a"] == many["seed1/a"] != many["seed2/a"]
    assert few["end"] != many["end"]
    assert list(many) == ["seed2/a", "seed1/a", "end"]


def test_without_repeat_a_stage_that_runs_once_stands_in_its_place() -> None:
    config = {"stages": {"a": {"script": "a.py", "once": True}, "b": {"script": "b.py"}}}
    assert texts(config) == {"a": "a.py", "b": "b.py"}


def test_the_repeated_variable_is_a_pattern_where_a_stage_runs_once() -> None:
    config = {"variables": {"run": "out/{seed}", "seed": "7"}, "repeat": {"seed": "1,2"}}
    config["stages"] = {
        "a": {"script": "a.py", "args": {"out": "{run}"}},
        "end": {"script": "end.py", "args": {"runs": "{run}", "of": "{seed}"}, "once": True},
    }
    found = {"seed1/a": "a.py --out out/1", "seed2/a": "a.py --out out/2", "end": "end.py --runs 'out/{seed}' --of '{seed}'"}
    assert texts(config) == found


def test_a_stage_is_left_out_where_its_condition_is_empty() -> None:
    config = {"variables": {"ddpm": "small"}, "stages": {"a": {"script": "a.py", "when": "{ddpm}"}, "b": {"script": "b.py"}}}
    assert texts(config) == {"a": "a.py", "b": "b.py"}
    assert texts(config, ddpm="") == {"b": "b.py"}


def test_two_variables_cannot_be_repeated() -> None:
    with pytest.raises(ValueError, match="repeat names seed, arch: give one variable"):
        texts({"stages": {"a": {"script": "a.py"}}, "repeat": {"seed": "1", "arch": "x"}})


# --- the pipeline of FusionDistill's table


@pytest.mark.slow
def test_the_table_of_fusiondistill_comes_out_and_a_second_call_runs_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    few = ["--seeds", "1", "--degs", "noise,blur+noise,fog", "--severity", "5", "--data.data.limit", "20", "--test.limit", "10"]
    words = ["-c", "configs/pipelines/fusiondistill.yaml", "--out", str(tmp_path), *few, "--train.loop.epochs", "1"]
    main(words)
    table = (tmp_path / "table.md").read_text()
    for approach in (
        "Base separate (Oracle)",
        "Ensemble",
        "Scratch",
        "Vanilla fine-tuning",
        "ModelSoups",
        "Fusing",
        "FusionDistill",
    ):
        assert approach in table
    results = json.loads((tmp_path / "seed1/results.json").read_text())
    assert {row["corruption"] for row in results["rows"]} > {"clean", "noise", "blur+noise", "fog", "snow", "mean"}
    assert re.search(r"\| approach +\| +AWGN \| +fog \| +blur\+noise \| +Avg \| +Clean \| +Unseen \|", table)
    caplog.clear()
    with caplog.at_level("INFO"):
        main(words)
    stages = [message for message in caplog.messages if message.startswith("[")]
    assert len(stages) == 11 and all("done before" in message for message in stages)
