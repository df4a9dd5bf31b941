"""Logits of a member on the images of a cell, in memory and on disk.

Of up to 256 classes they are float32. Of more, ImageNet's above all, they take half of that: each
image's highest logit in float32, and in float16 how far the others lie below it. The class of the
highest logit stays the same, always; what a rule computes of several members may change in the
fourth digit (docs/evaluation.md says how often a prediction does). What is scored has this form
whether it comes from a file or not.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from undegrade.utils.data.sources.image_source import ImageSource
from undegrade.utils.files import replacing

log = logging.getLogger(__name__)

_EXACT_CLASSES = 256
_HALF = torch.finfo(torch.float16)
_SMALLEST = _HALF.tiny * _HALF.eps  # the smallest number above 0


@dataclass(eq=False)
class StoredLogits:
    """Logits, written and read some rows at a time as float32.

    Attributes:
        values: [N, K] float32, or float16 less the highest of the row.
        highest: float32 [N], of the latter.
    """

    values: Tensor
    highest: Tensor | None = None

    @classmethod
    def empty(cls, count: int, classes: int, exact: bool = False) -> StoredLogits:
        """Room for logits [N, K]; `exact`: in float32 however many the classes are."""
        if exact or classes <= _EXACT_CLASSES:
            return cls(torch.empty(count, classes))
        return cls(torch.empty(count, classes, dtype=torch.float16), torch.empty(count))

    def __len__(self) -> int:
        return len(self.values)

    def __setitem__(self, rows: slice | Tensor, logits: Tensor) -> None:
        if self.highest is None:
            self.values[rows] = logits
            return
        highest = self.highest[rows] = logits.amax(1)
        below = (logits - highest[:, None]).clamp_min(_HALF.min)
        # what lies below the highest stays below it, however little
        self.values[rows] = below.half().where((below == 0) | (below <= -_SMALLEST), -_SMALLEST)

    def __getitem__(self, rows: slice) -> Tensor:
        below = self.values[rows].float()
        if self.highest is None:
            return below
        highest = self.highest[rows][:, None]
        logits = below + highest
        return logits.where((below == 0) | (logits < highest), highest.nextafter(torch.tensor(-torch.inf)))


def stored_bytes(count: int, classes: int, exact: bool = False) -> int:
    """What `StoredLogits` of this size take."""
    return count * (classes * 4 if exact or classes <= _EXACT_CLASSES else classes * 2 + 4)


def read_logits(path: Path | None, identity: str, exact: bool = False) -> StoredLogits | None:
    """The logits of a file; None when there is none, it is of something else, it is not exact but
    should be, or it is damaged, which is said: they are made again.
    """
    if path is None:
        return None
    try:
        with np.load(path) as stored:
            if str(stored["identity"]) != identity:
                return None
            highest = torch.from_numpy(stored["highest"]) if "highest" in stored else None
            found = StoredLogits(torch.from_numpy(stored["logits"]), highest)
            count, classes = found.values.shape
        wanted = StoredLogits.empty(count, classes, exact)
        if found.values.dtype == wanted.values.dtype:
            return found
        wanted[:] = found.values
        return None if exact else wanted
    except FileNotFoundError:
        return None
    except Exception as error:  # a damaged archive raises almost any of them
        log.warning("cached logits %s cannot be read (%s: %s): they are made again", path, type(error).__name__, error)
        return None


def write_logits(path: Path | None, identity: str, logits: StoredLogits) -> None:
    """Write logits and what they are of, atomically; nothing without a path."""
    if path is not None:
        highest = {} if logits.highest is None else {"highest": logits.highest.numpy()}
        _write(path, {"logits": logits.values.numpy(), **highest, "identity": np.array(identity)})


def keep_listing(folder: Path, source: ImageSource, overwrite: bool) -> None:
    """Write which images the rows of the files in `folder` are (`images.npz`).

    Args:
        folder: of all members' logits.
        source: the images.
        overwrite: take the place of others.

    Raises:
        ValueError: they are of other images, and `overwrite` is not given.
    """
    path, keys, labels = folder / "images.npz", np.array(source.keys), source.labels.numpy()
    there: Sequence[str] = ()
    try:
        with np.load(path) as stored:
            there = stored["keys"]
            if np.array_equal(there, keys) and np.array_equal(stored["labels"], labels):
                return
    except FileNotFoundError:
        pass
    except Exception as error:  # a damaged archive raises almost any of them
        log.warning("%s cannot be read (%s: %s) and is written again", path, type(error).__name__, error)
    if len(there) and not overwrite:
        raise ValueError(
            f"{folder} holds logits of another listing ({len(there)} images, {len(keys)} here, or of other names or labels): "
            "choose another --out, or start anew there with --overwrite true"
        )
    _write(path, {"keys": keys, "labels": labels})


def _write(path: Path, arrays: dict[str, np.ndarray]) -> None:
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]
