"""Ensemble members and their logits: one forward pass a member and cell, kept on disk; every rule
is then free.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from undegrade.evaluation.logit_store import StoredLogits, read_logits, write_logits
from undegrade.evaluation.predictors import CELL, NEVER, Predictor
from undegrade.evaluation.rules import RULES, combine, mixing_weights, rule_names
from undegrade.utils.data.cells import Cell
from undegrade.utils.data.pixels import to_unit
from undegrade.utils.data.sources.image_source import ImageSource
from undegrade.utils.data.views import View

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
        exact: keep logits of any number of classes in float32 (`logit_store`).
    """

    def __init__(
        self,
        cache: Path | None,
        batch_size: int = 256,
        on_images: Callable[[int], object] = lambda n: None,
        exact: bool = False,
    ) -> None:
        self.cache, self.batch_size, self.on_images, self.exact = cache, batch_size, on_images, exact
        self._prepared: dict[tuple[Member, Cell], StoredLogits] = {}
        self._asked: dict[Member, list[Cell]] = {}  # cells of each member that is never reset
        self._identities: dict[tuple[Member, Cell], str] = {}
        self._seen: dict[Member, list[Cell]] = {}  # cells that a stateful predictor has gone through since its reset

    def logits(self, member: Member, cell: Cell, rows: slice = slice(None)) -> Tensor:
        """float32 [N, K] of a member on the images of a cell, in the order of its view's keys; or
        of some of them.
        """
        return self._stored(member, cell)[rows]

    def _stored(self, member: Member, cell: Cell) -> StoredLogits:
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
            stored = read_logits(self._path(member, cell), self._identity(member, cell, before), self.exact)
            if stored is not None:
                self._prepared[member, cell] = stored
            else:
                self._go_on(member, before)
                groups.setdefault((self._images(member, cell), member.predictor.stateful), []).append(member)
        for group in groups.values():
            source, predictors = group[0].view.source(cell), [member.predictor for member in group]
            scored = self._forward(group, _batches(source, self._size(predictors, source)), len(source))
            for member, logits in zip(group, scored, strict=True):
                self._prepared[member, cell] = logits
                write_logits(self._path(member, cell), self._identity(member, cell, self._before(member, cell)), logits)
                if member.predictor.stateful:
                    self._seen[member] = [*self._before(member, cell), cell]

    def _forward(self, members: Sequence[Member], batches: Iterator[tuple[slice, Tensor]], count: int) -> list[StoredLogits]:
        """Logits [N, K] of each member, N = `count`."""
        # made beforehand: small tensors that outlive their batch would lie between large ones,
        # whose room could not be used again
        out = [StoredLogits.empty(count, member.predictor.num_classes, self.exact) for member in members]
        for rows, images in batches:
            for member, logits in zip(members, out, strict=True):
                logits[rows] = logits_of(member.name, member.predictor, images)
                self.on_images(len(images))
        return out

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
            for _, images in _batches(source, self.batch_size):
                logits_of(member.name, member.predictor, images)

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

    def scores(self, rule: str, members: Sequence[Member], cell: Cell, double_softmax: bool = False) -> Iterator[Tensor]:
        """Scores of an ensemble on a cell, some thousand images at a time: float64 [B, K], of which
        the argmax is the prediction.

        Input rules (`entropy_fuse`, ...) mix the two members' images by weights from their logits
        and cost one more pass of the first member.
        """
        logits = [self._stored(member, cell) for member in members]
        rows = [slice(start, start + _RULE_ROWS) for start in range(0, len(logits[0]), _RULE_ROWS)]
        parts = (torch.stack([values[part] for values in logits]) for part in rows)
        if not RULES.get_row(rule).mixes_images:
            yield from (combine(rule, part, double_softmax) for part in parts)
            return
        weights = torch.cat([mixing_weights(rule, part, double_softmax) for part in parts])
        mixed = self._mixed(rule, members, cell, weights, double_softmax)
        yield from (mixed[part].double().softmax(1) for part in rows)

    def _mixed(self, rule: str, members: Sequence[Member], cell: Cell, weights: Tensor, double_softmax: bool) -> StoredLogits:
        """Logits of the first of two members on images mixed by weights [N, 2]."""
        first, second = members
        seen = [self._images(member, cell) for member in members]
        identity = _digest("logits", first.digest, second.digest, *seen, str(double_softmax))
        path = self.cache and self.cache / f"{first.name}+{second.name}" / f"{rule}-{cell.folder.replace('/', '-')}.npz"
        stored = read_logits(path, identity, self.exact)
        if stored is None:
            sources = [member.view.source(cell) for member in members]
            size = self._size([first.predictor], sources[0])
            pairs = zip(*(_batches(source, size) for source in sources), strict=True)
            mixed = ((rows, mix(weights[rows], a, b)) for (rows, a), (_, b) in pairs)
            (stored,) = self._forward([first], mixed, len(weights))
            write_logits(path, identity, stored)
        return stored


def mix(weights: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Images [B,3,H,W] of two views mixed by weights [B,2]."""
    u = weights.float()[:, :, None, None, None]
    return u[:, 0] * first + u[:, 1] * second


def logits_of(name: str, predictor: Predictor, images: Tensor) -> Tensor:
    """float32 [B,K] on the CPU of images [B,3,H,W] in [0,1].

    Raises:
        ValueError: logits that are no numbers; names the member, `name`.
    """
    logits = predictor.predict(images.to(predictor.device, memory_format=torch.channels_last)).detach().float().cpu()
    if broken := int((~logits.amax(1).isfinite()).sum()):
        raise ValueError(
            f"member {name!r} gives logits that are nan or infinite for {broken} of {len(images)} images: its weights are "
            "damaged, or it has adapted itself beyond them"
        )
    return logits


def cpu_batch(image_size: int) -> int:
    """Images that a frozen network takes at a time on a CPU, at most."""
    return max(1, _CPU_PIXELS // image_size**2)


def _batches(source: ImageSource, size: int) -> Iterator[tuple[slice, Tensor]]:
    for start in range(0, len(source), size):
        rows = slice(start, min(start + size, len(source)))
        yield rows, to_unit(source.images(range(rows.start, rows.stop)))


def _digest(*parts: str) -> str:
    return hashlib.sha256("\x1f".join(parts).encode()).hexdigest()[:16]
