"""Images that are there: whole and what was written, or made again."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from tests.adapting import adapt, digits, files, manifest_of, pixels, pngs, save_images
from undegrade.utils.data.sources.registry import open_source
from undegrade.utils.provenance import library_versions, listing_digest

CELL = "gaussian_noise/5"
TAR = ("--output", "tar", "--shard_size", 4)


def test_manifest_has_size_and_digest_of_each_file(ddpm: Path, tmp_path: Path) -> None:
    digits(ddpm, tmp_path / "single").check()
    digits(ddpm, tmp_path / "tar", *TAR).check()
    for row, other in zip(manifest_of(tmp_path / "single" / CELL), manifest_of(tmp_path / "tar" / CELL), strict=True):
        data = (tmp_path / "single" / CELL / row["file"]).read_bytes()
        for of in (row, other):
            assert of["size"] == len(data) and of["digest"] == hashlib.sha256(data).hexdigest()[:16]


def empty(path: Path) -> None:
    path.write_bytes(b"")


def halve(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def replace(path: Path) -> None:
    Image.new("RGB", (32, 32)).save(path)


def flip(path: Path) -> None:
    """The same size, and the time of before."""
    times, data = path.stat(), bytearray(path.read_bytes())
    data[-30] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


@pytest.mark.parametrize("listed", [True, False])
@pytest.mark.parametrize("damage", [empty, halve, replace])
def test_damaged_images_are_made_again_and_counted(
    ddpm: Path, tmp_path: Path, damage: Callable[[Path], None], listed: bool
) -> None:
    digits(ddpm, tmp_path).check()
    before, rows = pngs(tmp_path), manifest_of(tmp_path / CELL)
    if not listed:  # as after a launch that was killed
        (tmp_path / CELL / "manifest.jsonl").unlink()
    damage(tmp_path / CELL / rows[2]["file"])
    if damage is replace and not listed:
        Image.new("RGB", (8, 8)).save(tmp_path / CELL / rows[2]["file"])  # a whole image of that size may be the right one
    assert "total                 12     11      1        1" in digits(ddpm, tmp_path, "--dry_run").check().out
    done = digits(ddpm, tmp_path).check()
    assert f"{CELL}: 1 images are not what was written, they are made again: {rows[2]['key']}\n" in done.err
    assert "adapted 1 images" in done.err and "11 were there already" in done.err
    assert pngs(tmp_path) == before and manifest_of(tmp_path / CELL) == rows


def test_a_changed_byte_is_found_when_everything_is_compared(ddpm: Path, tmp_path: Path) -> None:
    for words in ((), TAR):
        folder = tmp_path / ("tar" if words else "png")
        digits(ddpm, folder, *words).check()
        before = files(folder)
        path = folder / CELL / manifest_of(folder / CELL)[0]["file"]
        if words:
            times, row = path.stat(), manifest_of(folder / CELL)[0]
            data = bytearray(path.read_bytes())
            data[row["offset"] + row["size"] - 30] ^= 1
            path.write_bytes(data)
            os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
        else:
            flip(path)
        assert "adapted 0 images" in digits(ddpm, folder, *words).check().err
        assert "1 images are not what was written" in digits(ddpm, folder, *words, "--verify").check().err
        assert files(folder) == before
        assert "adapted 0 images" in digits(ddpm, folder, *words, "--verify").check().err


def test_a_shard_that_is_cut_off_is_made_again(ddpm: Path, tmp_path: Path) -> None:
    digits(ddpm, tmp_path, *TAR).check()
    before = files(tmp_path)
    halve(tmp_path / CELL / "shard-000000.tar")
    done = digits(ddpm, tmp_path, *TAR).check()
    assert "4 images are not what was written" in done.err and "adapted 4 images" in done.err
    assert files(tmp_path) == before


def test_a_damaged_image_whose_input_is_gone_bad_is_not_kept(ddpm: Path, tmp_path: Path) -> None:
    for words in ((), TAR):
        save_images(tmp_path / "in", [f"{i}.png" for i in range(4)])
        out = tmp_path / ("tar" if words else "png")
        given = ("--base_samples", tmp_path / "in", *words)
        adapt(ddpm, out, *given).check()
        row = manifest_of(out)[1]
        with (out / row["file"]).open("r+b") as file:
            file.seek(row.get("offset", 0) + 60)
            file.write(b"damage")
        (tmp_path / "in/1.png").write_text("no image")
        (tmp_path / "in/0.png").write_text("no image")  # its adapted image stays
        done = adapt(ddpm, out, *given)
        assert done.status == 1 and "1 images are not what was written" in done.err and "1 broken" in done.err
        assert [row["key"] for row in manifest_of(out)] == ["0", "2", "3"]
        assert list(pngs(out)) == ([] if words else ["0.png", "2.png", "3.png"])


def test_lines_about_images_that_will_be_made_leave_the_manifest_first(
    ddpm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A killed launch leaves no line that speaks of other bytes, as another machine may make."""
    digits(ddpm, tmp_path).check()
    rows = manifest_of(tmp_path / CELL)
    (tmp_path / CELL / rows[0]["file"]).unlink()

    def stop(*arguments: object) -> None:
        raise SystemExit(9)

    with monkeypatch.context() as patch:
        patch.setattr("undegrade.image_adapt.work.adapt_batch", stop)
        assert digits(ddpm, tmp_path).status == 9
    assert manifest_of(tmp_path / CELL) == rows[1:]
    adapt_black(tmp_path / CELL / rows[0]["file"])
    assert "adapted 0 images" in digits(ddpm, tmp_path).check().err
    assert manifest_of(tmp_path / CELL)[0]["digest"] != rows[0]["digest"] and pixels(tmp_path / CELL / rows[0]["file"]).max() == 0


