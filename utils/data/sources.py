"""Data sets behind one interface: labels, stable keys, and uint8 images by index.

`open_source("Digits", "train")` is scikit-learn's digits, `open_source("CIFAR10", "test", root)` the torchvision data set, and any
folder `<root>/<class>/*` or `<root>/<split>/<class>/*` is a data set by its path. Validation images are always cut from the
training part, class by class, with a fixed draw: the test part chooses nothing.
"""

from __future__ import annotations

import collections
import dataclasses
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from utils.choices import check_choice
from utils.data.images import IMAGE_SUFFIXES, BrokenImageError, list_images, read_image
from utils.seeding import numpy_generator

log = logging.getLogger(__name__)

SPLITS = ("train", "validation", "test")
VALIDATION_SHARE = 0.1
TEST_SHARE = 0.2  # of a folder that comes without a test part
PRELOAD_BYTES = 2 << 30  # folders that fit are decoded once and kept in memory


@dataclasses.dataclass(frozen=True)
class ImageSource:
    """Images of one split.

    Attributes:
        name: data set (and split) for people and for files.
        classes: class names; a label is an index into it.
        labels: int64 [N].
        keys: N unique strings `<class>/<name>`; random streams, file names and the pairing of views hang on them.
        image_size: side S of the square images, pixels.
        read: numpy index array [B] -> uint8 tensor [B, 3, S, S].
        rgb_mean, rgb_std: channel statistics of the training images, range [0, 1], for the classifier's normalisation.
    """

    name: str
    classes: tuple[str, ...]
    labels: Tensor
    keys: list[str]
    image_size: int
    read: Callable[[np.ndarray], Tensor]
    rgb_mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    rgb_std: tuple[float, ...] = (0.25, 0.25, 0.25)

    def __len__(self) -> int:
        return len(self.keys)

    def images(self, indices: Sequence[int] | np.ndarray | Tensor) -> Tensor:
        """uint8 [B, 3, S, S] of the images at `indices`."""
        return self.read(np.asarray(indices, dtype=np.int64))

    def subset(self, indices: Sequence[int] | np.ndarray) -> ImageSource:
        """The source restricted to `indices`, in their order."""
        chosen = np.asarray(indices, dtype=np.int64)
        read = self.read
        return dataclasses.replace(
            self, labels=self.labels[chosen], keys=[self.keys[i] for i in chosen], read=lambda rows: read(chosen[rows])
        )

    def limited(self, count: int | None) -> ImageSource:
        """A class-balanced subset of `count` images by a fixed draw (all of them for None), in the source's order."""
        if count is None or count >= len(self):
            return self
        if count < 1:
            raise ValueError(f"a limit of {count} images leaves nothing; use at least 1, or null for all {len(self)}")
        rank = np.empty(len(self))
        for members in _by_class(self.labels):
            rank[numpy_generator("limit", self.name, len(members)).permutation(members)] = np.arange(len(members))
        return self.subset(np.sort(np.argsort(rank, kind="stable")[:count]))

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
                f"{what}: {len(missing)} of {len(keys)} images are missing, e.g. {shown}; adapt them with the same command again"
            )
        return self.subset([place[key] for key in keys])


def array_source(name: str, images: np.ndarray, labels: np.ndarray, classes: Sequence[str], names: Sequence[str]) -> ImageSource:
    """A source over a uint8 array [N, 3, S, S] in memory (or memory-mapped); keys are `<class>/<name>`."""
    keys = [f"{classes[int(label)]}/{n}" for label, n in zip(labels, names, strict=True)]
    label_tensor = torch.as_tensor(np.asarray(labels), dtype=torch.int64)
    return ImageSource(name, tuple(classes), label_tensor, keys, images.shape[-1], _array_reader(images))


def _array_reader(images: np.ndarray) -> Callable[[np.ndarray], Tensor]:
    return lambda rows: torch.from_numpy(np.ascontiguousarray(images[rows]))


def open_source(
    dataset: str, split: str, root: str | Path = "data", image_size: int | None = None, limit: int | None = None
) -> ImageSource:
    """Open one split of a data set.

    Args:
        dataset: a name of `DATASETS`, or the path of an image folder.
        split: train | validation | test.
        root: where downloaded data sets lie.
        image_size: side in pixels, for image folders (default: the shorter side of the first image).
        limit: class-balanced subset of so many images (a fixed draw).

    Raises:
        ValueError: unknown data set or split, a folder without images or with one class.
        FileNotFoundError: data set not there; says where it looked and how to get it.
    """
    check_choice(split, SPLITS, "split")
    if dataset in DATASETS:
        source = DATASETS[dataset](split, Path(root))
    elif Path(dataset).is_dir():
        source = _image_folder(Path(dataset), split, image_size)
    elif "/" in dataset:
        raise FileNotFoundError(
            f"image folder {dataset} does not exist; expected {dataset}/<class>/* or {dataset}/<split>/<class>/*"
        )
    else:
        check_choice(dataset, [*DATASETS, "<path of an image folder>"], "dataset")
    return source.limited(limit)


