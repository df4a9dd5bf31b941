"""Predictors: what turns the images of an ensemble member into logits. A member is a predictor and
a view.

A frozen classifier is one; another may change itself by the batches that it sees (test-time
adaptation). A new kind is a row of `PREDICTORS`, here or in another package (group
`undegrade.predictors`, see docs/extending/predictor.md).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from undegrade.evaluation.surroundings import Surroundings
from undegrade.models.classification.classifier import Classifier
from undegrade.utils.config import build
from undegrade.utils.registry import Registry


class Predictor(Protocol):
    """Logits of images, batch by batch.

    Attributes:
        stateful: whether the logits of a batch depend on the batches before it, or on its other
            images. Then batches have the size that was asked for, images and cells come in the
            order of a protocol (`evaluation.protocols`), and cached logits are of that size and
            order.
        identity: names what the logits depend on besides the checkpoint, the options, the images
            and their order, which the cache knows already: a version of the code, files that are
            read; may be empty.
        num_classes: K.
        device: where the images of a batch have to be.
    """

    @property
    def stateful(self) -> bool: ...

    @property
    def identity(self) -> str: ...

    @property
    def num_classes(self) -> int: ...

    @property
    def device(self) -> torch.device: ...

    def reset(self) -> None:
        """Go back to the state before the first image, random streams included."""

    def predict(self, x: Tensor) -> Tensor:
        """Logits [B,K] of images x [B,3,H,W] in [0,1] on `device`; gradients may be taken."""


class Frozen:
    """A classifier as it is: the logits of an image depend on that image alone.

    Args:
        classifier: in eval mode, on its device; channels_last is fastest.
    """

    stateful, identity = False, ""

    def __init__(self, classifier: Classifier) -> None:
        self.classifier, self.num_classes = classifier, classifier.num_classes
        self.device = next(classifier.parameters()).device

    def reset(self) -> None:
        """There is nothing to forget."""

    @torch.inference_mode()
    def predict(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.classifier(x))


@dataclasses.dataclass(frozen=True)
class FrozenOptions:
    """A frozen classifier has none."""


@dataclasses.dataclass(frozen=True)
class Kind:
    """A row of `PREDICTORS`.

    Attributes:
        options: dataclass of the YAML keys beside `name`.
        build: (classifier, options, surroundings) -> the predictor. The classifier is its own, on
            its device, in eval mode; it may be changed.
        description: one line.
    """

    options: type
    build: Callable[[Classifier, Any, Surroundings], Predictor]
    description: str


PREDICTORS: Registry[Kind] = Registry("predictor", "undegrade.predictors")
PREDICTORS.add("frozen", Kind(FrozenOptions, lambda classifier, *_: Frozen(classifier), "the classifier as it is"))


def read_options(given: Mapping[str, Any], where: str) -> tuple[str, Any]:
    """(name, options) of the `predictor:` section of a member.

    Args:
        given: `name` (default: frozen) and the options of that predictor.
        where: dotted place of the section, for messages.

    Raises:
        ValueError: an unknown name or option (with the closest), or a value of the wrong type.
    """
    keys = dict(given)
    name = keys.pop("name", "frozen")
    return name, build(PREDICTORS.get_row(name, where).options, keys, where)


def build_predictor(
    given: Mapping[str, Any], where: str, classifier: Classifier, surroundings: Surroundings
) -> tuple[Predictor, str]:
    """(predictor, text of name and options for caches) of a member; see `read_options`."""
    name, options = read_options(given, where)
    predictor = PREDICTORS[name].build(classifier, options, surroundings)
    changes = [f"{key}={value}" for key, value in dataclasses.asdict(options).items()]
    return predictor, "" if name == "frozen" else " ".join([name, *changes])
