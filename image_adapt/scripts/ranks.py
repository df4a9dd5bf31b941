"""What the scripts that run on MPI ranks have in common on their command lines."""

from __future__ import annotations

import argparse
from typing import Any

from undegrade.image_adapt.launch import LaunchOptions
from undegrade.models.diffusion.openai_flags import parse_flag
from undegrade.utils.command_line import ScriptParser, typed
from undegrade.utils.config import Tree, dotted_keys, merge, parse_value, read_all
from undegrade.utils.interruption import Interruption, parse_duration
from undegrade.utils.key_help import key_types
from undegrade.utils.ranges import Count


def ranks_parser(description: str | None, schema: type, listed_in: str) -> ScriptParser:
    """Flags of configuration, device and dry run; `schema` is the dataclass of the YAML,
    `listed_in` the file that documents it.
    """
    p = ScriptParser(description, dotted_keys(schema))
    p.usage = "%(prog)s [-c CONFIG ...] [--flag value ...]"
    p.add_argument("-c", "--config", nargs="+", help=f"YAML file ({listed_in} lists the keys); of several the later ones win")
    p.add_argument(
        "-d", "--device", help="cpu, cuda, cuda:N, or GPU numbers such as 0,1; default: a GPU a local rank if there are any"
    )
    p.add_argument("--threads", type=typed(Count), default=1, help="CPU threads a rank")
    p.add_argument("--dry_run", action="store_true", help="print what would be done, write nothing")
    p.add_argument(
        "--verify", action="store_true", help="decode all images that are there and compare their digests with the manifest's; "
        "what differs is made again (without the flag: sizes, and digests of files that changed since)"
    )  # fmt: skip
    p.add_argument("--max_time", help="end after so much time, such as 3h50m, in good order and with the status 75")
    p.add_argument(
        "--rank_timeout", help="a rank that finishes no batch for so long hangs: another makes its images, and the launch ends "
        "with an error that names it (default: ten times the slowest batch so far, at least 10m)"
    )  # fmt: skip
    return p


def launch_options(args: argparse.Namespace) -> LaunchOptions:
    """What the flags of `ranks_parser` say of the launch."""
    max_time, rank_timeout = (text and parse_duration(text) for text in (args.max_time, args.rank_timeout))
    return LaunchOptions(args.verify, Interruption(max_time), rank_timeout)


def given_tree(args: argparse.Namespace, overrides: Tree) -> Tree:
    """The files of `--config`, the later ones over the earlier, and the keys of the command line
    over them.
    """
    return merge(read_all(args.config or []), overrides)


def add_precision_flag(p: argparse.ArgumentParser, **alone: Any) -> None:
    """Give `p` the published flag for half precision."""
    p.add_argument("--use_fp16", metavar="VALUE", help="true: --precision float16, as guided-diffusion's; false: float32", **alone)


def published_precision(args: argparse.Namespace) -> str | None:
    """The precision that --use_fp16 means; None where it was not given.

    Raises:
        ValueError: neither true nor false; --precision is given, too.
    """
    if args.use_fp16 is None:
        return None
    half = parse_flag("use_fp16", args.use_fp16, bool)
    if args.precision is not None:
        raise ValueError(f"--use_fp16 {args.use_fp16} and --precision {args.precision} say the same thing twice: give one")
    return "float16" if half else "float32"


def check_needed(tree: Tree, key: str, flag: str) -> None:
    """Raise ValueError unless the configuration has the key, which the flag sets, too."""
    if tree.get(key) is None:
        raise ValueError(f"{flag} is missing: give it, or `{key}:` in the YAML")


def flag_value(schema: type, place: str, flag: str, text: str) -> Any:
    """Value of a key from the text of its flag: true and false in all ways of guided-diffusion's
    command line, texts but `null` literally, anything else as in a YAML.

    Raises:
        ValueError: neither true nor false; names the flag.
    """
    kinds = key_types(schema, place)
    if text == "null" and type(None) in kinds:
        return None
    if bool in kinds:
        return parse_flag(flag, text, bool)
    return text if str in kinds else parse_value(text)
