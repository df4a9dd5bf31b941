"""Random images and networks that the rows share."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from undegrade.models.classification.classifier import Classifier, build_classifier, describe
from undegrade.models.diffusion.openai_flags import ModelFlags
from undegrade.utils.checkpoint import save_checkpoint
from undegrade.utils.seeding import seed_everything

CLASSES = tuple("0123456789")
_OF_CREATE_MODEL = (
    "image_size", "num_channels", "num_res_blocks", "channel_mult", "learn_sigma", "class_cond", "attention_resolutions",
    "num_heads", "num_head_channels", "num_heads_upsample", "use_scale_shift_norm", "dropout", "resblock_updown",
    "use_new_attention_order",
)  # fmt: skip


def images(count: int, size: int) -> np.ndarray:
    """uint8 [count, size, size, 3] that vary slowly, as photographs do; the same for every call."""
    coarse = np.random.default_rng(0).integers(0, 256, (count, max(2, size // 8), max(2, size // 8), 3), dtype=np.uint8)
    return np.stack([np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC)) for image in coarse])


def classifier(arch: str, seed: int = 0) -> Classifier:
    """Fresh weights by the seed."""
    seed_everything(seed)
    return build_classifier(arch, len(CLASSES), (0.49, 0.48, 0.45), (0.25, 0.24, 0.26))


def save_classifier(arch: str, seed: int, path: Path) -> Path:
    """A checkpoint of it."""
    network = classifier(arch, seed)
    save_checkpoint(path, network.network.state_dict(), {**describe(network), "classes": list(CLASSES)})
    return path


def published_unet(flags: ModelFlags) -> nn.Module:
    """What guided-diffusion makes of the flags (on the device of the context); the same for every
    call.
    """
    from guided_diffusion.script_util import create_model  # noqa: PLC0415  of the development packages

    seed_everything(0)
    return create_model(**{name: getattr(flags, name) for name in _OF_CREATE_MODEL})


@torch.no_grad()
def randomised(network: nn.Module, seed: int = 0) -> nn.Module:
    """The same network, in eval mode, with weights that make every block matter: those of a new
    U-Net end in zeros.
    """
    generator = torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim > 1:
            parameter.copy_(noise / math.sqrt(parameter[0].numel()))
        else:
            parameter.add_(0.1 * noise)
    return network.eval()


def forward_work(network: nn.Module, size: int, *more: torch.Tensor) -> float:
    """Billions of floating-point operations (a multiplication and an addition are two) of one
    image's forward pass.

    `more` are the arguments after the image.
    """
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.zeros(1, 3, size, size), *more)
    return counter.get_total_flops() / 1e9
