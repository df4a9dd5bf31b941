"""Which class is which number: folders called by numbers, and networks that do not name their
classes.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.scripts import run_script
from tests.test_folders import write_images
from undegrade.models.classification.classifier import build_classifier
from undegrade.utils.data.sources.folders import folder_source
from undegrade.utils.data.sources.registry import open_source


@pytest.mark.parametrize("width", [1, 3])
def test_folders_called_by_numbers_are_in_the_order_of_these(tmp_path: Path, width: int) -> None:
    write_images(tmp_path, [f"{number:0{width}d}" for number in range(12)], 1)
    assert [int(name) for name in folder_source(tmp_path, None, "pets").classes] == list(range(12))


def test_names_with_letters_are_in_the_order_of_text(tmp_path: Path) -> None:
    write_images(tmp_path, ["10", "9", "x"], 1)
    assert folder_source(tmp_path, None, "pets").classes == ("10", "9", "x")


@pytest.mark.parametrize(
    ("names", "order"),
    [
        (["0", "1", "2"], "by the numbers of their folders"),
        (["00", "01", "02"], "by the numbers of their folders"),
        (["1", "2", "3"], None),  # from 0 or from 1?
        (["cat", "dog"], None),
        (["n01440764", "n01443537"], "by WordNet ids, sorted"),
    ],
)
def test_names_say_how_they_are_numbered_or_do_not(tmp_path: Path, names: list[str], order: str | None) -> None:
    write_images(tmp_path / "photos", names, 10)
    assert open_source(str(tmp_path / "photos"), "test").class_order == order
    (tmp_path / "list.txt").write_text("\n".join(reversed(names)))
    told = open_source(str(tmp_path / "photos"), "test", classes=str(tmp_path / "list.txt"))
    assert told.class_order == f"by data.classes {tmp_path}/list.txt" and told.classes == tuple(reversed(names))


def test_a_network_made_elsewhere_is_told_or_finds_the_order_of_its_classes(tmp_path: Path) -> None:
    for folder, names in (("named", ["cat", "dog", "emu"]), ("numbered", ["0", "1", "2"])):
        write_images(tmp_path / folder / "train", names, 2)
        write_images(tmp_path / folder / "test", names, 2)
    torch.save(build_classifier("test_efficientnet", 3, (0.5,) * 3, (0.25,) * 3).network.state_dict(), tmp_path / "theirs.pth")
    (tmp_path / "list.txt").write_text("emu\ncat\ndog\n")
    words = ("-r", tmp_path / "theirs.pth", "--arch", "test_efficientnet", "--out", tmp_path / "out")
    done = run_script("test.py", *words, "--dataset", tmp_path / "named")
    assert done.status == 2 and "the names cat, dog, emu, ... do not, either: list the classes in the network's order" in done.err
    done = run_script("test.py", *words, "--dataset", tmp_path / "named", "--data.classes", tmp_path / "list.txt").check()
    assert f"its 3 classes are numbered by data.classes {tmp_path}/list.txt" in done.err
    done = run_script("test.py", *words, "--dataset", tmp_path / "numbered", "--out", tmp_path / "other").check()
    assert "its 3 classes are numbered by the numbers of their folders" in done.err
