"""Writing a file so that a reader never meets half of it, and reading JSON that may be damaged."""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A name beside `path` to write a file or folder to, which takes the place of `path` when the
    block ends. What was written is on the disk before it gets its name: a crash of the machine
    leaves the old or the new content, too.

    The name is unique (several processes, also on several hosts, may write the same `path`: the
    last one wins). Missing parent folders are created. A block that raises leaves `path` as it was,
    and nothing beside it.

    Raises:
        OSError: the folder cannot be written, the disk is full, or a new folder would replace one
            that holds something; names the file.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{secrets.token_hex(8)}.tmp")
    try:
        yield temporary
        for file in (f for f in (temporary, *temporary.rglob("*")) if f.is_file()):
            _share(file)
            _flush(file)
        os.replace(temporary, target)
    except Exception as error:
        said = _of_the_disk(error)
        if said is None or said.filename is not None:
            raise
        raise OSError(said.errno, said.strerror, str(target)) from error  # a full disk: of which file?
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.unlink(missing_ok=True)


def _of_the_disk(error: Exception) -> OSError | None:
    """The disk's error with a number: safetensors has it in a text, torch.save behind one of its
    own.
    """
    number = re.search(r"\(os error (\d+)\)", str(error))
    if number is not None:
        return OSError(int(number[1]), os.strerror(int(number[1])))
    below = error.__context__ if isinstance(error, RuntimeError) else error
    return below if isinstance(below, OSError) and below.errno is not None else None


def write_atomic(path: str | os.PathLike[str], data: str | bytes) -> None:
    """Write `data` to `path` in one step (see `replacing`): `path` holds the old or the new
    content, never a part.

    Args:
        path: the file to write or replace.
        data: text (written as UTF-8, line ends unchanged) or bytes.

    Raises:
        OSError: the folder cannot be written; no temporary file is left behind.
    """
    with replacing(path) as temporary:
        temporary.write_bytes(data.encode() if isinstance(data, str) else data)


def remove_litter(folder: Path) -> None:
    """Remove what killed writes left directly in `folder`, which nobody else writes to now."""
    for path in folder.glob(".*.tmp"):
        if re.fullmatch(r"\.[0-9a-f]{16}\.tmp", path.name):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def _flush(file: Path) -> None:
    with file.open("rb") as opened:
        os.fsync(opened.fileno())


def _share(file: Path) -> None:
    """Give a file that only its owner can read, as safetensors makes them, the mode of other new
    files: results are shared.
    """
    if not file.stat().st_mode & 0o077:
        umask = os.umask(0o077)  # setting it is the only way to read it
        os.umask(umask)
        file.chmod(0o666 & ~umask)


def parse_json(text: str | bytes, where: object, mend: str) -> Any:
    """What a JSON text says; ValueError: damaged, in one line that names where it is and the
    mend.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where} is damaged ({type(error).__name__}: {error}): {mend}") from error


def read_object(path: Path, mend: str) -> dict[str, Any]:
    """Names and values of a JSON file; ValueError: it is damaged or holds something else."""
    found = parse_json(path.read_bytes(), path, mend)
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds no names with values: {mend}")
    return found


def read_texts(path: Path, mend: str) -> dict[str, str]:
    """Names and texts of a JSON file; ValueError: it is damaged or holds something else."""
    found = read_object(path, mend)
    if not all(isinstance(value, str) for value in found.values()):
        raise ValueError(f"{path} holds more than texts: {mend}")
    return found


def read_lines(path: str | os.PathLike[str]) -> list[str]:
    """The lines of a text file, stripped, without empty ones.

    Raises:
        FileNotFoundError, ValueError: missing, or not UTF-8; names the file.
    """
    try:
        return [line.strip() for line in Path(path).read_text(encoding="utf-8").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 ({error.reason} at byte {error.start}): save it as UTF-8 text") from error
