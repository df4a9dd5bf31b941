"""Parents of a run: found by name, checked for what they were trained on; of a missing one, the command that makes it."""

from __future__ import annotations

from pathlib import Path

from utils.checkpoint import read_description
from utils.making import making_command
from utils.runs import published_run, resolve_checkpoint


def find_parent(name: str, save_dir: str | Path, run_id: str | None = None) -> Path:
    """Checkpoint of the parent `name`: a file, a run folder, or a run's name (its latest finished run, or the run `run_id`).

    Raises:
        FileNotFoundError: says where it looked and which command makes it.
    """
    return resolve_checkpoint(name, save_dir, lambda: making_command(published_run(name) or name, str(save_dir)), run_id)


def check_specialist(path: Path, degradation: str) -> None:
    """Raise ValueError when a checkpoint says that it was trained on other degradations than `degradation`."""
    trained_on = read_description(path).get("degradations")
    if trained_on is not None and degradation not in trained_on:
        raise ValueError(
            f"checkpoint {path} stands for the degradation {degradation!r} but was trained on "
            f"{', '.join(trained_on) or 'clean images'}: train one with --dt {degradation}, or name another checkpoint"
        )
