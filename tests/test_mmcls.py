"""Checkpoints of mm-classification: names, order of channels, normalisation, and the way into a
classifier.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import pytest
import timm
import torch
from timm.models.convnext import ConvNeXt
from timm.models.swin_transformer import SwinTransformer
from torch import Tensor, nn

from undegrade.models.classification import mmcls
from undegrade.models.classification.classifier import Classifier, build_classifier
from undegrade.models.classification.loading import initialise_classifier, load_classifier
from undegrade.models.classification.weights import load_network_state

CLASSES = 7
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
NORM = ["weight", "bias"]
BN = ["weight", "bias", "running_mean", "running_var", "num_batches_tracked"]

# timm's names in those of mm-classification
TO_MMCLS = {
    "resnet": ((r"^fc\.", "head.fc."), (r"^(?!head)", "backbone.")),
    "swin": (
        (r"^patch_embed\.proj\.", "patch_embed.projection."),
        (r"^norm\.", "norm3."),
        (r"^layers\.(\d)\.downsample", lambda m: f"stages.{int(m[1]) - 1}.downsample"),
        (r"^layers", "stages"),
        (r"\.attn\.", ".attn.w_msa."),
        (r"\.mlp\.fc1\.", ".ffn.layers.0.0."),
        (r"\.mlp\.fc2\.", ".ffn.layers.1."),
        (r"^(?!head)", "backbone."),
    ),
    "convnext": (
        (r"^stem\.", "downsample_layers.0."),
        (r"^stages\.(\d)\.downsample\.", r"downsample_layers.\1."),
        (r"^stages\.(\d)\.blocks\.", r"stages.\1."),
        (r"conv_dw", "depthwise_conv"),
        (r"mlp\.fc", "pointwise_conv"),
        (r"^head\.norm\.", "norm3."),
        (r"^(?!head)", "backbone."),
    ),
}


def mm_state(network: nn.Module, kind: str) -> dict[str, Tensor]:
    state = {}
    for name, tensor in network.state_dict().items():
        for pattern, replacement in TO_MMCLS[kind]:
            name = re.sub(pattern, replacement, name)
        state[name] = tensor
    return state


class UnfoldMerging(nn.Module):
    """Patch merging as mm-classification computes it: torch's Unfold, LayerNorm, Linear; [B,H,W,C]
    -> [B,H/2,W/2,2C].
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * channels)
        self.reduction = nn.Linear(4 * channels, 2 * channels, bias=False)
        nn.init.normal_(self.norm.weight), nn.init.normal_(self.norm.bias), nn.init.normal_(self.reduction.weight)

    def forward(self, x: Tensor) -> Tensor:
        b, h, w, _ = x.shape
        patches = nn.Unfold(2, stride=2)(x.permute(0, 3, 1, 2)).transpose(1, 2)
        return self.reduction(self.norm(patches)).view(b, h // 2, w // 2, -1)


def small_swin() -> SwinTransformer:
    return SwinTransformer(
        img_size=64, patch_size=2, window_size=4, embed_dim=12, depths=(1, 1, 2, 1), num_heads=(1, 2, 3, 6), num_classes=CLASSES
    )


def classifier_of(network: nn.Module) -> Classifier:
    return Classifier(network, "small", CLASSES, MEAN, STD).eval()


def randomised(network: nn.Module) -> nn.Module:
    """Every parameter and statistic random, so that no two of a shape are equal."""
    for tensor in network.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand_like(tensor) + 0.1)
    return network


# --- outputs


def test_a_swin_computes_what_it_computes_with_patches_merged_in_unfold_order() -> None:
    torch.manual_seed(0)
    theirs = small_swin().eval()
    for i in (1, 2, 3):
        theirs.layers[i].downsample = UnfoldMerging(12 * 2 ** (i - 1))
    mine = classifier_of(small_swin())
    load_network_state(mine, mm_state(theirs, "swin"))
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(mine.network(images), theirs(images))
        for i in (1, 2, 3):  # without the change of order it would be another network
            mine.network.layers[i].downsample.load_state_dict(theirs.layers[i].downsample.state_dict())
        assert (mine.network(images) - theirs(images)).abs().max() > 0.1


