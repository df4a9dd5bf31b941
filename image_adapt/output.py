"""What lies in an output folder: images, the settings they were made with, a manifest; and arrays
made of them.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from undegrade.image_adapt.adapter import Adapter
from undegrade.image_adapt.config import AdaptConfig
from undegrade.image_adapt.inputs import LABELS
from undegrade.image_adapt.job import Job
from undegrade.utils.data.cells import Cell
from undegrade.utils.data.perturbations.corruptions import SEVERITIES
from undegrade.utils.data.perturbations.registry import find_perturbation
from undegrade.utils.data.sources.folders import CLASS_MAP, class_map_file
from undegrade.utils.data.sources.images import FileSlice
from undegrade.utils.data.sources.shards import SHARDS, sample_name, shard_places, write_shard
from undegrade.utils.data.views import MANIFEST
from undegrade.utils.files import write_atomic
from undegrade.utils.paths import inside

SETTINGS = "settings.json"

# output -> suffix of the files and how Pillow writes them. jpeg: Pillow's own quality (75) and
# subsampling (4:2:0)
_PNG: dict[str, Any] = {"format": "png", "compress_level": 1}
ENCODINGS: dict[str, tuple[str, dict[str, Any]]] = {
    "png": (".png", _PNG),
    "jpeg": (".jpeg", {"format": "jpeg"}),
    "npy": (".png", _PNG),
    "tar": (".png", _PNG),
}
Place = tuple[int, int]  # offset and size of an image in its shard


def settings_of(config: AdaptConfig, adapter: Adapter, job: Job) -> dict[str, Any]:
    """Everything that the images of a job depend on besides their own pixels and keys."""
    data = dataclasses.asdict(config.input)
    given = {k: data[k] for k in (("folder", "layout") if config.input.folder else ("dataset", "split", "seed"))}
    if not config.input.folder:
        assert job.input_side is not None
        given |= find_perturbation(job.cell.corruption).identity(config.input, job.input_side)
    settings = {
        "adapter": config.adapter,
        **adapter.identity(),
        "seed": config.seed,
        "bfloat16": config.use_fp16,
        "rounding": config.rounding,
        "output": "png" if config.output == "npy" else config.output,  # arrays are made of the png files
        "corruption": job.cell.corruption,
        "severity": job.cell.severity,
        "input": given,
    }
    if adapter.batch_matters:
        settings["batch_size"] = config.batch_size
    if job.shard_size is not None:  # the same images are cut into the same shards
        keys = [job.source.keys[i] for i in job.by_key]
        digest = hashlib.sha256("\n".join(keys).encode()).hexdigest()[:16]
        settings |= {"shard_size": job.shard_size, "images": f"{len(keys)} with keys of digest {digest}"}
    return settings


def other_settings(job: Job, settings: dict[str, Any]) -> list[str]:
    """What differs between the settings and those of the images in the folder (nothing if there are
    none); images of which none are noted are others.
    """
    path = job.folder / SETTINGS
    if not path.is_file():
        found = outputs(job) if job.folder.is_dir() else {}
        return [f"no {SETTINGS} beside the {len(found)} that are there, e.g. {job.file(min(found))}"] if found else []
    stored = json.loads(path.read_text(encoding="utf-8"))
    there, now = (_flat(found) for found in (stored, json.loads(json.dumps(settings))))
    return [f"{k}: {there.get(k)} there, {now.get(k)} now" for k in sorted({*there, *now}) if there.get(k) != now.get(k)]


def _flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings without sections: those of `parameters` by their own names, others as
    `input.folder`.
    """
    out: dict[str, Any] = {}
    for key, value in settings.items():
        prefix = "" if key == "parameters" else f"{key}."
        out |= {f"{prefix}{name}": entry for name, entry in value.items()} if isinstance(value, dict) else {key: value}
    return out


def check_settings(job: Job, settings: dict[str, Any], overwrite: bool = False) -> list[str]:
    """Never mix images of two settings in one folder; returns what differs if that may be
    overwritten.

    Raises:
        ValueError: the folder holds images made with other settings; names what differs.
    """
    differing = other_settings(job, settings)
    if differing and not overwrite:
        raise ValueError(
            f"{job.folder} holds images made with other settings ({'; '.join(differing)}): choose another "
            "--save_dir, or replace them with --overwrite true"
        )
    return differing


def prepare(job: Job, settings: dict[str, Any], overwrite: bool = False) -> None:
    """Store the settings beside the images, after removing those of other settings if that is
    allowed (see `check_settings`).
    """
    if check_settings(job, settings, overwrite):
        _clear(job)
    elif (job.folder / SETTINGS).is_file():
        return
    job.folder.mkdir(parents=True, exist_ok=True)
    write_atomic(job.folder / SETTINGS, json.dumps(settings, indent=1, sort_keys=True) + "\n")


def copy_class_map(config: AdaptConfig) -> None:
    """What names the classes of numbered input folders (`utils.data.sources.folders`) names those
    of the output folders, too.
    """
    folder = None if config.input.folder is None else Path(config.input.folder)
    found = None if folder is None else class_map_file(folder)
    if folder is not None and found is not None:
        below = found.relative_to(folder) if folder in found.parents else CLASS_MAP
        write_atomic(Path(config.fill(config.save_dir)) / below, found.read_bytes())


