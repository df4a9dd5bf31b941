"""CIFAR ResNets: published parameter counts, the checkpoints' key names and order,
initialisation.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from undegrade.models.classification.classifier import as_map, build_classifier
from undegrade.models.classification.resnet import build_small_network
from undegrade.models.classification.wide_resnet import WideBlock

BN = ["weight", "bias", "running_mean", "running_var", "num_batches_tracked"]


@pytest.mark.parametrize(
    ("arch", "num_classes", "parameters"),
    [
        ("ResNet20", 10, 274_394),
        ("ResNet20", 100, 297_524),
        ("ResNet20", 200, 323_224),
        ("ResNet56", 10, 857_690),
        ("ResNet56", 100, 880_820),
        ("ResNet56", 200, 906_520),
        ("ResNet110", 10, 1_732_634),
        ("ResNet110", 100, 1_755_764),
        ("ResNet110", 200, 1_781_464),
    ],
)
def test_parameter_counts_are_the_published_ones(arch: str, num_classes: int, parameters: int) -> None:
    with torch.device("meta"):
        network = build_small_network(arch, num_classes)
    assert sum(p.numel() for p in network.parameters()) == parameters


@pytest.mark.parametrize(
    ("arch", "blocks", "keys", "tensors"),
    [("ResNet20", 3, 128, 65), ("ResNet56", 9, 344, 173), ("ResNet110", 18, 668, 335)],
)
def test_state_dict_has_the_reference_names_in_the_reference_order(arch: str, blocks: int, keys: int, tensors: int) -> None:
    with torch.device("meta"):
        network = build_small_network(arch, 10)
    expected = ["conv1.weight", *(f"bn1.{n}" for n in BN)]
    for stage in (1, 2, 3):
        for block in range(blocks):
            path = f"res{stage}.{block}"
            expected.append(f"{path}.conv1.weight")
            if block == 0 and stage > 1:
                expected += [f"{path}.ds.0.weight", *(f"{path}.ds.1.{n}" for n in BN)]
            expected += [f"{path}.bn1.{n}" for n in BN]
            expected += [f"{path}.conv2.weight", *(f"{path}.bn2.{n}" for n in BN)]
    expected += ["fc.weight", "fc.bias"]
    assert list(network.state_dict()) == expected
    assert (len(expected), len(list(network.parameters()))) == (keys, tensors)


@pytest.mark.parametrize(("size", "macs"), [(32, 125.8e6), (64, 503.0e6)])
def test_multiplications_per_image_are_the_published_ones(size: int, macs: float) -> None:
    """Wrong strides, paddings or pooling would keep the names and parameter counts."""
    total = 0

    def count(module: nn.Module, _inputs: object, output: torch.Tensor) -> None:
        nonlocal total
        total += module.get_parameter("weight")[0].numel() * output.numel()

    with torch.device("meta"):
        network = build_small_network("ResNet56", 100 if size == 32 else 200)
        for module in network.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                module.register_forward_hook(count)
        network(torch.zeros(1, 3, size, size))
    assert total == pytest.approx(macs, rel=5e-4)


def test_initialisation_follows_the_paper() -> None:
    torch.manual_seed(0)
    network = build_small_network("ResNet56", 100)
    weight = network.get_parameter("res3.4.conv1.weight")  # 64 maps of 3x3: fan_out 576
    assert weight.std().item() == pytest.approx(math.sqrt(2 / 576), rel=0.02)
    down = network.get_parameter("res3.0.ds.0.weight")  # 1x1 to 64 maps: fan_out 64
    assert down.std().item() == pytest.approx(math.sqrt(2 / 64), rel=0.05)
    assert network.fc.weight.std().item() == pytest.approx(0.01, rel=0.05)
    assert not network.fc.bias.any()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert (module.weight == 1).all() and not module.bias.any()
            assert (module.eps, module.momentum) == (1e-5, 0.1)


def test_a_block_computes_its_formula_and_the_head_reads_a_two_by_two_pool() -> None:
    torch.manual_seed(1)
    network = build_small_network("ResNet20", 5).double().eval()
    seen: dict[str, torch.Tensor] = {}
    block = network.res2[0]
    weight = {name: p for name, p in block.named_parameters() if name.endswith("weight")}
    block.register_forward_hook(lambda module, inputs, output: seen.update(x=inputs[0], y=output))
    network.res3.register_forward_hook(lambda module, inputs, output: seen.update(last=output))
    logits = network(torch.rand(2, 3, 32, 32, dtype=torch.float64))
    scale = 1 / math.sqrt(1 + 1e-5)  # a fresh BN in eval mode
    conv = nn.functional.conv2d
    inner = (conv(seen["x"], weight["conv1.weight"], stride=2, padding=1) * scale).clamp(min=0)
    shortcut = conv(seen["x"], weight["ds.0.weight"], stride=2) * scale
    expected = (conv(inner, weight["conv2.weight"], padding=1) * scale + shortcut).clamp(min=0)
    torch.testing.assert_close(seen["y"], expected)
    assert seen["last"].shape == (2, 64, 8, 8)
    quarters = seen["last"].reshape(2, 64, 2, 4, 2, 4).mean((3, 5)).reshape(2, 256)
    torch.testing.assert_close(logits, quarters @ network.fc.weight.T)


def test_unknown_depth_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="unknown network for small images 'ResNet55'.*did you mean 'ResNet56'"):
        build_small_network("ResNet55", 10)


# --- the ResNets of DiffAUD


@pytest.mark.parametrize(("arch", "parameters", "width"), [("ResNet18_CIFAR", 11.17e6, 512), ("ResNet50_CIFAR", 23.52e6, 2048)])
def test_wide_networks_have_the_published_size_and_keep_small_images_large(arch: str, parameters: float, width: int) -> None:
    with torch.device("meta"):
        built = build_classifier(arch, 10, (0.5,) * 3, (0.25,) * 3)
        found = built.features(torch.zeros(1, 3, 32, 32))
    assert sum(p.numel() for p in built.parameters()) == pytest.approx(parameters, abs=5e3)
    assert [t.shape[-1] for name, t in found.items() if name != "pooled"] == [32, 32, 16, 8, 4]
    assert found["pooled"].shape == (1, width)


def test_the_small_mobile_network_keeps_small_images_large_and_has_timms_names() -> None:
    import timm

    with torch.device("meta"):
        built = build_classifier("MobileNetV2_CIFAR", 10, (0.5,) * 3, (0.25,) * 3)
        found = built.features(torch.zeros(1, 3, 32, 32))
        theirs = timm.create_model("mobilenetv2_100", num_classes=10).state_dict()
    assert [t.shape[-1] for name, t in found.items() if name != "pooled"] == [32, 32, 16, 8, 4]
    assert {n: t.shape for n, t in built.network.state_dict().items()} == {n: t.shape for n, t in theirs.items()}


@pytest.mark.parametrize("arch", ["swinT_CIFAR", "convnextT_CIFAR"])
def test_networks_of_patches_end_in_two_by_two_places(arch: str) -> None:
    with torch.device("meta"):
        built = build_classifier(arch, 10, (0.5,) * 3, (0.25,) * 3)
        logits, found = built.forward_features(torch.zeros(3, 3, 32, 32))
    assert logits.shape == (3, 10) and found["pooled"].shape == (3, 768)
    assert [as_map(built, name, found[name]).shape[-1] for name in ("stage1", "stage4")] == [16, 2]


def test_wide_networks_differ_from_timms_by_the_stem_alone() -> None:
    import timm

    torch.manual_seed(0)
    network = build_small_network("ResNet50_CIFAR", 10)
    with torch.device("meta"):
        theirs = {name: tensor.shape for name, tensor in timm.create_model("resnet50", num_classes=10).state_dict().items()}
    mine = {name: tensor.shape for name, tensor in network.state_dict().items()}
    assert list(mine) == list(theirs)
    assert {name for name in mine if mine[name] != theirs[name]} == {"conv1.weight"}
    assert network.get_parameter("conv1.weight").std().item() == pytest.approx(math.sqrt(2 / 576), rel=0.05)  # fan_out 64 * 9


@pytest.mark.parametrize(("arch", "weights"), [("WRN28_10", 36_479_194), ("WRN40_2", 2_243_546)])
def test_wide_resnets_have_robustbenchs_names_and_sizes(arch: str, weights: int) -> None:
    with torch.device("meta"):
        network = build_small_network(arch, 10)
        assert network(torch.empty(2, 3, 32, 32)).shape == (2, 10)
    assert sum(p.numel() for p in network.parameters()) == weights
    state = network.state_dict()
    wide = {"WRN28_10": 160, "WRN40_2": 32}[arch]
    assert (
        state["block1.layer.0.convShortcut.weight"].shape == (wide, 16, 1, 1) and "block1.layer.1.convShortcut.weight" not in state
    )
    assert [name for name in state if name.startswith("block2.layer.1.")][0] == "block2.layer.1.bn1.weight"  # noqa: RUF015


def test_a_wide_block_activates_before_it_convolves() -> None:
    block = WideBlock(4, 4, 1).eval()
    x = torch.randn(2, 4, 6, 6)
    with torch.no_grad():
        expected = x + block.conv2(block.bn2(block.conv1(block.bn1(x).relu())).relu())
        assert torch.allclose(block(x), expected)
