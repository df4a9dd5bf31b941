"""Systems from what there is: `load` a checkpoint or an ensemble YAML, `wrap` a network."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from undegrade.evaluation.config import EvaluationConfig, SystemConfig, expand, fill_names, members_of
from undegrade.evaluation.fitted.apply import fitted_members, read_rules
from undegrade.evaluation.fitted.rule import FittedRule
from undegrade.evaluation.opening import member_view
from undegrade.evaluation.predict_inputs import image_frame, open_predictors
from undegrade.evaluation.predictors import Frozen
from undegrade.models.classification.classifier import Classifier, check_timm_name, published_normalisation
from undegrade.models.classification.inputs import described_inputs
from undegrade.models.classification.loading import load_classifier
from undegrade.models.classification.resnet import ARCHS
from undegrade.origin import Origin
from undegrade.saving import is_system, open_saved
from undegrade.system import System
from undegrade.utils.choices import check_choice
from undegrade.utils.config import Tree, build, merge, read_yaml
from undegrade.utils.data.cells import CLEAN, Cell
from undegrade.utils.data.sources.class_names import timm_classes
from undegrade.utils.data.sources.image_source import frame_words
from undegrade.utils.data.sources.imagenet import read_classes
from undegrade.utils.data.sources.images import Resize
from undegrade.utils.data.views import RAW
from undegrade.utils.device import choose_device
from undegrade.utils.hub import hub_folder, hub_id
from undegrade.utils.runs import find_checkpoint
from undegrade.utils.timm_folders import timm_frame
from undegrade.view_adapter import ViewAdapter, open_view_adapter

_AS_THEY_ARE = Cell(CLEAN, 0)
_ADAPTED = "adapted"
_YAML = (".yaml", ".yml")


def load(
    source: str | Path,
    *,
    system: str | None = None,
    adapter: str | Path | Mapping[str, str] | None = None,
    runs: str | Path = "runs",
    arch: str | None = None,
    classes: str | None = None,
    device: str | None = None,
    batch_size: int = 64,
    overrides: Mapping[str, Any] | None = None,
) -> System:
    """A system that is ready to predict.

    Args:
        source: a checkpoint (a file, a run folder, the name of a run below `runs`), a folder that
            timm or `save_pretrained` wrote, an id of the Hugging Face Hub
            ("timm/resnet18.a1_in1k", "hf-hub:org/name@revision"), a name of timm
            ("resnet18.a1_in1k"), or the YAML of an ensemble
            ("configs/ensemble/Digits/ResNet20_diffaud.yaml"). What is of the Hub is downloaded into
            its cache, unless it is there. A saved system says itself all that the further
            arguments say, but the device.
        system: of an ensemble, its name (default: the last one of the YAML).
        adapter: what makes the adapted images. Of a checkpoint: a name of `list_adapters()` with
            its usual options, or an adaptation YAML ("configs/adapt/Digits/dda.yaml"); the answer
            is then the sum of those on the image as it is and on the adapted one (DDA, CVPR 2023).
            Of an ensemble the same, or one by name of each view; default: the YAML of configs/adapt
            that writes the folder which the view names.
        runs: root of the runs, for checkpoints and models by name.
        arch: of a file of another program, which does not say it: a timm name (default: the one
            with which the file's name begins).
        classes: of such a file, `imagenet-1k` or a file with one class a line (default: of timm's
            networks those of ImageNet, where their number says so).
        device: "cpu", "cuda", "cuda:N" (default: a GPU if there is one).
        batch_size: images that are classified at a time, at least 1; that many a step of predictors
            that adapt themselves.
        overrides: further keys over an ensemble's YAML, as a tree ({"data": {"image_size": 64}}).

    Raises:
        FileNotFoundError: a checkpoint, YAML or fitted rule that is not there; says where it looked
            and which command makes it.
        ValueError: an unknown system, adapter, key; a view without adapter; a rule that was fitted
            for other members or another adapter; a checkpoint that does not say what it takes.
    """
    if (saved := _saved_system(source, runs)) is not None:
        asked = {"system": system, "adapter": adapter, "arch": arch, "classes": classes, "overrides": overrides}
        for name in [name for name, value in asked.items() if value]:
            raise ValueError(f"{source} is a saved system, which says itself what it consists of: leave {name}= out")
        return open_saved(saved, device)
    config, name = chosen_system(source, system, adapter is not None, runs, arch, classes, batch_size, overrides)
    chosen, on = config.systems[name], choose_device(device)
    names = members_of(chosen, _AS_THEY_ARE, config.members)
    if not names:
        raise ValueError(f"system {name!r} is told the corruption of an image, which nobody knows here: choose another one")
    views = {member: config.members[member].view for member in names}
    adapters = {
        view: open_view_adapter(adapter_settings(config, view, member_view(config, member), adapter), on)
        for member, view in views.items()
        if view != RAW
    }
    checkpoints = {m: find_checkpoint(fill_names(config, config.members[m].checkpoint), config.runs) for m in views}
    first = next(iter(checkpoints))
    size, resize = image_frame(config, checkpoints[first], config.members[first].arch)
    members, digests, found = open_predictors(config, checkpoints, on)
    rule = read_rules(dataclasses.replace(config, systems={name: chosen})).get(name)
    if rule is not None:
        _check_rule(rule, name, config, chosen, digests, adapters, found, frame_words(size, resize))
    rules = dataclasses.replace(chosen, members=names)
    origins = {member: _origin(config, member, path, digests[member], found) for member, path in checkpoints.items()}
    return System(name, found, rules, members, views, adapters, size, resize, rule, config.batch_size, origins)


def _saved_system(source: str | Path, runs: str | Path) -> Path | None:
    """The folder of a saved system, of the Hub's cache for an id of the Hub; None: it is something
    else, which `find_checkpoint` finds or misses.
    """
    path, text = Path(source), str(source)
    if path.exists() or path.suffix in _YAML or (Path(runs) / path).exists():
        return path if is_system(path) else None
    if "/" not in text or (of := hub_id(text)) is None:
        return None
    with contextlib.suppress(FileNotFoundError, ValueError):
        return folder if is_system(folder := hub_folder(of)) else None
    return None


def _origin(config: EvaluationConfig, member: str, path: Path, digest: str, classes: Sequence[str]) -> Origin:
    """Where a member comes from."""
    given = config.members[member]

    def opened() -> Classifier:
        found = load_classifier(path, config.runs, classes, given.arch, given.mean, given.std)
        return found.to(memory_format=torch.channels_last)  # as `evaluation.opening.member_predictor` has it

    keys = ("dataset", "root", "image_size", "resize", "interpolation", "classes")
    return Origin(opened, given.predictor, {key: getattr(config.data, key) for key in keys}, digest)


def chosen_system(
    source: str | Path, system: str | None, adapted: bool, runs: str | Path, arch: str | None, classes: str | None, batch_size: int,
    overrides: Mapping[str, Any] | None,
) -> tuple[EvaluationConfig, str]:  # fmt: skip
    """(evaluation, name of its system) that the arguments of `load` mean; `adapted`: whether an
    adapter is given. Nothing is opened.
    """
    given: Tree = {"runs": str(runs), "cache": False, "batch_size": batch_size, **({"arch": arch} if arch else {})}
    given = merge(given, {"data": {"classes": classes}} if classes else {})
    if Path(source).suffix in _YAML:
        tree = merge(merge(read_yaml(source), given), dict(overrides or {}))
    else:
        tree = merge(merge(_of_checkpoint(source, str(runs), arch, adapted), given), dict(overrides or {}))
        system = system or next(iter(tree["systems"]))
    config = expand(build(EvaluationConfig, tree))
    name = check_choice(system or list(config.systems)[-1], config.systems, "system")
    return config, name


def _of_checkpoint(source: str | Path, runs: str, arch: str | None, adapted: bool) -> Tree:
    """An evaluation of one checkpoint, or of its answers on images as they are and adapted ones."""
    member = {"checkpoint": str(find_checkpoint(str(source), str(runs))), "arch": arch}
    if not adapted:
        return {"members": {"model": member}, "systems": {str(source): {"members": ["model"]}}}
    return {
        "members": {"model": member, "model_adapted": {**member, "view": _ADAPTED}},
        "systems": {f"{source} with adapted images": {"members": ["model", "model_adapted"], "rule": "sum"}},
    }


def adapter_settings(config: EvaluationConfig, view: str, folder: str, given: str | Path | Mapping[str, str] | None) -> Any:
    """Settings (`image_adapt.config.adapt_schema`) of what makes the images of a view, whose stored
    ones lie in `folder`; `given` as `load` takes it.
    """
    known = given.get(view) if isinstance(given, Mapping) else given
    parts = Path(folder).parts
    if known is None and len(parts) > 2 and parts[0] == "adapted":
        known = f"configs/adapt/{Path(config.data.dataset).name}/{parts[1]}.yaml"
    if known is None:
        raise ValueError(
            f"the system looks at other versions of the images (view {view!r}, {folder}), and what makes them is not known: give "
            "adapter=..., a name of list_adapters() or an adaptation YAML such as configs/adapt/Digits/dda.yaml"
        )
    return named_settings(known, folder, config.runs)


def named_settings(known: str | Path, folder: str, runs: str) -> Any:
    """Settings (`image_adapt.config.adapt_schema`) of an adapter by its name or adaptation YAML, as
    if it wrote into `folder`.
    """
    from undegrade.image_adapt.adapters import ADAPTERS  # here, since diffusion models take seconds to import
    from undegrade.image_adapt.config import adapt_schema

    if Path(known).suffix in _YAML:
        tree = read_yaml(known)
    else:
        row = ADAPTERS.get_row(str(known))
        if row.needs_model:
            raise ValueError(f"the adapter {known} has a model: give a YAML that names it, such as configs/adapt/Digits/dda.yaml")
        tree = {"adapter": str(known)}
    return build(adapt_schema(), merge(tree, {"save_dir": folder, "runs": runs}))


def _check_rule(
    rule: FittedRule, name: str, config: EvaluationConfig, chosen: SystemConfig, digests: Mapping[str, str],
    adapters: Mapping[str, ViewAdapter], classes: Sequence[str], frame: str,
) -> None:  # fmt: skip
    """Raise ValueError where a rule was fitted for something else."""
    stored = fitted_members(config, chosen, digests, dict.fromkeys(chosen.members))
    views = {member: config.members[member].view for member in chosen.members}
    here = {
        member: fitted if views[member] == RAW else dataclasses.replace(fitted, view=dict(adapters[views[member]].facts))
        for member, fitted in stored.items()
    }
    rule.check(f"the rule of system {name!r}", here, classes, frame)


def wrap(
    model: nn.Module | str,
    *,
    classes: Sequence[str] | str | None = None,
    image_size: int | None = None,
    resize: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    pretrained: bool = True,
    device: str | None = None,
    batch_size: int = 64,
) -> System:
    """A system of a network of one's own, or of a network of timm.

    Args:
        model: module, images [B,3,H,W] -> logits [B,K], which is put into eval mode and moved to
            the device; or a timm name ("resnet50.a1_in1k").
        classes: names of the K classes in their order, or `imagenet-1k`, or a file with one a line
            (default: those of ImageNet for 1,000 classes of a network of timm, else "0", "1", ...).
        image_size: side of the images in pixels (default: as timm's weights want it, else 224).
            What timm made itself (`timm.create_model`) says that as its name does.
        resize: side to which the shorter side of an image is brought before the centre is cut
            (default: as timm's weights want it, else `image_size`).
        mean: of each of three channels, on the scale of [0,1], that the network's images are
            normalised with (default: as timm's weights want it, else 0).
        std: the deviations for that (default: as timm's weights want it, else 1: the network takes
            images in [0,1]).
        pretrained: of a timm name, whether its weights are loaded (downloaded once).
        device: "cpu", "cuda", "cuda:N" (default: a GPU if there is one).
        batch_size: images that are classified at a time, at least 1.

    Raises:
        ValueError: an unknown timm name (with the closest), logits of another shape, as many names
            as there are no classes, unfit mean or std.
    """
    network, arch = (_timm(model, pretrained), model) if isinstance(model, str) else (model, type(model).__name__)
    published = getattr(network, "pretrained_cfg", None)  # of timm
    named = isinstance(published, Mapping)
    inputs = described_inputs(timm_frame(arch, published)) if isinstance(published, Mapping) else None
    size = image_size or (inputs.image_size if inputs else 224)
    if resize is None and inputs is not None and image_size in (None, inputs.image_size):
        frame = None if inputs.resize is None else Resize(inputs.resize, inputs.interpolation or "bilinear")
    else:
        frame = None if resize is None else Resize(resize)
    if frame is not None and frame.side < size:
        raise ValueError(f"images of {size} px cannot be cut from a shorter side of {frame.side}: choose resize at least {size}")
    on = choose_device(device)
    count = _outputs(network.to(on).eval(), size, on)
    names = _names(classes, count, named)
    classifier = Classifier(network, arch, count, (0.0,) * 3, (1.0,) * 3).to(on)
    classifier.set_normalisation(*(published_normalisation(classifier) if named else (None, None)))
    classifier.set_normalisation(mean, std)
    member = Frozen(classifier.eval())
    return System(arch, names, SystemConfig(["model"]), {"model": member}, {"model": RAW}, {}, size, frame, None, batch_size)


def _timm(arch: str, pretrained: bool) -> nn.Module:
    if arch in ARCHS:
        raise ValueError(f"{arch} is a network of this project, without weights of its own: load a checkpoint by load(...)")
    check_timm_name(arch)
    import timm

    return timm.create_model(arch, pretrained=pretrained)


def _outputs(network: nn.Module, size: int, device: torch.device) -> int:
    """K of a network's logits [B,K]."""
    with torch.inference_mode():
        logits = network(torch.zeros(1, 3, size, size, device=device))
    if not isinstance(logits, torch.Tensor) or logits.ndim != 2:
        shape = list(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
        raise ValueError(f"the network gives {shape} for images [1,3,{size},{size}]: a classifier's logits [1,K] are needed")
    return logits.shape[1]


def _names(classes: Sequence[str] | str | None, count: int, named: bool) -> list[str]:
    if classes is None:
        return (timm_classes(count) if named else None) or [str(number) for number in range(count)]
    names = list(read_classes(classes) if isinstance(classes, str) else classes)
    if len(names) != count:
        raise ValueError(f"{len(names)} names of classes for the {count} classes of the network: give one for each")
    return names
