"""Ensemble members and their logits: one forward pass a member and cell, kept on disk; every rule is then free."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from models.classifiers import Classifier
from models.rules import INPUT_RULES, combine, mixing_weights
from utils.data.cells import Cell, View
from utils.data.image_source import ImageSource
from utils.data.pixels import to_unit
from utils.files import write_atomic


@dataclasses.dataclass(frozen=True)
class Member:
    """A classifier and what it looks at.

    Attributes:
        name: for caches and tables.
        classifier: in eval mode, on its device.
        digest: of the checkpoint, names the weights in the cache.
        view: gives the images of a cell.
    """

    name: str
    classifier: Classifier
    digest: str
    view: View


class Scorer:
    """Logits of members on cells, from the cache where they are already known.

    Args:
        cache: folder of `.npz` files (None: nothing is kept).
        batch_size: images a forward pass.
        on_images: called with the number of images after each batch (progress).
    """

    def __init__(self, cache: Path | None, batch_size: int = 256, on_images: Callable[[int], object] = lambda n: None) -> None:
        self.cache, self.batch_size, self.on_images = cache, batch_size, on_images

    def logits(self, member: Member, cell: Cell) -> Tensor:
        """float32 [N, K] of a member on the images of a cell, in the order of its view's keys."""
        identity = _digest(member.digest, member.view.identity(cell))
        return self._cached(f"{member.name}/{cell.folder.replace('/', '-')}", identity, lambda: self._pass(member, cell))

    def scores(self, rule: str, members: Sequence[Member], cell: Cell, double_softmax: bool = False) -> Tensor:
        """Scores [N, K] of an ensemble on a cell; the argmax is its prediction.

        Input rules (`entropy_fuse`, ...) mix the two members' images by weights from their logits and cost one more pass of the
        first member.
        """
        logits = torch.stack([self.logits(member, cell) for member in members])
        if rule not in INPUT_RULES:
            return combine(rule, logits, double_softmax)
        weights = mixing_weights(rule, logits, double_softmax)
        first, second = members
        identity = _digest(first.digest, second.digest, first.view.identity(cell), second.view.identity(cell), str(double_softmax))
        name = f"{first.name}+{second.name}/{rule}-{cell.folder.replace('/', '-')}"
        return self._cached(name, identity, lambda: self._mixed_pass(first, second, weights, cell))

    def _pass(self, member: Member, cell: Cell) -> Tensor:
        batches = (images for _, images in self._batches(member.view.source(cell)))
        return self._forward(member.classifier, batches)

    def _mixed_pass(self, first: Member, second: Member, weights: Tensor, cell: Cell) -> Tensor:
        pairs = zip(self._batches(first.view.source(cell)), self._batches(second.view.source(cell)), strict=True)
        u = weights.float()[:, :, None, None, None]
        return self._forward(first.classifier, (u[rows, 0] * a + u[rows, 1] * b for (rows, a), (_, b) in pairs))

    def _batches(self, source: ImageSource) -> Iterator[tuple[slice, Tensor]]:
        for start in range(0, len(source), self.batch_size):
            rows = slice(start, min(start + self.batch_size, len(source)))
            yield rows, to_unit(source.images(range(rows.start, rows.stop)))

    @torch.inference_mode()
    def _forward(self, classifier: Classifier, batches: Iterator[Tensor]) -> Tensor:
        device, out = next(classifier.parameters()).device, []
        for images in batches:
            out.append(classifier(images.to(device, memory_format=torch.channels_last)).float().cpu())
            self.on_images(len(images))
        return torch.cat(out)

    def _cached(self, name: str, identity: str, compute: Callable[[], Tensor]) -> Tensor:
        if self.cache is None:
            return compute()
        path = self.cache / f"{name}.npz"
        stored = _read_cache(path, identity)
        if stored is not None:
            return stored
        values = compute()
        buffer = io.BytesIO()
        np.savez(buffer, logits=values.numpy(), identity=np.array(identity))
        write_atomic(path, buffer.getvalue())
        return values


def _read_cache(path: Path, identity: str) -> Tensor | None:
    """The tensor of a cache file; None when there is none, it is of something else, or it is damaged."""
    try:
        with np.load(path) as stored:
            return torch.from_numpy(stored["logits"]) if str(stored["identity"]) == identity else None
    except (OSError, EOFError, ValueError, TypeError, KeyError, AttributeError, zipfile.BadZipFile, zlib.error):
        return None


def _digest(*parts: str) -> str:
    return hashlib.sha256("\x1f".join(parts).encode()).hexdigest()[:16]