def test_the_table_of_relative_positions_is_indexed_alike() -> None:
    """mm-classification: a token's place on a grid of 2 Ww - 1 columns, added to the mirrored
    places of all tokens.
    """
    side = 4
    places = torch.tensor([(2 * side - 1) * y + x for y in range(side) for x in range(side)])
    theirs = (places[:, None] + places[None, :]).flip(1)
    assert torch.equal(small_swin().layers[0].blocks[0].attn.relative_position_index, theirs)


@pytest.mark.parametrize("pointwise", ["linear", "convolution"])
def test_a_convnext_computes_the_same_with_either_kind_of_pointwise_layer(pointwise: str) -> None:
    torch.manual_seed(1)
    dims = {"depths": (1, 1, 2, 1), "dims": (6, 8, 10, 12), "num_classes": CLASSES}
    theirs, mine = randomised(ConvNeXt(**dims)).eval(), classifier_of(ConvNeXt(**dims))
    state = mm_state(theirs, "convnext")
    if pointwise == "convolution":
        state = {k: v[:, :, None, None] if re.search(r"pointwise_conv\d\.weight", k) else v for k, v in state.items()}
    load_network_state(mine, state)
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(mine.network(images), theirs(images))


@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_cifar_resnet_computes_the_same(prefix: str) -> None:
    torch.manual_seed(2)
    theirs, mine = (build_classifier("ResNet18_CIFAR", CLASSES, MEAN, STD).eval() for _ in range(2))
    randomised(theirs.network)
    load_network_state(mine, {prefix + name: tensor for name, tensor in mm_state(theirs.network, "resnet").items()})
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(mine(images), theirs(images))


# --- names of the published files


def bottleneck_names() -> list[str]:
    names = ["conv1.weight", *(f"bn1.{n}" for n in BN)]
    for stage, blocks in enumerate((3, 4, 6, 3), 1):
        for block in range(blocks):
            path = f"layer{stage}.{block}"
            names += [f"{path}.{part}" for c in (1, 2, 3) for part in (f"conv{c}.weight", *(f"bn{c}.{n}" for n in BN))]
            if block == 0:
                names += [f"{path}.downsample.0.weight", *(f"{path}.downsample.1.{n}" for n in BN)]
    return names


def swin_names() -> list[str]:
    names = [f"patch_embed.{part}.{n}" for part in ("projection", "norm") for n in NORM]
    for stage, blocks in enumerate((2, 2, 6, 2)):
        for block in range(blocks):
            path = f"stages.{stage}.blocks.{block}"
            names += [f"{path}.attn.w_msa.relative_position_{n}" for n in ("bias_table", "index")]
            parts = ("norm1", "attn.w_msa.qkv", "attn.w_msa.proj", "norm2", "ffn.layers.0.0", "ffn.layers.1")
            names += [f"{path}.{part}.{n}" for part in parts for n in NORM]
        if stage < 3:
            names += [f"stages.{stage}.downsample.{n}" for n in ("norm.weight", "norm.bias", "reduction.weight")]
    return names + [f"norm3.{n}" for n in NORM]


def convnext_names() -> list[str]:
    names = [f"downsample_layers.{i}.{j}.{n}" for i in range(4) for j in (0, 1) for n in NORM]
    for stage, blocks in enumerate((3, 3, 9, 3)):
        for block in range(blocks):
            path = f"stages.{stage}.{block}"
            parts = ("depthwise_conv", "norm", "pointwise_conv1", "pointwise_conv2")
            names += [f"{path}.gamma", *(f"{path}.{part}.{n}" for part in parts for n in NORM)]
    return names + [f"norm3.{n}" for n in NORM]


@pytest.mark.parametrize(
    ("arch", "names"),
    [
        ("resnet50", bottleneck_names()),
        ("swin_tiny_patch4_window7_224", swin_names()),
        ("convnext_tiny", convnext_names()),
    ],
)
def test_the_names_of_the_published_networks_become_those_of_timm(arch: str, names: list[str]) -> None:
    state = {f"backbone.{name}": torch.zeros(8, 8) for name in names} | {f"head.fc.{n}": torch.zeros(8, 8) for n in NORM}
    assert mmcls.matches(state)
    with torch.device("meta"):
        expected = set(timm.create_model(arch).state_dict())
    assert set(mmcls.convert(state)) == expected


