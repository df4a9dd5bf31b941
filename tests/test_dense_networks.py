"""Networks for masks and points, and how they are judged."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torchmetrics.classification import MulticlassJaccardIndex

from undegrade.models.classification.classifier import build_classifier, describe
from undegrade.models.dense.backbone import build_backbone, initialise_backbone
from undegrade.models.dense.landmarks import LandmarkNetwork, decode, encode
from undegrade.models.dense.loading import load_dense
from undegrade.models.dense.scores import check_mask, overlaps, point_errors
from undegrade.models.dense.segmentation import BiSeNet
from undegrade.utils.checkpoint import save_checkpoint
from undegrade.utils.data.targets import IGNORED

HALF = (0.5, 0.5, 0.5)
CLASSES = ("background", "a", "b")


def segmenter(arch: str = "ResNet20", width: int = 8, stride: int = 2) -> BiSeNet:
    return BiSeNet(build_backbone(arch), arch, CLASSES, HALF, HALF, width, stride)


def landmarks(arch: str = "ResNet20", **sizes: object) -> LandmarkNetwork:
    given = {"deconvolutions": 1, "width": 8, **sizes}
    return LandmarkNetwork(build_backbone(arch), arch, ("a", "b", "c"), HALF, HALF, **given)  # type: ignore[arg-type]


# --- networks


@pytest.mark.parametrize(("arch", "channels", "strides"), [
    ("ResNet20", [16, 32, 64], [1, 2, 4]),
    ("ResNet18_CIFAR", [64, 128, 256, 512], [1, 2, 4, 8]),
    ("resnet18", [64, 128, 256, 512], [4, 8, 16, 32]),
    ("hrnet_w18", [18, 36, 72, 144], [4, 8, 16, 32]),
])  # fmt: skip
def test_backbones_have_maps_of_several_scales(arch: str, channels: list[int], strides: list[int]) -> None:
    backbone = build_backbone(arch)
    assert (backbone.channels, backbone.strides) == (channels, strides)


@pytest.mark.parametrize(("arch", "stride", "side"), [("ResNet20", 2, 12), ("resnet18", 8, 64)])
def test_bisenet_gives_logits_of_each_pixel_and_in_training_those_of_two_more_heads(arch: str, stride: int, side: int) -> None:
    network, images = segmenter(arch, stride=stride), torch.rand(2, 3, side, side)
    outputs = network.train()(images)
    assert [tuple(out.shape) for out in outputs] == [(2, 3, side, side)] * 3
    assert network.eval()(images).shape == (2, 3, side, side)
    sum(out.square().mean() for out in outputs).backward()
    assert all(p.grad is not None for p in network.parameters())


def test_bisenet_of_resnet18_is_as_wide_as_published() -> None:
    network = segmenter("resnet18", 128, 8)
    assert [module.out_channels for module in network.spatial.modules() if isinstance(module, torch.nn.Conv2d)] == [64, 64, 64, 128]
    assert network.head.layers[0][0].in_channels == 256 and network.auxiliary[0].layers[0][0].out_channels == 64  # type: ignore


def test_a_lone_training_image_is_taken() -> None:
    assert torch.isfinite(segmenter().train()(torch.rand(1, 3, 12, 12))[0]).all()


@pytest.mark.parametrize(("arch", "deconvolutions", "side"), [("ResNet20", 1, 8), ("resnet18", 3, 16), ("hrnet_w18", 0, 16)])
def test_heatmaps_have_the_side_that_the_head_gives_them(arch: str, deconvolutions: int, side: int) -> None:
    image = 16 if arch == "ResNet20" else 64
    assert landmarks(arch, deconvolutions=deconvolutions).train()(torch.rand(2, 3, image, image)).shape == (2, 3, side, side)


def test_flip_test_is_the_mean_with_the_mirror_image() -> None:
    network, images = landmarks(swap=[[0, 1]]).eval(), torch.rand(2, 3, 16, 16)
    with torch.no_grad():
        both, mirrored = network(images), network(images.flip(-1))
        assert torch.allclose(both, mirrored.flip(-1)[:, [1, 0, 2]], atol=1e-6)
        network.flip_test = False
        assert not torch.allclose(network(images), both)


@pytest.mark.parametrize("network", [segmenter(), landmarks(swap=[[0, 1]], flip_test=False)], ids=["masks", "points"])
def test_a_network_comes_back_from_its_checkpoint(network: BiSeNet | LandmarkNetwork, tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "x.safetensors", network.state_dict(), network.describe())
    again, description = load_dense(tmp_path / "x.safetensors")
    images = torch.rand(1, 3, 16, 16)
    assert torch.equal(again(images), network.eval()(images)) and again.describe() == network.describe()
    assert description["mean"] == [0.5] * 3


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: build_backbone("resnet19"), "unknown arch 'resnet19': did you mean resnet"),
        (lambda: build_backbone("ResNet20", pretrained=True), "there are no pretrained weights for ResNet20"),
        (lambda: build_backbone("MobileNetV2_CIFAR"), "cannot be a backbone"),
        (lambda: segmenter(stride=4), "stride 4: with ResNet20 it can be 2 (model.stride)"),
        (lambda: segmenter(width=5), "width 5: must be even"),
        (lambda: landmarks(deconvolutions=-1), "3 points, -1 deconvolutions, width 8"),
    ],
)
def test_what_cannot_be_built_is_reported(build: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        build()


# --- starting from a classifier


@pytest.mark.parametrize("arch", ["ResNet20", "ResNet18_CIFAR"])
def test_a_backbone_starts_from_a_classifier_without_its_head(arch: str, tmp_path: Path) -> None:
    classifier = build_classifier(arch, 7, HALF, (0.2, 0.2, 0.2))
    save_checkpoint(tmp_path / "c.safetensors", classifier.network.state_dict(), describe(classifier))
    backbone = build_backbone(arch)
    assert initialise_backbone(backbone, arch, tmp_path / "c.safetensors") == {"mean": [0.5] * 3, "std": [0.2] * 3}
    images = torch.rand(1, 3, 16, 16)
    last = classifier.eval().features(images)[f"stage{3 if arch == 'ResNet20' else 5}"]
    assert torch.allclose(backbone.eval()(classifier.normalise(images))[-1], last, atol=1e-6)


def test_other_weights_than_those_of_the_backbone_are_reported(tmp_path: Path) -> None:
    state = build_classifier("ResNet20", 7, HALF, HALF).network.state_dict()
    path = tmp_path / "c.safetensors"
    for changed, description, message in (
        (state, {"kind": "classifier", "arch": "ResNet56"}, "holds a ResNet56, model.arch is ResNet20"),
        ({**state, "conv1.weight": torch.zeros(16, 3, 5, 5)}, {}, "conv1.weight is [16, 3, 5, 5], not [16, 3, 3, 3]"),
        ({name: t for name, t in state.items() if name != "bn1.bias"}, {}, "lacks bn1.bias"),
        ({**state, "more.weight": torch.zeros(1)}, {}, "has beside them more.weight"),
    ):
        save_checkpoint(path, changed, description)
        with pytest.raises(ValueError, match=re.escape(message)):
            initialise_backbone(build_backbone("ResNet20"), "ResNet20", path)


# --- masks


def test_mean_intersection_over_union_is_that_of_torchmetrics() -> None:
    rng = torch.Generator().manual_seed(0)
    target = torch.randint(0, 4, (5, 9, 9), generator=rng)  # class 4 is nowhere in truth, class 5 nowhere at all
    predicted = torch.where(torch.rand(5, 9, 9, generator=rng) < 0.6, target, torch.randint(0, 5, (5, 9, 9), generator=rng))
    target[:, 0] = IGNORED
    both, either = (values.sum(0) for values in overlaps(predicted, target, 6))
    there = either > 0
    metric = MulticlassJaccardIndex(6, average="macro", ignore_index=IGNORED)
    assert torch.isclose((both[there] / either[there]).mean(), metric(predicted, target))
    assert there.tolist() == [True] * 5 + [False]


def test_a_value_that_is_no_class_is_reported() -> None:
    mask = torch.zeros(2, 4, 4, dtype=torch.int64)
    mask[0, 0, 0] = IGNORED
    check_mask(mask, CLASSES, ["a", "b"])
    mask[1, 2, 2] = 3
    with pytest.raises(ValueError, match=re.escape("the mask of b has the value 3, allowed: 0 to 2 (background, ..., b)")):
        check_mask(mask, CLASSES, ["a", "b"])


# --- points


def test_points_come_back_from_their_heatmaps() -> None:
    points = torch.tensor([[[5.0, 40.0], [31.5, 31.5], [50.0, 9.0], [float("nan"), 1.0], [70.0, 3.0]]])
    maps, seen = encode(points, 64, 16)
    assert seen.tolist() == [[True, True, True, False, False]] and maps[0, 3:].abs().sum() == 0
    assert maps[0, :3].amax((1, 2)).min() > 0.9
    assert (decode(maps, 64)[0, :3] - points[0, :3]).abs().max() <= 64 / 16 / 4 + 1e-4  # a quarter of a pixel of the heatmap


def test_the_gaussian_has_a_deviation_of_two_pixels_of_the_heatmap() -> None:
    maps, _ = encode(torch.tensor([[[10.0, 10.0]]]), 21, 21)
    assert torch.allclose(maps[0, 0, 10, 12], torch.tensor(-0.5).exp()) and maps[0, 0, 10, 10] == 1


def test_the_error_of_the_truth_is_0_and_of_a_shift_by_the_unit_1() -> None:
    points = torch.tensor([[[10.0, 10.0], [20.0, 10.0], [15.0, 25.0]]])
    assert point_errors(points, points, 32, (0, 1))[0].item() == 0
    assert point_errors(points + torch.tensor([0.0, 10.0]), points, 32, (0, 1))[0].item() == pytest.approx(1)
    assert point_errors(points + 32, points, 32, None)[0].item() == pytest.approx(1)  # the diagonal
    hidden = points.clone()
    hidden[0, 2] = float("nan")
    assert point_errors(points, hidden, 32, (0, 1)) == (torch.zeros(1), torch.ones(1, dtype=torch.bool))
    assert not point_errors(points, torch.full_like(points, float("nan")), 32, (0, 1))[1].any()
