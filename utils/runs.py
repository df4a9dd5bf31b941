"""Run folders: `<save_dir>/<name>/<run id>/{config.yaml, metrics.jsonl, events, best.safetensors, last/, DONE}`.

Stages find each other by name: `resolve_checkpoint("sl/Digits/ResNet20-ResNet20/jpeg")` is the best checkpoint of the latest
finished run of that name.
"""

from __future__ import annotations

import datetime
import itertools
from pathlib import Path

BEST = "best.safetensors"
DONE = "DONE"


def create_run(save_dir: str | Path, name: str, run_id: str | None = None) -> Path:
    """Make and return a new run folder; `run_id` defaults to the local time `YYYYMMDD-HHMMSS`, made unique by a suffix."""
    parent = Path(save_dir) / name
    stem = run_id or datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    for attempt in itertools.count():
        folder = parent / (stem if attempt == 0 else f"{stem}-{attempt}")
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            if run_id is not None:
                raise ValueError(f"run {folder} exists already: resume it with -r {folder}, or choose another --run_id") from None
    raise AssertionError("unreachable")


def mark_done(run: Path) -> None:
    """Mark a run as finished; only finished runs are found by name."""
    (run / DONE).touch()


def finished_runs(save_dir: str | Path, name: str) -> list[Path]:
    """Finished runs of a name, oldest first (by the time at which they finished)."""
    folder = Path(save_dir) / name
    runs = [marker.parent for marker in folder.glob(f"*/{DONE}")] if folder.is_dir() else []
    return sorted(runs, key=lambda run: ((run / DONE).stat().st_mtime_ns, run.name))


def resolve_checkpoint(reference: str | Path, save_dir: str | Path = "runs", made_by: str = "") -> Path:
    """The checkpoint file meant by `reference`.

    Args:
        reference: a checkpoint file, a run folder, or the name of a run under `save_dir` (its latest finished run is taken;
            `name/run_id` names one run).
        save_dir: where runs are stored.
        made_by: the command that makes it, for the message.

    Raises:
        FileNotFoundError: says where it looked, which names exist, and the command that makes it.
    """
    for path in (Path(reference), Path(save_dir) / reference):
        if path.is_file():
            return path
        if (path / BEST).is_file():
            return path / BEST
    runs = finished_runs(save_dir, str(reference))
    if runs:
        return runs[-1] / BEST
    folder = Path(save_dir) / reference
    unfinished = sorted([*folder.glob("config.yaml"), *folder.glob("*/config.yaml")])
    if unfinished:
        raise FileNotFoundError(
            f"run {str(reference)!r} under {save_dir}/ has not finished; go on with it: python train.py -r {unfinished[-1].parent}"
        )
    known = sorted({str(marker.parent.parent.relative_to(save_dir)) for marker in Path(save_dir).rglob(DONE)})
    raise FileNotFoundError(
        f"no checkpoint {str(reference)!r}: it is no file, no run folder and no finished run under {save_dir}/"
        + (f" (finished there: {', '.join(known[:20])})" if known else " (nothing has finished there)")
        + (f"; make it with: {made_by}" if made_by else "")
    )
