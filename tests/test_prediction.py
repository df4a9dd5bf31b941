"""test.py and test_ensemble.py --predict: classes of images without labels, against the networks
called by hand.
"""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor

from tests.checkpoints import finished_run, save_random
from tests.photo_like import photo_like, save_all
from tests.scoring import logits_by_hand
from tests.scripts import run_script
from undegrade.evaluation import predict as module
from undegrade.evaluation.config import EvaluationConfig
from undegrade.evaluation.predict import predict
from undegrade.utils.checkpoint import load_checkpoint, save_checkpoint
from undegrade.utils.config import build
from undegrade.utils.data.sources.images import Resize, read_image

CLASSES = ("ant", "bee", "cat, or kitten", "dog")
NAMES = ["a.png", "b/10.bmp", "b/9.PNG", "b/c/é.png", "d.png", "e.ppm"]  # sorted
SIZE, RESIZE = 16, 18


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Six images of 24 px in folders that are no classes, written in another order than their
    names'.
    """
    save_all(tmp_path / "photos", NAMES[::-1], photo_like(6, 24))
    (tmp_path / "photos/notes.txt").write_text("no image")
    return tmp_path / "photos"


@pytest.fixture
def network(photos: Path, tmp_path: Path) -> Path:
    return save_undecided(tmp_path / "net.safetensors", photos, 0)


def save_undecided(path: Path, photos: Path, seed: int) -> Path:
    """A random network whose logits on the photos have mean 0 and deviation 1 for each class: they
    fall into several.
    """
    save_random(path, seed, classes=CLASSES, image_size=SIZE, resize=RESIZE)
    state, description = load_checkpoint(path)
    images = np.stack([read_image(photos / name, SIZE, Resize(RESIZE)) for name in NAMES])
    logits = logits_by_hand(path, torch.from_numpy(images))
    state["fc.weight"] = state["fc.weight"] / logits.std(0)[:, None]
    state["fc.bias"] = (state["fc.bias"] - logits.mean(0)) / logits.std(0)
    save_checkpoint(path, state, description)
    return path


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def shares_of(network: Path, photos: Path, names: list[str], size: int = SIZE, resize: int | None = RESIZE) -> Tensor:
    images = np.stack([read_image(photos / name, size, None if resize is None else Resize(resize)) for name in names])
    return logits_by_hand(network, torch.from_numpy(images)).softmax(1)


def check(rows: list[dict[str, str]], names: list[str], shares: Tensor, classes: tuple[str, ...] = CLASSES) -> None:
    """Files, classes and confidences of `rows` are those of `shares` [N, K]."""
    assert [row["file"] for row in rows] == names
    assert [row["class"] for row in rows] == [classes[k] for k in shares.argmax(1)]
    assert [float(row["confidence"]) for row in rows] == pytest.approx(shares.amax(1).tolist(), abs=2e-6)


def config_of(network: Path, **keys: object) -> EvaluationConfig:
    tree = {"members": {"model": {"checkpoint": str(network)}}, "systems": {"one": {"members": ["model"]}}, **keys}
    return build(EvaluationConfig, tree)


def test_the_command_writes_the_classes_of_a_direct_pass_in_the_order_of_the_files(
    network: Path, photos: Path, tmp_path: Path
) -> None:
    done = run_script("test.py", "-r", network, "--predict", photos, "--out", tmp_path / "new/mine.csv", "-d", "cpu").check()
    rows, shares = rows_of(tmp_path / "new/mine.csv"), shares_of(network, photos, NAMES)
    check(rows, NAMES, shares)
    assert list(rows[0]) == ["file", "class", "confidence"]
    best = shares.argmax(1)
    width = max(len(name) for name in ["class", *(CLASSES[k] for k in best)])
    assert len(best.unique()) > 2
    for k in best.unique().tolist():
        assert f"{CLASSES[k].ljust(width)}  {int((best == k).sum()):6d}  {float(shares[best == k, k].mean()):15.3f}" in done.out
    assert done.out.endswith(f"written: {tmp_path}/new/mine.csv (6 images)\n") and "6/6" in done.err


def test_the_next_classes_follow_with_top(network: Path, photos: Path, tmp_path: Path) -> None:
    run_script("test.py", "-r", network, "--predict", photos, "--out", tmp_path, "--top", 3).check()
    rows, (values, order) = rows_of(tmp_path / "predictions.csv"), shares_of(network, photos, NAMES).sort(1, descending=True)
    assert list(rows[0]) == ["file", "class", "confidence", "class_2", "confidence_2", "class_3", "confidence_3"]
    for place, suffix in enumerate(("", "_2", "_3")):
        assert [row["class" + suffix] for row in rows] == [CLASSES[k] for k in order[:, place]]
        assert [float(row["confidence" + suffix]) for row in rows] == pytest.approx(values[:, place].tolist(), abs=2e-6)


def test_a_prediction_that_is_stopped_keeps_what_it_has(network: Path, photos: Path, tmp_path: Path) -> None:
    (photos / "a0.png").write_bytes(b"no image")
    words = ("-r", network, "--predict", photos, "--out", tmp_path / "p.csv", "--batch_size", 3, "--max_time", 0.001)
    done = run_script("test.py", *words, "--report", tmp_path / "p.html")
    said = f"are over after 2 of 6 images, which are in {tmp_path}/p.csv and {tmp_path}/p.html; 4 are missing"
    assert done.status == 75 and said in done.err and "begins anew" in done.err
    assert "It was stopped before its end: 4 further images were not looked at." in (tmp_path / "p.html").read_text()
    check(rows_of(tmp_path / "p.csv"), NAMES[:2], shares_of(network, photos, NAMES)[:2])


@pytest.mark.parametrize("batch_size", [1, 4])
def test_batches_change_nothing(network: Path, photos: Path, tmp_path: Path, batch_size: int) -> None:
    (photos / "c.png").write_bytes(b"broken")
    given = config_of(network, batch_size=batch_size)
    check(rows_after(given, photos, tmp_path), NAMES, shares_of(network, photos, NAMES))


def rows_after(config: EvaluationConfig, photos: Path, tmp_path: Path, **options: object) -> list[dict[str, str]]:
    predict(config, photos, tmp_path / "p.csv", torch.device("cpu"), **options)
    return rows_of(tmp_path / "p.csv")


def test_one_file_is_one_row(network: Path, photos: Path, tmp_path: Path) -> None:
    done = run_script("test.py", "-r", network, "--predict", photos / "b/9.PNG", "--out", tmp_path / "p.csv").check()
    check(rows_of(tmp_path / "p.csv"), ["9.PNG"], shares_of(network, photos, ["b/9.PNG"]))
    assert "(1 image)" in done.out


def test_broken_images_are_named_and_left_out(network: Path, photos: Path, tmp_path: Path) -> None:
    (photos / "b/10.bmp").write_bytes((photos / "b/10.bmp").read_bytes()[:300])
    (photos / "z.jpg").write_bytes(b"no image")
    done = run_script("test.py", "-r", network, "--predict", photos, "--out", tmp_path / "p.csv")
    assert done.status == 1
    readable = [name for name in NAMES if name != "b/10.bmp"]
    check(rows_of(tmp_path / "p.csv"), readable, shares_of(network, photos, readable))
    assert "left out 2 of 7 images" in done.err
    assert f"{photos}/b/10.bmp: " in done.err and f"{photos}/z.jpg: none of the image formats that are read" in done.err


def test_what_was_done_before_an_interruption_is_kept(
    network: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = module.best_classes, []

    def interrupted(*arguments: object) -> object:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(module, "best_classes", interrupted)
    with pytest.raises(KeyboardInterrupt):
        rows_after(config_of(network, batch_size=2), photos, tmp_path)
    check(rows_of(tmp_path / "p.csv"), NAMES[:4], shares_of(network, photos, NAMES[:4]))


def test_numbers_stand_for_classes_that_nobody_names_unless_a_list_does(network: Path, photos: Path, tmp_path: Path) -> None:
    state, description = load_checkpoint(network)
    del description["classes"]
    save_checkpoint(tmp_path / "nameless.safetensors", state, description)
    shares, given = shares_of(network, photos, NAMES), config_of(tmp_path / "nameless.safetensors")
    check(rows_after(given, photos, tmp_path), NAMES, shares, ("0", "1", "2", "3"))
    (tmp_path / "list.txt").write_text("w\nx\ny\nz\n")
    words = ("-r", tmp_path / "nameless.safetensors", "--predict", photos, "--out", tmp_path / "p.csv")
    run_script("test.py", *words, "--data.classes", tmp_path / "list.txt").check()
    check(rows_of(tmp_path / "p.csv"), NAMES, shares, ("w", "x", "y", "z"))
    (tmp_path / "list.txt").write_text("w\nx\ny\n")
    done = run_script("test.py", *words, "--data.classes", tmp_path / "list.txt")
    assert done.status == 2 and "has 4 classes, not 3 as needed" in done.err


def test_the_size_comes_from_the_command_line_the_checkpoint_or_the_data_of_its_run(photos: Path, tmp_path: Path) -> None:
    run = finished_run(tmp_path / "runs", "old", config={"data": {"dataset": "Digits", "batch_size": 64}})
    check(rows_after(config_of(run), photos, tmp_path), NAMES, shares_of(run, photos, NAMES, 32, None), tuple("0123456789"))
    words = ("-r", "old", "--runs", tmp_path / "runs", "--predict", photos, "--out", tmp_path / "p.csv")
    run_script("test.py", *words, "--data.image_size", 20, "--data.resize", 22).check()
    check(rows_of(tmp_path / "p.csv"), NAMES, shares_of(run, photos, NAMES, 20, 22), tuple("0123456789"))
    (run.parent / "config.yaml").write_text("data: {dataset: gone/away}")
    for change, reason in ((None, "the data set of its run cannot be asked (image folder gone/away"), ("x", "no config.yaml lies")):
        if change:
            (run.parent / "config.yaml").unlink()
        done = run_script("test.py", *words)
        assert done.status == 2 and reason in done.err and "give --data.image_size, and --data.resize if" in done.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--predict", "{empty}"), "no images under {empty} (by suffix: .png, .jpg"),
        (("--predict", "{photos}/none"), "--predict {photos}/none does not exist: give a folder of images, or one image"),
        (("--predict", "{photos}/notes.txt"), "none of the 1 images of --predict {photos}/notes.txt can be read"),
        (("--predict", "{photos}", "--corruption", "fog"), "--corruption has no meaning for them: leave it out; to measure"),
        (("--predict", "{photos}", "--dataset", "Digits"), "--dataset has no meaning for them: leave it out; to measure"),
        (("--predict", "{photos}", "--view", "{photos}"), "--view has no meaning"),
        (("--predict", "{photos}", "--data.severities", "5"), "--data.severities has no meaning"),
        (("--predict", "{photos}", "--max_time", "soon"), "duration 'soon': write 3h50m"),
        (("--predict", "{photos}", "--top", "5"), "--top 5: there are 4 classes, choose 1 to 4"),
        (("--predict", "{photos}", "--data.resize", "12"), "images of 16 px cannot be cut from a shorter side of 12"),
        (("--top", "5"), "--top goes with --predict <folder of images>: add that, or leave it out"),
    ],
)
def test_mistakes_are_said_and_nothing_is_written(
    network: Path, photos: Path, tmp_path: Path, words: tuple[str, ...], message: str
) -> None:
    places = {"photos": photos, "empty": tmp_path / "empty"}
    places["empty"].mkdir()
    done = run_script("test.py", "-r", network, *(word.format(**places) for word in words), "--out", tmp_path / "p.csv")
    assert done.status == 2 and message.format(**places) in done.err
    assert not (tmp_path / "p.csv").exists()


def test_a_file_of_another_program_needs_its_classes(network: Path, photos: Path, tmp_path: Path) -> None:
    torch.save(load_checkpoint(network)[0], tmp_path / "theirs.pth")
    words = ("-r", tmp_path / "theirs.pth", "--arch", "ResNet20", "--predict", photos, "--data.image_size", SIZE)
    done = run_script("test.py", *words)
    assert done.status == 2 and "theirs.pth does not say what its classes are: give --data.classes imagenet-1k" in done.err


@pytest.fixture
def ensemble(network: Path, photos: Path, tmp_path: Path) -> Path:
    """A YAML of two classifiers, the second of which sees the view `adapted`."""
    second = save_undecided(tmp_path / "second.safetensors", photos, 1)
    members = {"raw": {"checkpoint": str(network)}, "other": {"checkpoint": str(second), "view": "adapted"}}
    systems = {
        "told": {"members": ["{corruption}"]},
        "alone": {"members": ["raw"]},
        "mixed": {"members": ["raw", "other"], "rule": "entropy_fuse"},
        "both": {"members": ["raw", "other"], "rule": "sum"},
    }
    path = tmp_path / "ensemble.yaml"
    path.write_text(yaml.safe_dump({"members": members, "systems": systems, "views": {"adapted": "not/there"}}, sort_keys=False))
    return path


@pytest.fixture
def adapted(photos: Path, tmp_path: Path) -> Path:
    """Other versions of all images but one, PNG files as the adaptation writes them."""
    names = [str(Path(name).with_suffix(".png")) for name in NAMES if name != "d.png"]
    save_all(tmp_path / "adapted", names, photo_like(6, 24)[1:].flip(-1))
    return tmp_path / "adapted"


def test_members_of_an_ensemble_see_their_views_and_the_last_system_is_written(
    ensemble: Path, network: Path, photos: Path, adapted: Path, tmp_path: Path
) -> None:
    words = ("-c", ensemble, "--predict", photos, "--views.adapted", adapted, "--out", tmp_path / "p.csv")
    done = run_script("test_ensemble.py", *words).check()
    both = [name for name in NAMES if name != "d.png"]
    second = shares_of(tmp_path / "second.safetensors", adapted, [str(Path(name).with_suffix(".png")) for name in both])
    first = shares_of(network, photos, both)
    check(rows_of(tmp_path / "p.csv"), both, (first + second) / 2)
    assert f"left out 1 of 6 images that are not under {adapted}" in done.err and f"{photos}/d.png" in done.err
    assert "system both: sum of raw, other" in done.err
    (adapted / "e.png").write_bytes(b"broken")
    done = run_script("test_ensemble.py", *words)
    assert done.status == 1
    check(rows_of(tmp_path / "p.csv"), both[:-1], ((first + second) / 2)[:-1])
    assert "left out 1 of 5 images that cannot be read" in done.err
    done = run_script("test_ensemble.py", *words, "--system", "alone")
    assert done.status == 2 and "--views.adapted has no effect here: no member looks at this view" in done.err
    assert run_script("test_ensemble.py", *words[:4], *words[6:], "--system", "alone").status == 0
    check(rows_of(tmp_path / "p.csv"), NAMES, shares_of(network, photos, NAMES))


def test_a_rule_that_mixes_the_images_works_by_batches(ensemble: Path, photos: Path, adapted: Path, tmp_path: Path) -> None:
    tree = yaml.safe_load(ensemble.read_text()) | {"views": {"adapted": str(adapted)}}
    one, many = (rows_after(build(EvaluationConfig, tree | {"batch_size": b}), photos, tmp_path, system="mixed") for b in (1, 8))
    assert [(row["file"], row["class"]) for row in one] == [(row["file"], row["class"]) for row in many] and len(one) == 5
    assert [float(row["confidence"]) for row in one] == pytest.approx([float(row["confidence"]) for row in many], abs=2e-6)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "not/there does not exist: adapt them with image_sample.py --base_samples {photos} --save_dir <folder>, and name"),
        (
            ("--views.adapted", "{elsewhere}"),
            "none of the 6 images of --predict {photos} is under {elsewhere}, e.g. {photos}/a.png",
        ),
        (("--system", "bot"), "unknown system 'bot': did you mean 'both'?"),
        (("--system", "told"), "system 'told' is told the corruption of an image"),
    ],
)
def test_mistakes_with_ensembles_are_said(
    ensemble: Path, photos: Path, tmp_path: Path, words: tuple[str, ...], message: str
) -> None:
    save_all(tmp_path / "elsewhere", ["other.png"], photo_like(1, 24))
    places = {"photos": photos, "elsewhere": tmp_path / "elsewhere"}
    done = run_script("test_ensemble.py", "-c", ensemble, "--predict", photos, *(word.format(**places) for word in words))
    assert done.status == 2 and message.format(**places) in done.err
