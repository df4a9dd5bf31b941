"""Classes and confidences of images without labels: a system's members and rule on the files of a
folder, as a CSV and as a page.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from undegrade.evaluation.config import EvaluationConfig, SystemConfig, expand, fill_names, members_of
from undegrade.evaluation.ensemble import check_rule, cpu_batch, logits_of, mix
from undegrade.evaluation.fitted.apply import fitted_members, read_rules
from undegrade.evaluation.fitted.rule import FittedRule, first_other
from undegrade.evaluation.fitted.signals import pixel_signals
from undegrade.evaluation.opening import member_view
from undegrade.evaluation.predict_inputs import image_frame, open_predictors, open_views
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
from undegrade.evaluation.predictors import Predictor
from undegrade.evaluation.rules import RULES, combine, mixing_weights
from undegrade.utils.choices import check_choice
from undegrade.utils.data.cells import CLEAN, Cell
from undegrade.utils.data.pixels import to_unit
from undegrade.utils.data.sources.class_names import class_words
from undegrade.utils.data.sources.image_source import ImageSource
from undegrade.utils.interruption import Interrupted, Interruption
from undegrade.utils.progress import progress_bar
from undegrade.utils.runs import find_checkpoint

log = logging.getLogger(__name__)

_AS_THEY_ARE = Cell(CLEAN, 0)


def predict(
    config: EvaluationConfig,
    path: Path,
    out: Path,
    device: torch.device,
    system: str | None = None,
    top: int = 1,
    interruption: Interruption | None = None,
    report: Path | None = None,
) -> tuple[list[Prediction], int]:
    """Classify every image below a folder and write `out`: a row an image, in the sorted order of
    the files, which is also that in which a predictor that adapts itself sees them.

    Files that cannot be read, and those that another view lacks, are named in a warning and left
    out; the second value counts the former. Where an error or the user ends the call, `out` has
    what was done until then.

    Args:
        config: of its `data` only image_size, resize, interpolation and classes are used: the first
            three go before what the first member's checkpoint says (or timm, of its network), the
            last is for checkpoints that do not name their classes. A view other than `raw` is a
            folder with the file names of `path`, suffixes aside, as the adaptation of a plain
            folder writes it.
        path: a folder, or one image.
        out: CSV with the columns file, class, confidence, class_2, confidence_2, ..., and, of a
            system with a gate, restored (yes or no). Classes that are called by their numbers in
            WordNet are written in words, the numbers behind them (wnid, wnid_2, ...).
        device: of the members.
        system: its name (default: the last one of `config`).
        top: classes an image.
        interruption: asked after each batch.
        report: HTML file that shows the images with what is said of them (None: none).

    Raises:
        Interrupted: `out` and `report` have the images so far.
        ValueError, FileNotFoundError: no image there, none that can be read, a system that is
            unknown or told the corruption, `top` beyond the classes, a checkpoint that does not say
            what it takes, and what `find_checkpoint` and `load_classifier` raise.
    """
    if not path.exists():
        raise FileNotFoundError(f"--predict {path} does not exist: give a folder of images, or one image")
    config = expand(config)
    name = check_choice(system or list(config.systems)[-1], config.systems, "system")
    chosen = config.systems[name]
    names = members_of(chosen, _AS_THEY_ARE, config.members)
    views = {member: member_view(config, member) for member in names}
    if not names:
        raise ValueError(f"system {name!r} is told the corruption of an image, which nobody knows here: choose another one")
    checkpoints = {m: find_checkpoint(fill_names(config, config.members[m].checkpoint), config.runs) for m in views}
    first = next(iter(checkpoints))
    files, sources = open_views(path, list(views.values()), *image_frame(config, checkpoints[first], config.members[first].arch))
    predictors, digests, classes = open_predictors(config, checkpoints, device)
    check_rule(chosen.rule, predictors, name)
    rule = read_rules(dataclasses.replace(config, systems={name: chosen})).get(name)
    if rule is not None:
        folders = {member: Path(view) if Path(view).is_dir() else None for member, view in views.items()}
        fitted = fitted_members(config, chosen, digests, folders)
        rule.check(f"the rule of system {name!r}", fitted, classes, next(iter(sources.values())).frame)
    if not 1 <= top <= len(classes):
        raise ValueError(f"--top {top}: there are {len(classes)} classes, choose 1 to {len(classes)}")
    if len(config.systems) > 1:
        log.info("system %s: %s of %s", name, chosen.rule, ", ".join(names))
    for file in filter(None, (out, report)):
        file.parent.mkdir(parents=True, exist_ok=True)  # now, since an error at the end would cost all of the work
    words = class_words(classes)
    done: list[Prediction] = []
    broken: list[str] = []
    stop: Interrupted | None = None
    try:
        for predictor in predictors.values():
            predictor.reset()
        for rows, images in _batches(sources, _batch_size(config, predictors, sources), broken):
            seen = {m: images[views[m]] for m in predictors}
            logits = member_logits(predictors, seen)
            stacked = torch.stack([logits[member] for member in names])
            answers = Answers(stacked, *system_scores(chosen, predictors, seen, logits, names, rule))
            done += best_classes(answers, rows, files, classes, words, top)
            if interruption is not None and interruption.due and len(done) + len(broken) < len(files):
                stop = stopped(interruption, len(done), len(files) - len(broken), out, report)
                break
    finally:
        if done:
            write_csv(out, done, top)
    if not done:
        raise stop or ValueError(f"none of the {len(files)} images of --predict {path} can be read, e.g. {broken[0]}")
    say_broken(broken, len(files))
    if report is not None:
        from undegrade.evaluation.prediction_report import Labelled, write_prediction_report  # jinja2 and pictures take a while

        left = len(files) - len(done) - len(broken) if stop is not None else 0
        shown = {member: (config.members[member].view, sources[views[member]]) for member in names}
        write_prediction_report(report, Labelled(path, name, chosen.rule, shown, done, broken, left))
    if stop is not None:
        raise stop
    return done, len(broken)


def _batch_size(config: EvaluationConfig, predictors: Mapping[str, Predictor], sources: Mapping[str, ImageSource]) -> int:
    """As asked for, but fewer large images on a CPU where all members are frozen."""
    if any(predictor.stateful or predictor.device.type != "cpu" for predictor in predictors.values()):
        return config.batch_size
    return min(config.batch_size, cpu_batch(next(iter(sources.values())).image_size))


def _batches(
    sources: Mapping[str, ImageSource], batch_size: int, broken: list[str]
) -> Iterator[tuple[list[int], dict[str, Tensor]]]:
    """Rows that every view can read, and their images uint8 [B,3,S,S] in each view; the others are
    added to `broken`.
    """
    count = len(next(iter(sources.values())))
    with progress_bar(total=count, unit="img", desc="classifying") as bar:
        for start in range(0, count, batch_size):
            batch = list(range(start, min(start + batch_size, count)))
            read = {view: source.readable(batch) for view, source in sources.items()}
            broken += dict.fromkeys(entry.reason for _, _, bad in read.values() for entry in bad)
            rows = sorted(set(batch).intersection(*(good for good, _, _ in read.values())))
            if rows:
                yield rows, {view: images[[good.index(row) for row in rows]] for view, (good, images, _) in read.items()}
            bar.update(len(batch))


def member_logits(predictors: Mapping[str, Predictor], images: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Float32 [B,K] of each member on its images, uint8 [B,3,S,S]."""
    return {name: logits_of(name, predictor, to_unit(images[name])) for name, predictor in predictors.items()}


