"""Generate images of given classes by a class-conditional diffusion model, on any number of MPI
ranks; the same command goes on.

mpiexec -n 2 python image_adapt/scripts/generate.py -c configs/generate/Digits/conditional.yaml --num_per_class 50
python image_adapt/scripts/generate.py -c configs/generate/Digits/conditional.yaml --classes 0-4,9 --guidance_scale 2 --dry_run
mpiexec -n 8 python image_adapt/scripts/generate.py -c configs/generate/Imagenet/dit.yaml --vae ckpt/sd-vae-ft-ema
mpiexec -n 8 python image_adapt/scripts/generate.py --ckpt ckpt/DiT-XL-2-256x256.pt --sample-dir data --num-fid-samples 50000

docs/generation.md: models, files, settings; docs/systems/sda.md: the published commands. Flags that take true or
false also take yes, no, t, f, y, n, 1, 0; alone: true.
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

from undegrade.image_adapt.generate import describe_generation, generate, parse_classes
from undegrade.image_adapt.generator import NETWORKS, GenerateConfig, open_generator
from undegrade.image_adapt.launch import LaunchOptions
from undegrade.image_adapt.mpi import World, connect
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
from undegrade.utils.choices import check_choice
from undegrade.utils.command_line import ScriptParser, check_effect
from undegrade.utils.config import Tree, build
from undegrade.utils.data.sources.imagenet import IMAGENET_1K
from undegrade.utils.device import choose_device
from undegrade.utils.errors import run_main
from undegrade.utils.key_help import key_help, key_types, key_values
from undegrade.utils.run_log import setup_logging

log = logging.getLogger("generate")

_KEYS = [key.name for key in dataclasses.fields(GenerateConfig)]  # of the YAML; each is a flag
_ALIASES = {
    "model": ["--model_path"],
    "guidance_scale": ["--cfg-scale"],
    "respacing": ["--timestep_respacing", "--num-sampling-steps"],
    "image_size": ["--image-size"],
    "num_classes": ["--num-classes"],
    "batch_size": ["--per-proc-batch-size"],
    "seed": ["--global-seed"],
}
_VAES = {"ema": "sd-vae-ft-ema", "mse": "sd-vae-ft-mse"}  # the published names -> folder beside the checkpoint


def parser() -> ScriptParser:
    """The command line."""
    p = ranks_parser(__doc__, GenerateConfig, "image_adapt/generator.py")
    for key in _KEYS:
        alone: dict[str, Any] = {"nargs": "?", "const": "true"} if bool in key_types(GenerateConfig, key) else {}
        names = [f"--{key}", *_ALIASES.get(key, ())]
        p.add_argument(*names, dest=key, metavar=key_values(GenerateConfig, key), help=key_help(GenerateConfig, key), **alone)
    add_precision_flag(p, nargs="?", const="true")
    p.add_argument("--ckpt", help="weights of a published DiT, of which --model is then the name (default: DiT-XL/2)")
    p.add_argument("--sample-dir", help="with --ckpt: images go to <sample-dir>/<network, weights, size, vae, cfg and seed>")
    p.add_argument("--num-fid-samples", type=int, help="images of all classes together, in place of --num_per_class")
    return p


def parse(argv: Sequence[str] | None) -> tuple[GenerateConfig, argparse.Namespace]:
    """(configuration, other arguments) of the command line."""
    args, overrides = parser().parse(argv)
    tree = given_tree(args, overrides)
    for key in _KEYS:
        if (text := getattr(args, key)) is not None:
            tree[key] = flag_value(GenerateConfig, key, key, text)
    if (precision := published_precision(args)) is not None:
        tree["precision"] = precision
    _check_published(args, tree)
    if args.ckpt is not None:
        network = check_choice(args.model or "DiT-XL/2", NETWORKS, "network", "--model, which names that of --ckpt")
        usual = {"vae": "ema", "class_names": IMAGENET_1K if tree.get("num_classes", 1000) == 1000 else None}
        tree = usual | tree | {"model": args.ckpt, "network": network}
    if args.sample_dir is not None:
        tree["save_dir"] = args.sample_dir
    for key, flag in (("model", "--model_path"), ("save_dir", "--save_dir")):
        check_needed(tree, key, flag)
    config = build(GenerateConfig, tree)
    unguided = "" if config.guidance_scale != 1 else "guidance_scale is 1, no channel is guided"
    check_effect({key: text for key in _KEYS if (text := getattr(args, key)) is not None}, {"guided_channels": unguided})
    return _with_folders(config, args), args


def _check_published(args: argparse.Namespace, tree: Tree) -> None:
    """Flags of the published command line that need or exclude each other."""
    if args.ckpt is None and tree.get("model") in NETWORKS:
        raise ValueError(f"--model {tree['model']} names a network: give its weights with --ckpt, e.g. DiT-XL-2-256x256.pt")
    if args.ckpt is None and args.sample_dir is not None:
        raise ValueError("--sample-dir names its folder after the weights of --ckpt: give both, or --save_dir")
    for theirs, ours in (("sample_dir", "save_dir"), ("num_fid_samples", "num_per_class")):
        if None not in (getattr(args, theirs), getattr(args, ours)):
            raise ValueError(f"--{theirs.replace('_', '-')} and --{ours} say the same thing twice: give one")


def _with_folders(config: GenerateConfig, args: argparse.Namespace) -> GenerateConfig:
    """The folders that the published names of VAE and output stand for."""
    named = str(config.vae)
    if args.sample_dir is not None:
        words = (config.network, Path(args.ckpt).stem, "size", config.image_size or 256, "vae", Path(named).name)
        name = "-".join(map(str, (*words, "cfg", config.guidance_scale, "seed", config.seed))).replace("/", "-")
        config = dataclasses.replace(config, save_dir=str(Path(args.sample_dir) / name))
    if named in _VAES and not Path(named).is_dir():
        config = dataclasses.replace(config, vae=str(Path(config.fill(config.model)).parent / _VAES[named]))
    return config


def per_class(total: int, classes: int) -> int:
    """Images of each class, of so many together.

    Raises:
        ValueError: no multiple of the number of classes.
    """
    if total < classes or total % classes:
        nearest = max(1, round(total / classes)) * classes
        raise ValueError(
            f"--num-fid-samples {total} is no multiple of the {classes} classes, which get as many each: e.g. {nearest}"
        )
    return total // classes


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    world = connect()
    with world.together():
        setup_logging(quiet=world.rank != 0)
        config, args = parse(argv)
        torch.set_num_threads(args.threads)
        options = launch_options(args)
        with options.interruption.listening():
            outcome = run(config, world, args, options)
    if world.rank == 0 and outcome:
        log.info(
            "generated %d images in %.1f s (%.2f images/s), %d were there already -> %s",
            outcome.written, outcome.seconds, outcome.speed, outcome.found, config.fill(config.save_dir),
        )  # fmt: skip
        for _, broken in outcome.broken:
            log.warning("broken: %s", broken)
        return int(bool(outcome.broken))
    return 0


def run(config: GenerateConfig, world: World, args: argparse.Namespace, options: LaunchOptions) -> Outcome | None:
    """Load the model and generate; a dry run prints the plan and returns None."""
    device = choose_device(args.device, world.local_rank)
    opened = open_generator(config, device)
    if args.num_fid_samples is not None:
        classes = parse_classes(config.classes, opened.generator.num_classes)
        config = dataclasses.replace(config, num_per_class=per_class(args.num_fid_samples, len(classes)))
    if args.dry_run:
        if world.rank == 0:
            print(describe_generation(opened, config, world.size, args.verify), end="")
        return None
    log.info("%s: %d classes of %d px, %d rank(s) on %s", opened.path, opened.generator.num_classes,
             opened.generator.image_size, world.size, device.type)  # fmt: skip
    return generate(opened, config, world, options)


if __name__ == "__main__":
    run_main(main)
