"""Ensemble members and their logits: one forward pass a member and cell, kept on disk; every rule
is then free.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import logging
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from undegrade.evaluation.predictors import CELL, NEVER, Predictor
from undegrade.evaluation.rules import RULES, combine, mixing_weights, rule_names
from undegrade.utils.data.cells import Cell
from undegrade.utils.data.pixels import to_unit
from undegrade.utils.data.sources.image_source import ImageSource
from undegrade.utils.data.views import View
from undegrade.utils.files import write_atomic

log = logging.getLogger(__name__)

_CPU_PIXELS = 32 * 224 * 224  # of a batch on a CPU: more is no faster and takes more memory (benchmarks/README.md)
_RULE_ROWS = 4096  # images to which a rule is applied at a time: its float64 copies of the logits stay small


@dataclasses.dataclass(frozen=True, eq=False)  # a key of what is kept in memory
class Member:
    """A predictor and what it looks at.

    Attributes:
        name: for caches and tables.
        predictor: gives the logits of images.
        digest: of the checkpoint and of the predictor's name and options, for the cache.
        view: gives the images of a cell.
        reset: `cell` or `never`, of a stateful predictor: see `predictors.StatefulOptions`.
    """

    name: str
    predictor: Predictor
    digest: str
    view: View
    reset: str = CELL


def check_rule(rule: str, predictors: Mapping[str, Predictor], system: str) -> None:
    """Raise ValueError where an input rule meets a stateful member, whose logits of mixed images
    would depend on how often it was asked.
    """
    moving = [name for name, predictor in predictors.items() if predictor.stateful]
    if RULES[rule].mixes_images and moving:
        raise ValueError(
            f"system {system!r}: rule {rule!r} mixes the images of its members, and the predictor of member {moving[0]!r} adapts "
            f"itself to what it sees; choose one of: {', '.join(rule_names(False))}"
        )


class Scorer:
    """Logits of members on cells, from the cache where they are already known.

    A stateful member goes through its cells in the order in which they are first asked for. Where
    it is never reset, its cached logits are those after the same cells in the same order; for a
    cell that is not cached it goes through all cells before it again.

    Args:
        cache: folder of `.npz` files (None: nothing is kept).
        batch_size: images a forward pass; of frozen members on a CPU at most as many as 32 of
            224 x 224 pixels.
        on_images: called with the number of images after each batch (progress).
    """

    def __init__(self, cache: Path | None, batch_size: int = 256, on_images: Callable[[int], object] = lambda n: None) -> None:
        self.cache, self.batch_size, self.on_images = cache, batch_size, on_images
        self._prepared: dict[tuple[Member, Cell], Tensor] = {}
        self._asked: dict[Member, list[Cell]] = {}  # cells of each member that is never reset
        self._identities: dict[tuple[Member, Cell], str] = {}
        self._seen: dict[Member, list[Cell]] = {}  # cells that a stateful predictor has gone through since its reset

    def logits(self, member: Member, cell: Cell) -> Tensor:
        """float32 [N, K] of a member on the images of a cell, in the order of its view's keys."""
        if (member, cell) not in self._prepared:
            self.prepare([member], cell)
        return self._prepared[member, cell]

    def prepare(self, members: Sequence[Member], cell: Cell) -> None:
        """Make the logits of `members` on a cell; the images of a view are made once for all
        members that look at it in batches of one size.

        Only the latest cell that was prepared is kept in memory.
        """
        self._prepared = {place: logits for place, logits in self._prepared.items() if place[1] == cell}
        groups: dict[tuple[str, bool], list[Member]] = {}
        for member in members:
            before = self._before(member, cell)
            stored = _read_cache(self._path(member, cell), self._identity(member, cell, before))
            if stored is None:
                self._go_on(member, before)
                groups.setdefault((self._images(member, cell), member.predictor.stateful), []).append(member)
            else:
                self._prepared[member, cell] = stored
        for group in groups.values():
            source, predictors = group[0].view.source(cell), [member.predictor for member in group]
            scored = _forward(predictors, _batches(source, self._size(predictors, source)), len(source), self.on_images)
            for member, logits in zip(group, scored, strict=True):
                self._prepared[member, cell] = logits
                self._keep(self._path(member, cell), self._identity(member, cell, self._before(member, cell)), logits)
                if member.predictor.stateful:
                    self._seen[member] = [*self._before(member, cell), cell]

    def _before(self, member: Member, cell: Cell) -> list[Cell]:
        """The cells whose images have changed the predictor when it comes to a cell."""
        if not member.predictor.stateful or member.reset != NEVER:
            return []
        asked = self._asked.setdefault(member, [])
        if cell not in asked:
            asked.append(cell)
        return asked[: asked.index(cell)]

    def _go_on(self, member: Member, before: list[Cell]) -> None:
        """Bring the predictor into the state after the cells `before`."""
        if not member.predictor.stateful:
            return
        seen = self._seen.pop(member, None)  # known again when the cell is done
        if seen is None or before[: len(seen)] != seen:
            member.predictor.reset()
            seen = []
        if again := before[len(seen) :]:
            log.info("member %s is never reset and goes through %d earlier cells again", member.name, len(again))
        for cell in again:
            source = member.view.source(cell)
            _forward([member.predictor], _batches(source, self.batch_size), len(source), lambda n: None)

    def _identity(self, member: Member, cell: Cell, before: Sequence[Cell]) -> str:
        parts = [member.digest, self._images(member, cell)]
        if member.predictor.identity:
            parts.append(member.predictor.identity)
        if member.predictor.stateful:
            parts += [f"batches of {self.batch_size}, reset: {member.reset}", *(self._images(member, c) for c in before)]
        return _digest(*parts)

    def _images(self, member: Member, cell: Cell) -> str:
        """The identity of a member's images, asked for once: a view may have to look at every
        file.
        """
        if (member, cell) not in self._identities:
            self._identities[member, cell] = member.view.identity(cell)
        return self._identities[member, cell]

    def _path(self, member: Member, cell: Cell) -> Path | None:
        return self.cache and self.cache / member.name / f"{cell.folder.replace('/', '-')}.npz"

    def _size(self, predictors: Sequence[Predictor], source: ImageSource) -> int:
        """Images of a batch: as asked for, but of large ones that a frozen network sees on a CPU
        fewer.
        """
        free = any(not predictor.stateful and predictor.device.type == "cpu" for predictor in predictors)
        return min(self.batch_size, cpu_batch(source.image_size)) if free else self.batch_size

    def scores(self, rule: str, members: Sequence[Member], cell: Cell, double_softmax: bool = False) -> Tensor:
        """Scores [N, K] of an ensemble on a cell; the argmax is its prediction.

        Input rules (`entropy_fuse`, ...) mix the two members' images by weights from their logits
        and cost one more pass of the first member.
        """
        logits = torch.stack([self.logits(member, cell) for member in members])
        if not RULES.get_row(rule).mixes_images:
            return torch.cat([combine(rule, part, double_softmax) for part in logits.split(_RULE_ROWS, dim=1)])
        weights = mixing_weights(rule, logits, double_softmax)
        first, second = members
        identity = _digest(first.digest, second.digest, *(self._images(m, cell) for m in members), str(double_softmax))
        path = self.cache and self.cache / f"{first.name}+{second.name}" / f"{rule}-{cell.folder.replace('/', '-')}.npz"
        stored = _read_cache(path, identity)
        if stored is None:
            sources = [member.view.source(cell) for member in members]
            size = self._size([first.predictor], sources[0])
            pairs = zip(*(_batches(source, size) for source in sources), strict=True)
            mixed = ((rows, mix(weights[rows], a, b)) for (rows, a), (_, b) in pairs)
            stored = _forward([first.predictor], mixed, len(weights), self.on_images)[0].softmax(1)
            self._keep(path, identity, stored)
        return stored

    @staticmethod
    def _keep(path: Path | None, identity: str, values: Tensor) -> None:
        if path is not None:
            buffer = io.BytesIO()
            np.savez(buffer, logits=values.numpy(), identity=np.array(identity))
            write_atomic(path, buffer.getvalue())