def system_scores(
    system: SystemConfig,
    predictors: Mapping[str, Predictor],
    images: Mapping[str, Tensor],
    logits: Mapping[str, Tensor],
    names: Sequence[str],
    fitted: FittedRule | None,
) -> tuple[Tensor, Tensor | None]:
    """(scores [B,K] of a system with the members `names`; bool [B], which a gate restored).

    Args:
        system: its rule.
        predictors: of each member.
        images: uint8 [B,3,S,S] of each member.
        logits: of `member_logits`.
        names: members in the rule's order.
        fitted: the system's rule, where it has numbers.
    """
    stacked = torch.stack([logits[name] for name in names])
    if fitted is not None:
        image, adapted = to_unit(images[names[0]]), to_unit(images[names[first_other(fitted.members)]])
        restored = fitted.restored(stacked, pixel_signals(fitted.signals, image, adapted, predictors[names[0]]))
        return fitted.scores(stacked, restored), restored
    if not RULES[system.rule].mixes_images:
        return combine(system.rule, stacked, system.double_softmax), None
    weights = mixing_weights(system.rule, stacked, system.double_softmax)
    mixed = mix(weights, *(to_unit(images[name]) for name in names))
    return logits_of(names[0], predictors[names[0]], mixed).softmax(1), None


def print_predictions(
    config: EvaluationConfig,
    path: str,
    out: str | None,
    device: torch.device,
    top: int | None,
    system: str | None = None,
    interruption: Interruption | None = None,
    report: str | None = None,
) -> int:
    """Predict as the command line says; then images and mean confidence of each class on standard
    output, the most frequent first. Returns the status: 1 if images could not be read.

    Args:
        config, path, device, system, interruption, report: see `predict`.
        out: the CSV, or a folder for it (None: `predictions.csv` in the working folder).
        top: see `predict` (None: 1).
    """
    file = csv_file(out)
    asked = system, 1 if top is None else top, interruption, None if report is None else Path(report)
    predictions, broken = predict(config, Path(path), file, device, *asked)
    print_summary(predictions)
    print(f"written: {file} ({len(predictions)} image{'s' * (len(predictions) != 1)})")
    if report is not None:
        print(f"report: {report}")
    return int(broken > 0)
