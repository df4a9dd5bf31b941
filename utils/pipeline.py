"""Run the stages of a pipeline YAML in order: `python utils/pipeline.py -c
configs/pipelines/diffaud.yaml --dataset Digits`.

A stage is a command line that a user could type. Finished stages are skipped, so the same command
goes on where it was stopped. A stage's identity covers its command, its configurations and all
stages before it: what has changed is run again, and all that follows. SIGTERM, SIGINT and SIGUSR1
are passed on to the stage that runs; when it has ended, the pipeline ends with the status 75.
"""

from __future__ import annotations

import undegrade.utils.quick_start  # noqa: F401  before the rest

# isort: split
import argparse
import contextlib
import dataclasses
import json
import logging
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

from undegrade.utils.choices import check_choice
from undegrade.utils.command_line import check_effect, typed
from undegrade.utils.composition import find_config
from undegrade.utils.config import build, read_all, read_yaml
from undegrade.utils.cost_table import USUAL_SPEED, plan
from undegrade.utils.data.sources.registry import DENSE, TEST_ONLY, check_dataset
from undegrade.utils.errors import Stopped, run_main
from undegrade.utils.files import read_object, write_atomic
from undegrade.utils.interruption import STATUS, Interrupted, Interruption, parse_duration
from undegrade.utils.processes import TORCHRUN
from undegrade.utils.ranges import Positive
from undegrade.utils.stages import COUNTS, SCRIPTS, Command, PipelineConfig, all_variables, commands, escaped, unused
from undegrade.utils.weights import how_to_download, located

log = logging.getLogger("pipeline")

_LOOK = 0.2  # seconds between looks at whether it is time to stop


def check_files(config: PipelineConfig, stages: Sequence[Command], family: str = "") -> None:
    """Raise FileNotFoundError unless every script and configuration exists: some stages run after
    hours. Of a `family` that the pipeline is not for it says why instead of which.
    """
    missing = []
    for path in dict.fromkeys(path for stage in stages for path in stage.configs):
        try:
            find_config(path)
        except FileNotFoundError as error:
            missing.append(str(error))
    scripts = dict.fromkeys(stage.script for stage in config.stages.values())
    missing += [f"script {script} does not exist" for script in scripts if script not in SCRIPTS and not Path(script).is_file()]
    dense = dict.fromkeys(DENSE, "its images have masks or points, not classes; train.py and test.py take them (docs/dense.md)")
    test_only = dict.fromkeys(TEST_ONLY, "it has images to test on only: train on another data set, and give this one to test.py")
    if missing and (why := (dense | test_only | config.unfit).get(family)):
        raise FileNotFoundError(f"nothing was run, the pipeline is not for {family}: {why}")
    if missing:
        raise FileNotFoundError(f"nothing was run, since stages need files that do not exist: {'; '.join(missing)}")


def missing_weights(stages: Sequence[Command]) -> dict[str, str]:
    """Published weights below ckpt/ that configurations of stages name and that are not there: path
    -> the configuration.
    """
    given = {"model": "--model_path", "vae": "--vae"}  # flags that name others
    named: dict[str, str] = {}
    for stage in stages:
        tree = read_all(stage.configs)
        for key, flag in given.items():
            if flag not in stage.words and str(tree.get(key)).startswith("ckpt/"):
                named.setdefault(tree[key], stage.configs[0])
    return {path: config for path, config in named.items() if not located(path).exists()}


def run_stages(stages: Sequence[Command], out: Path, interruption: Interruption) -> dict[str, float]:
    """Run what is not finished; seconds by stage, those of earlier calls included.

    Raises:
        Stopped: a stage failed; names it and its command.
        Interrupted: the end was asked for, or a stage was stopped on purpose.
    """
    seconds: dict[str, float] = {}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    # threads that wait asleep: spinning ones make a stage many times slower as soon as anything
    # else uses the cores
    environment = {"OMP_WAIT_POLICY": "PASSIVE"} | os.environ | {"PATH": path}
    for number, stage in enumerate(stages, 1):
        marker = out / "stages" / f"{stage.name}.json"
        done = read_object(marker, "remove it, and the stage runs again") if marker.is_file() else {}
        if done.get("identity") == stage.identity and isinstance(done.get("seconds"), (int, float)):
            seconds[stage.name] = done["seconds"]
            log.info("[%d/%d] %s: done before (%.0f s)", number, len(stages), stage.name, done["seconds"])
            continue
        if interruption.due:
            raise Interrupted(f"{interruption.reason} before stage {stage.name!r}")
        log.info("[%d/%d] %s: %s", number, len(stages), stage.name, shlex.join(stage.words))
        start = time.perf_counter()
        status = _run(stage.words, environment, interruption)
        if status == STATUS or status and interruption.due:
            raise Interrupted(
                f"{interruption.reason or 'it was stopped'} in stage {stage.name!r}, which ended with status {status}"
            )
        if status:
            raise Stopped(
                f"stage {stage.name!r} failed with status {status}; the same command goes on from there. "
                f"It ran: {shlex.join(stage.words)}"
            )
        seconds[stage.name] = round(time.perf_counter() - start, 1)
        write_atomic(marker, json.dumps({"identity": stage.identity, "seconds": seconds[stage.name]}) + "\n")
    return seconds


