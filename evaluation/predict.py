"""Classes and confidences of images without labels: a system's members and rule on the files of a
folder, as a CSV.
"""

from __future__ import annotations

import collections
import csv
import dataclasses
import io
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from undegrade.evaluation.command_line import run_data
from undegrade.evaluation.config import EvaluationConfig, expand, fill_names, members_of
from undegrade.evaluation.ensemble import check_rule, cpu_batch, logits_of, mix
from undegrade.evaluation.evaluate import member_predictor, member_view
from undegrade.evaluation.predictors import Predictor
from undegrade.evaluation.rules import RULES, combine, mixing_weights
from undegrade.models.classification.inputs import INPUT_KEYS, checkpoint_inputs, described_inputs
from undegrade.utils.checkpoint import read_description
from undegrade.utils.choices import check_choice
from undegrade.utils.config import build
from undegrade.utils.data.cells import CLEAN, Cell
from undegrade.utils.data.pixels import to_unit
from undegrade.utils.data.sources.folders import plain_source
from undegrade.utils.data.sources.image_files import list_images
from undegrade.utils.data.sources.image_source import ImageSource
from undegrade.utils.data.sources.imagenet import read_classes
from undegrade.utils.data.sources.images import Resize
from undegrade.utils.data.sources.registry import SourceConfig
from undegrade.utils.data.views import RAW
from undegrade.utils.files import write_atomic
from undegrade.utils.interruption import Interrupted, Interruption
from undegrade.utils.paths import escaped, few, utf8
from undegrade.utils.runs import find_checkpoint

log = logging.getLogger(__name__)

PREDICTIONS = "predictions.csv"
_AS_THEY_ARE = Cell(CLEAN, 0)
_SHOWN = 20  # classes of the table, files of a warning


@dataclasses.dataclass(frozen=True)
class Prediction:
    """An image's file, relative to its folder, and its best classes with their shares of the scores
    in [0, 1], best first.
    """

    file: str
    classes: list[tuple[str, float]]


