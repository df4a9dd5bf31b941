"""A classifier or a whole system in a folder that other programs load, or that is published.

    undegrade export ind/Digits/ResNet20_clean --format torch --out exported
    undegrade export configs/ensemble/Digits/ResNet20_diffaud.yaml --format hub --out diffaud
    undegrade export runs/mine/best.safetensors --format timm --out mine --push owner/mine

hub: all of a system, for undegrade.load. timm: config.json and model.safetensors of one classifier,
for timm.create_model. torch (.pt2) and onnx: one program of image batches to probabilities, without
undegrade. Each has a model card (docs/hub.md).
"""

from __future__ import annotations

import undegrade.utils.quick_start  # noqa: F401  before the rest

# isort: split
import argparse
import logging
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from undegrade.evaluation.config import members_of
from undegrade.evaluation.opening import member_view
from undegrade.image_adapt.adapters import ADAPTERS, Adapter
from undegrade.measured import check_results, read_measured
from undegrade.models.classification.resnet import ARCHS
from undegrade.opening import adapter_settings, chosen_system, load
from undegrade.saving import is_saved, saved_member
from undegrade.system import System
from undegrade.utils.checkpoint import read_description
from undegrade.utils.choices import check_choice, fill_names
from undegrade.utils.command_line import ScriptParser
from undegrade.utils.data.cells import CLEAN, Cell
from undegrade.utils.data.views import RAW
from undegrade.utils.errors import run_main
from undegrade.utils.provenance import without_folders
from undegrade.utils.runs import find_checkpoint
from undegrade.utils.saved_folder import check_free

log = logging.getLogger("export")