def adapt_black(path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    Image.new("RGB", (32, 32)).save(path)


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("settings.json", "{", "is damaged"),
        ("settings.json", "[" * 100_000, "is damaged"),
        ("settings.json", "[]", "holds no names with values"),
        ("manifest.jsonl", "{", "line 1 is damaged"),
        ("manifest.jsonl", '{"key": "a"}', "expected an object with the texts key and file"),
        ("manifest.jsonl", '{"key": "a", "file": "/etc/passwd"}', "would leave the output folder"),
        ("manifest.jsonl", '{"key": "a", "file": "b/../../c"}', "would leave the output folder"),
        ("manifest.jsonl", '{"key": "a", "file": "b", "offset": -1}', "offset -1 is no number of bytes"),
        ("manifest.jsonl", '{"key": "a", "file": "b", "size": true}', "size True is no number of bytes"),
        ("manifest.jsonl", '{"key": "a", "file": "b", "level": NaN}', "level nan is no number"),
        ("manifest.jsonl", '{"key": "a", "file": "b"}\n{"key": "a", "file": "c"}', "line 2: the key 'a' is there twice"),
    ],
)
def test_damaged_notes_are_named_with_the_mend(tmp_path: Path, ddpm: Path, file: str, text: str, message: str) -> None:
    words = ("--corruption", "jpeg", "--limit", 2)
    adapt(ddpm, tmp_path, *words).check()
    cell = tmp_path / "jpeg/random"
    (cell / file).write_text(text)
    done = adapt(ddpm, tmp_path, *words)
    assert done.status == 2 and message in done.err and str(cell / file) in done.err.splitlines()[-1]
    assert "Traceback" not in done.err
    if file == "settings.json":
        assert "adapted 2 images" in adapt(ddpm, tmp_path, *words, "--overwrite", "true").check().err
    else:
        (cell / file).unlink()
        assert "adapted 0 images" in adapt(ddpm, tmp_path, *words).check().err
    assert len(manifest_of(cell)) == 2 and json.loads((cell / "settings.json").read_text())


def test_each_launch_that_makes_images_is_noted_with_what_they_come_from(ddpm: Path, tmp_path: Path) -> None:
    def launches() -> list[dict]:
        lines = [json.loads(line) for line in (tmp_path / CELL / "provenance.jsonl").read_text().splitlines()]
        assert [line["images"] for line in lines if "ended" in line][:2] in ([12], [12, 1])  # of both cells; what they took
        return [line for line in lines if "started" in line]

    digits(ddpm, tmp_path).check()
    digits(ddpm, tmp_path).check()  # nothing to do
    rows, (first,) = manifest_of(tmp_path / CELL), launches()
    source = open_source("Digits", "test", limit=6)
    assert (first["images"], first["ranks"], first["settings"]) == (6, 1, rows[0]["settings"])
    assert first["listing"] == listing_digest(source.keys, source.labels)
    given = first["configuration"]
    assert given["dda"]["start_step"] == 3 and given["input"]["limit"] == 6 and "ilvr" not in given
    assert first["libraries"] == library_versions() and {"commit", "cpu", "gpu", "started"} <= first.keys()
    (tmp_path / CELL / rows[0]["file"]).unlink()
    digits(ddpm, tmp_path).check()
    assert [line["images"] for line in launches()] == [6, 1] and launches()[0] == first
    digits(ddpm, tmp_path, "--seed", 5, "--overwrite", "true").check()
    assert [line["configuration"]["seed"] for line in launches()] == [5]
