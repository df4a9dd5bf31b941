"""Networks from checkpoints on disk, with the checks that a user needs: kind, classes, architecture."""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from models import mmcls
from models.classifiers import (
    Classifier,
    build_classifier,
    from_description,
    load_network_state,
    published_normalisation,
    without_wrappers,
)
from models.diffusion import FACTS, Denoiser, facts_of
from models.diffusion import from_description as denoiser_from_description
from models.folders import CONFIG, network_folder, read_json, read_network, weights_file, without_private
from models.guided_diffusion import denoiser_from_openai
from models.model_flags import WITHOUT_EFFECT, ModelFlags, check_model_flags, parse_flags
from utils.checkpoint import file_digest, load_checkpoint
from utils.files import replacing
from utils.runs import resolve_checkpoint

log = logging.getLogger(__name__)

_FACTS_FILE = "denoiser.json"  # in a folder of diffusers


def _check_classes(path: Path, found: Sequence[str], expected: Sequence[str]) -> None:
    if found and list(found) != list(expected):
        pairs = itertools.zip_longest(map(repr, found), map(repr, expected), fillvalue="none")
        first = next(f"class {i} is {a} there, {b} here" for i, (a, b) in enumerate(pairs) if a != b)
        mend = ": choose a checkpoint of this data set"
        if all(len(name) == 4 and name.isdecimal() for name in expected):
            mend += ", or name the classes of its numbered folders in classes.txt (`0000 <class>` a line)"
        counts = f"{len(found)} classes, the data set has {len(expected)} ({first})"
        raise ValueError(f"checkpoint {path} was trained on {counts}{mend}")


