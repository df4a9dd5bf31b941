"""Ensemble members and their logits: one forward pass a member and cell, kept on disk; every rule
is then free.
"""

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

from undegrade.evaluation.rules import INPUT_RULES, combine, mixing_weights
from undegrade.models.classification.classifier import Classifier
from undegrade.utils.data.cells import Cell
from undegrade.utils.data.pixels import to_unit
from undegrade.utils.data.sources.image_source import ImageSource
from undegrade.utils.data.views import View
from undegrade.utils.files import write_atomic

_CPU_PIXELS = 32 * 224 * 224  # of a batch on a CPU: more is no faster and takes more memory (benchmarks/README.md)
_RULE_ROWS = 4096  # images to which a rule is applied at a time: its float64 copies of the logits stay small


@dataclasses.dataclass(frozen=True, eq=False)  # a key of what is kept in memory
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
        batch_size: images a forward pass; on a CPU at most as many as 32 of 224 x 224 pixels.
        on_images: called with the number of images after each batch (progress).
    """

    def __init__(self, cache: Path | None, batch_size: int = 256, on_images: Callable[[int], object] = lambda n: None) -> None:
        self.cache, self.batch_size, self.on_images = cache, batch_size, on_images
        self._prepared: dict[tuple[Member, Cell], Tensor] = {}

    def logits(self, member: Member, cell: Cell) -> Tensor:
        """float32 [N, K] of a member on the images of a cell, in the order of its view's keys."""
        if (member, cell) not in self._prepared:
            self.prepare([member], cell)
        return self._prepared[member, cell]

    def prepare(self, members: Sequence[Member], cell: Cell) -> None:
        """Make the logits of `members` on a cell; the images of a view are made once for all
        members that look at it.

        Only the latest cell that was prepared is kept in memory.
        """
        self._prepared = {place: logits for place, logits in self._prepared.items() if place[1] == cell}
        by_view: dict[str, list[Member]] = {}
        for member in members:
            stored = _read_cache(self._path(member, cell), _identity(member, cell))
            if stored is None:
                by_view.setdefault(member.view.identity(cell), []).append(member)
            else:
                self._prepared[member, cell] = stored
        for group in by_view.values():
            classifiers, source = [member.classifier for member in group], group[0].view.source(cell)
            scored = self._forward(classifiers, self._batches(source, classifiers), len(source))
            for member, logits in zip(group, scored, strict=True):
                self._prepared[member, cell] = logits
                self._keep(self._path(member, cell), _identity(member, cell), logits)

    def _path(self, member: Member, cell: Cell) -> Path | None:
        return self.cache and self.cache / member.name / f"{cell.folder.replace('/', '-')}.npz"

    def scores(self, rule: str, members: Sequence[Member], cell: Cell, double_softmax: bool = False) -> Tensor:
        """Scores [N, K] of an ensemble on a cell; the argmax is its prediction.

        Input rules (`entropy_fuse`, ...) mix the two members' images by weights from their logits
        and cost one more pass of the first member.
        """
        logits = torch.stack([self.logits(member, cell) for member in members])
        if rule not in INPUT_RULES:
            return torch.cat([combine(rule, part, double_softmax) for part in logits.split(_RULE_ROWS, dim=1)])
        weights = mixing_weights(rule, logits, double_softmax)
        first, second = members
        identity = _digest(first.digest, second.digest, first.view.identity(cell), second.view.identity(cell), str(double_softmax))
        path = self.cache and self.cache / f"{first.name}+{second.name}" / f"{rule}-{cell.folder.replace('/', '-')}.npz"
        stored = _read_cache(path, identity)
        if stored is None:
            stored = self._mixed_pass(first, second, weights, cell).softmax(1)
            self._keep(path, identity, stored)
        return stored

    def _mixed_pass(self, first: Member, second: Member, weights: Tensor, cell: Cell) -> Tensor:
        views = (member.view.source(cell) for member in (first, second))
        pairs = zip(*(self._batches(source, [first.classifier]) for source in views), strict=True)
        u = weights.float()[:, :, None, None, None]
        mixed = ((rows, u[rows, 0] * a + u[rows, 1] * b) for (rows, a), (_, b) in pairs)
        return self._forward([first.classifier], mixed, len(weights))[0]

    def _batches(self, source: ImageSource, classifiers: Sequence[Classifier]) -> Iterator[tuple[slice, Tensor]]:
        size = self.batch_size
        if any(_device(classifier).type == "cpu" for classifier in classifiers):
            size = min(size, max(1, _CPU_PIXELS // source.image_size**2))
        for start in range(0, len(source), size):
            rows = slice(start, min(start + size, len(source)))
            yield rows, to_unit(source.images(range(rows.start, rows.stop)))

    @torch.inference_mode()
    def _forward(self, classifiers: Sequence[Classifier], batches: Iterator[tuple[slice, Tensor]], count: int) -> list[Tensor]:
        """Logits [N, K] of each classifier, N = `count`."""
        # made beforehand: small tensors that outlive their batch would lie between large ones,
        # whose room could not be used again
        out = [torch.empty(count, classifier.num_classes) for classifier in classifiers]
        for rows, images in batches:
            for classifier, logits in zip(classifiers, out, strict=True):
                moved = images.to(_device(classifier), memory_format=torch.channels_last)
                logits[rows] = classifier(moved).float().cpu()
                self.on_images(len(images))
        return out

    @staticmethod
    def _keep(path: Path | None, identity: str, values: Tensor) -> None:
        if path is not None:
            buffer = io.BytesIO()
            np.savez(buffer, logits=values.numpy(), identity=np.array(identity))
            write_atomic(path, buffer.getvalue())


def _device(classifier: Classifier) -> torch.device:
    return next(classifier.parameters()).device


def _identity(member: Member, cell: Cell) -> str:
    return _digest(member.digest, member.view.identity(cell))


def _read_cache(path: Path | None, identity: str) -> Tensor | None:
    """The tensor of a cache file; None when there is none, it is of something else, or it is
    damaged.
    """
    if path is None:
        return None
    try:
        with np.load(path) as stored:
            return torch.from_numpy(stored["logits"]) if str(stored["identity"]) == identity else None
    except (OSError, EOFError, ValueError, TypeError, KeyError, AttributeError, zipfile.BadZipFile, zlib.error):
        return None


def _digest(*parts: str) -> str:
    return hashlib.sha256("\x1f".join(parts).encode()).hexdigest()[:16]
