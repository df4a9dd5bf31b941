"""Weight fusion: the mean, what becomes of BatchNorm's statistics, and what is refused."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from undegrade.models.classification.classifier import Classifier, build_classifier
from undegrade.models.classification.fusion import average, greedy_soup, recalibrate

MEAN, STD = (0.5, 0.4, 0.3), (0.25, 0.2, 0.3)


def classifier(seed: int) -> Classifier:
    """ResNet20 with random BatchNorm statistics, as after some training."""
    torch.manual_seed(seed)
    built = build_classifier("ResNet20", 4, MEAN, STD)
    for module in built.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()  # type: ignore[union-attr]
            module.running_var.uniform_(0.5, 2.0)  # type: ignore[union-attr]
            module.num_batches_tracked.fill_(10 * seed + 3)  # type: ignore[union-attr, operator]
            nn.init.uniform_(module.weight, 0.5, 1.5)
    return built.eval()


def states(*seeds: int) -> list[dict[str, Tensor]]:
    return [classifier(seed).network.state_dict() for seed in seeds]


def is_buffer(name: str) -> bool:
    return name.endswith(("running_mean", "running_var", "num_batches_tracked"))


def images(batches: int, size: int = 8) -> list[Tensor]:
    generator = torch.Generator().manual_seed(7)
    return [torch.rand(size, 3, 16, 16, generator=generator) for _ in range(batches)]


def test_parameters_are_the_arithmetic_mean_under_every_policy() -> None:
    given = states(1, 2, 3, 4)
    carrier, batches = classifier(9), images(1)
    for fused in (
        average(given, buffers="average"),
        average(given, buffers="copy_first"),
        average(given, buffers="recalibrate", network=carrier, loader=batches),
    ):
        assert list(fused) == list(given[0])
        for name in (n for n in fused if not is_buffer(n)):
            expected = (given[0][name] + given[1][name] + given[2][name] + given[3][name]) / 4
            torch.testing.assert_close(fused[name], expected, atol=1e-6, rtol=0)


def test_policies_give_different_buffers() -> None:
    given, carrier, batches = states(1, 2), classifier(9), images(1)
    fused = [average(given, buffers=policy) for policy in ("average", "copy_first")]
    fused.append(average(given, buffers="recalibrate", network=carrier, loader=batches))
    for name in ("bn1.running_mean", "bn1.running_var"):
        assert not any(torch.allclose(fused[a][name], fused[b][name]) for a, b in ((0, 1), (0, 2), (1, 2)))


def test_weights_weigh_parameters_and_averaged_buffers() -> None:
    given = states(1, 2, 3)
    fused = average(given, weights=[0.5, 0.2, 0.3], buffers="average")
    for name, tensor in fused.items():
        assert tensor.dtype == given[0][name].dtype
        expected = 0.5 * given[0][name] + 0.2 * given[1][name] + 0.3 * given[2][name]
        if name.endswith("num_batches_tracked"):  # 0.5 * 13 + 0.2 * 23 + 0.3 * 33 = 21
            expected = torch.tensor(21)
        torch.testing.assert_close(tensor, expected, atol=1e-6, rtol=1e-6)
    only_second = average(given, weights=[0.0, 1.0, 0.0], buffers="average")
    assert all(torch.equal(only_second[name], given[1][name]) for name in given[1])


def test_copy_first_keeps_the_buffers_of_the_first_bit_for_bit() -> None:
    given = states(1, 2)
    fused = average(given, buffers="copy_first")
    buffers = [name for name in fused if is_buffer(name)]
    assert len(buffers) == 63
    assert all(torch.equal(fused[name], given[0][name]) for name in buffers)
    assert not torch.equal(fused["conv1.weight"], given[0]["conv1.weight"])


def test_the_mean_is_taken_in_float64_and_cast_back() -> None:
    """In float16 the running sum of the ones would stop at 2048."""
    ones = [{"w": torch.full((2,), 4096.0 if i == 0 else 1.0, dtype=torch.float16)} for i in range(1025)]
    fused = average(ones, buffers="average")["w"]
    assert fused.dtype == torch.float16
    assert fused.tolist() == [torch.tensor((4096 + 1024) / 1025, dtype=torch.float16).item()] * 2


def test_recalibrated_statistics_of_the_first_layer_are_those_of_the_data() -> None:
    given, carrier, batches = states(1, 2), classifier(9), images(3)
    fused = average(given, buffers="recalibrate", network=carrier, loader=batches)
    shift, scale = torch.tensor(MEAN).view(1, 3, 1, 1), torch.tensor(STD).view(1, 3, 1, 1)
    maps = [nn.functional.conv2d((b - shift) / scale, fused["conv1.weight"], padding=1) for b in batches]
    together = torch.cat(maps).transpose(0, 1).flatten(1)
    torch.testing.assert_close(fused["bn1.running_mean"], together.mean(1), atol=1e-5, rtol=1e-5)
    per_batch = torch.stack([m.transpose(0, 1).flatten(1).var(1) for m in maps]).mean(0)
    torch.testing.assert_close(fused["bn1.running_var"], per_batch, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(fused["bn1.running_var"], together.var(1), rtol=0.01, atol=0)
    assert fused["bn1.num_batches_tracked"] == 3


def test_recalibrating_takes_a_bare_network_and_gives_what_the_classifier_gives() -> None:
    given, carrier, batches = states(1, 2), classifier(9), images(2)
    normalised = (carrier.normalise(batch) for batch in batches)
    bare = average(given, network=carrier.network, loader=normalised)
    wrapped = average(given, network=carrier, loader=batches)
    assert all(torch.equal(bare[name], wrapped[name]) for name in wrapped)


def test_nothing_that_is_handed_in_changes() -> None:
    given, carrier = states(1, 2), classifier(9)
    before = copy.deepcopy(([dict(state) for state in given], carrier.state_dict()))
    fused = average(given, network=carrier, loader=images(2))
    for tensor in fused.values():
        tensor.zero_()
    average(given[:1], buffers="copy_first")["conv1.weight"].zero_()
    for state, old in zip([*given, carrier.state_dict()], [*before[0], before[1]], strict=True):
        assert all(torch.equal(state[name], old[name]) for name in old)


def test_other_integer_entries_must_be_equal() -> None:
    index = {"table": torch.arange(3), "w": torch.zeros(2)}
    assert average([index, dict(index)], buffers="average")["table"].tolist() == [0, 1, 2]
    with pytest.raises(ValueError, match="'table' is of type torch.int64 and differs"):
        average([index, index | {"table": torch.arange(3) + 1}], buffers="average")


class Small(nn.Module):
    """BatchNorm beside dropout; records the modes in which it runs."""

    def __init__(self) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(3, momentum=0.3)
        self.stateless = nn.BatchNorm2d(3, track_running_stats=False)
        self.drop = nn.Dropout(0.5)
        self.modes: list[tuple[bool, bool, bool]] = []

    def forward(self, x: Tensor) -> Tensor:
        self.modes.append((self.bn.training, self.drop.training, torch.is_grad_enabled()))
        return self.stateless(self.drop(self.bn(x)))


def test_recalibrate_runs_batchnorm_alone_in_training_mode_and_restores_everything() -> None:
    network = Small().train()
    network.drop.eval()
    recalibrate(network, iter(images(2)))
    assert network.modes == [(True, False, False)] * 2
    assert (network.training, network.bn.training, network.drop.training) == (True, True, False)
    assert network.bn.momentum == 0.3 and network.stateless.momentum == 0.1
    torch.testing.assert_close(network.bn.running_mean, torch.cat(images(2)).mean((0, 2, 3)))


def test_recalibrate_restores_modes_after_an_error_of_the_loader() -> None:
    def broken() -> Iterator[Tensor]:
        yield images(1)[0]
        raise OSError("disk gone")

    network = Small().eval()
    with pytest.raises(OSError, match="disk gone"):
        recalibrate(network, broken())
    assert not any(module.training for module in network.modules())
    assert network.bn.momentum == 0.3


def test_recalibrate_without_a_batch_is_refused_and_leaves_the_statistics() -> None:
    network = Small()
    network.bn.running_mean.fill_(5.0)  # type: ignore[union-attr]
    with pytest.raises(ValueError, match="no batch of images"):
        recalibrate(network, [])
    assert network.bn.running_mean.tolist() == [5.0] * 3  # type: ignore[union-attr]


def test_recalibrate_of_a_network_without_batchnorm_reads_nothing() -> None:
    def unread() -> Iterator[Tensor]:
        raise AssertionError("read")
        yield

    recalibrate(nn.Conv2d(3, 3, 1), unread())


def test_differing_names_are_refused_by_name() -> None:
    first, second = states(1, 2)
    del second["res2.0.ds.0.weight"]
    with pytest.raises(ValueError, match=r"state dict 1 .*only one of the two, e.g. res2.0.ds.0.weight"):
        average([first, second], buffers="average")
    with pytest.raises(ValueError, match=r"state dict 2 .*res2.0.ds.0.weight"):
        average([second, second, first], buffers="average")


def test_differing_shapes_are_refused_by_name() -> None:
    first, second = states(1, 2)
    second["fc.bias"] = torch.zeros(7)
    with pytest.raises(ValueError, match=r"state dict 1 has shape \[7\] for 'fc.bias', the first has \[4\]"):
        average([first, second], buffers="average")


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([0.5, 0.4], "must sum to 1.*sum to 0.9"),
        ([1.5, -0.5], "must not be negative"),
        ([1.0], "1 weights for 2 state dicts"),
        ([float("nan"), 1.0], "must not be negative"),
        ([float("inf"), 0.0], "must sum to 1"),
    ],
)
def test_unfit_weights_are_refused(weights: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        average(states(1, 2), weights=weights, buffers="average")


def test_unknown_policy_and_empty_list_are_refused() -> None:
    with pytest.raises(ValueError, match="unknown BatchNorm buffer policy 'first'.*copy_first"):
        average(states(1), buffers="first")
    with pytest.raises(ValueError, match="give at least one"):
        average([], buffers="average")


def test_recalibrate_needs_network_and_loader_and_the_others_neither() -> None:
    given, carrier = states(1, 2), classifier(1)
    with pytest.raises(ValueError, match="needs both.*with neither.*copy_first"):
        average(given)
    with pytest.raises(ValueError, match="needs both.*with network"):
        average(given, network=carrier)
    with pytest.raises(ValueError, match="'average' with loader"):
        average(given, buffers="average", loader=images(1))


def test_carrier_of_another_architecture_is_refused() -> None:
    with pytest.raises(ValueError, match="compared with network="):
        average(states(1, 2), network=build_classifier("ResNet56", 4, MEAN, STD), loader=images(1))


# --- greedy


def greedy(accuracies: dict[tuple[int, ...], float], count: int) -> tuple[list[int], list[int], list[tuple[int, ...]]]:
    """What the greedy soup keeps, what its average is made of, and which averages were asked for,
    by accuracies of averages.
    """
    asked: list[tuple[int, ...]] = []

    def fuse(chosen: list[int]) -> dict[str, Tensor]:
        return {"members": torch.tensor(chosen)}

    def accuracy(state: dict[str, Tensor]) -> float:
        asked.append(tuple(state["members"].tolist()))
        return accuracies[asked[-1]]

    kept, soup = greedy_soup(count, fuse, accuracy)
    return kept, soup["members"].tolist(), asked


def test_greedy_soup_starts_from_the_best_and_leaves_out_what_makes_the_average_worse() -> None:
    accuracies = {(0,): 0.9, (1,): 0.7, (2,): 0.8, (0, 2): 0.92, (0, 2, 1): 0.91}
    kept, members, asked = greedy(accuracies, 3)
    assert kept == members == [0, 2]
    assert asked == list(accuracies)
    accuracies |= {(0, 2): 0.89, (0, 1): 0.95}  # one that was left out does not come back, the next is tried without it
    assert greedy(accuracies, 3)[0] == [0, 1]


def test_greedy_soup_keeps_what_changes_nothing_and_takes_the_earlier_of_equals_first() -> None:
    assert greedy({(0,): 0.5, (1,): 0.5, (0, 1): 0.5}, 2)[0] == [0, 1]
    assert greedy({(0,): 0.4, (1,): 0.5, (2,): 0.5, (1, 2): 0.3, (1, 0): 0.5}, 3)[0] == [1, 0]


def test_greedy_soup_of_one_network_is_that_network() -> None:
    assert greedy({(0,): 0.1}, 1)[:2] == ([0], [0])


def test_greedy_soup_of_no_network_is_refused() -> None:
    with pytest.raises(ValueError, match="give at least one"):
        greedy({}, 0)
