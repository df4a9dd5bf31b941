"""Rules fitted on validation images: weights of votes, gates, and what a gate promises."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import beta
from torch import Tensor

from undegrade.evaluation.fitted.gate import Observed, accuracies, fit_gate, guaranteed
from undegrade.evaluation.fitted.guarantee import harmless, images_needed, loss_p_value, mean_p_value, smallest_loss
from undegrade.evaluation.fitted.pool import Pool, fit_pool, fit_sides
from undegrade.evaluation.fitted.rule import FittedMember, FittedRule, Gate, class_digest, pixel_digests, read_rule, write_rule
from undegrade.evaluation.fitted.signals import GROUPS, member_signals, pixel_signals, signal_names

CLASSES = 4
FITTED = {"a": FittedMember("1", kept=True), "b": FittedMember("2", {"adapter": "dda"})}


def logits_of(labels: Tensor, skill: float, seed: int) -> Tensor:
    """[N, K]: normal numbers, `skill` higher at the label."""
    noise = torch.randn(len(labels), CLASSES, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return noise.scatter_add(1, labels[:, None], torch.full((len(labels), 1), skill, dtype=torch.float64))


def labels_of(count: int) -> Tensor:
    return torch.arange(count) % CLASSES


def rule_of(**changes: object) -> FittedRule:
    gate = Gate(["noise", "disagreement"], [0.0, 0.0], [1.0, 1.0], [1.0, 0.0], 0.0)
    facts = {"rule": "gate", "members": FITTED, "classes": "c", "frame": "32 px", "fitted_on": {}, "gate": gate}
    return FittedRule(**{**facts, "pool": Pool([1.0, 1.0], [1.0, 1.0]), **changes})  # type: ignore[arg-type]


# --- weights


def test_temperature_and_weight_of_members_are_those_of_the_least_likelihood() -> None:
    labels = labels_of(4000)
    good, poor = logits_of(labels, 3, 0), logits_of(labels, 0.2, 1)
    pool = fit_pool(torch.stack([2.5 * good, poor]), labels)
    # skill s and unit noise: the right logits are s times the noisy ones
    assert pool.temperatures[0] == pytest.approx(2.5 / 3, rel=0.1)
    assert pool.weights[0] > 0.9 and sum(pool.weights) == pytest.approx(1, abs=1e-5)
    alike = fit_pool(torch.stack([good, logits_of(labels, 3, 2), logits_of(labels, 3, 3)]), labels)
    assert max(alike.weights) - min(alike.weights) < 0.2, "members of one skill count alike"
    assert fit_pool(good[None], labels).weights == [1.0]


def test_probabilities_of_a_pool_by_hand() -> None:
    logits = torch.randn(3, 5, CLASSES)
    pool = Pool([0.5, 1.0, 2.0], [0.2, 0.3, 0.5])
    expected = sum(w * torch.softmax(x.double() / t, 1) for w, x, t in zip(pool.weights, logits, pool.temperatures, strict=True))
    torch.testing.assert_close(pool.probabilities(logits), expected)
    torch.testing.assert_close(pool.probabilities(logits, [False, True, False]), 0.3 * logits[1].double().softmax(1))
    with pytest.raises(ValueError, match="a positive temperature and a weight of 0 or more"):
        Pool([1.0, -1.0], [0.5, 0.5])


def test_sides_of_a_gate_are_pools_of_their_own() -> None:
    labels = labels_of(400)
    members = torch.stack([logits_of(labels, skill, i) for i, skill in enumerate((2, 3, 0.1))])
    pool = fit_sides(members, labels, [True, False, True])
    assert pool.weights[1] == 1.0 and pool.weights[0] + pool.weights[2] == pytest.approx(1, abs=1e-5)
    assert pool.weights[0] > pool.weights[2]


# --- gates


def observed(count: int, adapted_is_better: Tensor, seed: int = 0) -> Observed:
    """The signal tells, with some noise, whether the adapted image is seen better."""
    labels = labels_of(count)
    skill = torch.where(adapted_is_better, 0.3, 3.0)
    kept, other = (
        logits_of(labels, 0, 10 * seed + i).scatter_add(1, labels[:, None], s[:, None].double()).softmax(1)
        for i, s in enumerate((skill, 3.3 - skill))
    )
    noise = torch.randn(count, generator=torch.Generator().manual_seed(seed + 1))
    return Observed((adapted_is_better.float() * 4 + noise)[:, None], kept, other, labels)


def test_a_gate_takes_the_better_side_and_weighs_what_is_at_stake() -> None:
    better = torch.arange(2000) % 2 == 0
    cell = observed(2000, better)
    gate = fit_gate([cell], ["noise"])
    assert gate.weights[0] > 0
    found, sides = accuracies(gate, cell), cell.right
    assert found["gated"] > max(found["kept"], found["adapted"]) + 0.2
    assert found["gated"] > 0.97 * np.where(better.numpy(), sides[1], sides[0]).mean()
    assert abs(found["restored"] - 0.5) < 0.05
    for always in (True, False):  # one side is better everywhere
        alone = observed(200, torch.full((200,), always))
        gain = alone.other if always else alone.kept
        gate = fit_gate([Observed(alone.signals, gain * 0 + 0.25, gain * 0 + 0.25, alone.labels)], ["noise"])
        assert gate.intercept == -50, "nothing is gained: nothing is restored"


def test_odds_of_a_gate_by_hand() -> None:
    gate = Gate(["noise", "change"], [1.0, 2.0], [2.0, 4.0], [3.0, -1.0], 0.5, 0.25)
    signals = torch.tensor([[3.0, 2.0], [1.0, 6.0], [1.0, 2.0]])
    torch.testing.assert_close(gate.odds(signals), torch.tensor([3.5, -0.5, 0.5], dtype=torch.float64))
    assert gate.restores(signals).tolist() == [True, False, True]
    assert not Gate(["noise"], [0.0], [1.0], [1.0], 0.0, None).restores(torch.ones(3, 1)).any()


def test_a_rule_takes_each_image_s_side() -> None:
    logits = torch.randn(2, 3, CLASSES)
    rule = rule_of()
    restored = rule.restored(logits, torch.tensor([[1.0], [-1.0], [2.0]]))
    assert restored is not None and restored.tolist() == [True, False, True]
    scores = rule.scores(logits, restored)
    torch.testing.assert_close(scores, torch.stack([logits[1, 0], logits[0, 1], logits[1, 2]]).double().softmax(1))


# --- the promise


def test_bounds_are_clopper_and_pearson_s() -> None:
    for lost, count in ((0, 100), (3, 200), (50, 300)):
        upper = beta.ppf(0.95, lost + 1, count - lost)
        values = np.arange(count) < lost
        assert loss_p_value(values, upper) == pytest.approx(0.05, rel=1e-6)
    assert images_needed(0.005) == 598 and smallest_loss(598) == pytest.approx(0.005, rel=1e-3)
    assert images_needed(0.02, 0.99) == math.ceil(math.log(0.01) / math.log(0.98))


def test_p_values_of_means_are_valid_and_find_what_is_there() -> None:
    rng = np.random.default_rng(0)
    false = 0
    for _ in range(400):  # the null hypothesis holds, at its border
        losses = rng.choice([-1.0, 0.0, 1.0], 300, p=[0.1, 0.77, 0.13])
        false += mean_p_value(losses, 0.03) <= 0.05
    assert false <= 0.05 * 400 + 3 * math.sqrt(400 * 0.05 * 0.95)
    gains = rng.choice([-1.0, 0.0, 1.0], 300, p=[0.2, 0.78, 0.02])
    assert mean_p_value(gains, 0.005) < 0.01
    assert harmless([3, 2, 1, 0], lambda threshold: 0.01 if threshold != 1 else 0.2) == [3, 2]


def test_a_promise_is_kept_on_new_images() -> None:
    """Of 100 gates, each with a threshold chosen on 700 images, at most a few lose more."""
    broken = restoring = 0
    for number in range(100):
        rng = torch.Generator().manual_seed(number)
        noisy = observed(700, torch.rand(700, generator=rng) < 0.8, 2 * number)
        clean = observed(700, torch.rand(700, generator=rng) < 0.0, 2 * number + 1)
        gate = Gate(["noise"], [0.0], [1.0], [1.0], -1.0)  # too eager
        made, promise = guaranteed(gate, clean, [noisy], 0.01)
        assert promise["images"] == 700
        fresh = observed(20_000, torch.zeros(20_000, dtype=torch.bool), 10_000 + number)
        kept, other = fresh.right
        broken += (kept & ~other & made.restores(fresh.signals).numpy()).mean() > 0.01
        restoring += made.threshold is not None and accuracies(made, noisy)["restored"] > 0.5
    assert broken <= 10, "5 are expected at most"
    assert restoring >= 90, "and it restores what it may"


def test_too_few_images_say_how_many_are_needed() -> None:
    cell = observed(100, torch.zeros(100, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"--max_loss 0\.5: 100 images, .* give 1196 validation images, or a --max_loss of 3\.0"):
        guaranteed(Gate(["noise"], [0.0], [1.0], [1.0], 0.0), cell, [], 0.005)
    large = observed(5000, torch.zeros(5000, dtype=torch.bool))
    gate, _ = guaranteed(Gate(["noise"], [0.0], [0.01], [1.0], 500.0), large, [], 0.005)
    assert gate.threshold is None or accuracies(gate, large)["restored"] < 0.02, "it would restore everything"


# --- signals


def test_signals_have_the_order_of_their_groups() -> None:
    names = signal_names(["image", "change", "members"])
    assert names == [*GROUPS["image"], *GROUPS["change"], *GROUPS["members"]]
    image, adapted = torch.rand(3, 3, 16, 16), torch.rand(3, 3, 16, 16)
    pixels = pixel_signals(names, image, adapted, None)
    assert pixels.shape == (3, 4)
    np.testing.assert_allclose(pixels[:, 3], (image - adapted).square().mean((1, 2, 3)).sqrt(), rtol=1e-5)
    kept, other = torch.rand(2, 3, CLASSES).softmax(-1)
    found = member_signals(names, kept, other)
    np.testing.assert_allclose(found[:, 0], -(kept * kept.log()).sum(1), rtol=1e-5)
    np.testing.assert_allclose(found[:, 2], (kept - other).clamp(min=0).sum(1), rtol=1e-4)
    with pytest.raises(ValueError, match="unknown group of signals 'imag' in --signals: did you mean 'image'"):
        signal_names(["imag"])


# --- files


def test_a_rule_is_read_as_it_was_written(tmp_path: Path) -> None:
    for rule in (rule_of(), rule_of(rule="fitted", gate=None, pool=Pool([1.0, 2.0], [0.4, 0.6]))):
        write_rule(tmp_path / "rule.json", rule)
        assert read_rule(tmp_path / "rule.json") == rule
    with pytest.raises(FileNotFoundError, match=r"none\.json does not exist: fit the rule on validation images by python"):
        read_rule(tmp_path / "none.json")
    tree = json.loads((tmp_path / "rule.json").read_text())
    for damage in ({"pool": None}, {"gate": {"signals": ["noise"]}}, {"rule": "vote"}, {"more": 1}, {"rule": "gate"}):
        (tmp_path / "rule.json").write_text(json.dumps({**tree, **damage}))
        with pytest.raises(ValueError, match=r"rule\.json is damaged \(.*fit the rule anew"):
            read_rule(tmp_path / "rule.json")


@pytest.mark.parametrize(
    ("members", "classes", "frame", "message"),
    [
        ({"a": FittedMember("1", kept=True)}, ["x"], "32 px", "fitted for 2 members, the system has 1"),
        ({"a": FittedMember("9", kept=True), "b": FittedMember("2", {"adapter": "dda"})}, ["x"], "32 px", "another member 'a'"),
        ({"a": FittedMember("1", kept=True), "b": FittedMember("2", {"adapter": "ilvr"})}, ["x"], "32 px",
         "member 'b' on images of dda .* which looks at images of ilvr"),
        (FITTED, ["y"], "32 px", "other classes"),
        (FITTED, ["x"], "64 px", "32 px there, 64 px here"),
    ],
)  # fmt: skip
def test_a_rule_is_for_its_members_images_and_classes(
    members: dict[str, FittedMember], classes: list[str], frame: str, message: str
) -> None:
    rule = rule_of(classes=class_digest(["x"]))
    rule.check("the rule", FITTED, ["x"], "32 px")
    with pytest.raises(ValueError, match=f"the rule was fitted for .*{message}|{message}"):
        rule.check("the rule", members, classes, frame)


def test_images_that_were_fitted_on_are_not_evaluated(caplog: pytest.LogCaptureFixture) -> None:
    images = torch.randint(0, 256, (300, 3, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    digests = pixel_digests(images)
    assert len(set(digests)) == 300
    rule = rule_of(fitted_on={"pixels": digests[:10]})
    rule.check_unseen("the rule", digests[10:])
    with pytest.raises(ValueError, match="fitted on the labels of 10 of the 300 images that are evaluated"):
        rule.check_unseen("the rule", digests)
    assert not caplog.records
    rule.check_unseen("the rule", [*digests[9:], *digests[10:]])
    assert "was fitted on 1 of the 581 images" in caplog.text
