"""Class-conditional diffusion models as makers of images, from a configuration."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from annotated_types import Interval
from torch import Tensor

from undegrade.models.diffusion.denoiser import Denoiser
from undegrade.models.diffusion.diffusers_folder import network_folder
from undegrade.models.diffusion.dit import dit_digest, dit_folder, open_dit
from undegrade.models.diffusion.guidance import guided
from undegrade.models.diffusion.loading import denoiser_digest, diffusers_folder, open_denoiser
from undegrade.models.diffusion.precision import Precision, use_precision
from undegrade.models.diffusion.sampling import check_variance, sample
from undegrade.models.diffusion.vae import LatentAutoencoder, open_decoder
from undegrade.utils.checkpoint import read_description
from undegrade.utils.choices import check_choice, fill_names
from undegrade.utils.data.sources.imagenet import read_classes
from undegrade.utils.ranges import Count, Seed, Whole
from undegrade.utils.runs import find_checkpoint
from undegrade.utils.training_commands import training_command
from undegrade.utils.weights import how_to_download, located

_LATENT_STEPS = "250"  # of the published DiT
_SIZES = {"XL": (28, 1152), "L": (24, 1024), "B": (12, 768), "S": (12, 384)}
# published DiT -> blocks, width, side of a patch
NETWORKS = {f"DiT-{size}/{patch}": (*shape, patch) for size, shape in _SIZES.items() for patch in (2, 4, 8)}


@dataclasses.dataclass(frozen=True)
class GenerateConfig:
    """A generation YAML.

    Attributes:
        model: checkpoint file, run folder or run name of a class-conditional diffusion model, DiT's
            published state dict, or a folder of diffusers; `{dataset}` is replaced.
        save_dir: images go to `<save_dir>/<class number>/<image number>.png`; `{dataset}` is
            replaced.
        dataset: data set or folder whose name `{dataset}` stands for.
        vae: folder of the `AutoencoderKL` that a DiT's latents are decoded with (null: that of the
            pipeline that `model` names); on the command line and in its YAML ema and mse stand for
            sd-vae-ft-ema and sd-vae-ft-mse beside the model.
        num_per_class: images of each class.
        classes: all, or numbers and ranges such as 0-9,17.
        class_names: list of class names, in the order of their numbers, for `classes.txt`: a file
            with one a line, or imagenet-1k (null: those that the model was trained on, where it
            says them).
        guidance_scale: of classifier-free guidance; 1 is none.
        guided_channels: guide so many of the first channels: DiT as published 3 of its 4.
        respacing: chain, "100": 100 evenly spaced steps of the full one (null: 250 for a DiT, else
            the full chain).
        variance: of a reverse step: learned | fixed_large | fixed_small (null: learned if the model
            has it, else fixed_large).
        clip_denoised: clamp the predicted clean image to [-1, 1] (null: yes for pixels, no for
            latents).
        embedding: how a DiT is computed: original | diffusers (null: see
            `models.diffusion.dit.open_dit`).
        num_heads: attention heads of a DiT's state dict of no published size.
        network: name of the published DiT that the model is expected to be, such as DiT-XL/2 (null:
            any).
        image_size: pixels; what the generator makes is compared with it (null: not).
        num_classes: those of the generator are compared with it (null: not).
        batch_size: images made together on a rank; the last batch is filled up.
        seed: of the noise.
        precision: of the diffusion model's products, with float32 around them: float32 | bfloat16 |
            float16 (what `--use_fp16` means).
        overwrite: delete the images in `save_dir` if they were made with other settings (default:
            refuse).
        runs: root of the runs, for `model` by name.
    """

    model: str
    save_dir: str
    dataset: str = ""
    vae: str | None = None
    num_per_class: Count = 50
    classes: str | Whole = "all"
    class_names: str | None = None
    guidance_scale: Annotated[float, Interval(ge=1)] = 1.0
    guided_channels: Count = 3
    respacing: str | Count | None = None
    variance: Literal["learned", "fixed_large", "fixed_small"] | None = None
    clip_denoised: bool | None = None
    embedding: Literal["original", "diffusers"] | None = None
    num_heads: Count | None = None
    network: str | None = None
    image_size: Count | None = None
    num_classes: Count | None = None
    batch_size: Count = 16
    seed: Seed = 0
    precision: Precision = "float32"
    overwrite: bool = False
    runs: str = "runs"

    def __post_init__(self) -> None:
        if self.network is not None:
            check_choice(self.network, NETWORKS, "network")

    def fill(self, text: str) -> str:
        """`{dataset}` replaced in names and paths."""
        return fill_names(text, {"dataset": Path(self.dataset).name}, f"{text!r}")


class ImageGenerator:
    """Makes images of given classes.

    Args:
        denoiser: class-conditional; is frozen, put in eval mode and channels_last layout, in place.
        decoder: of its latents; None if it makes pixels.
        config: how it is sampled.

    Attributes:
        num_classes, image_size: of the images.
        parameters: how it is sampled, as settings of its images.
        steps, passes: of the chain, and of the network for an image.

    Raises:
        ValueError: an unconditional model; a guidance, chain or variance that it cannot have;
            another image size than asked for.
    """

    def __init__(self, denoiser: Denoiser, decoder: LatentAutoencoder | None, config: GenerateConfig) -> None:
        if denoiser.num_classes is None:
            command = training_command(config.fill("diffusion/{dataset}/conditional"), config.runs, config.dataset)
            command = command or "python train.py -c configs/diffusion/<DATASET>/conditional.yaml"
            raise ValueError(
                f"an unconditional diffusion model knows no classes: give a class-conditional one ({command} makes one)"
            )
        from undegrade.models.diffusion.inference_blocks import frozen  # noqa: PLC0415  it imports diffusers, which takes seconds

        self.denoiser = frozen(denoiser)
        use_precision(self.denoiser, config.precision)
        self.decoder = decoder if decoder is None else decoder.to(memory_format=torch.channels_last)
        self.network = guided(denoiser, config.guidance_scale, config.guided_channels)
        self.num_classes = denoiser.num_classes
        self.image_size = denoiser.image_size * (1 if decoder is None else decoder.factor)
        self._check_size(config.image_size)
        if config.num_classes not in (None, self.num_classes):
            raise ValueError(
                f"num_classes {config.num_classes}: this model has {self.num_classes}, take one trained on those classes"
            )
        respacing = config.respacing if config.respacing is not None else "" if decoder is None else _LATENT_STEPS
        self.schedule = denoiser.schedule(str(respacing))
        self.variance = check_variance(config.variance, denoiser)
        self.clip_denoised = decoder is None if config.clip_denoised is None else config.clip_denoised
        self.steps = len(self.schedule)
        self.passes = self.steps * (1 if config.guidance_scale == 1 else 2)
        self.parameters: dict[str, Any] = {
            "respacing": str(respacing),
            "guidance_scale": config.guidance_scale,
            "variance": self.variance,
            "clip_denoised": self.clip_denoised,
        }
        if config.guidance_scale != 1:
            self.parameters["guided_channels"] = config.guided_channels

    def _check_size(self, asked: int | None) -> None:
        factor = 1 if self.decoder is None else self.decoder.factor
        if asked is not None and asked % factor:
            raise ValueError(f"image_size {asked} is no multiple of {factor}, the pixels that the VAE makes of a latent position")
        if asked not in (None, self.image_size):
            raise ValueError(f"image_size {asked}: this model makes images of {self.image_size} px, take one trained on that size")

    @torch.no_grad()
    def generate(self, labels: Sequence[int], generators: Sequence[torch.Generator]) -> Tensor:
        """Images [B, 3, S, S], about [-1, 1], of the classes `labels`; image b depends on (label b,
        generator b) only.
        """
        size = self.denoiser.image_size
        x = sample(
            self.network,
            self.schedule,
            (self.denoiser.channels, size, size),
            generators,
            clip_denoised=self.clip_denoised,
            y=torch.tensor(labels, device=next(self.denoiser.parameters()).device),
            variance=self.variance,
        )
        return x if self.decoder is None else self.decoder(x)


@dataclasses.dataclass(frozen=True)
class Opened:
    """A generator, and where it came from.

    Attributes:
        path: of the diffusion model.
        vae: folder of the decoder, None if there is none.
        digest: 16 hexadecimal digits that name both; computed when asked for, since it reads the
            files.
        class_names: in the order of the class numbers; empty where nothing says them.
    """

    generator: ImageGenerator
    path: Path
    vae: Path | None
    digest: Callable[[], str]
    class_names: list[str]


def _check_network(path: Path, denoiser: Denoiser, network: str | None) -> None:
    given: Any = denoiser.unet.config
    found = (given.num_layers, given.num_attention_heads * given.attention_head_dim, given.patch_size)
    if network is not None and found != NETWORKS[network]:
        shapes = [f"{depth} blocks, width {width}, patches of {patch}" for depth, width, patch in (found, NETWORKS[network])]
        raise ValueError(f"{path} holds a DiT of {shapes[0]}, {network} has {shapes[1]}: name the network that it is (--model)")


def open_generator(config: GenerateConfig, device: torch.device) -> Opened:
    """The generator that a configuration names, on `device`.

    Raises:
        FileNotFoundError, ValueError: missing, foreign, damaged, or of no use for generation; names
            the path.
    """
    reference = config.fill(config.model)

    folder = dit_folder(reference)
    path = folder or diffusers_folder(reference) or find_checkpoint(reference, config.runs, dataset=config.dataset)
    description = {} if path.is_dir() else read_description(path)
    decoder, vae = None, None if config.vae is None else located(config.vae)
    if folder or not (path.is_dir() or description):
        if path.is_dir() and config.num_heads is not None:
            raise ValueError(f"num_heads {config.num_heads}: {path} says how many it has, leave it out")
        denoiser = open_dit(path, config.embedding, config.num_heads)
        vae = vae or (folder and network_folder(folder.parent / "vae"))
        if vae is None:
            raise ValueError(f"{path} makes latents: give the VAE that decodes them with --vae, a folder such as sd-vae-ft-ema")
        _check_network(path, denoiser, config.network)
        if not vae.is_dir():
            raise FileNotFoundError(
                f"--vae: there is no folder {vae}; needed is one of diffusers with an AutoencoderKL (config.json and "
                "diffusion_pytorch_model.safetensors), for the published DiT stabilityai/sd-vae-ft-ema of the Hugging Face Hub"
                f"{how_to_download(vae) or how_to_download('sd-vae-ft-ema')}"
            )
        decoder = open_decoder(vae, denoiser).to(device)
        digest = functools.partial(dit_digest, path, vae, config.embedding, config.num_heads)
    else:
        if vae is not None:
            raise ValueError(f"--vae {vae}: {path} makes pixels, leave it out")
        for key in ("embedding", "num_heads", "network"):
            if (value := getattr(config, key)) is not None:
                raise ValueError(f"{key} {value} is about a DiT: {path} is none, leave it out")
        denoiser = open_denoiser(path, {})
        digest = functools.partial(denoiser_digest, path, {})
    try:
        generator = ImageGenerator(denoiser.to(device), decoder, config)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    names = list(read_classes(config.class_names)) if config.class_names else description.get("classes", [])
    if names and len(names) != generator.num_classes:
        raise ValueError(f"class_names {config.class_names}: {len(names)} names for the {generator.num_classes} classes of {path}")
    return Opened(generator, path, vae, digest, names)
