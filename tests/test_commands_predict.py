"""undegrade predict: the same answers as the other ways, weights that say nothing themselves, and
what is left when it is stopped.
"""

from __future__ import annotations

import csv
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

import undegrade
from tests.checkpoints import save_random
from tests.photo_like import photo_like, save_all
from tests.scripts import Done, run_script
from undegrade.evaluation import predictions
from undegrade.models.classification.weights import network_of

PREDICT = "undegrade/predict_command.py"
NAMES = ["a.png", "b/c.png", "d.png", "é.png"]
CLASSES = ("n01440764", "n02012849", "bee", "dog")  # tench, crane
TINY = "test_resnet.r160_in1k"  # a network of timm, 160 px


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    save_all(tmp_path / "photos", NAMES, photo_like(4, 24))
    return tmp_path / "photos"


@pytest.fixture
def network(tmp_path: Path) -> Path:
    return save_random(tmp_path / "net.safetensors", classes=CLASSES, image_size=16, resize=18)


def predict(*words: object) -> Done:
    return run_script(PREDICT, *words, "-d", "cpu")


def test_the_answers_are_those_of_a_prediction_by_the_checkpoint(network: Path, photos: Path, tmp_path: Path) -> None:
    done = predict(photos, "--system", network, "--out", tmp_path / "new/p.csv").check()
    run_script("test.py", "-r", network, "--predict", photos, "--top", 3, "--out", tmp_path / "q.csv").check()
    assert (tmp_path / "new/p.csv").read_bytes() == (tmp_path / "q.csv").read_bytes()
    assert "4/4" in done.err and done.out.endswith(f"written: {tmp_path}/new/p.csv (4 images)\n")


