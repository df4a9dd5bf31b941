"""Adapt images, with a diffusion model or otherwise, on any number of MPI ranks; the same command
again goes on where it was stopped.

mpiexec -n 2 python image_adapt/scripts/image_sample.py -c configs/adapt/Digits/dda.yaml --corruption gaussian_noise --severity 5
python image_adapt/scripts/image_sample.py --model_path diffusion/Digits/ddpm --base_samples photos --save_dir adapted/photos
python image_adapt/scripts/image_sample.py -c configs/adapt/CIFAR10/dda.yaml --base_samples CIFAR-10-C --corruption all --severity 5
python image_adapt/scripts/image_sample.py -c configs/adapt/Digits/dda.yaml --corruption all --severity random --dry_run --time

docs/adaptation.md: inputs, outputs, several machines, the published program;
docs/extending/adapter.md: adapters of your own. Flags that take true or false also take yes, no, t,
f, y, n, 1, 0.
"""

from __future__ import annotations

import undegrade.utils.quick_start  # noqa: F401  before the rest

# isort: split
import argparse
import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from undegrade.image_adapt.config import DATATYPES, LAYOUTS, AdaptConfig, adapt_schema
from undegrade.image_adapt.effect import check_keys
from undegrade.image_adapt.launch import LaunchOptions
from undegrade.image_adapt.mpi import World, connect
from undegrade.image_adapt.plan import describe_plan, time_batch
from undegrade.image_adapt.scripts.adapter_flags import Flags, add_adapter_flags, check_model, chosen_adapter, open_adapter
from undegrade.image_adapt.scripts.ranks import (
    add_precision_flag,
    check_needed,
    flag_value,
    given_tree,
    launch_options,
    published_precision,
    ranks_parser,
)
from undegrade.image_adapt.sharing import Outcome
from undegrade.image_adapt.work import plan_jobs, run_jobs
from undegrade.models.diffusion.openai_flags import parse_flag
from undegrade.utils.choices import check_choice
from undegrade.utils.command_line import ScriptParser
from undegrade.utils.config import Tree, build, merge, nested
from undegrade.utils.data.cells import parse_severities
from undegrade.utils.data.sources.registry import DATASETS, check_dataset
from undegrade.utils.device import choose_device
from undegrade.utils.errors import run_main
from undegrade.utils.key_help import key_help, key_values
from undegrade.utils.run_log import setup_logging

log = logging.getLogger("image_sample")

FLAGS = {  # flag -> key of the YAML
    "model_path": "model",
    "base_samples": "input.folder",
    "list": "input.list_file",
    **{name: f"input.{name}" for name in ("split", "limit", "train", "enlarge")},
    **{key.name: key.name for key in dataclasses.fields(AdaptConfig) if key.name not in ("model", "input")},
}
_WITHOUT_EFFECT = ("use_ddim", "save_latents")  # in the published program too


def parser() -> ScriptParser:
    """The command line."""
    return _parser(adapt_schema())[0]


def _parser(schema: type[AdaptConfig]) -> tuple[ScriptParser, Flags]:
    p = ranks_parser(__doc__, schema, "image_adapt/config.py")
    p.add_argument("--time", action="store_true", help="with --dry_run: time one batch, and print how long the launch would take")
    p.add_argument(
        "--corruption",
        help="one, or several joined by commas: corruptions, degradations, sequences, clean, all (the 15), imagenet-c-bar (10), "
        "imagenet-3dcc-2d (3)",
    )
    p.add_argument("--severity", help="one of 1..5, several joined by commas, a range such as 1-5, or random (one for each image)")
    p.add_argument(
        "--dataset", help=f"{', '.join(DATASETS)}, an image folder; with --base_samples its layout: {', '.join(LAYOUTS)}"
    )
    p.add_argument("--datatype", metavar="VALUE", help="what --base_samples holds, as SDA's commands say it: D generated images, "
                   "C ImageNet-C, W ImageNet-W; written to <save_dir>/DiT-Syn, ImageNet-C-Syn, ImageNet-W-Syn")  # fmt: skip
    for flag, key in FLAGS.items():
        p.add_argument(f"--{flag}", metavar=key_values(schema, key), help=key_help(schema, key))
    add_precision_flag(p)
    for flag in _WITHOUT_EFFECT:
        p.add_argument(f"--{flag}", metavar="VALUE", help="has no effect, as in the published program")
    return p, add_adapter_flags(p, schema)


