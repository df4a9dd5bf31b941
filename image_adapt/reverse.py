"""What DDA and ILVR do alike: noise an image to a level of a diffusion model's chain, denoise it
step by step (Ho et al. 2020).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Annotated, Any, ClassVar, Literal

import torch
from annotated_types import Interval
from torch import Tensor

from undegrade.image_adapt.adapter import Adapter, Context, Passes, option
from undegrade.image_adapt.lowpass import LowPass
from undegrade.models.diffusion.denoiser import Denoiser
from undegrade.models.diffusion.loading import denoiser_digest, diffusers_folder, open_denoiser
from undegrade.models.diffusion.openai_flags import MODEL_FLAGS, ModelFlags
from undegrade.models.diffusion.precision import Precision, use_precision
from undegrade.models.diffusion.sampling import ReverseStep, check_variance, draw_noise, p_mean_variance
from undegrade.utils.config import build
from undegrade.utils.key_help import attribute_texts
from undegrade.utils.ranges import Count
from undegrade.utils.runs import find_checkpoint

START_STEP = 50
_SWAPPED = (50, 4)  # D and N as the published commands print them


@dataclasses.dataclass(frozen=True)
class ChainOptions:
    """What adapters that run a reverse chain have in common.

    Attributes:
        respacing: chain as guided-diffusion writes it: "100" evenly spaced steps of the full chain
            (`models.diffusion.schedule.respaced_timesteps`).
        start_step: number of reverse steps, i.e. index of the respaced chain from which the noised
            image is denoised (paper: N); the same number means other noise in another schedule or
            respacing. 50 where neither this nor `noise_level` is given.
        noise_level: in place of start_step: alpha_bar in (0, 1), share of the signal in the
            variance of the noised image (near 1: almost clean); the chain's nearest level is the
            first that is denoised.
        downscale_factor: of the low-pass filter whose output is kept, a divisor of the image size
            (paper: D).
        border: of the low-pass filter: reflect | zero (as the paper's code, which weakens guidance
            in a frame of 14 px).
        variance: of a reverse step: learned | fixed_large | fixed_small (null: learned if the model
            has it, else fixed_large, which leaves grain in short chains).
        clip_denoised: clamp the predicted clean image to [-1, 1].
        start_mismatch: noise one index more than is denoised (as the paper's code).

    Raises:
        ValueError: D and N swapped.
    """

    respacing: str | Count = option("100", "timestep_respacing")
    start_step: Count | None = option(None, "N", instead_of="noise_level")
    noise_level: Annotated[float, Interval(gt=0, lt=1)] | None = option(None, instead_of="start_step")
    downscale_factor: Count = option(4, "D")
    border: Literal["reflect", "zero"] = "reflect"
    variance: Literal["learned", "fixed_large", "fixed_small"] | None = None
    clip_denoised: bool = True
    start_mismatch: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "respacing", str(self.respacing))  # 100 and "100" are the same settings
        if (self.downscale_factor, self.start_step) == _SWAPPED:
            raise ValueError(
                "--D 50 --N 4 is a misprint of the published commands, with the two numbers swapped (D must divide the image "
                "size): use --D 4 --N 50"
            )


class ReverseChain(Adapter):
    """Moves images towards the domain of a diffusion model's training images; a subclass says how a
    step holds on to the image.

    Args:
        denoiser: is frozen (no weight gets a gradient), put in eval mode and channels_last layout,
            and its blocks are replaced by those of `models.diffusion.inference_blocks`, in place.
        precision: of the network (`models.diffusion.precision`).
        digest: names the denoiser in settings; called when it is asked for, since it reads files.
        options: of the class's `Options`.

    Attributes:
        schedule: of the respaced chain; its length is that of the chain.
        start_step: number of denoising steps N.
        levels: of the chain, at which the network is asked, the highest first.
        start_level: level of the chain to which an image is noised: with `start_mismatch` N, which
            the first step takes for N - 1; else N - 1.

    Raises:
        ValueError: any option outside its range; names the value and the range.
    """

    Options: ClassVar[type[Any]] = ChainOptions
    needs_model = True
    model_flags: ClassVar[dict[str, str]] = {flag: attribute_texts(ModelFlags)[flag] for flag in MODEL_FLAGS}

    def __init__(
        self, denoiser: Denoiser, *, precision: Precision = "float32", digest: Callable[[], str] | None = None, **options: Any
    ) -> None:
        from undegrade.models.diffusion.inference_blocks import frozen  # noqa: PLC0415  it imports diffusers, which takes seconds

        super().__init__(build(self.Options, options))
        self.schedule = denoiser.schedule(str(self.options.respacing))
        self.start_step = self._steps(self.options.start_step, self.options.noise_level)
        mismatch = self.options.start_mismatch
        last = len(self.schedule) - mismatch
        if not 1 <= self.start_step <= last:
            raise ValueError(
                f"start_step {self.start_step} is outside 1..{last}: the chain of respacing {self.options.respacing!r} has "
                f"{len(self.schedule)} levels{' and start_mismatch needs one above' if mismatch else ''}; "
                "give a start_step in that range or a longer respacing"
            )
        self.low_pass = LowPass(denoiser.image_size, self.options.downscale_factor, self.options.border)
        self.variance = check_variance(self.options.variance, denoiser)
        self.denoiser = frozen(denoiser)
        use_precision(self.denoiser, precision)
        self.image_size = denoiser.image_size
        self.levels = list(reversed(range(self.start_step)))
        self.passes = Passes(self.start_step)
        self.start_level = self.start_step if mismatch else self.start_step - 1
        self._digest = digest and functools.cache(digest)

    def _steps(self, start_step: int | None, noise_level: float | None) -> int:
        if noise_level is None:
            return START_STEP if start_step is None else start_step
        if start_step is not None:
            raise ValueError(f"start_step {start_step} and noise_level {noise_level} say the same thing twice: give one of them")
        return self.schedule.index_of_noise_level(noise_level) + 1

    @classmethod
    def open(cls, options: Any, context: Context) -> Adapter:
        """The chain on the diffusion model that the context names.

        Raises:
            FileNotFoundError, ValueError: the model is missing, or is class-conditional without a
                null label.
        """
        reference = context.model or ""
        path = diffusers_folder(reference) or find_checkpoint(reference, context.runs, dataset=context.dataset)
        denoiser = open_denoiser(path, context.model_flags)
        if denoiser.num_classes is not None and not denoiser.null_label:
            raise ValueError(
                f"{path} is class-conditional and the classes of the images are not known: give an unconditional model, or one "
                "with a null label"
            )
        digest = functools.partial(denoiser_digest, path, context.model_flags)
        return cls(denoiser.to(context.device), precision=context.precision, digest=digest, **vars(options))

    @classmethod
    def without_effect(cls, options: Any) -> dict[str, str]:
        """See `Adapter.without_effect`."""
        return {"border": "downscale_factor 1 keeps all of the image"} if options.downscale_factor == 1 else {}

    def identity(self) -> dict[str, Any]:
        """The options, a noise level as the number of steps that it comes to, and the model."""
        parameters = dataclasses.asdict(self.options) | {"start_step": self.start_step}
        del parameters["noise_level"]
        return {"parameters": parameters, "model": self._digest and self._digest()}

    def describe(self) -> str:
        """Where in the chain it starts."""
        alpha_bar = self.schedule.alpha_bar[self.start_level].item()
        return f"steps: {len(self.levels)} of a chain of {len(self.schedule)}, from noise level alpha_bar {alpha_bar:.4g}"

    @torch.no_grad()
    def adapt(self, x: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        """See `Adapter.adapt`; H = W = the denoiser's image size.

        Raises:
            ValueError: another shape; not one generator per image.
        """
        size = self.image_size
        if x.shape[1:] != (3, size, size):
            raise ValueError(f"images have shape {list(x.shape)}: this diffusion model needs [B, 3, {size}, {size}]")
        if len(generators) != len(x):
            raise ValueError(f"{len(generators)} generators for {len(x)} images: give one for each image")
        reference = x
        x = self._noised(reference, self.start_level, generators)
        for i in self.levels:
            x = self._step(x, reference, generators, i)
        return x

    def _step(self, x: Tensor, reference: Tensor, generators: Sequence[torch.Generator], i: int) -> Tensor:
        """x at level i -> x at level i - 1 (clean for i = 0), held to `reference`."""
        raise NotImplementedError

    def _noised(self, reference: Tensor, level: int, generators: Sequence[torch.Generator]) -> Tensor:
        return self.schedule.q_sample(reference, level, draw_noise(reference.shape[1:], generators, reference))

    def _reverse_step(self, x: Tensor, i: int) -> ReverseStep:
        return p_mean_variance(self.denoiser, self.schedule, x, i, self.options.clip_denoised, variance=self.variance)
