"""Average the weights of several runs (FusionDistill's step 3): `python utils/model_soups.py
--dataset Digits`.

Reads `configs/deg_all/<dataset>/<arch>_soups.yaml` or the file given by -c; the result is a run of
its own.
"""

from __future__ import annotations

import copy
import dataclasses
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import field
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from undegrade.models.classification.classifier import Classifier, describe
from undegrade.models.classification.fusion import average, greedy_soup
from undegrade.models.classification.loading import load_classifier
from undegrade.models.classification.weights import load_network_state
from undegrade.trainers.config import TrainConfig, fill
from undegrade.trainers.effect import data_keys_without_effect
from undegrade.trainers.origin import PROVENANCE, record_launch
from undegrade.utils.checkpoint import file_digest, read_description, save_checkpoint
from undegrade.utils.command_line import ScriptParser, check_effect
from undegrade.utils.composition import compositions
from undegrade.utils.config import Tree, build, dotted_keys, dump_yaml, merge, read_all, to_tree
from undegrade.utils.data.batch_loader import BatchLoader
from undegrade.utils.data.sources.image_source import ImageSource
from undegrade.utils.data.training import DataConfig
from undegrade.utils.files import write_atomic
from undegrade.utils.provenance import made_by
from undegrade.utils.ranges import Count, Seed, Share
from undegrade.utils.runs import BEST, CONFIG, DONE, check_specialist, create_run, find_checkpoint, holding, mark_done

log = logging.getLogger("model_soups")


@dataclasses.dataclass(frozen=True)
class SoupConfig:
    """A fusion YAML.

    Attributes:
        name: of the run that is written; `{dataset}` and `{arch}` are replaced.
        members: checkpoint files, run folders or run names; `{deg}` makes one member of each of
            data.degradations.
        arch: for `{arch}`.
        save_dir: root of all runs.
        seed: of the recalibration batches.
        recipe: average (of all members) | greedy (Wortsman et al. 2022: from the best on, those
            that do not make the average worse on degraded validation images).
        weights: of the members, sum 1 (null: equal).
        buffers: BatchNorm statistics: recalibrate (measured anew on degraded training images) |
            average | copy_first (those of the first member, as the reference program does).
        recalibration_steps: batches for recalibration (null: an epoch).
        same_start: refuse members that did not start from one checkpoint (their average is no
            network that works).
        data: training data and degradations.
    """

    name: str
    members: list[str]
    arch: str = "ResNet20"
    save_dir: str = "runs"
    seed: Seed = 123
    recipe: Literal["average", "greedy"] = "average"
    weights: list[Share] | None = None
    buffers: Literal["recalibrate", "average", "copy_first"] = "recalibrate"
    recalibration_steps: Count | None = None
    same_start: bool = True
    data: DataConfig = field(default_factory=DataConfig)


def main(argv: Sequence[str] | None = None) -> Path:
    """Run the command line; returns the folder of the new run."""
    p = ScriptParser(__doc__, dotted_keys(SoupConfig))
    p.add_argument("--dataset", help="reads configs/deg_all/<dataset>/<arch>_soups.yaml (default: CIFAR10)")
    p.add_argument("--arch", help="of the config's name (default: ResNet56 if there is one)")
    p.add_argument("-c", "--config", nargs="+", help="YAML file in place of --dataset; of several the later ones win")
    p.add_argument("--run", help="id of the members' runs (default: the latest finished run of each)")
    p.add_argument("--run_id", help="name of the run folder instead of the time; an existing run is written anew")
    args, overrides = p.parse(argv)
    named = next((flag for flag in ("dataset", "arch") if args.config and getattr(args, flag)), None)
    if named is not None:
        raise ValueError(f"--{named} and -c both say which file is read: give -c, and --data.dataset for other images")
    tree = merge(read_all(args.config or [_config_of(args.dataset or "CIFAR10", args.arch)]), overrides)
    config = build(SoupConfig, tree)
    check_keys(config, overrides)
    return fuse(config, args.run_id, args.run)


def check_keys(config: SoupConfig, given: Tree) -> None:
    """Raise ValueError for a key of the command line that has no effect on the soup."""
    reasons = data_keys_without_effect(dataclasses.replace(config.data, adapted=None))
    reasons["data.adapted"] = "statistics are measured, and members chosen, on images that are degraded here"
    if config.buffers != "recalibrate":
        reasons["recalibration_steps"] = f"buffers is {config.buffers}"
    check_effect(given, reasons)


def _config_of(dataset: str, arch: str | None) -> str:
    paths = [f"configs/deg_all/{dataset}/{name}_soups.yaml" for name in ([arch] if arch else ["ResNet56", "ResNet20"])]
    composed = {composition.path for composition in compositions("deg_all").values()}
    return next((path for path in paths if path in composed or Path(path).is_file()), paths[0])


