"""The list of published weights: what it says, how its rows are found, and the command that shows
and brings them.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import pytest

from tests.checkpoints import save_random
from tests.commands import check_command, words_of
from tests.scripts import ROOT, Done, run_script
from tests.weights_server import Served, serving
from undegrade.models.diffusion.diffusers_folder import network_folder
from undegrade.models.diffusion.editor_loading import editor_folder
from undegrade.models.diffusion.loading import diffusers_folder
from undegrade.utils.checkpoint import load_checkpoint
from undegrade.utils.download_command import listing, markdown, size_of
from undegrade.utils.runs import find_checkpoint
from undegrade.utils.weights import Published, how_to_download, known, located, registry, weights_folder

ROWS = list(registry().values())
COMMAND = "undegrade/__main__.py"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of downloads."""
    monkeypatch.setenv("UNDEGRADE_WEIGHTS", str(tmp_path / "weights"))
    (tmp_path / "weights").mkdir()
    return tmp_path / "weights"


# --- what the list says


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_a_row_has_one_source_and_what_belongs_to_it(row: Published) -> None:
    assert [row.url, row.hub, row.wheel].count(None) == 2
    assert row.page.startswith("https://") and (row.url or "https://").startswith("https://")
    assert bool(row.sha256) == bool(row.stated) and re.fullmatch(r"[0-9a-f]{64}", row.sha256 or "0" * 64)
    assert bool(row.member) <= bool(row.file) and (row.member is not None if row.wheel else not row.member or row.hub is not None)
    assert row.size is None or row.size > 1e6
    assert row.what and "|" not in row.what and row.stored == Path(row.stored).name
    assert known(row.name) is row and known(f"some/{row.stored}") is row and (row.hub is None or known(row.hub) is row)


def test_no_two_rows_have_the_same_name_here() -> None:
    assert len({row.stored for row in ROWS}) == len({row.name for row in ROWS}) == len(ROWS)


@pytest.mark.parametrize("row", [row for row in ROWS if row.next], ids=lambda row: row.name)
def test_the_command_that_follows_is_understood(row: Published) -> None:
    check_command(words_of(row.next.replace("{path}", f"downloads/{row.stored}")))


def test_the_published_weights_that_documents_and_configurations_name_are_in_the_list() -> None:
    files = [*ROOT.glob("configs/**/*.yaml"), *ROOT.glob("docs/**/*.md"), ROOT / "README.md"]
    named = {name for file in files for name in re.findall(r"\bckpt/([\w.-]*\w)(?![\w{])", file.read_text())}
    assert len(named) > 10
    assert {name for name in named if known(name) is None} <= {"resnet50.pth"}  # somebody's own


def test_the_table_of_the_document_is_that_of_the_list() -> None:
    text = (ROOT / "docs/weights.md").read_text()
    assert markdown(ROWS) in text, "run: undegrade download --markdown"


# --- where they lie


def test_the_folder_of_downloads_is_in_the_users_cache_unless_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNDEGRADE_WEIGHTS", "mine")
    assert weights_folder() == Path("mine")
    monkeypatch.delenv("UNDEGRADE_WEIGHTS")
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    assert weights_folder() == Path("/cache/undegrade")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert weights_folder() == Path.home() / ".cache/undegrade"


def test_downloaded_weights_are_found_by_file_name_and_id(folder: Path) -> None:
    for reference in ("ckpt/ffdnet_color.pth", "ffdnet_color", "ffdnet_color.pth"):
        assert located(reference) == Path(reference)
        (folder / "ffdnet_color.pth").touch()
        assert located(reference) == folder / "ffdnet_color.pth"
        (folder / "ffdnet_color.pth").unlink()
    (folder / "sd-vae-ft-ema").mkdir()
    for reference in ("ckpt/sd-vae-ft-ema", "sd-vae-ft-ema", "stabilityai/sd-vae-ft-ema"):
        assert located(reference) == folder / "sd-vae-ft-ema"
    (folder / "256x256_diffusion_uncond.pt").touch()
    assert located("ckpt/256x256_diffusion_uncond") == Path("ckpt/256x256_diffusion_uncond")  # a folder that is converted from it
    (folder / "unknown.pth").touch()
    assert located("ckpt/unknown.pth") == Path("ckpt/unknown.pth")


def test_a_file_of_ones_own_comes_first(folder: Path, tmp_path: Path) -> None:
    for place in (folder / "ffdnet_color.pth", tmp_path / "ffdnet_color.pth"):
        place.touch()
    assert located(tmp_path / "ffdnet_color.pth") == tmp_path / "ffdnet_color.pth"


def test_a_checkpoint_is_found_among_the_downloads_after_the_runs(folder: Path, tmp_path: Path) -> None:
    path = save_random(folder / "resnet50.safetensors")
    assert find_checkpoint("ckpt/resnet50.safetensors", tmp_path) == find_checkpoint("resnet50.tv_in1k", tmp_path) == path
    (folder / "cifar10_standard.pt").touch()
    assert find_checkpoint("ckpt/cifar10_standard.pt#state_dict", tmp_path) == folder / "cifar10_standard.pt#state_dict"
    own = save_random(tmp_path / "ckpt/resnet50.safetensors")
    assert find_checkpoint("ckpt/resnet50.safetensors", tmp_path) == own


