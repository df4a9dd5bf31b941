"""Checkpoints, configurations, arrays and manifests of strangers: one line that names the file, no
code of theirs runs, nothing hangs and nothing outside the folder is touched.
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.adapting import SCRIPT, digits
from tests.chaos.hostile_images import Payload
from tests.chaos.launches import assert_one_line, within
from tests.photo_like import photo_like
from tests.scripts import Done, run_script

pytestmark = pytest.mark.slow

CLEAN = "configs/ind/Digits/ResNet20_clean.yaml"
SECONDS = 30  # of each call


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    return tmp_path / "marker"


def call(script: str, *words: object) -> Done:
    with within(SECONDS):
        return run_script(script, *words)


# --- checkpoints


def safetensors(header: bytes, length: int | None = None, data: bytes = bytes(64)) -> bytes:
    return struct.pack("<Q", len(header) if length is None else length) + header + data


def entry(shape: list[int], begin: int, end: int, kind: str = "F32") -> dict[str, object]:
    return {"dtype": kind, "shape": shape, "data_offsets": [begin, end]}


def described(text: str) -> bytes:
    return safetensors(json.dumps({"a": entry([16], 0, 64), "__metadata__": {"undegrade": text}}).encode())


SAFETENSORS = {
    "empty": b"",
    "cut": safetensors(b'{"a": {"dtype"'),
    "length beyond the file": safetensors(b"{}", 2**40),
    "length of 2^63": safetensors(b"{}", 2**63),
    "length of 0": safetensors(b"", 0),
    "header no JSON": safetensors(b"\xff" * 50),
    "header nested": safetensors(b"[" * 100_000),
    "offsets beyond the file": safetensors(json.dumps({"a": entry([16], 0, 2**40)}).encode()),
    "offsets backwards": safetensors(json.dumps({"a": entry([16], 64, 0)}).encode()),
    "tensors overlap": safetensors(json.dumps({"a": entry([16], 0, 64), "b": entry([16], 0, 64)}).encode()),
    "shape of 2^62": safetensors(json.dumps({"a": entry([2**31, 2**31], 0, 64)}).encode()),
    "unknown type": safetensors(json.dumps({"a": entry([16], 0, 64, "F7")}).encode()),
    "no tensors": safetensors(b"{}", data=b""),
    "description no JSON": described("{"),
    "description a list": described("[1]"),
    "description nested": described("[" * 100_000),
    "description of another kind": described('{"kind": "poem"}'),
    "description without network": described('{"kind": "classifier"}'),
    "description of an unknown network": described('{"kind": "classifier", "arch": "../../x", "num_classes": 10}'),
    "description of a billion classes": described('{"kind": "classifier", "arch": "ResNet20", "num_classes": 1000000000}'),
    "description of wrong types": described('{"kind": "classifier", "arch": 7, "num_classes": "many", "mean": {}}'),
}


def torch_files(folder: Path, marker: Path) -> None:
    (folder / "pickle.pth").write_bytes(pickle.dumps(Payload(marker)))
    (folder / "pickle of a dict.pth").write_bytes(pickle.dumps({"state_dict": Payload(marker)}))
    torch.save({"state_dict": Payload(marker)}, folder / "torch with an object.pth")
    torch.save([torch.zeros(3)], folder / "torch list.pth")
    torch.save({"epoch": 3}, folder / "torch without tensors.pth")
    torch.save({"state_dict": {"state_dict": {}}}, folder / "torch nested.pth")
    torch.save({"conv.weight": torch.zeros(3)}, folder / "torch of another network.pth")
    whole = (folder / "torch list.pth").read_bytes()
    (folder / "torch cut.pth").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.pth").write_bytes(b"")
    (folder / "text.pth").write_text("404 not found")
    (folder / "zeros.pth").write_bytes(bytes(4096))
    (folder / "archive.pth").write_bytes(b"PK\x05\x06" + bytes(18))
    os.mkfifo(folder / "pipe.pth")
    (folder / "folder.pth").mkdir()
    (folder / "circle.pth").symlink_to("circle.pth")


TORCH = [
    "pickle", "pickle of a dict", "torch with an object", "torch list", "torch without tensors", "torch nested",
    "torch of another network", "torch cut", "empty", "text", "zeros", "archive", "pipe", "folder", "circle",
]  # fmt: skip


def loads(path: Path, marker: Path, tmp_path: Path) -> None:
    """The file as a classifier, as a diffusion model, and as what training starts from."""
    calls: list[tuple[object, ...]] = [
        ("test.py", "-r", path, "--arch", "ResNet20", "--data.dataset", "Digits", "--limit", 10, "--out", tmp_path / "e"),
        (SCRIPT, "--model_path", path, "--corruption", "jpeg", "--limit", 4, "--save_dir", tmp_path / "a"),
        ("train.py", "-c", CLEAN, "--data.limit", 20, "--loop.epochs", 1, "--model.init_from", path, "--save_dir", tmp_path / "t"),
    ]
    for script, *words in calls:
        assert_one_line(call(str(script), *words), path)
        assert not marker.exists()
    assert not list(tmp_path.glob("a/**/*.png")) and not list(tmp_path.glob("t/**/DONE"))


@pytest.mark.parametrize("name", SAFETENSORS)
def test_safetensors_of_strangers_are_refused_in_one_line(name: str, marker: Path, tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    path.write_bytes(SAFETENSORS[name])
    loads(path, marker, tmp_path)


@pytest.mark.parametrize("name", TORCH)
def test_torch_files_of_strangers_are_refused_in_one_line(name: str, marker: Path, tmp_path: Path) -> None:
    (tmp_path / "w").mkdir()
    torch_files(tmp_path / "w", marker)
    loads(tmp_path / "w" / f"{name}.pth", marker, tmp_path)


# --- configurations

LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)
YAMLS = {
    "empty": "",
    "list": "[1, 2]\n",
    "text": "404 not found\n",
    "nested lists": "[" * 50_000,
    "nested mappings": "".join(f"{' ' * i}a:\n" for i in range(3000)),
    "nested flow": "a: " + "{a: " * 20_000,
    "a billion laughs": LAUGHS,
    "a circle": "a: &a [*a]\n",
    "a circle of mappings": "model: &a {b: *a}\n",
    "an object": "!!python/object/apply:os.system ['touch {marker}']\n",
    "an object in a value": "model: !!python/object/apply:os.system ['touch {marker}']\n",
    "a module": "!!python/module:os\n",
    "an unknown tag": "model: !secret 7\n",
    "two documents": "a: 1\n---\nb: 2\n",
    "tabs": "a:\n\tb: 1\n",
    "keys of lists": "? [1, 2]\n: 3\n",
    "a key of null": "null: 3\n",
    "a huge number": "seed: " + "9" * 5000 + "\n",
    "bytes": b"\xff\xfe\x00\x01",
    "zeros": bytes(100),
    "a placeholder": "save_dir: '{x.__class__.__init__.__globals__}'\nname: '{0}'\nmodel: '{'\n",
}


@pytest.mark.parametrize("script", ["train.py", "test_ensemble.py", SCRIPT, "utils/pipeline.py", "image_adapt/scripts/generate.py"])
@pytest.mark.parametrize("name", YAMLS)
def test_configurations_of_strangers_are_refused_in_one_line(name: str, script: str, marker: Path, tmp_path: Path) -> None:
    path, text = tmp_path / "c.yaml", YAMLS[name]
    path.write_bytes(text if isinstance(text, bytes) else text.replace("{marker}", str(marker)).encode())
    assert_one_line(call(script, "-c", path))
    assert not marker.exists()


# --- the published arrays


def arrays(folder: Path) -> None:
    folder.mkdir()
    np.save(folder / "fog.npy", photo_like(50, 32).numpy().transpose(0, 2, 3, 1))
    np.save(folder / "labels.npy", np.tile(np.arange(10, dtype=np.uint8), 5))


def npy(header: str, data: bytes = bytes(100)) -> bytes:
    text = header.encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + data


ARRAYS: dict[str, Callable[[Path, Path], object]] = {
    "pickle": lambda path, marker: path.write_bytes(pickle.dumps(Payload(marker))),
    "objects": lambda path, marker: np.save(path, np.array([Payload(marker)] * 50, dtype=object), allow_pickle=True),
    "empty": lambda path, marker: path.write_bytes(b""),
    "cut": lambda path, marker: path.write_bytes(path.read_bytes()[:100]),
    "text": lambda path, marker: path.write_text("404 not found"),
    "header of code": lambda path, marker: path.write_bytes(npy(f"__import__('os').system('touch {marker}')\n")),
    "header of billions": lambda path, marker: path.write_bytes(
        npy("{'descr': '|u1', 'fortran_order': False, 'shape': (1000000000000, 32, 32, 3), }\n")
    ),
    "header nested": lambda path, marker: path.write_bytes(npy("(" * 5000 + "\n")),
    "floats": lambda path, marker: np.save(path, np.load(path) + 0.5),
    "other shape": lambda path, marker: np.save(path, np.load(path).reshape(-1)[:49]),
    "archive": lambda path, marker: np.savez(str(path), a=np.zeros(3)) or shutil.move(f"{path}.npz", path),
    "a folder": lambda path, marker: (path.unlink(), path.mkdir()),
    "a pipe": lambda path, marker: (path.unlink(), os.mkfifo(path)),
}


@pytest.mark.parametrize("file", ["fog.npy", "labels.npy"])
@pytest.mark.parametrize("name", ARRAYS)
def test_arrays_of_strangers_are_refused_in_one_line(name: str, file: str, ddpm: Path, marker: Path, tmp_path: Path) -> None:
    folder = tmp_path / "CIFAR-10-C"
    arrays(folder)
    ARRAYS[name](folder / file, marker)
    words = ("--model_path", ddpm, "--save_dir", tmp_path / "out", "--timestep_respacing", 10, "--N", 3, "--batch_size", 5)
    done = call(SCRIPT, *words, "--base_samples", folder, "--corruption", "fog", "--severity", "1-5")
    assert not marker.exists()
    assert_one_line(done, *([folder] if (folder / file).is_file() else []))


# --- manifests, class maps and lists

ROWS = {
    "a file outside": {"file": "../../VICTIM.txt"},
    "an absolute file": {"file": "/etc/hostname"},
    "a file that is no text": {"file": 7},
    "no file": {"file": None},
    "a negative size": {"offset": 0, "size": -1},
    "a size beyond the file": {"offset": 0, "size": 2**62},
    "a negative offset": {"offset": -5, "size": 10},
    "an offset that is text": {"offset": "0", "size": 10},
    "a level of nan": {"level": float("nan")},
    "a level of text": {"level": "high"},
    "a key that is no text": {"key": ["a"]},
}


@pytest.fixture(scope="module")
def adapted(ddpm: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The six digits of two cells, as files and as shards."""
    folders = {name: tmp_path_factory.mktemp(name) for name in ("files", "shards")}
    digits(ddpm, folders["files"]).check()
    digits(ddpm, folders["shards"], "--output", "tar", "--shard_size", 4).check()
    return folders


