"""Degraded at the size of the file, before a part of it is cut: DiffAUD's order for ImageNet."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from tests.photo_like import photo_like, to_array
from tests.test_batches import SOURCE
from undegrade.trainers.config import TrainConfig
from undegrade.utils.config import build, read_yaml
from undegrade.utils.data.augmentation import AugmentConfig, random_window
from undegrade.utils.data.batches import BatchSet
from undegrade.utils.data.perturbations.perturbation import PerturbationOptions
from undegrade.utils.data.perturbations.registry import find_perturbation
from undegrade.utils.data.sources.image_source import ImageSource
from undegrade.utils.data.sources.images import Resize, center_crop, read_image
from undegrade.utils.data.sources.registry import open_source
from undegrade.utils.random_fields import RandomFields
from undegrade.utils.seeding import numpy_generator

SIDE, SHOWN = 24, Resize(28)
KINDS = ["noise", "jpeg", "fog"]


@pytest.fixture
def source(tmp_path: Path) -> ImageSource:
    """Twelve photographs of several sizes, shown as the 24 px centre of a shorter side of 28."""
    for place, picture in enumerate(photo_like(12, 60)):
        file = tmp_path / "photos/train" / ("cat", "dog")[place % 2] / f"{place:02d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(to_array(picture)[: 40 + place, : 60 - 2 * place]).save(file)
    return open_source(str(tmp_path / "photos"), "train", image_size=SIDE, resize=SHOWN.side)


def by_hand(source: ImageSource, row: int, name: str, stream: str, flip: bool) -> Tensor:
    """uint8 [3, H, W]: the whole file, turned and degraded."""
    assert source.files is not None
    image = torch.from_numpy(read_image(source.files[row], None).copy())[None]
    image = image.flip(-1) if flip else image
    kind = find_perturbation(name)
    return kind.apply(image, kind.draw([stream], 5), [stream], 5, PerturbationOptions())[0]


def test_a_window_of_the_whole_degraded_file_is_what_is_trained_on(source: ImageSource) -> None:
    augment = AugmentConfig(flip=True, resized_crop=0.1)
    batch = BatchSet(source, KINDS, 4, 5, augment, degrade_at="native")[1, 0]
    assert batch["clean"].shape == batch["degraded"].shape == (12, 3, SIDE, SIDE)
    turned = 0
    for place, key in enumerate(batch["key"]):
        name, stream, row = KINDS[batch["deg"][place]], f"{key}@1", source.keys.index(key)
        flip = bool(RandomFields(5, "flip", keys=[stream]).integers([0], [1])[0, 0])
        turned += flip
        whole = by_hand(source, row, name, stream, flip)
        rng = numpy_generator(5, "crop", stream)
        top, left, height, width = random_window(rng, whole.shape[1], 0.1, whole.shape[2])
        for image, found in ((whole, batch["degraded"]), (by_hand(source, row, "clean", stream, flip), batch["clean"])):
            window = image[None, :, top : top + height, left : left + width] / 255
            expected = F.interpolate(window, (SIDE, SIDE), mode="bilinear", antialias=True).clamp(0, 1)[0]
            torch.testing.assert_close(found[place], expected)
        assert batch["level"][place] == find_perturbation(name).unit(find_perturbation(name).draw([stream], 5))
    assert 0 < turned < 12
    centre = BatchSet(source, KINDS, 4, 5, augment)[1, 0]
    assert centre["key"] == batch["key"] and torch.equal(centre["level"], batch["level"])
    assert not torch.equal(centre["degraded"], batch["degraded"])


def test_in_validation_the_centre_is_cut_from_the_degraded_file(source: ImageSource) -> None:
    batch = BatchSet(source, ["noise"], len(source), 5, degrade_at="native")[0, 0]
    assert torch.equal(batch["clean"], BatchSet(source, ["noise"], len(source), 5)[0, 0]["clean"])
    for place, key in enumerate(batch["key"]):
        whole = by_hand(source, place, "noise", key, flip=False)
        expected = center_crop(Image.fromarray(to_array(whole)), SIDE, SHOWN)
        assert np.array_equal((batch["degraded"][place] * 255).round().permute(1, 2, 0).byte().numpy(), np.asarray(expected))


def test_crop_padding_follows_the_cut(source: ImageSource) -> None:
    plain, padded = (
        BatchSet(source, ["jpeg"], 4, 5, AugmentConfig(crop_padding=pixels), degrade_at="native")[0, 0] for pixels in (0, 3)
    )
    assert padded["degraded"].shape == plain["degraded"].shape and not torch.equal(padded["degraded"], plain["degraded"])


def test_what_has_no_files_is_refused(source: ImageSource) -> None:
    with pytest.raises(ValueError, match=r"^data\.degrade_at native is about files of any size, Toy/train has none: leave it out$"):
        BatchSet(SOURCE, ["noise"], 2, 0, degrade_at="native")
    with pytest.raises(ValueError, match="adapted images are made already"):
        BatchSet(source, ["noise"], 2, 0, adapted={"noise": source}, degrade_at="native")
    with pytest.raises(ValueError, match=r"unknown data\.degrade_at 'natve': did you mean 'native'"):
        BatchSet(source, ["noise"], 2, 0, degrade_at="natve")


def test_a_window_of_a_long_image_that_does_not_fit_is_its_middle() -> None:
    assert random_window(np.random.default_rng(0), 10, 1.0, 100) == (0, 43, 10, 13)
    assert random_window(np.random.default_rng(0), 100, 1.0, 10) == (43, 0, 13, 10)


RECIPES = ("ind/{}/deg", "deg_all/{}/degDistill", "deg_all/{}/deg_all", "ind/{}/adapt", "deg_all/{}/adaptDistill")


@pytest.mark.parametrize("path", RECIPES)
def test_diffauds_configurations_of_imagenet_have_the_published_order(path: str) -> None:
    for dataset, net in (("Imagenet", "ResNet50"), ("Imagenet", "swinT"), ("CIFAR10", "ResNet18")):
        config = build(TrainConfig, read_yaml(f"configs/{path.format(f'{dataset}/{net}')}.yaml"))
        assert config.data.degrade_at == ("native" if dataset == "Imagenet" and "adapt" not in path else "crop")
