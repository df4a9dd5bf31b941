"""Train one network from a YAML, on clean images, one degradation, or several at once.

python train.py -c configs/ind/Digits/ResNet20_clean.yaml
python train.py -c configs/sl/Digits/ResNet20-20.yaml --dt jpeg
python train_all_deg.py -c configs/deg_all/Digits/ResNet20-20_fusiondistill.yaml --dt combined_deg
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch.distributed.nn  # noqa: F401  before there is a process group: its functions keep the one of their import as a default
from accelerate import Accelerator

from undegrade.models.classification.inputs import INPUT_KEYS, checkpoint_inputs, timm_inputs
from undegrade.trainers.config import TrainConfig, fill
from undegrade.trainers.effect import check_keys
from undegrade.trainers.method import Context
from undegrade.trainers.methods import METHODS
from undegrade.trainers.origin import record_launch
from undegrade.trainers.pauses import Pauses
from undegrade.trainers.processes import from_first
from undegrade.trainers.trackers import Trackers, check_trackers
from undegrade.trainers.trainer import Trainer
from undegrade.utils.choices import check_choice
from undegrade.utils.command_line import ScriptParser
from undegrade.utils.config import Tree, build, dotted_keys, dump_yaml, merge, read_all, read_yaml, to_tree
from undegrade.utils.data.batch_loader import BatchLoader
from undegrade.utils.data.perturbations.degradations import COMBINED
from undegrade.utils.data.perturbations.registry import find_perturbation
from undegrade.utils.data.sources.image_source import ImageSource
from undegrade.utils.data.training import DataConfig
from undegrade.utils.device import choose_device, fast_precision
from undegrade.utils.files import write_atomic
from undegrade.utils.interruption import STATUS, Interrupted, Interruption, parse_duration
from undegrade.utils.provenance import made_by
from undegrade.utils.runs import CONFIG, create_run, holding
from undegrade.utils.seeding import seed_everything

log = logging.getLogger(__name__)


def parser(description: str | None) -> ScriptParser:
    """The command line of the training scripts."""
    p = ScriptParser(description, dotted_keys(TrainConfig))
    p.add_argument("-c", "--config", nargs="+", help="YAML file; of several the later ones win (configs/_compat/...)")
    p.add_argument("-r", "--resume", help="run folder (or a checkpoint in it) to go on with")
    p.add_argument("-d", "--device", help="cpu, cuda, cuda:N, or GPU numbers such as 0,1")
    p.add_argument("--lr", "--learning_rate", dest="lr", type=float, help="optimizer.lr")
    p.add_argument("--bs", "--batch_size", dest="bs", type=int, help="data.batch_size")
    p.add_argument(
        "--dt",
        "--deg_type",
        dest="dt",
        help="data.degradations: one, several joined by commas, or combined_deg to keep the list",
    )
    p.add_argument("--rs", "--random_seed", dest="rs", type=int, help="seed")
    p.add_argument("--run", help="id of the runs to start or to learn from (default: the latest finished run of each)")
    p.add_argument("--max_time", help="save and stop after so much time, such as 3h50m, with the status 75")
    p.add_argument("--run_id", help="name of the run folder instead of the time; an existing run of that name is gone on with")
    return p


def main(argv: Sequence[str] | None = None) -> Path:
    """Train as the command line says; returns the run folder."""
    p = parser(__doc__)
    args, overrides = p.parse(argv)
    resume = _resumed_run(args.resume) if args.resume else None
    if args.config is None and resume is None:
        p.error("give a config with -c, or a run to go on with by -r")
    tree = read_all(args.config or [], read_yaml(resume / CONFIG) if resume else None)
    given = merge(overrides, _short_flags(args))
    config = build(TrainConfig, merge(tree, given))
    check_keys(config, given)
    if resume is not None and args.run_id is not None:
        raise ValueError(f"-r {args.resume} and --run_id {args.run_id} both name the run: give one")
    config = dataclasses.replace(config, name=fill(config.name, config))
    interruption = Interruption(parse_duration(args.max_time) if args.max_time else None)
    with interruption.listening():
        return run(config, args.device, resume, args.run_id, args.run, interruption)


def _short_flags(args: argparse.Namespace) -> Tree:
    tree: Tree = {}
    for value, place in ((args.lr, ("optimizer", "lr")), (args.bs, ("data", "batch_size"))):
        if value is not None:
            tree = merge(tree, {place[0]: {place[1]: value}})
    if args.rs is not None:
        tree["seed"] = args.rs
    if args.dt is not None and args.dt != COMBINED:
        tree = merge(tree, {"data": {"degradations": args.dt.split(",")}})
    return tree


def _resumed_run(text: str) -> Path:
    path = Path(text)
    if not path.exists():
        raise FileNotFoundError(f"-r {text} does not exist; give the run folder <save_dir>/<name>/<run id>")
    folder = path if path.is_dir() else path.parent
    folder = folder.parent if folder.name == "last" else folder
    if not (folder / CONFIG).is_file():
        raise FileNotFoundError(f"-r {text}: no {CONFIG} in {folder}; give the run folder <save_dir>/<name>/<run id>")
    return folder


def run(
    config: TrainConfig,
    device: str | None = None,
    resume: Path | None = None,
    run_id: str | None = None,
    from_run: str | None = None,
    interruption: Interruption | None = None,
) -> Path:
    """Train one run from its configuration; returns its folder.

    Args:
        config: of the run.
        device: see `utils.device.choose_device`.
        resume: folder of a run to go on with.
        run_id: name of the run folder (None: the time).
        from_run: id of the runs to start or to learn from (None: the latest finished run of each).
        interruption: what asks for its end.

    Raises:
        Interrupted: it was asked for, and the run is saved.
    """
    kind = METHODS.get_row(config.method.get("name", ""), "config key 'method.name'")
    model: Any = build(kind.model, config.model, "model")
    config = dataclasses.replace(config, data=_fitted(config.data, model))
    method_config: Any = build(kind.method, config.method, "method")
    for name in config.data.degradations:
        find_perturbation(name)
    chosen, precision = choose_device(device), config.loop.mixed_precision
    trackers = check_trackers(config.loop.trackers)
    accelerator = Accelerator(
        cpu=chosen.type == "cpu",
        mixed_precision=fast_precision(chosen) if precision == "auto" else precision,
        gradient_accumulation_steps=config.loop.accumulate,
    )
    seed_everything(config.seed)
    data = config.data
    if data.validation == "test":
        log.warning("data.validation is test: the best epoch is chosen on the test images, whose accuracy is then too high")
    sources = {s: data.open(split) for s, split in data.splits().items()}
    context = Context(sources["train"], data.degradations, config, from_run)
    method = kind.build(model, method_config, context)
    check_choice(config.loop.monitor, method.monitors, "value", f"config key 'loop.monitor' of method {config.method['name']}")
    config.optimizer.by_part(method.parts)  # before there is a run folder
    pauses = Pauses(config.loop.save_every, interruption)
    loaders = {s: _loader(config, sources[s], s == "train", accelerator) for s in sources}
    parameters = sum(p.numel() for part in method.named_parts().values() for p in part.parameters())
    with contextlib.ExitStack() as held:
        folder = from_first(accelerator, lambda: _run_folder(config, resume, run_id, held))
        if accelerator.is_main_process:
            log.info(
                "%s: %d training and %d validation images, %s, %d parameters, run %s", config.data.dataset, len(sources["train"]),
                len(sources["validation"]), "+".join(data.degradations) or "clean", parameters, folder,
            )  # fmt: skip
        from_first(accelerator, lambda: record_launch(folder, config.seed, accelerator.num_processes, context.weights, sources))
        trainer = Trainer(
            method, loaders["train"], loaders["validation"], config.optimizer, config.loop, accelerator, folder, config.seed,
            pauses, made_by(to_tree(config)),
            lambda step: Trackers(accelerator, trackers, folder, config.name, step, to_tree(config)),
        )  # fmt: skip
        try:
            best = trainer.fit()
        except Interrupted as stop:
            if not accelerator.is_main_process:
                sys.exit(STATUS)  # it is said once
            if run_id is None and resume is None:
                stop.go_on = f"train.py -r {folder} goes on from there"
            raise
    if accelerator.is_main_process:
        log.info("finished %s: best epoch %d, %s", folder, trainer.progress.best_epoch,
                 ", ".join(f"{k} {v:.4f}" for k, v in best.items() if k.startswith("validation")))  # fmt: skip
    return folder


def _fitted(data: DataConfig, model: Any) -> DataConfig:
    """Photographs as the weights that the network starts from want them, unless `data` says."""
    start = getattr(model, "init_from", None) if hasattr(model, "arch") else None  # of a classifier
    inputs = timm_inputs(model.arch) if getattr(model, "pretrained", False) else None
    if start is not None and Path(start).is_file():
        inputs = checkpoint_inputs(Path(start), model.arch)
    if inputs is None or not data.has_photographs or (fitted := data.fitted(*inputs)) == data:
        return data
    log.info("images: as %s wants them, %s (pixels: the centre of a shorter side); %s", start or model.arch, inputs, INPUT_KEYS)
    return fitted


def _loader(config: TrainConfig, source: ImageSource, train: bool, accelerator: Accelerator) -> BatchLoader:
    data = config.data
    adapted = Path(fill(data.adapted, config, split=source.name.rsplit("/", 1)[-1])) if data.adapted else None
    batches = data.batches(source, config.seed, train, adapted, accelerator.process_index, accelerator.num_processes)
    return BatchLoader(batches, data.workers if train else 0, accelerator.device)


def _run_folder(config: TrainConfig, resume: Path | None, run_id: str | None, held: contextlib.ExitStack) -> Path:
    """Made, and held until the end; its configuration written."""
    folder = resume or create_run(config.save_dir, config.name, run_id)
    held.enter_context(holding(folder, "training"))
    if resume is None and (folder / CONFIG).is_file():
        _check_same(folder, config)
    write_atomic(folder / CONFIG, dump_yaml(to_tree(config)))
    return folder


def _check_same(folder: Path, config: TrainConfig) -> None:
    """A run is only gone on with by the same configuration."""
    stored, now = read_yaml(folder / CONFIG), to_tree(config)
    differing = [key for key in now if stored.get(key) != now[key]]
    if differing:
        raise ValueError(
            f"run {folder} exists with another configuration (differs in {', '.join(differing)}): delete it, choose another "
            f"--run_id, or change the run on purpose with -r {folder}"
        )
