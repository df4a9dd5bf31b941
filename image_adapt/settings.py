"""The settings that the images of an output folder were made with, beside them: images of two
settings are never mixed.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from undegrade.image_adapt.adapter import Adapter
from undegrade.image_adapt.adapters import ADAPTERS
from undegrade.image_adapt.config import AdaptConfig
from undegrade.image_adapt.job import Job
from undegrade.image_adapt.output import digest_of, file_status, settings_digest
from undegrade.utils.data.manifest import MANIFEST, PROVENANCE, SETTINGS, read_manifest, read_settings
from undegrade.utils.data.perturbations.registry import find_perturbation
from undegrade.utils.data.sources.folders import CLASS_MAP, class_map_file
from undegrade.utils.data.sources.shards import SHARDS
from undegrade.utils.device import peak_memory
from undegrade.utils.files import write_atomic
from undegrade.utils.provenance import listing_digest, provenance


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
        "precision": config.precision,
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
        digest = digest_of("\n".join(keys).encode())
        settings |= {"shard_size": job.shard_size, "images": f"{len(keys)} with keys of digest {digest}"}
    return settings


def other_settings(job: Job, settings: dict[str, Any]) -> list[str]:
    """What differs between the settings and those of the images in the folder (nothing if there are
    none); images of which none are noted are others.
    """
    if not (job.folder / SETTINGS).is_file():
        file = next((job.file(i) for i in range(len(job.source)) if file_status(job.path(i))), None)
        return [f"no {SETTINGS} beside images that are there, e.g. {file}"] if file else []
    there, now = _flat(read_settings(job.folder)), _flat(json.loads(json.dumps(settings)))
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
    try:
        differing = other_settings(job, settings)
    except ValueError as damaged:
        if not overwrite:
            raise
        return [str(damaged)]
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


def note_launch(job: Job, settings: Mapping[str, Any], images: int, ranks: int, config: Any) -> None:
    """A line in provenance.jsonl: what makes the `images` that are missing, where and from what.
    The files themselves depend on no launch.
    """
    tree = dataclasses.asdict(config)
    for name in set(ADAPTERS) & tree.keys() - {tree.get("adapter")}:  # options of adapters that are not in use
        del tree[name]
    line = {
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "images": images,
        "ranks": ranks,
        "settings": settings_digest(settings),
        "listing": listing_digest(job.source.keys, job.source.labels),
        "configuration": tree,
        **provenance(),
    }
    _note(job, line)


def note_cost(job: Job, adapter: Adapter, written: int, seconds: float, ranks: int) -> None:
    """Another line when the launch ends: what an image of it took, reading and writing included;
    `evaluation.costs` reads it.

    Args:
        job: one that the launch made images of.
        adapter: that made them.
        written: images that the launch made.
        seconds: that it took.
        ranks: that shared them.
    """
    ms = round(1000 * seconds * ranks / written, 3)
    ended = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    note = {"ended": ended, "images": written, "ranks": ranks, "passes": adapter.passes._asdict(), "ms_an_image_and_rank": ms}
    _note(job, note | {"parameters": adapter.parameters, "peak_mb": round(peak_memory() / 2**20, 1)})


def _note(job: Job, line: Mapping[str, Any]) -> None:
    path = job.folder / PROVENANCE
    before = path.read_bytes() if path.is_file() else b""
    write_atomic(path, before + json.dumps(line, default=str).encode() + b"\n")


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
    listed = (job.folder / row["file"] for row in read_manifest(job.folder))
    written = (job.path(i) for i in range(len(job.source)))
    for path in [*listed, *written, *job.folder.glob(SHARDS), *(job.folder / name for name in (MANIFEST, PROVENANCE, SETTINGS))]:
        if file_status(path):
            path.unlink()
