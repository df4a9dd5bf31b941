"""DiT (Peebles & Xie, ICCV 2023), a class-conditional diffusion transformer, as diffusers'
`DiTTransformer2DModel`.

diffusers computes two things otherwise than the published code: the frequencies of the time
embedding, exp(-ln(10000) i / 127) instead of exp(-ln(10000) i / 128) for i = 0..127, and the
epsilon of the second norm of a block, 1e-5 instead of 1e-6. Weights of the published code are
computed as they were trained.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import logging
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from undegrade.models.diffusion.denoiser import Denoiser
from undegrade.models.diffusion.diffusers_folder import (
    CONFIG,
    network_folder,
    read_json,
    read_network,
    scheduler_file,
    weights_file,
)
from undegrade.models.diffusion.unet import assign_weights
from undegrade.utils.checkpoint import file_digest, load_checkpoint
from undegrade.utils.choices import check_choice

log = logging.getLogger(__name__)

EMBEDDINGS = ("original", "diffusers")
_PART = "transformer"  # of a pipeline
_OLD_CLASS, _CLASS = "Transformer2DModel", "DiTTransformer2DModel"
_HEADS = {1152: 16, 1024: 16, 768: 12, 384: 6}  # by width: the published sizes XL, L, B, S
_SCHEDULER = {
    "beta_schedule": "linear",
    "beta_start": 1e-4,
    "beta_end": 0.02,
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
}
_TIME_WIDTH = 256

# name in the published code -> name in diffusers, of every layer with weight and bias; {} is the
# number of the block
_ENDS = {
    "x_embedder.proj": "pos_embed.proj",
    "final_layer.adaLN_modulation.1": "proj_out_1",
    "final_layer.linear": "proj_out_2",
}
_BLOCK = {
    "adaLN_modulation.1": "norm1.linear",
    "attn.proj": "attn1.to_out.0",
    "mlp.fc1": "ff.net.0.proj",
    "mlp.fc2": "ff.net.2",
}
_EMBEDDERS = {  # of the whole network there, of each block here
    "t_embedder.mlp.0": "timestep_embedder.linear_1",
    "t_embedder.mlp.2": "timestep_embedder.linear_2",
}
_TABLE, _POSITIONS = "y_embedder.embedding_table.weight", "pos_embed"


def dit_folder(reference: str | Path) -> Path | None:
    """The folder of the transformer if `reference` is one of diffusers with a DiT (or a pipeline
    with one), else None.
    """
    folder = network_folder(reference, _PART)
    if folder is None or read_json(folder / CONFIG).get("_class_name") not in (_CLASS, _OLD_CLASS):
        return None
    return folder


def open_dit(path: str | Path, embedding: str | None = None, num_heads: int | None = None) -> Denoiser:
    """A frozen DiT in eval mode, float32; what it denoises are latents [B, 4, S, S] of
    `models.diffusion.vae`.

    Args:
        path: state dict of the published code (`DiT-XL-2-256x256.pt`), or a folder of diffusers.
        embedding: how the network is computed: original | diffusers (see above). None: as the
            published code, but for a folder of a `DiTTransformer2DModel`, which may have been
            trained with diffusers, as diffusers does.
        num_heads: attention heads of a state dict, needed where its width is not that of a
            published size.

    Raises:
        FileNotFoundError, ValueError: missing, damaged, no DiT, or one that diffusers' class cannot
            represent; names the path.
    """
    path = Path(path)
    embedding = check_choice(embedding or _usual_embedding(path), EMBEDDINGS, "embedding")
    if path.is_dir():
        _check_scheduler(path)
        config, state = read_network(path, [_CLASS, _OLD_CLASS])
    else:
        published, _ = load_checkpoint(path, kind="diffusion")
    try:
        if path.is_dir():
            denoiser = build_dit(config, state, embedding)
        else:
            denoiser = build_dit(dit_config(published, num_heads), convert_state_dict(published), embedding, published[_POSITIONS])
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    log.info("DiT from %s, computed as by %s", path, "diffusers" if embedding == "diffusers" else "the published code")
    return denoiser.eval().requires_grad_(False)


def _usual_embedding(path: Path) -> str:
    """Folders of the class that a DiT was a part of before were converted from published
    weights.
    """
    return "diffusers" if path.is_dir() and read_json(path / CONFIG).get("_class_name") == _CLASS else "original"


def dit_digest(path: Path, vae: Path, embedding: str | None = None, num_heads: int | None = None) -> str:
    """16 hexadecimal digits that name the network of `open_dit(path, embedding, num_heads)` and its
    decoder, for manifests.
    """
    files = [path] if path.is_file() else [path / CONFIG, weights_file(path)]
    parts: list[object] = [file_digest(file) for file in [*files, vae / CONFIG, weights_file(vae)]]
    parts += [embedding or _usual_embedding(path), num_heads if path.is_file() else None]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def _check_scheduler(folder: Path) -> None:
    """The chain that a pipeline says it was trained on is the one that is used here."""
    path = scheduler_file(folder)
    said = read_json(path) if path.is_file() else {}
    wrong = {key: said[key] for key, value in _SCHEDULER.items() if said.get(key, value) != value}
    if wrong:
        raise ValueError(f"{path} says {wrong}: only the chain of the published DiT is supported, {_SCHEDULER}")


def dit_config(state: Mapping[str, Tensor], num_heads: int | None = None) -> dict[str, Any]:
    """Arguments of `DiTTransformer2DModel` that the shapes of a state dict of the published code
    show (heads: by width).

    Raises:
        ValueError: not such a state dict; a number of heads that is not known or does not divide
            the width.
    """
    needed = ("x_embedder.proj.weight", _POSITIONS, _TABLE, "final_layer.linear.weight", "t_embedder.mlp.0.weight")
    if any(name not in state for name in needed):
        some = ", ".join(list(state)[:3]) or "nothing"
        raise ValueError(
            f"not a state dict of DiT: it lacks {', '.join(name for name in needed if name not in state)} and holds {len(state)} "
            f"tensors ({some}, ...). Convert a checkpoint of guided-diffusion first, by image_adapt/scripts/convert_checkpoint.py"
        )
    width, channels, patch, _ = state["x_embedder.proj.weight"].shape
    tokens = state[_POSITIONS].shape[1]
    side = math.isqrt(tokens)
    heads = num_heads or _HEADS.get(width)
    if heads is None:
        raise ValueError(f"its width {width} is none of the published sizes {list(_HEADS)}: give the attention heads (--num_heads)")
    if heads < 1 or width % heads or side**2 != tokens or state["t_embedder.mlp.0.weight"].shape[1] != _TIME_WIDTH:
        raise ValueError(
            f"width {width} with {heads} heads, {tokens} positions, time embedding of "
            f"{state['t_embedder.mlp.0.weight'].shape[1]}: heads must divide the width, positions be a square, the embedding 256"
        )
    return {
        "num_attention_heads": heads,
        "attention_head_dim": width // heads,
        "in_channels": channels,
        "out_channels": len(state["final_layer.linear.weight"]) // patch**2,
        "num_layers": _depth(state),
        "sample_size": side * patch,
        "patch_size": patch,
        "num_embeds_ada_norm": len(state[_TABLE]) - 1,  # the last row is the null label
    }


def _depth(state: Mapping[str, Tensor]) -> int:
    return 1 + max((int(name.split(".")[1]) for name in state if re.match(r"blocks\.\d+\.", name)), default=-1)


def convert_state_dict(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same weights under diffusers' names; queries, keys and values are split.

    Raises:
        ValueError: tensors that a DiT does not have, or lacks.
    """
    names = [(theirs, [ours]) for theirs, ours in _ENDS.items()]
    blocks = [f"transformer_blocks.{d}" for d in range(_depth(state))]
    for d, block in enumerate(blocks):
        names += [(f"blocks.{d}.{theirs}", [f"{block}.{ours}"]) for theirs, ours in _BLOCK.items()]
        names.append((f"blocks.{d}.attn.qkv", [f"{block}.attn1.to_{part}" for part in "qkv"]))
    converted: dict[str, Tensor] = {}
    used = {_TABLE, _POSITIONS}
    for leaf in ("weight", "bias"):
        for theirs, ours in names:
            tensor = _taken(state, f"{theirs}.{leaf}", used)
            converted |= {f"{name}.{leaf}": piece for name, piece in zip(ours, tensor.chunk(len(ours)), strict=True)}
        for theirs, part in _EMBEDDERS.items():
            tensor = _taken(state, f"{theirs}.{leaf}", used)
            converted |= {f"{block}.norm1.emb.{part}.{leaf}": tensor for block in blocks}
    converted |= {f"{block}.norm1.emb.class_embedder.embedding_table.weight": state[_TABLE] for block in blocks}
    unknown = [name for name in state if name not in used]
    if unknown:
        raise ValueError(f"{len(unknown)} tensors that a DiT does not have: {', '.join(unknown[:4])}")
    return converted


