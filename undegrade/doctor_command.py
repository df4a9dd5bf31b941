"""What this machine has for undegrade: a line each, `ok`, `warn` with the mend, or `FAIL`.

    undegrade doctor

The status is 1 if something is broken that everything needs, else 0.
"""

from __future__ import annotations

import undegrade.utils.quick_start  # noqa: F401  before the rest

# isort: split
import contextlib
import importlib
import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from packaging.requirements import Requirement

from undegrade.utils.command_line import ScriptParser
from undegrade.utils.errors import run_main
from undegrade.utils.extras import how_to_install
from undegrade.utils.stages import find_mpiexec
from undegrade.utils.weights import FOLDER, registry, weights_folder

OK, WARN, FAIL = "ok", "warn", "FAIL"
CKPT = Path("ckpt")  # where configurations expect published weights
_LOADED = (
    "torch",
    "torchvision",
    "numpy",
    "scipy",
    "cv2",
    "PIL",
)  # modules that need libraries of the system, or each other's builds
_SAME = {"opencv-python-headless": ("opencv-python", "opencv-contrib-python", "opencv-contrib-python-headless")}
_ROOM = 5e9  # bytes


class Line(NamedTuple):
    """Of the report.

    Attributes:
        state: OK, WARN or FAIL.
        what: was looked at.
        text: what was found, and the mend.
    """

    state: str
    what: str
    text: str


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line."""
    ScriptParser(__doc__).parse(argv)
    lines = []
    for check in CHECKS:
        for line in check():
            print(f"{line.state:5}{line.what:11} {line.text}", flush=True)
            lines.append(line)
    broken, warned = (sum(line.state == state for line in lines) for state in (FAIL, WARN))
    print(f"{broken} broken, {warned} warnings" if broken or warned else "all is well")
    return int(broken > 0)


def packages() -> Iterator[Line]:
    """Python, and what pyproject.toml asks for."""
    yield Line(OK, "python", f"{platform.python_version()} ({sys.executable})")
    try:
        asked = [Requirement(text) for text in importlib.metadata.requires("undegrade") or []]
        version = importlib.metadata.version("undegrade")
    except importlib.metadata.PackageNotFoundError:
        yield Line(WARN, "undegrade", "runs from a folder and is not installed: pip install -e . there")
        return
    yield Line(OK, "undegrade", f"{version} ({Path(__file__).parent})")
    needed = [one for one in asked if one.marker is None or one.marker.evaluate({"extra": ""})]
    unfit = [one for one in needed if not _fits(one)]
    for one in unfit:
        yield Line(
            FAIL,
            one.name,
            f"{_version(one.name) or 'not installed'}, {one.specifier or 'any version'} is needed: pip install '{one}'",
        )
    if not unfit:
        yield Line(OK, "packages", ", ".join(f"{one.name} {_version(one.name)}" for one in needed))
    members: dict[str, list[str]] = {}
    for one in asked:
        if one not in needed:
            members.setdefault(str(one.marker).split('"')[-2], []).append(one.name)
    extras = members.keys() - {"dev"}
    lacking = {extra for extra in extras if not all(map(_version, members[extra]))}
    here = ", ".join(sorted(extras - lacking)) or "none"
    bring = f"; not installed: {', '.join(sorted(lacking))} ({how_to_install('<name>')})" if lacking else ""
    yield Line(OK, "extras", here + bring)


def _version(name: str) -> str | None:
    for same in (name, *_SAME.get(name, ())):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return importlib.metadata.version(same)
    return None


def _fits(one: Requirement) -> bool:
    version = _version(one.name)
    return version is not None and one.specifier.contains(version, prereleases=True)


def libraries() -> Iterator[Line]:
    """Whether the compiled ones can be loaded here."""
    for name in _LOADED:
        try:
            importlib.import_module("undegrade.utils.data.perturbations.opencv" if name == "cv2" else name)
        except Exception as error:
            yield Line(FAIL, name, f"cannot be loaded ({error}): install it anew, pip install --force-reinstall --no-deps {name}")


def devices() -> Iterator[Line]:
    """Processor and GPUs."""
    try:
        import torch  # here, since its absence is reported
    except ImportError:
        return
    level, cores = torch.backends.cpu.get_cpu_capability(), torch.get_num_threads()
    able = torch.cpu.get_capabilities()
    bf16 = "native" if able.get("avx512_bf16") or able.get("amx_bf16") or able.get("bf16") else "emulated, slower than float32"
    slow = level in ("DEFAULT", "NO AVX") and able.get("architecture") == "x86_64"
    mend = "; without AVX2 everything takes several times as long: use another machine" if slow else ""
    yield Line(
        WARN if slow else OK,
        "processor",
        f"{able.get('cpu_name', '')} {level}, {cores} thread{'s' * (cores != 1)}, bfloat16 {bf16}{mend}".strip(),
    )
    for number in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(number)
        yield Line(
            OK, f"cuda:{number}", f"{about.name}, {about.total_memory / 1e9:.0f} GB, bfloat16 {torch.cuda.is_bf16_supported()}"
        )
    if not torch.cuda.is_available():
        yield Line(
            OK,
            "GPU",
            f"none that PyTorch sees ({'its build is for CPUs' if torch.version.cuda is None else 'no driver, or no GPU'})",
        )


def mpi() -> Iterator[Line]:
    """What adaptation on several ranks needs; mpi4py is loaded in another process, since a broken
    MPI ends the one that loads it.
    """
    launcher, single = find_mpiexec(), "adaptation runs as a single process"
    if launcher is None:
        yield Line(WARN, "MPI", f"no mpiexec, {single}: {how_to_install('mpich')} brings one")
        return
    words = [sys.executable, "-c", "from mpi4py import MPI; print(MPI.Get_library_version().splitlines()[0])"]
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=30, check=False)
        said = (done.stdout if done.returncode == 0 else done.stderr or "it says nothing").strip().splitlines()[-1]
        works = done.returncode == 0
    except subprocess.TimeoutExpired:
        said, works = "it does not answer in 30 seconds", False
    mend = f"; {single}: install mpi4py against this MPI ({how_to_install('mpi')})"
    yield Line(OK if works else WARN, "MPI", f"{launcher}, mpi4py: {said.strip(chr(0))}{'' if works else mend}")


def weights() -> Iterator[Line]:
    """Published weights that are here."""
    folder = weights_folder()
    here = [row.name for row in registry().values() if (folder / row.stored).exists()]
    yield Line(
        OK, "weights", f"{', '.join(here) or 'none'} in {folder} (undegrade download lists what there is; {FOLDER} moves it)"
    )
    if CKPT.is_dir():
        yield Line(OK, "ckpt/", ", ".join(sorted(path.name for path in CKPT.iterdir() if not path.name.startswith("."))) or "empty")
    if offline := os.environ.get("HF_HUB_OFFLINE"):
        yield Line(WARN, "network", f"HF_HUB_OFFLINE={offline}: nothing is downloaded; unset it to download")


def disk() -> Iterator[Line]:
    """Room where runs and downloads are written."""
    for what, path in (("disk", Path.cwd()), ("disk", weights_folder())):
        there = next(parent for parent in (path, *path.parents) if parent.exists())
        free, writable = shutil.disk_usage(there).free, os.access(there, os.W_OK)
        mend = ": make room, published diffusion models take up to 3 GB" if free < _ROOM else ""
        mend = mend if writable else ": you may not write there, change its permissions or use another one"
        yield Line(WARN if mend else OK, what, f"{free / 1e9:.0f} GB free at {path}{mend}")


CHECKS: tuple[Callable[[], Iterator[Line]], ...] = (packages, libraries, devices, mpi, weights, disk)


if __name__ == "__main__":
    run_main(main)