def _clear(job: Job) -> None:
    """Remove shards, images of the manifest and those about to be written, and nothing else that
    lies in the folder.
    """
    manifest = job.folder / MANIFEST
    lines = manifest.read_text(encoding="utf-8").splitlines() if manifest.is_file() else []
    listed = [inside(job.folder, json.loads(line)["file"], str(manifest)) for line in lines]
    written = (job.path(i) for i in range(len(job.source)))
    for path in [*listed, *written, *job.folder.glob(SHARDS), manifest, job.folder / SETTINGS]:
        path.unlink(missing_ok=True)


def write_manifest(
    job: Job, settings: dict[str, Any], broken: Collection[str], places: Mapping[int, Place | None] | None = None
) -> None:
    """`manifest.jsonl`: a line an image, sorted by key: file, class index, level, seed, settings
    (digest), `Job.input_side`.

    Images with a place in `places` lie in a shard, the file of the line: then also their offset and
    size in it.
    """
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]
    side = {"input_side": job.input_side} if job.input_side is not None else {}
    lines = []
    for i in job.by_key:
        key, place = job.source.keys[i], (places or {}).get(i)
        if key not in broken:
            row = {"key": key, "file": job.file(i), "label": int(job.source.labels[i]), "level": job.levels[i]}
            where = {} if place is None else {"offset": place[0], "size": place[1]}
            lines.append(json.dumps({**row, "seed": settings["seed"], "settings": digest, **side, **where}))
    write_atomic(job.folder / MANIFEST, "".join(f"{line}\n" for line in lines))


def encode(image: np.ndarray, output: str) -> bytes:
    """uint8 [3, H, W] as an image file."""
    buffer = io.BytesIO()
    Image.fromarray(image.transpose(1, 2, 0)).save(buffer, **ENCODINGS[output][1])
    return buffer.getvalue()


def outputs(job: Job) -> dict[int, Place | None]:
    """The images that are there, with their places if they lie in shards."""
    if job.shard_size is None:
        return {i: None for i in range(len(job.source)) if job.path(i).is_file()}
    found: dict[int, Place | None] = {}
    for number in range(-(-len(job.source) // job.shard_size)):
        found |= _in_shard(job, number)
    return found


def _in_shard(job: Job, number: int) -> dict[int, Place]:
    rows = job.shard_rows(number)
    path = job.path(rows[0])
    places = shard_places(path) if path.is_file() else {}
    names = {i: f"{sample_name(job.source.keys[i])}.png" for i in rows}
    return {i: places[name] for i, name in names.items() if name in places}


def store(job: Job, images: Mapping[int, bytes]) -> dict[int, Place]:
    """Write encoded images, each in one step; or their shard, with what it holds already. Returns
    all places in the shard.
    """
    if job.shard_size is None or not images:
        for i, data in images.items():
            write_atomic(job.path(i), data)
        return {}
    number = job.shard(min(images))
    assert number is not None and {job.shard(i) for i in images} == {number}
    rows = job.shard_rows(number)
    path, files = job.path(rows[0]), dict(images)
    for i, place in _in_shard(job, number).items():
        (job.folder / MANIFEST).unlink(missing_ok=True)  # places of images change
        files.setdefault(i, FileSlice(path, *place).open().getvalue())
    keys = job.source.keys
    places = write_shard(path, ((keys[i], files[i], int(job.source.labels[i])) for i in rows if i in files))
    return {i: places[keys[i]] for i in files}


# --- arrays in the layout of CIFAR-10-C


def check_arrays(jobs: Sequence[Job]) -> None:
    """Whether arrays can be made of the jobs: whole test sets in their published order, all
    severities of each corruption.

    Raises:
        ValueError: otherwise; says what is needed.
    """
    cells = {job.cell for job in jobs}
    lacking = sorted({Cell(job.cell.corruption, s).folder for job in jobs for s in SEVERITIES} - {cell.folder for cell in cells})
    if lacking or len(cells) != len(SEVERITIES) * len({cell.corruption for cell in cells}):
        raise ValueError(
            "--output npy needs --severity 1-5 of each corruption, and nothing else: the arrays hold all severities"
            + (f" (missing: {', '.join(lacking[:5])})" if lacking else "")
        )
    for job in jobs:
        first = job.source.keys[0]
        if any(key.rpartition("/")[2] != f"test_{i:05d}" for i, key in enumerate(job.source.keys)):
            raise ValueError(
                f"--output npy is for whole test sets with keys <class>/test_00000, ... (CIFAR-10, CIFAR-100 and their corrupted "
                f"arrays), {job.source.name} begins with {first}: use png"
            )


def write_arrays(jobs: Sequence[Job], save_dir: Path) -> None:
    """`<save_dir>/<corruption>.npy` uint8 [5 N, H, W, 3], severity s at rows (s-1) N, and
    `labels.npy`, from the written images.
    """
    for corruption in dict.fromkeys(job.cell.corruption for job in jobs):
        rows = sorted((job for job in jobs if job.cell.corruption == corruption), key=lambda job: job.cell.severity or 0)
        images = [np.asarray(Image.open(job.path(i))) for job in rows for i in range(len(job.source))]
        _save_array(save_dir / f"{corruption}.npy", np.stack(images))
    _save_array(save_dir / LABELS, np.tile(jobs[0].source.labels.numpy().astype(np.uint8), len(SEVERITIES)))


def _save_array(path: Path, array: np.ndarray) -> None:
    buffer = io.BytesIO()
    np.save(buffer, array)
    write_atomic(path, buffer.getvalue())
