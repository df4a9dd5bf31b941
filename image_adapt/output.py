"""What lies in an output folder: images or shards of them, and the manifest that says which."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from undegrade.image_adapt.job import Job
from undegrade.utils.data.manifest import MANIFEST, read_manifest
from undegrade.utils.data.sources.image_source import Broken
from undegrade.utils.data.sources.images import FileSlice
from undegrade.utils.data.sources.shards import sample_name, shard_places, write_shard
from undegrade.utils.files import write_atomic
from undegrade.utils.paths import escaped

# output -> suffix of the files and how Pillow writes them. jpeg: Pillow's own quality (75) and
# subsampling (4:2:0)
_PNG: dict[str, Any] = {"format": "png", "compress_level": 1}
ENCODINGS: dict[str, tuple[str, dict[str, Any]]] = {
    "png": (".png", _PNG),
    "jpeg": (".jpeg", {"format": "jpeg"}),
    "npy": (".png", _PNG),
    "tar": (".png", _PNG),
}
_ENDS = {".png": b"IEND\xaeB`\x82", ".jpeg": b"\xff\xd9"}  # suffix -> last bytes of a whole file


class Stored(NamedTuple):
    """An image that is there.

    Attributes:
        size: bytes of its file, or of its part of a shard.
        digest: first 16 hexadecimal digits of their SHA-256.
        offset: where it begins in its shard; None for an image with a file of its own.
    """

    size: int
    digest: str
    offset: int | None = None


class Found(NamedTuple):
    """What is there of a job: images by row, and rows of those that are to be made again, since
    they are not what was written.
    """

    there: dict[int, Stored]
    damaged: list[int]


def encode(image: np.ndarray, output: str) -> bytes:
    """uint8 [3, H, W] as an image file."""
    buffer = io.BytesIO()
    Image.fromarray(image.transpose(1, 2, 0)).save(buffer, **ENCODINGS[output][1])
    return buffer.getvalue()


def digest_of(data: bytes) -> str:
    """First 16 hexadecimal digits of the SHA-256."""
    return hashlib.sha256(data).hexdigest()[:16]


def settings_digest(settings: Mapping[str, Any]) -> str:
    """The same of settings, in the lines of manifests."""
    return digest_of(json.dumps(settings, sort_keys=True).encode())


def find_outputs(job: Job, full: bool = False) -> Found:
    """The images that are there and are what was written.

    The manifest says size and digest of an image. Of a file that is younger than it the digest is
    compared, of others the size. An image of which it says nothing, since the launch that wrote it
    was killed, must have the width, the height and the last bytes of a whole file.

    Args:
        job: images and their files.
        full: read and decode all.

    Raises:
        ValueError: a damaged manifest; a key that leaves the output folder.
    """
    manifest, found = job.folder / MANIFEST, Found({}, [])
    noted = {row["key"]: row for row in read_manifest(job.folder) if {"size", "digest"} <= row.keys()}
    written = manifest.stat().st_mtime_ns if noted else 0
    for path, rows in _files(job):
        status = file_status(path)
        if status is None:
            continue
        known = {
            i: Stored(row["size"], row["digest"], row.get("offset"))
            for i in rows
            if (row := noted.get(job.source.keys[i])) and row["file"] == job.file(i)
        }
        if known and not full and status.st_mtime_ns <= written and all(_fits(job, entry, status) for entry in known.values()):
            found.there.update(known)
            continue
        try:
            for i, data, offset in _contents(job, path, rows):
                stored = Stored(len(data), digest_of(data), offset)
                if known.get(i, stored).digest == stored.digest and _whole(job, data, full):
                    found.there[i] = stored
                else:
                    found.damaged.append(i)
        except ValueError:  # no whole tar file
            found.damaged.extend(rows)
    return found


def _files(job: Job) -> Iterator[tuple[Path, list[int]]]:
    """Each file of a job and its images."""
    if job.shard_size is None:
        yield from ((job.path(i), [i]) for i in range(len(job.source)))
        return
    for number in range(-(-len(job.source) // job.shard_size)):
        rows = job.shard_rows(number)
        yield job.path(rows[0]), rows


def file_status(path: Path) -> os.stat_result | None:
    """Of a regular file; None where there is none, and none can be of this name."""
    try:
        status = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            return None
        raise
    return status if stat.S_ISREG(status.st_mode) else None


def _fits(job: Job, entry: Stored, status: os.stat_result) -> bool:
    if job.shard_size is None:
        return entry.size == status.st_size
    return entry.offset is not None and entry.offset + entry.size <= status.st_size


def _contents(job: Job, path: Path, rows: Sequence[int]) -> Iterator[tuple[int, bytes, int | None]]:
    """(row, bytes, offset) of each image in a file."""
    if job.shard_size is None:
        yield rows[0], path.read_bytes(), None
        return
    for i, (offset, size) in _in_shard(job, path, rows).items():
        yield i, FileSlice(path, offset, size).open().getvalue(), offset


def _whole(job: Job, data: bytes, full: bool) -> bool:
    """Whether bytes are an image as the job writes them, to their end."""
    try:
        with Image.open(io.BytesIO(data), formats=["PNG", "JPEG"]) as image:
            if full:
                image.load()
            return data.endswith(_ENDS[job.suffix]) and (job.whole or image.size == (job.source.image_size,) * 2)
    except (OSError, SyntaxError, ValueError):
        return False


def discard(job: Job, damaged: Sequence[int]) -> None:
    """Remove files that hold damaged images alone."""
    for path, rows in _files(job):
        if damaged and set(rows) <= set(damaged):
            path.unlink(missing_ok=True)


def _in_shard(job: Job, path: Path, rows: Sequence[int]) -> dict[int, tuple[int, int]]:
    places = shard_places(path) if path.is_file() else {}
    names = {i: f"{sample_name(job.source.keys[i])}.png" for i in rows}
    return {i: places[name] for i, name in names.items() if name in places}


# what is wrong with a name alone; whatever else goes wrong, such as a full disk, hits all images
_OF_A_NAME = (errno.ENAMETOOLONG, errno.EISDIR, errno.EILSEQ, errno.EINVAL)


def store(job: Job, rows: Sequence[int], images: Mapping[int, bytes]) -> tuple[dict[int, Stored], list[Broken]]:
    """Write encoded images, each in one step; or their shard, with what it holds besides.

    Args:
        job: images and their files.
        rows: those that were to be made: what their shard holds of them is not kept.
        images: those that were made.

    Returns:
        All that was written, and what could not be for its name.
    """
    written: dict[int, Stored] = {}
    broken: list[Broken] = []
    if job.shard_size is None or not images:
        for i, data in images.items():
            try:
                write_atomic(job.path(i), data)
                written[i] = Stored(len(data), digest_of(data))
            except OSError as error:
                if error.errno not in _OF_A_NAME:
                    raise
                broken.append(Broken(job.source.keys[i], f"{escaped(job.file(i))} cannot be written: {error.strerror}"))
        return written, broken
    number = job.shard(min(images))
    assert number is not None and {job.shard(i) for i in images} == {number}
    path, files = job.path(rows[0]), dict(images)
    for i, place in _in_shard(job, path, [i for i in job.shard_rows(number) if i not in set(rows)]).items():
        (job.folder / MANIFEST).unlink(missing_ok=True)  # places of images change
        files[i] = FileSlice(path, *place).open().getvalue()
    keys = job.source.keys
    places = write_shard(path, ((keys[i], files[i], int(job.source.labels[i])) for i in job.shard_rows(number) if i in files))
    return {i: Stored(len(data), digest_of(data), places[keys[i]][0]) for i, data in files.items()}, broken


def write_manifest(job: Job, settings: Mapping[str, Any], there: Mapping[int, Stored], broken: Sequence[Broken] = ()) -> None:
    """`manifest.jsonl`: a line an image, sorted by key: file, class index, level, seed, settings
    (digest), `Job.input_side`, size and digest, and its offset in a shard; or why it is not there.
    """
    digest = settings_digest(settings)
    side = {"input_side": job.input_side} if job.input_side is not None else {}
    lines = []
    reasons = dict(broken)
    for i in job.by_key:
        if i not in there:
            if (key := job.source.keys[i]) in reasons:
                lines.append(json.dumps({"key": key, "error": reasons[key]}))
            continue
        row = {"key": job.source.keys[i], "file": job.file(i), "label": int(job.source.labels[i]), "level": job.levels[i]}
        where = {} if there[i].offset is None else {"offset": there[i].offset}
        written = {**where, "size": there[i].size, "digest": there[i].digest}
        lines.append(json.dumps({**row, "seed": settings["seed"], "settings": digest, **side, **written}))
    write_atomic(job.folder / MANIFEST, "".join(f"{line}\n" for line in lines))
