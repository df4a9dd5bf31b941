"""ImageNet-R, ImageNet-A, ImageNet-V2 and ImageNet-Sketch: layouts, labels, and networks of 1,000
classes that choose among 200.
"""

from __future__ import annotations

import json
import logging
import pickle
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from tests.checkpoints import save_random
from tests.scripts import run_script
from undegrade.models.classification import loading
from undegrade.models.classification.classifier import Classifier, describe
from undegrade.models.classification.loading import load_classifier
from undegrade.models.classification.weights import from_description
from undegrade.utils.data.sources.imagenet import read_classes
from undegrade.utils.data.sources.registry import TEST_ONLY, open_source

WNIDS = read_classes("imagenet-1k")
CHOSEN = [3, 5, 17, *range(100, 989, 5), *range(990, 1000)]  # 191 numbers, in no simple order of folders
FOLDERS = {"ImagenetR": "imagenet-r", "ImagenetA": "imagenet-a", "ImagenetSketch": "sketch",
           "ImagenetV2": "imagenetv2-matched-frequency-format-val"}  # fmt: skip


def write(folder: Path, *numbers: int, name: str = "a_0.jpg") -> None:
    """An image whose red and green are its numbers in the base of 4, one a number."""
    folder.mkdir(parents=True, exist_ok=True)
    for place, number in enumerate(numbers):
        image = Image.new("RGB", (8, 8), (number // 4, number % 4, 9))
        image.save(folder / name.replace("0", str(place)), format="PNG")


def numbers_of(images: Tensor) -> list[int]:
    return (images[:, 0, 0, 0].int() * 4 + images[:, 1, 0, 0]).tolist()


def write_set(root: Path, dataset: str, numbers: list[int]) -> Path:
    """One image of each of the classes."""
    for number in numbers:
        write(root / FOLDERS[dataset] / (str(number) if dataset == "ImagenetV2" else WNIDS[number]), number)
    return root


# --- layouts and labels


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("dataset", FOLDERS)
def test_the_folders_say_the_class_of_an_image(dataset: str, whole: bool, tmp_path: Path) -> None:
    numbers = [7, 12, 100, 999, 20]
    write_set(tmp_path, dataset, numbers)
    (tmp_path / FOLDERS[dataset] / "README.txt").write_text("of the archive")
    root = tmp_path / FOLDERS[dataset] if whole else tmp_path
    source = open_source(dataset, "test", root, image_size=8)
    assert [source.classes[label] for label in source.labels] == [WNIDS[number] for number in sorted(numbers)]
    assert numbers_of(source.images(range(5))) == sorted(numbers)
    assert source.keys == [f"{WNIDS[number]}/a_0" for number in sorted(numbers)]
    assert (source.name, source.rgb_mean) == (f"{dataset}/test", (0.485, 0.456, 0.406))
    assert torch.equal(pickle.loads(pickle.dumps(source)).images([1]), source.images([1]))


@pytest.mark.parametrize("dataset", ["ImagenetV2", "ImagenetSketch"])
def test_labels_are_numbers_of_all_thousand(dataset: str, tmp_path: Path) -> None:
    source = open_source(dataset, "test", write_set(tmp_path, dataset, [2, 10, 999]), image_size=8)
    assert source.labels.tolist() == [2, 10, 999]  # as text 10 would be before 2
    assert source.classes == WNIDS and source.among is None


@pytest.mark.parametrize("dataset", ["ImagenetR", "ImagenetA"])
def test_classes_are_those_that_are_there_among_the_thousand(
    dataset: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        source = open_source(dataset, "test", write_set(tmp_path, dataset, [999, 4, 100]), image_size=8)
    assert source.classes == (WNIDS[4], WNIDS[100], WNIDS[999]) and source.among == WNIDS
    assert source.labels.tolist() == [0, 1, 2]
    assert "has 3 classes, 200 are published: networks choose among those that are there" in caplog.text
    assert len(source.limited(1).classes) == 3  # a subset of the images is no easier choice


def test_all_two_hundred_classes_are_taken_without_a_word(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        source = open_source("ImagenetR", "test", write_set(tmp_path, "ImagenetR", list(range(0, 1000, 5))), image_size=8)
    assert len(source.classes) == 200 and caplog.text == ""


def test_photographs_are_cut_as_those_of_imagenet(tmp_path: Path) -> None:
    source = open_source("ImagenetSketch", "test", write_set(tmp_path, "ImagenetSketch", [0]))
    assert source.frame == "224 of 256, bilinear" and source.images([0]).shape == (1, 3, 224, 224)


def test_a_list_numbers_the_classes_in_the_order_of_another_network(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("\n".join(reversed(WNIDS)))
    for dataset in FOLDERS:
        write_set(tmp_path, dataset, [2, 999])
        source = open_source(dataset, "test", tmp_path, image_size=8, classes=str(tmp_path / "list.txt"))
        assert {source.classes[label]: n for label, n in zip(source.labels, numbers_of(source.images([0, 1])), strict=True)} == {
            WNIDS[2]: 2, WNIDS[999]: 999
        }  # fmt: skip
        assert source.classes[:2] == ((WNIDS[999], WNIDS[2]) if source.among else (WNIDS[999], WNIDS[998]))


# --- mistakes


@pytest.mark.parametrize("dataset", TEST_ONLY)
@pytest.mark.parametrize("split", ["train", "validation", "trainval"])
def test_there_is_nothing_to_train_on(dataset: str, split: str, tmp_path: Path) -> None:
    message = rf"{dataset} has a test part only, there is no {split} part: train and tune on (Imagenet|CIFAR10), and ask for data"
    with pytest.raises(ValueError, match=message):
        open_source(dataset, split, tmp_path)


@pytest.mark.parametrize("dataset", FOLDERS)
def test_folders_that_are_not_there_are_reported(dataset: str, tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    message = rf"{dataset}: no class folders under .*; expected {FOLDERS[dataset]}/<.*found: .* holds train/; get https://.*unpack"
    with pytest.raises(FileNotFoundError, match=message):
        open_source(dataset, "test", tmp_path)


@pytest.mark.parametrize(("dataset", "folder"), [("ImagenetR", "n00000001"), ("ImagenetSketch", "cats"), ("ImagenetV2", "1000")])
def test_a_folder_that_is_no_class_is_reported(dataset: str, folder: str, tmp_path: Path) -> None:
    write_set(tmp_path, dataset, [1, 2])
    write(tmp_path / FOLDERS[dataset] / folder, 3)
    with pytest.raises(ValueError, match=rf"has class folders that are not in the class list \(1000 classes.*: {folder}; name all"):
        open_source(dataset, "test", tmp_path)


# --- networks of 1,000 classes


class OfColours(nn.Module):
    """1,000 logits: highest at class 4, which is none of `CHOSEN`, then at the number that the
    colour says and the nearer to it the higher.
    """

    def __init__(self) -> None:
        super().__init__()
        self.place = nn.Parameter(torch.tensor(4.0))

    def forward(self, x: Tensor) -> Tensor:
        levels = (x[:, :2, 4, 4] * 255).round()
        logits = -(torch.arange(1000.0) - levels[:, :1] * 4 - levels[:, 1:]).abs()
        return logits + 5000 * (torch.arange(1000) == self.place)


def fake(meta: dict[str, Any], state: dict[str, Tensor]) -> Classifier:
    return Classifier(OfColours(), "ResNet20", meta["num_classes"], (0,) * 3, (1,) * 3) if meta["num_classes"] == 1000 else \
        from_description(meta, state)  # fmt: skip


def write_chosen(root: Path) -> tuple[Path, float]:
    """Images of `CHOSEN`: of each class one in its own colour and one in that of the class before,
    some of which say a class that is not there; and the share that is right.
    """
    assert 4 not in CHOSEN and sorted(CHOSEN) == CHOSEN
    colours = {number: (number, before) for number, before in zip(CHOSEN, [0, *CHOSEN], strict=False)}
    for number, pair in colours.items():
        write(root / "imagenet-r" / WNIDS[number], *pair, name="a_0.jpg")
    nearest = [(n, min(CHOSEN, key=lambda c, colour=colour: (abs(c - colour), c))) for n, p in colours.items() for colour in p]
    return root, sum(n == found for n, found in nearest) / len(nearest)


def test_a_network_of_all_classes_chooses_among_those_of_the_images(tmp_path: Path) -> None:
    root, expected = write_chosen(tmp_path / "data")
    path = save_random(tmp_path / "one.safetensors", classes=WNIDS)
    with mock.patch.object(loading, "from_description", fake):
        done = run_script(
            "test.py", "-r", path, "--dataset", "ImagenetR", "--data.root", root, "--data.image_size", 8, "--corruption", "clean",
            "--out", tmp_path / "out",
        ).check()  # fmt: skip
    assert f"of its 1000 classes it chooses among the {len(CHOSEN)} of the images" in done.err
    row = json.loads((tmp_path / "out/results.json").read_text())["rows"][0]
    assert (row["accuracy"], row["n"]) == (pytest.approx(expected), 2 * len(CHOSEN)) and 0.5 <= expected < 0.6


def test_no_other_class_can_be_predicted_and_the_description_stays(tmp_path: Path) -> None:
    source = open_source("ImagenetR", "test", write_chosen(tmp_path)[0], image_size=8)
    path = save_random(tmp_path / "one.safetensors", classes=WNIDS)
    images = source.images(range(len(source))) / 255
    with mock.patch.object(loading, "from_description", fake):
        alone = load_classifier(path, classes=WNIDS)
        network = load_classifier(path, classes=source.classes, among=source.among)
    assert (alone(images).argmax(1) == 4).all() and network.num_classes == len(CHOSEN)
    assert torch.equal(network(images), alone(images)[:, CHOSEN])
    assert describe(network)["num_classes"] == 1000 and "outputs" not in network.state_dict()
    first = [row for row, key in enumerate(source.keys) if key.endswith("a_0")]
    assert torch.equal(network(images[first]).argmax(1), source.labels[first])


@pytest.mark.parametrize("described", [True, False])
def test_weights_of_all_classes_answer_with_the_chosen_ones(described: bool, tmp_path: Path) -> None:
    path = save_random(tmp_path / "one.safetensors", classes=WNIDS)
    whole = load_classifier(path, classes=WNIDS)
    options: dict[str, Any] = {}
    if not described:
        path = tmp_path / "theirs.pth"
        torch.save(whole.network.state_dict(), path)
        options = {"arch": "ResNet20", "mean": whole.normalisation["mean"], "std": whole.normalisation["std"]}
    chosen = [WNIDS[number] for number in CHOSEN]
    network, images = load_classifier(path, classes=chosen, among=WNIDS, **options), torch.rand(2, 3, 32, 32)
    assert torch.equal(network(images), whole(images)[:, CHOSEN])
    logits, features = network.forward_features(images, ["pooled"])
    assert logits.shape == (2, len(CHOSEN)) and torch.equal(features["pooled"], whole.features(images, ["pooled"])["pooled"])


def test_a_network_of_the_chosen_classes_alone_is_taken_as_it_is_and_of_others_refused(tmp_path: Path) -> None:
    chosen = tuple(WNIDS[number] for number in CHOSEN)
    path = save_random(tmp_path / "own.safetensors", classes=chosen)
    network = load_classifier(path, classes=chosen, among=WNIDS)
    assert network.outputs is None and network.num_classes == len(CHOSEN)
    for others in (WNIDS[:10], tuple(reversed(WNIDS))):
        path = save_random(tmp_path / "other.safetensors", classes=others)
        with pytest.raises(ValueError, match=rf"was trained on {len(others)} classes, the data set has 1000 \(class \d+ is "):
            load_classifier(path, classes=chosen, among=WNIDS)
