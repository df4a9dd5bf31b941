"""The stages of a pipeline: from its YAML to the commands that a user could type."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import field
from pathlib import Path
from typing import Any

from undegrade.utils.choices import check_choice, fill_names
from undegrade.utils.config import dump_yaml, read_yaml
from undegrade.utils.data.sources.registry import DATASETS
from undegrade.utils.extras import how_to_install
from undegrade.utils.processes import TORCHRUN, find_mpiexec, shared_out, visible_gpus
from undegrade.utils.ranges import Count

log = logging.getLogger("pipeline")

COUNTS = ("ranks", "processes")  # variables that every pipeline has
_STAGE_ID = "@STAGE_ID@"
# script -> word of the command `undegrade`, which runs it where there is no checkout
SCRIPTS = {
    "train.py": "train", "train_all_deg.py": "train", "test.py": "test", "test_ensemble.py": "ensemble",
    "utils/model_soups.py": "soup", "evaluation/approach_table.py": "table",
    "evaluation/linear_probe.py": "probe", "evaluation/dense_table.py": "dense_table",
    "evaluation/protocol_table.py": "protocol_table", "evaluation/adapter_table.py": "adapter_table",
    "evaluation/fit_command.py": "fit",
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
        args: further arguments by name, without the dashes. One whose variable is null is left out.
        overrides: groups of arguments (`overrides` of the pipeline) that follow, the later over
            the earlier and over `args`; those of the stage's own name come last.
        mpi: run it on the variable `ranks` of MPI ranks, if there is an mpiexec.
        recipe_processes: of training: number of processes that the batch size of its configuration
            is for. On any other number, the variable `processes`, all of them together see as many
            images a step (`shared_out`).
        each: run it once for each of these values, as `{each}`; a value may be a variable that
            lists several, joined by commas. Or variables by name, `{protocol: "reset,mixed",
            stream: "1,2"}`: once for each combination of their values.
        once: run it a single time, after all repetitions of the pipeline's `repeat`; the repeated
            variable stands for itself in its command (`{seed}`), as a pattern of what the
            repetitions left.
        needs: stages that it takes something from; for one that is left out, those that it needs.
            Null: all before it. What it does not need may run beside it (`--jobs`), or change.
        when: a text with variables; where it comes out empty the stage is left out.
        shown: its output is for the reader: beside other stages (`--jobs`), which write into files,
            it is printed when the stage has ended.
    """

    script: str
    config: str | list[str] = field(default_factory=list)
    args: dict[str, Any] = field(default_factory=dict)
    overrides: list[str] = field(default_factory=list)
    mpi: bool = False
    recipe_processes: str | Count = 1
    each: list[str] | dict[str, str] = field(default_factory=list)
    once: bool = False
    needs: list[str] | None = None
    shown: bool = False
    when: str = "always"


@dataclasses.dataclass(frozen=True)
class PipelineConfig:
    """A pipeline YAML.

    Attributes:
        stages: by name, in the order in which they run.
        variables: texts and numbers for the stages; any of them is an option of the command line
            (`--arch ResNet20`), and so are `ranks` of adaptation and `processes` of training
            (default: the GPUs that PyTorch sees, else 2 and 1). A mapping chooses by data set:
            `{CIFAR10: ResNet18, default: ResNet20}`, with ImageFolder for the path of an image
            folder.
        overrides: groups of arguments by name, which stages name; any argument of a group or of a
            single stage is an option of the command line (`--train.loop.epochs 1`).
        repeat: `{variable: values joined by commas}`: run the stages for each value of that
            variable, for example of the seed; each repetition stands on its own, so that more
            values leave finished ones as they are.
        unfit: data set -> why there are no configurations for it, for the message.
    """

    stages: dict[str, StageConfig]
    variables: dict[str, str | int | float | bool | dict[str, Any] | None] = field(default_factory=dict)
    overrides: dict[str, dict[str, Any]] = field(default_factory=dict)
    repeat: dict[str, str] = field(default_factory=dict)
    unfit: dict[str, str] = field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Command:
    """A stage's command with all variables filled in.

    Attributes:
        name: of the stage, with its repetition and its value of `each`.
        script, configs: of the stage.
        words: what is typed.
        arguments: those of the words that follow the script.
        identity: digest of the command and of all that it needs.
        needs: names of the commands that must have ended before.
        processes: that it starts.
        shown: as in `StageConfig`.
    """

    name: str
    script: str
    words: list[str]
    arguments: list[str]
    configs: list[str]
    identity: str
    needs: list[str]
    processes: int = 1
    shown: bool = False


