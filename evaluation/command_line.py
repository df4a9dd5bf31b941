"""Command-line parts that test.py and test_ensemble.py share."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path

from undegrade.evaluation.config import EvaluationConfig, TestDataConfig
from undegrade.evaluation.opening import member_view
from undegrade.evaluation.protocols import read_protocol
from undegrade.utils.command_line import ScriptParser, typed
from undegrade.utils.config import Tree, dotted_keys, read_yaml
from undegrade.utils.data.cells import parse_severities
from undegrade.utils.data.perturbations.degradations import COMBINED
from undegrade.utils.data.sources.registry import SourceConfig
from undegrade.utils.data.sources.released import is_released
from undegrade.utils.data.training import DataConfig
from undegrade.utils.data.views import RAW
from undegrade.utils.interruption import Interruption, parse_duration
from undegrade.utils.ranges import Count

_KEPT = {f.name for f in dataclasses.fields(SourceConfig)} - {"limit", "subset"}  # of a training YAML, for its evaluation
_OF_LABELLED = ("dt", "corruption", "severity", "limit", "protocol")


def evaluation_parser(description: str | None) -> ScriptParser:
    """Flags that say what to evaluate on and where results go."""
    p = ScriptParser(description, dotted_keys(EvaluationConfig))
    p.add_argument("-d", "--device", help="cpu, cuda, cuda:N, or GPU numbers such as 0,1")
    p.add_argument(
        "--dt", "--deg_type", dest="dt",
        help="sweep all levels of a degradation; several joined by commas, or all; combined_deg: those of the run or configuration",
    )  # fmt: skip
    p.add_argument(
        "--corruption",
        help="corruptions joined by commas; all: the 15 of ImageNet-C; imagenet-c-bar: its 10; imagenet-3dcc-2d: its 3 without "
        "depth; smooth: from each of the 15 into the next; clean; degradations (random level)",
    )
    p.add_argument("--severity", help="of the corruptions: 5, or 1,3,5, or 1-5")
    p.add_argument("--dataset", help="data set name or image folder")
    p.add_argument(
        "--protocol",
        help="of predictors that adapt themselves, words joined by +: reset, continual, gradual or mixed; shuffled, "
        "listing or by_class; delta=0.1, seed=0",
    )
    p.add_argument("--limit", type=int, help="class-balanced subset of so many images")
    p.add_argument("--out", help="folder for the results")
    p.add_argument(
        "--arch", help="network of checkpoints of other programs, which do not say it themselves: a timm name; else for {arch}"
    )
    p.add_argument(
        "--predict", help="label the images below a folder, or one image, instead; --out is then the CSV (predictions.csv)"
    )
    p.add_argument("--top", type=typed(Count), help="with --predict: so many classes an image, best first (1)")
    p.add_argument(
        "--report",
        help="also write one self-contained HTML file: table, plots, pictures, configs; with --predict the images with what is "
        "said of them",
    )
    p.add_argument("--runs", default="runs", help="root of the runs, for checkpoints by name")
    p.add_argument("--max_time", help="stop after so much time, such as 3h50m, with what is done, and the status 75")
    return p


def interruption_of(args: argparse.Namespace) -> Interruption:
    """What may stop the work: signals and `--max_time`."""
    return Interruption(parse_duration(args.max_time) if args.max_time else None)


def check_prediction(parser: ScriptParser, args: argparse.Namespace, given: Tree, flags: Sequence[str] = ()) -> None:
    """Raise ValueError where `--predict` meets what is about labelled or corrupted images, or what
    goes with it stands alone, or `--report` is a folder.

    Args:
        parser, args, given: the command line, its own flags and its configuration keys.
        flags: the script's own that have no meaning with it.
    """
    if args.report is not None and Path(args.report).is_dir():
        raise ValueError(f"--report {args.report} is a folder: name a file in it, such as {Path(args.report) / 'report.html'}")
    if args.predict is None:
        alone = [name for name in ("top", "system") if getattr(args, name, None) is not None]
        if alone:
            raise ValueError(f"--{alone[0]} goes with --predict <folder of images>: add that, or leave it out")
        return
    unfit = [name for name in (*_OF_LABELLED, *flags) if getattr(args, name) != parser.get_default(name)]
    known = ("dataset", "image_size", "resize", "interpolation", "classes")
    unfit += [f"data.{key}" for key in given.get("data", {}) if key not in known]
    if unfit:
        raise ValueError(
            f"--predict labels the images of {args.predict} as they are, --{unfit[0]} has no meaning for them: leave it out; to "
            "measure accuracies on labelled images, leave out --predict and give --dataset <folder of class folders>"
        )


def data_overrides(args: argparse.Namespace) -> Tree:
    """The given flags as keys of the `data:` section."""
    data: Tree = {}
    if args.dt not in (None, COMBINED):
        data["sweep"] = args.dt.split(",")
    if args.corruption is not None:
        data["corruptions"] = args.corruption.split(",")
    if args.severity is not None:
        data["severities"] = parse_severities(args.severity)
    if args.dataset is not None:
        data["dataset"] = args.dataset
    if args.limit is not None:
        data["limit"] = args.limit
    return {"data": data} | ({} if args.protocol is None else {"protocol": read_protocol(args.protocol)})


def run_data(checkpoint: Path) -> Tree:
    """The `data:` section of the run that made a checkpoint, from the config.yaml beside it (empty
    for a lone file).
    """
    path = checkpoint.parent / "config.yaml"
    data: Tree = read_yaml(path).get("data", {}) if path.is_file() else {}
    return data


def keys_of_view(config: EvaluationConfig, member: str, given: Tree) -> EvaluationConfig:
    """`config` with keys and labels out of a member's view, if it is a released set: ImageNet-C,
    CIFAR-10-C or CIFAR-100-C.

    Args:
        config: what is evaluated.
        member: whose view.
        given: configuration keys of the command line; a `--data.root` among them stays.
    """
    view = member_view(config, member)
    if view == RAW or "root" in given.get("data", {}) or not is_released(config.data.dataset, Path(view)):
        return config
    return dataclasses.replace(config, data=dataclasses.replace(config.data, root=view))


def of_evaluation(tree: Tree) -> Tree:
    """What a YAML over others says of an evaluation: all of it, or of a training YAML its
    `test_keys`.

    A training YAML is one with a key that an evaluation does not know.
    """
    own, data = ({field.name for field in dataclasses.fields(schema)} for schema in (EvaluationConfig, TestDataConfig))
    ours = tree.keys() <= own and tree.get("data", {}).keys() <= data
    return tree if ours else {"data": test_keys(tree.get("data", {}))}


def test_keys(data: Tree) -> Tree:
    """The keys of a `data:` section without those that say something about training alone.

    `limit`, `subset` and `seed` are of the training images: what is tested on is never narrowed by
    them.
    """
    training_only = {f.name for f in dataclasses.fields(DataConfig)} - _KEPT
    return {key: value for key, value in data.items() if key not in training_only}