def test_adapted_images_are_made_and_shown(network: Path, photos: Path, tmp_path: Path) -> None:
    (photos / "broken.png").write_bytes(b"no image")
    words = ("--adapter", "median_filter", "--top", 1, "--out", tmp_path, "--report", tmp_path / "r/page.html")
    done = predict(photos, "--system", network, *words)
    assert done.status == 1 and done.err.count("left out 1 of 5 images that cannot be read") == 1
    found = undegrade.load(network, adapter="median_filter").predict(photos, top=1)
    with (tmp_path / "predictions.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["file"], row["class"]) for row in rows] == [(one.name, one.names[0]) for one in found]
    assert {one.names[0] for one in found} <= {"tench", "crane", "bee", "dog"}
    page = (tmp_path / "r/page.html").read_text(encoding="utf-8")
    assert page.count("data:image/png") == 8 and "net.safetensors with adapted images" in page
    assert "predict_command.py" in page and "1 images could not be read" in page


def test_several_paths_keep_their_names(network: Path, photos: Path, tmp_path: Path) -> None:
    predict(photos / "d.png", photos / "b", "--system", network, "--out", tmp_path / "p.csv").check()
    lines = (tmp_path / "p.csv").read_text(encoding="utf-8").splitlines()
    assert [line.partition(",")[0] for line in lines] == ["file", f"{photos}/d.png", "c.png"]


def test_what_was_done_before_a_signal_is_kept_and_shown(
    network: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = predictions.best_classes

    def signalled(*arguments: object) -> object:
        os.kill(os.getpid(), signal.SIGTERM)
        return real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(predictions, "best_classes", signalled)
    report = tmp_path / "page.html"
    done = predict(photos, "--system", network, "--batch_size", 3, "--out", tmp_path / "p.csv", "--report", report)
    assert done.status == 75
    assert (
        f"SIGTERM was received after 3 of 4 images, which are in {tmp_path}/p.csv and {report}; 1 are missing; the same" in done.err
    )
    assert len((tmp_path / "p.csv").read_text(encoding="utf-8").splitlines()) == 4
    assert "It was stopped before its end: 1 further images were not looked at." in report.read_text(encoding="utf-8")


def test_a_saved_system_is_a_folder_that_predicts(network: Path, photos: Path, tmp_path: Path) -> None:
    undegrade.load(network).save_pretrained(tmp_path / "saved")
    for system, out in ((network, "before.csv"), (tmp_path / "saved", "after.csv")):
        predict(photos, "--system", system, "--out", tmp_path / out).check()
    assert (tmp_path / "after.csv").read_text(encoding="utf-8") == (tmp_path / "before.csv").read_text(encoding="utf-8")


# --- weights of timm that say nothing themselves


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("timm") / f"{TINY}.safetensors"
    save_file(timm.create_model(TINY, pretrained=False).state_dict(), path)
    return path


def test_a_file_of_timm_gives_words_at_the_first_attempt(weights: Path, photos: Path, tmp_path: Path) -> None:
    done = predict(photos, "--system", weights, "--out", tmp_path / "p.csv").check()
    assert f"{weights}: by its name it holds timm's {TINY}" in done.err
    assert f"{weights}: its 1000 outputs are taken to be the classes of ImageNet" in done.err
    row = next(csv.DictReader((tmp_path / "p.csv").open(encoding="utf-8")))
    assert row["wnid"].startswith("n") and row["class"][0] != "n0" and {"wnid_3", "confidence_3"} <= row.keys()
    given = undegrade.load(weights, arch=TINY, classes="imagenet-1k").predict(photos / "a.png", top=1)[0]
    assert row["class"] == given.names[0] and float(row["confidence"]) == pytest.approx(given.confidences[0], abs=1e-6)


def test_names_that_are_taken(weights: Path) -> None:
    assert network_of(Path("test_resnet-0123abcd.pth"), None) == "test_resnet"
    assert network_of(Path("resnet50_a1_0-14fe96d1.pth"), None) == "resnet50"
    assert network_of(weights, None) == TINY and network_of(weights, "resnet18") == "resnet18"
    assert network_of(Path("mine.pth"), None) is None


@pytest.mark.parametrize(
    ("name", "classes", "message"),
    [
        ("mine", 1000, "does not say what network it holds"),
        ("resnet18", 1000, "resnet18.safetensors"),
        (TINY, 10, "does not say what its classes are: give --data.classes imagenet-1k or a file with one a line"),
    ],
)
def test_what_cannot_be_known_is_asked_for(name: str, classes: int, message: str, photos: Path, tmp_path: Path) -> None:
    path = tmp_path / f"{name}.safetensors"
    save_file(timm.create_model(TINY, pretrained=False, num_classes=classes).state_dict(), path)
    done = predict(photos, "--system", path)
    assert done.status == 2 and message in done.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("{photos}/none",), "error: {photos}/none does not exist: give a folder of images, or an image"),
        (("{photos}", "--top", "5"), "error: --top 5: there are 4 classes, choose 1 to 4"),
        (("{photos}", "--report", "{photos}"), "is a folder: name a file in it, such as {photos}/report.html"),
        (("{photos}", "--data.limit", "5"), "unknown config key 'data.limit'"),
        (("{photos}", "--adapter", "median"), "unknown adapter 'median': did you mean 'median_filter'?"),
        (("{photos}", "--variant", "x"), "unknown system 'x'"),
        (("{photos}", "--system", "test_resne"), "nothing has finished there; did you mean timm's test_resnet?"),
        (
            ("{photos}", "--system", "test_resnet", "--arch", "x"),
            "--arch goes with a checkpoint, and test_resnet is a name of timm",
        ),
    ],
)
def test_mistakes_are_said(
    words: tuple[str, ...], message: str, network: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = predict("--system", network, *(word.format(photos=photos) for word in words))
    assert done.status == 2 and message.format(photos=photos) in done.err
    assert not (tmp_path / "predictions.csv").exists()


def test_names_of_timm_are_taken_as_wrap_takes_them(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    system = undegrade.wrap(TINY, pretrained=False)
    monkeypatch.setattr("undegrade.system_flags.wrap", lambda name, **given: system if name == TINY else None)
    done = predict(photos, "--system", TINY, "--out", tmp_path / "p.csv", "--runs", tmp_path)
    assert done.status == 0 and "no file or run, but a name of timm" in done.err


def test_pictures_of_any_kind_are_labelled(network: Path, tmp_path: Path) -> None:
    folder = tmp_path / "odd"
    folder.mkdir()
    rgb = Image.fromarray(np.asarray(photo_like(1, 32)[0].permute(1, 2, 0)))
    exif = Image.Exif()
    exif[0x112] = 6
    rgb.convert("CMYK").save(folder / "cmyk.jpg")
    rgb.convert("RGBA").save(folder / "alpha.png")
    rgb.convert("P").save(folder / "größe.gif")
    rgb.save(folder / "turned.jpg", exif=exif)
    predict(folder, "--system", network, "--out", tmp_path / "p.csv").check()
    assert len((tmp_path / "p.csv").read_text(encoding="utf-8").splitlines()) == 5
