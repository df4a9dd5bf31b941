"""Random numbers from names: a stream depends on what it is for, never on when or where it is
drawn.

Every stream is derived from a tuple such as `(seed, "noise", level, key)`. Batch size, order,
worker and device count therefore cannot change what an image receives.
"""

from __future__ import annotations

import contextlib
import hashlib
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch


def name_bytes(name: str) -> bytes:
    """UTF-8, also of what stands for the bytes of a file name that is no UTF-8."""
    return name.encode("utf-8", "surrogatepass")


def derive_seed(*parts: object) -> int:
    """63-bit seed from the text of `parts` (BLAKE2b), equal on every platform and in every
    process.
    """
    text = "\x1f".join(repr(p) if isinstance(p, float) else str(p) for p in parts)
    digest = hashlib.blake2b(name_bytes(text), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def numpy_generator(*parts: object) -> np.random.Generator:
    """numpy generator of the stream named by `parts`."""
    return np.random.Generator(np.random.PCG64(derive_seed(*parts)))


def torch_generator(*parts: object, device: str | torch.device = "cpu") -> torch.Generator:
    """torch generator of the stream named by `parts`."""
    return torch.Generator(device=device).manual_seed(derive_seed(*parts))


def seed_everything(seed: int) -> None:
    """Seed Python, numpy and torch globally (for weight initialisation; data streams are derived by
    name).
    """
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002  third-party code may draw from the global generator
    torch.manual_seed(seed)


def global_state(device: str | torch.device = "cpu") -> dict[str, Any]:
    """Where Python's, numpy's and torch's global generators are, and torch's of the device: plain
    values and tensors.
    """
    numpy_state: Any = np.random.get_state()  # noqa: NPY002
    kind, key, *rest = numpy_state
    state = {"python": random.getstate(), "numpy": (kind, key.tolist(), *rest), "torch": torch.get_rng_state()}
    if torch.device(device).type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_global_state(state: dict[str, Any], device: str | torch.device = "cpu") -> None:
    """Put the generators to where `global_state` found them."""
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.device(device).type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], device)


@contextlib.contextmanager
def global_streams(*parts: object) -> Iterator[None]:
    """Within the block Python's, numpy's and torch's global generators (CPU) are at the stream
    named by `parts`, then as before.

    For parts of other libraries that draw from them. CUDA's generators are left alone.
    """
    seed = derive_seed(*parts)
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])  # noqa: NPY002
        torch.set_rng_state(before[2])
