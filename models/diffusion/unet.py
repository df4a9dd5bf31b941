"""diffusers' `UNet2DModel` with the options that published networks need and it has not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

_OWN_KEYS = ("num_heads", "time_channels")


def build_unet(config: Mapping[str, Any]) -> Any:
    """A `UNet2DModel` of a configuration that may hold two keys of our own, for what diffusers has
    no option for.

    Args:
        config: arguments of `UNet2DModel`, and `num_heads`: heads of every attention block,
            whatever its width (`attention_head_dim` fixes their width instead); `time_channels`:
            width of the sinusoidal time embedding where it is not that of the first level.

    Raises:
        ValueError: a key that the installed diffusers does not know.
    """
    from diffusers import UNet2DModel  # noqa: PLC0415  importing it takes seconds
    from diffusers.models.embeddings import TimestepEmbedding, Timesteps  # noqa: PLC0415

    own = {key: config[key] for key in _OWN_KEYS if config.get(key) is not None}
    try:
        unet: Any = UNet2DModel(**{key: value for key, value in config.items() if key not in _OWN_KEYS})
    except TypeError as error:
        raise ValueError(f"the installed diffusers cannot build the described network ({error}): update it") from error
    if "time_channels" in own:
        unet.time_proj = Timesteps(own["time_channels"], unet.config.flip_sin_to_cos, unet.config.freq_shift)
        unet.time_embedding = TimestepEmbedding(own["time_channels"], 4 * own["time_channels"])
    for attention in attentions(unet) if "num_heads" in own else ():
        attention.heads = own["num_heads"]
        attention.scale = (attention.inner_dim / attention.heads) ** -0.5
    unet.register_to_config(**own)
    return unet


def attentions(unet: nn.Module) -> list[Any]:
    """The attention blocks of a `UNet2DModel`."""
    return [module for module in unet.modules() if hasattr(module, "to_q")]


def assign_weights(network: nn.Module, state_dict: Mapping[str, Tensor]) -> None:
    """Put weights into a network of diffusers, whose own may lie on the meta device.

    Aligned float32 weights become its own without a copy (hence may stay in a mapped file), others
    are copied to float32.

    Raises:
        ValueError: weights that do not fit (names what differs).
    """
    try:
        network.load_state_dict({name: _aligned(tensor.float()) for name, tensor in state_dict.items()}, assign=True)
    except RuntimeError as error:
        text = " ".join(str(error).split())
        raise ValueError(f"the weights do not fit the described network: {text[:600]}") from error


def _aligned(tensor: Tensor) -> Tensor:
    """Kernels differ by alignment in their rounding, so that results would depend on where in a
    file the weights lie.
    """
    return tensor.clone() if tensor.data_ptr() % 64 else tensor
