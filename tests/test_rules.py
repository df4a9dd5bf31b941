"""Ensemble rules: hand-computed cases, the vote's truth table, the published bounds of the double
softmax.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from undegrade.evaluation import rules
from undegrade.evaluation.rules import RULES, combine, mixing_weights

OURS = {name: row for name, row in RULES.items() if row.function.__module__ == rules.__name__}  # not of other packages
OF_LOGITS = [name for name, row in OURS.items() if not row.mixes_images]
OF_IMAGES = [name for name, row in OURS.items() if row.mixes_images]

# Two images, three classes. On image 0 member 1 is the surer by every measure, on image 1 member 2.
P1 = [[0.7, 0.2, 0.1], [0.4, 0.35, 0.25]]
P2 = [[0.3, 0.5, 0.2], [0.1, 0.1, 0.8]]


def probabilities(*members: list[list[float]]) -> Tensor:
    return torch.tensor(members, dtype=torch.float64)


def logits_of(*members: list[list[float]]) -> Tensor:
    """Logits whose softmax are these; the constant added must not matter to any rule of
    probabilities.
    """
    return probabilities(*members).log() + 3.0


def entropy(p: list[float]) -> float:
    return -sum(v * math.log(v) for v in p)


def softmax(values: list[float]) -> list[float]:
    total = sum(math.exp(v) for v in values)
    return [math.exp(v) / total for v in values]


def variance(p: list[float]) -> float:
    mean = sum(p) / len(p)
    return sum((v - mean) ** 2 for v in p) / (len(p) - 1)


def weighted(first: list[float], second: list[float]) -> Tensor:
    """Rows first[b] * P1[b] + second[b] * P2[b]."""
    p1, p2 = probabilities(P1, P2)
    return torch.tensor(first, dtype=torch.float64)[:, None] * p1 + torch.tensor(second, dtype=torch.float64)[:, None] * p2


HAND = {
    "first": weighted([1, 1], [0, 0]),
    "second": weighted([0, 0], [1, 1]),
    "sum": torch.tensor([[1.0, 0.7, 0.3], [0.5, 0.45, 1.05]], dtype=torch.float64),
    "first_and_mean": torch.tensor([[1.0, 0.7, 0.3], [0.5, 0.45, 1.05]], dtype=torch.float64),
    "entropy": weighted([1, 0], [0, 1]),
    "confidence": weighted([1, 0], [0, 1]),
    "var": weighted([1, 0], [0, 1]),
    "entropy_sum": weighted([entropy(p) for p in P2], [entropy(p) for p in P1]),
    "confidence_sum": weighted([0.7, 0.4], [0.5, 0.8]),
}


@pytest.mark.parametrize("rule", HAND)
def test_rule_of_probabilities_equals_the_hand_computed_scores(rule: str) -> None:
    torch.testing.assert_close(combine(rule, logits_of(P1, P2)), HAND[rule])


def test_every_rule_has_a_hand_computed_case() -> None:
    assert set(HAND) | {"vote"} == set(OF_LOGITS)


def test_several_edits_count_as_much_as_the_image_itself() -> None:
    p1, p2, p3 = probabilities(P1, P2, [[0.1, 0.1, 0.8], [0.6, 0.2, 0.2]])
    torch.testing.assert_close(combine("first_and_mean", torch.stack([p1, p2, p3]).log()), p1 + (p2 + p3) / 2)
    torch.testing.assert_close(combine("first_and_mean", p1[None].log()), p1)


@pytest.mark.parametrize("rule", ["entropy_sum", "confidence_sum"])
def test_double_softmax_takes_the_weights_from_softmax_of_p(rule: str) -> None:
    q1, q2 = [softmax(p) for p in P1], [softmax(p) for p in P2]
    expected = {
        "entropy_sum": weighted([entropy(q) for q in q2], [entropy(q) for q in q1]),
        "confidence_sum": weighted([max(q) for q in q1], [max(q) for q in q2]),
    }[rule]
    torch.testing.assert_close(combine(rule, logits_of(P1, P2), double_softmax=True), expected, rtol=1e-6, atol=0)


def test_entropy_may_choose_another_member_under_double_softmax() -> None:
    """H(p) and H(softmax(p)) order these two differently, so the option does reach the selecting
    rules.
    """
    sure_once, spread = [0.60, 0.399, 0.0005, 0.0005], [0.70, 0.10, 0.10, 0.10]
    assert entropy(sure_once) < entropy(spread) and entropy(softmax(sure_once)) > entropy(softmax(spread))
    logits = logits_of([sure_once], [spread])
    torch.testing.assert_close(combine("entropy", logits), probabilities([sure_once])[0])
    found = combine("entropy", logits, double_softmax=True)
    torch.testing.assert_close(found, probabilities([spread])[0], rtol=1e-6, atol=0)


def test_double_softmax_decides_in_float32_where_equals_go_to_the_later_member() -> None:
    """Of a thousand classes H(q) lies within 0.001 of ln 1000, 2,000 steps of float32: members of
    different entropy are equal there.
    """
    logits = torch.randn(2, 4000, 1000, generator=torch.Generator().manual_seed(0))
    in_float32 = torch.special.entr(logits.softmax(-1).softmax(-1)).sum(-1)
    exact = torch.special.entr(logits.double().softmax(-1).softmax(-1)).sum(-1)
    equal = (in_float32[0] == in_float32[1]) & (exact[0] < exact[1])
    assert equal.sum() > 10
    found = combine("entropy", logits, double_softmax=True)[equal]
    torch.testing.assert_close(found, logits[1][equal].softmax(-1).double(), rtol=1e-5, atol=0)


@pytest.mark.parametrize("double_softmax", [False, True])
def test_input_rules_equal_the_hand_computed_weights(double_softmax: bool) -> None:
    q1, q2 = ([softmax(p) if double_softmax else p for p in member] for member in (P1, P2))
    pairs = list(zip(q1, q2, strict=True))
    hand = {
        "entropy_fuse": [softmax([entropy(b), entropy(a)]) for a, b in pairs],
        "confidence_fuse": [softmax([max(a), max(b)]) for a, b in pairs],
        "var_fuse": [softmax([variance(a), variance(b)]) for a, b in zip(P1, P2, strict=True)],
    }
    assert set(hand) == set(OF_IMAGES)
    for rule, expected in hand.items():
        found = mixing_weights(rule, logits_of(P1, P2), double_softmax)
        torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-6, atol=0)
        assert found.shape == (2, 2)


@pytest.mark.parametrize("rule", ["entropy", "confidence", "var"])
def test_of_equally_certain_members_the_later_is_chosen(rule: str) -> None:
    p, permuted, unsure = [0.75, 0.125, 0.125], [0.125, 0.75, 0.125], [0.4, 0.3, 0.3]
    assert combine(rule, logits_of([p], [permuted])).argmax(-1).tolist() == [1]
    assert combine(rule, logits_of([permuted], [p])).argmax(-1).tolist() == [0]
    assert combine(rule, logits_of([p], [permuted], [unsure])).argmax(-1).tolist() == [1]


@pytest.mark.parametrize("rule", ["entropy", "confidence", "var"])
def test_selecting_rules_find_the_most_certain_of_many_members_image_by_image(rule: str) -> None:
    sure, unsure = [0.05, 0.9, 0.05], [0.4, 0.3, 0.3]
    members = [[unsure] * 4 for _ in range(4)]
    for image, member in enumerate([2, 0, 3, 1]):
        members[member][image] = sure
    scores = combine(rule, logits_of(*members))
    torch.testing.assert_close(scores, probabilities([sure] * 4)[0])


def one_hot_logits(labels: list[int], classes: int = 6) -> Tensor:
    """[M,1,K]: every member says its label with logit 1, else 0."""
    return torch.eye(classes)[labels].unsqueeze(1)


@pytest.mark.parametrize(("labels", "winner"), [([3, 3, 3, 3], 3), ([5, 1, 5, 5], 5), ([0, 4, 4, 2], 4), ([2], 2)])
def test_vote_plurality_wins_whatever_the_logits_say(labels: list[int], winner: int) -> None:
    logits = one_hot_logits(labels)
    loud = next((m for m, label in enumerate(labels) if label != winner), None)
    if loud is not None:  # a minority member with huge logits must not matter
        logits[loud] *= 1e4
    assert combine("vote", logits).argmax(-1).tolist() == [winner]


def test_vote_tie_of_two_pairs_is_decided_by_summed_logits() -> None:
    logits = one_hot_logits([1, 1, 4, 4])
    logits[0, 0, 1] = 1.5
    assert combine("vote", logits).argmax(-1).tolist() == [1]
    logits[3, 0, 4] = 2.0
    assert combine("vote", logits).argmax(-1).tolist() == [4]


def test_vote_tie_of_four_is_decided_by_summed_logits() -> None:
    logits = one_hot_logits([0, 1, 2, 3])
    logits[2, 0, 2] = 1.01
    assert combine("vote", logits).argmax(-1).tolist() == [2]


def test_vote_tie_may_elect_a_class_that_nobody_voted_for() -> None:
    logits = one_hot_logits([0, 0, 1, 1])
    logits[:, 0, 5] = 0.9  # second choice of all four: 3.6 against 2
    assert combine("vote", logits).argmax(-1).tolist() == [5]
    logits[3] = one_hot_logits([0])[0]  # 3-1: no tie, the second choice cannot win
    assert combine("vote", logits).argmax(-1).tolist() == [0]


def test_vote_sums_raw_logits_not_probabilities() -> None:
    """Adding a constant to a member changes nothing; scaling one does."""
    logits = torch.tensor([[[2.0, 0.0, 0.0]], [[0.0, 3.0, 0.0]]])
    assert combine("vote", logits).argmax(-1).tolist() == [1]
    logits[0] *= 10
    assert combine("vote", logits).argmax(-1).tolist() == [0]


def test_vote_equals_a_plain_loop_over_images() -> None:
    logits = torch.randn(4, 300, 5, generator=torch.Generator().manual_seed(0))
    expected, ties = [], 0
    for image in range(300):
        votes = [int(member.argmax()) for member in logits[:, image]]
        counts = sorted(((votes.count(label), label) for label in set(votes)), reverse=True)
        tie = len(counts) > 1 and counts[0][0] == counts[1][0]
        ties += tie
        expected.append(int(logits[:, image].double().sum(0).argmax()) if tie else counts[0][1])
    assert 50 < ties < 250
    assert combine("vote", logits).argmax(-1).tolist() == expected


def test_double_softmax_bounds_of_a_thousand_and_of_ten_classes() -> None:
    for classes, digits, entropies, ratio, fuse in (
        (1000, 4, (6.9068, 6.9078), 2.7, {"entropy_fuse": 0.5002, "confidence_fuse": 0.5004, "var_fuse": 0.50025}),
        (10, 3, (2.229, 2.303), 2.3, {"entropy_fuse": 0.533, "confidence_fuse": 0.533, "var_fuse": 0.533}),
    ):
        one_hot, uniform = torch.zeros(1, classes), torch.zeros(1, classes)
        one_hot[0, 0] = 1e4
        logits = torch.stack([one_hot, uniform])
        # H2 p1 + H1 p2 of disjoint class 1: H1 / K; of class 0: H2 + H1 / K.
        scores = combine("entropy_sum", logits, double_softmax=True)[0]
        h1, h2 = float(scores[1] * classes), float(scores[0] - scores[1])
        assert (round(h1, digits), round(h2, digits)) == entropies
        # C1 p1 + C2 p2 likewise.
        scores = combine("confidence_sum", logits, double_softmax=True)[0]
        c1, c2 = float(scores[0] - scores[1]), float(scores[1] * classes)
        assert c1 / c2 == pytest.approx(ratio, abs=0.05)
        if classes == 1000:
            assert c2 == pytest.approx(0.0010, abs=1e-6) and c1 == pytest.approx(0.0027, abs=5e-5)
        for rule, bound in fuse.items():
            first = float(mixing_weights(rule, logits, double_softmax=True)[0, 0])
            assert 0.5 < first <= bound + 6e-5
            if classes == 1000:
                assert first == pytest.approx(bound, abs=6e-5)


def test_the_single_softmax_lets_a_sure_member_outweigh_an_unsure_one() -> None:
    one_hot, uniform = torch.zeros(1, 10), torch.zeros(1, 10)
    one_hot[0, 0] = 1e4
    weights = mixing_weights("entropy_fuse", torch.stack([one_hot, uniform]))
    assert float(weights[0, 0]) == pytest.approx(10 / 11)  # softmax(ln 10, 0)


@pytest.mark.parametrize("rule", OF_LOGITS)
def test_permuting_images_or_classes_permutes_the_scores(rule: str) -> None:
    logits = torch.randn(2, 7, 5, generator=torch.Generator().manual_seed(1))
    images, classes = torch.tensor([3, 0, 6, 1, 5, 2, 4]), torch.tensor([4, 2, 0, 1, 3])
    torch.testing.assert_close(combine(rule, logits[:, images][:, :, classes]), combine(rule, logits)[images][:, classes])


@pytest.mark.parametrize("rule", [name for name in OF_LOGITS if name not in ("first", "second", "first_and_mean")])
def test_the_order_of_members_does_not_matter_without_ties(rule: str) -> None:
    members = 2 if RULES[rule].needs_two else 4
    logits = torch.randn(members, 9, 5, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(combine(rule, logits.flip(0)), combine(rule, logits))


@pytest.mark.parametrize("rule", OF_IMAGES)
def test_swapping_members_swaps_the_mixing_weights(rule: str) -> None:
    logits = torch.randn(2, 9, 5, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(mixing_weights(rule, logits.flip(0)), mixing_weights(rule, logits).flip(1))


@pytest.mark.parametrize("rule", OF_LOGITS)
def test_rules_leave_the_logits_alone_and_take_half_precision(rule: str) -> None:
    logits = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(4)).bfloat16()
    before = logits.clone()
    scores = combine(rule, logits)
    assert torch.equal(logits, before)
    assert scores.shape == (3, 4) and scores.isfinite().all()
    torch.testing.assert_close(scores, combine(rule, logits.double()))


@pytest.mark.parametrize("rule", [name for name, row in OURS.items() if row.needs_two])
@pytest.mark.parametrize("members", [1, 3])
def test_rules_of_two_members_refuse_another_number(rule: str, members: int) -> None:
    entry = combine if rule in OF_LOGITS else mixing_weights
    with pytest.raises(ValueError, match=f"'{rule}' needs exactly 2 members, not {members}"):
        entry(rule, torch.zeros(members, 1, 3))


def test_unknown_rule_is_refused_with_the_closest_name() -> None:
    with pytest.raises(ValueError, match="unknown ensemble rule 'confidense': did you mean 'confidence'"):
        combine("confidense", torch.zeros(2, 1, 3))


def test_input_rule_given_to_combine_says_what_to_do() -> None:
    with pytest.raises(ValueError, match="mixes the input images.*mixing_weights"):
        combine("var_fuse", torch.zeros(2, 1, 3))


@pytest.mark.parametrize(
    "logits", [torch.zeros(2, 3), torch.zeros(0, 1, 3), torch.zeros(2, 1, 1), torch.zeros(2, 1, 3, dtype=torch.int64)]
)
def test_logits_of_another_shape_or_type_are_refused(logits: Tensor) -> None:
    with pytest.raises(ValueError, match=r"logits must be a float tensor \[members, images, classes\]"):
        combine("sum", logits)
