"""Run the stages of a pipeline YAML in order: `python utils/pipeline.py -c
configs/pipelines/diffaud.yaml --dataset Digits`.

A stage is a command line that a user could type. Finished stages are skipped, so the same command
goes on where it was stopped. A stage's identity covers its command, its YAML files and all stages
before it: what has changed is run again, and all that follows.
"""

from __future__ import annotations

import argparse
import dataclasses
import glob
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

from undegrade.utils.choices import check_choice
from undegrade.utils.config import build, dump_yaml, read_yaml
from undegrade.utils.data.sources.registry import DATASETS
from undegrade.utils.errors import Stopped, run_main
from undegrade.utils.files import write_atomic

log = logging.getLogger("pipeline")

_STAGE_ID = "@STAGE_ID@"


@dataclasses.dataclass(frozen=True)
class StageConfig:
    """A stage.

    Attributes:
        run: command line; `{name}` is replaced by a variable. `{stage_id}` is the stage's identity,
            `{mpiexec}` is empty where there is no mpiexec.
        each: run it once for each of these values, as `{each}`; a value may be a variable that
            lists several, joined by commas.
        once: run it a single time, after all repetitions of the pipeline's `repeat`; the repeated
            variable stands for itself in its command (`{seed}`), as a pattern of what the
            repetitions left.
        when: a text with variables; where it comes out empty the stage is left out.
    """

    run: str
    each: list[str] = field(default_factory=list)
    once: bool = False
    when: str = "always"