def test_old_names_and_tables_that_can_be_computed_are_understood() -> None:
    old = {"backbone.stages.0.blocks.1.attn.w_msa.relative_position_index": torch.zeros(1), "backbone.norm.weight": torch.ones(1),
           "backbone.stages.0.blocks.1.attn_mask": torch.zeros(1), "data_preprocessor.mean": torch.zeros(3),
           "backbone.stages.0.blocks.1.attn.w_msa.qkv.bias": torch.ones(1)}  # fmt: skip
    assert list(mmcls.convert(old)) == ["norm.weight", "layers.0.blocks.1.attn.qkv.bias"]


def test_files_of_timm_and_of_our_networks_are_left_as_they_are() -> None:
    for arch in ("ResNet20", "ResNet18_CIFAR", "test_convnext"):
        assert not mmcls.matches(build_classifier(arch, 3, MEAN, STD).network.state_dict())


# --- normalisation


def head_and_stem(classes: int, kernel: int | None) -> Mapping[str, Tensor]:
    stem = {} if kernel is None else {"backbone.conv1.weight": torch.zeros(4, 3, kernel, kernel)}
    return {"head.fc.weight": torch.zeros(classes, 4), **stem}


@pytest.mark.parametrize(
    ("classes", "kernel", "mean", "std"),
    [
        (1000, 7, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        (10, 7, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        (1000, None, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        (10, 3, (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
        (100, 3, (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    ],
)
def test_normalisation_follows_from_the_stem_and_the_classes(
    classes: int, kernel: int | None, mean: tuple[float, ...], std: tuple[float, ...]
) -> None:
    found = mmcls.normalisation(head_and_stem(classes, kernel))
    assert found[0] == pytest.approx(mean, abs=6e-5) and found[1] == pytest.approx(std, abs=6e-5)


# --- files


def save_mm_file(path: Path, classes: int = 10) -> Classifier:
    """As mm-classification writes it; returns the network inside."""
    torch.manual_seed(3)
    inside = build_classifier("ResNet18_CIFAR", classes, *mmcls.normalisation(head_and_stem(10, 3))).eval()
    names = tuple(f"c{i}" for i in range(classes))
    meta = {"mmcls_version": "0.23.0", "epoch": 200, "iter": 1, "config": "model = dict(...)", "CLASSES": names, "hook_msgs": {}}
    torch.save({"meta": meta, "state_dict": mm_state(inside.network, "resnet")}, path)
    return inside


def test_a_file_is_evaluated_with_the_normalisation_of_the_program_that_trained_it(tmp_path: Path) -> None:
    inside = save_mm_file(tmp_path / "resnet18.pth")
    classes = [str(i) for i in range(10)]
    loaded = load_classifier(tmp_path / "resnet18.pth", classes=classes, arch="ResNet18_CIFAR")
    images = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(loaded(images), inside(images))
    told = load_classifier(tmp_path / "resnet18.pth", classes=classes, arch="ResNet18_CIFAR", mean=MEAN, std=STD)
    assert told.mean.flatten().tolist() == pytest.approx(MEAN)


def test_training_starts_from_a_file_with_its_normalisation(tmp_path: Path) -> None:
    inside = save_mm_file(tmp_path / "resnet18.pth")
    student = build_classifier("ResNet18_CIFAR", 10, MEAN, STD).eval()
    initialise_classifier(student, tmp_path / "resnet18.pth", tmp_path, [str(i) for i in range(10)])
    images = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(student(images), inside(images))


def test_a_file_of_another_network_or_number_of_classes_is_refused(tmp_path: Path) -> None:
    save_mm_file(tmp_path / "resnet18.pth")
    classes = [str(i) for i in range(10)]
    with pytest.raises(ValueError, match=r"resnet18\.pth: the weights are not those of ResNet50_CIFAR .*missing: layer1\.0\.conv3"):
        load_classifier(tmp_path / "resnet18.pth", classes=classes, arch="ResNet50_CIFAR")
    with pytest.raises(
        ValueError, match=r"not those of resnet18 but of another .*conv1\.weight \[64, 3, 3, 3\] instead of \[64, 3, 7"
    ):
        load_classifier(tmp_path / "resnet18.pth", classes=classes, arch="resnet18")
    with pytest.raises(ValueError, match=r"weights are for 10 classes, ResNet18_CIFAR was built for 5: .*\(data\.classes\)"):
        load_classifier(tmp_path / "resnet18.pth", classes=classes[:5], arch="ResNet18_CIFAR")