def _taken(state: Mapping[str, Tensor], name: str, used: set[str]) -> Tensor:
    if name not in state:
        raise ValueError(f"not a whole DiT of {_depth(state)} blocks: {name} is missing")
    used.add(name)
    return state[name]


def build_dit(config: Mapping[str, Any], state: Mapping[str, Tensor], embedding: str, positions: Tensor | None = None) -> Denoiser:
    """A DiT of diffusers' configuration and weights.

    Args:
        config: arguments of `DiTTransformer2DModel`; others (of the class that it was a part of
            before) are left out.
        state: weights under diffusers' names.
        embedding: see `open_dit`.
        positions: embedding of the positions [1, tokens, width]; None: diffusers' own, which is the
            published formula.

    Raises:
        ValueError: weights that do not fit.
    """
    from accelerate import init_empty_weights  # noqa: PLC0415  importing them takes seconds
    from diffusers import DiTTransformer2DModel  # noqa: PLC0415

    known = inspect.signature(DiTTransformer2DModel.__init__).parameters
    original = embedding == "original"
    given = {key: value for key, value in config.items() if key in known} | ({"norm_eps": 1e-6} if original else {})
    with init_empty_weights(include_buffers=False):  # the positions are no part of the weights
        transformer: Any = DiTTransformer2DModel(**given)
    assign_weights(transformer, state)
    if positions is not None:
        transformer.pos_embed.pos_embed = positions.float()
    _share_embedders(transformer)
    if original:
        for block in transformer.transformer_blocks:
            block.norm1.emb.time_proj.downscale_freq_shift = 0
    learn_sigma = transformer.out_channels == 2 * transformer.config.in_channels
    return Denoiser(transformer, noise_schedule="linear", learn_sigma=learn_sigma, null_label=True)


def _share_embedders(transformer: Any) -> None:
    """diffusers has a copy of the embedders in every block, a tenth of the weights: one serves them
    all where they are equal.
    """
    first, *others = transformer.transformer_blocks
    mine = first.norm1.emb.state_dict()
    for block in others:
        if all(mine[name].equal(tensor) for name, tensor in block.norm1.emb.state_dict().items()):
            block.norm1.emb = first.norm1.emb
