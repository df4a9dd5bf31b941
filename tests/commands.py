"""Command lines out of documents, and whether the script that they name understands them."""

from __future__ import annotations

import contextlib
import functools
import re
import shlex
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn
from unittest import mock

import undegrade.utils.downloads  # noqa: F401  else first imported, and changed for good, while a stop stands in its place
from tests.editing import tiny_editor
from tests.scripts import ROOT, run_script
from undegrade.__main__ import COMMANDS
from undegrade.evaluation.config import EvaluationConfig, expand
from undegrade.image_adapt.generate import parse_classes
from undegrade.models.diffusion.denoiser import Denoiser, build_denoiser
from undegrade.models.restoration.ffdnet import FFDNet
from undegrade.models.restoration.restorer import Restorer
from undegrade.trainers.config import TrainConfig
from undegrade.trainers.methods import METHODS
from undegrade.utils.config import build
from undegrade.utils.data.sources.registry import check_dataset

PROGRAMS = ("python", "mpiexec", "torchrun", "make", "pip")


class Understood(Exception):
    """A script read its command line to the end; nothing has been run."""


def of_markdown(text: str) -> list[str]:
    """Command lines in the ```bash blocks of a document; `\\` joins lines."""
    blocks = re.findall(r"^```bash\n(.*?)^```", text, re.M | re.S)
    lines = [line.strip() for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


def of_comments(text: str) -> list[str]:
    """Command lines in comments or docstrings: lines that begin with a program; remarks in
    parentheses are left out.
    """
    lines = (line.strip().lstrip("#").strip() for line in text.replace("\\\n", " ").splitlines())
    return [re.sub(r"\([^)]*\)", "", line) for line in lines if line.split(" ")[0] in PROGRAMS]


def words_of(line: str) -> list[str]:
    """The words of a command line without variables before it; none where it has placeholders
    (`<name>`, `...`).
    """
    if re.search(r"<\w[^>]*>|\.\.\.", re.sub(r"\s#.*", "", line)):
        return []
    words = shlex.split(line, comments=True)
    while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
        words.pop(0)
    return words


def _stop(check: Callable[[Any], object] = lambda config: None) -> Callable[..., NoReturn]:
    """Stands for what a script would run next; `check` looks at its configuration."""

    def stop(config: Any = None, *_: object, **__: object) -> NoReturn:
        check(config)
        raise Understood

    return stop


def _check_training(config: TrainConfig) -> None:
    kind = METHODS[config.method["name"]]
    build(kind.model, config.model, "model")
    build(kind.method, config.method, "method")


def _check_evaluation(config: EvaluationConfig) -> None:
    assert expand(config).data.cells()


@functools.lru_cache
def _denoiser() -> Denoiser:
    denoiser = build_denoiser(32, [8])
    denoiser.consistency = {"respacing": "trailing50", "levels": 30}
    return denoiser


def _checkpoint(name: object, *_: object, **__: object) -> Path:
    return Path("runs", str(name), "id/best.safetensors")


def _description(path: Path) -> dict[str, str]:
    """Of a checkpoint that is not there, by the name of its run."""
    return {"kind": {"segmentation": "segmenter", "landmark": "landmarks"}.get(path.parts[1], "classifier")}


def _dataset(dataset: str) -> None:
    """In place of `check_dataset`: folders of the documentation are not there."""
    if "/" not in dataset:
        check_dataset(dataset)


# script -> what is put in the place of which function, so that it stops once its configuration is
# complete
_TRAINING = {"undegrade.trainers.entry.run": _stop(_check_training)}
_EVALUATION = {
    f"undegrade.evaluation.{command}.{name}": function
    for command in ("checkpoint_command", "ensemble_command")
    for name, function in {
        "evaluate": _stop(_check_evaluation),
        "print_predictions": _stop(expand),
        **({"find_checkpoint": _checkpoint} if command == "checkpoint_command" else {}),
    }.items()
} | {
    "undegrade.evaluation.checkpoint_command.evaluate_dense": _stop(_check_evaluation),
    "undegrade.evaluation.checkpoint_command.read_description": _description,
}
STOPS: dict[str, dict[str, Callable]] = {
    "train.py": _TRAINING,
    "train_all_deg.py": _TRAINING,
    "test.py": _EVALUATION,
    "test_ensemble.py": _EVALUATION,
    "utils/model_soups.py": {"undegrade.trainers.soups.find_checkpoint": _stop()},
    "evaluation/approach_table.py": {"undegrade.evaluation.seeds.read_seeds": _stop()},
    "evaluation/dense_table.py": {"undegrade.evaluation.approach_table.result_paths": _stop()},
    "evaluation/adapter_table.py": {"undegrade.evaluation.approach_table.result_paths": _stop()},
    "evaluation/site_command.py": {"undegrade.evaluation.leaderboard.find_results": _stop()},
    "evaluation/examples_command.py": {"undegrade.evaluation.result_files.read_json": _stop()},
    "evaluation/fit_command.py": {"undegrade.evaluation.opening.needed_members": _stop()},
    "evaluation/protocol_table.py": {"undegrade.evaluation.approach_table.result_paths": _stop()},
    "evaluation/linear_probe.py": {"undegrade.utils.data.sources.registry.SourceConfig.open": _stop()},
    "undegrade/predict_command.py": {"undegrade.pictures.image_files": _stop()},
    "undegrade/corrupt_command.py": {"undegrade.pictures.image_files": _stop()},
    "undegrade/evaluate_command.py": {"undegrade.system_flags.open_system": _stop()},
    "undegrade/list_command.py": {},
    "undegrade/doctor_command.py": {"undegrade.utils.stages.find_mpiexec": _stop()},
    "utils/download_command.py": {
        "undegrade.utils.weights.weights_folder": _stop(),
        "undegrade.utils.downloads.download": _stop(),
    },
    "undegrade/export_command.py": {
        "undegrade.opening.load": _stop(),
        "undegrade.measured.check_results": lambda path: None,
    },
    "utils/pipeline.py": {
        "undegrade.utils.files.write_atomic": _stop(),
        "undegrade.utils.data.sources.registry.check_dataset": _dataset,
    },
    "image_adapt/scripts/image_sample.py": {
        "undegrade.image_adapt.reverse.find_checkpoint": _checkpoint,
        "undegrade.models.diffusion.loading.load_denoiser": lambda path: _denoiser(),
        "undegrade.image_adapt.decorruptor.find_checkpoint": _checkpoint,
        "undegrade.image_adapt.decorruptor.open_editor": lambda path: tiny_editor(None if "dpm" in str(path).lower() else 6),
        "undegrade.image_adapt.restoration.find_checkpoint": _checkpoint,
        "undegrade.image_adapt.restoration.open_restorer": lambda path: Restorer(FFDNet(4, 3), "FFDNet", True),
        "undegrade.image_adapt.work.plan_jobs": _stop(lambda config: config.input.cells()),
    },
    "image_adapt/scripts/generate.py": {
        "undegrade.image_adapt.generator.open_generator": _stop(lambda config: parse_classes(config.classes, 1000)),
    },
    "image_adapt/scripts/video_edit.py": {"undegrade.image_adapt.video.read_clip": _stop()},
    "image_adapt/scripts/convert_checkpoint.py": {
        "undegrade.utils.runs.resolve_checkpoint": _checkpoint,
        "undegrade.models.diffusion.loading.open_denoiser": _stop(),
    },
}


QUICK = ("undegrade/list_command.py",)  # those that are run to their end


@contextlib.contextmanager
def _stopped(script: str) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for place, function in STOPS[script].items():
            stack.enter_context(mock.patch(place, function))
        yield


def script_of(word: str) -> str:
    """Path of the script behind a word of the command `undegrade`."""
    path = f"{COMMANDS[word][0].replace('.', '/')}.py"
    return path if (ROOT / path).is_file() else f"undegrade/{path}"


def check_command(words: Sequence[str]) -> None:
    """Raise AssertionError, saying why, unless the script exists and takes these arguments."""
    rest = list(words)
    program = Path(rest[0]).name
    if program == "make":
        return _check_make(rest[1:])
    if program == "pip":
        return None
    if program == "undegrade":
        assert rest[1] in COMMANDS, f"undegrade knows no {rest[1]}: {words}"
        program, rest = "python", ["python", script_of(rest[1]), *rest[2:]]
    if program in ("mpiexec", "torchrun"):
        place = next((i for i, word in enumerate(rest) if word.endswith(".py")), 0)
        launcher, rest = rest[:place], ["python", *rest[place:]]
        flags = {"mpiexec": "-n", "torchrun": "--nproc_per_node"}
        assert flags[program] in launcher, f"{program} without {flags[program]}: {words}"
    elif not program.startswith("python"):
        raise AssertionError(f"unknown program {program}: {words}")
    script, *arguments = rest[1:]
    if script == "utils/pipeline.py" and "--dry_run" not in arguments:
        arguments.append("--dry_run")  # a pipeline that was run before would find nothing left to do
    assert script in STOPS and (ROOT / script).is_file(), f"no script {script}: {words}"
    try:
        with _stopped(script):
            done = run_script(script, *arguments)
    except Understood:
        return None
    finished = (script in QUICK or bool({"--dry_run", "--print_config"} & set(arguments))) and done.status == 0
    assert finished, f"{shlex.join(words)} ended with status {done.status}: {done.err}"
    return None


def _check_make(arguments: Sequence[str]) -> None:
    text = (ROOT / "Makefile").read_text()
    for word in arguments:
        name, sign, _ = word.partition("=")
        pattern = rf"^(\S+: )?{name}\s*\?=" if sign else rf"^(\S+ )*{name}( \S+)*:"
        assert re.search(pattern, text, re.M), f"the Makefile knows no {name}"