class Variables(dict[str, str]):
    """Texts by name, in which variables are replaced as they are asked for.

    Attributes:
        used: names of those that were asked for, here and in copies that have `more`, and
            `<group>.<argument>` of the arguments that stages take from groups.
    """

    def __init__(self, *texts: Mapping[str, str], **more: str) -> None:
        super().__init__(*texts, **more)
        self.used: set[str] = set()

    def also(self, more: Mapping[str, str]) -> Variables:
        """A copy with `more` over its texts."""
        copy = Variables({**self, **more})
        copy.used = self.used
        return copy

    def __getitem__(self, name: str) -> str:
        self.used.add(name)
        try:
            return fill_names(super().__getitem__(name), self, f"variable {name!r}")
        except RecursionError:
            raise ValueError(f"variable {name!r} names itself: {super().__getitem__(name)}") from None

    def fill(self, value: Any, stage: str) -> str:
        """An argument's value as the command line writes it: what is no text as JSON, which is
        YAML.
        """
        if isinstance(value, str):
            return fill_names(value, self, f"stage {stage!r}")
        items = [self.fill(item, stage) if isinstance(item, str) else item for item in value] if isinstance(value, list) else value
        return json.dumps(items)


def escaped(text: str) -> str:
    """A text that is filled in as it stands, its braces included."""
    return text.replace("{", "{{").replace("}", "}}")


def commands(config: PipelineConfig, given: Mapping[str, str], variables: Variables | None = None) -> list[Command]:
    """Every command of a pipeline.

    Args:
        config: the pipeline.
        given: variables that replace those of the config.
        variables: `all_variables` of both, for those who want to know which are used.

    Raises:
        ValueError: a stage uses a variable or a group of arguments that nobody sets.
    """
    variables = all_variables(config, given) if variables is None else variables
    if any(stage.mpi for stage in config.stages.values()) and not find_mpiexec():
        log.warning("no mpiexec found: adaptation runs as a single process (%s brings one)", how_to_install("mpich"))
    if (processes := variables.get("processes")) != "1":
        log.info("training runs on %s processes, which share each batch out (--processes)", processes)
    if len(config.repeat) > 1:
        raise ValueError(f"repeat names {', '.join(config.repeat)}: give one variable")
    repetitions = [(key, value) for key, text in config.repeat.items() for value in _values(text, variables, "repeat")]
    out: list[Command] = []
    for key, value in repetitions or [("", "")]:
        stages = {n: stage for n, stage in config.stages.items() if not (repetitions and stage.once)}
        out += _stages(config, stages, variables.also({key: value} if key else {}), f"{key}{value}/" if key else "")
    last = {n: stage for n, stage in config.stages.items() if repetitions and stage.once}
    patterns = {key: f"{{{{{key}}}}}" for key in config.repeat}
    out += _stages(config, last, variables.also(patterns), "", out)
    variables.used -= {key for key, _ in repetitions}
    return out


