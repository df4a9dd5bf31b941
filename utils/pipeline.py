"""Run the stages of a pipeline YAML in order: `python utils/pipeline.py -c
configs/pipelines/diffaud.yaml --dataset Digits`.

A stage is a command line that a user could type. Finished stages are skipped, so the same command
goes on where it was stopped. A stage's identity covers its command, its configurations and the
stages that it needs: what has changed is run again, and all that needs it. With `--jobs 2` two
stages that do not need each other run side by side, each on its half of the cores, and write into
`<out>/stages/<name>.log`. SIGTERM, SIGINT and SIGUSR1 are passed on to the stages that run; when
they have ended, the pipeline ends with the status 75.
"""

from __future__ import annotations

import undegrade.utils.quick_start  # noqa: F401  before the rest

# isort: split
import argparse
import dataclasses
import logging
import shlex
from collections.abc import Sequence
from pathlib import Path

from undegrade.utils.choices import check_choice
from undegrade.utils.command_line import check_effect, typed
from undegrade.utils.composition import find_config
from undegrade.utils.config import build, read_all, read_yaml
from undegrade.utils.cost_table import USUAL_SPEED, plan
from undegrade.utils.data.sources.registry import DENSE, TEST_ONLY, check_dataset
from undegrade.utils.errors import run_main
from undegrade.utils.interruption import Interruption, parse_duration
from undegrade.utils.ranges import Count, Positive
from undegrade.utils.stage_runs import StageRuns
from undegrade.utils.stages import COUNTS, SCRIPTS, Command, PipelineConfig, all_variables, commands, escaped, unused
from undegrade.utils.weights import how_to_download, located

log = logging.getLogger("pipeline")


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
    p.add_argument("--jobs", type=typed(Count), default=1, help="processes at once, of stages that do not need each other (1)")
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
        seconds = StageRuns(stages, out, args.jobs).run(interruption)
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
