"""What a file of weights that says nothing itself may be: a network of timm by the file's name,
with ImageNet's classes. Each guess is checked by the weights, and said.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

import torch
from torch import Tensor

from undegrade.models.classification.classifier import final_layers
from undegrade.models.classification.weights import foreign_format, without_wrappers
from undegrade.utils.checkpoint import load_checkpoint, read_description
from undegrade.utils.data.sources.imagenet import IMAGENET_1K

log = logging.getLogger(__name__)

_MEND = "name it: arch, a timm name such as resnet50.a1_in1k (on the command line --arch)"


def named_parts(path: Path, arch: str | None, classes: str | None) -> tuple[str | None, str | None]:
    """(arch, class list) of a checkpoint, of which None is filled in for a file that does not say
    it: the network of timm that the file is named after, if the weights are exactly its; and
    `imagenet-1k`, if the network has 1,000 outputs and so have timm's weights of its name. A line
    of the log says what was taken.

    Args:
        path: the checkpoint.
        arch: its network, where the user names it.
        classes: its class list, where the user names it.

    Raises:
        ValueError: no network of timm has the file's name, or the weights are not those of the one
            that has; says how to name it.
    """
    if read_description(path):
        return arch, classes
    import timm  # here, since it takes seconds
    from timm.data import infer_imagenet_subset

    state = without_wrappers(load_checkpoint(path)[0])
    if arch is None:
        names = list(_names(path))
        arch = next((name for name in names if _outputs(name, state) is not None), None)
        if arch is None:
            what = f"its weights are not those of timm's {names[0]}" if names else "no network of timm is called so"
            raise ValueError(f"checkpoint {path} does not say what network it holds, and {what}: {_MEND}")
        log.info("%s: taken for timm's %s, by its name; its weights fit", path, arch)
    if classes is None and foreign_format(state) is None and timm.is_model(arch):
        published = timm.get_pretrained_cfg(arch)
        count = None if published is None else published.num_classes
        if infer_imagenet_subset({"num_classes": count}) == IMAGENET_1K and _outputs(arch, state) == count:
            classes = IMAGENET_1K
            log.info("%s: its 1,000 classes are taken to be ImageNet's (%s), as those of timm's weights", path, IMAGENET_1K)
    return arch, classes


def _names(path: Path) -> Iterator[str]:
    """Names of timm that a file may have: its own, that of the published file of this name, its own
    without the digest behind it (`resnet18-5c106cde.pth`).
    """
    import timm

    if timm.models.is_model_pretrained(path.stem) or ("." not in path.stem and timm.is_model(path.stem)):
        yield path.stem
    for name in timm.list_pretrained():
        url = getattr(timm.get_pretrained_cfg(name), "url", None)
        if url and PurePosixPath(urlsplit(url).path).name == path.name:
            yield name
    plain = re.sub(r"-[0-9a-f]{8}$", "", path.stem)
    if plain != path.stem and timm.is_model(plain):
        yield plain


def _outputs(arch: str, state: Mapping[str, Tensor]) -> int | None:
    """Outputs of the network of timm whose weights these are, its last layers aside; None: they are
    another one's.
    """
    import timm

    with torch.device("meta"):
        network = timm.create_model(arch)
    own = network.state_dict()
    last = tuple(f"{path}." for path in final_layers(network))
    counters = {name for name in own if name.endswith("num_batches_tracked")}
    if state.keys() | counters != own.keys():
        return None
    if any(state[name].shape != own[name].shape for name in state if not name.startswith(last)):
        return None
    return next((len(state[f"{path}.weight"]) for path in final_layers(network)), None)
