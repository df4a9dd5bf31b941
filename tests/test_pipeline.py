"""Pipelines: commands from a YAML, and which stages run again after a change."""

from __future__ import annotations

import logging
import re
import shutil
import sys
from pathlib import Path

import pytest

from tests.scripts import ROOT
from tests.stages import STAGE, run, texts
from undegrade.utils import pipeline
from undegrade.utils.config import build, read_yaml
from undegrade.utils.errors import Stopped
from undegrade.utils.pipeline import PipelineConfig, commands, find_mpiexec, main

CONFIG = """
variables:
  dataset: Digits
  out: results
  seed: "1"
  training: --seed {seed} --data {dataset}
stages:
  first: {run: "{python} stage.py first -c first.yaml {training}"}
  second: {each: [jpeg, blur], run: "{python} stage.py second-{each} -c second.yaml --split {out}/{{split}}"}
  third: {run: "{python} stage.py third"}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a pipeline of three stages that write down how they were called."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pipeline, "find_mpiexec", lambda: None)
    files = {"stage.py": STAGE, "pipeline.yaml": CONFIG, "first.yaml": "a: 1\n", "base.yaml": "b: 1\n",
             "second.yaml": "base: base.yaml\nc: 1\n"}  # fmt: skip
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    return tmp_path


# --- commands


def test_variables_are_filled_in_and_may_name_each_other() -> None:
    config = {"variables": {"seed": "1", "dataset": "Digits", "training": "--seed {seed} --data {dataset}"},
              "stages": {"a": {"run": "{python} train.py -c {family}.yaml {training}"}}}  # fmt: skip
    assert texts(config) == {"a": "python train.py -c Digits.yaml --seed 1 --data Digits"}
    assert texts(config, seed="7") == {"a": "python train.py -c Digits.yaml --seed 7 --data Digits"}


@pytest.mark.parametrize(("dataset", "family"), [("Digits", "Digits"), ("CIFAR10", "CIFAR10"), ("photos/cats", "ImageFolder")])
def test_the_family_of_configs_follows_the_data_set(dataset: str, family: str) -> None:
    assert texts({"stages": {"a": {"run": "{family}"}}}, dataset=dataset) == {"a": family}


def test_each_makes_a_command_of_every_value() -> None:
    config = {"stages": {"sl": {"each": ["jpeg", "blur"], "run": "train --dt {each}"}, "end": {"run": "end"}}}
    assert texts(config) == {"sl-jpeg": "train --dt jpeg", "sl-blur": "train --dt blur", "end": "end"}


def test_double_braces_stand_for_braces_that_the_program_fills_in() -> None:
    assert texts({"stages": {"a": {"run": "train --data.adapted x/{{split}}"}}}) == {"a": "train --data.adapted 'x/{split}'"}


def test_the_stage_id_is_the_identity_of_the_stage() -> None:
    config = build(PipelineConfig, {"stages": {"a": {"run": "train --run_id {stage_id}"}, "b": {"run": "train {stage_id}"}}})
    first, second = commands(config, {})
    assert first.words == ["train", "--run_id", first.identity]
    assert second.words == ["train", second.identity]
    assert first.identity != second.identity


def test_an_unknown_variable_in_a_stage_is_reported_with_the_closest() -> None:
    config = {"variables": {"dataset": "Digits"}, "stages": {"clean": {"run": "train --data {datset}"}}}
    with pytest.raises(ValueError, match=r"unknown variable 'datset' in stage 'clean': did you mean 'dataset'\? allowed: dataset,"):
        texts(config)


@pytest.mark.parametrize("run_text", ["train {", "train }", "train {}"])
def test_a_lone_brace_is_reported_with_stage_and_mend(run_text: str) -> None:
    with pytest.raises(ValueError, match=rf"stage 'clean': .*; write {{{{ and }}}} for braces.*: {re.escape(run_text)}"):
        texts({"stages": {"clean": {"run": run_text}}})


def test_an_unknown_key_of_a_stage_is_reported_with_the_closest() -> None:
    with pytest.raises(
        ValueError, match=r"unknown config key 'eech' in section 'stages\.a': did you mean 'each'\? allowed: run, each"
    ):
        texts({"stages": {"a": {"run": "x", "eech": ["1"]}}})


# --- mpiexec


def test_without_mpiexec_stages_run_alone_and_a_warning_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(pipeline, "find_mpiexec", lambda: None)
    with caplog.at_level(logging.WARNING):
        assert texts({"stages": {"a": {"run": "{mpiexec} {python} adapt.py"}}}) == {"a": "python adapt.py"}
    assert caplog.messages == ["no mpiexec found: adaptation runs as a single process (pip install mpich brings one)"]


def test_with_mpiexec_stages_run_on_as_many_ranks_as_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "find_mpiexec", lambda: "/opt/my mpi/mpiexec")
    config = {"variables": {"ranks": "2"}, "stages": {"a": {"run": "{mpiexec} adapt"}}}
    assert texts(config) == {"a": "'/opt/my mpi/mpiexec' -n 2 adapt"}
    assert texts(config, ranks="16") == {"a": "'/opt/my mpi/mpiexec' -n 16 adapt"}


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
        "first -c first.yaml --seed 1 --data Digits", "second-jpeg -c second.yaml --split results/{split}",
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
        ("pipeline.yaml", CONFIG.replace("stage.py third", "stage.py third --more"), ["third"]),
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
    assert Path("log.txt").read_text().startswith("first -c first.yaml --seed 2 --data Digits\n")
    assert run("--seed=2") == []
    assert run("--training", "--epochs 3") == ["first", "second-jpeg", "second-blur", "third"]
    assert Path("log.txt").read_text().startswith("first -c first.yaml --epochs 3\n")


def test_results_of_another_folder_are_their_own(folder: Path) -> None:
    assert len(run("--out", "elsewhere")) == len(run()) == 4
    assert (folder / "elsewhere/stages/third.json").is_file()
    assert (folder / "results/stages/third.json").is_file()


def test_the_folder_may_be_named_after_the_data_set(folder: Path) -> None:
    (folder / "pipeline.yaml").write_text(CONFIG.replace("out: results", "out: runs/{dataset}"))
    run("--dataset", "CIFAR10")
    assert (folder / "runs/CIFAR10/stages/third.json").is_file()
    assert "second-jpeg -c second.yaml --split runs/CIFAR10/{split}" in (folder / "log.txt").read_text()


def test_a_failing_stage_stops_the_pipeline_and_the_same_command_goes_on_from_there(folder: Path) -> None:
    (folder / "fail_second-blur").touch()
    message = r"stage 'second-blur' failed with status 3; the same command goes on from there\. It ran: .* stage\.py second-blur -c"
    with pytest.raises(Stopped, match=message):
        run()
    assert (folder / "log.txt").read_text().count("\n") == 3
    assert not (folder / "results/stages/second-blur.json").exists()
    (folder / "fail_second-blur").unlink()
    assert run() == ["second-blur", "third"]


def test_a_program_that_does_not_exist_is_reported_with_its_stage(folder: Path) -> None:
    (folder / "pipeline.yaml").write_text("stages: {only: {run: no-such-program --x}}")
    with pytest.raises(Stopped, match=r"stage 'only' failed with status .*no-such-program.*It ran: no-such-program --x"):
        run()


def test_a_dry_run_prints_the_commands_and_runs_and_writes_nothing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(p.name for p in folder.iterdir())
    main(["-c", "pipeline.yaml", "--dry_run", "--dataset", "photos/"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == ["first", "second-jpeg", "second-blur", "third"]
    assert lines[0].endswith("stage.py first -c first.yaml --seed 1 --data photos/")
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
        with pytest.raises(FileNotFoundError, match=r"^nothing was run, since stages need files that do not exist: second\.yaml$"):
            run(*words)
    assert (folder / "log.txt").read_text() == ""


@pytest.mark.usefixtures("folder")
def test_every_file_behind_the_flag_is_looked_for_and_no_other_word() -> None:
    Path("pipeline.yaml").write_text("stages: {a: {run: 'x -n 2 a.yaml -c first.yaml b.yaml --out c.yaml --config d.yaml'}}")
    with pytest.raises(FileNotFoundError, match=r"do not exist: b\.yaml; d\.yaml$"):
        main(["-c", "pipeline.yaml", "--dry_run"])


def test_help_says_that_variables_are_flags(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "Any of the `variables:` of the YAML is a flag, too: --name value" in capsys.readouterr().out


# --- the pipelines that are shipped


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ("--dataset", "Imagenet", "--arch", "ResNet50", "--ddpm", ""),
            "configs/diffusion/Imagenet/conditional.yaml (there is one for --dataset CIFAR10, Digits, <path of an image folder>); "
            "configs/generate/Imagenet/conditional.yaml (there is one for --dataset CIFAR10, Digits, <path of an image folder> or "
            "for --generator dit)",
        ),
        (
            ("--ddpm", "ddpm_smal", "--dataset", "photos"),
            "diffusion/ImageFolder/ddpm_smal.yaml (there is one for --ddpm conditional, conditional_small, ddpm, ddpm_small)",
        ),
        (("--arch", "ResNet18", "--dataset", "CIFAR10"), "configs/sda/CIFAR10/ResNet18.yaml (there is one for --arch ResNet20)"),
    ],
)
def test_a_missing_configuration_is_reported_with_what_there_is(
    words: tuple[str, ...], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    with pytest.raises(FileNotFoundError, match=re.escape(message)):
        main(["-c", "configs/pipelines/sda.yaml", *words, "--dry_run"])


SHIPPED = sorted(Path(__file__).parents[1].glob("configs/pipelines/*.yaml"))


@pytest.mark.parametrize("path", SHIPPED, ids=[path.stem for path in SHIPPED])
def test_shipped_pipelines_name_scripts_that_exist(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(path.parents[2])
    made = commands(build(PipelineConfig, read_yaml(path)), {"dataset": "Digits"})
    assert made
    for command in made:
        scripts = [word for word in command.words if word.endswith(".py")]
        assert scripts
        assert all(Path(script).is_file() for script in scripts)