def _by_class(labels: Tensor | np.ndarray) -> list[np.ndarray]:
    values = np.asarray(labels)
    return [np.flatnonzero(values == k) for k in np.unique(values)]


def _cut(source: ImageSource, shares: Sequence[float], stream: str) -> list[ImageSource]:
    """Split class by class by a fixed draw: one part a share, then the rest."""
    parts: list[list[np.ndarray]] = [[] for _ in range(len(shares) + 1)]
    for members in _by_class(source.labels):
        order = numpy_generator("split", stream, len(members)).permutation(members)
        edges = np.cumsum([max(1, round(share * len(members))) for share in shares])
        for part, piece in zip(parts, np.split(order, edges), strict=True):
            part.append(piece)
    return [source.subset(np.sort(np.concatenate(part))) for part in parts]


def _with_statistics(source: ImageSource, train: ImageSource) -> ImageSource:
    """`source` with the channel mean and deviation of (at most 5,000 of) the training images."""
    pixels = train.limited(5000).images(range(min(5000, len(train)))).double().div(255)
    mean, std = pixels.mean((0, 2, 3)), pixels.std((0, 2, 3)).clamp_min(1e-3)
    rounded = [tuple(round(float(v), 4) for v in values) for values in (mean, std)]
    return dataclasses.replace(source, rgb_mean=rounded[0], rgb_std=rounded[1])


