"""Fine-tuning on numbered folders as SDA's published program does, and what is said of folders that
do not fit the classifier.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.adapting import save_images
from tests.checkpoints import save_random
from tests.scripts import Done, run_script
from tests.test_class_map import NUMBERED
from undegrade.utils.checkpoint import load_checkpoint

CLASSES = ("n01", "n02", "n03", "n04", "n05")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """With the list of classes."""
    (tmp_path / "names.txt").write_text("\n".join(CLASSES))
    return tmp_path


def fine_tuned(root: Path, data: Path, *more: object, classes: tuple[str, ...] = CLASSES) -> Done:
    """finetune.sh: an epoch of a tiny network."""
    parent = save_random(root / "parent.safetensors", classes=classes)
    words = ("-c", "configs/sda/Imagenet/ResNet50.yaml", "--data.dataset", data, "--save_dir", root / "runs", "--run_id", "a")
    tiny = ("--model.arch", "ResNet20", "--model.pretrained", "false", "--model.init_from", parent, "--data.workers", 0)
    short = ("--loop.epochs", 1, "--bs", 8, "--data.image_size", 8, "--data.resize", "null", "--data.interpolation", "null")
    return run_script("train.py", *words, *tiny, *short, *more)


def synthetic(root: Path, count: int = 10, numbers: Sequence[int] = range(5)) -> Path:
    """`count` images of each number in `data/DiT-Syn`, without class map."""
    save_images(root / "data/DiT-Syn", [f"{c:04d}/{5 * j + c:06d}.png" for c in numbers for j in range(count)], 8)
    return root / "data/DiT-Syn"


MAP = "".join(f"{number:04d} {name}\n" for number, name in enumerate(CLASSES))


@pytest.mark.parametrize("by", ["map", "list"])
def test_finetune_takes_numbered_folders_by_class_map_or_by_the_order_of_a_list(root: Path, by: str) -> None:
    """Without map as the published program, whose labels are places in the sorted list of
    ImageNet's classes.
    """
    data = synthetic(root)
    if by == "map":
        (data / "classes.txt").write_text(MAP)
    done = fine_tuned(root, data, "--data.classes", "null" if by == "map" else root / "names.txt").check()
    assert "45 training and 5 validation images" in done.err and "fewer than" not in done.err
    (best,) = (root / "runs").rglob("best.safetensors")
    assert load_checkpoint(best)[1]["classes"] == list(CLASSES)


def test_classes_that_lack_images_are_named(root: Path) -> None:
    data = synthetic(root, numbers=(0, 1, 3, 4))
    (data / "classes.txt").write_text(MAP)
    (data / "0004/000004.png").unlink()
    done = fine_tuned(root, data, "--data.classes", "null").check()
    message = "2 of 5 classes have fewer than 10 images: n03: 0, n05: 9; the command that generated them makes what is missing"
    assert done.err.count(message) == 1


@pytest.mark.parametrize(
    ("lines", "given", "message"),
    [
        (None, "null", f"5 classes, the data set has 5 (class 0 is 'n01' there, '0000' here){NUMBERED}"),
        (MAP.replace("n01", "n09"), "null", "(class 0 is 'n01' there, 'n09' here): choose a checkpoint of this data set"),
        (MAP.replace("0004 n05\n", ""), "null", "class folders ['0004'] that are not among the classes of classes.txt"),
        (MAP + "0005 n06\n", "null", "5 classes, the data set has 6 (class 5 is none there, 'n06' here)"),
        (MAP, "imagenet-1k", "class folders ['0000', '0001', '0002', '0003', '0004'] that are not among the classes"),
        (None, "imagenet-1k", "5 classes, the data set has 1000 (class 0 is 'n01' there, 'n01440764' here)"),
    ],
)
def test_other_classes_than_the_classifiers_are_named(root: Path, lines: str | None, given: str, message: str) -> None:
    data = synthetic(root, 2)
    if lines is not None:
        (data / "classes.txt").write_text(lines)
    done = fine_tuned(root, data, "--data.classes", given)
    assert done.status == 2 and message in done.err and not [*root.rglob("best.safetensors")]
