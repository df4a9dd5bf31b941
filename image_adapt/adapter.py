"""What an adapter is: its options, what it opens, the images that it takes, its cost, and what it
does to them. docs/extending/adapter.md has one of twenty lines.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from undegrade.models.diffusion.precision import Precision


@dataclasses.dataclass(frozen=True)
class Context:
    """What an adapter may open itself with, besides its options.

    Attributes:
        device: where the images will be, and its networks belong.
        model: what `--model_path` names, placeholders replaced; None for adapters without model.
        model_flags: those of the adapter's `model_flags` that were given, as texts.
        runs: root of the runs, for a model by name.
        dataset: data set or image folder, for messages that name a training command.
        precision: of networks (`models.diffusion.precision`).
    """

    device: torch.device
    model: str | None = None
    model_flags: Mapping[str, str] = dataclasses.field(default_factory=dict)
    runs: str = "runs"
    dataset: str = ""
    precision: Precision = "float32"


class Passes(NamedTuple):
    """Passes of networks that the adaptation of an image takes."""

    forward: int = 0
    backward: int = 0


@dataclasses.dataclass(frozen=True)
class NoOptions:
    """For adapters that have none."""


def option(default: Any, *aliases: str, instead_of: str = "", **converted: Callable[[str, Mapping[str, Any]], Any]) -> Any:
    """A field of an adapter's options that has more flags than `--<name of the field>`.

    Args:
        default: of the field.
        aliases: further flags that mean the same, without dashes.
        instead_of: another field, whose value the YAML may give: this one's flag sets that to None.
        converted: flag -> function of its text and of the section's other values to this field's
            value; the first line of its docstring is the flag's help.
    """
    return dataclasses.field(default=default, metadata={"flags": {**dict.fromkeys(aliases), **converted}, "instead_of": instead_of})


class Adapter:
    """Moves degraded images towards clean ones. A subclass says how, and is a row of `ADAPTERS`
    (`image_adapt.adapters`); its options are a section of that name in the YAML, and flags.

    Class attributes:
        Options: frozen dataclass of its options, each with a default and explained in the
            docstring's section "Attributes:", which is what --help says.
        needs_model: whether it opens what `--model_path` names; else that flag is refused.
        model_flags: flags that describe the model's file, with their help.

    Attributes:
        options: an instance of `Options`.
        image_size: side in pixels of the square images that it takes. None: images of any height
            and width; then those of a folder are adapted whole, at their own sizes, and those of a
            data set at the data set's.
        batch_matters: whether the result for an image depends on the others of its batch. Batches
            are then never filled up with copies, and their size is a part of the settings.
        passes: of networks, for an image.
    """

    Options: ClassVar[type[Any]] = NoOptions
    needs_model: ClassVar[bool] = False
    model_flags: ClassVar[Mapping[str, str]] = {}

    image_size: int | None = None
    batch_matters: bool = False
    passes: Passes = Passes()

    def __init__(self, options: Any = None) -> None:
        self.options = self.Options() if options is None else options

    @classmethod
    def open(cls, options: Any, context: Context) -> Adapter:
        """The adapter of `options`, with all that it needs loaded.

        Raises:
            ValueError, FileNotFoundError: a model that is missing or does not fit; an option
                outside its range.
        """
        return cls(options)

    @classmethod
    def without_effect(cls, options: Any) -> dict[str, str]:
        """Options that change nothing beside the others -> why; given on a command line they are
        refused.
        """
        return {}

    def identity(self) -> dict[str, Any]:
        """What the results depend on besides image and random stream, as JSON takes it: the
        settings of adapted images, which a later launch must agree with.
        """
        return {"parameters": dataclasses.asdict(self.options)}

    @property
    def parameters(self) -> int:
        """Weights of its networks: of the attributes that are modules."""
        networks = [value for value in vars(self).values() if isinstance(value, nn.Module)]
        return sum(parameter.numel() for network in networks for parameter in network.parameters())

    def describe(self) -> str:
        """A line for the plan that --dry_run prints; "" for none."""
        return ""

    def network(self) -> nn.Module | None:
        """All that `adapt` does as one module of images [B, 3, H, W] in [-1, 1], where that is a
        single pass without noise, for export to other programs; None else.
        """
        return None

    def adapt(self, x: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        """Adapted images, same shape, about [-1, 1] (they are clamped when they are written).

        Args:
            x: [B, 3, H, W] float32 in [-1, 1] on the context's device.
            generators: B CPU generators. All noise of image b comes from generator b, so that its
                result depends on (image, generator, options) only, unless `batch_matters`.
        """
        raise NotImplementedError
