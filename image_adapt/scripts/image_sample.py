"""Adapt images with a diffusion model (DDA), on any number of MPI ranks; the same command again goes on where it was stopped.

mpiexec -n 2 python image_adapt/scripts/image_sample.py -c configs/adapt/Digits/dda.yaml --corruption gaussian_noise --severity 5
python image_adapt/scripts/image_sample.py --model_path diffusion/Digits/ddpm --base_samples photos --save_dir adapted/photos
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import sys
from collections.abc import Sequence
from typing import Any

import torch

from image_adapt.config import LAYOUTS, AdaptConfig
from image_adapt.dda import DDA
from image_adapt.mpi import World, connect
from image_adapt.work import Outcome, plan_jobs, run_jobs
from models.loading import denoiser_digest, diffusers_folder, open_denoiser
from models.model_flags import MODEL_FLAGS
from utils.command_line import ScriptParser
from utils.config import Tree, build, dotted_keys, merge, nested, parse_value, read_yaml
from utils.data.cells import parse_severities
from utils.device import choose_device
from utils.errors import user_errors
from utils.run_log import setup_logging
from utils.runs import resolve_checkpoint

log = logging.getLogger("image_sample")

# flag of the published command line -> key of the YAML (paper letters are aliases of the field's names)
FLAGS: dict[str, str] = {
    "model_path": "model",
    "save_dir": "save_dir",
    "base_samples": "input.folder",
    "batch_size": "batch_size",
    "num_samples": "num_samples",
    "timestep_respacing": "dda.respacing",
    "D": "dda.downscale_factor",
    "N": "dda.start_step",
    "guidance_weight": "dda.guidance_weight",
    "guidance_norm": "dda.guidance_norm",
    "train": "input.train",
    "use_fp16": "use_fp16",
    "split": "input.split",
    "limit": "input.limit",
    "seed": "seed",
    "skip_broken": "skip_broken",
    "overwrite": "overwrite",
    "runs": "runs",
}


def parse(argv: Sequence[str] | None) -> tuple[AdaptConfig, dict[str, str], argparse.Namespace]:
    """(configuration, given model flags, other arguments) of the command line."""
    p = ScriptParser(__doc__, dotted_keys(AdaptConfig))
    p.add_argument("-c", "--config", help="YAML file (image_adapt/config.py lists the keys)")
    p.add_argument("-d", "--device", help="cpu, cuda, or GPU numbers; default: a GPU a local rank if there are any")
    p.add_argument("--threads", type=int, default=1, help="CPU threads a rank")
    p.add_argument("--corruption", help="one, or several joined by commas: corruptions, degradations, sequences, clean")
    p.add_argument("--severity", help="one of 1..5, several joined by commas, or a range such as 1-5")
    p.add_argument("--dataset", help="Digits, CIFAR10, CIFAR100, an image folder; with --base_samples its layout: "
                   "imagenetc, imagenet, cifar10, cifar10c")  # fmt: skip
    p.add_argument("--scale", type=float, help="guidance weight as the paper counts it, for a batch of 4: an image's is half of it")
    for flag, key in FLAGS.items():
        p.add_argument(f"--{flag}", metavar="VALUE", help=f"sets {key}")
    for flag in MODEL_FLAGS:
        p.add_argument(f"--{flag}", metavar="VALUE", help="of a checkpoint that does not say it; else must agree with it")
    args, overrides = p.parse(argv)
    tree = read_yaml(args.config) if args.config else {}
    tree = merge(tree, overrides)
    tree = merge(tree, _flag_tree(args, tree))
    for needed, flag in (("model", "--model_path"), ("save_dir", "--save_dir")):
        if needed not in tree:
            raise ValueError(f"{flag} is missing: give it, or `{needed}:` in the YAML")
    config = build(AdaptConfig, tree)
    return config, {f: getattr(args, f) for f in MODEL_FLAGS if getattr(args, f) is not None}, args


def _flag_tree(args: argparse.Namespace, tree: Tree) -> Tree:
    """The given flags as keys of the YAML."""
    text_keys = ("model", "save_dir", "runs", "input.folder", "dda.respacing")
    given = {key: getattr(args, flag) for flag, key in FLAGS.items() if getattr(args, flag) is not None}
    values: dict[str, Any] = {key: text if key in text_keys else parse_value(text) for key, text in given.items()}
    if args.corruption is not None:
        values["input.corruptions"] = args.corruption.split(",")
    if args.severity is not None:
        values["input.severities"] = parse_severities(args.severity)
    if args.dataset is not None:
        reads_folder = args.base_samples is not None or tree.get("input", {}).get("folder")
        values["input.layout" if reads_folder and args.dataset in LAYOUTS else "input.dataset"] = args.dataset
    if args.scale is not None:
        norm = values.get("dda.guidance_norm", tree.get("dda", {}).get("guidance_norm"))
        values["dda.guidance_weight"] = args.scale if norm == "batch" else args.scale / 2
    out: Tree = {}
    for key, value in values.items():
        out = merge(out, nested(key, value))
    return out


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status (1 when files were broken and that was not allowed)."""
    world = connect()
    with world.together():
        setup_logging(quiet=world.rank != 0)
        config, model_flags, args = parse(argv)
        torch.set_num_threads(args.threads)
        outcome = adapt(config, model_flags, world, args.device)
    return report(outcome, config) if world.rank == 0 else 0


def adapt(config: AdaptConfig, model_flags: dict[str, str], world: World, device_name: str | None) -> Outcome:
    """Load the model, plan, adapt."""
    device = choose_device(device_name, world.local_rank)
    reference, made_by = config.fill(config.model), "python train.py -c configs/diffusion/<DATASET>/ddpm.yaml"
    path = diffusers_folder(reference) or resolve_checkpoint(reference, config.runs, made_by)
    denoiser = open_denoiser(path, model_flags)
    if denoiser.num_classes is not None:
        raise ValueError(f"{path} is class-conditional and the classes of the images are not known: give an unconditional model")
    adapter = DDA(denoiser.to(device), autocast=config.use_fp16, **dataclasses.asdict(config.dda))
    jobs = plan_jobs(config, denoiser.image_size)
    images = sum(len(job.source) for job in jobs)
    log.info(
        "%d images in %d cells, %d rank(s) on %s, batches of %d",
        images,
        len(jobs),
        world.size,
        device.type,
        config.batch_size,
    )
    return run_jobs(jobs, adapter, config, denoiser_digest(path, model_flags), world, device)


def report(outcome: Outcome, config: AdaptConfig) -> int:
    """Say what was done; the exit status."""
    speed = outcome.adapted / outcome.seconds if outcome.seconds else 0.0
    log.info(
        "adapted %d images in %.1f s (%.2f images/s), %d were there already, %d broken -> %s",
        outcome.adapted, outcome.seconds, speed, outcome.found, len(outcome.broken), config.save_dir,
    )  # fmt: skip
    for line in outcome.broken:
        log.warning("broken: %s", line.replace("\t", ": "))
    if outcome.broken and not config.skip_broken:
        log.warning(
            "%d files could not be adapted; mend them and run the same command, or accept that with --skip_broken true",
            len(outcome.broken),
        )
        return 1
    return 0


if __name__ == "__main__":
    with user_errors():
        sys.exit(main())
