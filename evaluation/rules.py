"""Ensemble rules: pure functions of the members' logits [M,B,K]; the prediction is the argmax of
what they return.

p = softmax(logits) are a member's class probabilities, H their entropy, C their maximum, V their
unbiased variance over classes. Sources: DiffAUD (CVPRW 2024) and DDA (CVPR 2023) for all rules but
`vote`, FusionDistill (WACVW 2024) for `vote`.

The reference programs hand probabilities to rules that apply softmax again, so H and C come from q
= softmax(p), which is almost flat: with 1000 classes H lies in [6.9068, 6.9078] whatever the member
says. `double_softmax=True` reproduces this; V is of p in both. All arithmetic is float64, so that
members tie only when their logits say the same, not because float32 ran out of digits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from undegrade.utils.choices import check_choice


@dataclass(frozen=True)
class Rule:
    """A row of a rule table.

    Attributes:
        function: (logits float64 [M,B,K], double_softmax) -> scores [B,K], or input weights [B,2]
            in `INPUT_RULES`.
        description: one line for help texts and result tables.
        needs_two: the rule is defined for exactly two members.
    """

    function: Callable[[Tensor, bool], Tensor]
    description: str
    needs_two: bool = False


def combine(rule: str, logits: Tensor, double_softmax: bool = False) -> Tensor:
    """Scores [B,K] (float64) of the ensemble; argmax over the last dimension is its prediction.

    Args:
        rule: a name of `RULES`.
        logits: [M,B,K], any float type, members in the order in which the ensemble lists them.
        double_softmax: reproduce the reference (see the module's text).

    Raises:
        ValueError: unknown rule, a rule of `INPUT_RULES`, logits of another shape, or not two
            members where two are needed.
    """
    if rule in INPUT_RULES:
        raise ValueError(
            f"ensemble rule {rule!r} mixes the input images, not the logits: take mixing_weights({rule!r}, logits), "
            f"mix the two images and classify the mixture with member 1. Rules of logits: {', '.join(RULES)}"
        )
    return _apply(RULES, rule, logits, double_softmax)


def mixing_weights(rule: str, logits: Tensor, double_softmax: bool = False) -> Tensor:
    """Weights u [B,2] (float64, each row sums to 1) with which an input rule mixes the two views of
    every image.

    The ensemble's logits are then member 1's logits of `u[:, 0] * x1 + u[:, 1] * x2`, one more
    forward pass. Mixing before or after normalisation is the same where both views are normalised
    alike.

    Args:
        rule: a name of `INPUT_RULES`.
        logits: [2,B,K] of member 1 on view 1 and member 2 on view 2.
        double_softmax: reproduce the reference (see the module's text).

    Raises:
        ValueError: unknown rule, or logits of another shape.
    """
    return _apply(INPUT_RULES, rule, logits, double_softmax)


def _apply(table: Mapping[str, Rule], name: str, logits: Tensor, double_softmax: bool) -> Tensor:
    rule = table[check_choice(name, table, "ensemble rule")]
    if logits.ndim != 3 or not logits.is_floating_point() or logits.shape[0] == 0 or logits.shape[2] < 2:
        raise ValueError(
            f"logits must be a float tensor [members, images, classes] with at least 1 member and 2 classes, "
            f"not {logits.dtype} {list(logits.shape)}"
        )
    if rule.needs_two and logits.shape[0] != 2:
        allowed = ", ".join(n for n, r in table.items() if not r.needs_two)
        alternative = f" or choose one of: {allowed}" if allowed else ""
        raise ValueError(f"ensemble rule {name!r} needs exactly 2 members, not {logits.shape[0]}: give two{alternative}")
    return rule.function(logits.double(), double_softmax)


def _probabilities(logits: Tensor, double_softmax: bool) -> Tensor:
    """What H and C are of [M,B,K]: p, or the reference's q."""
    p = logits.softmax(-1)
    return p.softmax(-1) if double_softmax else p


def _entropy(logits: Tensor, double_softmax: bool) -> Tensor:
    """H [M,B] in nats."""
    return torch.special.entr(_probabilities(logits, double_softmax)).sum(-1)


def _confidence(logits: Tensor, double_softmax: bool) -> Tensor:
    """C [M,B]."""
    return _probabilities(logits, double_softmax).amax(-1)


def _variance(logits: Tensor, double_softmax: bool) -> Tensor:
    """V [M,B]: of p even in the reference, hence blind to `double_softmax`."""
    return logits.softmax(-1).var(-1)


def _member(index: int) -> Callable[[Tensor, bool], Tensor]:
    return lambda logits, double_softmax: logits[index].softmax(-1)


def _sum(logits: Tensor, double_softmax: bool) -> Tensor:
    return logits.softmax(-1).sum(0)


def _select(certainty: Callable[[Tensor, bool], Tensor]) -> Callable[[Tensor, bool], Tensor]:
    """Rule that takes, image by image, the p of the most certain member; of equals the later one
    (H1 >= H2 -> member 2)."""

    def rule(logits: Tensor, double_softmax: bool) -> Tensor:
        # argmax returns the first of equals: search from the last member backwards.
        best = logits.shape[0] - 1 - certainty(logits, double_softmax).flip(0).argmax(0)
        return logits[best, torch.arange(logits.shape[1], device=logits.device)].softmax(-1)

    return rule


def _entropy_sum(logits: Tensor, double_softmax: bool) -> Tensor:
    """H2 p1 + H1 p2: each member counts as much as the other one is unsure."""
    return (_entropy(logits, double_softmax).flip(0).unsqueeze(-1) * logits.softmax(-1)).sum(0)


def _confidence_sum(logits: Tensor, double_softmax: bool) -> Tensor:
    return (_confidence(logits, double_softmax).unsqueeze(-1) * logits.softmax(-1)).sum(0)


def _vote(logits: Tensor, double_softmax: bool) -> Tensor:
    """Votes per class; where several classes share the most votes, the summed raw logits of ALL
    classes decide alone.

    The softmax of the summed logits, halved, orders classes of equal votes (for top-5) and cannot
    outweigh one vote.
    """
    votes = torch.zeros_like(logits).scatter_(-1, logits.argmax(-1, keepdim=True), 1.0).sum(0)
    tied = (votes == votes.amax(-1, keepdim=True)).sum(-1, keepdim=True) > 1
    return votes.masked_fill(tied, 0.0) + 0.5 * logits.sum(0).softmax(-1)


def _entropy_fuse(logits: Tensor, double_softmax: bool) -> Tensor:
    return _entropy(logits, double_softmax).flip(0).softmax(0).T


def _confidence_fuse(logits: Tensor, double_softmax: bool) -> Tensor:
    return _confidence(logits, double_softmax).softmax(0).T


def _var_fuse(logits: Tensor, double_softmax: bool) -> Tensor:
    return _variance(logits, double_softmax).softmax(0).T


RULES: dict[str, Rule] = {
    "first": Rule(_member(0), "member 1 alone"),
    "second": Rule(_member(1), "member 2 alone", needs_two=True),
    "sum": Rule(_sum, "sum of the members' probabilities (DDA, DiffAUD's published runs)"),
    "entropy": Rule(_select(lambda *given: -_entropy(*given)), "per image the member of lowest entropy, of equals the later"),
    "confidence": Rule(_select(_confidence), "per image the member of highest maximal probability, of equals the later"),
    "var": Rule(_select(_variance), "per image the member of highest variance over classes, of equals the later"),
    "entropy_sum": Rule(_entropy_sum, "H2 p1 + H1 p2: probabilities weighted by the other's entropy", needs_two=True),
    "confidence_sum": Rule(_confidence_sum, "probabilities weighted by the member's own confidence"),
    "vote": Rule(_vote, "plurality of the members' labels; a tie is decided by the summed logits (FusionDistill)"),
}

INPUT_RULES: dict[str, Rule] = {
    "entropy_fuse": Rule(_entropy_fuse, "inputs mixed by softmax(H2, H1), classified by member 1", needs_two=True),
    "confidence_fuse": Rule(_confidence_fuse, "inputs mixed by softmax(C1, C2), classified by member 1", needs_two=True),
    "var_fuse": Rule(_var_fuse, "inputs mixed by softmax(V1, V2), classified by member 1", needs_two=True),
}