@pytest.mark.parametrize("kind", ["files", "shards"])
@pytest.mark.parametrize("name", ROWS)
def test_manifests_of_strangers_reach_nothing_outside(
    name: str, kind: str, adapted: dict[str, Path], ddpm: Path, classifier: Path, tmp_path: Path
) -> None:
    root = tmp_path / "in/adapted"
    shutil.copytree(adapted[kind], root)
    victim = tmp_path / "in/VICTIM.txt"
    victim.write_text("precious")
    (root / "VICTIM.txt").write_text("precious, too")
    path = root / "jpeg/random/manifest.jsonl"
    first, *rest = path.read_text().splitlines()
    path.write_text("\n".join([json.dumps(json.loads(first) | ROWS[name]), *rest]) + "\n")
    view = {"members": {"m": {"checkpoint": str(classifier), "view": str(root)}}, "systems": {"s": {"members": ["m"]}}}
    data = {"data": {"dataset": "Digits", "limit": 6, "corruptions": ["jpeg"]}, "out": str(tmp_path / "results")}
    (tmp_path / "e.yaml").write_text(json.dumps(view | data))
    evaluated = call("test_ensemble.py", "-c", tmp_path / "e.yaml")
    if evaluated.status:  # what evaluation does not need of a row may be wrong
        assert_one_line(evaluated, root)
    with within(SECONDS):
        digits(ddpm, root, *(("--output", "tar", "--shard_size", 3) if kind == "shards" else ("--seed", 3)), "--overwrite", "true")
    assert victim.read_text() == "precious" and (root / "VICTIM.txt").read_text() == "precious, too"


@pytest.mark.parametrize(
    "text", [b"\xff\xfe\x00", b"0000 ../../x\n0001 b\n", b"0000 a\n0000 b\n", b"0000 a\tb\n0001 c\x1b\n", b"[" * 1000]
)
def test_class_maps_of_strangers_are_read_or_refused(text: bytes, tmp_path: Path) -> None:
    for name in ("0000", "0001"):
        (tmp_path / "g" / name).mkdir(parents=True)
        for i in range(6):
            shutil.copyfile(_picture(tmp_path), tmp_path / "g" / name / f"{i}.png")
    (tmp_path / "g/classes.txt").write_bytes(text)
    words = ("-c", "configs/ind/ImageFolder/ResNet20_clean.yaml", "--data.dataset", tmp_path / "g", "--data.image_size", 32)
    done = call("train.py", *words, "--loop.epochs", 1, "--bs", 4, "--save_dir", tmp_path / "runs")
    if done.status:
        assert_one_line(done, "classes.txt" if b"\xff" in text or b"0000" in text else tmp_path)


def _picture(folder: Path) -> Path:
    path = folder / "one.png"
    if not path.exists():
        Image.fromarray(photo_like(1, 32)[0].numpy().transpose(1, 2, 0)).save(path)
    return path
