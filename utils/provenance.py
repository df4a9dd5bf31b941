"""Where a result came from: code version, library versions, hardware. Nothing that identifies a
person or a machine.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import platform
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from undegrade.utils.processes import available_cores

# those whose version can change a number
LIBRARIES = (
    "torch", "torchvision", "numpy", "scipy", "pillow", "accelerate", "timm", "diffusers", "safetensors", "opencv-python",
    "opencv-python-headless",
    "scikit-learn", "imagedegrade", "imagecorruptions-imaug",
)  # fmt: skip


def provenance() -> dict[str, Any]:
    """Facts that a reader needs to repeat a run.

    Returns:
        `commit`: git commit of this code, None when the code is not in a git repository (or git is
            missing);
        `dirty`: whether tracked files differ from that commit, None with `commit`;
        `python`: version; `libraries`: see `library_versions`; `system`: operating system and
        architecture;
        `cpu`: model; `cores`: logical cores that this process may use;
        `gpu`: "count x model" of each visible GPU model, None without a GPU.
        No user name, host name or path is among them.
    """
    commit, dirty = git_state(Path(__file__).resolve())
    return {
        "commit": commit,
        "dirty": dirty,
        "python": platform.python_version(),
        "libraries": library_versions(),
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": _cpu_model(),
        "cores": available_cores(),
        "gpu": _gpu_models(),
    }


def command() -> str:
    """The command line of this process, without the folders of this machine."""
    words = list(map(without_folders, sys.argv))
    return " ".join(["python", *words] if words[0].endswith(".py") else words)  # else: undegrade <word>


def without_folders(word: str) -> str:
    """A word of a command line; of an absolute path its last part."""
    path = Path(word)
    return path.name if path.is_absolute() else word


def made_by(configuration: Mapping[str, Any]) -> dict[str, Any]:
    """Entries for the description of a checkpoint: the resolved `configuration` that it was made
    from, seeds included, and `made_by`, the code and the libraries.

    What belongs to one machine is left out: `save_dir`, and of absolute paths all but the name.
    """
    facts = provenance()
    return {
        "configuration": {key: _portable(value) for key, value in configuration.items() if key != "save_dir"},
        "made_by": {name: facts[name] for name in ("commit", "dirty", "python", "libraries")},
    }


def _portable(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _portable(below) for key, below in value.items()}
    if isinstance(value, list):
        return [_portable(item) for item in value]
    return Path(value).name if isinstance(value, str) and Path(value).expanduser().is_absolute() else value


def library_versions() -> dict[str, str]:
    """Installed versions of the libraries that take part in a result, by name; those that are not
    installed are left out. Nothing is imported.
    """
    versions = {}
    for name in LIBRARIES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions


def listing_digest(keys: Sequence[str], labels: Iterable[int] | torch.Tensor) -> str:
    """First 16 hexadecimal digits of a SHA-256 over the keys and labels of a data set's images, in
    their order: equal for the same images under the same labels, whatever their pixels.
    """
    numbers = labels.tolist() if isinstance(labels, torch.Tensor) else [int(label) for label in labels]
    return hashlib.sha256(json.dumps([list(keys), numbers]).encode()).hexdigest()[:16]


def git_state(file: Path) -> tuple[str | None, bool | None]:
    """(commit, dirty) of the repository that tracks `file`; (None, None) when none does.

    A file that a repository merely surrounds (an environment inside somebody's project) is not
    described by its commit.
    """
    if _git(file, "ls-files", "--error-unmatch", file.name) is None:
        return None, None
    commit = _git(file, "rev-parse", "--verify", "HEAD")
    changes = _git(file, "status", "--porcelain", "--untracked-files=no")
    if commit is None or changes is None:
        return None, None
    return commit, bool(changes)


def _git(file: Path, *arguments: str) -> str | None:
    """Output of a git command in the folder of `file`, None when it fails."""
    try:
        command = ["git", *arguments]
        done = subprocess.run(command, cwd=file.parent, capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()


def _gpu_models() -> str | None:
    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return ", ".join(f"{names.count(name)} x {name}" for name in dict.fromkeys(names)) or None
