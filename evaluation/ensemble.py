"""Ensemble members and their logits: one forward pass a member and cell, kept on disk; every rule
is then free.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from undegrade.evaluation.costs import PREDICTOR_COST, PredictorCost, read_predictor_cost
from undegrade.evaluation.logit_store import StoredLogits, read_logits, write_logits
from undegrade.evaluation.predictors import Predictor
from undegrade.evaluation.protocols import Protocol, stretches
from undegrade.evaluation.rules import FITTED, RULES, combine, mixing_weights, rule_names
from undegrade.evaluation.streams import Stream
from undegrade.utils.data.cells import Cell
from undegrade.utils.data.pixels import to_unit
from undegrade.utils.data.sources.image_source import ImageSource
from undegrade.utils.data.views import View
from undegrade.utils.files import write_atomic

log = logging.getLogger(__name__)

_CPU_PIXELS = 32 * 224 * 224  # of a batch on a CPU: more is no faster and takes more memory (benchmarks/README.md)
_ROOM = 1e9  # bytes: of images that stateful members see one after the other
_RULE_ROWS = 4096  # images to which a rule is applied at a time: its float64 copies of the logits stay small


@dataclasses.dataclass(frozen=True, eq=False)  # a key of what is kept in memory
class Member:
    """A predictor and what it looks at.

    Attributes:
        name: for caches and tables.
        predictor: gives the logits of images.
        digest: of the checkpoint and of the predictor's name and options, for the cache.
        view: gives the images of a cell.
    """

    name: str
    predictor: Predictor
    digest: str
    view: View


def check_rule(rule: str, predictors: Mapping[str, Predictor], system: str) -> None:
    """Raise ValueError where an input rule meets a stateful member, whose logits of mixed images
    would depend on how often it was asked.
    """
    moving = [name for name, predictor in predictors.items() if predictor.stateful]
    if rule not in FITTED and RULES[rule].mixes_images and moving:
        raise ValueError(
            f"system {system!r}: rule {rule!r} mixes the images of its members, and the predictor of member {moving[0]!r} adapts "
            f"itself to what it sees; choose one of: {', '.join(rule_names(False))}"
        )


class Scorer:
    """Logits of members on cells, from the cache where they are already known.

    A stateful member goes through the stream of a protocol. Where it does not start anew at each
    cell, its cached logits are those after the same images in the same order.

    Args:
        cache: folder of `.npz` files (None: nothing is kept on disk).
        batch_size: images a forward pass; of frozen members on a CPU at most as many as 32 of
            224 x 224 pixels.
        on_images: called with the number of images after each batch (progress).
        exact: keep logits of any number of classes in float32 (`logit_store`).
        protocol: of stateful members.
        cells: theirs, in their order, by name of the member (missing: the cell that is asked for).
    """

    def __init__(
        self,
        cache: Path | None,
        batch_size: int = 256,
        on_images: Callable[[int], object] = lambda n: None,
        exact: bool = False,
        protocol: Protocol | None = None,
        cells: Mapping[str, Sequence[Cell]] | None = None,
    ) -> None:
        self.cache, self.batch_size, self.on_images, self.exact = cache, batch_size, on_images, exact
        self.protocol, self._cells = protocol or Protocol(), cells or {}
        self._prepared: dict[tuple[Member, Cell], StoredLogits] = {}
        self._identities: dict[tuple[Member, Cell], str] = {}
        self._asked: dict[Member, list[Cell]] = {}  # of each stateful member, in their order
        self._streams: dict[Member, Stream] = {}
        self._spent: dict[str, list[float]] = {}  # seconds and images, by member
        self._pixels: dict[str, ImageSource] = {}  # of cells, by the identity of their images, the latest last

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

        Only the latest cell that was prepared is kept in memory, and logits that are on no disk.
        """
        held = {place: place[1] == cell or (self.cache is None and place[0].predictor.stateful) for place in self._prepared}
        self._prepared = {place: logits for place, logits in self._prepared.items() if held[place]}
        groups: dict[str, list[Member]] = {}
        for member in members:
            if self._known(member, cell):
                continue
            if member.predictor.stateful:
                known, store = partial(self._known, member), partial(self._store, member)
                self._stream(member, cell).through(cell, known, store, self.on_images)
            else:
                groups.setdefault(self._images(member, cell), []).append(member)
        for group in groups.values():
            source, predictors = group[0].view.source(cell), [member.predictor for member in group]
            scored = self._forward(group, _batches(source, self._size(predictors, source)), len(source))
            for member, logits in zip(group, scored, strict=True):
                self._store(member, cell, logits)

    def _known(self, member: Member, cell: Cell) -> bool:
        """Whether the logits are there, in memory or on disk, from where they are read."""
        if (member, cell) not in self._prepared:
            stored = read_logits(self._path(member, cell), self._identity(member, cell), self.exact)
            if stored is None:
                return False
            self._prepared[member, cell] = stored
        return True

    def _store(self, member: Member, cell: Cell, logits: StoredLogits) -> None:
        self._prepared[member, cell] = logits
        write_logits(self._path(member, cell), self._identity(member, cell), logits)

    def _predict(self, name: str, predictor: Predictor, images: Tensor) -> Tensor:
        start = time.perf_counter()
        logits = logits_of(name, predictor, images)
        spent = self._spent.setdefault(name, [0.0, 0])
        spent[0] += time.perf_counter() - start
        spent[1] += len(images)
        return logits

    def cost(self, member: Member) -> PredictorCost:
        """What the member's predictor takes, measured on the images that it saw here or before."""
        path = self.cache and self.cache / member.name / PREDICTOR_COST
        if member.name in self._spent:
            seconds, count = self._spent[member.name]
            cost = PredictorCost(1000 * seconds / count, getattr(member.predictor, "numbers_moved", 0))
            if path is not None:
                write_atomic(path, json.dumps(cost._asdict()) + "\n")
            return cost
        return PredictorCost() if path is None else read_predictor_cost(path)

    def _stream(self, member: Member, cell: Cell) -> Stream:
        """A stateful member's way through the protocol, on which the cell lies."""
        asked = self._asked.setdefault(member, [])
        if cell not in asked:
            asked += [other for other in self._cells.get(member.name, [cell]) if other not in asked]
            every = member.view.source(cell)
            plan = stretches(self.protocol, asked, every.labels.numpy(), every.keys)
            images = [self._images(member, other) for other in asked]
            identity = _digest(member.digest, member.predictor.identity, f"{self.batch_size}", self.protocol.key, *images)
            path, source = self.cache and self.cache / member.name / "stream.pt", partial(self._source, member)
            before = self._streams.get(member)
            self._streams[member] = stream = Stream(
                member.name, member.predictor, source, plan, self._predict, self.batch_size, path, identity, self.exact
            )
            if before is not None and self.protocol.shifts in ("reset", "continual"):  # the plan goes on where it ended
                stream.position = before.position
        return self._streams[member]

    def _source(self, member: Member, cell: Cell) -> ImageSource:
        """The images of a cell, made once for all stateful members if there is room."""
        identity = self._images(member, cell)
        if identity in self._pixels:
            return self._pixels[identity]
        source = member.view.source(cell)
        if len(source) * 3 * source.image_size**2 > _ROOM:
            return source
        while sum(len(kept) * 3 * kept.image_size**2 for kept in [source, *self._pixels.values()]) > _ROOM:
            self._pixels.pop(next(iter(self._pixels)))
        pixels = torch.cat([source.images(range(rows.start, rows.stop)) for rows in slices(len(source), _RULE_ROWS)])
        self._pixels[identity] = dataclasses.replace(source, read=lambda rows: pixels[torch.from_numpy(rows)], in_memory=True)
        return self._pixels[identity]

    def _forward(self, members: Sequence[Member], batches: Iterator[tuple[slice, Tensor]], count: int) -> list[StoredLogits]:
        """Logits [N, K] of each member, N = `count`."""
        # made beforehand: small tensors that outlive their batch would lie between large ones,
        # whose room could not be used again
        out = [StoredLogits.empty(count, member.predictor.num_classes, self.exact) for member in members]
        for rows, images in batches:
            for member, logits in zip(members, out, strict=True):
                logits[rows] = self._predict(member.name, member.predictor, images)
                self.on_images(len(images))
        return out

    def _identity(self, member: Member, cell: Cell) -> str:
        parts = [member.digest, self._images(member, cell)]
        if member.predictor.identity:
            parts.append(member.predictor.identity)
        if member.predictor.stateful:
            before = [self._images(member, other) for other in self._stream(member, cell).before(cell)]
            parts += [f"batches of {self.batch_size}, {self.protocol.key}", *before]
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
        rows = slices(len(logits[0]), _RULE_ROWS)
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
    for rows in slices(len(source), size):
        yield rows, to_unit(source.images(range(rows.start, rows.stop)))


def slices(count: int, size: int) -> list[slice]:
    """`count` rows in parts of `size`."""
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


def _digest(*parts: str) -> str:
    return hashlib.sha256("\x1f".join(parts).encode()).hexdigest()[:16]
