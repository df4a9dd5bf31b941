"""image_sample.py --output tar: the images of --output png, in tar files that WebDataset reads and
evaluation, too.
"""

from __future__ import annotations

import io
import json
import re
import sys
import tarfile
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
import torch
from PIL import Image

import undegrade.utils.data.sources.shards
from tests.adapting import SCRIPT, adapt, digits, manifest_of, pngs, save_images
from tests.photo_like import photo_like
from tests.scripts import launch, program, run_script
from undegrade.utils.data.cells import Cell
from undegrade.utils.data.sources.image_source import ImageSource
from undegrade.utils.data.sources.images import Resize
from undegrade.utils.data.sources.registry import open_source
from undegrade.utils.data.sources.shards import shard_places, write_shard
from undegrade.utils.data.views import FolderTree

MPIEXEC = program("mpiexec")
CELLS = ("gaussian_noise/5", "jpeg/random")
TAR = ("--output", "tar", "--shard_size", 4)  # of the 6 digits of a cell: 4 and 2


@pytest.fixture(scope="module")
def single(ddpm: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of `digits`, a file an image."""
    folder = tmp_path_factory.mktemp("single")
    digits(ddpm, folder).check()
    return folder


@pytest.fixture(scope="module")
def sharded(ddpm: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same in shards."""
    folder = tmp_path_factory.mktemp("sharded")
    assert "adapted 12 images" in digits(ddpm, folder, *TAR).check().err
    return folder


@pytest.fixture(scope="module")
def clean() -> ImageSource:
    return open_source("Digits", "test", limit=6)


def shards(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*.tar"))}


def members(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as tar:
        return {m.name: tar.extractfile(m).read() for m in tar}  # type: ignore[union-attr]


# --- what is written


def test_shards_hold_the_bytes_of_png_files_in_the_order_of_the_keys(single: Path, sharded: Path, clean: ImageSource) -> None:
    label = dict(zip(clean.keys, clean.labels.tolist(), strict=True))
    keys = sorted(clean.keys)
    assert pngs(sharded) == {}
    for cell in CELLS:
        expected = {}
        for key in keys:
            expected[f"{key}.png"] = (single / cell / f"{key}.png").read_bytes()
            expected[f"{key}.cls"] = str(label[key]).encode()
        first, second = (members(sharded / cell / f"shard-00000{number}.tar") for number in range(2))
        assert list({**first, **second}.items()) == list(expected.items()) and len(first) == 8
        assert not (sharded / cell / "shard-000002.tar").exists()


def test_members_have_no_time_and_no_owner(sharded: Path) -> None:
    with tarfile.open(sharded / CELLS[0] / "shard-000000.tar") as tar:
        assert {(m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode) for m in tar} == {(0, 0, 0, "", "", 0o644)}


def test_manifest_says_where_the_png_lies_in_its_shard(single: Path, sharded: Path) -> None:
    for cell in CELLS:
        for row, other in zip(manifest_of(sharded / cell), manifest_of(single / cell), strict=True):
            assert re.fullmatch(r"shard-00000[01]\.tar", row["file"])
            data = (sharded / cell / row["file"]).read_bytes()[row["offset"] : row["offset"] + row["size"]]
            assert data == (single / cell / other["file"]).read_bytes()
            same = ("key", "label", "level", "seed", "input_side")
            assert {k: row[k] for k in same} == {k: other[k] for k in same}


def test_webdataset_reads_images_and_labels_back(single: Path, sharded: Path, clean: ImageSource) -> None:
    webdataset = pytest.importorskip("webdataset")
    cell = sharded / CELLS[0]
    urls = [str(path) for path in sorted(cell.glob("*.tar"))]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False).decode("rgb8").to_tuple("__key__", "png", "cls"))
    assert [key for key, _, _ in samples] == sorted(clean.keys)
    label = dict(zip(clean.keys, clean.labels.tolist(), strict=True))
    for key, image, found in samples:
        assert found == label[key]
        assert np.array_equal(image, np.asarray(Image.open(single / CELLS[0] / f"{key}.png")))


def test_keys_with_dots_and_long_ones_come_back_from_webdataset(tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    keys = ["a.b/c.d.png", "a.b/c%2Ed", "é/" + 3 * ("long" * 40 + "/") + "x.y"]
    png = io.BytesIO()
    Image.new("RGB", (2, 2), (9, 8, 7)).save(png, "png")
    places = write_shard(tmp_path / "s.tar", [(key, png.getvalue(), i) for i, key in enumerate(keys)])
    found = list(webdataset.WebDataset(str(tmp_path / "s.tar"), shardshuffle=False).to_tuple("__key__", "png", "cls"))
    assert [(unquote(key), data, int(label)) for key, data, label in found] == [(k, png.getvalue(), i) for i, k in enumerate(keys)]
    whole = (tmp_path / "s.tar").read_bytes()
    assert [whole[places[k][0] : sum(places[k])] for k in keys] == 3 * [png.getvalue()]


def test_files_that_differ_by_suffix_alone_have_two_places(ddpm: Path, tmp_path: Path) -> None:
    save_images(tmp_path / "in", ["a.png", "a.jpg", "b.png"])
    adapt(ddpm, tmp_path / "out", "--base_samples", tmp_path / "in", *TAR).check()
    assert [(row["key"], row["label"]) for row in manifest_of(tmp_path / "out")] == [("a.jpg", -1), ("a.png", -1), ("b", -1)]
    names = [name for name in members(tmp_path / "out/shard-000000.tar") if name.endswith(".png")]
    assert names == ["a%2Ejpg.png", "a%2Epng.png", "b.png"]
    assert "adapted 0 images" in adapt(ddpm, tmp_path / "out", "--base_samples", tmp_path / "in", *TAR).check().err


@pytest.mark.skipif(MPIEXEC is None, reason="no mpiexec beside this Python or on the PATH: pip install mpich")
def test_two_ranks_write_the_shards_and_manifests_of_one(sharded: Path, ddpm: Path, tmp_path: Path) -> None:
    words = ("--model_path", ddpm, "--save_dir", tmp_path, "--timestep_respacing", 10, "--N", 3, "--D", 4, "--guidance_weight", 3)
    words += ("--corruption", "gaussian_noise,jpeg", "--limit", 6, "--batch_size", 4, *TAR)
    done = launch(MPIEXEC, "-n", 2, sys.executable, SCRIPT, *words).check()
    assert "adapted 12 images" in done.err
    assert shards(tmp_path) == shards(sharded) and len(shards(sharded)) == 4
    for cell in CELLS:
        assert manifest_of(tmp_path / cell) == manifest_of(sharded / cell)


# --- the same command again


def test_deleted_shard_comes_back_to_the_byte_and_the_others_are_left_alone(sharded: Path, ddpm: Path, tmp_path: Path) -> None:
    digits(ddpm, tmp_path, *TAR).check()
    before, rows = shards(tmp_path), manifest_of(tmp_path / CELLS[0])
    assert before == shards(sharded)
    lost = f"{CELLS[0]}/shard-000000.tar"
    (tmp_path / lost).unlink()
    (tmp_path / CELLS[0] / ".0123456789abcdef.tmp").write_bytes(before[lost][:700])  # a write that was cut off
    times = {name: (tmp_path / name).stat().st_mtime_ns for name in before if name != lost}
    again = digits(ddpm, tmp_path, *TAR).check()
    assert "adapted 4 images" in again.err and "8 were there already" in again.err
    assert shards(tmp_path) == before and manifest_of(tmp_path / CELLS[0]) == rows
    assert {name: (tmp_path / name).stat().st_mtime_ns for name in times} == times


def test_killed_launch_goes_on_with_the_missing_shards(
    sharded: Path, ddpm: Path, clean: ImageSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, written = undegrade.utils.data.sources.shards.tarfile.TarFile.addfile, []

    def stop(self: tarfile.TarFile, *args: object) -> None:
        written.append(args)
        if len(written) == 10:  # in the second shard
            raise SystemExit(9)
        whole(self, *args)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(undegrade.utils.data.sources.shards.tarfile.TarFile, "addfile", stop)
        assert digits(ddpm, tmp_path, *TAR).status == 9
    assert list(shards(tmp_path)) == [f"{CELLS[0]}/shard-000000.tar"]
    with pytest.raises(ValueError, match=r"gaussian_noise/5 holds shards but no manifest\.jsonl: .* start it again"):
        FolderTree(tmp_path, clean).source(Cell("gaussian_noise", 5))
    assert "adapted 8 images" in digits(ddpm, tmp_path, *TAR).check().err
    assert shards(tmp_path) == shards(sharded)


def test_broken_images_are_left_out_and_take_their_place_when_mended(ddpm: Path, tmp_path: Path) -> None:
    save_images(tmp_path / "in", [f"{i}.png" for i in range(6)])
    adapt(ddpm, tmp_path / "whole", "--base_samples", tmp_path / "in", *TAR).check()
    broken = {i: (tmp_path / f"in/{i}.png").read_bytes() for i in (1, 4, 5)}
    for i in broken:
        (tmp_path / f"in/{i}.png").write_text("no image")
    words = (tmp_path / "out", "--base_samples", tmp_path / "in", *TAR)
    done = adapt(ddpm, *words)
    assert done.status == 1 and "adapted 3 images" in done.err and "3 broken" in done.err and "broken: 4: " in done.err
    assert list(shards(tmp_path / "out")) == ["shard-000000.tar"]  # nothing for the second
    assert [row["key"] for row in manifest_of(tmp_path / "out")] == ["0", "2", "3"]
    before = (tmp_path / "out/shard-000000.tar").stat().st_mtime_ns
    again = adapt(ddpm, *words, "--skip_broken", "true").check()
    assert "adapted 0 images" in again.err and "3 were there already" in again.err
    assert (tmp_path / "out/shard-000000.tar").stat().st_mtime_ns == before
    assert [row["key"] for row in manifest_of(tmp_path / "out")] == ["0", "2", "3"]
    for i, data in broken.items():
        (tmp_path / f"in/{i}.png").write_bytes(data)
    assert "adapted 3 images" in adapt(ddpm, *words).check().err
    assert shards(tmp_path / "out") == shards(tmp_path / "whole")
    assert [{**row, "settings": ""} for row in manifest_of(tmp_path / "out")] == [
        {**row, "settings": ""} for row in manifest_of(tmp_path / "whole")
    ]


@pytest.mark.parametrize(
    ("words", "differs"),
    [
        (("--output", "tar", "--shard_size", 3), "shard_size: 4 there, 3 now"),
        ((*TAR, "--limit", 3), "images: 6 with keys of digest [0-9a-f]{16} there, 3 with keys"),
        ((), "output: tar there, png now"),
    ],
)
def test_other_cuts_are_refused_and_take_the_place_when_asked(
    ddpm: Path, tmp_path: Path, words: tuple[object, ...], differs: str
) -> None:
    given = ("--corruption", "jpeg", "--limit", 6)
    adapt(ddpm, tmp_path / "a", *given, *TAR).check()
    refused = adapt(ddpm, tmp_path / "a", *given, *words)
    assert refused.status == 2 and re.search(differs, refused.err) and "--overwrite true" in refused.err
    (tmp_path / "a/jpeg/random/manifest.jsonl").unlink()  # as if that launch had not ended
    adapt(ddpm, tmp_path / "a", *given, *words, "--overwrite", "true").check()
    adapt(ddpm, tmp_path / "b", *given, *words).check()
    assert shards(tmp_path / "a") == shards(tmp_path / "b") and pngs(tmp_path / "a") == pngs(tmp_path / "b")


def test_dry_run_counts_batches_within_shards(ddpm: Path, tmp_path: Path) -> None:
    words = ("--output", "tar", "--shard_size", 5, "--dry_run")  # 5 and 1 images in batches of 4
    done = digits(ddpm, tmp_path, *words).check()
    assert re.search(r"total +12 +0 +12 +6\n", done.out) and "ranks: 1, at most 8 batches of 4 each" in done.out
    assert "MiB (tar)" in done.out and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--shard_size", 10), "--shard_size 10 has no meaning without --output tar: give both, or neither"),
    ],
)
def test_mistakes_are_said(ddpm: Path, tmp_path: Path, words: tuple[object, ...], message: str) -> None:
    done = digits(ddpm, tmp_path / "out", *words)
    assert done.status == 2 and message in done.err and not (tmp_path / "out").exists()


def test_damaged_shard_is_named(tmp_path: Path) -> None:
    (tmp_path / "s.tar").write_text("")
    with pytest.raises(ValueError, match="is no whole tar file"):
        shard_places(tmp_path / "s.tar")


# --- evaluation


@pytest.mark.parametrize("at_once", [True, False])
def test_images_of_a_view_are_those_of_the_png_files(
    single: Path, sharded: Path, clean: ImageSource, monkeypatch: pytest.MonkeyPatch, at_once: bool
) -> None:
    if not at_once:
        monkeypatch.setattr(undegrade.utils.data.sources.folders, "PRELOAD_BYTES", 0)
    for cell in (Cell("gaussian_noise", 5), Cell("jpeg")):
        few = clean.subset([4, 0, 3])
        one, other = FolderTree(single, few).source(cell), FolderTree(sharded, few).source(cell)
        assert other.keys == few.keys == one.keys and torch.equal(other.labels, few.labels)
        assert torch.equal(other.images([2, 0, 1]), one.images([2, 0, 1]))
        assert (other.level is None) == (one.level is None) and (one.level is None or torch.equal(one.level, other.level))
        assert (one.classes, one.image_size, one.resize) == (other.classes, other.image_size, other.resize)


def test_view_of_shards_names_what_is_missing_and_changes_with_its_files(ddpm: Path, clean: ImageSource, tmp_path: Path) -> None:
    digits(ddpm, tmp_path, *TAR).check()
    cell, seven = Cell("jpeg"), open_source("Digits", "test", limit=7)
    with pytest.raises(ValueError, match="1 of 7 images are missing"):
        FolderTree(tmp_path, seven).source(cell)
    view = FolderTree(tmp_path, clean)
    before = view.identity(cell)
    assert view.identity(cell) == before
    digits(ddpm, tmp_path, *TAR, "--seed", 1, "--overwrite", "true").check()
    assert view.identity(cell) != before


def test_photographs_from_shards_are_cut_as_those_from_files(tmp_path: Path) -> None:
    """Files of the diffusion model's 40 px, of which evaluation shows 28 of 32: resized, then cut,
    unless the input had 28.
    """
    images = photo_like(3, 40)
    keys = [f"cat/{i}" for i in range(3)]
    save_images(tmp_path / "files/fog/1", [f"{key}.png" for key in keys], 40)
    samples = [(key, (tmp_path / f"files/fog/1/{key}.png").read_bytes(), 0) for key in keys]
    folder = tmp_path / "shards/fog/1"
    places = write_shard(folder / "shard-000000.tar", samples)
    clean = ImageSource(
        "c", ("cat", "dog"), torch.zeros(3, dtype=torch.int64), keys, 28, lambda rows: images[rows], resize=Resize(32)
    )
    for side in (28, 40):
        rows = [
            {"key": k, "file": "shard-000000.tar", "offset": at, "size": size, "input_side": side}
            for k, (at, size) in places.items()
        ]
        (folder / "manifest.jsonl").write_text("\n".join(map(json.dumps, rows)))
        (tmp_path / "files/fog/1/manifest.jsonl").write_text(json.dumps({"key": "a", "file": "a.png", "input_side": side}))
        one, other = (FolderTree(tmp_path / name, clean).source(Cell("fog", 1)) for name in ("files", "shards"))
        assert one.resize == other.resize == (None if side == 28 else Resize(32))
        assert torch.equal(one.images(range(3)), other.images(range(3)))


def test_ensemble_of_shards_has_the_logits_of_the_png_files(single: Path, sharded: Path, classifier: Path, tmp_path: Path) -> None:
    members = {"plain": {"checkpoint": str(classifier)}, "shown": {"checkpoint": str(classifier), "view": "adapted"}}
    systems = {"both": {"members": ["plain", "shown"]}}
    tree = {"members": members, "views": {"adapted": "to be given"}, "systems": systems, "data": {"dataset": "Digits", "limit": 6}}
    (tmp_path / "e.yaml").write_text(json.dumps(tree))
    logits = []
    for folder in (single, sharded):
        words = ("-c", tmp_path / "e.yaml", "--views.adapted", folder, "--corruption", "gaussian_noise,jpeg", "--severity", 5)
        run_script("test_ensemble.py", *words, "--out", tmp_path / "out" / folder.name).check()
        stored = [np.load(path) for path in (tmp_path / "out" / folder.name / "logits").rglob("*.npz")]
        logits.append(sorted(file["logits"].tobytes() for file in stored if "logits" in file))
    assert logits[0] == logits[1] and len(set(logits[0])) == 4  # two cells of two members
