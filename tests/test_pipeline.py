"""Pipelines: commands from a YAML, and which stages run again after a change."""

from __future__ import annotations

import logging
import re
import shutil
import sys
from pathlib import Path

import pytest

from tests.stages import STAGE, run, texts
from undegrade.utils import stages
from undegrade.utils.config import build
from undegrade.utils.errors import Stopped
from undegrade.utils.pipeline import main
from undegrade.utils.processes import find_mpiexec
from undegrade.utils.stages import PipelineConfig, commands

CONFIG = """
variables:
  dataset: Digits
  out: results
  seed: 1
overrides:
  training: {seed: "{seed}", data: "{dataset}"}
stages:
  first: {script: stage.py, config: first.yaml, args: {name: first}, overrides: [training]}
  second: {each: [jpeg, blur], script: stage.py, config: second.yaml, args: {name: "second-{each}", split: "{out}/{{split}}"}}
  third: {script: stage.py, args: {name: third}}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a pipeline of three stages that write down how they were called."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(stages, "find_mpiexec", lambda: None)
    files = {"stage.py": STAGE, "pipeline.yaml": CONFIG, "first.yaml": "a: 1\n", "base.yaml": "b: 1\n",
             "second.yaml": "base: base.yaml\nc: 1\n"}  # fmt: skip
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    return tmp_path


# --- commands


def test_a_command_is_a_script_its_configurations_and_its_arguments() -> None:
    stage = {"script": "train.py", "config": ["a.yaml", "{more}"], "args": {"dt": "jpeg", "data.limit": None, "names": ["x", "y"]}}
    config = {"variables": {"more": ""}, "stages": {"a": stage}}
    assert texts(config) == {"a": """train.py -c a.yaml --dt jpeg --data.limit null --names '["x", "y"]'"""}
    assert texts(config, more="b.yaml")["a"].startswith("train.py -c a.yaml b.yaml --dt")


def test_variables_are_filled_in_and_may_name_each_other() -> None:
    config = {"variables": {"seed": 1, "dataset": "Digits", "run": "{out}/{seed}", "out": "runs/{dataset}"},
              "stages": {"a": {"script": "train.py", "config": "{family}.yaml", "args": {"run": "{run}"}}}}  # fmt: skip
    assert texts(config) == {"a": "train.py -c Digits.yaml --run runs/Digits/1"}
    assert texts(config, seed="7") == {"a": "train.py -c Digits.yaml --run runs/Digits/7"}


def test_an_argument_whose_variable_is_null_is_left_out_and_a_null_that_is_written_stays() -> None:
    config = {"variables": {"limit": {"CIFAR10": 5, "default": None}}, "overrides": {"a": {}}}
    config["stages"] = {"a": {"script": "a.py", "args": {"data.limit": "{limit}", "data.subset": None}}}
    assert texts(config) == {"a": "a.py --data.subset null"} == texts(config, dataset="CIFAR10", limit="null")
    assert texts(config, dataset="CIFAR10") == {"a": "a.py --data.limit 5 --data.subset null"}
    config["overrides"]["a"]["data.limit"] = "null"  # of the command line: --a.data.limit null
    assert texts(config, dataset="CIFAR10") == {"a": "a.py --data.limit null --data.subset null"}


def test_a_variable_that_names_itself_is_reported() -> None:
    config = {"variables": {"a": "{b}", "b": "{a}"}, "stages": {"x": {"script": "x.py", "args": {"y": "{a}"}}}}
    with pytest.raises(ValueError, match="variable '[ab]' names itself"):
        texts(config)


@pytest.mark.parametrize(("dataset", "family"), [("Digits", "Digits"), ("CIFAR10", "CIFAR10"), ("photos/cats", "ImageFolder")])
def test_the_family_of_configs_follows_the_data_set(dataset: str, family: str) -> None:
    assert texts({"stages": {"a": {"script": "a.py", "args": {"x": "{family}"}}}}, dataset=dataset) == {"a": f"a.py --x {family}"}


def test_a_variable_may_be_chosen_by_data_set() -> None:
    choice = {"CIFAR10": "ResNet56", "ImageFolder": "ResNet18", "default": "ResNet20"}
    config = {"variables": {"arch": choice}, "stages": {"a": {"script": "a.py", "args": {"arch": "{arch}"}}}}
    for dataset, arch in (("CIFAR10", "ResNet56"), ("my/photos", "ResNet18"), ("Digits", "ResNet20")):
        assert texts(config, dataset=dataset) == {"a": f"a.py --arch {arch}"}
    assert texts(config, dataset="CIFAR10", arch="mine") == {"a": "a.py --arch mine"}
    del choice["default"]
    with pytest.raises(ValueError, match=r"'arch' has no value for Digits \(for CIFAR10, ImageFolder\): give --arch VALUE"):
        texts(config)


def test_groups_of_arguments_follow_those_of_the_stage_and_the_stages_own_come_last() -> None:
    config = {
        "overrides": {"low": {"x": 1, "y": 1, "z": 1}, "high": {"y": 2, "z": 2}, "a": {"z": 3}},
        "stages": {"a": {"script": "a.py", "args": {"w": 0, "x": 0}, "overrides": ["low", "high"]}, "b": {"script": "b.py"}},
    }
    assert texts(config) == {"a": "a.py --w 0 --x 1 --y 2 --z 3", "b": "b.py"}
    config["stages"]["a"]["overrides"] = ["lwo"]
    with pytest.raises(ValueError, match="unknown group of arguments 'lwo' in stage 'a': did you mean 'low'"):
        texts(config)


def test_each_makes_a_command_of_every_value() -> None:
    config = {"stages": {"sl": {"each": ["jpeg", "blur"], "script": "a.py", "args": {"dt": "{each}"}}, "end": {"script": "b.py"}}}
    assert texts(config) == {"sl-jpeg": "a.py --dt jpeg", "sl-blur": "a.py --dt blur", "end": "b.py"}


def test_double_braces_stand_for_braces_that_the_program_fills_in() -> None:
    assert texts({"stages": {"a": {"script": "a.py", "args": {"x": "x/{{split}}"}}}}) == {"a": "a.py --x 'x/{split}'"}


def test_the_stage_id_is_the_identity_of_the_stage() -> None:
    stage = {"script": "a.py", "args": {"run_id": "{stage_id}"}}
    first, second = commands(build(PipelineConfig, {"stages": {"a": stage, "b": stage}}), {})
    assert first.words[1:] == ["a.py", "--run_id", first.identity]
    assert second.words[1:] == ["a.py", "--run_id", second.identity]
    assert first.identity != second.identity


def test_an_unknown_variable_in_a_stage_is_reported_with_the_closest() -> None:
    config = {"variables": {"dataset": "Digits"}, "stages": {"clean": {"script": "a.py", "args": {"x": "{datset}"}}}}
    with pytest.raises(ValueError, match=r"'datset' in stage 'clean': did you mean 'dataset'"):
        texts(config)


def test_an_unknown_key_of_a_stage_is_reported_with_the_closest() -> None:
    with pytest.raises(ValueError, match=r"'eech' in section 'stages\.a': did you mean 'each'"):
        texts({"stages": {"a": {"script": "x.py", "eech": ["1"]}}})


# --- programs


def test_a_script_that_is_not_here_is_started_from_the_installed_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = {"stages": {"a": {"script": "train.py", "config": "configs/ind/Digits/ResNet20_clean.yaml"}}}
    assert texts(config) == {"a": "-m undegrade train -c configs/ind/Digits/ResNet20_clean.yaml"}


def test_without_mpiexec_stages_run_alone_and_a_warning_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(stages, "find_mpiexec", lambda: None)
    with caplog.at_level(logging.WARNING):
        assert texts({"stages": {"a": {"script": "adapt.py", "mpi": True}}}) == {"a": "adapt.py"}
    assert caplog.messages == ["no mpiexec found: adaptation runs as a single process (pip install 'undegrade[mpich]' brings one)"]


def test_with_mpiexec_stages_run_on_as_many_ranks_as_asked_for_and_are_the_same_stages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "find_mpiexec", lambda: "/opt/my mpi/mpiexec")
    config = {"variables": {"ranks": 2}, "stages": {"a": {"script": "adapt.py", "mpi": True}}}
    assert texts(config) == {"a": "'/opt/my mpi/mpiexec' -n 2 adapt.py"}
    assert texts(config, ranks="16") == {"a": "'/opt/my mpi/mpiexec' -n 16 adapt.py"}
    few, many = (commands(build(PipelineConfig, config), {"ranks": ranks})[0] for ranks in ("2", "16"))
    assert few.identity == many.identity


def test_mpiexec_is_taken_from_the_path_then_from_beside_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    assert find_mpiexec() == "/usr/bin/mpiexec"
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert find_mpiexec() is None
    (tmp_path / "mpiexec").touch()
    assert find_mpiexec() == str(tmp_path / "mpiexec")


# --- running


@pytest.mark.usefixtures("folder")
def test_stages_run_in_order_with_their_arguments() -> None:
    assert run() == ["first", "second-jpeg", "second-blur", "third"]
    assert Path("log.txt").read_text().splitlines()[:2] == [
        "-c first.yaml --name first --seed 1 --data Digits", "-c second.yaml --name second-jpeg --split results/{split}",
    ]  # fmt: skip


@pytest.mark.usefixtures("folder")
def test_finished_stages_are_not_run_again() -> None:
    run()
    assert run() == []


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("file", "text", "again"),
    [
        ("first.yaml", "a: 2\n", ["first", "second-jpeg", "second-blur", "third"]),
        ("second.yaml", "base: base.yaml\nc: 2\n", ["second-jpeg", "second-blur", "third"]),
        ("base.yaml", "b: 2\n", ["second-jpeg", "second-blur", "third"]),
        ("base.yaml", "# a comment changes nothing\nb: 1\n", []),
        ("pipeline.yaml", CONFIG.replace("name: third", "name: third, more: 1"), ["third"]),
        ("pipeline.yaml", CONFIG.replace("[jpeg, blur]", "[jpeg, noise]"), ["second-noise", "third"]),
    ],
)
def test_what_has_changed_is_run_again_with_all_that_follows_and_nothing_before(file: str, text: str, again: list[str]) -> None:
    run()
    Path(file).write_text(text)
    assert run() == again
    assert run() == []


@pytest.mark.usefixtures("folder")
def test_variables_of_the_command_line_change_the_stages_that_use_them() -> None:
    run()
    assert run("--seed", "2") == ["first", "second-jpeg", "second-blur", "third"]
    assert Path("log.txt").read_text().startswith("-c first.yaml --name first --seed 2 --data Digits\n")
    assert run("--seed=2") == []
    assert run("--training.loop.epochs", "3", "--second.names", "[a, {x}]") == ["first", "second-jpeg", "second-blur", "third"]
    assert Path("log.txt").read_text().startswith("-c first.yaml --name first --seed 1 --data Digits --loop.epochs 3\n")
    assert Path("log.txt").read_text().count("--split results/{split} --names [a, {x}]\n") == 2


def test_results_of_another_folder_are_their_own(folder: Path) -> None:
    assert len(run("--out", "elsewhere")) == len(run()) == 4
    assert (folder / "elsewhere/stages/third.json").is_file()
    assert (folder / "results/stages/third.json").is_file()


def test_the_folder_may_be_named_after_the_data_set(folder: Path) -> None:
    (folder / "pipeline.yaml").write_text(CONFIG.replace("out: results", "out: runs/{dataset}"))
    run("--dataset", "CIFAR10")
    assert (folder / "runs/CIFAR10/stages/third.json").is_file()
    assert "--split runs/CIFAR10/{split}" in (folder / "log.txt").read_text()


def test_a_failing_stage_stops_the_pipeline_and_the_same_command_goes_on_from_there(folder: Path) -> None:
    (folder / "fail_second-blur").touch()
    message = r"stage 'second-blur' failed with status 3; the same command goes on from there\. It ran: .* --name second-blur"
    with pytest.raises(Stopped, match=message):
        run()
    assert (folder / "log.txt").read_text().count("\n") == 3
    assert not (folder / "results/stages/second-blur.json").exists()
    (folder / "fail_second-blur").unlink()
    assert run() == ["second-blur", "third"]


def test_a_configuration_that_stands_alone_is_said_to_need_its_flag(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"a pipeline's YAML goes after -c: .* -c pipeline\.yaml \.\.\."):
        main(["pipeline.yaml", "--dry_run"])
    with pytest.raises(ValueError, match=r"-c configs/pipelines/diffaud\.yaml --dataset Digits$"):
        main([])


def test_a_script_that_does_not_exist_is_reported_before_anything_runs(folder: Path) -> None:
    (folder / "pipeline.yaml").write_text("stages: {first: {script: stage.py}, only: {script: no_such.py}}")
    with pytest.raises(FileNotFoundError, match=r"^nothing was run, .*: script no_such\.py does not exist$"):
        run()


def test_a_dry_run_prints_the_commands_and_runs_and_writes_nothing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(FileNotFoundError, match="^image folder photos/ does not exist; expected photos/"):
        main(["-c", "pipeline.yaml", "--dry_run", "--dataset", "photos/"])
    (folder / "photos").mkdir()
    before = sorted(p.name for p in folder.iterdir())
    main(["-c", "pipeline.yaml", "--dry_run", "--dataset", "photos/"])
    lines, _, planned = capsys.readouterr().out.partition("\n\n")
    lines = lines.splitlines()
    assert "not counted, first: what stage.py does is not known" in planned
    assert [line.split(":")[0] for line in lines] == ["first", "second-jpeg", "second-blur", "third"]
    assert lines[0].endswith("stage.py -c first.yaml --name first --seed 1 --data photos/")
    assert sorted(p.name for p in folder.iterdir()) == before


@pytest.mark.usefixtures("folder")
def test_a_summary_names_the_longest_stages(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        run()
        run()
    assert re.fullmatch(r"all 4 stages done in \d+ s \(longest: .*\) -> results", caplog.messages[-1])
    assert sum("done before" in message for message in caplog.messages) == 4


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--datset", "x"],
            "unknown variable 'datset' in the pipeline (--name value): did you mean 'dataset'? allowed: dataset, out",
        ),
        (["stray"], "unknown variable 'stray' in the pipeline (--name value)"),
        (["--seed"], "option --seed has no value"),
        (["--training", "--epochs 3"], "--training is a group of arguments: write --training.ARGUMENT VALUE"),
        (["--trainnig.epochs", "3"], "unknown group of arguments or stage 'trainnig' in the pipeline: did you mean 'training'?"),
    ],
)
def test_a_mistake_on_the_command_line_is_reported(arguments: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        run(*arguments)


def test_a_broken_yaml_of_a_stage_is_reported_before_anything_runs(folder: Path) -> None:
    (folder / "second.yaml").write_text("a: [")
    with pytest.raises(ValueError, match=r"second\.yaml is not valid YAML"):
        run()
    assert (folder / "log.txt").read_text() == ""


def test_a_yaml_of_a_stage_that_does_not_exist_is_reported_before_anything_runs(folder: Path) -> None:
    (folder / "second.yaml").unlink()
    for words in ((), ("--dry_run",)):
        with pytest.raises(
            FileNotFoundError,
            match=r"^nothing was run, .*: config file second\.yaml does not exist; .*near it: ",
        ):
            run(*words)
    assert (folder / "log.txt").read_text() == ""


def test_help_says_that_variables_are_flags(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "Any of the `variables:` of the YAML is a flag, too: --name value" in capsys.readouterr().out