def load_classifier(
    reference: str | Path,
    save_dir: str | Path = "runs",
    classes: Sequence[str] | None = None,
    arch: str | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Classifier:
    """A classifier in eval mode.

    Args:
        reference: checkpoint file, run folder, or run name under `save_dir` (latest finished run).
        save_dir: root of the runs.
        classes: class names that the data set has; a checkpoint with others is refused.
        arch: name of the network (`models.classifiers.build_classifier`), for a file of another program, which does not say it:
            a state dict of timm, torchvision, mm-classification or FusionDistill; `classes` is needed then.
        mean, std: input normalisation per channel, in place of the one that the checkpoint has. Files of mm-classification have
            that program's, other files of timm networks have timm's.

    Raises:
        FileNotFoundError, ValueError: missing, foreign without `arch`, of another network than `arch`, of other classes, or of
            unknown normalisation.
    """
    path = resolve_checkpoint(reference, save_dir)
    state, description = load_checkpoint(path, kind="classifier")
    if not description and (arch is None or classes is None):
        raise ValueError(
            f"checkpoint {path} does not say what network it holds: name it (test.py --arch, or `arch` of an ensemble's member), "
            "or start a run from it (model.arch and model.init_from in a training config), the run's own checkpoint will say it"
        )
    if description:
        _check_arch(path, description, arch, "arch")
        if classes is not None:
            _check_classes(path, description.get("classes", []), classes)
        classifier = from_description(description, state)
    else:
        assert arch is not None and classes is not None
        classifier = build_classifier(arch, len(classes), (0.0,) * 3, (1.0,) * 3)
        _load_state(path, classifier, state)
        found = _normalisation(classifier, state, description)
        if None in found and (mean is None or std is None):
            raise ValueError(f"checkpoint {path} does not say with which mean and std its {arch} was trained: give both")
        classifier.set_normalisation(*found)
    classifier.set_normalisation(mean, std)
    log.info("classifier %s from %s", classifier.arch, path)
    return classifier.eval()


def initialise_classifier(classifier: Classifier, reference: str | Path, save_dir: str | Path, classes: Sequence[str]) -> None:
    """Load the weights that `reference` names into `classifier`, and the normalisation that belongs to them.

    A file without description is matched by its tensor names (timm's, mm-classification's, or those of our own networks); where
    nothing says its normalisation, that of `classifier` stays.

    Raises:
        FileNotFoundError, ValueError: missing, another architecture, or other classes.
    """
    path = resolve_checkpoint(reference, save_dir)
    state, description = load_checkpoint(path, kind="classifier")
    _check_arch(path, description, classifier.arch, "model.arch")
    _check_classes(path, description.get("classes", []), classes)
    _load_state(path, classifier, state)
    classifier.set_normalisation(*_normalisation(classifier, state, description))
    log.info("weights from %s", path)


def _check_arch(path: Path, description: Mapping[str, Any], arch: str | None, what: str) -> None:
    if description and arch is not None and description["arch"] != arch:
        raise ValueError(f"checkpoint {path} holds a {description['arch']}, {what} is {arch}: make them equal")


def _load_state(path: Path, classifier: Classifier, state: Mapping[str, Tensor]) -> None:
    try:
        load_network_state(classifier, state)
    except ValueError as error:
        raise ValueError(f"checkpoint {path}: {error}") from error


def _normalisation(
    classifier: Classifier, state: Mapping[str, Tensor], description: Mapping[str, Any]
) -> tuple[Sequence[float] | None, Sequence[float] | None]:
    """(mean, std) that belong to weights: their description's, mm-classification's, or timm's; None where nothing says."""
    if description:
        return description["mean"], description["std"]
    names = without_wrappers(state)
    return mmcls.normalisation(names) if mmcls.is_mmcls(names) else published_normalisation(classifier)


def load_denoiser(reference: str | Path, save_dir: str | Path = "runs") -> Denoiser:
    """A frozen diffusion model in eval mode.

    Raises:
        FileNotFoundError, ValueError: missing, of another kind, or without description.
    """
    path = resolve_checkpoint(reference, save_dir)
    state, description = load_checkpoint(path, kind="diffusion")
    if not description:
        raise ValueError(
            f"checkpoint {path} does not say what diffusion model it holds: train one with train.py -c configs/diffusion/..., "
            "or convert it with image_adapt/scripts/convert_checkpoint.py if it is a checkpoint of guided-diffusion"
        )
    log.info("diffusion model from %s", path)
    return denoiser_from_description(description, state).eval().requires_grad_(False)


def initialise_denoiser(denoiser: Denoiser, path: Path) -> None:
    """Load the weights of the checkpoint `path` into `denoiser`.

    Where the checkpoint has no classes and `denoiser` has, its class embedding stays as it was initialised, but that the null label
    becomes 0: without a class it gives what the checkpoint's network gives.

    Raises:
        FileNotFoundError, ValueError: missing, no diffusion model, or one of other widths, schedule or classes.
    """
    state, description = load_checkpoint(path, kind="diffusion")
    found, own = {name: description.get(name) for name in FACTS}, {name: getattr(denoiser, name) for name in FACTS}
    if found != own:
        differing = ", ".join(f"{name} {found[name]} there, {own[name]} here" for name in FACTS if found[name] != own[name])
        raise ValueError(f"checkpoint {path} is of another diffusion model ({differing}): make the model section agree with it")
    embedding = "class_embedding.weight"
    if denoiser.num_classes is not None and embedding not in state:
        rows = denoiser.unet.state_dict()[embedding].clone()
        rows[denoiser.num_classes :] = 0
        state = state | {embedding: rows}
    try:
        denoiser.unet.load_state_dict(state)
    except RuntimeError as error:
        text = " ".join(str(error).split())
        raise ValueError(f"checkpoint {path}: its weights do not fit the model section: {text[:400]}") from error
    log.info("weights from %s", path)


def open_denoiser(path: str | Path, flags: Mapping[str, str]) -> Denoiser:
    """A frozen diffusion model in eval mode from a file or folder of any format, float32.

    Args:
        path: our own `.safetensors`; a folder of diffusers (`UNet2DModel.save_pretrained`); else a state dict of guided-diffusion
            or improved-diffusion, read as tensors alone and from the disk as they are needed.
        flags: texts by names of `MODEL_FLAGS`. They describe a state dict; whatever a file says itself they must agree with.

    Raises:
        FileNotFoundError, ValueError: missing, damaged, holds Python objects, or does not fit the flags; names the path.
    """
    path = Path(path)
    given = parse_flags(flags)
    if path.is_dir():
        denoiser = _from_folder(path, given)
        check_model_flags(denoiser, flags)
    elif path.suffix == ".safetensors":
        denoiser = load_denoiser(path)
        check_model_flags(denoiser, flags)
    else:
        state, _ = load_checkpoint(path, kind="diffusion")
        try:
            denoiser = denoiser_from_openai(state, ModelFlags(**given))
        except ValueError as error:
            raise ValueError(f"checkpoint {path}: {error}") from error
        log.info("diffusion model from %s, converted", path)
    if given.get("use_checkpoint"):
        denoiser.unet.enable_gradient_checkpointing()  # type: ignore[operator]
    return denoiser.eval().requires_grad_(False)


def diffusers_folder(reference: str | Path) -> Path | None:
    """The folder of the network if `reference` is one of diffusers (of a network or of a whole pipeline), else None."""
    return network_folder(reference, "unet")


def _from_folder(folder: Path, given: Mapping[str, Any]) -> Denoiser:
    config, state = read_network(folder, ["UNet2DModel"])
    if (folder / _FACTS_FILE).is_file():
        facts = read_json(folder / _FACTS_FILE)
    elif "noise_schedule" in given:
        facts = {name: given.get(name, getattr(ModelFlags, name)) for name in FACTS}
        facts["learn_sigma"] = config["out_channels"] == 2 * config["in_channels"]
    else:
        raise ValueError(
            f"folder {folder} does not say how its network was trained: give --noise_schedule (linear or cosine), "
            "and --diffusion_steps unless it is 1000"
        )
    try:
        denoiser = denoiser_from_description({"kind": "diffusion", "unet": without_private(config), **facts}, state)
    except ValueError as error:
        raise ValueError(f"folder {folder}: {error}") from error
    log.info("diffusion model from %s", folder)
    return denoiser


def save_folder(denoiser: Denoiser, folder: str | Path) -> None:
    """Write a folder that `open_denoiser` and diffusers read: the network, and beside it how it was trained.

    Raises:
        ValueError: the folder exists.
    """
    folder = Path(folder)
    if folder.exists():
        raise ValueError(f"{folder} exists already: choose another folder, or remove it")
    with replacing(folder) as temporary:
        denoiser.unet.save_pretrained(temporary)  # type: ignore[operator]
        (temporary / _FACTS_FILE).write_text(json.dumps(facts_of(denoiser), indent=1) + "\n", encoding="utf-8")


def denoiser_digest(path: str | Path, flags: Mapping[str, str]) -> str:
    """16 hexadecimal digits that name the network of `open_denoiser(path, flags)`, for manifests."""
    path = Path(path)
    if path.is_file() and path.suffix == ".safetensors":
        return file_digest(path)
    files = [path / CONFIG, weights_file(path), path / _FACTS_FILE] if path.is_dir() else [path]
    parts: list[object] = [file_digest(file) for file in files if file.is_file()]
    if not (path / _FACTS_FILE).is_file():  # the flags then say a part of what the network is
        said = {name: value for name, value in vars(ModelFlags(**parse_flags(flags))).items() if name not in WITHOUT_EFFECT}
        parts.append(said if path.is_file() else {name: said[name] for name in FACTS})
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]
