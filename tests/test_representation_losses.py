"""Losses between features by their invariances, and time steps and their policy by exact values."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from undegrade.trainers import losses
from undegrade.trainers.time_steps import (
    Policy,
    TimeStepConfig,
    check_time_steps,
    decayed_bound,
    draw_steps,
    entropy_weight,
    gumbel_noise,
    policy_losses,
    possible_steps,
)


def maps(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("loss", [losses.l2, losses.l1, losses.l2_normalised, losses.channel_cosine_distance,
                                  losses.attention_transfer])  # fmt: skip
def test_a_feature_is_at_no_distance_from_itself(loss: object) -> None:
    x = maps(4, 6, 3, 3)
    assert loss(x, x).item() == pytest.approx(0, abs=1e-6) and loss(x, maps(4, 6, 3, 3, seed=1)).item() > 0.001


def test_cosine_falls_as_vectors_align() -> None:
    x = torch.tensor([[1.0, 0.0]])
    found = [losses.channel_cosine_distance(torch.tensor([[math.cos(a), math.sin(a)]]), x).item() for a in (0, 0.5, 1.5, 3.0)]
    assert found == pytest.approx([1 - math.cos(a) for a in (0, 0.5, 1.5, 3.0)], abs=1e-6)


def test_attention_transfer_by_hand_and_whatever_the_scale_of_a_map() -> None:
    x, y = maps(4, 6, 3, 3), maps(4, 9, 3, 3, seed=1)
    assert losses.attention_transfer(7 * x, y).item() == pytest.approx(losses.attention_transfer(x, y).item(), rel=1e-4)
    one, two = torch.zeros(1, 1, 1, 2), torch.ones(1, 2, 1, 2)
    one[..., 0] = 3.0  # attention (1, 0) against (1, 1) / sqrt(2)
    assert losses.attention_transfer(one, two).item() == pytest.approx(((1 - 0.5**0.5) ** 2 + 0.5) / 2, rel=1e-4)


def test_relations_do_not_change_with_scale_rotation_and_place() -> None:
    x, y = maps(6, 5), maps(6, 8, seed=1)
    turned = torch.linalg.qr(maps(5, 5, seed=2))[0]
    assert losses.relational(x, 3 * x @ turned + 2).item() == pytest.approx(0, abs=1e-4)
    assert losses.relational(x, y).item() > 0.1
    # three points of a right triangle with legs 3 and 4 against one with equal sides
    right, equal = torch.tensor([[0.0, 0], [3, 0], [0, 4]]), torch.tensor([[0.0, 0], [1, 0], [0.5, 3**0.5 / 2]])
    distances = sum(F.smooth_l1_loss(torch.tensor(a), torch.tensor(b)).item() for a, b in ((3 / 4, 1.0), (1.0, 1.0), (5 / 4, 1.0)))
    assert losses.relational(right, equal, 1, 0).item() == pytest.approx(2 * distances / 9, rel=1e-4)


def test_a_batch_too_large_for_all_triplets_is_refused() -> None:
    with pytest.raises(ValueError, match=r"of 700 images 3.4e\+08: set data.batch_size to 512 or less"):
        losses.relational(maps(700, 4), maps(700, 4))


def test_info_nce_is_lowest_where_each_image_finds_its_own() -> None:
    x = torch.eye(4)
    assert losses.info_nce(x, x).item() == pytest.approx(math.log(1 + 3 * math.exp(-10)), rel=1e-3)
    assert losses.info_nce(x, x.flip(0)).item() > 9


def test_schedules_of_entropy_and_of_decaying_time_steps() -> None:
    config = TimeStepConfig(strategy="policy")
    assert [entropy_weight(config, epoch) for epoch in (0, 50, 100, 150)] == pytest.approx([0.1, 0.05, 0, 0])
    assert [decayed_bound(config, epoch) for epoch in (0, 50, 100, 150)] == [1000, 525, 50, 50]


def test_time_steps_are_drawn_from_their_ranges_and_again_alike() -> None:
    for config, low, high in (
        (TimeStepConfig(t=7), 7, 7), (TimeStepConfig("uniform", below=50), 0, 49), (TimeStepConfig("decaying"), 0, 999),
    ):  # fmt: skip
        t, layer = draw_steps(config, 400, 0, 1, 2)
        assert layer is None and (t.min() >= low) and (t.max() <= high) and t.unique().numel() > min(30, high - low)
        assert torch.equal(t, draw_steps(config, 400, 0, 1, 2)[0])
    assert draw_steps(TimeStepConfig("decaying"), 400, 100, 1, 2)[0].max() < 50
    staged = TimeStepConfig("staged", bounds=[1000, 300])
    found = [draw_steps(staged, 50, 0, stream) for stream in range(20)]
    assert {layer for _, layer in found} == {0, 1}
    assert all((t.min() >= 300 and layer == 0) or (t.max() < 300 and layer == 1) for t, layer in found)
    assert possible_steps(TimeStepConfig("policy", grid=4), 1000) == [0, 250, 500, 750]


@pytest.mark.parametrize(("config", "named"), [
    (TimeStepConfig(t=1000), r"method\.time\.t reaches beyond the 1000 time steps"),
    (TimeStepConfig("uniform", below=1001), r"method\.time\.below reaches"),
    (TimeStepConfig("staged", bounds=[300, 1000]), r"bounds \[300, 1000\]: give one for each of the 2 layers, each lower"),
])  # fmt: skip
def test_time_steps_that_do_not_fit_are_refused(config: TimeStepConfig, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        check_time_steps(config, 1000, 2)


@pytest.mark.parametrize(("size", "weights"), [(32, 146_156), (64, 135_292)])
def test_policies_have_the_size_of_the_published_ones(size: int, weights: int) -> None:
    policy = Policy(size, 1000)
    assert sum(p.numel() for p in policy.parameters()) == weights
    assert policy(torch.zeros(2, 3, size, size)).shape == (2, 1000)


def test_gumbel_noise_draws_from_the_softmax() -> None:
    logits = torch.tensor([0.0, 1.0, 2.0])
    drawn = (logits + gumbel_noise(20_000, 3, "test")).argmax(1)
    assert torch.bincount(drawn) / 20_000 == pytest.approx(logits.softmax(0).numpy(), abs=0.01)


@pytest.mark.parametrize("baseline", ["none", "mean"])
@pytest.mark.parametrize("shift", [0.0, 5.0])
def test_reinforce_of_two_actions_is_in_expectation_the_exact_gradient(baseline: str, shift: float) -> None:
    count, rewards = 200_000, torch.tensor([-1.0, -0.2]) + shift
    logits = torch.tensor([0.3, -0.2], requires_grad=True)
    exact = torch.autograd.grad(-(logits.softmax(0) * rewards).sum(), logits)[0]
    actions = (logits.detach() + gumbel_noise(count, 2, "bandit")).argmax(1)
    loss, entropy = policy_losses(logits.expand(count, 2), actions, rewards[actions], baseline)
    found = torch.autograd.grad(loss, logits)[0]
    noise = 0.004 + 0.01 * shift * (baseline == "none")  # without a baseline the spread grows with the rewards
    assert found.numpy() == pytest.approx(exact.numpy(), abs=noise)
    p = logits.softmax(0)
    assert entropy.item() == pytest.approx(-(p * p.log()).sum().item(), rel=1e-5)


def test_images_without_label_do_not_reward() -> None:
    logits = torch.zeros(4, 2, requires_grad=True)
    rewarded = torch.tensor([True, False, False, True])
    loss, _ = policy_losses(logits, torch.tensor([0, 1, 0, 1]), torch.tensor([-1.0, 9, 9, -3]), "mean", rewarded)
    loss.backward()
    assert (logits.grad[1:3] == 0).all() and (logits.grad[[0, 3]] != 0).all()
    assert policy_losses(logits, torch.zeros(4, dtype=torch.int64), torch.zeros(4), "normalised", rewarded & False)[0].item() == 0