def _digits(split: str, root: Path) -> ImageSource:
    """scikit-learn's copy of the UCI optical digits: 1,797 scans of 8 x 8 pixels, 17 grey levels, enlarged to 32 x 32 (bicubic)."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    grey = np.round(digits.images * (255 / 16)).astype(np.uint8)
    large = np.stack([np.asarray(Image.fromarray(g).resize((32, 32), Image.Resampling.BICUBIC)) for g in grey])
    images = np.repeat(large[:, None], 3, axis=1)
    names = [f"{i:04d}" for i in range(len(images))]
    everything = array_source("Digits", images, digits.target, [str(c) for c in range(10)], names)
    test, rest = _cut(everything, [TEST_SHARE], "Digits/test")
    return _train_validation_test(rest, None, test, split, "Digits")


def _train_validation_test(
    train: ImageSource, validation: ImageSource | None, test: ImageSource, split: str, name: str
) -> ImageSource:
    if validation is None:
        validation, train = _cut(train, [VALIDATION_SHARE], f"{name}/validation")
    chosen = {"train": train, "validation": validation, "test": test}[split]
    return _with_statistics(dataclasses.replace(chosen, name=f"{name}/{split}"), train)


def _cifar(classes: int) -> Callable[[str, Path], ImageSource]:
    def load(split: str, root: Path) -> ImageSource:
        from torchvision.datasets import CIFAR10, CIFAR100

        kind = CIFAR10 if classes == 10 else CIFAR100
        name = kind.__name__
        parts = []
        for train in (True, False):
            try:
                data = kind(str(root), train=train, download=False)
            except RuntimeError as error:
                raise FileNotFoundError(
                    f"{name} is not under {root.resolve()}/ (looked for {kind.base_folder}); get it with: python -c "
                    f"\"from torchvision.datasets import {name}; {name}('{root}', download=True)\", or point data.root at it"
                ) from error
            part = "train" if train else "test"
            names = [f"{part}_{i:05d}" for i in range(len(data.data))]
            parts.append(array_source(name, data.data.transpose(0, 3, 1, 2), np.asarray(data.targets), data.classes, names))
        return _train_validation_test(parts[0], None, parts[1], split, name)

    return load


def _image_folder(root: Path, split: str, image_size: int | None) -> ImageSource:
    """`<root>/<split>/<class>/*` as it is, or `<root>/<class>/*` cut into train, validation and test by a fixed draw."""
    aliases = {"train": ("train",), "validation": ("validation", "val", "valid"), "test": ("test",)}
    folders = {s: next((root / a for a in names if (root / a).is_dir()), None) for s, names in aliases.items()}
    name = root.resolve().name
    if folders["train"] is None:
        validation_share = VALIDATION_SHARE * (1 - TEST_SHARE)
        test, validation, train = _cut(folder_source(root, image_size, name), [TEST_SHARE, validation_share], name)
        return _train_validation_test(train, validation, test, split, name)
    train = folder_source(folders["train"], image_size, name)
    size = train.image_size
    given = {s: folder_source(f, size, name, train.classes) for s, f in folders.items() if f is not None and s != "train"}
    validation = given.get("validation") if "test" in given else None  # the only held-out part is the test part
    held_out = given.get("test") or given.get("validation")
    if held_out is None:
        held_out, train = _cut(train, [TEST_SHARE], f"{name}/test")
    return _train_validation_test(train, validation, held_out, split, name)


def folder_source(folder: Path, image_size: int | None, name: str, classes: Sequence[str] | None = None) -> ImageSource:
    """A source over `<folder>/<class>/*`.

    Sets that fit into 2 GiB of memory are decoded at once; files that cannot be decoded are listed by name, counted and left out.
    Larger sets are decoded as they are read, and a broken file raises then.

    Args:
        folder: holds one folder a class.
        image_size: side in pixels (default: the shorter side of the first readable image).
        name: for messages.
        classes: class order to use (default: the sorted folder names).

    Raises:
        ValueError: no images, images outside a class folder only, or a class that is not in `classes`.
    """
    paths = [p for p in list_images(folder) if len(p.relative_to(folder).parts) >= 2]
    if not paths:
        raise ValueError(f"no images under {folder}: expected {folder}/<class>/<name> with a suffix such as .png, .jpg, .jpeg")
    found = sorted({p.relative_to(folder).parts[0] for p in paths})
    order = list(classes) if classes is not None else found
    unknown = [c for c in found if c not in order]
    if unknown:
        raise ValueError(f"{folder} has class folders {unknown[:5]} that the training part lacks (it has {order[:10]})")
    size = image_size or _first_size(paths)
    if len(paths) * 3 * size * size > PRELOAD_BYTES:
        source = plain_source(folder, size, name, paths)
    else:
        paths, images = _decode_all(paths, size)
        source = dataclasses.replace(plain_source(folder, size, name, paths), read=_array_reader(images))
    labels = [order.index(p.relative_to(folder).parts[0]) for p in paths]
    return dataclasses.replace(source, classes=tuple(order), labels=torch.tensor(labels))


def plain_source(folder: Path, image_size: int, name: str, paths: Sequence[Path] | None = None) -> ImageSource:
    """Every image below `folder` (or `paths` of it), unlabelled, decoded as it is read; keys are relative paths without suffix.

    Raises:
        FileNotFoundError, ValueError: the folder does not exist, or holds no image.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"image folder {folder} does not exist")
    files = list(list_images(folder) if paths is None else paths)
    if not files:
        raise ValueError(f"no images under {folder} (by suffix: {', '.join(IMAGE_SUFFIXES)})")
    read = lambda rows: torch.from_numpy(np.stack([read_image(files[i], image_size) for i in rows]))  # noqa: E731
    keys = _unique_names([p.relative_to(folder) for p in files])
    return ImageSource(name, (), torch.full((len(files),), -1), keys, image_size, read)


def _first_size(paths: Sequence[Path]) -> int:

    for path in paths:
        try:
            with Image.open(path) as image:
                return min(image.size)
        except OSError:
            continue
    raise ValueError(f"none of the {len(paths)} files under {paths[0].parent.parent} can be read as an image, e.g. {paths[0]}")


def _decode_all(paths: list[Path], size: int) -> tuple[list[Path], np.ndarray]:
    good, arrays, broken = [], [], []
    for path in paths:
        try:
            arrays.append(read_image(path, size))
            good.append(path)
        except BrokenImageError as error:
            broken.append(str(error))
    if broken:
        log.warning("left out %d of %d files that cannot be decoded:\n  %s", len(broken), len(paths), "\n  ".join(broken[:20]))
    if not good:
        raise ValueError(f"none of the {len(paths)} files can be decoded, e.g. {broken[0]}")
    return good, np.stack(arrays)


def _unique_names(relative: Sequence[Path]) -> list[str]:
    """Paths without suffix; with it where two files differ by the suffix alone."""
    count = collections.Counter(p.with_suffix("") for p in relative)
    return [(p if count[p.with_suffix("")] > 1 else p.with_suffix("")).as_posix() for p in relative]


DATASETS: dict[str, Callable[[str, Path], ImageSource]] = {
    "Digits": _digits,
    "CIFAR10": _cifar(10),
    "CIFAR100": _cifar(100),
}
