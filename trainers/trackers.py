"""Curves of a training run in TensorBoard, wandb and others, by accelerate's trackers."""

from __future__ import annotations

import logging
import math
import secrets
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from undegrade.utils.choices import check_choice
from undegrade.utils.extras import how_to_install
from undegrade.utils.files import write_atomic

if TYPE_CHECKING:
    from accelerate import Accelerator

log = logging.getLogger(__name__)

NONE, TENSORBOARD = "none", "tensorboard"
ID = "tracker_id"  # file of the run folder: what the run is called where names may be taken
_PIP = {"comet_ml": "comet-ml"}  # packages that are not called like their tracker


def tracker_names() -> list[str]:
    """What `loop.trackers` may name: accelerate's trackers, those that other modules registered
    with it (`--include`), and `none`.
    """
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS  # here, since accelerate takes seconds

    return [*LOGGER_TYPE_TO_CLASS, NONE]


def check_trackers(given: str | Sequence[str]) -> list[str]:
    """The trackers that are started for `loop.trackers`, each once.

    Raises:
        ValueError: an unknown one (with the closest), `none` beside others, or one whose package is
            not installed (with the command that installs it). TensorBoard alone may be missing: a
            line says so.
    """
    from accelerate.tracking import get_available_trackers
    from accelerate.utils import LoggerType

    names = given.split(",") if isinstance(given, str) else given
    for name in names:
        check_choice(name, tracker_names(), "tracker", "config key 'loop.trackers'")
    wanted = [name for name in dict.fromkeys(names) if name != NONE]
    if NONE in names and wanted:
        raise ValueError(f"config key 'loop.trackers': {NONE} stands alone, not beside {', '.join(wanted)}")
    known, installed = {str(kind.value) for kind in LoggerType}, {str(kind.value) for kind in get_available_trackers()}
    for name in [name for name in wanted if name in known - installed]:
        mend = how_to_install(name) if name == TENSORBOARD else f"pip install {_PIP.get(name, name)}"
        if name != TENSORBOARD:
            raise ValueError(f"the tracker {name} (config key 'loop.trackers') is not installed: {mend}, or leave it out")
        log.info("no curves for TensorBoard, which is not installed (%s); metrics.jsonl has the numbers", mend)
        wanted.remove(name)
    return wanted


class Trackers:
    """The trackers of a run; does nothing on other processes than the first.

    TensorBoard's events lie in the run folder, elsewhere the project is the run's name. What is
    tracked goes on after a stop: in TensorBoard in the same folder, without what is trained again;
    in wandb, comet_ml, trackio and dvclive in the same run; elsewhere in a new one of that name.

    Args:
        accelerator: of the run; `end_training` ends them.
        names: of `check_trackers`.
        run: its folder.
        name: of the run without its id, such as `ind/Digits/ResNet20_clean`.
        step: optimiser steps that are done already.
        configuration: of the run, as a tree, for others than TensorBoard.
    """

    def __init__(
        self, accelerator: Accelerator, names: Sequence[str], run: Path, name: str, step: int, configuration: Mapping[str, Any]
    ) -> None:
        from accelerate.tracking import TensorBoardTracker

        self.accelerator = accelerator
        if not accelerator.is_main_process:
            return
        later = {"purge_step": step + 1} if step else {}
        accelerator.project_configuration.set_directories(str(run))
        accelerator.log_with = [TensorBoardTracker(run.name, run.parent, **later) if one == TENSORBOARD else one for one in names]
        accelerator.init_trackers(name.replace("/", "-"), init_kwargs=_places(run) if {*names} - {TENSORBOARD} else None)
        values = {key: value if isinstance(value, (bool, int, float, str)) else str(value) for key, value in _leaves(configuration)}
        for tracker in accelerator.trackers:
            if tracker.name != TENSORBOARD:
                tracker.store_init_configuration(values)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """The metrics after so many optimiser steps; those that are not finite are left out."""
        self.accelerator.log({name: float(value) for name, value in metrics.items() if math.isfinite(value)}, step=step)


def _places(run: Path) -> dict[str, dict[str, Any]]:
    """By tracker, what its start is told so that a run that goes on is the same there."""
    path = run / ID
    if not path.is_file():
        write_atomic(path, secrets.token_hex(16))
    own = path.read_text(encoding="utf-8").strip()
    return {
        "wandb": {"id": own, "name": run.name, "resume": "allow", "dir": str(run)},
        "comet_ml": {"experiment_key": own},
        "trackio": {"name": run.name, "resume": "allow"},
        "dvclive": {"dir": str(run / "dvclive"), "resume": True},
        "mlflow": {"run_name": run.name},
        "clearml": {"task_name": run.name},
        "swanlab": {"experiment_name": run.name},
    }


def _leaves(tree: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """The values of a tree by their dotted keys."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{before}{key}.")
        else:
            yield f"{before}{key}", value
