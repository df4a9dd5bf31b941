"""One split of a data set: labels, stable keys, uint8 images by index."""

from __future__ import annotations

import collections
import dataclasses
import functools
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from undegrade.utils.data.sources.images import IMAGE_SUFFIXES, BrokenImageError, FileSlice, Resize, center_crop, read_image
from undegrade.utils.data.targets import Target
from undegrade.utils.paths import escaped, utf8
from undegrade.utils.seeding import numpy_generator


class Broken(NamedTuple):
    """An image that cannot be read: its key and what is wrong with it."""

    key: str
    reason: str

    def __str__(self) -> str:
        return f"{escaped(self.key)}: {self.reason}"


@dataclasses.dataclass(frozen=True)
class ImageSource:
    """Images of one split.

    Attributes:
        name: data set (and split) for people and for files.
        classes: class names; a label is an index into it.
        labels: int64 [N].
        keys: N unique strings `<class>/<name>`; random streams, file names and the pairing of views
            hang on them.
        image_size: side S of the square images, pixels.
        read: numpy index array [B] -> uint8 tensor [B, 3, S, S].
        files: that the images come from; None for arrays.
        class_order: how the classes are numbered, where a network made elsewhere can know it; None
            for names of one's own.
        level: float [N] in [0, 1], how strongly each image was degraded (0 = clean) before it was
            adapted; None where unknown.
        among: all classes of the networks that the images are for, where `classes` are some of
            them: such a network answers with `classes` alone; None: there are no others.
        rgb_mean, rgb_std: channel statistics of the training images, range [0, 1], for the
            classifier's normalisation.
        resize: to what the shorter side of the files was brought before the S x S centre was cut
            (None: to S, see `center_crop`); adapted versions of the images are read in the same
            way, so that both show the same part.
        listing_of: folder of corrupted images that keys and labels were taken from, where the
            images themselves are not there: `read` then raises (utils/data/sources/released.py).
        target: kind of what the images have beside their label, such as a mask (None: nothing).
        read_target: of such a source, numpy index array [B] -> tensor [B, ...] of the values.
        in_memory: `files` were decoded, and `read` does not need them any more.
        groups: bool [N] by name, images that are judged apart, too, such as those of large pose.
    """

    name: str
    classes: tuple[str, ...]
    labels: Tensor
    keys: list[str]
    image_size: int
    read: Callable[[np.ndarray], Tensor]
    files: Sequence[str | Path | FileSlice] | None = None
    rgb_mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    rgb_std: tuple[float, ...] = (0.25, 0.25, 0.25)
    level: Tensor | None = None
    resize: Resize | None = None
    class_order: str | None = "as published"
    among: tuple[str, ...] | None = None
    listing_of: Path | None = None
    target: Target | None = None
    read_target: Callable[[np.ndarray], Tensor] | None = None
    in_memory: bool = False
    groups: Mapping[str, Tensor] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if len(set(self.keys)) < len(self.keys):
            twice = next(key for key, count in collections.Counter(self.keys).items() if count > 1)
            raise ValueError(f"{self.name}: several images have the key {escaped(twice)}: give their files names of their own")

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def frame(self) -> str:
        """Which part of a file an image shows, for caches."""
        return frame_words(self.image_size, self.resize)

    @property
    def description(self) -> dict[str, Any]:
        """What a classifier of these images needs to know to be used on others, for its
        checkpoint.
        """
        side, interpolation = self.resize or (None, None)
        return {"classes": list(self.classes), "image_size": self.image_size, "resize": side, "interpolation": interpolation}

    def images(self, indices: Sequence[int] | np.ndarray | Tensor) -> Tensor:
        """uint8 [B, 3, S, S] of the images at `indices`."""
        return self.read(np.asarray(indices, dtype=np.int64))

    def whole(self, row: int) -> Tensor:
        """uint8 [3, H, W] of the image at `row` as its file has it, before it is resized and cut.

        Raises:
            BrokenImageError: see `read_image`.
        """
        assert self.files is not None
        return torch.from_numpy(read_image(self.files[row], None).copy())

    def framed(self, image: Tensor) -> Tensor:
        """uint8 [3, S, S]: what this source shows of a whole image [3, H, W]."""
        picture = Image.fromarray(image.permute(1, 2, 0).numpy())
        return torch.from_numpy(np.asarray(center_crop(picture, self.image_size, self.resize)).transpose(2, 0, 1).copy())

    def targets(self, indices: Sequence[int] | np.ndarray) -> Tensor:
        """[B, ...]: the target's values of the images at `indices`, of a source that has one."""
        assert self.read_target is not None
        return self.read_target(np.asarray(indices, dtype=np.int64))

    def readable(self, rows: list[int]) -> tuple[list[int], Tensor, list[Broken]]:
        """Those of `rows` that can be decoded, their images, and what is wrong with the others."""
        try:
            return rows, self.images(rows), []
        except BrokenImageError as error:
            if len(rows) == 1:
                return [], torch.empty(0), [Broken(self.keys[rows[0]], str(error))]
        parts = [self.readable([row]) for row in rows]
        good = [images for found, images, _ in parts if found]
        return sum((p[0] for p in parts), []), torch.cat(good) if good else torch.empty(0), sum((p[2] for p in parts), [])

    def subset(self, indices: Sequence[int] | np.ndarray) -> ImageSource:
        """The source restricted to `indices`, in their order."""
        chosen = np.asarray(indices, dtype=np.int64)
        read = functools.partial(_read_chosen, self.read, chosen)
        read_target = None if self.read_target is None else functools.partial(_read_chosen, self.read_target, chosen)
        level = None if self.level is None else self.level[chosen]
        keys, files = [self.keys[i] for i in chosen], None if self.files is None else [self.files[i] for i in chosen]
        groups = {name: members[chosen] for name, members in self.groups.items()}
        return dataclasses.replace(
            self, labels=self.labels[chosen], keys=keys, read=read, files=files, level=level, read_target=read_target, groups=groups
        )

    def limited(self, count: int | None) -> ImageSource:
        """A class-balanced subset of `count` images by a fixed draw (all of them for None), in the
        source's order.
        """
        if count is None or count >= len(self):
            return self
        if count < 1:
            raise ValueError(f"a limit of {count} images leaves nothing; use at least 1, or null for all {len(self)}")
        rank = np.empty(len(self))
        for members in by_class(self.labels):
            rank[numpy_generator("limit", self.name, len(members)).permutation(members)] = np.arange(len(members))
        return self.subset(np.sort(np.argsort(rank, kind="stable")[:count]))

    def listed(self, path: str | Path, what: str, partly: bool = False) -> ImageSource:
        """The images that a text file names, in the source's order.

        A line is a key, or a path below the data set's folder with or without that of the split;
        `#` opens a remark.

        Args:
            path: the file.
            what: its flag or option, for messages.
            partly: whether it may also name images that are not here, as when they lie in several
                splits.

        Raises:
            FileNotFoundError, ValueError: no such file; it names no image here, or (unless
                `partly`) one that is not here.
        """
        if not Path(path).is_file():
            raise FileNotFoundError(f"{what} {path} does not exist; expected a file with one image key or path a line")
        text = utf8(Path(path).read_text(encoding="utf-8", errors="surrogateescape"))
        lines = [line.strip().removeprefix("./") for line in text.splitlines()]
        place = {key: i for i, key in enumerate(self.keys)}
        found = {line: _first_known(line, place) for line in lines if line and not line.startswith("#")}
        missing = sorted(line for line, row in found.items() if row is None)
        rows = sorted({row for row in found.values() if row is not None})
        if not rows or (missing and not partly):
            mistake = f"{len(missing)} of {len(found)} images are not in {self.name}, e.g. {', '.join(missing[:3])}"
            raise ValueError(f"{what} {path}: {mistake if found else 'it is empty'} (keys there look like {self.keys[0]})")
        return self.subset(rows)

    def aligned(self, keys: Sequence[str], what: str) -> ImageSource:
        """The images with exactly these keys, in their order.

        Raises:
            ValueError: names missing keys; pairs are never formed by position.
        """
        place = {key: i for i, key in enumerate(self.keys)}
        missing = [key for key in keys if key not in place]
        if missing:
            shown = ", ".join(missing[:5])
            raise ValueError(
                f"{what}: {len(missing)} of {len(keys)} images are missing, e.g. {shown}; adapt all of them (the same command goes "
                "on where it was stopped, without --limit or --num_samples), or evaluate with the same --limit"
            )
        return self.subset([place[key] for key in keys])


