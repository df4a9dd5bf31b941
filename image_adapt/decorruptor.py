"""Decorruptor (Oh et al., ECCV 2024): a latent editor cleans an image, in 20 steps or, distilled,
in 4.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from undegrade.image_adapt.adapter import Adapter, Context, Passes, option
from undegrade.models.diffusion.editor import Editor, check_weights, edit, image_weights
from undegrade.models.diffusion.editor_loading import editor_digest, editor_folder, open_editor
from undegrade.models.diffusion.precision import Precision
from undegrade.utils.ranges import Count, NotNegative
from undegrade.utils.runs import find_checkpoint

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class DecorruptorOptions:
    """Options of `Decorruptor`. An editor is ordinary ("DPM") or distilled ("CM"), which its file
    says.

    Attributes:
        steps: of the sampler (null: 20, of a distilled editor 4).
        text_weight: guidance weight of the instruction, w_T.
        image_weight: guidance weight of the image, w_I: a number, or for an ordinary editor a list
            with a value for each step (null: the published list, sqrt(linspace(1.8^2, 0, steps));
            of a distilled editor 1.3).
        resolution: side in pixels to which images are brought before they are edited, and from
            which they are brought back (null: their own).
        stretch_bright: a batch without any value below the middle grey is taken for one of another
            range and stretched to the whole, as the published video program does; an image then
            depends on its batch.
    """

    steps: Count | None = option(None, "num_inference_steps")
    text_weight: NotNegative = option(7.5, "guidance_scale")
    image_weight: NotNegative | list[NotNegative] | None = option(None, "image_guidance_scale")
    resolution: Count | None = None
    stretch_bright: bool = False


class Decorruptor(Adapter):
    """Edits the image, told to clean it.

    Args:
        editor: frozen.
        options: of `DecorruptorOptions`.
        precision: of the networks, by autocast.
        digest: names the editor in settings; called when it is asked for.

    Raises:
        ValueError: steps, a list of weights or a resolution that the editor cannot have.
    """

    Options = DecorruptorOptions
    needs_model = True

    def __init__(
        self,
        editor: Editor,
        options: DecorruptorOptions,
        *,
        precision: Precision = "float32",
        digest: Callable[[], str] | None = None,
    ) -> None:
        distilled = editor.scale_width is not None
        steps = options.steps or (4 if distilled else 20)
        weight = options.image_weight if options.image_weight is not None else 1.3 if distilled else image_weights(steps)
        if not distilled:
            check_weights(weight, steps)
        factor = editor.autoencoder.factor
        if options.resolution is not None and options.resolution % factor:
            raise ValueError(f"resolution {options.resolution}: this editor's autoencoder needs a multiple of {factor}")
        super().__init__(dataclasses.replace(options, steps=steps, image_weight=weight))
        self.editor, self._digest = editor, digest and functools.cache(digest)
        self.dtype = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}[precision]
        self.batch_matters = options.stretch_bright
        self.passes = Passes(steps * (1 if distilled else 3))
        self._warn_of_scales()

    @classmethod
    def open(cls, options: Any, context: Context) -> Adapter:
        """The editor that the context names: a run, a checkpoint, or a folder of a diffusers
        pipeline.
        """
        reference = context.model or ""
        path = editor_folder(reference) or find_checkpoint(reference, context.runs, dataset=context.dataset)
        editor = open_editor(path).to(context.device)
        return cls(editor, options, precision=context.precision, digest=functools.partial(editor_digest, Path(path)))

    def identity(self) -> dict[str, Any]:
        """The options as they are used, and the editor."""
        return {**super().identity(), "model": self._digest and self._digest()}

    def describe(self) -> str:
        """Which kind of editor it is, and its steps."""
        kind = "a distilled editor" if self.editor.scale_width is not None else "an editor, three rows of the U-Net a step"
        return f"steps: {self.options.steps} of {kind}"

    def _warn_of_scales(self) -> None:
        if self.editor.scale_width is None:
            return
        trained = self.editor.trained_scales
        for name, value in (("text_weight", self.options.text_weight), ("image_weight", self.options.image_weight)):
            low, high = trained[name]
            if not isinstance(value, list) and not low <= value <= high:
                log.warning("%s %g is outside the range %g to %g on which this editor was distilled", name, value, low, high)

    @torch.no_grad()
    def adapt(self, x: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        """See `Adapter.adapt`.

        Raises:
            ValueError: sides that the autoencoder's factor does not divide.
        """
        size, side, factor = x.shape[-2:], self.options.resolution, self.editor.autoencoder.factor
        if side is not None and size != (side, side):
            x = F.interpolate(x, (side, side), mode="bicubic", antialias=True).clamp(-1, 1)
        elif size[0] % factor or size[1] % factor:
            raise ValueError(
                f"images of {size[1]} x {size[0]} px: this editor needs sides that {factor} divides; give a resolution, e.g. "
                f"--resolution {round(max(size) / factor) * factor}"
            )
        if self.options.stretch_bright and x.min() >= 0:
            x = 2 * x - 1
        with torch.autocast(x.device.type, self.dtype, enabled=self.dtype is not None):
            condition = self.editor.autoencoder.encode(x).float()
            options = self.options
            z = edit(self.editor, condition, generators, options.steps, options.text_weight, options.image_weight)
            edited = self.editor.autoencoder(z).float()
        return edited if edited.shape[-2:] == size else F.interpolate(edited, size, mode="bicubic", antialias=True)
