"""Classifiers of the Hugging Face Hub and of timm by their names, from a server of the test."""

from __future__ import annotations

import csv
import json
import logging
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub.constants
import pytest
import timm
import torch
import yaml
from safetensors.torch import save_file
from timm.models import save_for_hf

import undegrade
from tests.adapting import save_images
from tests.scripts import run_script
from tests.weights_server import Served, Server, serving
from undegrade.utils import hub as module
from undegrade.utils.checkpoint import read_description
from undegrade.utils.hub import HubId, hub_id
from undegrade.utils.runs import find_checkpoint

ARCH = "test_resnet"  # timm's smallest, of 1,000 classes at 160 px
NAME = f"timm/{ARCH}.r160_in1k"


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network as timm saves it, in a folder."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("timm") / "net"
    save_for_hf(timm.create_model(ARCH), folder, safe_serialization=True)
    return folder


@pytest.fixture
def hub(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A Hub with that network, in which nothing is cached yet."""
    with serving() as server:
        server.hub(NAME, {path.name: Served(path.read_bytes()) for path in saved.iterdir()})
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", server.address)
        address = f"{server.address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", address)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setenv("HF_ENDPOINT", server.address)  # of scripts
        monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        yield server


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    save_images(tmp_path / "photos", ["a.png", "b.png"])
    return tmp_path / "photos"


# --- ids


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        (NAME, HubId(NAME)),
        (f"hf-hub:{NAME}", HubId(NAME)),
        ("hf_hub:them/net@v1", HubId("them/net", "v1")),
        (f"{ARCH}.r160_in1k", HubId(NAME)),
        (ARCH, HubId(NAME)),
        ("ind/Digits/ResNet20_clean", None),
        ("ckpt/net.pth", None),
        ("ResNet20", None),
        ("mine", None),
    ],
)
def test_ids_and_names_of_timm_are_told_from_paths_and_runs(text: str, meant: HubId | None) -> None:
    assert hub_id(text) == meant


def test_no_id_and_no_weights_of_timm_are_said() -> None:
    with pytest.raises(ValueError, match=r"after hf-hub: stands an id of the Hugging Face Hub, <owner>/<name>"):
        hub_id("hf-hub:net")
    with pytest.raises(ValueError, match=rf"no weights '{ARCH}\.mine' on the Hugging Face Hub: it has the tags r160_in1k"):
        hub_id(f"{ARCH}.mine")


# --- systems from Python


def answers(system: undegrade.System, photos: Path) -> list[tuple[list[str], list[str], list[float]]]:
    return [(one.names, one.wnids, one.confidences) for one in system.predict(photos, top=2)]


def test_a_network_comes_by_its_id_once_and_answers_in_words(
    hub: Server, saved: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = answers(undegrade.load(NAME), photos)
    assert sorted(path.rpartition("/")[2] for path, _ in hub.asked if "/resolve/" in path) == ["config.json", "model.safetensors"]
    hub.asked.clear()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    network = timm.create_model(ARCH)
    network.load_state_dict(timm.models.load_state_dict(saved / "model.safetensors"))
    for same in (f"hf-hub:{NAME}", ARCH, saved):
        assert answers(undegrade.load(same), photos) == found
    assert answers(undegrade.wrap(network), photos) == found and not hub.asked
    system = undegrade.load(ARCH)
    assert (system.image_size, system.resize) == (160, (168, "bilinear"))
    assert system.classes[:2] == ["n01440764", "n01443537"] and system.words[0] == "tench"
    (names, wnids, _), *_ = found
    assert [system.words[system.classes.index(wnid)] for wnid in wnids] == names
    assert [*system.predict(photos).table().columns[2:5]] == ["class_1", "wnid_1", "confidence_1"]


def test_old_repositories_have_a_pickle_alone(hub: Server, saved: Path) -> None:
    torch.save(timm.models.load_state_dict(saved / "model.safetensors"), saved.parent / "old.bin")
    files = {"config.json": (saved / "config.json").read_bytes(), "pytorch_model.bin": (saved.parent / "old.bin").read_bytes()}
    hub.hub("them/old", {name: Served(content) for name, content in files.items()})
    path = find_checkpoint("them/old", "runs")
    assert path.name == "pytorch_model.bin" and read_description(path)["arch"] == ARCH


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"model_index.json": b"{}"}, "is a model of diffusers, not a classifier"),
        ({"config.json": b'{"model_type": "bert"}', "model.safetensors": b""}, "is a model of transformers"),
        ({"README.md": b""}, "holds no classifier that can be read"),
    ],
)
def test_other_repositories_are_refused_before_their_weights_come(hub: Server, files: dict[str, bytes], message: str) -> None:
    hub.hub("them/other", {name: Served(content) for name, content in files.items()})
    with pytest.raises(ValueError, match=f"them/other of the Hugging Face Hub {message}"):
        undegrade.load("them/other")
    assert not any(path.endswith("safetensors") for path, _ in hub.asked)


def test_what_is_not_there_or_cannot_be_asked_is_said_at_once(hub: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileNotFoundError, match=r"no checkpoint 'them/none'.*Hub has no them/none, or not for everybody: look at"):
        undegrade.load("them/none")
    with pytest.raises(FileNotFoundError, match=r"^the Hugging Face Hub has no them/none at v2"):
        undegrade.load("hf-hub:them/none@v2")
    mend = f"undegrade download {NAME} --to FOLDER, and name FOLDER/{ARCH}.r160_in1k here; or name a checkpoint of your own"
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(FileNotFoundError, match=f"and the Hub does not answer .*{mend}"):
        undegrade.load(f"hf-hub:{NAME}")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(FileNotFoundError, match=f"is not in the Hub's cache, .*, and HF_HUB_OFFLINE is set; .*{mend}"):
        undegrade.load(f"hf-hub:{NAME}")


def test_a_connection_that_breaks_is_said(hub: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_files_at_hub", lambda of: ["config.json"])
    with pytest.raises(FileNotFoundError, match="them/none does not come from the Hugging Face Hub"):
        undegrade.load("hf-hub:them/none")


# --- folders and files


def test_a_folder_of_timm_that_is_built_otherwise_or_damaged_is_refused(saved: Path, tmp_path: Path) -> None:
    config = json.loads((saved / "config.json").read_text())
    (tmp_path / "net").mkdir()
    (tmp_path / "net/model.safetensors").write_bytes((saved / "model.safetensors").read_bytes())
    for change, message in (
        ({"model_args": {"img_size": 64}}, "built with {'img_size': 64}, which is not done here"),
        ({"num_classes": "many"}, "does not say what the network is"),
    ):
        (tmp_path / "net/config.json").write_text(json.dumps(config | change))
        with pytest.raises(ValueError, match=message):
            undegrade.load(tmp_path / "net")
    (tmp_path / "net/config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json is damaged"):
        undegrade.load(tmp_path / "net")


def test_classes_of_a_folder_are_those_that_it_names(tmp_path: Path) -> None:
    names = {"0": "cat", "1": "dog", "2": "owl"}
    save_for_hf(timm.create_model(ARCH, num_classes=3), tmp_path / "net", {"label_names": names}, safe_serialization=True)
    assert undegrade.load(tmp_path / "net").classes == ["cat", "dog", "owl"]
    (found,) = undegrade.load(tmp_path / "net").predict(torch.zeros(3, 8, 8))
    assert set(found.names) == {"cat", "dog", "owl"} and not found.wnids


def test_a_bare_file_says_its_network_by_its_name(
    saved: Path, photos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    state = timm.models.load_state_dict(saved / "model.safetensors")
    save_file(state, tmp_path / f"{ARCH}.r160_in1k.safetensors")
    torch.save(state, tmp_path / f"{ARCH}_a1_0-1234abcd.pth")
    torch.save(state, tmp_path / "mine.pth")
    found = answers(undegrade.load(saved), photos)
    assert answers(undegrade.load(tmp_path / f"{ARCH}.r160_in1k.safetensors"), photos) == found
    assert "by its name it holds timm's test_resnet.r160_in1k" in caplog.text and "1000 outputs are taken to be" in caplog.text
    assert answers(undegrade.load(tmp_path / f"{ARCH}_a1_0-1234abcd.pth"), photos) == found
    assert answers(undegrade.load(tmp_path / "mine.pth", arch=ARCH), photos) == found
    with pytest.raises(ValueError, match="does not say what its classes are"):
        undegrade.load(tmp_path / "mine.pth", overrides={"data": {"image_size": 32}})


# --- commands


def test_commands_take_ids_and_names_where_they_take_checkpoints(hub: Server, photos: Path, tmp_path: Path) -> None:
    words = ("--predict", photos, "--out", tmp_path / "p.csv", "--runs", tmp_path / "runs", "-d", "cpu")
    run_script("test.py", "-r", NAME, *words).check()
    first = (tmp_path / "p.csv").read_text()
    row, *_ = csv.DictReader(first.splitlines())
    assert row["wnid"].startswith("n0") and row["class"] != row["wnid"]
    tree = {
        "members": {"one": {"checkpoint": NAME}, "two": {"checkpoint": ARCH, "predictor": {"name": "bn"}}},
        "systems": {"both": {"members": ["one", "two"], "rule": "sum"}},
    }
    (tmp_path / "both.yaml").write_text(yaml.safe_dump(tree))
    run_script("test_ensemble.py", "-c", tmp_path / "both.yaml", *words).check()
    found = undegrade.load(tmp_path / "both.yaml").predict(photos, top=1)
    rows = [*csv.DictReader((tmp_path / "p.csv").read_text().splitlines())]
    assert [row["class"] for row in rows] == [one.names[0] for one in found] and (tmp_path / "p.csv").read_text() != first


def test_results_of_what_is_of_the_hub_go_to_the_runs(hub: Server, tmp_path: Path) -> None:
    for number, wnid in enumerate(("n01440764", "n01443537")):
        save_images(tmp_path / f"imagenet/val/{wnid}", [f"{number}.png"])
    words = ("--dataset", "Imagenet", "--data.root", tmp_path, "--corruption", "clean", "-d", "cpu", "--runs", tmp_path / "runs")
    done = run_script("test.py", "-r", NAME, *words).check()
    assert f"corruption  {ARCH}.r160_in1k\n" in done.out
    assert (tmp_path / "runs" / NAME / "eval/clean/results.json").is_file()


def test_any_model_of_the_hub_is_downloaded_to_a_folder_that_loads(hub: Server, photos: Path, tmp_path: Path) -> None:
    done = run_script("utils/download_command.py", NAME, "--to", tmp_path / "ckpt").check()
    assert done.out.strip() == str(tmp_path / "ckpt" / f"{ARCH}.r160_in1k")
    assert len(answers(undegrade.load(done.out.strip()), photos)) == 2


# --- ensembles from Python


def linear(count: int = 1000) -> torch.nn.Module:
    torch.manual_seed(1)
    return torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(4), torch.nn.Flatten(), torch.nn.Linear(48, count))


def test_modules_names_and_systems_are_members_of_one_ensemble(saved: Path, photos: Path, caplog: pytest.LogCaptureFixture) -> None:
    own = undegrade.wrap(linear(), image_size=160, resize=168)
    system = undegrade.ensemble({"timm": saved, "own": own, "again": own}, adapters={"again": "median_filter"})
    assert system.views == {"timm": "raw", "own": "raw", "again": "median_filter"} and system.classes[0] == "n01440764"
    why = system.explain(photos / "a.png", top=1000)
    shares = [dict(zip(one.classes, one.confidences, strict=True)) for one in (why.prediction, *why.members.values())]
    for label in (0, 7, 999):
        assert shares[0][label] == pytest.approx(sum(one[label] for one in shares[1:]) / 3, abs=1e-6)
    assert why.prediction.way == "both" and "it sees those" not in caplog.text
    undegrade.ensemble([saved, linear()])
    assert "member 2 wants images of 224; it sees those of the first member, 160 of 168, bilinear" in caplog.text


def test_members_that_do_not_fit_are_refused(saved: Path) -> None:
    with pytest.raises(ValueError, match=r"member '2' has 10 classes .*member '1' 1000"):
        undegrade.ensemble([saved, linear(10)])
    with pytest.raises(ValueError, match="give at least one classifier"):
        undegrade.ensemble([])
    with pytest.raises(ValueError, match="is for two members, there are 3"):
        undegrade.ensemble([saved] * 3, rule="entropy_fuse")
    with pytest.raises(ValueError, match="is a system of several parts"):
        undegrade.ensemble([undegrade.ensemble([saved, saved])])
    with pytest.raises(ValueError, match="unknown member 'b'"):
        undegrade.ensemble({"a": saved}, adapters={"b": "median_filter"})
