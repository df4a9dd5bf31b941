"""Evaluate systems of several members: `(checkpoint, view)` pairs and a rule each, all rules from
one forward pass a member.

    python test_ensemble.py -c configs/ensemble/Digits/ResNet20_diffaud.yaml --corruption all --severity 5
    python test_ensemble.py <config> <checkpoint 1> --second_model_prefix <checkpoint 2> --data_prefix2 <adapted images> \
        --ensemble sum --corruption gaussian_noise --severity 5
    python test_ensemble.py <config> <fine-tuned> --originckpt <source> --data_prefix2 <adapted images> --ensemble sda \
        --corruption gaussian_noise --severity 5
    python test_ensemble.py -c configs/ensemble/Digits/ResNet20_diffaud.yaml --predict photos --views.adapted adapted/photos
"""

from __future__ import annotations

import argparse
from pathlib import Path

from undegrade.evaluation.command_line import (
    check_prediction,
    data_overrides,
    evaluation_parser,
    interruption_of,
    keys_of_view,
    of_evaluation,
)
from undegrade.evaluation.config import EvaluationConfig
from undegrade.evaluation.effect import check_keys, check_keys_of_prediction
from undegrade.evaluation.evaluate import evaluate, print_outcome
from undegrade.evaluation.predict import print_predictions
from undegrade.evaluation.rules import RULES
from undegrade.utils.checkpoint import read_description
from undegrade.utils.command_line import LISTS
from undegrade.utils.config import Tree, build, merge, read_yaml
from undegrade.utils.data.perturbations.degradations import COMBINED
from undegrade.utils.data.perturbations.watermark import WATERMARK
from undegrade.utils.data.views import RAW
from undegrade.utils.device import choose_device
from undegrade.utils.published_commands import published_config

# --datatype of SDA's commands -> what they mean where it is not said
DATATYPES = {"C": {"corruption": "gaussian_noise", "severity": "5"}, "W": {"corruption": WATERMARK}}
SDA = "sda"  # the sum of the source classifier on the first view and of the fine-tuned one on the second


def main(argv: list[str] | None = None) -> int:
    """Run the command line."""
    parser = evaluation_parser(__doc__)
    parser.add_argument(
        "positional", nargs="*", metavar="config [checkpoint]", help="YAML and, for two members, the first checkpoint"
    )
    parser.add_argument("-c", "--config", nargs="+", help="YAML with members, systems and data; of several the later ones win")
    parser.add_argument("--second_model_prefix", help="checkpoint of the second member (default: the first)")
    parser.add_argument(
        "--originckpt",
        help="with --ensemble sda: the source classifier, which sees the first view; the checkpoint is then the second's",
    )
    parser.add_argument(
        "--datatype",
        choices=[*DATATYPES],
        help="as SDA's commands say it: C is ImageNet-C (--corruption gaussian_noise --severity 5 unless others are given), "
        "W ImageNet-W (--corruption watermark)",
    )
    parser.add_argument("--data_prefix1", help="view of the first member (default: raw); of a released set also keys and labels")
    parser.add_argument("--data_prefix2", help="view of the second member")
    parser.add_argument("--ensemble", help="rule; several joined by commas, or all")
    parser.add_argument(
        "--system", help="with --predict: the system whose classes are written (default: the last one of the config)"
    )
    parser.add_argument("--metrics", default="accuracy", choices=["accuracy"], help="what is reported")
    args, overrides = parser.parse(argv)
    check_prediction(parser, args, overrides, ("datatype",))
    interruption = interruption_of(args)
    for flag, usual in DATATYPES.get(args.datatype, {}).items():
        setattr(args, flag, getattr(args, flag) or usual)
    paths = args.config or args.positional[:1]
    if not paths:
        parser.error("give a config: -c configs/ensemble/<DATASET>/<name>.yaml")
    args.positional = args.positional if args.config else args.positional[1:]
    _check_positional(args)
    tree = read_yaml(published_config(paths[0]))
    for path in paths[1:]:
        tree = merge(tree, of_evaluation(read_yaml(path)))
    if args.positional:
        tree = merge(tree, two_members(args.positional[0], args, tree.get("arch")))
        tree["systems"] = two_member_systems(args.ensemble or "sum")
    elif args.arch:
        tree["arch"] = args.arch
    given = merge(data_overrides(args), overrides)
    tree = merge(tree, given)
    tree["runs"] = args.runs
    if args.arch and not args.positional:
        given["arch"] = args.arch
    if args.predict is not None:
        check_keys_of_prediction(build(EvaluationConfig, tree), overrides, args.system)
        with interruption.listening():
            asked = args.predict, args.out, choose_device(args.device), args.top, args.system
            return print_predictions(build(EvaluationConfig, tree), *asked, interruption, args.report)
    if args.out:
        tree["out"] = args.out
    config = build(EvaluationConfig, tree)
    if args.positional:
        config = keys_of_view(config, "first", overrides)
    if args.dt == COMBINED and not config.data.sweep:
        raise ValueError(f"--dt {COMBINED} keeps the sweep of the configuration, and {paths[0]} has none: give --dt all, or names")
    check_keys(config, given)
    with interruption.listening():
        evaluation = evaluate(config, choose_device(args.device), interruption)
    print_outcome(evaluation, args.report)
    return 0


def _check_positional(args: argparse.Namespace) -> None:
    """The flags of two members need the first checkpoint; with members and systems of a YAML alone
    they would say nothing.
    """
    if len(args.positional) > 1:
        raise ValueError(f"unexpected arguments {args.positional[1:]}: give a config and one checkpoint; {LISTS}")
    flags = ("second_model_prefix", "originckpt", "data_prefix1", "data_prefix2", "ensemble")
    alone = [f for f in flags if getattr(args, f) is not None]
    if alone and not args.positional:
        raise ValueError(f"--{alone[0]} needs the first checkpoint: test_ensemble.py <config> <checkpoint> --{alone[0]} ...")
    if (args.ensemble == SDA) != (args.originckpt is not None):
        raise ValueError(f"--ensemble {SDA} and --originckpt <source classifier> go together: give both, or neither")
    if args.originckpt is not None and args.second_model_prefix is not None:
        raise ValueError("--originckpt and --second_model_prefix both name the other checkpoint: give one")


def two_members(first: str, args: argparse.Namespace, arch: str | None) -> Tree:
    """Members of the published command lines: model 1 on tree 1, model 2 on tree 2; with SDA the
    checkpoint is model 2.

    A file that does not say what network it holds has the one of --arch, or `arch`, that of the
    configuration.
    """
    first, second = (args.originckpt, first) if args.originckpt else (first, args.second_model_prefix or first)
    view1, view2 = args.data_prefix1 or RAW, args.data_prefix2
    members = {"first": (first, view1), "second": (second, view2 or view1)}
    foreign = {name: Path(file).is_file() and not read_description(file) for name, (file, _) in members.items()}
    return {
        "members": {
            name: {"checkpoint": file, "view": view, "arch": args.arch or (arch if foreign[name] else None)}
            for name, (file, view) in members.items()
        }
    }


def two_member_systems(ensemble: str) -> Tree:
    """A system a rule."""
    if ensemble == SDA:
        return {SDA: {"members": ["first", "second"], "rule": "sum"}}
    rules = list(RULES) if ensemble == "all" else ensemble.split(",")
    return {rule: {"members": ["first", "second"], "rule": rule} for rule in rules}
