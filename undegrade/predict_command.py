"""Label images that have no labels: classes in words and confidences as a CSV, and as a page to
look at.

    undegrade predict photos --system tf_efficientnet_lite0.safetensors --report out.html
    undegrade predict photos --system ind/Digits/ResNet20_clean --adapter configs/adapt/Digits/dda.yaml --top 3
    undegrade predict photos --system configs/ensemble/Digits/ResNet20_diffaud.yaml --runs runs/demo/models

Adapted images are made as they are needed and not stored. (`undegrade test` and `undegrade
ensemble` with --predict take stored ones, which many ranks can make before.)
"""

from __future__ import annotations

import undegrade.utils.quick_start  # noqa: F401  before the rest

# isort: split
import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from undegrade.evaluation.prediction_report import SHOWN, Labelled, most_doubtful, write_prediction_report
from undegrade.evaluation.predictions import (
    Answers,
    Prediction,
    best_classes,
    csv_file,
    print_summary,
    say_broken,
    stopped,
    write_csv,
)
from undegrade.pictures import image_files
from undegrade.system import Seen, System
from undegrade.system_flags import open_system, system_parser
from undegrade.utils.command_line import typed
from undegrade.utils.data.views import RAW
from undegrade.utils.errors import run_main
from undegrade.utils.interruption import Interrupted, Interruption, parse_duration
from undegrade.utils.progress import progress_bar
from undegrade.utils.ranges import Count

log = logging.getLogger("predict")

_TOP = 3


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; the status is 1 if images could not be read."""
    p = system_parser(__doc__)
    p.add_argument("images", nargs="+", help="a folder of images, or images")
    p.add_argument("--top", type=typed(Count), help=f"classes an image, best first ({_TOP})")
    p.add_argument("--out", help="the CSV, or a folder for it (predictions.csv)")
    p.add_argument("--report", help="also write one HTML file that shows the images with what is said of them")
    p.add_argument("--max_time", help="stop after so much time, such as 3h50m, with what is done, and the status 75")
    args, keys = p.parse(argv)
    if args.report is not None and Path(args.report).is_dir():
        raise ValueError(f"--report {args.report} is a folder: name a file in it, such as {Path(args.report) / 'report.html'}")
    interruption = Interruption(parse_duration(args.max_time) if args.max_time else None)
    paths = [Path(path) for path in args.images]
    total = sum(len(image_files(path, quietly=True)) for path in paths)
    with interruption.listening():
        system = open_system(args, keys)
        if args.top is not None and args.top > len(system.classes):
            raise ValueError(f"--top {args.top}: there are {len(system.classes)} classes, choose 1 to {len(system.classes)}")
        report = None if args.report is None else Path(args.report)
        return label(system, paths, total, csv_file(args.out), report, args.top or min(_TOP, len(system.classes)), interruption)


def label(
    system: System, paths: Sequence[Path], total: int, out: Path, report: Path | None, top: int, interruption: Interruption
) -> int:
    """Label images and write what is said of them; also where an error or the user ends it, what
    was done until then. Returns the status.

    Args:
        system: what labels them.
        paths: a folder, or files and folders.
        total: images that there are.
        out: the CSV.
        report: the page (None: none).
        top: classes an image, at most as many as there are.
        interruption: asked after each batch.

    Raises:
        Interrupted: says where the images so far are.
        ValueError: no image can be read.
    """
    for file in filter(None, (out, report)):
        file.parent.mkdir(parents=True, exist_ok=True)  # now, since an error at the end would cost all of the work
    done: list[Prediction] = []
    broken: list[str] = []
    names: list[str] = []
    shown = _Shown(system)
    stop: Interrupted | None = None
    try:
        with progress_bar(total=total, unit="img", desc="classifying") as bar:
            for seen in system.look(paths[0] if len(paths) == 1 else paths, broken):
                rows = range(len(names), len(names) + len(seen.batch))
                names += [one.name for one in seen.batch]
                logits = torch.stack([seen.logits[member] for member in system.rule.members])
                done += best_classes(Answers(logits, seen.scores, seen.restored), rows, names, system.classes, system.words, top)
                if report is not None:
                    shown.add(seen, rows, done)
                bar.update(len(done) + len(broken) - bar.n)
                if interruption.due and bar.n < total:
                    stop = stopped(interruption, len(done), total - len(broken), out, report)
                    break
    finally:
        if done:
            write_csv(out, done, top)
    if not done:
        raise stop or ValueError(f"none of the {total} images of {', '.join(map(str, paths))} can be read, e.g. {broken[0]}")
    say_broken(broken, total)
    if report is not None:
        members = {member: (system.views[member], shown.of(system.views[member])) for member in system.rule.members}
        path = Path(", ".join(path.name or str(path) for path in paths[:3]))
        write_prediction_report(
            report, Labelled(path, system.name, system.rule.rule, members, done, broken, total - len(done) - len(broken))
        )
    if stop is not None:
        raise stop
    print_summary(done)
    print(f"written: {out} ({len(done)} image{'s' * (len(done) != 1)})")
    if report is not None:
        print(f"report: {report}")
    return int(bool(broken))


class _Shown:
    """The images that the page will show: as the classifiers see them, those of which members
    disagree and the least confident ones.
    """

    def __init__(self, system: System) -> None:
        self._kept: dict[str, dict[int, Tensor]] = {view: {} for view in (RAW, *system.adapters)}

    def add(self, seen: Seen, rows: Sequence[int], done: Sequence[Prediction]) -> None:
        for view, kept in self._kept.items():
            kept.update(zip(rows, seen.images[view], strict=True))
        if len(self._kept[RAW]) > SHOWN * 3 // 2:
            wanted = {prediction.row for prediction in most_doubtful(done)}
            self._kept = {view: {row: kept[row] for row in kept.keys() & wanted} for view, kept in self._kept.items()}

    def of(self, view: str) -> _Kept:
        return _Kept(self._kept[view])


class _Kept:
    """Images of a view by their rows."""

    def __init__(self, kept: dict[int, Tensor]) -> None:
        self._kept = kept

    def images(self, rows: Sequence[int]) -> Tensor:
        """uint8 [B,3,S,S]."""
        return torch.stack([self._kept[row] for row in rows])


if __name__ == "__main__":
    run_main(main)