FORMATS = ("hub", "timm", "torch", "onnx")
_FILES = {
    "hub": "config.json, members/, adapters/ and rule.json where there are any",
    "timm": "config.json, model.safetensors",
    "torch": "model.pt2, metadata.json",
    "onnx": "model.onnx, metadata.json",
}


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line; prints the folder, and with --push the address."""
    p = ScriptParser(__doc__)
    p.add_argument("source", help="checkpoint, run folder, name of a run, ensemble YAML, or a folder of --format hub")
    p.add_argument("--format", default="hub", help=f"{' | '.join(FORMATS)} (default: hub)")
    p.add_argument("--out", required=True, help="folder to be made")
    p.add_argument("--system", help="of an ensemble YAML, its name (default: the last one)")
    p.add_argument("--adapter", help="what adapts images: a name, or an adaptation YAML (default: as the YAML's views say)")
    p.add_argument("--runs", default="runs", help="root of the runs, for checkpoints and models by name")
    p.add_argument("--arch", help="network of a checkpoint of another program: a timm name")
    p.add_argument("--classes", help="of such a checkpoint: imagenet-1k, or a file with one a line")
    p.add_argument("--pixels", help="of torch and onnx: images as uint8 in 0..255 (default), or float32 in [0,1]")
    p.add_argument("--results", metavar="FILE", help="results.json of an evaluation of it, for the model card")
    p.add_argument("--row", help="name of the system in --results, where it has another one there")
    p.add_argument("--licence", help="of the weights, as the Hub names it (mit, apache-2.0, ...), for the model card")
    p.add_argument("--push", metavar="OWNER/NAME", help="publish the folder on the Hugging Face Hub")
    p.add_argument("--private", action="store_true", help="with --push: for yourself alone, if it is new there")
    p.add_argument("--dry_run", action="store_true", help="say what would be exported, from which files, and stop")
    args, keys = p.parse(argv)
    if keys:
        raise ValueError(f"unknown section {next(iter(keys))!r}: this command has flags only, no configuration")
    _check(args)
    check_free(Path(args.out))
    if args.dry_run:
        print("\n".join(plan(args)))
        return
    given = {"system": args.system, "adapter": args.adapter, "arch": args.arch, "classes": args.classes}
    system = load(args.source, runs=args.runs, device="cpu", **given)
    card = {"licence": args.licence, "command": _command(argv), **({"place": args.push} if args.push else {})}
    _write(system, args, card)
    print(args.out)
    if args.push:
        print(push(Path(args.out), args.push, args.private))


def _check(args: argparse.Namespace) -> None:
    """Raise ValueError or FileNotFoundError for flags that cannot be, or would change nothing."""
    check_choice(args.format, FORMATS, "format", "--format")
    if args.pixels is not None:
        check_choice(args.pixels, ("uint8", "float32"), "kind of pixels", "--pixels")
        if args.format not in ("torch", "onnx"):
            raise ValueError(
                f"--pixels {args.pixels} has no effect here: --format {args.format} holds networks, not a program of images"
            )
    if args.row and not args.results:
        raise ValueError(f"--row {args.row} names a row of --results, which is not given")
    if args.private and not args.push:
        raise ValueError("--private is for --push OWNER/NAME, which is not given")
    if args.results:
        check_results(Path(args.results))


def _write(system: System, args: argparse.Namespace, card: dict[str, Any]) -> None:
    out, results = Path(args.out), None if args.results is None else Path(args.results)
    if args.format == "hub":
        system.save_pretrained(out, model_card_kwargs={"results": results, "row": args.row, **card})
    elif args.format == "timm":
        _write_classifier(system, out, results, args.row, card)
    else:
        from undegrade.exporting import save_program  # here, since the exporters take seconds

        found = save_program(system, out, args.format, args.pixels or "uint8", results=results, row=args.row, **card)
        log.info("largest difference from the system itself: %.2g, in probabilities", found["max_difference"])


def _write_classifier(system: System, out: Path, results: Path | None, row: str | None, card: dict[str, Any]) -> None:
    if len(system.members) > 1:
        raise ValueError(
            f"{system.name} has {len(system.members)} members, timm's format holds one classifier: export a run or checkpoint, or "
            "all of it by --format hub"
        )
    classifier, saved = saved_member(system, next(iter(system.members)))
    if saved.predictor["name"] != "frozen":
        raise ValueError(f"{system.name} adapts itself by {saved.predictor['name']}, which timm does not know: use --format hub")
    measured = None if results is None else read_measured(results, system, row)
    classifier.save_pretrained(out, model_card_kwargs={"measured": measured, **card})
    if classifier.arch in ARCHS:
        log.warning(
            "timm has no %s, which is a network of this project: the folder is in its own format, for undegrade.load",
            classifier.arch,
        )


def plan(args: argparse.Namespace) -> list[str]:
    """What would be exported, a line each; nothing is opened but the descriptions of checkpoints.

    Raises:
        FileNotFoundError, ValueError: what is missing, or what the format cannot hold as far as
            names tell it.
    """
    if is_saved(args.source):
        lines = [f"system: the folder {args.source}, as it is"]
    else:
        config, name = chosen_system(
            args.source, args.system, args.adapter is not None, args.runs, args.arch, args.classes, 64, None
        )
        members = members_of(config.systems[name], Cell(CLEAN, 0), config.members)
        lines = [f"system: {name}, rule {config.systems[name].rule}"]
        for member in members:
            given = config.members[member]
            values = {"dataset": Path(config.data.dataset).name, "arch": config.arch}
            path = find_checkpoint(fill_names(given.checkpoint, values, given.checkpoint), config.runs)
            said = read_description(path)
            network = f"{said.get('arch', given.arch)}, {said.get('num_classes', '?')} classes"
            lines.append(f"member {member}: {network}, looks at {given.view}, {given.predictor.get('name', 'frozen')}: {path}")
            if given.view != RAW:
                settings = adapter_settings(config, given.view, member_view(config, member), args.adapter)
                _check_pass(args.format, settings.adapter)
                model = settings.fill(settings.model) if settings.model else "none"
                lines.append(f"adapter of {given.view}: {settings.adapter}, model {model}")
        if args.format == "timm" and len(members) > 1:
            raise ValueError(f"{name} has {len(members)} members, timm's format holds one classifier: use --format hub")
    return [*lines, f"format {args.format}, to {args.out}: {_FILES[args.format]}, README.md"]


def _check_pass(form: str, adapter: str) -> None:
    if form in ("torch", "onnx") and ADAPTERS[adapter].network is Adapter.network:
        one = [name for name, row in ADAPTERS.items() if row.network is not Adapter.network]
        raise ValueError(
            f"the adapter {adapter} is not one pass of a network: {form} programs hold {', '.join(one)}; use --format hub"
        )


def push(folder: Path, repo: str, private: bool) -> str:
    """Publish a folder; returns the address of the commit.

    Raises:
        ValueError: the Hub does not take it, or does not answer; says why. The folder stays.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HTTPError

    try:
        api = HfApi()
        name = api.create_repo(repo_id=repo, private=private or None, exist_ok=True).repo_id
        return str(api.upload_folder(repo_id=name, folder_path=folder, commit_message="Exported by undegrade"))
    except (OSError, HTTPError, ValueError) as error:
        said = " ".join(str(error).split())[:300]
        raise ValueError(
            f"{folder} is complete, but {repo} was not published ({said}); `hf auth login` says who you are, and `hf upload {repo} "
            f"{folder}` tries again"
        ) from error


def _command(argv: Sequence[str] | None) -> str:
    """This command, without the folders of this machine."""
    return shlex.join(["undegrade", "export", *map(without_folders, sys.argv[1:] if argv is None else argv)])


if __name__ == "__main__":
    run_main(main)