@dataclasses.dataclass(frozen=True)
class PipelineConfig:
    """A pipeline YAML.

    Attributes:
        variables: texts for the commands; any of them is an option of the command line (`--ranks
            4`).
        stages: by name, in the order in which they run.
        repeat: `{variable: values joined by commas}`: run the stages for each value of that
            variable, for example of the seed; each repetition stands on its own, so that more
            values leave finished ones as they are.
    """

    stages: dict[str, StageConfig]
    variables: dict[str, str] = field(default_factory=dict)
    repeat: dict[str, str] = field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Command:
    """A stage's command with all variables filled in, and the identity of the pipeline up to it."""

    name: str
    words: list[str]
    identity: str


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
        ValueError: a stage uses a variable that nobody sets.
    """
    variables = _all_variables(config, given)
    if not variables["mpiexec"] and any("{mpiexec}" in stage.run for stage in config.stages.values()):
        log.warning("no mpiexec found: adaptation runs as a single process (pip install mpich brings one)")
    if len(config.repeat) > 1:
        raise ValueError(f"repeat names {', '.join(config.repeat)}: give one variable")
    repetitions = [(key, value) for key, text in config.repeat.items() for value in _values(text, variables, "repeat")]
    out: list[Command] = []
    for key, value in repetitions or [("", "")]:
        stages = {n: stage for n, stage in config.stages.items() if not (repetitions and stage.once)}
        out += _chain(stages, {**variables, key: value}, f"{key}{value}/" if key else "", "")
    last = {n: stage for n, stage in config.stages.items() if repetitions and stage.once}
    patterns = {key: f"{{{key}}}" for key in config.repeat}
    return out + _chain(last, variables | patterns, "", "".join(command.identity for command in out))


def _chain(stages: Mapping[str, StageConfig], variables: Mapping[str, str], prefix: str, before: str) -> list[Command]:
    """Commands of stages that follow each other."""
    out: list[Command] = []
    for name, stage in stages.items():
        if not _fill(stage.when, variables, name):
            continue
        for value in [v for text in stage.each for v in _values(text, variables, name)] or [""]:
            text = _fill(stage.run, {**variables, "each": value, "stage_id": _STAGE_ID}, name)
            before = _identity(text, before)
            full = prefix + (f"{name}-{value}" if value else name)
            out.append(Command(full, shlex.split(text.replace(_STAGE_ID, before)), before))
    return out


# variables that choose configuration files -> flags
_CHOOSING = {"family": "--dataset", "arch": "--arch", "pair": "--pair", "ddpm": "--ddpm", "generator": "--generator"}


def check_configs(stages: Sequence[Command], variables: Mapping[str, str]) -> None:
    """Raise FileNotFoundError unless every YAML file that a stage takes by -c exists: some stages
    run after hours.
    """
    named = [word for stage in stages for word in _behind_c(stage.words) if word.endswith(".yaml")]
    missing = [f"{file}{_others(file, variables)}" for file in dict.fromkeys(named) if not Path(file).is_file()]
    if missing:
        raise FileNotFoundError(f"nothing was run, since stages need files that do not exist: {'; '.join(missing)}")


def _behind_c(words: Sequence[str]) -> list[str]:
    """What follows the flag -c, up to the next flag."""
    out, inside = [], False
    for word in words:
        inside = word in ("-c", "--config") or inside and not word.startswith("-")
        out += [word] * inside
    return out


def _others(file: str, variables: Mapping[str, str]) -> str:
    """Values of the variables that choose configuration files for which there is such a file."""
    hints = []
    for name, flag in _CHOOSING.items():
        before, value, after = file.partition(variables.get(name) or "\0")
        if value:
            found = sorted(glob.glob(f"{glob.escape(before)}*{glob.escape(after)}"))
            values = [path[len(before) : len(path) - len(after)] for path in found]
            folder = "<path of an image folder>"
            hints += [f"{flag} {', '.join(folder if v == 'ImageFolder' else v for v in values)}"] * bool(values)
    return f" (there is one for {' or for '.join(hints)})" if hints else ""


def _values(text: str, variables: Mapping[str, str], stage: str) -> list[str]:
    """The comma-separated values of a text that may name variables."""
    return [value for value in _fill(text, variables, stage).split(",") if value]


def _all_variables(config: PipelineConfig, given: Mapping[str, str]) -> dict[str, str]:
    """Every variable; `each` and `stage_id`, which differ by stage, are empty."""
    variables = {**config.variables, **given, "python": shlex.quote(sys.executable), "each": "", "stage_id": ""}
    dataset = variables.get("dataset", "Digits")
    variables["folder"] = Path(dataset).name  # as run names have it
    variables["family"] = dataset if dataset in DATASETS else "ImageFolder"
    mpiexec = find_mpiexec()
    variables["mpiexec"] = f"{shlex.quote(mpiexec)} -n {variables.get('ranks', '2')}" if mpiexec else ""
    return variables


def _identity(text: str, before: str) -> str:
    """Digest of a command, the YAML files that it names (bases included) and the identity of the
    stage before.
    """
    files = [word for word in shlex.split(text) if word.endswith(".yaml") and Path(word).is_file()]
    parts = [before, text, *(dump_yaml(read_yaml(file)) for file in files)]
    return hashlib.sha256("\x1f".join(parts).encode()).hexdigest()[:12]


def _fill(text: str, variables: Mapping[str, str], stage: str) -> str:
    """`{name}` replaced by variables, whose texts may name variables themselves; `{{` stands for a
    brace in `text`.
    """
    try:
        for _ in range(3):
            variables = {key: value.format_map(variables) for key, value in variables.items()}
        return text.format_map(variables)
    except KeyError as error:
        check_choice(error.args[0], variables, "variable", f"stage {stage!r}")
        raise
    except ValueError as error:
        raise ValueError(f"stage {stage!r}: {error}; write {{{{ and }}}} for braces that are no variable: {text}") from None


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
        try:
            status: int | str = subprocess.run(stage.words, env=environment, check=False).returncode
        except OSError as error:  # no such program
            status = str(error)
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
        epilog="Any of the `variables:` of the YAML is a flag, too: --name value (--dataset CIFAR10 --ranks 4)",
    )
    p.add_argument("-c", "--config", required=True, help="pipeline YAML")
    p.add_argument("--out", help="folder for everything that the pipeline writes")
    p.add_argument("--dry_run", action="store_true", help="print the commands and stop")
    args, rest = p.parse_known_args(argv)
    config = build(PipelineConfig, read_yaml(args.config))
    given = _variables(rest, config)
    if args.out:
        given["out"] = args.out
    stages = commands(config, given)
    check_configs(stages, _all_variables(config, given))
    if args.dry_run:
        print("\n".join(f"{stage.name}: {shlex.join(stage.words)}" for stage in stages))
        return
    out = Path(_fill("{out}", {"out": "runs/pipeline", **_all_variables(config, given)}, "out"))
    seconds = run_stages(stages, out)
    slowest = sorted(seconds.items(), key=lambda item: -item[1])[:3]
    log.info("all %d stages done in %.0f s (longest: %s) -> %s", len(stages), sum(seconds.values()),
             ", ".join(f"{name} {s:.0f} s" for name, s in slowest), out)  # fmt: skip


def _variables(rest: Sequence[str], config: PipelineConfig) -> dict[str, str]:
    given: dict[str, str] = {}
    words = list(rest)
    while words:
        name, sign, text = words.pop(0).removeprefix("--").partition("=")
        check_choice(name, config.variables, "variable", "the pipeline (--name value)")
        if not sign and not words:
            raise ValueError(f"option --{name} has no value")
        given[name] = text if sign else words.pop(0)
    return given


if __name__ == "__main__":
    run_main(main)
