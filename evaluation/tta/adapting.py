"""What all methods of test-time adaptation have in common: what moves, steps, the state that a
reset goes back to, single images, and the authors' constants.
"""

from __future__ import annotations

import copy
import dataclasses
import logging
from collections.abc import Iterable
from typing import Any, ClassVar, Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from undegrade.evaluation.predictors import PREDICTORS, Kind
from undegrade.evaluation.surroundings import Surroundings
from undegrade.evaluation.tta.layers import NORMALISATION, layers_of
from undegrade.evaluation.tta.losses import entropy
from undegrade.models.classification.classifier import Classifier
from undegrade.utils.ranges import Count, Positive
from undegrade.utils.seeding import torch_generator

log = logging.getLogger(__name__)

Given = TypeVar("Given")
ANY, BATCHNORM, NORMALISED = "any network", "a network with BatchNorm", "a network with normalisation layers"


@dataclasses.dataclass(frozen=True)
class Options:
    """What every method can be told.

    Attributes:
        window: of batches of one image: so many latest images are looked at together, and there is
            a step whenever all of them are new (null: each image by itself).
        guard: a batch of which the classifier as it was is surer, by the mean entropy of what it
            says, is answered by that one. It takes a pass more, and keeps a stream that is sorted
            by class from going below the classifier that does nothing; no labels are needed.
    """

    window: Count | None = None
    guard: bool = False


@dataclasses.dataclass(frozen=True)
class StepOptions(Options):
    """Of methods that go down a gradient. Null stands for the authors' constant: that of ImageNet
    where the network has 200 classes or more, of CIFAR-100 from 100 on, else of CIFAR-10.

    Attributes:
        optimizer: adam, or sgd with Nesterov's momentum of 0.9.
        lr: its learning rate.
        steps: on each batch.
    """

    optimizer: Literal["adam", "sgd"] | None = None
    lr: Positive | None = None
    steps: Count = 1


METHODS: dict[str, str] = {}
"""Registered methods by name, and what they need."""

ALONE = (
    "batches of one image: BatchNorm takes its statistics of that image alone (bn on Digits under 15 corruptions: 60.7 %, and 78.9 "
    "in batches of 200); give a larger --batch_size, a window of the latest images (predictor.window 64), or a method that needs "
    "none (memo, bn with alpha 0.1)"
)

STEPS = {"optimizer": ("adam", "adam", "sgd"), "lr": (1e-3, 1e-3, 2.5e-4)}
"""The authors' for most methods; columns as in `with_constants`."""


def with_constants(options: Given, classes: int, **constants: tuple[Any, Any, Any]) -> Given:
    """Options whose nulls are the authors' constants for CIFAR-10, CIFAR-100 and ImageNet."""
    column = 0 if classes < 100 else 1 if classes < 200 else 2
    missing = {key: values[column] for key, values in constants.items() if getattr(options, key) is None}
    return dataclasses.replace(options, **missing)  # type: ignore[type-var]


