"""Run the stages of a pipeline YAML in order: `python utils/pipeline.py -c
configs/pipelines/diffaud.yaml --dataset Digits`.

A stage is a command line that a user could type. Finished stages are skipped, so the same command
goes on where it was stopped. A stage's identity covers its command, its configurations and all
stages before it: what has changed is run again, and all that follows.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import logging
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import field
from pathlib import Path
from typing import Any

from undegrade.utils.choices import check_choice, fill_names
from undegrade.utils.composition import find_config
from undegrade.utils.config import build, dump_yaml, merge, read_yaml
from undegrade.utils.data.sources.registry import DATASETS
from undegrade.utils.errors import Stopped, run_main
from undegrade.utils.files import write_atomic

log = logging.getLogger("pipeline")

_STAGE_ID = "@STAGE_ID@"
# script -> word of the command `undegrade`, which runs it where there is no checkout
_COMMANDS = {
    "train.py": "train", "train_all_deg.py": "train", "test.py": "test", "test_ensemble.py": "ensemble",
    "utils/model_soups.py": "soup", "evaluation/approach_table.py": "table",
    "image_adapt/scripts/image_sample.py": "adapt", "image_adapt/scripts/generate.py": "generate",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class StageConfig:
    """A stage: `<script> -c <config> --<key> <value> ...`. In its texts `{name}` is replaced by a
    variable, `{each}` and `{stage_id}` (the stage's identity) included; `{{` stands for a brace.

    Attributes:
        script: Python file.
        config: path of its configuration, or of several of which the later win; empty ones are
            left out.
        args: further arguments by name, without the dashes.
        overrides: groups of arguments (`overrides` of the pipeline) that follow, the later over
            the earlier and over `args`; those of the stage's own name come last.
        mpi: run it on the variable `ranks` of MPI ranks, if there is an mpiexec.
        each: run it once for each of these values, as `{each}`; a value may be a variable that
            lists several, joined by commas.
        once: run it a single time, after all repetitions of the pipeline's `repeat`; the repeated
            variable stands for itself in its command (`{seed}`), as a pattern of what the
            repetitions left.
        when: a text with variables; where it comes out empty the stage is left out.
    """

    script: str
    config: str | list[str] = field(default_factory=list)
    args: dict[str, Any] = field(default_factory=dict)
    overrides: list[str] = field(default_factory=list)
    mpi: bool = False
    each: list[str] = field(default_factory=list)
    once: bool = False
    when: str = "always"


@dataclasses.dataclass(frozen=True)
class PipelineConfig:
    """A pipeline YAML.

    Attributes:
        stages: by name, in the order in which they run.
        variables: texts and numbers for the stages; any of them is an option of the command line
            (`--ranks 4`). A mapping chooses by data set: `{CIFAR10: ResNet18, default: ResNet20}`,
            with ImageFolder for the path of an image folder.
        overrides: groups of arguments by name, which stages name; any argument of a group or of a
            single stage is an option of the command line (`--train.loop.epochs 1`).
        repeat: `{variable: values joined by commas}`: run the stages for each value of that
            variable, for example of the seed; each repetition stands on its own, so that more
            values leave finished ones as they are.
    """

    stages: dict[str, StageConfig]
    variables: dict[str, str | int | float | bool | dict[str, Any] | None] = field(default_factory=dict)
    overrides: dict[str, dict[str, Any]] = field(default_factory=dict)
    repeat: dict[str, str] = field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Command:
    """A stage's command with all variables filled in, and the identity of the pipeline up to it."""

    name: str
    words: list[str]
    configs: list[str]
    identity: str


class Variables(dict[str, str]):
    """Texts by name, in which variables are replaced as they are asked for."""

    def __getitem__(self, name: str) -> str:
        try:
            return fill_names(super().__getitem__(name), self, f"variable {name!r}")
        except RecursionError:
            raise ValueError(f"variable {name!r} names itself: {super().__getitem__(name)}") from None

    def fill(self, value: Any, stage: str) -> str:
        """An argument's value as the command line writes it."""
        if isinstance(value, list):
            return json.dumps([self.fill(item, stage) for item in value])
        return fill_names(value, self, f"stage {stage!r}") if isinstance(value, str) else dump_value(value)


def dump_value(value: Any) -> str:
    """A value that is no text as YAML writes it: 3, true, null."""
    return dump_yaml({"it": value}).removeprefix("it: ").strip()


def find_mpiexec() -> str | None:
    """The mpiexec on the PATH, or the one of the `mpich` wheel beside this Python."""
    beside = Path(sys.executable).parent / "mpiexec"
    return shutil.which("mpiexec") or (str(beside) if beside.is_file() else None)


def commands(config: PipelineConfig, given: Mapping[str, str]) -> list[Command]:
    """Every command of a pipeline.

    Args:
        config: the pipeline.
        given: variables that replace those of the config.

    Raises:
        ValueError: a stage uses a variable or a group of arguments that nobody sets.
    """
    variables = all_variables(config, given)
    if any(stage.mpi for stage in config.stages.values()) and not find_mpiexec():
        log.warning("no mpiexec found: adaptation runs as a single process (pip install mpich brings one)")
    if len(config.repeat) > 1:
        raise ValueError(f"repeat names {', '.join(config.repeat)}: give one variable")
    repetitions = [(key, value) for key, text in config.repeat.items() for value in _values(text, variables, "repeat")]
    out: list[Command] = []
    for key, value in repetitions or [("", "")]:
        stages = {n: stage for n, stage in config.stages.items() if not (repetitions and stage.once)}
        out += _chain(config, stages, Variables({**variables, key: value}), f"{key}{value}/" if key else "", "")
    last = {n: stage for n, stage in config.stages.items() if repetitions and stage.once}
    patterns = {key: f"{{{{{key}}}}}" for key in config.repeat}
    return out + _chain(config, last, Variables({**variables, **patterns}), "", "".join(command.identity for command in out))


def _chain(
    config: PipelineConfig, stages: Mapping[str, StageConfig], variables: Variables, prefix: str, before: str
) -> list[Command]:
    """Commands of stages that follow each other."""
    out: list[Command] = []
    for name, stage in stages.items():
        if not variables.fill(stage.when, name):
            continue
        args = dict(stage.args)
        for group in [*stage.overrides, *({name} & config.overrides.keys())]:
            check_choice(group, config.overrides, "group of arguments", f"stage {name!r}")
            args |= config.overrides[group]
        for value in [v for text in stage.each for v in _values(text, variables, name)] or [""]:
            here = Variables({**variables, "each": value.replace("{", "{{").replace("}", "}}"), "stage_id": _STAGE_ID})
            given = [stage.config] if isinstance(stage.config, str) else stage.config
            configs = [path for path in (here.fill(text, name) for text in given) if path]
            words = ["-c", *configs] * bool(configs)
            words += [word for key, text in args.items() for word in (f"--{key}", here.fill(text, name))]
            before = _identity([stage.script, *words], configs, before)
            words = [word.replace(_STAGE_ID, before) for word in words]
            full = prefix + (f"{name}-{value}" if value else name)
            out.append(Command(full, [*_program(stage, here["ranks"] if stage.mpi else ""), *words], configs, before))
    return out


def _program(stage: StageConfig, ranks: str) -> list[str]:
    """The words that start a stage's script; the installed one where the file is not here."""
    mpiexec = find_mpiexec() if ranks else None
    launcher = [mpiexec, "-n", ranks] if mpiexec else []
    if stage.script in _COMMANDS and not Path(stage.script).is_file():
        return [*launcher, sys.executable, "-m", "undegrade", _COMMANDS[stage.script]]
    return [*launcher, sys.executable, stage.script]


def check_files(config: PipelineConfig, stages: Sequence[Command]) -> None:
    """Raise FileNotFoundError unless every script and configuration exists: some stages run after
    hours.
    """
    missing = []
    for path in dict.fromkeys(path for stage in stages for path in stage.configs):
        try:
            find_config(path)
        except FileNotFoundError as error:
            missing.append(str(error))
    scripts = dict.fromkeys(stage.script for stage in config.stages.values())
    missing += [f"script {script} does not exist" for script in scripts if script not in _COMMANDS and not Path(script).is_file()]
    if missing:
        raise FileNotFoundError(f"nothing was run, since stages need files that do not exist: {'; '.join(missing)}")


def _values(text: str, variables: Variables, stage: str) -> list[str]:
    """The comma-separated values of a text that may name variables."""
    return [value for value in variables.fill(text, stage).split(",") if value]


def all_variables(config: PipelineConfig, given: Mapping[str, str]) -> Variables:
    """Every variable, those that differ by data set chosen; `each` and `stage_id`, which differ by
    stage, are empty.

    Raises:
        ValueError: a variable has no value for the data set.
    """
    dataset = str({**config.variables, **given}.get("dataset", "Digits"))
    family = dataset if dataset in DATASETS else "ImageFolder"
    out = Variables(ranks="2", each="", stage_id="", folder=Path(dataset).name, family=family)
    for name, value in {**config.variables, **given}.items():
        if isinstance(value, dict):
            if family not in value and "default" not in value:
                raise ValueError(f"variable {name!r} has no value for {family} (for {', '.join(value)}): give --{name} VALUE")
            value = value.get(family, value.get("default"))
        out[name] = value if isinstance(value, str) else dump_value(value)
    return out


def _identity(words: Sequence[str], configs: Sequence[str], before: str) -> str:
    """Digest of a command, the contents of its configurations and the identity of the stage before."""
    parts = [before, *words]
    for path in configs:
        try:
            parts.append(dump_yaml(read_yaml(path)))
        except FileNotFoundError:  # reported by check_files, with all others
            continue
    return hashlib.sha256("\x1f".join(parts).encode()).hexdigest()[:12]


def run_stages(stages: Sequence[Command], out: Path) -> dict[str, float]:
    """Run what is not finished; seconds by stage, those of earlier calls included.

    Raises:
        Stopped: a stage failed; names it and its command.
    """
    seconds: dict[str, float] = {}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    # threads that wait asleep: spinning ones make a stage many times slower as soon as anything
    # else uses the cores
    environment = {"OMP_WAIT_POLICY": "PASSIVE"} | os.environ | {"PATH": path}
    for number, stage in enumerate(stages, 1):
        marker = out / "stages" / f"{stage.name}.json"
        done = json.loads(marker.read_text(encoding="utf-8")) if marker.is_file() else {}
        if done.get("identity") == stage.identity:
            seconds[stage.name] = done["seconds"]
            log.info("[%d/%d] %s: done before (%.0f s)", number, len(stages), stage.name, done["seconds"])
            continue
        log.info("[%d/%d] %s: %s", number, len(stages), stage.name, shlex.join(stage.words))
        start = time.perf_counter()
        status = subprocess.run(stage.words, env=environment, check=False).returncode
        if status:
            raise Stopped(
                f"stage {stage.name!r} failed with status {status}; the same command goes on from there. "
                f"It ran: {shlex.join(stage.words)}"
            )
        seconds[stage.name] = round(time.perf_counter() - start, 1)
        write_atomic(marker, json.dumps({"identity": stage.identity, "seconds": seconds[stage.name]}) + "\n")
    return seconds


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    p = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        epilog="Any of the `variables:` of the YAML is a flag, too: --name value (--dataset CIFAR10 --ranks 4), and any argument "
        "of its `overrides:` or of a stage: --group.argument value (--train.loop.epochs 1 --evaluate.batch_size 64)",
    )
    p.add_argument("-c", "--config", required=True, help="pipeline YAML")
    p.add_argument("--out", help="folder for everything that the pipeline writes")
    p.add_argument("--dry_run", action="store_true", help="print the commands and stop")
    args, rest = p.parse_known_args(argv)
    config, given = _given(rest, build(PipelineConfig, read_yaml(args.config)))
    if args.out:
        given["out"] = args.out
    stages = commands(config, given)
    check_files(config, stages)
    if args.dry_run:
        print("\n".join(f"{stage.name}: {shlex.join(stage.words)}" for stage in stages))
        return
    out = Path(Variables({"out": "runs/pipeline", **all_variables(config, given)})["out"])
    seconds = run_stages(stages, out)
    slowest = sorted(seconds.items(), key=lambda item: -item[1])[:3]
    log.info("all %d stages done in %.0f s (longest: %s) -> %s", len(stages), sum(seconds.values()),
             ", ".join(f"{name} {s:.0f} s" for name, s in slowest), out)  # fmt: skip


def _given(rest: Sequence[str], config: PipelineConfig) -> tuple[PipelineConfig, dict[str, str]]:
    """The pipeline with the arguments of the command line in its groups, and variables from there."""
    given: dict[str, str] = {}
    overrides = dict(config.overrides)
    words = list(rest)
    while words:
        name, sign, text = words.pop(0).removeprefix("--").partition("=")
        group, dot, key = name.partition(".")
        if dot:
            check_choice(group, dict.fromkeys([*config.overrides, *config.stages]), "group of arguments or stage", "the pipeline")
        elif name in config.overrides and name not in config.variables:
            raise ValueError(f"--{name} is a group of arguments: write --{name}.ARGUMENT VALUE, such as --{name}.seed 1")
        else:
            check_choice(name, config.variables, "variable", "the pipeline (--name value)")
        if not sign and not words:
            raise ValueError(f"option --{name} has no value")
        text = text if sign else words.pop(0)
        if dot:
            overrides[group] = merge(overrides.get(group, {}), {key: text.replace("{", "{{").replace("}", "}}")})
        else:
            given[name] = text
    return dataclasses.replace(config, overrides=overrides), given


if __name__ == "__main__":
    run_main(main)
