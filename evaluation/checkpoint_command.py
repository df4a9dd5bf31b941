"""Evaluate one checkpoint: degradation levels, corruptions x severities, clean images. Or label
images with it.

python test.py -r sl/Digits/ResNet20-ResNet20/jpeg --dt jpeg       # every level of a degradation (--dt all: of all four)
python test.py -r sl/Digits/ResNet20-ResNet20/jpeg                 # of the degradations that it was trained on
python test.py -r ind/Digits/ResNet20_clean --corruption all --severity 1-5    # the 15 corruptions of ImageNet-C
python test.py -r runs/<name>/<run id>/best.safetensors --corruption clean,gaussian_noise --severity 5
python test.py -r ind/CIFAR10/ResNet20_clean --view CIFAR-10-C --corruption fog --severity 5    # released; needs no clean images
python test.py -r segmentation/DigitScenes/ResNet20 --corruption clean,all --severity 5 --pictures 8    # masks, or points
python test.py -r ind/Digits/ResNet20_clean --predict photos --top 5     # classes of images that have no labels, as a CSV
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
    run_data,
    test_keys,
)
from undegrade.evaluation.config import EvaluationConfig
from undegrade.evaluation.dense import evaluate_dense
from undegrade.evaluation.effect import check_keys, check_keys_of_dense, check_keys_of_prediction, check_own_flags
from undegrade.evaluation.evaluate import evaluate, print_outcome
from undegrade.evaluation.predict import print_predictions
from undegrade.evaluation.predictors import PREDICTORS
from undegrade.models.dense.loading import KINDS
from undegrade.utils.checkpoint import read_description, split_entry
from undegrade.utils.command_line import typed
from undegrade.utils.config import Tree, build, merge, read_yaml
from undegrade.utils.data.cells import sweep_cells
from undegrade.utils.data.perturbations.degradations import COMBINED
from undegrade.utils.data.views import RAW
from undegrade.utils.device import choose_device
from undegrade.utils.ranges import Count
from undegrade.utils.runs import find_checkpoint


def main(argv: list[str] | None = None) -> int:
    """Run the command line."""
    parser = evaluation_parser(__doc__)
    parser.add_argument(
        "-r", "--resume", "--checkpoint", dest="resume", required=True, help="checkpoint file, run folder or run name"
    )
    parser.add_argument(
        "-c", "--config", nargs="+", default=[],
        help="YAML whose `data:` section says what to evaluate on (default: the run's); of a training YAML not limit, subset, seed",
    )  # fmt: skip
    parser.add_argument(
        "--view", default=RAW,
        help="raw: corrupt clean images; or a folder: adapted images, ImageNet-C, CIFAR-10-C (keys and labels are then its own)",
    )  # fmt: skip
    parser.add_argument(
        "--tta", help="adapt the classifier to what it sees by "
        f"{', '.join(name for name in PREDICTORS if name != 'frozen')}; options: --members.model.predictor.KEY",
    )  # fmt: skip
    parser.add_argument(
        "--pictures", type=typed(Count), help="of networks for masks and points: show so many images with truth and prediction"
    )
    parser.add_argument("-m", "--mode", default="eval", help="folder below the run for the results")
    args, overrides = parser.parse(argv)
    check_prediction(parser, args, overrides, ("dataset", "view", "mode"))
    check_own_flags(overrides)
    if args.out and args.mode != parser.get_default("mode"):
        raise ValueError(f"--mode {args.mode} is the folder below the run, --out {args.out} is another one: give one of them")
    interruption = interruption_of(args)
    checkpoint = find_checkpoint(args.resume, args.runs)
    dense = read_description(checkpoint).get("kind") in KINDS
    _check_kind(args, dense)
    trained = run_data(checkpoint)
    tree: Tree = {"data": test_keys(trained)}
    for path in args.config:
        given = read_yaml(path)
        trained = merge(trained, given.get("data", {}))
        tree = merge(tree, {"data": of_evaluation(given).get("data", {})})
    given = merge(data_overrides(args), overrides)
    if args.tta is not None:
        given = merge({"members": {"model": {"predictor": {"name": args.tta}}}}, given)
    own: Tree = {"runs": args.runs, "members": {"model": {"checkpoint": str(checkpoint), "arch": args.arch, "view": args.view}}}
    tree = merge(tree | own | {"systems": {_shown(args, checkpoint): {"members": ["model"]}}}, given)
    if args.predict is not None:
        check_keys_of_prediction(build(EvaluationConfig, tree), overrides, None)
        with interruption.listening():
            asked = args.predict, args.out, choose_device(args.device), args.top
            return print_predictions(build(EvaluationConfig, tree), *asked, None, interruption, args.report)
    known = trained.get("degradations", [])
    if args.dt == COMBINED and not known:
        raise ValueError(
            f"--dt {COMBINED} means the degradations that {args.resume} was trained on, and it names none: "
            "give them, --dt jpeg,blur, or --dt all for the four"
        )
    if args.dt == COMBINED or not any(tree["data"].get(k) for k in ("corruptions", "sweep")):
        swept = [deg for deg in known if len(sweep_cells(deg)) > 1]
        drawn = [deg for deg in known if deg not in swept]  # sequences: levels are drawn for each image
        listed = tree["data"].get("corruptions", []) + (drawn if known else ["clean"])
        tree["data"] |= {"sweep": swept, "corruptions": listed}
    what = "-".join(dict.fromkeys(tree["data"].get("sweep", []) + tree["data"].get("corruptions", [])))
    what += "" if args.view == RAW else f"-{Path(args.view).name}"
    what += "" if args.tta is None else f"-{args.tta}"
    home = Path(args.runs) / _reference(args) if _elsewhere(args, checkpoint) else checkpoint.parent
    tree["out"] = args.out or str(home / args.mode / what)
    config = keys_of_view(build(EvaluationConfig, tree), "model", overrides)
    check_keys(config, given)
    if dense:
        check_keys_of_dense(given)
        with interruption.listening():
            evaluate_dense(config, choose_device(args.device), args.pictures or 0, interruption)
        return 0
    with interruption.listening():
        print_outcome(evaluate(config, choose_device(args.device), interruption), args.report)
    return 0


def _check_kind(args: argparse.Namespace, dense: bool) -> None:
    """Raise ValueError for a flag that the checkpoint's kind has no use for."""
    if args.pictures is not None and not dense:
        raise ValueError("--pictures shows masks and points, a classifier has neither: leave it out, --predict writes classes")
    if dense and args.arch is not None:
        raise ValueError(f"--arch {args.arch}: {args.resume} says itself which network it holds, leave it out")
    if dense and args.report is not None:
        raise ValueError(f"--report {args.report} shows classes, {args.resume} finds masks or points: use --pictures 8")
    if dense and args.predict is not None:
        raise ValueError(
            f"--predict {args.predict} writes classes of images, {args.resume} finds masks or points: use --pictures 8"
        )


def _elsewhere(args: argparse.Namespace, checkpoint: Path) -> bool:
    """Whether it lies in a cache of downloads, which is no place for results."""
    return not split_entry(args.resume)[0].exists() and not checkpoint.is_relative_to(args.runs)


def _reference(args: argparse.Namespace) -> str:
    return str(args.resume).removeprefix("hf-hub:").removeprefix("hf_hub:")


def _shown(args: argparse.Namespace, checkpoint: Path) -> str:
    """`<...>/<method>/<dataset>/<name>/<run id>/best.safetensors` -> `<name>`."""
    parents = checkpoint.resolve().parents
    if _elsewhere(args, checkpoint):
        return Path(_reference(args)).name
    return parents[1].name if checkpoint.name == "best.safetensors" else checkpoint.stem
