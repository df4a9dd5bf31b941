"""Evaluate one checkpoint: degradation levels, corruptions x severities, clean images.

python test.py -r sl/Digits/ResNet20-ResNet20/jpeg --dt jpeg       # every level of a degradation (--dt all: of all four)
python test.py -r ind/Digits/ResNet20_clean --corruption all --severity 1-5    # the 15 corruptions of ImageNet-C
python test.py -r runs/<name>/<run id>/best.safetensors --corruption clean,gaussian_noise --severity 5
"""

from __future__ import annotations

from pathlib import Path

from trainers.evaluation import EvaluationConfig, evaluate, print_outcome
from trainers.evaluation_entry import data_overrides, evaluation_parser, training_data
from utils.config import Tree, build, merge, read_yaml
from utils.device import choose_device
from utils.errors import user_errors
from utils.run_log import setup_logging
from utils.runs import resolve_checkpoint


def main(argv: list[str] | None = None) -> None:
    """Run the command line."""
    parser = evaluation_parser(__doc__)
    parser.add_argument(
        "-r", "--resume", "--checkpoint", dest="resume", required=True, help="checkpoint file, run folder or run name"
    )
    parser.add_argument("-c", "--config", help="YAML whose `data:` section says what to evaluate on (default: the run's own data)")
    parser.add_argument("-m", "--mode", default="eval", help="folder below the run for the results")
    args, overrides = parser.parse(argv)
    checkpoint = resolve_checkpoint(args.resume, args.runs)
    tree: Tree = {"data": training_data(checkpoint)}
    tree = merge(tree, {"data": read_yaml(args.config).get("data", {})} if args.config else {})
    tree = merge(merge(tree, data_overrides(args)), overrides)
    if not any(tree["data"].get(k) for k in ("corruptions", "sweep")):
        tree["data"]["corruptions"] = ["clean"]
    what = "-".join(dict.fromkeys(tree["data"].get("sweep", []) + tree["data"].get("corruptions", [])))
    tree["out"] = args.out or str(checkpoint.parent / args.mode / what)
    tree |= {"runs": args.runs, "members": {"model": {"checkpoint": str(checkpoint)}}}
    tree["systems"] = {Path(args.resume).name if Path(args.resume).is_dir() else _shown(checkpoint): {"members": ["model"]}}
    config = build(EvaluationConfig, tree)
    print_outcome(evaluate(config, choose_device(args.device)), config.out)


def _shown(checkpoint: Path) -> str:
    """`<...>/<method>/<dataset>/<name>/<run id>/best.safetensors` -> `<name>`."""
    parents = checkpoint.resolve().parents
    return parents[1].name if checkpoint.name == "best.safetensors" else checkpoint.stem


if __name__ == "__main__":
    setup_logging()
    with user_errors():
        main()