def parse(argv: Sequence[str] | None) -> tuple[AdaptConfig, dict[str, str], argparse.Namespace]:
    """(configuration, given flags of the model, other arguments) of the command line."""
    schema = adapt_schema()
    p, flags = _parser(schema)
    args, overrides = p.parse(argv)
    for flag in _WITHOUT_EFFECT:
        if parse_flag(flag, getattr(args, flag) or "no", bool):
            log.warning("--%s has no effect, as in the published program", flag)
    if args.time and not args.dry_run:
        raise ValueError("--time is a part of --dry_run: give both, or neither")
    tree = given_tree(args, overrides)
    adapter, options, model_flags = chosen_adapter(args, overrides, tree, flags, schema)
    given = merge(_flag_tree(args, tree, schema), {adapter: options} if options else {})
    tree = merge(tree, given)
    check_needed(tree, "save_dir", "--save_dir")
    check_model(tree, adapter)
    config = build(schema, tree)
    check_keys(config, merge(overrides, given))
    return config, model_flags, args


def _flag_tree(args: argparse.Namespace, tree: Tree, schema: type[AdaptConfig]) -> Tree:
    """The given flags of all adapters as keys of the YAML."""
    if args.shard_size is not None and (args.output or tree.get("output")) != "tar":
        raise ValueError(f"--shard_size {args.shard_size} has no meaning without --output tar: give both, or neither")
    values: dict[str, Any] = {
        key: flag_value(schema, key, flag, getattr(args, flag)) for flag, key in FLAGS.items() if getattr(args, flag) is not None
    }
    if args.corruption is not None:
        values["input.corruptions"] = args.corruption.split(",")
    if args.severity is not None:
        random = args.severity == "random"
        values["input.severities"] = args.severity if random else parse_severities(args.severity, also=", or random")
    if args.dataset is not None:
        reads_folder = args.base_samples is not None or tree.get("input", {}).get("folder")
        values["input.layout" if reads_folder and args.dataset in LAYOUTS else "input.dataset"] = args.dataset
    if (precision := published_precision(args)) is not None:
        values["precision"] = precision
    if args.datatype is not None:
        values |= _datatype_keys(args, tree)
    out: Tree = {}
    for key, value in values.items():
        out = merge(out, nested(key, value))
    return out


def _datatype_keys(args: argparse.Namespace, tree: Tree) -> dict[str, str]:
    """Layout and output folder of a datatype."""
    layout, below = DATATYPES[check_choice(args.datatype, DATATYPES, "datatype")]
    if args.dataset is not None:
        raise ValueError(f"--datatype {args.datatype} and --dataset {args.dataset} both say what is adapted: give one")
    if args.base_samples is None:
        raise ValueError(f"--datatype {args.datatype} needs the folder of the images: give --base_samples")
    save_dir = args.save_dir or tree.get("save_dir")
    if save_dir is None:
        raise ValueError(f"--save_dir is missing: give it, images go to <save_dir>/{below}")
    return {"input.layout": layout, "save_dir": str(Path(save_dir) / below)}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status (1 when files were broken and that was not
    allowed).
    """
    world = connect()
    with world.together():
        setup_logging(quiet=world.rank != 0)
        config, model_flags, args = parse(argv)
        torch.set_num_threads(args.threads)
        options = launch_options(args)
        with options.interruption.listening():
            status = adapt(config, model_flags, world, args, options)
    return status


def adapt(config: AdaptConfig, model_flags: dict[str, str], world: World, args: argparse.Namespace, options: LaunchOptions) -> int:
    """Open the adapter, plan, adapt; a dry run prints the plan. Returns the exit status."""
    device = choose_device(args.device, world.local_rank)
    if config.input.folder is None and "/" not in config.input.dataset:
        check_dataset(config.input.dataset)  # before a model of it is looked for
    adapter = open_adapter(config, model_flags, device)
    edits = [(edit, plan_jobs(edit, adapter.image_size)) for edit in config.each_edit()]
    if args.dry_run:
        if world.rank == 0:
            seconds = time_batch(edits[0][1], adapter, config, device) if args.time else None
            for edit, jobs in edits:
                print(describe_plan(jobs, adapter, edit, world.size, seconds, args.verify), end="")
        return 0
    images = sum(len(job.source) for _, jobs in edits for job in jobs)
    log.info("%d images in %d cells, %d rank(s) on %s, batches of %d", images, sum(len(jobs) for _, jobs in edits), world.size,
             device.type, config.batch_size)  # fmt: skip
    done = [(run_jobs(jobs, adapter, edit, world, device, options), edit) for edit, jobs in edits]
    return max(report(outcome, edit) for outcome, edit in done) if world.rank == 0 else 0


def report(outcome: Outcome, config: AdaptConfig) -> int:
    """Say what was done; the exit status."""
    log.info(
        "adapted %d images in %.1f s (%.2f images/s), %d were there already, %d broken -> %s",
        outcome.written, outcome.seconds, outcome.speed, outcome.found, len(outcome.broken),
        config.fill(config.save_dir),
    )  # fmt: skip
    for _, broken in outcome.broken:
        log.warning("broken: %s", broken)
    if outcome.broken and not config.skip_broken:
        log.warning(
            "%d files could not be adapted; mend them and run the same command, or accept that with --skip_broken true",
            len(outcome.broken),
        )
        return 1
    return 0


if __name__ == "__main__":
    run_main(main)
