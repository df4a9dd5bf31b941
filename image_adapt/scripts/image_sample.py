"""Adapt images with a diffusion model (DDA, ILVR), on any number of MPI ranks; the same command
again goes on where it was stopped.

mpiexec -n 2 python image_adapt/scripts/image_sample.py -c configs/adapt/Digits/dda.yaml --corruption gaussian_noise --severity 5
python image_adapt/scripts/image_sample.py --model_path diffusion/Digits/ddpm --base_samples photos --save_dir adapted/photos
python image_adapt/scripts/image_sample.py -c configs/adapt/CIFAR10/dda.yaml --base_samples CIFAR-10-C --corruption all --severity 5
python image_adapt/scripts/image_sample.py -c configs/adapt/Digits/dda.yaml --corruption all --severity random --dry_run --time

docs/adaptation.md: inputs, outputs, several machines, the published program. Flags that take true
or false also take yes, no, t, f, y, n, 1, 0.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from undegrade.image_adapt.adapters import ADAPTERS, build_adapter, with_start_step
from undegrade.image_adapt.config import DATATYPES, LAYOUTS, AdaptConfig
from undegrade.image_adapt.mpi import World, connect
from undegrade.image_adapt.plan import describe_plan, time_batch
from undegrade.image_adapt.scripts.ranks import check_needed, given_tree, ranks_parser
from undegrade.image_adapt.work import Outcome, plan_jobs, run_jobs
from undegrade.models.diffusion.loading import denoiser_digest, diffusers_folder, open_denoiser
from undegrade.models.diffusion.openai_flags import MODEL_FLAGS, parse_flag
from undegrade.utils.choices import check_choice
from undegrade.utils.command_line import ScriptParser
from undegrade.utils.config import Tree, build, merge, nested, parse_value
from undegrade.utils.data.cells import parse_severities
from undegrade.utils.data.sources.registry import DATASETS
from undegrade.utils.device import choose_device
from undegrade.utils.errors import run_main
from undegrade.utils.key_help import key_help, key_values
from undegrade.utils.run_log import setup_logging
from undegrade.utils.runs import resolve_checkpoint
from undegrade.utils.training_commands import training_command

log = logging.getLogger("image_sample")

# flag -> key of the YAML; {adapter} stands for the section of the adapter in use (paper letters are
# aliases of the field's names)
FLAGS: dict[str, str] = {
    "model_path": "model",
    "save_dir": "save_dir",
    "base_samples": "input.folder",
    "adapter": "adapter",
    "batch_size": "batch_size",
    "num_samples": "num_samples",
    "list": "input.list_file",
    "timestep_respacing": "{adapter}.respacing",
    "D": "{adapter}.downscale_factor",
    "N": "{adapter}.start_step",
    "noise_level": "{adapter}.noise_level",
    "variance": "{adapter}.variance",
    "clip_denoised": "{adapter}.clip_denoised",
    "guidance_weight": "dda.guidance_weight",
    "guidance_norm": "dda.guidance_norm",
    "guidance": "dda.guidance",
    "sampler": "dda.sampler",
    "range_t": "ilvr.range_t",
    "train": "input.train",
    "enlarge": "input.enlarge",
    "use_fp16": "use_fp16",
    "split": "input.split",
    "limit": "input.limit",
    "output": "output",
    "shard_size": "shard_size",
    "seed": "seed",
    "skip_broken": "skip_broken",
    "overwrite": "overwrite",
    "runs": "runs",
}
# how the flag's text is read where it is not as in a YAML
_BOOLEANS = ("clip_denoised", "train", "enlarge", "use_fp16", "skip_broken", "overwrite")
_TEXTS = ("model_path", "save_dir", "base_samples", "list", "timestep_respacing", "runs")
# flags that one adapter has
_OF = {**dict.fromkeys(("guidance_weight", "guidance_norm", "guidance", "sampler", "scale"), "dda"), "range_t": "ilvr"}
_WITHOUT_EFFECT = ("use_ddim", "save_latents")  # in the published program too
_SWAPPED = (50, 4)  # D and N as the published commands print them


def parser() -> ScriptParser:
    """The command line."""
    p = ranks_parser(__doc__, AdaptConfig, "image_adapt/config.py")
    p.add_argument("--time", action="store_true", help="with --dry_run: time one batch, and print how long the launch would take")
    p.add_argument(
        "--corruption", help="one, or several joined by commas: corruptions, degradations, sequences, clean, all (the 15)"
    )
    p.add_argument("--severity", help="one of 1..5, several joined by commas, a range such as 1-5, or random (one for each image)")
    p.add_argument(
        "--dataset", help=f"{', '.join(DATASETS)}, an image folder; with --base_samples its layout: {', '.join(LAYOUTS)}"
    )
    p.add_argument("--datatype", metavar="VALUE", help="what --base_samples holds, as SDA's commands say it: D generated images, "
                   "C ImageNet-C, W ImageNet-W; written to <save_dir>/DiT-Syn, ImageNet-C-Syn, ImageNet-W-Syn")  # fmt: skip
    p.add_argument("--scale", type=float, help="guidance weight as the paper counts it, for a batch of 4: an image's is half of it")
    for flag, key in FLAGS.items():
        places = list(dict.fromkeys(key.format(adapter=adapter) for adapter in ADAPTERS))
        p.add_argument(f"--{flag}", metavar=key_values(AdaptConfig, places[0]), help=key_help(AdaptConfig, *places))
    for flag in _WITHOUT_EFFECT:
        p.add_argument(f"--{flag}", metavar="VALUE", help="has no effect, as in the published program")
    for flag in MODEL_FLAGS:
        p.add_argument(f"--{flag}", metavar="VALUE", help="of a checkpoint that does not say it; else must agree with it")
    return p


def parse(argv: Sequence[str] | None) -> tuple[AdaptConfig, dict[str, str], argparse.Namespace]:
    """(configuration, given model flags, other arguments) of the command line."""
    args, overrides = parser().parse(argv)
    tree = given_tree(args, overrides)
    tree = merge(tree, _flag_tree(args, tree))
    check_needed(tree)
    for flag in _WITHOUT_EFFECT:
        if parse_flag(flag, getattr(args, flag) or "no", bool):
            log.warning("--%s has no effect, as in the published program", flag)
    if args.time and not args.dry_run:
        raise ValueError("--time is a part of --dry_run: give both, or neither")
    config = build(AdaptConfig, tree)
    if (config.options.downscale_factor, config.options.start_step) == _SWAPPED:
        raise ValueError(
            "--D 50 --N 4 is a misprint of the published commands, with the two numbers swapped (D must divide the image size): "
            "use --D 4 --N 50"
        )
    return config, {f: getattr(args, f) for f in MODEL_FLAGS if getattr(args, f) is not None}, args


def _flag_tree(args: argparse.Namespace, tree: Tree) -> Tree:
    """The given flags as keys of the YAML."""
    adapter = check_choice(args.adapter or tree.get("adapter", "dda"), ADAPTERS, "adapter")
    given = {flag: getattr(args, flag) for flag in FLAGS if getattr(args, flag) is not None}
    for flag, owner in _OF.items():
        if owner != adapter and getattr(args, flag) is not None:
            raise ValueError(f"--{flag} is an option of the adapter {owner}, {adapter} is used here: leave it out")
    if args.shard_size is not None and (args.output or tree.get("output")) != "tar":
        raise ValueError(f"--shard_size {args.shard_size} has no meaning without --output tar: give both, or neither")
    readers: dict[str, Callable[[str], Any]] = dict.fromkeys(_TEXTS, str)
    readers |= {flag: lambda text, flag=flag: parse_flag(flag, text, bool) for flag in _BOOLEANS}  # type: ignore[misc]
    values: dict[str, Any] = {
        FLAGS[flag].format(adapter=adapter): readers.get(flag, parse_value)(text) for flag, text in given.items()
    }
    if (args.N is None) != (args.noise_level is None):  # one takes the place of the other in the YAML; both are an error
        values[f"{adapter}.{'noise_level' if args.noise_level is None else 'start_step'}"] = None
    if args.corruption is not None:
        values["input.corruptions"] = args.corruption.split(",")
    if args.severity is not None:
        random = args.severity == "random"
        values["input.severities"] = args.severity if random else parse_severities(args.severity, also=", or random")
    if args.dataset is not None:
        reads_folder = args.base_samples is not None or tree.get("input", {}).get("folder")
        values["input.layout" if reads_folder and args.dataset in LAYOUTS else "input.dataset"] = args.dataset
    if args.datatype is not None:
        values |= _datatype_keys(args, tree)
    if args.scale is not None:
        norm = values.get("dda.guidance_norm", tree.get("dda", {}).get("guidance_norm"))
        values["dda.guidance_weight"] = args.scale if norm == "batch" else args.scale / 2
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
        outcome = adapt(config, model_flags, world, args)
    return report(outcome, config) if world.rank == 0 and outcome else 0


def adapt(config: AdaptConfig, model_flags: dict[str, str], world: World, args: argparse.Namespace) -> Outcome | None:
    """Load the model, plan, adapt; a dry run prints the plan and returns None."""
    device = choose_device(args.device, world.local_rank)
    reference = config.fill(config.model)
    path = diffusers_folder(reference) or resolve_checkpoint(
        reference, config.runs, lambda: training_command(reference, config.runs, config.input.dataset)
    )
    denoiser = open_denoiser(path, model_flags)
    if denoiser.num_classes is not None and not denoiser.null_label:
        raise ValueError(
            f"{path} is class-conditional and the classes of the images are not known: give an unconditional model, or one with a "
            "null label"
        )
    adapter = build_adapter(config, denoiser.to(device))
    config = with_start_step(config, adapter.start_step)
    jobs = plan_jobs(config, denoiser.image_size)
    digest = denoiser_digest(path, model_flags)
    if args.dry_run:
        if world.rank == 0:
            seconds = time_batch(jobs, adapter, config, device) if args.time else None
            print(describe_plan(jobs, adapter, config, digest, world.size, seconds), end="")
        return None
    images = sum(len(job.source) for job in jobs)
    log.info(
        "%d images in %d cells, %d rank(s) on %s, batches of %d",
        images,
        len(jobs),
        world.size,
        device.type,
        config.batch_size,
    )
    return run_jobs(jobs, adapter, config, digest, world, device)


def report(outcome: Outcome, config: AdaptConfig) -> int:
    """Say what was done; the exit status."""
    log.info(
        "adapted %d images in %.1f s (%.2f images/s), %d were there already, %d broken -> %s",
        outcome.made, outcome.seconds, outcome.speed, outcome.found, len(outcome.broken),
        config.fill(config.save_dir),
    )  # fmt: skip
    for _, line in outcome.broken:
        log.warning("broken: %s", line.replace("\t", ": "))
    if outcome.broken and not config.skip_broken:
        log.warning(
            "%d files could not be adapted; mend them and run the same command, or accept that with --skip_broken true",
            len(outcome.broken),
        )
        return 1
    return 0


if __name__ == "__main__":
    run_main(main)