class Adapting:
    """A classifier that is changed by the batches it sees.

    A method says in `__init__` what it adds (`networks`, `memory`, `moved`), and in `adapt` what it
    does with a batch. All that changes is in `state`.

    Args:
        classifier: its own, on its device, in eval mode; frozen here.
        options: of the method.
        surroundings: clean images, and a folder for what is worked out from them.

    Attributes:
        needs: which networks it fits.
        networks: by name, whatever has weights or statistics that change.
        moved: parameters by name that steps are made with; the optimiser's.
        memory: what else it remembers: tensors, numbers, lists of them.

    Raises:
        ValueError: a network that it does not fit; names those methods that do.
    """

    stateful: bool = True
    version: ClassVar[str] = "1"
    needs: ClassVar[str] = ANY
    window: int | None = None

    def __init__(self, classifier: Classifier, options: Options, surroundings: Surroundings) -> None:
        self.classifier, self.num_classes, self.window = classifier, classifier.num_classes, options.window
        self.device = next(classifier.parameters()).device
        self.networks: dict[str, nn.Module] = {"classifier": classifier.eval().requires_grad_(False)}
        self.memory: dict[str, Any] = {}
        self.moved: dict[str, nn.Parameter] = {}
        self.optimizer: torch.optim.Optimizer | None = None
        self.steps = 1
        self._random = torch_generator("test-time adaptation").get_state()
        self._first: dict[str, Any] | None = None
        self.unchanged = copy.deepcopy(classifier) if options.guard else None
        self.files: list[str] = []  # digests of further checkpoints
        self._alone = False  # whether batches of one image are to be warned of

    @property
    def identity(self) -> str:
        return " ".join([self.version, *self.files])

    @property
    def numbers_moved(self) -> int:
        """How many numbers its steps change."""
        return sum(parameter.numel() for parameter in self.moved.values())

    def adapt(self, x: Tensor) -> Tensor:
        """Logits [B,K] of images [B,3,H,W] in [0,1], and a step."""
        raise NotImplementedError

    def look(self, x: Tensor) -> Tensor:
        """Logits [B,K] without a step."""
        return self.classifier(x)  # type: ignore[no-any-return]

    def predict(self, x: Tensor) -> Tensor:
        """Logits [B,K] of images [B,3,H,W] in [0,1]; the method's own random streams."""
        before = torch.get_rng_state()
        torch.set_rng_state(self._random)
        try:
            with torch.enable_grad():
                logits = self._windowed(x) if len(x) == 1 and self.window else self._stepped(x)
            self._random = torch.get_rng_state()
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            raise ValueError(
                f"BatchNorm has no statistics of a single value, to which {self.classifier.arch} brings images of {x.shape[-1]} px "
                "here: give larger batches or images"
            ) from error
        finally:
            torch.set_rng_state(before)
        return logits.detach()

    def _stepped(self, x: Tensor) -> Tensor:
        if len(x) == 1 and self._alone:
            self._alone = False
            log.warning(ALONE)
        for _ in range(self.steps):
            logits = self.adapt(x)
        return self._guarded(x, logits)

    @torch.no_grad()
    def _guarded(self, x: Tensor, logits: Tensor) -> Tensor:
        """The logits, or those of the classifier as it was if it is surer of the batch."""
        if self.unchanged is None:
            return logits
        own: Tensor = self.unchanged(x)
        return own if entropy(own).mean() < entropy(logits).mean() else logits

    def _windowed(self, x: Tensor) -> Tensor:
        """One image among the latest ones, which give BatchNorm its statistics."""
        assert self.window is not None
        seen, place = self.memory.get("window"), self.memory.get("place", 0)
        if seen is None or len(seen) < self.window:
            seen = x.clone() if seen is None else torch.cat([seen, x])
        else:
            seen[place] = x[0]
        self.memory["window"], self.memory["place"] = seen, (place + 1) % self.window
        if place == self.window - 1:
            return self._stepped(seen)[place : place + 1]
        with torch.no_grad():
            return self._guarded(seen, self.look(seen))[place : place + 1]

    def use_batch_statistics(self) -> None:
        """BatchNorm takes the statistics of each batch instead of its own."""
        layers = layers_of(self.classifier, (_BatchNorm,)).values()
        for layer in layers:
            layer.track_running_stats, layer.running_mean, layer.running_var = False, None, None  # type: ignore[assignment]
        self._alone = bool(layers) and self.window is None

    def step_with(self, moved: dict[str, nn.Parameter], options: StepOptions) -> None:
        """Make steps with these parameters by the optimiser of the options, which has no nulls."""
        assert options.lr is not None
        self.moved, self.steps = moved, options.steps
        if not moved:
            raise ValueError(f"{type(self).__name__} moves no parameter of {self.classifier.arch}")
        if options.optimizer == "adam":
            self.optimizer = torch.optim.Adam(moved.values(), lr=options.lr)
        else:
            self.optimizer = torch.optim.SGD(moved.values(), lr=options.lr, momentum=0.9, nesterov=True)

    def descend(self, loss: Tensor) -> None:
        """One step down the gradient of a loss."""
        assert self.optimizer is not None
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.optimizer.zero_grad()

    def copy_of_classifier(self, name: str) -> Classifier:
        """A second classifier, frozen, with layers as the first has them now; part of the state."""
        self.networks[name] = copied = copy.deepcopy(self.classifier).requires_grad_(False)
        return copied

    def state(self) -> dict[str, Any]:
        """All that a step may change, as tensors and plain values; it is not copied."""
        optimizer = {} if self.optimizer is None else self.optimizer.state_dict()
        networks = {name: network.state_dict() for name, network in self.networks.items()}
        return {"networks": networks, "optimizer": optimizer, "memory": self.memory, "random": self._random}

    def load(self, state: dict[str, Any]) -> None:
        """Go to a state; it is not shared afterwards."""
        for name, network in self.networks.items():
            network.load_state_dict(state["networks"][name])
        if self.optimizer is not None:
            self.optimizer.load_state_dict(state["optimizer"])
        self.memory, self._random = copy.deepcopy(state["memory"]), state["random"].clone()

    def reset(self) -> None:
        """Go back to the state before the first image."""
        if self._first is None:
            self._first = copy.deepcopy(self.state())
        else:
            self.load(self._first)


@torch.no_grad()
def move_towards(target: Iterable[Tensor], source: Iterable[Tensor], momentum: float) -> None:
    """target = momentum target + (1 - momentum) source, tensor by tensor, in place."""
    torch._foreach_lerp_(list(target), list(source), 1 - momentum)


def register(name: str, method: type[Adapting], options: type, description: str) -> None:
    """Add a method to the predictors; of a network that it does not fit it says which ones do."""

    def build(classifier: Classifier, given: Any, surroundings: Surroundings) -> Adapting:
        kinds = {ANY: (nn.Module,), BATCHNORM: (_BatchNorm,), NORMALISED: NORMALISATION}
        if not layers_of(classifier, kinds[method.needs]):
            fitting = [other for other, needs in METHODS.items() if layers_of(classifier, kinds[needs])]
            has = sorted({type(layer).__name__ for layer in layers_of(classifier).values()})
            raise ValueError(
                f"predictor {name!r} needs {method.needs}, and {classifier.arch} has {', '.join(has) or 'no such layers'}: "
                f"choose one of {', '.join(fitting)}"
            )
        return method(classifier, given, surroundings)

    METHODS[name] = method.needs
    PREDICTORS.add(name, Kind(options, build, description))
