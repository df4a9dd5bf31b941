"""ImageNet-C and CIFAR-10-C without their clean images: what is known of them, and evaluation from
end to end.
"""

from __future__ import annotations

import io
import json
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from tests.checkpoints import finished_run, save_random
from tests.photo_like import photo_like, save_all, to_array
from tests.scoring import logits_by_hand, rows_of
from tests.scripts import run_script
from undegrade.evaluation.report.plots_pictures import image_grid
from undegrade.utils.data.cells import Cell
from undegrade.utils.data.sources.registry import open_source
from undegrade.utils.data.sources.released import CIFAR, array_cell, is_released
from undegrade.utils.data.views import FolderTree, OnTheFly, ReleasedArrays

WNIDS = ("n01440764", "n01484850", "n15075141")  # of the sorted thousand: 0, 2 and 999
LABELS = [3, 0, 9, 3]
PUBLISHED = "configs/ensemble/Imagenet/ResNet50_diffaud.yaml"


def write_tree(root: Path, *cells: str, per_class: int = 2, side: int = 224, suffix: str = ".JPEG") -> dict[str, Tensor]:
    """`<root>/<cell>/<wnid>/*`, other pictures in every cell; of each cell the pixels that the
    files hold, in sorted order.
    """
    names = [f"{wnid}/ILSVRC2012_val_{10 * k + i:08d}" for k, wnid in enumerate(WNIDS) for i in range(per_class)]
    pictures = photo_like(len(names) * len(cells), side).split(len(names))
    for cell, images in zip(cells, pictures, strict=True):
        save_all(root / cell, [name + suffix for name in names], images)
    return {cell: pixels(root / cell) for cell in cells}


def pixels(folder: Path) -> Tensor:
    files = sorted(p for p in folder.rglob("*") if p.suffix in (".JPEG", ".png"))
    return torch.stack([torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1) for file in files])


def write_arrays(root: Path, *corruptions: str, labels: list[int] = LABELS) -> np.ndarray:
    """`<corruption>.npy` of 5 severities beside labels.npy; the pixels of the first corruption."""
    root.mkdir(parents=True)
    images = np.stack([to_array(image) for image in photo_like(5 * len(labels), 32)])
    for shift, name in enumerate(corruptions):
        np.save(root / f"{name}.npy", np.roll(images, shift, axis=2))
    np.save(root / "labels.npy", np.tile(np.array(labels), 5))
    return images


def known_classes(root: Path) -> None:
    """Three classes in place of a thousand: a tiny network has them."""
    (root / "classes.txt").write_text("\n".join(WNIDS))


def network(path: Path, classes: tuple[str, ...] = WNIDS, seed: int = 0) -> Path:
    return save_random(path / f"{seed}.safetensors", seed, classes=classes)


def stored_logits(out: Path, member: str, cell: str) -> np.ndarray:
    return np.load(out / "logits" / member / f"{cell}.npz")["logits"]


# --- listings


