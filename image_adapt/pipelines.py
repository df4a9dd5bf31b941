"""The pipelines of Decorruptor's published programs by their names, for code that imports them: in
place of `pipeline.deccoruptor_lcm_pipe` and `pipeline.deccoruptor_dpm_pipe` write
`undegrade.image_adapt.pipelines`.

Both are diffusers' `StableDiffusionInstructPix2PixPipeline` but for the call: everything random
comes from `generator`, the width of the scale embedding is the network's own, and pixels are taken
for what they are. For folders of images image_sample.py is quicker (docs/adaptation.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import LCMScheduler, StableDiffusionInstructPix2PixPipeline
from diffusers.pipelines.stable_diffusion import StableDiffusionPipelineOutput

from undegrade.models.diffusion.editor import Editor, edit, image_weights
from undegrade.models.diffusion.prompt import INSTRUCTION, embed
from undegrade.models.diffusion.vae import LatentAutoencoder

__all__ = ["ConsistInstructPix2PixPipeline", "IP2PLatentConsistencyModelPipeline", "LCMScheduler"]


class ConsistInstructPix2PixPipeline(StableDiffusionInstructPix2PixPipeline):
    """The ordinary editor ("DPM")."""

    unet: Any
    vae: Any
    tokenizer: Any
    text_encoder: Any
    scheduler: Any
    image_processor: Any

    @torch.no_grad()
    def __call__(  # type: ignore[override]
        self,
        prompt: str | Sequence[str] = INSTRUCTION,
        image: Any = None,
        num_inference_steps: int | None = None,
        guidance_scale: float = 7.5,
        image_guidance_scale: float | Sequence[float] | None = None,
        num_images_per_prompt: int = 1,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> Any:
        """Edited images.

        Args:
            prompt: the instruction; of several all must be the same.
            image: PIL, or a tensor [B, 3, H, W] in [0, 1], or a list of these.
            num_inference_steps: None: 20, of a distilled editor 4.
            guidance_scale, image_guidance_scale: w_T and w_I (None: the published list, of a
                distilled editor 1.3).
            num_images_per_prompt: edits of each image.
            generator: one, or one for each edit (None: a new one).
            output_type: pil | np | pt | latent.
            return_dict: whether an object with `images` is returned, or a tuple.

        Raises:
            ValueError: no image, several instructions, another number of generators.
        """
        if image is None:
            raise ValueError("image is missing: give the image that is to be cleaned")
        texts = {prompt} if isinstance(prompt, str) else set(prompt)
        if len(texts) != 1:
            raise ValueError(f"prompts {sorted(texts)}: give one instruction, the same for all images")
        device, kind = self.unet.device, self.unet.dtype
        embeddings = embed(self.tokenizer, self.text_encoder, [*texts, ""]).to(kind)
        editor = Editor(self.unet, LatentAutoencoder(self.vae), embeddings, self.scheduler.config)
        distilled = editor.scale_width is not None
        steps = num_inference_steps or (4 if distilled else 20)
        condition = editor.autoencoder.encode(self.image_processor.preprocess(image).to(device, kind))
        condition = condition.repeat_interleave(num_images_per_prompt, 0)
        if image_guidance_scale is None:
            image_guidance_scale = 1.3 if distilled else image_weights(steps)
        streams = _one_each(generator, len(condition))
        latents = edit(editor, condition, streams, steps, guidance_scale, image_guidance_scale)
        images: Any = (
            latents if output_type == "latent" else self.image_processor.postprocess(editor.autoencoder(latents), output_type)
        )
        return StableDiffusionPipelineOutput(images, None) if return_dict else (images, None)


class IP2PLatentConsistencyModelPipeline(ConsistInstructPix2PixPipeline):
    """The distilled editor ("CM")."""


def _one_each(generator: torch.Generator | Sequence[torch.Generator] | None, count: int) -> list[torch.Generator]:
    """CPU generators, one for each of `count` edits: those that are given, or seeded by one."""
    if generator is None:
        generator = torch.Generator()
        generator.seed()
    if isinstance(generator, torch.Generator):
        if count == 1 and generator.device.type == "cpu":
            return [generator]
        seeds = torch.randint(2**62, (count,), generator=generator, device=generator.device).tolist()
        return [torch.Generator().manual_seed(seed) for seed in seeds]
    if len(generator) != count:
        raise ValueError(f"{len(generator)} generators for {count} edits: give one for each, or a single one")
    return list(generator)