def _stages(
    config: PipelineConfig, stages: Mapping[str, StageConfig], variables: Variables, prefix: str, before: Sequence[Command] = ()
) -> list[Command]:
    """Commands of the stages of a repetition, whose names begin with `prefix`; those `before` are
    of the repetitions, which the first of these needs.
    """
    out: list[Command] = []
    needed = dict[str, list[Command]]()  # stage -> what those that need it wait for
    for name, stage in stages.items():
        for other in stage.needs or []:
            check_choice(other, needed, "stage before it", f"stage {name!r} needs")
        parents = [*before, *out] if stage.needs is None else [c for other in stage.needs for c in needed[other]]
        parents = list({command.name: command for command in parents}.values())
        needed[name] = parents
        if not variables.fill(stage.when, name):
            continue
        needed[name] = []
        args, owner = dict(stage.args), dict[str, str]()
        for group in [*stage.overrides, *({name} & config.overrides.keys())]:
            check_choice(group, config.overrides, "group of arguments", f"stage {name!r}")
            args |= config.overrides[group]
            owner |= dict.fromkeys(config.overrides[group], group)
        variables.used |= {f"{group}.{key}" for key, group in owner.items()}
        for value, chosen in _repetitions(stage, variables, name):
            here = variables.also({**chosen, "stage_id": _STAGE_ID})
            given = [stage.config] if isinstance(stage.config, str) else stage.config
            configs = [path for path in (here.fill(text, name) for text in given) if path]
            words = ["-c", *configs] * bool(configs)
            filled = {key: here.fill(text, name) for key, text in args.items()}
            empty = {key for key, text in filled.items() if text == "null" and args[key] not in ("null", None)}  # by a variable
            words += [word for key, text in filled.items() if key not in empty for word in (f"--{key}", text)]
            recipe = here.fill(str(stage.recipe_processes), name)
            own = [stage.script, *words, *([recipe] if recipe != "1" else [])]
            identity = _identity(own, configs, "".join(command.identity for command in parents))
            words = [word.replace(_STAGE_ID, identity) for word in words]
            full = prefix + (f"{name}-{value}" if value else name)
            processes, ranks = 1, here["ranks"] if stage.mpi else ""
            if SCRIPTS.get(stage.script) == "train":
                processes, words = shared_out(full, words, configs, int(here["processes"]), int(recipe))
            typed, needs = [*_program(stage, ranks, processes), *words], [command.name for command in parents]
            count = int(ranks or processes)
            needed[name].append(Command(full, stage.script, typed, words, configs, identity, needs, count, stage.shown))
        out += needed[name]
    return out


def _program(stage: StageConfig, ranks: str, processes: int) -> list[str]:
    """The words that start a stage's script; the installed one where the file is not here."""
    mpiexec = find_mpiexec() if stage.mpi else None
    words = [mpiexec, "-n", ranks] if mpiexec else []
    words += [sys.executable, *([*TORCHRUN, str(processes)] if processes > 1 else [])]
    installed = stage.script in SCRIPTS and not Path(stage.script).is_file()
    return [*words, *(["-m", "undegrade", SCRIPTS[stage.script]] if installed else [stage.script])]


def _repetitions(stage: StageConfig, variables: Variables, name: str) -> list[tuple[str, dict[str, str]]]:
    """(its part of the command's name, variables) of each time that a stage runs."""
    each = stage.each if isinstance(stage.each, dict) else {"each": ",".join(stage.each)}
    values = [_values(text, variables, name) or [""] for text in each.values()]
    return [("-".join(c), {k: escaped(v) for k, v in zip(each, c, strict=True)}) for c in itertools.product(*values)]


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
    gpus = visible_gpus()
    out = Variables(ranks=str(gpus or 2), processes=str(gpus or 1), out="runs/pipeline", each="", stage_id="",
                    folder=Path(dataset).name, family=family)  # fmt: skip
    for name, value in {**config.variables, **given}.items():
        if isinstance(value, dict):
            if family not in value and "default" not in value:
                raise ValueError(f"variable {name!r} has no value for {family} (for {', '.join(value)}): give --{name} VALUE")
            value = value.get(family, value.get("default"))
        out[name] = value if isinstance(value, str) else json.dumps(value)
    for name in COUNTS:
        if not (out[name].isdecimal() and int(out[name]) > 0):
            raise ValueError(f"--{name} {out[name]}: give a whole number of at least 1")
    out.used.clear()
    return out


def unused(config: PipelineConfig, given: Mapping[str, str], used: set[str]) -> dict[str, str]:
    """For `utils.command_line.check_effect`: why variables, and arguments of groups, that were
    given change nothing.

    Args:
        config: the pipeline.
        given: as `name` and `group.argument`.
        used: `Variables.used`, filled by `commands`.
    """
    known = used | {"out"}  # which keeps the note of what is done
    if {"folder", "family"} & used or any(isinstance(config.variables.get(name), dict) for name in used):
        known.add("dataset")
    repeated = {name: f"the stages are repeated for each of {text}" for name, text in config.repeat.items()}
    return {name: repeated.get(name, "no stage that runs takes it") for name in given if name not in known}


def _identity(words: Sequence[str], configs: Sequence[str], before: str) -> str:
    """Digest of a command, the contents of its configurations and the identities of those that it
    needs.
    """
    parts = [before, *words]
    for path in configs:
        try:
            parts.append(dump_yaml(read_yaml(path)))
        except FileNotFoundError:  # reported by check_files, with all others
            continue
    return hashlib.sha256("\x1f".join(parts).encode()).hexdigest()[:12]
