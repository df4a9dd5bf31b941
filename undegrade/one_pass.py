"""A system as one module, for programs that know nothing of undegrade: image batches to class
probabilities in a single pass.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from undegrade.evaluation.fitted.rule import FittedRule, first_other
from undegrade.evaluation.fitted.signals import pixel_signals
from undegrade.evaluation.predictors import Frozen
from undegrade.evaluation.rules import RULES, combine
from undegrade.system import System
from undegrade.utils.data.pixels import unit_to_signed
from undegrade.utils.data.views import RAW

_INSTEAD = "export its classifiers one by one (the run or checkpoint in place of the YAML), or a system with an adapter of one pass"


class OnePass(nn.Module):
    """Images -> probabilities, as `System.predict` has them of images of that size.

    In it: the scale of the images, each classifier's normalisation, restoration and the rounding of
    its grey levels, and the rule. Not in it: reading files, and bringing photographs to
    `image_size` (`System.resize`); restoration works on the cut image.

    Args:
        system: frozen classifiers that look at the image as it is, or at one that is restored in
            one pass.

    Raises:
        ValueError: a system that takes more than a pass, draws noise, adapts itself, or looks at
            features; says why, and what can be exported.
    """

    def __init__(self, system: System) -> None:
        super().__init__()
        check_one_pass(system)
        self.names, self.views, self.rule, self.fitted = list(system.rule.members), dict(system.views), system.rule, system.fitted
        self.classifiers = nn.ModuleList(_classifier(system, name) for name in self.names)
        self.restorers = nn.ModuleDict()
        self.rounding = {view: one.rounding for view, one in system.adapters.items()}
        self.places = {view: str(place) for place, view in enumerate(system.adapters)}  # names of modules hold no dots
        for view, one in system.adapters.items():
            network = one.adapter.network()
            assert network is not None
            self.restorers[self.places[view]] = network

    def forward(self, images: Tensor) -> Tensor:
        """Probabilities, float32 [B,K].

        Args:
            images: [B,3,S,S], uint8 in 0..255 or float32 in [0,1].
        """
        unit = images if images.is_floating_point() else images.float() / 255
        signed = unit_to_signed(images) if images.is_floating_point() else images.float() / 127.5 - 1
        looks = {RAW: unit}
        for view, place in self.places.items():
            looks[view] = _grey_levels(self.restorers[place](signed), self.rounding[view])
        seen = [looks[self.views[name]] for name in self.names]
        logits = torch.stack([classifier(x) for classifier, x in zip(self.classifiers, seen, strict=True)])
        scores = (
            combine(self.rule.rule, logits, self.rule.double_softmax) if self.fitted is None else _fitted(self.fitted, seen, logits)
        )
        return (scores / scores.sum(1, keepdim=True)).float()


def _fitted(rule: FittedRule, seen: list[Tensor], logits: Tensor) -> Tensor:
    signals = pixel_signals(rule.signals, seen[0], seen[first_other(rule.members)], None)
    return rule.scores(logits, rule.restored(logits, signals))


def _grey_levels(x: Tensor, rounding: str) -> Tensor:
    """What a file of the image would hold, in [0,1]: `from_signed` and back."""
    levels = (x + 1) * 127.5
    levels = levels.round() if rounding == "round" else levels.floor()
    return levels.clamp(0, 255) / 255


def _classifier(system: System, name: str) -> nn.Module:
    predictor = system.members[name]
    assert isinstance(predictor, Frozen)
    return predictor.classifier


def check_one_pass(system: System) -> None:
    """Raise ValueError, saying why, unless `OnePass` can stand for the system."""
    for name, predictor in system.members.items():
        if not isinstance(predictor, Frozen):
            raise ValueError(
                f"{system.name} is not one pass: its member {name!r} adapts itself to the images that it sees, which no exported "
                f"program does; {_INSTEAD}"
            )
    for view, one in system.adapters.items():
        if one.adapter.network() is not None:
            continue
        passes, adapter = one.adapter.passes, one.facts["adapter"]
        how = (
            f"asks a network {passes.forward + passes.backward} times an image and draws noise"
            if passes.forward
            else "is no network (OpenCV)"
        )
        raise ValueError(
            f"{system.name} is not one pass: the adapter {adapter} of view {view!r} {how}; {_INSTEAD}, such as one that was "
            "distilled (configs/restoration/Digits/distilled.yaml)"
        )
    if system.fitted is None and RULES[system.rule.rule].mixes_images:
        raise ValueError(
            f"{system.name} is not one pass: the rule {system.rule.rule} classifies a mixture of the images in a second; {_INSTEAD}"
        )
    if system.fitted is not None and "feature_distance" in system.fitted.signals:
        raise ValueError(f"{system.name} is not one pass: its gate compares features; fit one on other signals, or {_INSTEAD}")
