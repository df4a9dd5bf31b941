"""Classifier: normalisation, features by hooks, description, strict loading."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from undegrade.models.classification.classifier import Classifier, as_map, build_classifier, describe
from undegrade.models.classification.resnet import build_small_network
from undegrade.models.classification.weights import from_description, load_network_state

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)


@pytest.fixture(scope="module")
def small() -> Classifier:
    torch.manual_seed(0)
    return build_classifier("ResNet20", 5, MEAN, STD).eval()


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def hooks(module: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in module.modules())


def test_images_are_normalised_before_the_network(small: Classifier, images: Tensor) -> None:
    by_hand = torch.stack([(images[:, c] - MEAN[c]) / STD[c] for c in range(3)], dim=1)
    torch.testing.assert_close(small(images), small.network(by_hand))
    torch.testing.assert_close(small.normalise(images), by_hand)


def test_mean_and_std_follow_the_device_but_stay_out_of_the_state_dict(small: Classifier) -> None:
    assert small.mean.shape == small.std.shape == (1, 3, 1, 1)
    assert list(small.state_dict()) == [f"network.{name}" for name in small.network.state_dict()]
    assert {name for name, _ in small.named_buffers()} > {"mean", "std"}


def test_features_of_our_resnets_are_the_post_relu_stages_and_the_pooled_vector(small: Classifier, images: Tensor) -> None:
    assert small.feature_names == ["stage1", "stage2", "stage3", "pooled"]
    logits, found = small.forward_features(images)
    assert {name: tuple(t.shape) for name, t in found.items()} == {
        "stage1": (2, 16, 32, 32),
        "stage2": (2, 32, 16, 16),
        "stage3": (2, 64, 8, 8),
        "pooled": (2, 256),
    }
    assert all(float(t.detach().min()) == 0.0 for name, t in found.items() if name != "pooled")
    torch.testing.assert_close(logits, small(images))
    torch.testing.assert_close(logits, small.network.get_classifier()(found["pooled"]))  # type: ignore[operator]
    torch.testing.assert_close(found["pooled"], nn.functional.adaptive_avg_pool2d(found["stage3"], 2).flatten(1))


def test_features_returns_what_is_asked_for_in_that_order_and_carries_gradients(small: Classifier, images: Tensor) -> None:
    found = small.features(images, ["pooled", "stage2"])
    assert list(found) == ["pooled", "stage2"]
    gradient = torch.autograd.grad(found["stage2"].sum(), small.network.conv1.weight)[0]  # type: ignore[arg-type, union-attr]
    assert gradient.abs().sum() > 0
    with torch.no_grad():
        assert not small.features(images, ["stage2"])["stage2"].requires_grad


def test_no_hook_outlives_a_call_or_an_error(small: Classifier, images: Tensor) -> None:
    small.features(images)
    assert hooks(small) == 0
    with pytest.raises(RuntimeError):
        small.features(images.double())  # weights are float32
    assert hooks(small) == 0
    with pytest.raises(ValueError, match="float images"):
        small.features(images[0])
    assert hooks(small) == 0


def test_unknown_feature_is_refused_with_the_valid_names(small: Classifier, images: Tensor) -> None:
    with pytest.raises(ValueError, match="unknown feature 'stage4' in ResNet20.*allowed: stage1, stage2, stage3, pooled"):
        small.features(images, ["stage4"])


def test_a_module_that_the_network_bypasses_is_reported() -> None:
    class Bypass(nn.Module):
        feature_info = [{"module": "stage"}]  # noqa: RUF012

        def __init__(self) -> None:
            super().__init__()
            self.stage = nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.linear(x.mean((2, 3)), self.stage.weight)

    built = Classifier(Bypass(), "bypass", 2, MEAN, STD)
    assert built.feature_names == ["stage1"]
    with pytest.raises(RuntimeError, match="bypass never called the modules of stage1"):
        built.features(torch.rand(1, 3, 4, 4))


def test_channels_last_images_stay_so_and_give_the_same(small: Classifier, images: Tensor) -> None:
    network = build_classifier("ResNet20", 5, MEAN, STD).eval()
    network.load_state_dict(small.state_dict())
    network.double().to(memory_format=torch.channels_last)
    strided = images.double().contiguous(memory_format=torch.channels_last)
    assert network.normalise(strided).is_contiguous(memory_format=torch.channels_last)
    logits, found = network.forward_features(strided)
    expected, expected_features = copy.deepcopy(small).double().forward_features(images.double())
    torch.testing.assert_close(logits, expected)
    for name, tensor in expected_features.items():
        torch.testing.assert_close(found[name], tensor)


@pytest.mark.parametrize("bad", [torch.zeros(3, 32, 32), torch.zeros(1, 1, 32, 32), torch.zeros(1, 3, 32, 32, dtype=torch.uint8)])
def test_other_inputs_than_float_images_are_refused(small: Classifier, bad: Tensor) -> None:
    with pytest.raises(ValueError, match=r"float images in \[0,1\] of shape \[B,3,H,W\]"):
        small(bad)


@pytest.fixture
def process_group(tmp_path: Path) -> Iterator[None]:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def test_features_under_ddp_come_through_the_wrapper_and_gradients_are_exchanged(process_group: None, images: Tensor) -> None:
    wrapped = nn.parallel.DistributedDataParallel(build_classifier("ResNet20", 5, MEAN, STD))
    exchanged: list[int] = []

    def hook(_state, bucket):  # type: ignore[no-untyped-def]  # DDP reads annotations and refuses them as text
        exchanged.append(bucket.buffer().numel())
        future: torch.futures.Future = torch.futures.Future()
        future.set_result(bucket.buffer())
        return future

    wrapped.register_comm_hook(None, hook)
    for _ in range(2):
        logits, found = wrapped(images, feature_names=["stage3"])
        assert list(found) == ["stage3"]
        (logits.sum() + found["stage3"].mean()).backward()
    assert sum(exchanged) == 2 * sum(p.numel() for p in wrapped.parameters())
    assert hooks(wrapped) == 0


# ---- description and loading


def test_description_is_json_and_rebuilds_the_same_classifier(small: Classifier, images: Tensor) -> None:
    meta = json.loads(json.dumps(describe(small)))
    assert meta == {"kind": "classifier", "arch": "ResNet20", "num_classes": 5, "mean": list(MEAN), "std": list(STD)}
    again = from_description(meta, small.network.state_dict()).eval()
    assert torch.equal(again(images), small(images))
    assert describe(again) == meta


def test_weights_travel_both_ways_between_the_classifier_and_a_bare_network(small: Classifier) -> None:
    bare = build_small_network("ResNet20", 5)
    bare.load_state_dict(small.network.state_dict(), strict=True)
    target = build_classifier("ResNet20", 5, MEAN, STD)
    load_network_state(target, bare.state_dict())
    assert torch.equal(target.network.fc.weight, bare.fc.weight)  # type: ignore[arg-type, union-attr]


@pytest.mark.parametrize("prefix", ["module.", "network.", "module.network.", "_orig_mod."])
def test_prefixes_of_wrappers_are_taken_off(small: Classifier, prefix: str) -> None:
    target = build_classifier("ResNet20", 5, MEAN, STD)
    load_network_state(target, {prefix + name: t for name, t in small.network.state_dict().items()})
    assert torch.equal(target.network.conv1.weight, small.network.conv1.weight)  # type: ignore[arg-type, union-attr]


def test_files_without_batch_counters_load(small: Classifier) -> None:
    target = build_classifier("ResNet20", 5, MEAN, STD)
    old = {n: t for n, t in small.network.state_dict().items() if not n.endswith("num_batches_tracked")}
    load_network_state(target, old)
    assert torch.equal(target.network.conv1.weight, small.network.conv1.weight)  # type: ignore[arg-type, union-attr]


def test_another_number_of_classes_is_refused_with_both_numbers_and_nothing_is_loaded(small: Classifier) -> None:
    target = build_classifier("ResNet20", 7, MEAN, STD)
    before = target.network.conv1.weight.clone()  # type: ignore[operator, union-attr]
    with pytest.raises(ValueError, match="weights are for 5 classes, ResNet20 was built for 7"):
        load_network_state(target, small.network.state_dict())
    assert torch.equal(target.network.conv1.weight, before)  # type: ignore[arg-type, union-attr]
    with pytest.raises(ValueError, match="weights are for 5 classes, ResNet20 was built for 7"):
        from_description(describe(target), small.network.state_dict())


def test_another_architecture_is_refused_with_the_first_differing_names(small: Classifier) -> None:
    deeper = build_classifier("ResNet56", 5, MEAN, STD)
    with pytest.raises(ValueError, match=r"not those of ResNet56.*missing: res1\.3\.conv1\.weight, .*, \.\.\."):
        load_network_state(deeper, small.network.state_dict())
    with pytest.raises(ValueError, match=r"not those of ResNet20.*unexpected: res1\.3\.conv1\.weight, .*, \.\.\."):
        load_network_state(small, deeper.network.state_dict())
    wider = dict(small.network.state_dict()) | {"conv1.weight": torch.zeros(8, 3, 3, 3)}
    with pytest.raises(ValueError, match=r"1 of another shape: conv1.weight \[8, 3, 3, 3\] instead of \[16, 3, 3, 3\]"):
        load_network_state(small, wider)
    with pytest.raises(ValueError, match="128 missing|missing: conv1.weight"):
        load_network_state(small, {})


def test_descriptions_that_lack_entries_or_are_of_another_kind_are_refused(small: Classifier) -> None:
    state = small.network.state_dict()
    with pytest.raises(ValueError, match="lacks kind, arch, num_classes, mean, std.*build_classifier"):
        from_description({}, state)
    with pytest.raises(ValueError, match="unknown kind of model 'diffusion'.*allowed: classifier"):
        from_description(describe(small) | {"kind": "diffusion"}, state)


@pytest.mark.parametrize(
    ("mean", "std", "message"),
    [
        ((0.5,), STD, "mean must be 3 numbers"),
        (MEAN, (0.2, float("nan"), 0.2), "std must be 3 numbers"),
        (MEAN, (0.2, 0.0, 0.2), "std must be positive"),
    ],
)
def test_unfit_normalisation_is_refused(mean: tuple[float, ...], std: tuple[float, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_classifier("ResNet20", 5, mean, std)


def test_fewer_than_two_classes_and_pretrained_cifar_networks_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 2 classes, got 1"):
        build_classifier("ResNet20", 1, MEAN, STD)
    with pytest.raises(ValueError, match="no pretrained weights for ResNet56"):
        build_classifier("ResNet56", 10, MEAN, STD, pretrained=True)


# ---- timm


@pytest.mark.parametrize(
    ("arch", "size", "names", "last_shape", "pooled"),
    [
        ("resnet18", 32, 5, (2, 512, 1, 1), 512),
        ("convnext_atto", 32, 4, (2, 320, 1, 1), 320),
        ("swin_tiny_patch4_window7_224", 224, 4, (2, 7, 7, 768), 768),
        ("vit_tiny_patch16_224", 224, 12, (2, 197, 192), 192),
    ],
)
def test_timm_networks_have_stages_and_the_input_of_their_head(
    arch: str, size: int, names: int, last_shape: tuple[int, ...], pooled: int
) -> None:
    built = build_classifier(arch, 4, MEAN, STD).eval()
    assert built.feature_names == [*(f"stage{i + 1}" for i in range(names)), "pooled"]
    with torch.no_grad():
        logits, found = built.forward_features(torch.rand(2, 3, size, size), [f"stage{names}", "pooled"])
        assert logits.shape == (2, 4)
        assert found[f"stage{names}"].shape == last_shape
        assert found["pooled"].shape == (2, pooled)
        torch.testing.assert_close(built.network.get_classifier()(found["pooled"]), logits)  # type: ignore[operator]
    assert hooks(built) == 0


def test_network_with_two_heads_has_no_pooled_vector() -> None:
    built = build_classifier("deit_tiny_distilled_patch16_224", 4, MEAN, STD)
    assert "pooled" not in built.feature_names and "stage12" in built.feature_names


def test_timm_weights_for_another_number_of_classes_are_refused() -> None:
    state = build_classifier("resnet18", 4, MEAN, STD).network.state_dict()
    with pytest.raises(ValueError, match="weights are for 4 classes, resnet18 was built for 6"):
        from_description({"kind": "classifier", "arch": "resnet18", "num_classes": 6, "mean": MEAN, "std": STD}, state)


def test_unknown_arch_names_the_closest_of_timm_and_of_ours() -> None:
    with pytest.raises(ValueError, match="unknown arch 'resnet5O'.*did you mean .*resnet50.*ResNet20, ResNet56, ResNet110"):
        build_classifier("resnet5O", 10, MEAN, STD)
    with pytest.raises(ValueError, match="unknown arch 'ResNet65'.*did you mean .*ResNet56"):
        build_classifier("ResNet65", 10, MEAN, STD)


def test_unknown_weights_tag_is_refused() -> None:
    with pytest.raises(ValueError, match="cannot build 'resnet18.no_such_tag'"):
        build_classifier("resnet18.no_such_tag", 10, MEAN, STD, pretrained=True)


# ---- options of timm's networks


def test_stochastic_depth_is_set_where_the_network_has_it() -> None:
    built = build_classifier("test_convnext", 4, MEAN, STD, drop_path=0.3)
    rates = [m.drop_prob for m in built.modules() if type(m).__name__ == "DropPath"]
    assert max(rates) == pytest.approx(0.3)
    with pytest.raises(ValueError, match="ResNet20 has no stochastic depth: leave drop_path out"):
        build_classifier("ResNet20", 4, MEAN, STD, drop_path=0.1)
    with pytest.raises(ValueError, match="timm's vgg11 does not take drop_path: leave it out"):
        build_classifier("vgg11", 4, MEAN, STD, drop_path=0.1)


def test_published_weights_come_with_their_normalisation(monkeypatch: pytest.MonkeyPatch) -> None:
    import timm

    real = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda *args, **options: real(*args, **{**options, "pretrained": False}))
    built = build_classifier("tf_efficientnet_lite0", 4, MEAN, STD, pretrained=True)
    assert (describe(built)["mean"], describe(built)["std"]) == ([0.5, 0.5, 0.5], [0.5, 0.5, 0.5])
    fresh = build_classifier("tf_efficientnet_lite0", 4, MEAN, STD)
    assert describe(fresh)["mean"] == list(MEAN)


def test_normalisation_can_be_replaced_in_part(small: Classifier) -> None:
    changed = copy.deepcopy(small)
    changed.set_normalisation(std=(0.5, 0.5, 0.5))
    assert (describe(changed)["mean"], describe(changed)["std"]) == (list(MEAN), [0.5, 0.5, 0.5])
    assert changed.std.flatten().tolist() == [0.5, 0.5, 0.5] and torch.equal(changed.mean, small.mean)
    with pytest.raises(ValueError, match="std must be positive"):
        changed.set_normalisation(std=(0.5, -0.5, 0.5))


def test_maps_have_their_channels_second_whatever_the_network_lays_out() -> None:
    with torch.device("meta"):
        swin, vit = (build_classifier(arch, 10, (0.5,) * 3, (0.25,) * 3) for arch in ("swin_tiny_patch4_window7_224", "test_vit"))
        found = swin.features(torch.zeros(1, 3, 224, 224))
        assert as_map(swin, "stage4", found["stage4"]).shape == (1, 768, 7, 7)
        assert as_map(swin, "pooled", found["pooled"]).shape == (1, 768, 1, 1)
        tokens = vit.features(torch.zeros(1, 3, 160, 160), ["stage1"])["stage1"]
    with pytest.raises(ValueError, match="the feature stage1 has the shape .*: take `pooled`, or a map"):
        as_map(vit, "stage1", tokens)
