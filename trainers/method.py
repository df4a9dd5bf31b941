"""The contract of a method: what is trained, the loss that trains it, and what is kept of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor, nn

from undegrade.trainers.config import TrainConfig, fill
from undegrade.utils.checkpoint import file_digest
from undegrade.utils.choices import check_choice
from undegrade.utils.data.batches import Batch
from undegrade.utils.data.sources.image_source import ImageSource
from undegrade.utils.runs import check_specialist, find_checkpoint

Monitors = Mapping[str, Literal["max", "min"]]


class Method(nn.Module):
    """What is trained, and the loss that trains it (docs/extending/method.md).

    Attributes:
        parts: names of the submodules that are trained. The trainer optimises each by an optimiser
            of its own (`optimizer.parts.<name>`), clips their gradients together, averages,
            synchronises, saves and resumes them; they alone are ever in train mode.
        kept: names of submodules that change without being optimised, such as a target network:
            saved and resumed, in eval mode, without gradients.
        monitors: validation metrics that may choose the best checkpoint, and whether the highest
            ("max") or the lowest ("min") value is the best.

    Other submodules, such as frozen teachers, are neither changed nor saved.
    """

    parts: tuple[str, ...] = ("student",)
    kept: tuple[str, ...] = ()
    monitors: Monitors = {"loss": "min"}

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """`loss` (a scalar), and what is logged beside it, by name: a scalar stands for the mean
        over the batch's images, a tensor [B], bool or float, holds a value for each.
        """
        raise NotImplementedError

    def prepare(self, batch: Batch, *stream: object) -> Batch:
        """A training batch on its device, as `forward` takes it; what is drawn at random comes from
        the stream of that name.
        """
        return batch

    def after_step(self, step: int) -> None:
        """Called after each optimiser step, without gradients; `step` of them are done."""

    def summary(self, means: dict[str, float]) -> dict[str, float]:
        """What is logged of an epoch and may be monitored, from the means over all its images of
        what `forward` gave; for metrics that are no means over images, such as the intersection
        over union, of the means of both.
        """
        return means

    def train(self, mode: bool = True) -> Method:
        """Only the parts ever leave eval mode."""
        super().train(False)
        for part in self.named_parts().values():
            part.train(mode)
        return self

    def named_parts(self) -> dict[str, nn.Module]:
        """The trainable parts by name."""
        return {name: getattr(self, name) for name in self.parts}

    def export(self, parts: Mapping[str, nn.Module]) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """(state dict, description) for `best.safetensors`; `parts` are the trained parts by name,
        or their moving averages where `loop.ema_decay` is set.
        """
        raise NotImplementedError

    def picture(self, parts: Mapping[str, nn.Module]) -> Figure | np.ndarray | None:
        """A figure, or uint8 [H, W, 3], that shows what the parts, as for `export` and in eval
        mode, have learnt; None where there is nothing to show.
        """
        return None


def check_parts(method: Method) -> None:
    """Whether all that asks for gradients is trained, and once.

    Raises:
        ValueError: a name that is no submodule; a part without parameters that require gradients;
            parts and kept modules that share a parameter; a parameter that requires a gradient
            outside all parts.
    """
    kind = type(method).__name__
    for name in (*method.parts, *method.kept):
        check_choice(name, method._modules, "submodule", f"parts and kept of {kind}")
    owners: dict[int, str] = {}
    for name in (*method.parts, *method.kept):
        own = [p for p in getattr(method, name).parameters() if p.requires_grad or name in method.kept]
        if not own and name in method.parts:
            raise ValueError(f"{kind}: no parameter of the part {name!r} requires a gradient; take it out of `parts`")
        for parameter in own:
            if owners.setdefault(id(parameter), name) != name:
                raise ValueError(
                    f"{kind}: {owners[id(parameter)]!r} and {name!r} share a parameter; it can belong to one of them only"
                )
    idle = [name for name, p in method.named_parameters() if p.requires_grad and id(p) not in owners]
    if idle:
        raise ValueError(
            f"{kind}: {len(idle)} parameters require gradients but belong to no part and would not be trained, e.g. {idle[0]}: "
            "name their submodule in `parts`, in `kept`, or freeze it by requires_grad_(False)"
        )


@dataclasses.dataclass(frozen=True)
class Context:
    """What a method needs to know of the run.

    Attributes:
        source: training images.
        degradations: names.
        config: of the run.
        from_run: run id of the checkpoints that are named by a run's name (None: the latest
            finished run of each).
        init_digest: digest of the checkpoint that the student starts from; None for random or
            published weights.
        weights: digest of each checkpoint that was found so far, by the text that names it.
    """

    source: ImageSource
    degradations: list[str]
    config: TrainConfig
    from_run: str | None = None
    init_digest: str | None = None
    weights: dict[str, str] = field(default_factory=dict)

    def find_checkpoint(self, text: str, deg: str | None = None) -> Path:
        """The checkpoint file, run folder or run that `text` names, its placeholders replaced;
        `deg` is one degradation of several.
        """
        name = fill(text if deg is None else text.replace("{deg}", deg), self.config)
        path = find_checkpoint(name, self.config.save_dir, self.from_run)
        if deg is not None and "{deg}" in text:
            check_specialist(path, deg)
        self.weights[name] = file_digest(path)
        return path