def keep_listing(folder: Path, source: ImageSource, overwrite: bool) -> None:
    """Write which images the rows of the logit files in `folder` are, or raise ValueError where
    they are of others.

    Args:
        overwrite: take the place of others.
    """
    path, keys, labels = folder / "images.npz", np.array(source.keys), source.labels.numpy()
    try:
        with np.load(path) as stored:
            if np.array_equal(stored["keys"], keys) and np.array_equal(stored["labels"], labels):
                return
            there = len(stored["keys"])
    except FileNotFoundError:
        there = 0
    except Exception as error:  # a damaged archive raises almost any of them
        log.warning("%s cannot be read (%s: %s) and is written again", path, type(error).__name__, error)
        there = 0
    if there and not overwrite:
        raise ValueError(
            f"{folder} holds logits of another listing ({there} images, {len(keys)} here, or of other names or labels): "
            "choose another --out, or start anew there with --overwrite true"
        )
    buffer = io.BytesIO()
    np.savez(buffer, keys=keys, labels=labels)
    write_atomic(path, buffer.getvalue())


def mix(weights: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Images [B,3,H,W] of two views mixed by weights [B,2]."""
    u = weights.float()[:, :, None, None, None]
    return u[:, 0] * first + u[:, 1] * second


def logits_of(predictor: Predictor, images: Tensor) -> Tensor:
    """float32 [B,K] on the CPU of images [B,3,H,W] in [0,1]."""
    return predictor.predict(images.to(predictor.device, memory_format=torch.channels_last)).detach().float().cpu()


def cpu_batch(image_size: int) -> int:
    """Images that a frozen network takes at a time on a CPU, at most."""
    return max(1, _CPU_PIXELS // image_size**2)


def _batches(source: ImageSource, size: int) -> Iterator[tuple[slice, Tensor]]:
    for start in range(0, len(source), size):
        rows = slice(start, min(start + size, len(source)))
        yield rows, to_unit(source.images(range(rows.start, rows.stop)))


def _forward(
    predictors: Sequence[Predictor], batches: Iterator[tuple[slice, Tensor]], count: int, on_images: Callable[[int], object]
) -> list[Tensor]:
    """Logits [N, K] of each predictor, N = `count`."""
    # made beforehand: small tensors that outlive their batch would lie between large ones, whose
    # room could not be used again
    out = [torch.empty(count, predictor.num_classes) for predictor in predictors]
    for rows, images in batches:
        for predictor, logits in zip(predictors, out, strict=True):
            logits[rows] = logits_of(predictor, images)
            on_images(len(images))
    return out


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
