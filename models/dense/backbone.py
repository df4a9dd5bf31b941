"""Backbones: classifiers without their head, as maps of several scales."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from undegrade.models.classification.classifier import build_classifier, check_timm_name
from undegrade.models.classification.resnet import ARCHS, BLOCKS_PER_STAGE, CifarResNet, build_small_network
from undegrade.models.classification.weights import foreign_format, without_wrappers
from undegrade.utils.checkpoint import load_checkpoint

log = logging.getLogger(__name__)

_MAPS = 4  # at most; ImageNet's networks may have a finer one, of their stem
_PROBE = 64  # side of the image by which the scales are found


class Backbone(nn.Module):
    """Maps of a network at its scales, finest first.

    Attributes:
        network: normalised images [B,3,H,W] -> list of maps; its parameters are called as those of
            the classifier of that name.
        channels: of each map.
        strides: side of the image over that of each map.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        with torch.no_grad():
            maps = self.network.eval()(torch.zeros(1, 3, _PROBE, _PROBE))
        self.network.train()
        maps = maps[-_MAPS:]
        self.channels = [int(found.shape[1]) for found in maps]
        self.strides = [_PROBE // int(found.shape[-1]) for found in maps]

    def forward(self, x: Tensor) -> list[Tensor]:
        return cast(list[Tensor], self.network(x))[-_MAPS:]


class _CifarStages(CifarResNet):
    """The maps after the three stages of ResNet20 and its like."""

    def __init__(self, blocks: int) -> None:
        super().__init__(blocks, num_classes=1)
        del self.fc

    def forward(self, x: Tensor) -> list[Tensor]:  # type: ignore[override]
        maps = [self.res1(F.relu(self.bn1(self.conv1(x))))]
        for stage in (self.res2, self.res3):
            maps.append(stage(maps[-1]))
        return maps


def build_backbone(arch: str, pretrained: bool = False) -> Backbone:
    """The maps of a network of `models.classification.resnet.ARCHS` or of timm: of ResNet20 with
    strides 1, 2, 4, of ImageNet's ResNets and HRNets 4, 8, 16, 32.

    Args:
        arch: its name.
        pretrained: with timm's weights.

    Raises:
        ValueError: an unknown name (names the closest), one without maps of several scales, or no
            weights of that name.
    """
    if arch in ARCHS and pretrained:
        raise ValueError(f"there are no pretrained weights for {arch}: train it, or start from a checkpoint (model.init_from)")
    if arch in BLOCKS_PER_STAGE:
        return Backbone(_CifarStages(BLOCKS_PER_STAGE[arch]))
    import timm  # here, since it takes seconds and the CIFAR networks do without
    from timm.models import FeatureListNet

    if arch in ARCHS:
        try:
            return Backbone(FeatureListNet(build_small_network(arch, 2)))
        except AssertionError as error:  # its stages are parts of a longer list
            raise ValueError(f"{arch} cannot be a backbone, its stages are not modules of their own: take a ResNet") from error
    check_timm_name(arch)
    # of HRNet the maps themselves, not those that its classifier makes of them
    further: dict[str, Any] = {"feature_location": ""} if "hrnet" in arch else {}
    try:
        network = timm.create_model(arch, pretrained=pretrained, features_only=True, **further)
    except (RuntimeError, AttributeError) as error:  # an unknown weights tag; a network without features_only
        raise ValueError(f"timm cannot build {arch!r} as a backbone with pretrained={pretrained}: {error}") from error
    return Backbone(network)


def initialise_backbone(backbone: Backbone, arch: str, path: Path) -> dict[str, list[float]]:
    """Load the weights of a classifier into the backbone of the same network; its head is left out.

    Args:
        backbone: built for `arch`.
        arch: its name.
        path: checkpoint of a classifier, of this project or of another program.

    Returns:
        `mean` and `std` where the checkpoint says them.

    Raises:
        FileNotFoundError, ValueError: missing; another network; a name that neither the backbone
            nor the head of that network has, one that is not there, or a tensor of another shape.
            The backbone is then unchanged.
    """
    found, description = load_checkpoint(path, kind="classifier")
    if description and description.get("arch") != arch:
        raise ValueError(f"checkpoint {path} holds a {description.get('arch')}, model.arch is {arch}: make them equal")
    state = without_wrappers(found)
    program = foreign_format(state)
    if program is not None:
        state = program.convert(state)
    own = backbone.network.state_dict()
    with torch.device("meta"):
        head = build_classifier(arch, 2, (0.5,) * 3, (0.5,) * 3).network.state_dict().keys() - own.keys()
    missing = [name for name in own if name not in state and not name.endswith("num_batches_tracked")]
    unexpected = [name for name in state if name not in own and name not in head]
    shapes = [f"{name} is {list(state[name].shape)}, not {list(own[name].shape)}" for name in own
              if name in state and own[name].shape != state[name].shape]  # fmt: skip
    for names, what in ((missing, "lacks"), (unexpected, "has beside them"), (shapes, "has tensors of another shape:")):
        if names:
            raise ValueError(
                f"checkpoint {path} does not hold the weights of {arch}: it {what} {', '.join(names[:3])}"
                f"{', ...' * (len(names) > 3)}; set model.arch to its network, or take a checkpoint of {arch}"
            )
    backbone.network.load_state_dict({name: state[name] for name in own if name in state}, strict=False)
    log.info("backbone from %s, %d tensors of its head left out", path, len(state) - len([n for n in own if n in state]))
    return {name: description[name] for name in ("mean", "std") if name in description}
