"""The flags of commands that say which system is meant, and the system."""

from __future__ import annotations

import difflib
import logging
from typing import Any

from undegrade.opening import load, wrap
from undegrade.system import System
from undegrade.utils.choices import check_choice
from undegrade.utils.command_line import ScriptParser, leaves, typed
from undegrade.utils.config import Tree
from undegrade.utils.ranges import Count

log = logging.getLogger(__name__)

INPUTS = ("data.image_size", "data.resize", "data.interpolation")  # keys of the command line


def system_parser(description: str | None) -> ScriptParser:
    """A parser with the flags that `open_system` reads."""
    p = ScriptParser(description, INPUTS)
    p.add_argument(
        "--system", required=True,
        help="a run's name or folder, a checkpoint file, the YAML of an ensemble, or a name or a file of timm",
    )  # fmt: skip
    p.add_argument("--variant", help="of an ensemble YAML: the name of the system in it (default: the last one)")
    p.add_argument("--adapter", help="what makes the adapted images: a name (undegrade list adapters) or an adaptation YAML")
    p.add_argument("--tta", help="adapt the classifiers to what they see by this method (undegrade list predictors)")
    p.add_argument("--arch", help="network of a file that does not say it: a timm name (default: by the file's name)")
    p.add_argument("--classes", help="of such a file: imagenet-1k, or a file with one class a line")
    p.add_argument("--runs", default="runs", help="root of the runs, for checkpoints and models by name")
    p.add_argument("-d", "--device", help="cpu, cuda, cuda:N (default: a GPU if there is one)")
    p.add_argument("--batch_size", type=typed(Count), default=64, help="images that are classified at a time (64)")
    return p


def open_system(args: Any, keys: Tree) -> System:
    """The system that the flags mean, and the keys of its images.

    Raises:
        ValueError, FileNotFoundError: those of `load` and `wrap`; flags that go with checkpoints,
            and a timm name without a file.
    """
    for key in leaves(keys):
        check_choice(key, INPUTS, "config key")
    options = {"device": args.device, "batch_size": args.batch_size}
    try:
        system = load(
            args.system, system=args.variant, adapter=args.adapter, runs=args.runs, arch=args.arch, classes=args.classes,
            overrides=keys, **options,
        )  # fmt: skip
    except FileNotFoundError as error:
        import timm  # here, since it takes seconds

        if not timm.is_model(args.system):
            close = difflib.get_close_matches(args.system, timm.list_models(), n=1, cutoff=0.8)
            raise FileNotFoundError(f"{error}; did you mean timm's {close[0]}?" if close else str(error)) from None
        flags = [flag for flag in ("variant", "adapter", "arch") if getattr(args, flag) is not None]
        given = next(iter([*flags, *leaves(keys)]), None)
        if given is not None:
            raise ValueError(
                f"--{given} goes with a checkpoint, and {args.system} is a name of timm, whose weights are downloaded: leave it "
                f"out, or give the file, --system {args.system}.safetensors"
            ) from None
        log.info("%s: no file or run, but a name of timm: its published weights are taken", args.system)
        system = wrap(args.system, classes=args.classes, **options)
    return system if args.tta is None else system.with_tta(args.tta)
