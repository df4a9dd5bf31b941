"""What a latent editor is told in words: transformers' CLIP text encoder and tokenizer, of which
only two texts are ever needed, the instruction and none.
"""

from __future__ import annotations

import json
import string
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from undegrade.utils.extras import import_extra

INSTRUCTION = "Clean the image"
_LENGTH = 20  # tokens of the small encoder; the instruction has 15 letters and two marks


def transformers() -> Any:
    """The package, which only text encoders need.

    Raises:
        ValueError: it is not installed; names the extra.
    """
    what = "the text encoder of a latent editor (there is none beside prompt_embeds.safetensors and in our own checkpoints)"
    return import_extra("transformers", "editor", what)


def embed(tokenizer: Any, encoder: Any, texts: list[str]) -> Tensor:
    """Embeddings [texts, length, width] float32; each text by itself, as a pipeline for one image
    does it.
    """
    how = {"padding": "max_length", "max_length": tokenizer.model_max_length, "truncation": True, "return_tensors": "pt"}
    with torch.no_grad():
        return torch.cat([encoder(tokenizer([text], **how).input_ids)[0].float() for text in texts])


def small_text_parts(width: int, folder: Path) -> tuple[Any, Any]:
    """A tokenizer of letters, whose files are written to `folder`, and a text encoder of one layer
    with fixed random weights: for editors that are trained from scratch, to which the instruction
    is one bit.

    Args:
        width: of an embedding.
        folder: is made if it is not there.
    """
    package = transformers()
    marks = ["<|startoftext|>", "<|endoftext|>"]
    letters = sorted(set(string.ascii_lowercase + string.digits + ".,"))
    vocabulary = [*letters, *(f"{letter}</w>" for letter in letters), *marks]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(vocabulary)}), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": _LENGTH, "bos_token": marks[0], "eos_token": marks[1]}
    settings |= {"unk_token": marks[1], "pad_token": marks[1]}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    tokenizer = package.CLIPTokenizer.from_pretrained(folder)
    config = package.CLIPTextConfig(
        vocab_size=len(vocabulary), hidden_size=width, intermediate_size=2 * width, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=_LENGTH, projection_dim=width, bos_token_id=len(vocabulary) - 2, eos_token_id=len(vocabulary) - 1,
        pad_token_id=len(vocabulary) - 1,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        encoder = package.CLIPTextModel(config)
    return tokenizer, encoder.eval().requires_grad_(False)
