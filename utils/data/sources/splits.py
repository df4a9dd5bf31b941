"""How a data set is cut into train, validation and test, and put together again."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from undegrade.utils.data.sources.image_source import ImageSource, by_class
from undegrade.utils.seeding import numpy_generator

VALIDATION_SHARE = 0.1
TEST_SHARE = 0.2  # of a set that comes without a test part


def concatenated(first: ImageSource, second: ImageSource, mark: str) -> ImageSource:
    """Both sources, one after the other; levels and groups are dropped.

    A key of `second` that is taken already, `<class>/<name>`, becomes `<class>/<mark>/<name>`:
    still a path below its class.
    """
    assert (first.classes, first.image_size, first.target) == (second.classes, second.image_size, second.target)
    taken = dict.fromkeys(first.keys)
    for key in second.keys:
        while key in taken:
            key = f"/{mark}/".join(key.split("/", 1))
        taken[key] = None
    read = functools.partial(_read_either, first.read, second.read, len(first))
    read_target = None
    if first.read_target is not None and second.read_target is not None:
        read_target = functools.partial(_read_either, first.read_target, second.read_target, len(first))
    labels, files = torch.cat([first.labels, second.labels]), None
    if first.files is not None and second.files is not None:
        files = [*first.files, *second.files]
    in_memory = first.in_memory and second.in_memory
    return dataclasses.replace(
        first, labels=labels, keys=list(taken), read=read, files=files, in_memory=in_memory, level=None, read_target=read_target,
        groups={},
    )  # fmt: skip


def _read_either(
    first: Callable[[np.ndarray], Tensor], second: Callable[[np.ndarray], Tensor], edge: int, rows: np.ndarray
) -> Tensor:
    before = rows < edge
    head = first(rows[before])
    images = head.new_empty((len(rows), *head.shape[1:]))
    images[before], images[~before] = head, second(rows[~before] - edge)
    return images


def cut(source: ImageSource, shares: Sequence[float], stream: str) -> list[ImageSource]:
    """Split class by class by a fixed draw: one part a share, then the rest (which gets the last
    image of tiny classes).
    """
    parts: list[list[np.ndarray]] = [[] for _ in range(len(shares) + 1)]
    for members in by_class(source.labels):
        order = numpy_generator("split", stream, len(members)).permutation(members)
        edges = np.cumsum([max(1, round(share * len(members))) for share in shares]).clip(max=len(members) - 1)
        for part, piece in zip(parts, np.split(order, edges), strict=True):
            part.append(piece)
    return [source.subset(np.sort(np.concatenate(part))) for part in parts]


def _with_statistics(source: ImageSource, train: ImageSource) -> ImageSource:
    """`source` with the channel mean and deviation of (at most 5,000 of) the training images."""
    few = train.limited(5000)
    channels = few.readable(list(range(len(few))))[1].transpose(0, 1).flatten(1)
    # counted by value: as floating point the pixels would take eight times the memory
    counts = torch.stack([channel.bincount(minlength=256) for channel in channels]).double()
    value, number = torch.arange(256).double() / 255, counts.sum(1)
    mean = (counts * value).sum(1) / number
    std = ((counts * (value - mean[:, None]) ** 2).sum(1) / (number - 1)).sqrt().clamp_min(1e-3)
    rounded = [tuple(round(float(v), 4) for v in values) for values in (mean, std)]
    return dataclasses.replace(source, rgb_mean=rounded[0], rgb_std=rounded[1])


def one_split(parts: Mapping[str, ImageSource], split: str, name: str) -> ImageSource:
    """The part called `split` of train, validation, test and trainval; all of them carry the
    statistics of train.
    """
    return _with_statistics(dataclasses.replace(parts[split], name=f"{name}/{split}"), parts["train"])


def train_validation_test(trainval: ImageSource, test: ImageSource, split: str, name: str) -> ImageSource:
    """One split of a set that comes in two parts: validation images are cut from the first,
    trainval is all of it.
    """
    validation, train = cut(trainval, [VALIDATION_SHARE], f"{name}/validation")
    return one_split({"train": train, "validation": validation, "test": test, "trainval": trainval}, split, name)
