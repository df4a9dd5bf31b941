"""Run folders: `<save_dir>/<name>/<run id>/{config.yaml, metrics.jsonl, provenance.jsonl, events,
best.safetensors, last/, DONE}`.

Stages find each other by name: `resolve_checkpoint("sl/Digits/ResNet20-ResNet20/jpeg")` is the best
checkpoint of the latest finished run of that name.
"""

from __future__ import annotations

import contextlib
import datetime
import difflib
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

from undegrade.utils.checkpoint import read_description, split_entry
from undegrade.utils.files import remove_litter
from undegrade.utils.hub import hub_checkpoint, hub_id
from undegrade.utils.lock import locked
from undegrade.utils.published_commands import published_run
from undegrade.utils.timm_folders import saved_weights
from undegrade.utils.training_commands import training_command
from undegrade.utils.weights import how_to_download, located
from undegrade.utils.weights import known as known_weights

BEST, CONFIG = "best.safetensors", "config.yaml"
DONE = "DONE"


def create_run(save_dir: str | Path, name: str, run_id: str | None = None) -> Path:
    """Return the folder of a run; the one of `run_id` may exist. Without it a new one is made,
    named by the local time `YYYYMMDD-HHMMSS`, made unique by a suffix.
    """
    parent = Path(save_dir) / name
    if run_id is not None:
        return parent / run_id
    stem = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    for attempt in itertools.count():
        folder = parent / (stem if attempt == 0 else f"{stem}-{attempt}")
        with contextlib.suppress(FileExistsError):
            folder.mkdir(parents=True)
            return folder
    raise AssertionError("unreachable")


@contextlib.contextmanager
def holding(run: Path, what: str) -> Iterator[None]:
    """Nobody else writes to the run folder within the block, which is made if it is not there; what
    killed writes left is removed.

    Raises:
        ValueError: somebody holds it (names who); it holds files but no config.yaml.
    """
    with locked(run, what):
        if not (run / CONFIG).is_file() and any(not path.name.startswith(".") for path in run.iterdir()):
            raise ValueError(f"{run} holds files but no {CONFIG}, so it is no run: give another --run_id")
        for folder in (run, run / "last"):
            remove_litter(folder)
        yield


def mark_done(run: Path) -> None:
    """Mark a run as finished; only finished runs are found by name.

    Raises:
        FileNotFoundError: it has no best checkpoint.
    """
    if not (run / BEST).is_file():
        raise FileNotFoundError(f"{run} has no {BEST}, so it has not finished: train it anew, with another --run_id")
    (run / DONE).touch()


def finished_runs(save_dir: str | Path, name: str) -> list[Path]:
    """Finished runs of a name, oldest first (by the time at which they finished)."""
    folder = Path(save_dir) / name
    runs = [marker.parent for marker in folder.glob(f"*/{DONE}") if (marker.parent / BEST).is_file()]
    return sorted(runs, key=lambda run: ((run / DONE).stat().st_mtime_ns, run.name))


def finished_names(save_dir: str | Path) -> list[str]:
    """Names of all runs that have finished, in alphabetical order."""
    return sorted({str(marker.parent.parent.relative_to(save_dir)) for marker in Path(save_dir).rglob(DONE)})


def resolve_checkpoint(
    reference: str | Path, save_dir: str | Path = "runs", made_by: str | Callable[[], str] = "", run_id: str | None = None
) -> Path:
    """The checkpoint file meant by `reference`.

    Args:
        reference: a checkpoint file (`file.pth#entry` for one of several state dicts in it), a run
            folder, a folder that timm saved, the name of a run under `save_dir` (its latest
            finished run is taken; `name/run_id` names one run), downloaded weights
            (`utils.weights.located`), or a model of the Hugging Face Hub or of timm
            (`utils.hub.hub_id`), which is downloaded unless it is in the Hub's cache.
        save_dir: where runs are stored.
        made_by: the command that makes it, for the message; or what finds that out, called when it
            is needed.
        run_id: take the run of this id of a name (its latest finished run for None); files and run
            folders are taken as they are.

    Raises:
        FileNotFoundError: says where it looked, which names exist, and the command that makes or
            downloads it.
    """
    for path in (Path(reference), Path(save_dir) / reference):
        if split_entry(path)[0].is_file():
            return path
        if (path / BEST).is_file():
            return path / BEST
        if saved := saved_weights(path):
            return saved
    published = published_run(str(reference))
    if published:
        return resolve_checkpoint(published, save_dir, made_by, run_id)
    runs = finished_runs(save_dir, str(reference))
    if run_id is not None and runs:
        chosen = [run for run in runs if run.name == run_id]
        if not chosen:
            have = ", ".join(run.name for run in runs)
            raise FileNotFoundError(f"no finished run {run_id!r} of {str(reference)!r} under {save_dir}/ (finished there: {have})")
        runs = chosen
    if runs:
        return runs[-1] / BEST
    file, entry = split_entry(reference)
    downloaded = located(file)
    if downloaded != file and downloaded.is_file():
        return downloaded.with_name(f"{downloaded.name}#{entry}") if entry else downloaded
    folder = Path(save_dir) / reference
    unfinished = sorted([*folder.glob("config.yaml"), *folder.glob("*/config.yaml")])
    if unfinished:
        raise FileNotFoundError(
            f"run {str(reference)!r} under {save_dir}/ has not finished; go on with it: python train.py -r {unfinished[-1].parent}"
        )
    known = finished_names(save_dir)
    command = made_by if isinstance(made_by, str) else made_by()
    deeper = sorted({str(Path(save_dir) / name[: -len(f"/{reference}")]) for name in known if name.endswith(f"/{reference}")})
    meant = [f"--runs {' or '.join(deeper)} (in training --save_dir)"] if deeper else []
    meant = meant or difflib.get_close_matches(str(reference), known, n=1, cutoff=0.8)
    asked = ""
    if not (command or meant or known_weights(file)) and (of := hub_id(str(reference))):
        try:
            return hub_checkpoint(of)
        except FileNotFoundError as error:
            if str(reference) != of.name:
                raise
            asked = f"; {error}"
    raise FileNotFoundError(
        f"no checkpoint {str(reference)!r}: it is no file, no run folder and no finished run under {save_dir}/"
        + (f"; did you mean {meant[0]}?" if meant else "" if known else "; nothing has finished there")
        + (f"; make it with: {command}" if command else how_to_download(file))
        + asked
        + (f"; finished there: {', '.join(known[:20])}" if known and not meant else "")
    )


def find_checkpoint(name: str, save_dir: str | Path, run_id: str | None = None, dataset: str = "") -> Path:
    """Checkpoint that `name` means: a file, a run folder, a run's name (its latest finished run, or
    the run `run_id`), or downloaded weights; `dataset`, the data set in use, is for the message.

    Raises:
        FileNotFoundError: says where it looked and which command makes or downloads it.
    """

    def command() -> str:
        return training_command(published_run(name) or name, str(save_dir), dataset)

    return resolve_checkpoint(name, save_dir, command, run_id)


def check_specialist(path: Path, degradation: str) -> None:
    """Raise ValueError when a checkpoint says that it was trained on other degradations than
    `degradation`.
    """
    trained_on = read_description(path).get("degradations")
    if trained_on is not None and degradation not in trained_on:
        raise ValueError(
            f"checkpoint {path} stands for the degradation {degradation!r} but was trained on "
            f"{', '.join(trained_on) or 'clean images'}: train one with --dt {degradation}, or name another checkpoint"
        )
