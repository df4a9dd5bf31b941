"""CIFAR-10.1: both versions as they are released, and networks of CIFAR-10 on them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from tests.checkpoints import save_random
from tests.photo_like import photo_like, to_array
from tests.scripts import run_script
from undegrade.utils.data.sources.registry import open_source
from undegrade.utils.data.sources.released import CIFAR

LABELS = [9, 0, 3, 3, 1]
VERSIONS = [("CIFAR10.1", "v6"), ("CIFAR10.1-v4", "v4")]
DATA = np.stack([to_array(image) for image in photo_like(len(LABELS), 32)])


def write(folder: Path, version: str, data: np.ndarray = DATA, labels: list[int] = LABELS) -> Path:
    """The two files; the labels are int32, as in the release."""
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / f"cifar10.1_{version}_data.npy", data)
    np.save(folder / f"cifar10.1_{version}_labels.npy", np.array(labels, dtype=np.int32))
    return folder


@pytest.mark.parametrize("place", ["CIFAR-10.1/datasets", "CIFAR-10.1", "."])
@pytest.mark.parametrize(("dataset", "version"), VERSIONS)
def test_images_labels_and_classes_are_those_of_the_files(dataset: str, version: str, place: str, tmp_path: Path) -> None:
    write(tmp_path / place, version)
    source = open_source(dataset, "test", tmp_path)
    assert source.labels.tolist() == LABELS and source.classes == CIFAR["CIFAR10"].classes
    assert source.keys[:2] == [f"truck/{version}_0000", f"airplane/{version}_0001"]
    assert [to_array(image).tolist() for image in source.images([0, 4])] == [DATA[0].tolist(), DATA[4].tolist()]
    assert (source.name, source.rgb_mean) == (f"{dataset}/test", CIFAR["CIFAR10"].rgb_mean)


def test_the_other_version_is_not_taken_in_its_place(tmp_path: Path) -> None:
    write(tmp_path, "v4")
    message = r"CIFAR10\.1: cifar10\.1_v6_data\.npy and cifar10\.1_v6_labels\.npy are not in .*found: .*v4_data.*; get them from"
    with pytest.raises(FileNotFoundError, match=message):
        open_source("CIFAR10.1", "test", tmp_path)


@pytest.mark.parametrize(
    ("data", "labels", "message"),
    [
        (DATA.astype(np.float32), LABELS, "v6_data.npy: expected uint8 [N, 32, 32, 3], found float32 (5, 32, 32, 3)"),
        (DATA[..., :16, :], LABELS, "v6_data.npy: expected uint8 [N, 32, 32, 3], found uint8 (5, 32, 16, 3)"),
        (DATA, LABELS[:4], "v6_labels.npy: expected 5 numbers below 10, one an image of cifar10.1_v6_data.npy, found 4 up to 9"),
        (
            DATA,
            [0, 1, 2, 3, 10],
            "v6_labels.npy: expected 5 numbers below 10",
        ),
        (DATA, [0, 1, 2, 3, -1], "v6_labels.npy: expected a line of class numbers from 0"),
    ],
)
def test_files_of_another_kind_are_refused(data: np.ndarray, labels: list[int], message: str, tmp_path: Path) -> None:
    write(tmp_path, "v6", data, labels)
    with pytest.raises(ValueError, match=re.escape(message)):
        open_source("CIFAR10.1", "test", tmp_path)


def test_networks_of_cifar10_are_evaluated_on_it(tmp_path: Path) -> None:
    path = save_random(tmp_path / "one.safetensors", classes=CIFAR["CIFAR10"].classes)
    root, out = write(tmp_path / "data", "v6"), tmp_path / "out"
    words = ("-r", path, "--dataset", "CIFAR10.1", "--data.root", root, "--corruption", "clean,fog", "--severity", 3)
    run_script("test.py", *words, "--out", out).check()
    rows = json.loads((out / "results.json").read_text())["rows"]
    assert [(row["dataset"], row["corruption"], row["n"]) for row in rows] == [("CIFAR10.1", c, 5) for c in ("clean", "fog")]
