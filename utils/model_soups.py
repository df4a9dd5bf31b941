"""Average the weights of several runs (FusionDistill's step 3): `python utils/model_soups.py --dataset Digits`.

Reads `configs/deg_all/<dataset>/<arch>_soups.yaml` or the file given by -c; the result is a run of its own.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator, Sequence
from dataclasses import field
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from models.classifiers import describe
from models.fusion import average
from models.loading import load_classifier
from trainers.config import DataConfig, TrainConfig, fill
from utils.checkpoint import save_checkpoint
from utils.command_line import ScriptParser
from utils.config import build, dotted_keys, dump_yaml, merge, read_yaml, to_tree
from utils.data.batches import BatchLoader, BatchSet
from utils.data.image_source import ImageSource
from utils.data.sources import open_source
from utils.errors import user_errors
from utils.files import write_atomic
from utils.run_log import setup_logging
from utils.runs import BEST, create_run, mark_done

log = logging.getLogger("model_soups")


@dataclasses.dataclass(frozen=True)
class SoupConfig:
    """A fusion YAML.

    Attributes:
        name: of the run that is written; `{dataset}` and `{arch}` are replaced.
        members: checkpoint files, run folders or run names; `{deg}` makes one member of each of data.degradations.
        arch: for `{arch}`.
        save_dir: root of all runs.
        seed: of the recalibration batches.
        weights: of the members, sum 1 (null: equal).
        buffers: BatchNorm statistics: recalibrate (measured anew on degraded training images) | average | copy_first.
        recalibration_steps: batches for recalibration (null: an epoch).
        data: training data and degradations.
    """

    name: str
    members: list[str]
    arch: str = "ResNet20"
    save_dir: str = "runs"
    seed: int = 123
    weights: list[float] | None = None
    buffers: Literal["recalibrate", "average", "copy_first"] = "recalibrate"
    recalibration_steps: int | None = None
    data: DataConfig = field(default_factory=DataConfig)


def main(argv: Sequence[str] | None = None) -> Path:
    """Run the command line; returns the folder of the new run."""
    p = ScriptParser(__doc__, dotted_keys(SoupConfig))
    p.add_argument("--dataset", default="CIFAR10", help="reads configs/deg_all/<dataset>/<arch>_soups.yaml")
    p.add_argument("--arch", default=None, help="of the config's name (default: the first *_soups.yaml there)")
    p.add_argument("-c", "--config", help="YAML file in place of --dataset")
    p.add_argument("--run_id", help="name of the run folder instead of the time; an existing run is written anew")
    args, overrides = p.parse(argv)
    path = Path(args.config) if args.config else _config_of(args.dataset, args.arch)
    return fuse(build(SoupConfig, merge(read_yaml(path), overrides)), args.run_id)


def _config_of(dataset: str, arch: str | None) -> Path:
    folder = Path("configs/deg_all") / dataset
    found = sorted(folder.glob(f"{arch or '*'}_soups.yaml"))
    if not found:
        have = sorted(p.name for p in folder.parent.iterdir()) if folder.parent.is_dir() else []
        raise FileNotFoundError(
            f"no {arch or '*'}_soups.yaml in {folder} (data sets there: {', '.join(have)}); give a file with -c"
        )
    return found[0]


def fuse(config: SoupConfig, run_id: str | None = None) -> Path:
    """Average the members and write the result as a finished run."""
    stand_in = TrainConfig(config.name, data=config.data, model={"arch": config.arch})
    degs, each = config.data.degradations, config.members
    names = [fill(m.replace("{deg}", d), stand_in) for m in each for d in (degs if "{deg}" in m else [""])]
    source = open_source(config.data.dataset, "train", config.data.root, config.data.image_size, config.data.limit)
    members = [load_classifier(name, config.save_dir, source.classes) for name in names]
    states = [m.network.state_dict() for m in members]
    measured = config.buffers == "recalibrate"
    images = _training_images(config, source) if measured else None
    fused = average(states, config.weights, config.buffers, network=members[0] if measured else None, loader=images)
    name = fill(config.name, stand_in)
    existing = Path(config.save_dir) / name / (run_id or "")
    run = existing if run_id and existing.is_dir() else create_run(config.save_dir, name, run_id)
    write_atomic(run / "config.yaml", dump_yaml(to_tree(config)))
    save_checkpoint(run / BEST, fused, {**describe(members[0]), "classes": list(source.classes), "fused_from": names})
    mark_done(run)
    log.info("average of %d networks (%s buffers) -> %s", len(members), config.buffers, run / BEST)
    return run


def _training_images(config: SoupConfig, source: ImageSource) -> Iterator[Tensor]:
    """Degraded training images in [0, 1], a batch at a time, of equal size."""
    size = min(config.data.batch_size, len(source))
    loader = BatchLoader(BatchSet(source, config.data.degradations, size, config.seed, config.data.augment))
    for step, batch in enumerate(loader.epoch(0)):
        full = size * max(1, len(config.data.degradations))
        if step == config.recalibration_steps or len(batch["key"]) < full:
            return
        yield batch["degraded"].contiguous(memory_format=torch.channels_last)


if __name__ == "__main__":
    setup_logging()
    with user_errors():
        main()