def frame_words(size: int, resize: Resize | None) -> str:
    """Which part of a file an image of `size` pixels shows (`ImageSource.frame`)."""
    return f"{size}" if resize is None else f"{size} of {resize.side}, {resize.interpolation}"


def _first_known(line: str, place: Mapping[str, int]) -> int | None:
    """Row of the image that a line of a list names: as it stands, else without suffix, else without
    the folder of a split.
    """
    path = Path(line)
    bare = path.with_suffix("").as_posix() if path.suffix.lower() in IMAGE_SUFFIXES else line
    below = [re.sub(r"^(train|val|valid|validation|test)/", "", name) for name in (line, bare)]
    return next((place[name] for name in (line, bare, *below) if name in place), None)


def array_source(name: str, images: np.ndarray, labels: np.ndarray, classes: Sequence[str], names: Sequence[str]) -> ImageSource:
    """A source over a uint8 array [N, 3, S, S] in memory (or memory-mapped); keys are
    `<class>/<name>`.
    """
    keys = [f"{classes[int(label)]}/{n}" for label, n in zip(labels, names, strict=True)]
    label_tensor = torch.as_tensor(np.asarray(labels), dtype=torch.int64)
    return ImageSource(name, tuple(classes), label_tensor, keys, images.shape[-1], array_reader(images))


def array_reader(images: np.ndarray) -> Callable[[np.ndarray], Tensor]:
    """`read` over uint8 [N, 3, S, S]; like all readers here it can be pickled, since workers may be
    started afresh.
    """
    return functools.partial(_read_array, images)


class MappedReader:
    """`read` over a `.npy` file, uint8 [N, 3, S, S], of which only the images asked for are brought
    into memory.

    Pickled as its path and opened again: numpy pickles a memory map as a copy of all its pixels.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.resolve()
        self.images = np.load(self.path, mmap_mode="r")

    def __call__(self, rows: np.ndarray) -> Tensor:
        return _read_array(self.images, rows)

    def __reduce__(self) -> tuple[type[MappedReader], tuple[Path]]:
        return MappedReader, (self.path,)


def _read_array(images: np.ndarray, rows: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(images[rows]))


def _read_chosen(read: Callable[[np.ndarray], Tensor], chosen: np.ndarray, rows: np.ndarray) -> Tensor:
    return read(chosen[rows])


def by_class(labels: Tensor | np.ndarray) -> list[np.ndarray]:
    """Rows of each class that is there, in the order of the numbers."""
    values = np.asarray(labels)
    return [np.flatnonzero(values == k) for k in np.unique(values)]