def test_folders_of_networks_and_pipelines_are_found_among_the_downloads(folder: Path) -> None:
    for network in ("sd-vae-ft-ema", "DeCorruptor-CM/unet"):
        (folder / network).mkdir(parents=True)
        (folder / network / "config.json").write_text("{}")
    assert network_folder("ckpt/sd-vae-ft-ema") == folder / "sd-vae-ft-ema"
    assert editor_folder("ckpt/DeCorruptor-CM") == folder / "DeCorruptor-CM"
    assert diffusers_folder("ckpt/DeCorruptor-CM") == folder / "DeCorruptor-CM/unet"
    (folder / "DeCorruptor-CM/unet").rename(folder / "DeCorruptor-CM/unet_ema")
    assert diffusers_folder("ckpt/DeCorruptor-CM") == folder / "DeCorruptor-CM/unet_ema"


# --- what is missing


def test_a_message_about_missing_weights_ends_with_the_command_that_brings_them(folder: Path, tmp_path: Path) -> None:
    end = "; download with: undegrade download cifar10_standard"
    for missing in ("ckpt/cifar10_standard.pt", "ckpt/cifar10_standard.pt#state_dict", "cifar10_standard"):
        with pytest.raises(FileNotFoundError, match=re.escape(end) + "$"):
            find_checkpoint(missing, tmp_path)
    with pytest.raises(FileNotFoundError, match=rf"cifar10_standard\.pt does not exist{re.escape(end)}$"):
        load_checkpoint("ckpt/cifar10_standard.pt")
    assert how_to_download("ckpt/DeCorruptor-CM", "mine", "ckpt/DeCorruptor-CM", "google/ddpm-cat-256") == (
        "; download with: undegrade download DeCorruptor-CM ddpm-cat-256"
    )
    assert how_to_download("mine", "ind/Digits/ResNet20_clean") == ""


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (("test.py", "-r", "ckpt/resnet50.safetensors", "--arch", "resnet50", "--dataset", "Digits"), "resnet50.tv_in1k"),
        (
            ("image_adapt/scripts/image_sample.py", "--adapter", "restoration", "--model_path", "ckpt/fbcnn_color.pth"),
            "fbcnn_color",
        ),
        (("image_adapt/scripts/image_sample.py", "-c", "configs/adapt/Imagenet/dda.yaml"), "256x256_diffusion_uncond"),
        (
            ("image_adapt/scripts/image_sample.py", "-c", "configs/adapt/Digits/decorruptor.yaml", "--model_path",
             "ckpt/DeCorruptor-DPM"),
            "DeCorruptor-DPM",
        ),
        (("image_adapt/scripts/generate.py", "-c", "configs/generate/Imagenet/dit.yaml"), "DiT-XL-2-256x256"),
        (("image_adapt/scripts/convert_checkpoint.py", "--out", "x", "--model_path", "ckpt/64x64_diffusion.pt"), "64x64_diffusion"),
        (("evaluation/linear_probe.py", "-r", "google/ddpm-cifar10-32", "--data.dataset", "Digits"), "ddpm-cifar10-32"),
    ],
    ids=str,
)  # fmt: skip
def test_scripts_say_how_to_download_what_they_miss(words: tuple[str, ...], name: str, folder: Path, tmp_path: Path) -> None:
    photos = ("--base_samples", tmp_path, "--save_dir", tmp_path / "out") if words[0].endswith("image_sample.py") else ()
    done = run_script(*words, *photos)
    assert done.status == 2 and done.err.endswith(f"; download with: undegrade download {name}\n"), done.err


# --- the command


def downloading(*words: object) -> Done:
    return run_script(COMMAND, "download", *words)


def test_the_list_says_what_is_here(folder: Path) -> None:
    (folder / "ffdnet_color.pth").touch()
    lines = downloading().check().out.splitlines()
    assert len(lines) == len(ROWS) + 3 and str(folder) in lines[-1]
    rows = {line.split()[0]: line for line in lines[1:-2]}
    assert list(rows) == [row.name for row in ROWS]
    assert re.match(r"ffdnet_color +3\.4 MB +yes +MIT +FFDNet", rows["ffdnet_color"])
    assert re.match(r"256x256_diffusion_uncond +2\.2 GB +MIT ", rows["256x256_diffusion_uncond"])
    assert downloading("--markdown").out == markdown(ROWS) + "\n"
    assert "yes" in listing(ROWS) and size_of(ROWS[1]) == ""


def test_what_is_downloaded_is_printed_with_the_command_that_follows(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving() as server:
        server.files["/a/net.pt"] = Served(b"weights")
        rows = {
            "net": Published("net", "a net", "the page", "MIT", f"{server.address}/a/net.pt", next="python x.py {path}"),
            "other": Published("other", "another", "its page", None, f"{server.address}/a/net.pt", file="other.pt"),
        }
        for module in ("weights", "download_command"):
            monkeypatch.setattr(f"undegrade.utils.{module}.registry", lambda: rows)
        done = downloading("net", "other").check()
        assert done.out == f"{folder}/net.pt\n{folder}/other.pt\n"
        assert "net: the page (licence: MIT)" in done.err and f"next: python x.py {folder}/net.pt" in done.err
        assert "other: its page (licence: not stated)" in done.err
        assert downloading("net", "--to", tmp_path / "ckpt").check().out == f"{tmp_path}/ckpt/net.pt\n"
    assert located("ckpt/net.pt").read_bytes() == b"weights"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("ffdnet_colr",), "error: unknown published weights 'ffdnet_colr': did you mean 'ffdnet_color'? allowed: 256x256_dif"),
        (("ffdnet_color", "--seed.x", "1"), "error: unknown option '--seed.x': this command has flags only, no configuration"),
    ],
)
def test_mistakes_are_named_before_anything_is_downloaded(words: tuple[str, ...], message: str) -> None:
    stop: Callable[..., None] = mock.Mock(side_effect=AssertionError)
    with mock.patch("undegrade.utils.downloads.download", stop):
        done = downloading(*words)
    assert done.status == 2 and done.err.startswith(message) and done.err.count("\n") == 1
