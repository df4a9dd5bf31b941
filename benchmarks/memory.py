"""Peak memory of an evaluation and of an adaptation of 1,000 and of 10,000 images: it should not
grow.

The images are files of 32 x 32 pixels. Folders of less than 2 GiB of pixels are kept in memory on
purpose (utils/data/sources/folders.py); here they are read on demand, as larger ones are. What has
to grow are the keys and, in an evaluation, the logits.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from unittest import mock

import torch
from PIL import Image
from torch import Tensor

from benchmarks.measure import Row, quiet
from benchmarks.networks import CLASSES, images, save_classifier
from undegrade.evaluation.config import EvaluationConfig, MemberConfig, SystemConfig, TestDataConfig
from undegrade.evaluation.evaluate import evaluate
from undegrade.image_adapt.adapters import Adapter
from undegrade.image_adapt.config import AdaptConfig, InputConfig
from undegrade.image_adapt.mpi import World
from undegrade.image_adapt.work import plan_jobs, run_jobs
from undegrade.utils.data.sources import folders
from undegrade.utils.device import choose_device

SIDE, KINDS = 32, 10  # pixels; different pictures a class


def rows(quick: bool = False) -> list[Row]:
    """Peaks in MiB, each in a process of its own; `reference` is that of the fewer images."""
    few, many, repeats = (20, 40, 1) if quick else (1000, 10_000, 2)
    parts: dict[str, Callable[[Path, int], float]] = {"an evaluation": evaluation, "an adaptation": adaptation}
    out = []
    for name, part in parts.items():
        taken: dict[str, list[float]] = {"reference": [], "ours": []}
        for _ in range(repeats):
            for way, count in (("reference", few), ("ours", many)):
                taken[way].append(with_files(part, count, apart=not quick))
        out.append(_row(f"memory of {name}, {few:,} and {many:,} images", taken))
    return out


def _row(name: str, taken: dict[str, list[float]]) -> Row:
    small, large = (min(values) for values in taken.values())
    return Row(
        name, "MiB", small, large, small / large, required=1 / 1.05, repeats=taken, note=f"{100 * (large / small - 1):+.1f} %"
    )


def with_files(part: Callable[[Path, int], float], count: int, apart: bool) -> float:
    """What `part(folder, count)` returns for a folder with so many images, in a fresh process or in
    this one.
    """
    with tempfile.TemporaryDirectory() as folder:
        make_folder(Path(folder), count)
        if not apart:
            return part(Path(folder), count)
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            return pool.submit(part, Path(folder), count).result()


def make_folder(folder: Path, count: int) -> None:
    """`train/<class>/*`, a few, and `test/<class>/*`, `count` files; of each class some pictures,
    under many names.
    """
    for label, name in enumerate(CLASSES):
        for part in ("train", "test"):
            (folder / part / name).mkdir(parents=True)
        for kind, picture in enumerate(images(KINDS, SIDE)):
            Image.fromarray(picture).save(folder / "train" / name / f"{kind}.png")
        for index in range(label, count, len(CLASSES)):
            os.link(folder / "train" / name / f"{index // len(CLASSES) % KINDS}.png", folder / "test" / name / f"{index:06d}.png")


def evaluation(folder: Path, count: int) -> float:
    """Peak, in MiB, of a classifier on the test images, clean."""
    members = {"one": MemberConfig(str(save_classifier("ResNet20", 0, folder / "one.safetensors")))}
    data = TestDataConfig(str(folder), corruptions=["clean"])
    config = EvaluationConfig(members, {"one": SystemConfig(["one"])}, data=data, out=str(folder / "out"))
    with quiet(), mock.patch.object(folders, "PRELOAD_BYTES", 0):
        outcome = evaluate(config, choose_device("cpu"))
    assert outcome.rows[0].n == count
    return peak()


def adaptation(folder: Path, count: int) -> float:
    """Peak, in MiB, of planning, writing every image, and the manifest; the images stay as they
    are.
    """
    choose_device("cpu")
    with quiet(), tempfile.TemporaryDirectory() as out:
        config = AdaptConfig(out, input=InputConfig(folder=str(folder / "test")))
        outcome = run_jobs(plan_jobs(config, SIDE), _Unchanged(), config, World(), torch.device("cpu"))
    assert outcome.written == count
    return peak()


class _Unchanged(Adapter):
    def adapt(self, x: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        return x


def peak() -> float:
    """Highest resident memory of this process so far, MiB."""
    status = Path("/proc/self/status")
    if status.is_file():  # getrusage counts the parent's memory in, from before the program was loaded
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform == "linux" else 1024**2)
