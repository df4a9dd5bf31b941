"""What a finished folder holds is damaged; the same command mends it, or says in one line what is
wrong.
"""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.adapting import digits
from tests.chaos.launches import assert_one_line, assert_same_tree, within
from tests.scripts import Done, run_script
from tests.test_generation import generated, save_model
from undegrade.utils.checkpoint import load_checkpoint

pytestmark = pytest.mark.slow

CELL = "jpeg/random"
RUN = "ind/Digits/ResNet20_clean/one"
TAR = ("--output", "tar", "--shard_size", 4)


def other_picture(data: bytes) -> bytes:
    """Another whole picture of that size in the same format."""
    out = io.BytesIO()
    with Image.open(io.BytesIO(data)) as image:
        Image.new("RGB", image.size, (200, 30, 60)).save(out, image.format)
    return out.getvalue()


def other_byte(data: bytes) -> bytes:
    place = len(data) // 2
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


# what becomes of a file; None: it is deleted
DAMAGES: dict[str, Callable[[bytes], bytes | None]] = {
    "deleted": lambda data: None,
    "empty": lambda data: b"",
    "half": lambda data: data[: len(data) // 2],
    "zeros": lambda data: bytes(len(data)),
    "another picture": other_picture,
    "one bit": other_byte,
    "text": lambda data: b"404 not found\n",
    "binary": lambda data: bytes(range(256)) * 8,
    "nested": lambda data: b"[" * 100_000,
    "null": lambda data: b"null\n",
    "list": lambda data: b"[1, 2]\n",
}


def damage(path: Path, name: str) -> None:
    changed = DAMAGES[name](path.read_bytes())
    if changed is None:
        path.unlink()
    else:
        path.write_bytes(changed)


def first(folder: Path, pattern: str) -> Path:
    return min(folder.glob(pattern))


@pytest.fixture(scope="module")
def images(ddpm: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    digits(ddpm, folder).check()
    return folder


@pytest.fixture(scope="module")
def shards(ddpm: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    digits(ddpm, folder, *TAR).check()
    return folder


@pytest.fixture
def copy(tmp_path: Path) -> Callable[[Path], Path]:
    def copied(folder: Path) -> Path:
        shutil.copytree(folder, tmp_path / "damaged")
        return tmp_path / "damaged"

    return copied


@pytest.mark.parametrize("name", ["deleted", "empty", "half", "zeros", "another picture", "one bit", "text"])
@pytest.mark.parametrize("kind", ["image", "shard"])
def test_a_damaged_image_or_shard_is_made_again(
    kind: str, name: str, images: Path, shards: Path, ddpm: Path, copy: Callable[[Path], Path]
) -> None:
    expected = images if kind == "image" else shards
    folder = copy(expected)
    path = first(folder / CELL, "*/*.png" if kind == "image" else "*.tar")
    if name == "another picture" and kind == "shard":
        shutil.copyfile(max(path.parent.glob("*.tar")), path)
    else:
        damage(path, name)
    with within(60):
        digits(ddpm, folder, *(TAR if kind == "shard" else ())).check()
    assert_same_tree(folder, expected)


@pytest.mark.parametrize("name", [*DAMAGES])
@pytest.mark.parametrize("kind", ["images", "shards"])
@pytest.mark.parametrize("file", ["manifest.jsonl", "settings.json"])
def test_a_damaged_manifest_or_settings_file_is_mended_or_named_with_its_mend(
    file: str, kind: str, name: str, images: Path, shards: Path, ddpm: Path, copy: Callable[[Path], Path]
) -> None:
    if name == "another picture":
        pytest.skip("no picture")
    expected, more = (images, ()) if kind == "images" else (shards, TAR)
    folder = copy(expected)
    damage(folder / CELL / file, name)
    with within(60):
        done = digits(ddpm, folder, *more)
        if done.status:
            assert_one_line(done, folder / CELL)
            if file == "manifest.jsonl":
                (folder / CELL / file).unlink()
            digits(ddpm, folder, *more, *(("--overwrite", "true") if file == "settings.json" else ())).check()
    assert_same_tree(folder, expected)


def test_damaged_pictures_of_generation_are_made_again(tmp_path: Path) -> None:
    model = save_model(tmp_path / "best.safetensors")
    generated(model, tmp_path / "whole").check()
    shutil.copytree(tmp_path / "whole", tmp_path / "damaged")
    paths = sorted((tmp_path / "damaged").rglob("*.png"))
    for number, name in enumerate(("empty", "half", "another picture", "text")):
        damage(paths[number], name)
    generated(model, tmp_path / "damaged").check()
    assert_same_tree(tmp_path / "damaged", tmp_path / "whole")


# --- training


def training(root: Path, epochs: int) -> Done:
    given = ("-c", "configs/ind/Digits/ResNet20_clean.yaml", "--save_dir", root, "--run_id", "one")
    return run_script("train.py", *given, "--bs", 20, "--data.limit", 40, "--loop.epochs", epochs)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run that has done two of its three epochs, kept apart, and the root where it belongs."""
    kept, root = tmp_path_factory.mktemp("kept"), tmp_path_factory.mktemp("stopped")
    training(root, 2).check()
    shutil.copytree(root / RUN, kept / RUN)
    shutil.rmtree(root / RUN)
    training(root, 3).check()
    shutil.copyfile(root / RUN / "config.yaml", kept / RUN / "config.yaml")
    (kept / RUN / "DONE").unlink()
    return kept, root


@pytest.mark.parametrize("name", ["deleted", "empty", "half", "zeros", "one bit", "text", "nested"])
@pytest.mark.parametrize("file", ["last/state.pt", "config.yaml", "metrics.jsonl", "best.safetensors"])
def test_a_run_with_a_damaged_file_ends_well_or_names_it(file: str, name: str, stopped: tuple[Path, Path]) -> None:
    kept, root = stopped
    run = root / RUN
    shutil.rmtree(run)
    shutil.copytree(kept / RUN, run)
    damage(run / file, name)
    with within(120):
        done = training(root, 3)
    if done.status:
        return assert_one_line(done, run)
    assert (run / "DONE").is_file()
    assert torch.load(run / "last/state.pt", weights_only=True)["progress"]["epoch"] == 3
    assert all(value.isfinite().all() for value in load_checkpoint(run / "best.safetensors")[0].values())
    return None


# --- evaluation


@pytest.mark.parametrize("name", ["deleted", "empty", "half", "zeros", "one bit", "text", "nested", "null", "list"])
@pytest.mark.parametrize("pattern", ["results.json", "results.csv", "logits/**/*.npz"])
def test_damaged_results_are_made_again_or_named(
    pattern: str, name: str, evaluated: Path, classifier: Path, copy: Callable[[Path], Path]
) -> None:
    folder = copy(evaluated)
    file = first(folder, pattern)
    damage(file, name)
    with within(60):
        done = evaluation(classifier, folder)
    if done.status:
        return assert_one_line(done, file)
    rows = [json.loads((place / "results.json").read_text())["rows"] for place in (folder, evaluated)]
    assert rows[0] == rows[1]
    assert (folder / "results.csv").read_bytes() == (evaluated / "results.csv").read_bytes()
    return None


@pytest.fixture(scope="module")
def evaluated(classifier: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evaluated")
    evaluation(classifier, folder).check()
    return folder


def evaluation(classifier: Path, out: Path) -> Done:
    return run_script("test.py", "-r", classifier, "--corruption", "jpeg,fog", "--severity", 5, "--limit", 20, "--out", out)