def fuse(config: SoupConfig, run_id: str | None = None, parent_run: str | None = None) -> Path:
    """Average the members and write the result as a finished run.

    Raises:
        FileNotFoundError, ValueError: a member is missing, or of another architecture, classes,
            degradation or other initial weights; weights for the greedy recipe.
    """
    if config.recipe == "greedy" and config.weights is not None:
        raise ValueError("weights are of the recipe average; the greedy recipe chooses members of equal weight")
    stand_in = TrainConfig(config.name, data=config.data, model={"arch": config.arch})
    paths = _members(config, stand_in, parent_run)
    source = config.data.open(config.data.splits()["train"])
    members = [load_classifier(path, config.save_dir, source.classes) for path in paths.values()]
    for name, member in zip(paths, members, strict=True):
        if member.arch != members[0].arch:
            raise ValueError(
                f"{name} is a {member.arch}, {next(iter(paths))} a {members[0].arch}: only one architecture has an average"
            )
    states = [member.network.state_dict() for member in members]

    def soup(chosen: list[int], weights: list[float] | None = None) -> dict[str, Tensor]:
        given = [states[i] for i in chosen]
        if config.buffers != "recalibrate" or len(given) == 1:
            return average(given, weights, "copy_first" if len(given) == 1 else config.buffers)
        return average(given, weights, network=members[0], loader=_training_images(config, source))

    run = create_run(config.save_dir, fill(config.name, stand_in), run_id)
    with holding(run, "averaging of networks"):
        everyone = list(range(len(states)))
        if config.recipe == "greedy":
            kept, fused = greedy_soup(len(states), soup, _validation_accuracy(config, members[0]))
            log.info("greedy soup of %s", ", ".join(list(paths)[i] for i in kept))
        else:
            kept, fused = everyone, soup(everyone, config.weights)
        for name in (DONE, PROVENANCE):  # of a run of this id that is written anew
            (run / name).unlink(missing_ok=True)
        write_atomic(run / CONFIG, dump_yaml(to_tree(config)))
        description = {
            **describe(members[0]), **source.description, "degradations": config.data.degradations,
            "fused_from": [list(paths)[i] for i in kept], **made_by(to_tree(config)),
        }  # fmt: skip
        save_checkpoint(run / BEST, fused, description)
        digests = {name: file_digest(path) for name, path in paths.items()}
        record_launch(run, config.seed, 1, digests, {"train": source})
        mark_done(run)
    log.info("average of %d networks (%s buffers) -> %s", len(kept), config.buffers, run / BEST)
    return run


def _members(config: SoupConfig, stand_in: TrainConfig, parent_run: str | None) -> dict[str, Path]:
    """Checkpoint of each member by name; each checked for its degradation, all for where they
    started from.
    """
    paths = {}
    for text in config.members:
        for deg in config.data.degradations if "{deg}" in text else [""]:
            name = fill(text.replace("{deg}", deg), stand_in)
            paths[name] = find_checkpoint(name, config.save_dir, parent_run)
            if deg:
                check_specialist(paths[name], deg)
    if parent_run is not None and all(path.parent.name != parent_run for path in paths.values()):
        raise ValueError(f"--run {parent_run} has no effect here: the members are files and run folders, leave it out")
    if not paths:
        raise ValueError("no members: name checkpoints or runs in `members`, and degradations for `{deg}`")
    told = {name: read_description(path) for name, path in paths.items()}
    starts = {name: description["initial_weights"] for name, description in told.items() if "initial_weights" in description}
    # a network from random weights is a line of its own; the clean classifier and its specialists
    # are one
    lines = {start or file_digest(paths[name]) for name, start in starts.items()}
    if config.same_start and len(lines) > 1:
        shown = ", ".join(f"{name} from {start or 'random weights'}" for name, start in starts.items())
        raise ValueError(
            f"the members did not start from one checkpoint ({shown}): train them all from one run (train.py --run ID), or set "
            "same_start to false"
        )
    return paths


def _training_images(config: SoupConfig, source: ImageSource) -> Iterator[Tensor]:
    """Degraded training images in [0, 1], a batch at a time, of equal size."""
    data = dataclasses.replace(config.data, batch_size=min(config.data.batch_size, len(source)))
    loader = BatchLoader(data.batches(source, config.seed, train=True), data.workers)
    for step, batch in enumerate(loader.epoch(0)):
        full = data.batch_size * max(1, len(data.degradations))
        if step == config.recalibration_steps or len(batch["key"]) < full:
            return
        yield batch["degraded"].contiguous(memory_format=torch.channels_last)


def _validation_accuracy(config: SoupConfig, like: Classifier) -> Callable[[dict[str, Tensor]], float]:
    """Accuracy of weights of `like`'s kind on the validation images under all degradations."""
    data = config.data
    source = data.open(data.splits()["validation"])
    loader = BatchLoader(data.batches(source, config.seed, train=False))
    network = copy.deepcopy(like).eval()

    @torch.inference_mode()
    def accuracy(state: dict[str, Tensor]) -> float:
        load_network_state(network, state)
        right = images = 0
        for batch in loader.epoch(0):
            right += int((network(batch["degraded"]).argmax(1) == batch["label"]).sum())
            images += len(batch["key"])
        return right / images

    return accuracy
