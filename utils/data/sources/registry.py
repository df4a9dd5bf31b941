"""Data sets behind one interface: labels, stable keys, and uint8 images by index.

`open_source("Digits", "train")` is scikit-learn's digits, `open_source("CIFAR10", "test", root)`
the torchvision data set, `TinyImagenet` and `Imagenet` are the published folders, and any folder
`<root>/<class>/*` or `<root>/<split>/<class>/*` is a data set by its path. `TEST_ONLY` have no
training images: test sets for networks of CIFAR10 and Imagenet. Of a root with
ImageNet-C or CIFAR-10-C and no clean images the test part is a listing: keys and labels
(utils/data/sources/released.py). Validation images are always cut from the training part, class by
class, with a fixed draw: the test part chooses nothing. The split `trainval` is the training part
before that cut, for published protocols that train on all of it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np

from undegrade.utils.choices import check_choice
from undegrade.utils.data.perturbations.perturbation import PerturbationOptions
from undegrade.utils.data.sources.celebamask_hq import celebamask_hq
from undegrade.utils.data.sources.cifar_10_1 import CIFAR_10_1
from undegrade.utils.data.sources.digits import digit_points, digit_scenes, digits
from undegrade.utils.data.sources.folders import class_order, image_folder, preloaded
from undegrade.utils.data.sources.image_files import found_at
from undegrade.utils.data.sources.image_source import ImageSource, array_source
from undegrade.utils.data.sources.imagenet import IMAGE_SIZE, RESIZE, imagenet, read_classes
from undegrade.utils.data.sources.imagenet_variants import VARIANTS
from undegrade.utils.data.sources.images import INTERPOLATIONS, Resize
from undegrade.utils.data.sources.released import array_listing
from undegrade.utils.data.sources.splits import train_validation_test
from undegrade.utils.data.sources.tiny_imagenet import tiny_imagenet
from undegrade.utils.data.sources.wflw import wflw
from undegrade.utils.ranges import Count

Data = TypeVar("Data", bound="SourceConfig")
SPLITS = ("train", "validation", "test", "trainval")


@dataclasses.dataclass(frozen=True)
class SourceConfig(PerturbationOptions):
    """Which clean images, and how they are perturbed: keys that training, evaluation and adaptation
    have in common; further keys: see PerturbationOptions.

    Attributes:
        dataset: `Digits`, `CIFAR10`, `CIFAR100`, `TinyImagenet`, `Imagenet`, with masks
            `DigitScenes` and `CelebAMaskHQ`, with points `DigitPoints` and `WFLW`, to test on only
            `CIFAR10.1` (`CIFAR10.1-v4`), `ImagenetV2`, `ImagenetSketch`, `ImagenetR` and
            `ImagenetA`, or the path of an image folder.
        root: where downloaded data sets lie. Without clean images the test part of Imagenet,
            CIFAR10 and CIFAR100 takes keys and labels from a root that is ImageNet-C, CIFAR-10-C or
            CIFAR-100-C, for views of the images in it.
        image_size: side in pixels, for image folders and Imagenet (null: as the network wants it;
            where that is not known, of the first image, and 224 of a shorter side of 256), and for
            CelebAMaskHQ (512) and WFLW (256).
        resize: for both: side to which the shorter side is brought before the centre of image_size
            is cut (null: as the network wants it, else image_size; 256 for Imagenet at 224).
        interpolation: bilinear | bicubic: how it is brought to `resize` (null: as the network wants
            it, else bilinear).
        classes: for both: the list that numbers the classes, `imagenet-1k` or a file (null: the
            training folders; imagenet-1k).
        subset: file that names the images to use, one a line, by key (`<class>/<name>`) or path
            (null: all).
        limit: class-balanced subset of so many images; in training of the training and of the
            validation part.
    """

    dataset: str = "Digits"
    root: str = "data"
    image_size: Count | None = None
    resize: Count | None = None
    interpolation: Literal["bilinear", "bicubic"] | None = None
    classes: str | None = None
    subset: str | None = None
    limit: Count | None = None

    @property
    def has_photographs(self) -> bool:
        """Whether the images are files of any size."""
        return self.dataset in _PHOTOGRAPHS or _is_folder(self.dataset)

    def fitted(self: Data, image_size: int, resize: int | None, interpolation: str | None) -> Data:
        """With these in place of what is not given, unless an image size is given that is
        another.
        """
        if self.image_size not in (None, image_size):
            return self
        wanted: Any = {"resize": self.resize or resize, "interpolation": self.interpolation or interpolation}
        return dataclasses.replace(self, image_size=image_size, **wanted)

    def open(self, split: str) -> ImageSource:
        """The images of a split (see `open_source`)."""
        return open_source(
            self.dataset, split, self.root, self.image_size, self.limit,
            resize=self.resize, interpolation=self.interpolation, classes=self.classes, subset=self.subset,
        )  # fmt: skip


def check_dataset(dataset: str) -> None:
    """Raise ValueError or FileNotFoundError unless this is the name of a data set, whose files need
    not be there, or an image folder.
    """
    if dataset in DATASETS or _is_folder(dataset):
        return
    if "/" in dataset:
        raise FileNotFoundError(
            f"image folder {dataset} does not exist; expected {dataset}/<class>/* or {dataset}/<split>/<class>/*"
        )
    check_choice(dataset, [*DATASETS, "<path of an image folder>"], "dataset")


def open_source(
    dataset: str,
    split: str,
    root: str | Path = "data",
    image_size: int | None = None,
    limit: int | None = None,
    *,
    resize: int | None = None,
    interpolation: str | None = None,
    classes: str | None = None,
    subset: str | None = None,
) -> ImageSource:
    """Open one split of a data set.

    Args:
        dataset: a name of `DATASETS`, or the path of an image folder.
        split: train | validation | test | trainval (training and validation images together, in the
            order of the training part).
        root: where downloaded data sets lie, or a released set of corrupted images: its listing can
            be opened as test part.
        image_size: side in pixels, for image folders (default: the shorter side of the first
            image), Imagenet (224), CelebAMaskHQ (512) and WFLW (256).
        limit: class-balanced subset of so many images (a fixed draw).
        resize: for image folders and Imagenet: side to which the shorter side of the files is
            brought before the centre of `image_size` is cut (default: `image_size` itself; 256 for
            Imagenet at 224).
        interpolation: bilinear | bicubic: how it is brought to `resize` (default: bilinear).
        classes: for image folders and Imagenet: the list that numbers the classes
            (`imagenet.read_classes`; default: the sorted names of the training folders; the 1,000
            classes for Imagenet).
        subset: file that names the images to use, one a line, by key or path below the data set's
            folder. A test set must have all of them, another split has those that fell into it.

    Raises:
        ValueError: unknown data set or split, a folder without images or with one class, an image
            that cannot be decoded, options that the data set does not have, a subset that is not
            there.
        FileNotFoundError: data set not there or not in its layout; says what was expected and
            found, and how to get it.
    """
    check_choice(split, SPLITS, "split")
    if resize is not None and resize < (image_size or 1):
        raise ValueError(f"data.resize {resize} is smaller than data.image_size {image_size}: nothing could be cut from it")
    is_folder, photographs = _is_folder(dataset), _PHOTOGRAPHS.get(dataset)
    if photographs is not None:
        image_size = image_size or IMAGE_SIZE
        resize = RESIZE if resize is None and image_size == IMAGE_SIZE else resize
    if resize is None and interpolation is not None:
        raise ValueError(f"data.interpolation {interpolation} is how the files are brought to data.resize: give that, too")
    chosen = check_choice(interpolation or "bilinear", INTERPOLATIONS, "data.interpolation")
    frame = None if resize is None else Resize(resize, chosen)
    order = read_classes(classes) if classes is not None else None
    if photographs is not None:
        source = photographs(split, Path(root), image_size, frame, order)
    elif is_folder:
        source = image_folder(Path(dataset), split, image_size, frame, order)
        source = dataclasses.replace(source, class_order=class_order(Path(dataset), source.classes))
    elif dataset in DATASETS:
        sized = {"image_size": image_size} if dataset in SIZED and image_size is not None else {}
        for name, value in (("image_size", image_size), ("resize", resize), ("classes", classes)):
            if value is not None and name not in sized:
                raise ValueError(f"data.{name} is for Imagenet and image folders, {dataset} has its own: leave it out")
        source = DATASETS[dataset](split, Path(root), **sized)
    else:
        check_dataset(dataset)
    if classes is not None:
        source = dataclasses.replace(source, class_order=f"by data.classes {classes}")
    if subset is not None:
        source = source.listed(subset, "data.subset", partly=split != "test")
    source = source.limited(limit)
    return preloaded(source) if photographs is not None else source


def source_keys_without_effect(config: SourceConfig, place: str) -> dict[str, str]:
    """For `utils.command_line.check_effect`: the keys that the data set does not look at.

    Args:
        config: which images.
        place: dotted place of its keys.
    """
    own = dict.fromkeys(("Digits", "DigitScenes", "DigitPoints"), "Digits come with scikit-learn")
    known = "" if config.dataset in DATASETS else f"the images are those in {config.dataset}"
    return {f"{place}.root": own.get(config.dataset, known)}


def _is_folder(dataset: str) -> bool:
    return dataset not in DATASETS and Path(dataset).is_dir()


def _cifar(classes: int) -> Callable[[str, Path], ImageSource]:
    def load(split: str, root: Path) -> ImageSource:
        from torchvision.datasets import CIFAR10, CIFAR100

        kind = CIFAR10 if classes == 10 else CIFAR100
        name = kind.__name__
        listed = array_listing(name, root) if split == "test" and not (root / kind.base_folder).is_dir() else None
        if listed is not None:
            return listed
        parts = []
        for train in (True, False):
            try:
                data = kind(str(root), train=train, download=False)
            except RuntimeError as error:
                folder = root.resolve() / kind.base_folder
                files = [file for file, _ in [*kind.train_list, *kind.test_list]] + [kind.meta["filename"]]
                raise FileNotFoundError(
                    f"{name} is not, or not intact, under {folder.parent}: expected {folder}/ with {', '.join(files)} as published "
                    f"(MD5 is checked), found: {found_at(folder)}; get it with: "
                    f"python -c \"from torchvision.datasets import {name}; {name}('{root}', download=True)\", "
                    f"or point data.root at the folder that holds {kind.base_folder}"
                    + (f", or at CIFAR-{classes}-C, <corruption>.npy beside labels.npy" if split == "test" else "")
                ) from error
            part = "train" if train else "test"
            names = [f"{part}_{i:05d}" for i in range(len(data.data))]
            parts.append(array_source(name, data.data.transpose(0, 3, 1, 2), np.asarray(data.targets), data.classes, names))
        return train_validation_test(parts[0], parts[1], split, name)

    return load


# data sets of files that are read at any size, with the size by default
SIZED: dict[str, Callable[..., ImageSource]] = {"CelebAMaskHQ": celebamask_hq, "WFLW": wflw}

# data sets of photographs of any size, cut as networks want them
_PHOTOGRAPHS: dict[str, Callable[..., ImageSource]] = {"Imagenet": imagenet, **VARIANTS}

TEST_ONLY = (*CIFAR_10_1, *VARIANTS)  # they have no images to train on

DENSE = ("DigitScenes", "DigitPoints", *SIZED)  # their images have masks or points, not classes

DATASETS: dict[str, Callable[..., ImageSource]] = {
    "Digits": digits,
    "DigitScenes": digit_scenes,
    "DigitPoints": digit_points,
    "CIFAR10": _cifar(10),
    "CIFAR100": _cifar(100),
    "TinyImagenet": tiny_imagenet,
    "Imagenet": imagenet,
    **SIZED,
    **CIFAR_10_1,
    **VARIANTS,
}