def _run(words: Sequence[str], environment: Mapping[str, str], interruption: Interruption) -> int:
    """Status of a command, in a session of its own, so that a Ctrl-C of the terminal reaches it
    through this process alone. When it is time to stop it is told so, and waited for.
    """
    process = subprocess.Popen(words, env=environment, start_new_session=True)
    told = False
    try:
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                return process.wait(_LOOK)
            if interruption.due and not told:
                # torchrun would end at once on SIGUSR1, and leave its processes behind
                own = interruption.received in ("SIGINT", "SIGUSR1") and TORCHRUN[1] not in words
                process.send_signal(getattr(signal, str(interruption.received)) if own else signal.SIGTERM)
                told = True
    except KeyboardInterrupt:
        with contextlib.suppress(psutil.NoSuchProcess):
            first = psutil.Process(process.pid)
            for one in [*first.children(recursive=True), first]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    one.kill()
        raise


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    p = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        epilog="Any of the `variables:` of the YAML is a flag, too: --name value (--dataset CIFAR10), and so are --ranks N for "
        "adaptation and --processes N for training (default: the GPUs that PyTorch sees, else 2 and 1), and any argument "
        "of its `overrides:` or of a stage: --group.argument value (--train.loop.epochs 1 --evaluate.batch_size 64)",
    )
    p.add_argument("-c", "--config", help="pipeline YAML (needed)")
    p.add_argument("--out", help="folder for everything that the pipeline writes")
    p.add_argument("--dry_run", action="store_true", help="print the commands and what they come to, and stop")
    p.add_argument("--speed", type=typed(Positive), help="with --dry_run: of a device, TFLOP a second, for the hours (default: "
                   f"{USUAL_SPEED:g})")  # fmt: skip
    p.add_argument("--max_time", help="stop after so much time, such as 3h50m, with what is done, and the status 75")
    args, rest = p.parse_known_args(argv)
    if args.config is None:
        mend = f"-c {rest[0]} ..." if rest and rest[0].endswith(".yaml") else "-c configs/pipelines/diffaud.yaml --dataset Digits"
        raise ValueError(f"a pipeline's YAML goes after -c: {p.prog} {mend}")
    if args.speed and not args.dry_run:
        raise ValueError(f"--speed {args.speed:g} is for the hours that --dry_run prints: give both, or neither")
    interruption = Interruption(parse_duration(args.max_time) if args.max_time else None)
    config, given, arguments = _given(rest, build(PipelineConfig, read_yaml(args.config)))
    if args.out:
        given["out"] = args.out
    variables = all_variables(config, given)
    check_dataset(given.get("dataset", "Digits"))
    stages, out = commands(config, given, variables), Path(variables["out"])
    check_effect(given | arguments, unused(config, given | arguments, variables.used))
    check_files(config, stages, variables["family"])
    missing = missing_weights(stages)
    if args.dry_run:
        print("\n".join(f"{stage.name}: {shlex.join(stage.words)}" for stage in stages))
        print(
            "\n"
            + plan(stages, args.speed or USUAL_SPEED)
            + "".join(f"not there yet: {path} (see {file}){how_to_download(path)}\n" for path, file in missing.items()),
            end="",
        )
        return
    if missing:
        lacking = ", ".join(f"{path} (see {file})" for path, file in missing.items())
        raise FileNotFoundError(f"nothing was run, since published weights are not there: {lacking}{how_to_download(*missing)}")
    with interruption.listening("SIGHUP"):
        seconds = run_stages(stages, out, interruption)
    slowest = sorted(seconds.items(), key=lambda item: -item[1])[:3]
    log.info("all %d stages done in %.0f s (longest: %s) -> %s", len(stages), sum(seconds.values()),
             ", ".join(f"{name} {s:.0f} s" for name, s in slowest), out)  # fmt: skip


def _given(rest: Sequence[str], config: PipelineConfig) -> tuple[PipelineConfig, dict[str, str], dict[str, str]]:
    """The pipeline with the arguments of the command line in its groups; variables from there, and
    those arguments as `group.argument`.
    """
    given, arguments = dict[str, str](), dict[str, str]()
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
            check_choice(name, dict.fromkeys([*config.variables, *COUNTS]), "variable", "the pipeline (--name value)")
        if not sign and not words:
            raise ValueError(f"option --{name} has no value")
        text = text if sign else words.pop(0)
        if dot:
            overrides[group] = {**overrides.get(group, {}), key: escaped(text)}
            arguments[name] = text
        else:
            given[name] = text
    return dataclasses.replace(config, overrides=overrides), given, arguments


if __name__ == "__main__":
    run_main(main)
