"""Images that cannot be decoded, in training and in evaluation: left out, named once, counted,
whether a set is decoded at once or as it is read.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.checkpoints import save_random
from tests.scripts import run_script
from tests.test_folders import write_images
from undegrade.utils.data.augmentation import AugmentConfig
from undegrade.utils.data.batch_loader import BatchLoader
from undegrade.utils.data.batches import BatchSet
from undegrade.utils.data.cells import Cell
from undegrade.utils.data.sources import folders
from undegrade.utils.data.sources.folders import folder_source
from undegrade.utils.data.sources.image_source import ImageSource
from undegrade.utils.data.sources.readable import without_broken
from undegrade.utils.data.sources.registry import open_source
from undegrade.utils.data.views import FolderTree

FLIP = AugmentConfig(flip=True)
GONE = ("cat/im01", "cat/im02", "dog/im03")


@pytest.fixture
def lazy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ImageSource:
    """Eight images that are decoded as they are read, three of which cannot be."""
    write_images(tmp_path / "pets", ["cat", "dog"], 4)
    for key in GONE:
        path = tmp_path / f"pets/{key}.png"
        path.write_bytes(path.read_bytes()[:50])
    monkeypatch.setattr(folders, "PRELOAD_BYTES", 0)
    return folder_source(tmp_path / "pets", None, "pets")


@pytest.mark.parametrize("workers", [0, 2])
def test_the_next_image_that_can_be_read_stands_in_during_training(
    lazy: ImageSource, workers: int, caplog: pytest.LogCaptureFixture
) -> None:
    loader = BatchLoader(BatchSet(lazy, ["jpeg", "blur"], 3, 0, FLIP), workers)
    seen = [batch["key"][:3] for epoch in (0, 1) for batch in loader.epoch(epoch)]
    order = [lazy.keys[i] for epoch in (0, 1) for step in range(3) for i in BatchSet(lazy, [], 3, 0, FLIP).indices(epoch, step)]
    instead = {"cat/im01": "cat/im03", "cat/im02": "cat/im03", "dog/im03": "cat/im00"}
    assert [key for keys in seen for key in keys[:3]][:8] == [instead.get(key, key) for key in order[:8]]
    lines = [record.getMessage() for record in caplog.records if "stands in" in record.getMessage()]
    assert len(lines) == 3 and all(sum(f"{key}.png" in line for line in lines) == 1 for key in GONE)
    assert "(3 so far)" in lines[-1]


def test_a_step_is_the_same_on_every_rank_and_of_a_set_without_the_broken_ones(lazy: ImageSource) -> None:
    whole = BatchSet(lazy, ["jpeg"], 8, 0, FLIP)[0, 0]
    parts = [BatchSet(lazy, ["jpeg"], 4, 0, FLIP, rank=rank, world=2)[0, 0] for rank in (0, 1)]
    assert [key for pair in zip(*(part["key"] for part in parts), strict=True) for key in pair] == whole["key"]
    assert torch.equal(parts[0]["degraded"], whole["degraded"][::2])


def test_each_degradation_with_an_order_of_its_own_has_its_own_stand_ins(lazy: ImageSource) -> None:
    batch = BatchSet(lazy, ["jpeg", "blur"], 8, 0, FLIP, pairing="independent").made((0, 0))
    assert len(batch["key"]) == 16 and {entry.key for entry in batch["broken"]} == set(GONE)


def test_validation_leaves_them_out(lazy: ImageSource) -> None:
    batches = list(BatchLoader(BatchSet(lazy, ["jpeg"], 3, 0)).epoch(0))
    assert [key for batch in batches for key in batch["key"]] == [key for key in lazy.keys if key not in GONE]
    assert [len(batch["label"]) for batch in batches] == [1, 3, 1]


def test_adapted_images_that_cannot_be_read_are_broken_images_too(lazy: ImageSource, tmp_path: Path) -> None:
    write_images(tmp_path / "clean", ["cat", "dog"], 4)
    clean = folder_source(tmp_path / "clean", None, "clean")
    batch = BatchSet(clean, ["jpeg"], 8, 0, adapted={"jpeg": lazy}).made((0, 0))
    assert batch["key"] == [key for key in clean.keys if key not in GONE] and len(batch["broken"]) == 3


def test_channel_statistics_do_without_them(tmp_path: Path, lazy: ImageSource) -> None:
    write_images(tmp_path / "pets/test", ["cat"], 1)
    (tmp_path / "pets/train").mkdir()
    for name in ("cat", "dog"):
        (tmp_path / "pets" / name).rename(tmp_path / "pets/train" / name)
    source = open_source(str(tmp_path / "pets"), "train")
    assert source.files is not None and np.isfinite(source.rgb_mean).all()


def test_an_evaluation_is_of_the_images_that_can_be_read(
    lazy: ImageSource, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = without_broken(lazy, tmp_path / "out")
    assert whole.keys == [key for key in lazy.keys if key not in GONE] and len(whole.images(range(5))) == 5
    assert "left out 3 of 8 files that cannot be decoded" in caplog.text
    monkeypatch.setattr(ImageSource, "readable", lambda *_: pytest.fail("decoded again"))
    assert without_broken(lazy, tmp_path / "out").keys == whole.keys
    (remembered,) = (tmp_path / "out").iterdir()
    assert json.loads(remembered.read_text()).keys() == set(GONE)


def test_predict_writes_names_that_are_not_utf8(tmp_path: Path) -> None:
    network = save_random(tmp_path / "net.safetensors", image_size=12)
    write_images(tmp_path, ["photos"], 2, size=(12, 12))
    (tmp_path / "photos/im01.png").rename(tmp_path / "photos/caf\udce9.png")
    (tmp_path / "photos/b\udcff.png").write_bytes(b"no image")
    done = run_script("test.py", "-r", network, "--predict", tmp_path / "photos", "--out", tmp_path / "p.csv")
    assert done.status == 1
    assert [line.split(",")[0] for line in (tmp_path / "p.csv").read_text().splitlines()] == ["file", "caf\\xe9.png", "im00.png"]
    assert f"{tmp_path}/photos/b\\xff.png: none of the image formats" in done.err


def test_trees_of_names_that_are_not_utf8_have_an_identity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_images(tmp_path / "c\udce9/fog/5", ["caf\udce9", "tea"], 1)
    clean = folder_source(tmp_path / "c\udce9/fog/5", None, "photos")
    view = FolderTree(tmp_path / "c\udce9", clean)
    assert view.identity(Cell("fog", 5)) and view.source(Cell("fog", 5)).keys == clean.keys


def test_test_py_counts_the_others(tmp_path: Path, classifier: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [str(number) for number in range(10)]
    write_images(tmp_path / "train", names, 1, size=(32, 32))
    write_images(tmp_path / "test", names, 2, size=(32, 32))
    (tmp_path / "test/3/im00.png").write_bytes(b"no image")
    monkeypatch.setattr(folders, "PRELOAD_BYTES", 0)
    done = run_script("test.py", "-r", classifier, "--dataset", tmp_path, "--out", tmp_path / "out").check()
    assert "left out 1 of 20 files that cannot be decoded" in done.err
    (row,) = json.loads((tmp_path / "out/results.json").read_text())["rows"]
    assert row["n"] == 19