def predict(
    config: EvaluationConfig,
    path: Path,
    out: Path,
    device: torch.device,
    system: str | None = None,
    top: int = 1,
    interruption: Interruption | None = None,
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
        out: CSV with the columns file, class, confidence, class_2, confidence_2, ...
        device: of the members.
        system: its name (default: the last one of `config`).
        top: classes an image.
        interruption: asked after each batch.

    Raises:
        Interrupted: `out` has the images so far.
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
    files, sources = _open(path, list(views.values()), *_frame(config, checkpoints[first], config.members[first].arch))
    predictors, classes = _predictors(config, checkpoints, device)
    check_rule(chosen.rule, predictors, name)
    if not 1 <= top <= len(classes):
        raise ValueError(f"--top {top}: there are {len(classes)} classes, choose 1 to {len(classes)}")
    if len(config.systems) > 1:
        log.info("system %s: %s of %s", name, chosen.rule, ", ".join(names))
    out.parent.mkdir(parents=True, exist_ok=True)  # now, since an error at the end would cost all of the work
    done: list[Prediction] = []
    broken: list[str] = []
    try:
        for predictor in predictors.values():
            predictor.reset()
        for rows, images in _batches(sources, _batch_size(config, predictors, sources), broken):
            seen = {m: images[views[m]] for m in predictors}
            scores = _scores(chosen.rule, predictors, seen, names, chosen.double_softmax)
            done += _best(scores, [files[i] for i in rows], classes, top)
            if interruption is not None and interruption.due and len(done) + len(broken) < len(files):
                stop = Interrupted(f"{interruption.reason} after {len(done)} of {len(files)} images, which are in {out}")
                stop.go_on = "the same command begins anew"
                raise stop
    finally:
        if done:
            _write(out, done, top)
    if not done:
        raise ValueError(f"none of the {len(files)} images of --predict {path} can be read, e.g. {broken[0]}")
    if broken:
        log.warning("left out %d of %d images that cannot be read:\n  %s", len(broken), len(files), "\n  ".join(broken))
    return done, len(broken)


def _frame(config: EvaluationConfig, checkpoint: Path, arch: str | None) -> tuple[int, Resize | None]:
    """Side of the classifier's images, and the shorter side that they are cut from: from the
    configuration, or the checkpoint.
    """
    data = config.data
    inputs = checkpoint_inputs(checkpoint, arch)
    if inputs is None and data.image_size is None:
        inputs = described_inputs(_images_of_run(checkpoint))
    if inputs is not None:
        data = data.fitted(*inputs)
    size, resize = data.image_size or 0, data.resize
    if not 1 <= size <= (resize or size):
        raise ValueError(f"images of {size} px cannot be cut from a shorter side of {resize}: choose --data.resize above it")
    frame = None if resize is None else Resize(resize, data.interpolation or "bilinear")
    log.info("images: %d px, the centre of a shorter side of %d; %s", size, resize or size, INPUT_KEYS)
    return size, frame


def _images_of_run(checkpoint: Path) -> dict[str, Any]:
    """`ImageSource.description` of the images that the run of an earlier version's checkpoint was
    trained on, from its data set.
    """
    known = {f.name for f in dataclasses.fields(SourceConfig)} - {"limit", "subset"}
    data = {key: value for key, value in run_data(checkpoint).items() if key in known}
    reason = "and no config.yaml lies beside it"
    try:
        if data:
            return build(SourceConfig, {**data, "limit": 1}).open("train").description
    except (ValueError, FileNotFoundError) as error:
        reason = f"and the data set of its run cannot be asked ({error})"
    raise ValueError(
        f"checkpoint {checkpoint} does not say how large its images are, {reason}: give --data.image_size, and --data.resize if "
        "they are cut from larger ones (ImageNet: 224 and 256)"
    )


def _open(path: Path, views: Sequence[str], size: int, resize: Resize | None) -> tuple[list[str], dict[str, ImageSource]]:
    """The files, and the images of each view in their order, without those that some view lacks."""
    folder, paths = (path, list_images(path)) if path.is_dir() else (path.parent, [path])
    raw = plain_source(folder, size, RAW, paths, resize)
    mend = f"adapt them with image_sample.py --base_samples {path} --save_dir <folder>, and name that by --views.<view> <folder>"
    found = {}
    for view in dict.fromkeys(views):
        if view != RAW and not Path(view).is_dir():
            raise FileNotFoundError(f"the system looks at other versions of the images, and {view} does not exist: {mend}")
        found[view] = raw if view == RAW else plain_source(Path(view), size, view, resize=resize)
    common = set(raw.keys).intersection(*(source.keys for source in found.values()))
    rows = [i for i, key in enumerate(raw.keys) if key in common]
    lacking = [escaped(file) for file, key in zip(paths, raw.keys, strict=True) if key not in common]
    if lacking:
        where = " or ".join(view for view in found if view != RAW)
        if not rows:
            raise ValueError(f"none of the {len(raw)} images of --predict {path} is under {where}, e.g. {lacking[0]}: {mend}")
        log.warning("left out %d of %d images that are not under %s; %s:\n  %s", len(lacking), len(raw), where, mend, few(lacking))
    keys = [raw.keys[i] for i in rows]
    files = [utf8(paths[i].relative_to(folder).as_posix()) for i in rows]
    return files, {view: source.aligned(keys, view) for view, source in found.items()}


def _predictors(
    config: EvaluationConfig, checkpoints: dict[str, Path], device: torch.device
) -> tuple[dict[str, Predictor], Sequence[str]]:
    """The members, and the names of their classes: those of a checkpoint, else of `data.classes`,
    else numbers.
    """
    descriptions = {path: read_description(path) for path in checkpoints.values()}
    names, order = next(((d["classes"], f"as in {path}") for path, d in descriptions.items() if d.get("classes")), (None, None))
    if config.data.classes is not None:
        listed = read_classes(config.data.classes)
        if names is not None and list(names) != list(listed):
            raise ValueError(
                f"a checkpoint names its {len(names)} classes itself, data.classes {config.data.classes}: leave it out"
            )
        names, order = listed, f"by data.classes {config.data.classes}"
    foreign = [path for path, description in descriptions.items() if not description]
    if foreign and names is None:
        raise ValueError(
            f"checkpoint {foreign[0]} does not say what its classes are: give --data.classes imagenet-1k or a file with one a line "
            "(and its network: --arch, or `arch` of an ensemble's member)"
        )
    found = {m: member_predictor(config, m, path, names, device, order)[0] for m, path in checkpoints.items()}
    classes = names or [str(number) for number in range(next(iter(found.values())).num_classes)]
    for member, predictor in found.items():
        if predictor.num_classes != len(classes):
            raise ValueError(f"checkpoint {checkpoints[member]} has {predictor.num_classes} classes, not {len(classes)} as needed")
    return found, classes


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
    with tqdm(total=count, unit="img", desc="classifying", dynamic_ncols=True, mininterval=1.0) as bar:
        for start in range(0, count, batch_size):
            batch = list(range(start, min(start + batch_size, count)))
            read = {view: source.readable(batch) for view, source in sources.items()}
            broken += dict.fromkeys(entry.reason for _, _, bad in read.values() for entry in bad)
            rows = sorted(set(batch).intersection(*(good for good, _, _ in read.values())))
            if rows:
                yield rows, {view: images[[good.index(row) for row in rows]] for view, (good, images, _) in read.items()}
            bar.update(len(batch))


def _scores(
    rule: str, predictors: Mapping[str, Predictor], images: Mapping[str, Tensor], names: Sequence[str], double_softmax: bool
) -> Tensor:
    """Scores [B,K] of a rule over the members `names`; `images` uint8 [B,3,S,S] of each."""
    unit = {name: to_unit(pixels) for name, pixels in images.items()}
    by_name = {name: logits_of(name, predictor, unit[name]) for name, predictor in predictors.items()}
    logits = torch.stack([by_name[name] for name in names])
    if not RULES[rule].mixes_images:
        return combine(rule, logits, double_softmax)
    weights = mixing_weights(rule, logits, double_softmax)
    return logits_of(names[0], predictors[names[0]], mix(weights, *(unit[name] for name in names))).softmax(1)


def _best(scores: Tensor, files: Sequence[str], classes: Sequence[str], top: int) -> list[Prediction]:
    values, order = (scores / scores.sum(1, keepdim=True)).sort(dim=1, descending=True, stable=True)
    return [
        Prediction(file, [(classes[k], p) for k, p in zip(labels, shares, strict=True)])
        for file, labels, shares in zip(files, order[:, :top].tolist(), values[:, :top].tolist(), strict=True)
    ]


def _write(out: Path, predictions: Sequence[Prediction], top: int) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    further = [f"{name}_{place}" for place in range(2, top + 1) for name in ("class", "confidence")]
    writer.writerow(["file", "class", "confidence", *further])
    for row in predictions:
        writer.writerow([row.file, *(cell for name, share in row.classes for cell in (name, f"{share:.6f}"))])
    write_atomic(out, text.getvalue())


def print_predictions(
    config: EvaluationConfig,
    path: str,
    out: str | None,
    device: torch.device,
    top: int | None,
    system: str | None = None,
    interruption: Interruption | None = None,
) -> int:
    """Predict as the command line says; then images and mean confidence of each class on standard
    output, the most frequent first. Returns the status: 1 if images could not be read.

    Args:
        config, path, device, system, interruption: see `predict`.
        out: the CSV, or a folder for it (None: `predictions.csv` in the working folder).
        top: see `predict` (None: 1).
    """
    file = Path(out or PREDICTIONS)
    file = file / PREDICTIONS if file.is_dir() else file
    predictions, broken = predict(config, Path(path), file, device, system, 1 if top is None else top, interruption)
    shares = collections.defaultdict(list)
    for row in predictions:
        name, share = row.classes[0]
        shares[name].append(share)
    ordered = sorted(shares.items(), key=lambda item: -len(item[1]))
    width = max(len(name) for name in ["class", *shares])
    print(f"{'class'.ljust(width)}  images  mean confidence")
    for name, found in ordered[:_SHOWN]:
        print(f"{name.ljust(width)}  {len(found):6d}  {sum(found) / len(found):15.3f}")
    if len(ordered) > _SHOWN:
        print(f"... and {len(ordered) - _SHOWN} classes more")
    print(f"written: {file} ({len(predictions)} image{'s' * (len(predictions) != 1)})")
    return int(broken > 0)
