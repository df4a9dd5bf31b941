"""Generate images of given classes by a class-conditional diffusion model, on any number of MPI ranks; the same command goes on.

mpiexec -n 2 python image_adapt/scripts/generate.py -c configs/generate/Digits/conditional.yaml --num_per_class 50
python image_adapt/scripts/generate.py -c configs/generate/Digits/conditional.yaml --classes 0-4,9 --guidance_scale 2 --dry_run
mpiexec -n 8 python image_adapt/scripts/generate.py -c configs/generate/Imagenet/dit.yaml --vae ckpt/sd-vae-ft-ema

docs/generation.md: models, files, settings. Flags that take true or false also take yes, no, t, f, y, n, 1, 0; alone: true.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence

import torch

from image_adapt.generate import describe_generation, generate
from image_adapt.generator import GenerateConfig, open_generator
from image_adapt.mpi import World, connect
from image_adapt.scripts.ranks import check_needed, given_tree, ranks_parser
from image_adapt.work import Outcome
from models.model_flags import parse_flag
from utils.command_line import ScriptParser
from utils.config import build, parse_value
from utils.device import choose_device
from utils.errors import user_errors
from utils.run_log import setup_logging

log = logging.getLogger("generate")

# key of the YAML -> its flags, and what they say
_FLAGS: dict[str, tuple[tuple[str, ...], str]] = {
    "model": (
        ("--model_path", "--model"),
        "run name, run folder, checkpoint, DiT's published state dict, folder of diffusers",
    ),
    "vae": (("--vae",), "folder of the VAE that decodes a DiT's latents"),
    "save_dir": (("--save_dir",), "images go to <save_dir>/<class number>/<image number>.png"),
    "dataset": (("--dataset",), "data set or folder whose name {dataset} stands for"),
    "num_per_class": (("--num_per_class",), "images of each class"),
    "classes": (("--classes",), "all, or numbers and ranges such as 0-9,17"),
    "class_names": (("--class_names",), "file with the name of each class, or imagenet-1k, for classes.txt"),
    "guidance_scale": (("--guidance_scale", "--cfg-scale"), "of classifier-free guidance; 1 is none"),
    "respacing": (("--timestep_respacing", "--num-sampling-steps"), "steps of the chain, as guided-diffusion writes them"),
    "num_heads": (("--num_heads",), "attention heads of a DiT of no published size"),
    "image_size": (("--image_size", "--image-size"), "pixels that the generator is expected to make"),
    "batch_size": (("--batch_size",), "images made together on a rank"),
    "seed": (("--seed", "--global-seed"), "of the noise"),
    "use_fp16": (("--use_fp16",), "bfloat16 autocast of the diffusion model"),
    "overwrite": (("--overwrite",), "delete images of other settings in save_dir"),
    "runs": (("--runs",), "root of the runs"),
}
_BOOLEANS = ("use_fp16", "overwrite")
_TEXTS = ("model", "vae", "save_dir", "dataset", "classes", "class_names", "runs")  # taken literally


def parser() -> ScriptParser:
    """The command line; further keys of the YAML may be given as `--key value`."""
    p = ranks_parser(__doc__, GenerateConfig, "image_adapt/generator.py")
    for key, (names, text) in _FLAGS.items():
        if key in _BOOLEANS:
            p.add_argument(*names, dest=key, metavar="VALUE", nargs="?", const="true", help=text)
        else:
            p.add_argument(*names, dest=key, metavar="VALUE", help=text)
    return p


def parse(argv: Sequence[str] | None) -> tuple[GenerateConfig, argparse.Namespace]:
    """(configuration, other arguments) of the command line."""
    args, overrides = parser().parse(argv)
    tree = given_tree(args, overrides)
    for key in _FLAGS:
        text = getattr(args, key)
        if text is not None:
            tree[key] = text if key in _TEXTS else parse_flag(key, text, bool) if key in _BOOLEANS else parse_value(text)
    check_needed(tree)
    return build(GenerateConfig, tree), args


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    world = connect()
    with world.together():
        setup_logging(quiet=world.rank != 0)
        config, args = parse(argv)
        torch.set_num_threads(args.threads)
        outcome = run(config, world, args)
    if world.rank == 0 and outcome:
        log.info(
            "generated %d images in %.1f s (%.2f images/s), %d were there already -> %s",
            outcome.made, outcome.seconds, outcome.speed, outcome.found, config.fill(config.save_dir),
        )  # fmt: skip
    return 0


def run(config: GenerateConfig, world: World, args: argparse.Namespace) -> Outcome | None:
    """Load the model and generate; a dry run prints the plan and returns None."""
    device = choose_device(args.device, world.local_rank)
    opened = open_generator(config, device)
    if args.dry_run:
        if world.rank == 0:
            print(describe_generation(opened, config, world.size), end="")
        return None
    log.info("%s: %d classes of %d px, %d rank(s) on %s", opened.path, opened.generator.num_classes,
             opened.generator.image_size, world.size, device.type)  # fmt: skip
    return generate(opened, config, world)


if __name__ == "__main__":
    with user_errors():
        sys.exit(main())