def test_imagenet_c_lists_the_images_of_its_first_cell_under_the_numbers_of_the_thousand_classes(tmp_path: Path) -> None:
    write_tree(tmp_path, "snow/1", "fog/5", "fog/3", side=8)
    (tmp_path / "fog/5" / WNIDS[0] / "ILSVRC2012_val_00000001.JPEG").unlink()
    source = open_source("Imagenet", "test", tmp_path)
    assert source.labels.tolist() == [0, 0, 2, 2, 999, 999] and len(source.classes) == 1000
    assert (source.name, source.image_size, source.resize) == ("Imagenet/test", 224, (256, "bilinear"))
    assert (source.rgb_mean, source.rgb_std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    view = FolderTree(tmp_path, source)
    assert view.source(Cell("fog", 3)).keys == source.keys == view.source(Cell("snow", 1)).keys
    with pytest.raises(ValueError, match=r"fog/5: 1 of 6 images are missing, e\.g\. n01440764/ILSVRC2012_val_00000001"):
        view.source(Cell("fog", 5))


@pytest.mark.parametrize(("dataset", "labels"), [("CIFAR10", LABELS), ("CIFAR100", [49, 0, 99, 23])])
def test_arrays_list_their_rows_under_the_names_of_the_classes(tmp_path: Path, dataset: str, labels: list[int]) -> None:
    write_arrays(tmp_path / "c", "snow", "fog", labels=labels)
    source = open_source(dataset, "test", tmp_path / "c")
    names = {"CIFAR10": ["cat", "airplane", "truck", "cat"], "CIFAR100": ["mountain", "apple", "worm", "cloud"]}[dataset]
    assert source.keys == [f"{name}/test_{i:05d}" for i, name in enumerate(names)]
    assert source.labels.tolist() == labels and (source.name, source.image_size) == (f"{dataset}/test", 32)
    assert ReleasedArrays(tmp_path / "c", source).source(Cell("snow", 5)).keys == source.keys
    assert max(source.rgb_mean) < 0.52 and min(source.rgb_std) > 0.24


def test_there_are_ten_and_a_hundred_classes_in_alphabetical_order() -> None:
    assert {name: len(known.classes) for name, known in CIFAR.items()} == {"CIFAR10": 10, "CIFAR100": 100}
    assert all(list(known.classes) == sorted(set(known.classes)) for known in CIFAR.values())


def test_a_listing_is_narrowed_and_sent_to_workers_like_a_source_but_has_no_images(tmp_path: Path) -> None:
    write_arrays(tmp_path / "c", "fog")
    (tmp_path / "one.txt").write_text("truck/test_00002\n")
    for source in (
        open_source("CIFAR10", "test", tmp_path / "c", limit=1),
        open_source("CIFAR10", "test", tmp_path / "c", subset=str(tmp_path / "one.txt")),
        pickle.loads(pickle.dumps(open_source("CIFAR10", "test", tmp_path / "c").subset([2]))),
        OnTheFly(open_source("CIFAR10", "test", tmp_path / "c")).source(Cell("fog", 1)),
    ):
        assert source.listing_of == tmp_path / "c"
        with pytest.raises(
            ValueError, match=r"/c holds corrupted images only: .* --view .*, or point data\.root at the clean data set"
        ):
            source.images([0])


def test_a_clean_test_set_in_the_same_folder_comes_first(tmp_path: Path) -> None:
    write_tree(tmp_path, "fog/5", side=8)
    save_all(tmp_path / "val" / WNIDS[1], ["a.png"], photo_like(1, 8))
    source = open_source("Imagenet", "test", tmp_path, image_size=8)
    assert source.keys == [f"{WNIDS[1]}/a"] and source.listing_of is None and source.images([0]).shape == (1, 3, 8, 8)
    write_arrays(tmp_path / "c", "fog")
    (tmp_path / "c/cifar-10-batches-py").mkdir()
    with pytest.raises(FileNotFoundError, match="CIFAR10 is not, or not intact"):  # damaged: not passed over in silence
        open_source("CIFAR10", "test", tmp_path / "c")


@pytest.mark.parametrize("split", ["train", "validation"])
def test_there_is_nothing_to_train_on(tmp_path: Path, split: str) -> None:
    write_tree(tmp_path / "tree", "fog/5", side=8)
    write_arrays(tmp_path / "c", "fog")
    for dataset, folder in (("Imagenet", "tree"), ("CIFAR10", "c")):
        with pytest.raises(FileNotFoundError, match=rf"{dataset}(: no train folder| is not)"):
            open_source(dataset, split, tmp_path / folder)


def test_only_released_layouts_of_the_data_set_give_keys(tmp_path: Path) -> None:
    write_tree(tmp_path / "tree", "fog/5", side=8)
    write_tree(tmp_path / "drawn", "jpeg/random", side=8)
    write_arrays(tmp_path / "c", "fog")
    write_arrays(tmp_path / "labels")
    given = {(d, f): is_released(d, tmp_path / f) for d in ("Imagenet", "CIFAR100") for f in ("tree", "drawn", "c", "labels", "no")}
    assert [place for place, yes in given.items() if yes] == [("Imagenet", "tree"), ("CIFAR100", "c")]
    assert not is_released("Digits", tmp_path / "c")


# --- one checkpoint


def test_a_checkpoint_is_tested_on_imagenet_c_whose_jpegs_are_taken_as_they_are(tmp_path: Path) -> None:
    shown = write_tree(tmp_path / "c", "fog/2", "fog/5", "snow/5", per_class=1)
    known_classes(tmp_path / "c")
    path, out = network(tmp_path), tmp_path / "out"
    words = ("-r", path, "--dataset", "Imagenet", "--view", tmp_path / "c", "--corruption", "fog", "--severity", "2,5")
    run_script("test.py", *words, "--out", out).check()
    rows = rows_of(out)
    for row, cell in zip(rows, ("fog/2", "fog/5"), strict=False):
        by_hand = logits_by_hand(path, shown[cell])
        assert np.allclose(stored_logits(out, "model", cell.replace("/", "-")), by_hand, atol=1e-4)
        assert (row["n"], row["correct"]) == (3, int((by_hand.argmax(1) == torch.tensor([0, 1, 2])).sum()))
    assert np.load(out / "logits/images.npz")["keys"].tolist()[1] == f"{WNIDS[1]}/ILSVRC2012_val_00000010"


def test_a_run_is_tested_on_arrays_wherever_it_was_trained_and_beside_its_other_results(tmp_path: Path) -> None:
    images = write_arrays(tmp_path / "CIFAR-10-C", "fog", "snow")
    config = {"data": {"dataset": "CIFAR10", "root": str(tmp_path / "gone"), "degradations": ["jpeg"]}}
    path = finished_run(tmp_path / "runs", "ind/CIFAR10/ResNet20_clean", config=config, classes=CIFAR["CIFAR10"].classes)
    words = ("-r", "ind/CIFAR10/ResNet20_clean", "--runs", tmp_path / "runs", "--view", tmp_path / "CIFAR-10-C")
    run_script("test.py", *words, "--corruption", "fog", "--severity", 4).check()
    out = path.parent / "eval/fog-CIFAR-10-C"
    by_hand = logits_by_hand(path, torch.from_numpy(images[12:16]).permute(0, 3, 1, 2))
    assert np.allclose(stored_logits(out, "model", "fog-4"), by_hand, atol=1e-4)
    assert rows_of(out)[0]["correct"] == int((by_hand.argmax(1) == torch.tensor(LABELS)).sum())


def test_a_root_that_is_given_stays(tmp_path: Path) -> None:
    write_arrays(tmp_path / "c", "fog")
    path = network(tmp_path, CIFAR["CIFAR10"].classes)
    words = ("--dataset", "CIFAR10", "--corruption", "fog", "--data.root", tmp_path / "none")
    done = run_script("test.py", "-r", path, "--view", tmp_path / "c", *words)
    assert done.status == 2 and f"CIFAR10 is not, or not intact, under {tmp_path / 'none'}" in done.err
    assert "or at CIFAR-10-C, <corruption>.npy beside labels.npy" in done.err
    config = ("configs/ensemble/CIFAR10/ResNet20_diffaud.yaml", path, "--data_prefix1", tmp_path / "c")
    done = run_script("test_ensemble.py", *config, "--corruption", "fog", "--data.root", tmp_path / "none")
    assert done.status == 2 and f"CIFAR10 is not, or not intact, under {tmp_path / 'none'}" in done.err


# --- two checkpoints on two trees


def test_published_command_takes_keys_and_labels_from_the_first_tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first tree is a subset; the second has more images, adapted at 256 pixels."""
    grid = mock.Mock(side_effect=image_grid)
    monkeypatch.setattr("undegrade.evaluation.write_report.image_grid", grid)
    raw = write_tree(tmp_path / "imagenetc_5k", "gaussian_noise/5", per_class=2)["gaussian_noise/5"]
    adapted = write_tree(tmp_path / "generated", "gaussian_noise/5", per_class=3, side=256, suffix=".png")["gaussian_noise/5"]
    known_classes(tmp_path / "imagenetc_5k")
    deg, adapt = network(tmp_path, seed=1), network(tmp_path, seed=2)
    words = (PUBLISHED, deg, "--second_model_prefix", adapt, "--data_prefix1", tmp_path / "imagenetc_5k")
    more = ("--ensemble", "sum", "--corruption", "gaussian_noise", "--severity", 5, "--out", tmp_path / "out")
    report = ("--report", tmp_path / "report.html")
    run_script("test_ensemble.py", *words, "--data_prefix2", tmp_path / "generated", *more, *report).check()
    first = logits_by_hand(deg, raw)
    second = logits_by_hand(adapt, adapted[[0, 1, 3, 4, 6, 7], :, 16:240, 16:240])
    for member, by_hand in (("first", first), ("second", second)):
        assert np.allclose(stored_logits(tmp_path / "out", member, "gaussian_noise-5"), by_hand, atol=1e-4)
    (row,) = rows_of(tmp_path / "out")
    right = (first.softmax(1) + second.softmax(1)).argmax(1) == torch.tensor([0, 0, 1, 1, 2, 2])
    assert (row["rule"], row["n"], row["correct"]) == ("sum", 6, int(right.sum()))
    assert json.loads((tmp_path / "out/results.json").read_text())["meta"]["images"] == 6
    assert list(grid.call_args[0][0]) == ["corrupted", "adapted", "sum says"]  # columns of pictures in the report


def test_two_checkpoints_are_tested_on_arrays(tmp_path: Path) -> None:
    images = torch.from_numpy(write_arrays(tmp_path / "c", "fog")[16:]).permute(0, 3, 1, 2)
    names = [f"fog/5/{CIFAR['CIFAR10'].classes[label]}/test_{i:05d}.png" for i, label in enumerate(LABELS)]
    save_all(tmp_path / "generated", names, images.flip(-1))
    one, two = (network(tmp_path, CIFAR["CIFAR10"].classes, seed) for seed in (1, 2))
    words = ("configs/ensemble/CIFAR10/ResNet20_diffaud.yaml", one, "--second_model_prefix", two, "--ensemble", "first,second")
    views = ("--data_prefix1", tmp_path / "c", "--data_prefix2", tmp_path / "generated")
    run_script("test_ensemble.py", *words, *views, "--corruption", "fog", "--severity", 5, "--out", tmp_path / "out").check()
    for member, path, shown in (("first", one, images), ("second", two, images.flip(-1))):
        assert np.allclose(stored_logits(tmp_path / "out", member, "fog-5"), logits_by_hand(path, shown), atol=1e-4)


# --- mistakes


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--corruption", "snow"), "no images for snow/5 under {c} (there: fog/3, fog/5)"),
        (("--corruption", "snow"), "or unpack them there if they are of a released set"),
        (("--corruption", "fog", "--severity", "2"), "no images for fog/2 under {c} (there: fog/3, fog/5)"),
        (("--corruption", "fog,clean"), "{c} holds corrupted images only: name corruptions and the view that shows them"),
        (("--corruption", "fog", "--view", "raw", "--data.root", "{c}"), "{c} holds corrupted images only: name corruptions"),
        (("--corruption", "fog", "--view", "nowhere"), "view 'nowhere' is neither `raw` nor an existing folder"),
        (
            ("--corruption", "fog", "--data.classes", "{c}/two.txt"),
            "fog/3 has class folders that are not in the class list (2 classes",
        ),
    ],
)
def test_what_a_tree_does_not_have_is_named(tmp_path: Path, words: tuple[str, ...], message: str) -> None:
    root = tmp_path / "c"
    write_tree(root, "fog/3", "fog/5", per_class=1, side=32)
    known_classes(root)
    (root / "two.txt").write_text("\n".join(WNIDS[:2]))
    given = [word.format(c=root) for word in words]
    start = ("-r", network(tmp_path), "--dataset", "Imagenet", "--data.image_size", 32, "--severity", 5, "--view", root)
    done = run_script("test.py", *start, *given, "--out", tmp_path / "out")
    assert done.status == 2 and message.format(c=root) in done.err


@pytest.mark.parametrize(
    ("labels", "words", "message"),
    [
        (LABELS * 5, ("--corruption", "snow"), "snow.npy does not exist; CIFAR-10-C is record 2535967"),
        (LABELS * 5, ("--corruption", "fog,clean"), "{c} holds corrupted images only: name corruptions and the view"),
        (LABELS * 5, ("--corruption", "jpeg"), "unknown corruption 'jpeg' in the released arrays"),
        (LABELS, ("--corruption", "fog"), "labels.npy: expected [20] labels as fog.npy has images, found (4,)"),
        ([99] * 20, ("--corruption", "fog"), "labels.npy has the labels of CIFAR100, not of CIFAR10: --dataset CIFAR100"),
    ],
)
def test_what_arrays_do_not_have_is_named(tmp_path: Path, labels: list[int], words: tuple[str, ...], message: str) -> None:
    root = tmp_path / "c"
    write_arrays(root, "fog")
    np.save(root / "labels.npy", np.array(labels))
    path = network(tmp_path, CIFAR["CIFAR10"].classes)
    done = run_script("test.py", "-r", path, "--dataset", "CIFAR10", "--view", root, *words, "--out", tmp_path / "out")
    assert done.status == 2 and message.format(c=root) in done.err


def test_arrays_with_more_classes_than_the_clean_set_are_refused(tmp_path: Path) -> None:
    write_arrays(tmp_path / "c", "fog")
    source = open_source("CIFAR10", "test", tmp_path / "c")
    np.save(tmp_path / "c/labels.npy", np.array([99] * 20))
    with pytest.raises(ValueError, match=r"labels\.npy: labels go up to 99, the data set has 10 classes"):
        ReleasedArrays(tmp_path / "c", source).source(Cell("fog", 1))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("fog.npy", lambda data: data[:-100], "fog.npy is no whole array file"),
        ("fog.npy", lambda data: b"", "fog.npy is no whole array file"),
        ("labels.npy", lambda data: data[:40], "labels.npy is no whole array file"),
        ("labels.npy", lambda data: b"no array", "labels.npy is no whole array file"),
        ("labels.npy", lambda data: saved(np.array([{}] * 20)), "labels.npy is no whole array file"),
        ("labels.npy", lambda data: saved(np.full(20, 0.5)), "labels.npy: expected a line of class numbers from 0, found float64"),
        ("labels.npy", lambda data: saved(np.full(20, -1)), "labels.npy: expected a line of class numbers from 0, found int64"),
        ("labels.npy", lambda data: saved(np.array(3)), "labels.npy: expected a line of class numbers from 0, found int64 ()"),
        ("fog.npy", lambda data: saved(np.array(3)), "fog.npy: expected uint8 [5 x N, 32, 32, 3], found int64 ()"),
    ],
)
def test_damaged_arrays_are_named(tmp_path: Path, name: str, content: Callable[[bytes], bytes], message: str) -> None:
    np.save(tmp_path / "fog.npy", np.zeros((20, 32, 32, 3), np.uint8))
    np.save(tmp_path / "labels.npy", np.zeros(20, np.int64))
    (tmp_path / name).write_bytes(content((tmp_path / name).read_bytes()))
    with pytest.raises(ValueError, match=re.escape(f"{tmp_path}/{message}")):
        array_cell(tmp_path, "fog", 1, [str(number) for number in range(10)])


def saved(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()
