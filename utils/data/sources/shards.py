"""Adapted images in tar files that WebDataset reads, `<cell>/shard-000000.tar`, and the way back
without reading the tar.

A sample is two members, `<key>.png` and `<key>.cls` (class index as text, -1 where none is known).
Readers of this format take a member's name up to the first dot behind the last slash as its key;
keys with dots are therefore written with %2E, and % as %25 (`urllib.parse.unquote` undoes it).
Owners and times are fixed: the bytes depend on the samples alone.
"""

from __future__ import annotations

import functools
import io
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from undegrade.utils.data.sources.folders import preloaded, read_files
from undegrade.utils.data.sources.image_source import ImageSource
from undegrade.utils.data.sources.images import FileSlice, Resize
from undegrade.utils.files import replacing

SHARDS = "shard-*.tar"  # pattern of `shard_name`


def shard_name(number: int) -> str:
    """File name of a shard."""
    return f"shard-{number:06d}.tar"


def sample_name(key: str) -> str:
    """The key as members of a shard are called, without dot behind the last slash."""
    folder, slash, base = key.replace("%", "%25").rpartition("/")
    return folder + slash + base.replace(".", "%2E")


def write_shard(path: Path, samples: Iterable[tuple[str, bytes, int]]) -> dict[str, tuple[int, int]]:
    """Write (key, PNG, class index) of each image in one step; returns offset and size of each PNG
    in the file, by its key.
    """
    keys = {}
    with replacing(path) as temporary:
        with tarfile.open(temporary, "w", format=tarfile.PAX_FORMAT) as tar:
            for key, png, label in samples:
                keys[key] = f"{sample_name(key)}.png"
                for name, data in ((keys[key], png), (f"{sample_name(key)}.cls", str(label).encode())):
                    member = tarfile.TarInfo(name)  # owner 0, time 0
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
        places = shard_places(temporary)
    return {key: places[name] for key, name in keys.items()}


def shard_places(path: Path) -> dict[str, tuple[int, int]]:
    """Offset and size of each member of a shard, by its name.

    Raises:
        ValueError: not a whole tar file.
    """
    try:
        with tarfile.open(path, "r:") as tar:
            return {member.name: (member.offset_data, member.size) for member in tar}
    except tarfile.ReadError as error:
        raise ValueError(f"{path} is no whole tar file ({error}): delete it, and the same command makes it again") from error


def shard_source(
    folder: Path, rows: Sequence[Mapping[str, Any]], clean: ImageSource, name: str, resize: Resize | None
) -> ImageSource:
    """Images of the shards in a folder, those of `clean` by their keys, decoded at once where they
    fit into 2 GiB of memory.

    Args:
        folder: of the shards.
        rows: of their manifest, with key, file, offset and size.
        clean: gives labels, classes and the side of the images.
        name: for messages.
        resize: see `ImageSource`.
    """
    label = dict(zip(clean.keys, clean.labels.tolist(), strict=True))
    rows = [row for row in rows if row["key"] in label]
    size, files = clean.image_size, [FileSlice(folder / row["file"], row["offset"], row["size"]) for row in rows]
    read = functools.partial(read_files, files, size, resize)
    keys = [row["key"] for row in rows]
    labels = torch.tensor([label[key] for key in keys], dtype=torch.int64)
    return preloaded(ImageSource(name, clean.classes, labels, keys, size, read, files, resize=resize))
