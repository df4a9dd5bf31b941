"""One image that goes wrong, in whatever way, is named and counted; the others are made."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from tests.adapting import SCRIPT, adapt, errors_of, manifest_of, pngs, save_images
from tests.scripts import Done, run_script
from tests.test_generation import generated, save_model
from undegrade.image_adapt.adapters import ADAPTERS, Adapter
from undegrade.image_adapt.generator import ImageGenerator

LONG = "n" * 250  # with .jpg a file may have this name, with .jpg.png not


class Faulty(Adapter):
    """Gives numbers that are not finite for black images."""

    image_size = 32

    def adapt(self, x: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        return torch.where((x == -1).flatten(1).all(1)[:, None, None, None], x * torch.nan, -x)


class Narrow(Adapter):
    """Takes images of any size that has at least 4 pixels a side."""

    def adapt(self, x: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        return torch.nn.functional.pad(x, (3, 3, 3, 3), mode="reflect")[..., 3:-3, 3:-3]


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, row in (("faulty", Faulty), ("narrow", Narrow)):
        monkeypatch.setitem(ADAPTERS._rows, name, row)


def by(adapter: str, tmp_path: Path, *words: object) -> Done:
    return run_script(SCRIPT, "--adapter", adapter, "--base_samples", tmp_path / "in", "--save_dir", tmp_path / "out", *words)


def black(path: Path, side: int = 32) -> None:
    Image.new("RGB", (side, side)).save(path)


@pytest.mark.parametrize("words", [(), ("--output", "tar", "--shard_size", 2)])
def test_images_that_come_out_not_finite_are_named_and_the_others_written(tmp_path: Path, words: tuple[object, ...]) -> None:
    save_images(tmp_path / "in", [f"{i}.png" for i in range(5)])
    black(tmp_path / "in/1.png")
    done = by("faulty", tmp_path, "--batch_size", 2, *words)
    assert done.status == 1 and "adapted 4 images" in done.err and "1 broken" in done.err
    assert "broken: 1: the adapter faulty made numbers of it that are not finite" in done.err
    assert [row["key"] for row in manifest_of(tmp_path / "out")] == ["0", "2", "3", "4"]
    assert list(errors_of(tmp_path / "out")) == ["1"]


def test_a_full_batch_of_such_images_ends_the_launch(tmp_path: Path) -> None:
    save_images(tmp_path / "in", ["0.png"])
    for i in range(4):
        black(tmp_path / f"in/{i}.png")
    done = by("faulty", tmp_path, "--batch_size", 2)
    assert done.status == 2 and "the adapter faulty makes numbers that are not finite of all 2 images" in done.err
    assert pngs(tmp_path / "out") == {}


def test_generated_images_that_are_not_finite_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = ImageGenerator.generate

    def faulty(self: ImageGenerator, labels: Sequence[int], generators: Sequence[torch.Generator]) -> Tensor:
        x = whole(self, labels, generators)
        x[torch.tensor(labels) == 1, 0, 0, 0] = torch.inf
        return x

    monkeypatch.setattr(ImageGenerator, "generate", faulty)
    done = generated(save_model(tmp_path / "best.safetensors"), tmp_path / "out", 1)
    assert done.status == 1 and "generated 2 images" in done.err and "broken: 0001/000001: the generator" in done.err
    assert list(pngs(tmp_path / "out")) == ["0000/000000.png", "0002/000002.png"]
    assert list(errors_of(tmp_path / "out")) == ["0001/000001"]


def test_an_adapter_that_fails_on_an_image_of_its_own_size_makes_the_others(tmp_path: Path) -> None:
    save_images(tmp_path / "in", ["0.png", "2.png"])
    black(tmp_path / "in/1.png", 2)
    done = by("narrow", tmp_path)
    assert done.status == 1 and list(pngs(tmp_path / "out")) == ["0.png", "2.png"]
    assert "RuntimeError" in errors_of(tmp_path / "out")["1"]


def test_a_name_that_is_too_long_is_said_and_the_others_are_made(tmp_path: Path) -> None:
    save_images(tmp_path / "in", ["a.png", f"{LONG}.png", f"{LONG}.jpg", "b.png"])
    for _ in range(2):
        done = by("narrow", tmp_path)
        assert done.status == 1 and "2 broken" in done.err and "cannot be written: File name too long" in done.err
        assert list(pngs(tmp_path / "out")) == ["a.png", "b.png"]
    assert sorted(errors_of(tmp_path / "out")) == [f"{LONG}.jpg", f"{LONG}.png"]
    assert by("narrow", tmp_path, "--seed", 1, "--overwrite", "true").status == 1


def test_a_name_that_is_a_folder_of_others_is_written_beside_it(tmp_path: Path) -> None:
    save_images(tmp_path / "in", ["c.jpg", "c.png/x.png", "d/e.png/f/g.png", "d/e.jpg", "h.png"])
    assert "adapted 5 images" in by("narrow", tmp_path).check().err
    assert "adapted 0 images" in by("narrow", tmp_path).check().err
    assert len(pngs(tmp_path / "out")) == len(manifest_of(tmp_path / "out")) == 5


def test_odd_names_are_written_and_found_again(tmp_path: Path) -> None:
    names = [b"caf\xe9.png", b"tab\there.png", b"new\nline.png", "ü/日本.png".encode()]
    for name in names:
        path = tmp_path / "in" / os.fsdecode(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        black(path)
    assert "adapted 4 images" in by("narrow", tmp_path).check().err
    assert len(manifest_of(tmp_path / "out")) == 4 and len(pngs(tmp_path / "out")) == 4
    assert "adapted 0 images" in by("narrow", tmp_path).check().err


def test_a_full_disk_ends_the_launch_and_the_same_command_goes_on(
    ddpm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_images(tmp_path / "in", [f"{i}.png" for i in range(4)])
    replace, count = os.replace, []

    def full(*names: object) -> None:
        count.extend(name for name in names[1:] if str(name).endswith(".png"))
        if len(count) > 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        replace(*names)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr("undegrade.utils.files.os.replace", full)
        done = adapt(ddpm, tmp_path / "out", "--base_samples", tmp_path / "in", "--batch_size", 2)
    assert done.status == 2 and "the disk is full: free some space, and start the same command again" in done.err
    assert list(pngs(tmp_path / "out")) == ["0.png", "1.png"]
    assert "adapted 2 images" in adapt(ddpm, tmp_path / "out", "--base_samples", tmp_path / "in").check().err
