"""What labels images without labels: files, their frame, and members with their classes."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from undegrade.evaluation.command_line import run_data
from undegrade.evaluation.config import EvaluationConfig
from undegrade.evaluation.opening import member_predictor
from undegrade.evaluation.predictors import Predictor
from undegrade.models.classification.inputs import INPUT_KEYS, checkpoint_inputs, described_inputs
from undegrade.models.classification.weights import network_of, outputs_of, unnamed
from undegrade.utils.checkpoint import load_checkpoint, read_description
from undegrade.utils.config import build
from undegrade.utils.data.sources.class_names import timm_classes
from undegrade.utils.data.sources.folders import plain_source
from undegrade.utils.data.sources.image_files import list_images
from undegrade.utils.data.sources.image_source import ImageSource
from undegrade.utils.data.sources.imagenet import read_classes
from undegrade.utils.data.sources.images import Resize
from undegrade.utils.data.sources.registry import SourceConfig
from undegrade.utils.data.views import RAW
from undegrade.utils.paths import escaped, few, utf8

log = logging.getLogger(__name__)


def image_frame(config: EvaluationConfig, checkpoint: Path, arch: str | None) -> tuple[int, Resize | None]:
    """Side of the classifier's images, and the shorter side that they are cut from: from the
    configuration, or the checkpoint.
    """
    data = config.data
    inputs = checkpoint_inputs(checkpoint, arch)
    if inputs is None and data.image_size is None:
        if not read_description(checkpoint) and network_of(checkpoint, arch) is None and not run_data(checkpoint):
            raise unnamed(checkpoint)
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


def open_views(path: Path, views: Sequence[str], size: int, resize: Resize | None) -> tuple[list[str], dict[str, ImageSource]]:
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


def open_predictors(
    config: EvaluationConfig, checkpoints: dict[str, Path], device: torch.device
) -> tuple[dict[str, Predictor], dict[str, str], Sequence[str]]:
    """The members, their digests (`Member.digest`), and the names of their classes: those of a
    checkpoint, else of `data.classes`, of files of timm's networks those of ImageNet where their
    number says so, else numbers.
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
        names, order = _classes_of_timm(config, {member: path for member, path in checkpoints.items() if path in foreign})
    opened = {m: member_predictor(config, m, path, names, device, order) for m, path in checkpoints.items()}
    found = {member: predictor for member, (predictor, _) in opened.items()}
    classes = names or [str(number) for number in range(next(iter(found.values())).num_classes)]
    for member, predictor in found.items():
        if predictor.num_classes != len(classes):
            raise ValueError(f"checkpoint {checkpoints[member]} has {predictor.num_classes} classes, not {len(classes)} as needed")
    return found, {member: digest for member, (_, digest) in opened.items()}, classes


def _classes_of_timm(config: EvaluationConfig, foreign: Mapping[str, Path]) -> tuple[Sequence[str], str]:
    """(classes, what says so) of members whose files do not say them."""
    member, path = next(iter(foreign.items()))
    arch = network_of(path, config.members[member].arch)
    count = None if arch is None else outputs_of(arch, load_checkpoint(path)[0])
    names = None if count is None else timm_classes(count)
    if names is None:
        raise ValueError(
            f"checkpoint {path} does not say what its classes are: give --data.classes imagenet-1k or a file with one a line "
            "(and its network: --arch, or `arch` of an ensemble's member)"
        )
    log.info("checkpoint %s: its %d outputs are taken to be the classes of ImageNet (data.classes says otherwise)", path, count)
    return names, f"by their WordNet numbers in sorted order, as ImageNet's {count:,} are"
