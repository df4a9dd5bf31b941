"""Ensemble rules: pure functions of the members' logits [M,B,K]; the prediction is the argmax of
what they return.

p = softmax(logits) are a member's class probabilities, H their entropy, C their maximum, V their
unbiased variance over classes. Sources: DiffAUD (CVPRW 2024) and DDA (CVPR 2023) for all rules but
`vote`, FusionDistill's (WACVW 2024), and `first_and_mean`, for Decorruptor (ECCV 2024).

The reference programs hand probabilities to rules that apply softmax again, so H and C come from q
= softmax(p), which is almost flat: with 1000 classes H lies in [6.9068, 6.9078] whatever the member
says. `double_softmax=True` reproduces this, in float32 as there: H of two members is often equal in
its digits, and equals go to the later member; V is of p in both. All other arithmetic is float64,
so that members tie only when their logits say the same.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from undegrade.utils.registry import Registry

FITTED = {  # rules with numbers of their own, in a file (evaluation.fitted)
    "gate": "per image the members of the image as it is, or those of the adapted one, as a fitted gate decides",
    "fitted": "probabilities at fitted temperatures, by fitted weights",
}


@dataclass(frozen=True)
class Rule:
    """A row of `RULES`.

    Attributes:
        function: (logits float64 [M,B,K], double_softmax) -> scores [B,K], none of them negative,
            or with `mixes_images` input weights [B,2].
        description: one line for help texts and result tables.
        needs_two: the rule is defined for exactly two members.
        mixes_images: an input rule: the function gives the weights with which the two members'
            images are mixed, and member 1 classifies the mixture.
    """

    function: Callable[[Tensor, bool], Tensor]
    description: str
    needs_two: bool = False
    mixes_images: bool = False


def combine(rule: str, logits: Tensor, double_softmax: bool = False) -> Tensor:
    """Scores [B,K] (float64) of the ensemble; argmax over the last dimension is its prediction.

    Args:
        rule: a name of `RULES`.
        logits: [M,B,K], any float type, members in the order in which the ensemble lists them.
        double_softmax: reproduce the reference (see the module's text).

    Raises:
        ValueError: unknown rule, an input rule, logits of another shape, or not two members where
            two are needed.
    """
    if RULES.get_row(rule).mixes_images:
        raise ValueError(
            f"ensemble rule {rule!r} mixes the input images, not the logits: take mixing_weights({rule!r}, logits), "
            f"mix the two images and classify the mixture with member 1. Rules of logits: {', '.join(rule_names(False))}"
        )
    return _apply(rule, logits, double_softmax)


def mixing_weights(rule: str, logits: Tensor, double_softmax: bool = False) -> Tensor:
    """Weights u [B,2] (float64, each row sums to 1) with which an input rule mixes the two views of
    every image.

    The ensemble's logits are then member 1's logits of `u[:, 0] * x1 + u[:, 1] * x2`, one more
    forward pass. Mixing before or after normalisation is the same where both views are normalised
    alike.

    Args:
        rule: an input rule of `RULES`.
        logits: [2,B,K] of member 1 on view 1 and member 2 on view 2.
        double_softmax: reproduce the reference (see the module's text).

    Raises:
        ValueError: unknown rule, a rule of logits, or logits of another shape.
    """
    if not RULES.get_row(rule).mixes_images:
        raise ValueError(f"ensemble rule {rule!r} does not mix images; those that do: {', '.join(rule_names(True))}")
    return _apply(rule, logits, double_softmax)


def rule_names(mixes_images: bool) -> list[str]:
    """The rules of logits, or the input rules."""
    return [name for name, row in RULES.items() if row.mixes_images == mixes_images]


def _apply(name: str, logits: Tensor, double_softmax: bool) -> Tensor:
    rule = RULES[name]
    if logits.ndim != 3 or not logits.is_floating_point() or logits.shape[0] == 0 or logits.shape[2] < 2:
        raise ValueError(
            f"logits must be a float tensor [members, images, classes] with at least 1 member and 2 classes, "
            f"not {logits.dtype} {list(logits.shape)}"
        )
    if rule.needs_two and logits.shape[0] != 2:
        allowed = ", ".join(n for n, r in RULES.items() if not r.needs_two)
        raise ValueError(
            f"ensemble rule {name!r} needs exactly 2 members, not {logits.shape[0]}: give two or choose one of: {allowed}"
        )
    return rule.function(logits.float() if double_softmax else logits.double(), double_softmax).double()


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


def _first_and_mean(logits: Tensor, double_softmax: bool) -> Tensor:
    """p1 and the mean of all others: the image and several edits of it."""
    p = logits.softmax(-1)
    return p[0] + p[1:].mean(0) if len(p) > 1 else p[0]


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


def _mixing(function: Callable[[Tensor, bool], Tensor], weights: str) -> Rule:
    return Rule(function, f"inputs mixed by {weights}, classified by member 1", needs_two=True, mixes_images=True)


RULES: Registry[Rule] = Registry("ensemble rule", "undegrade.rules")
RULES.add("first", Rule(_member(0), "member 1 alone"))
RULES.add("second", Rule(_member(1), "member 2 alone", needs_two=True))
RULES.add("sum", Rule(_sum, "sum of the members' probabilities (DDA, DiffAUD's published runs)"))
RULES.add("first_and_mean", Rule(_first_and_mean, "probabilities of member 1 plus the mean of the others' (several edits)"))
RULES.add("entropy", Rule(_select(lambda *given: -_entropy(*given)), "per image the member of lowest entropy, of equals the later"))
RULES.add("confidence", Rule(_select(_confidence), "per image the member of highest maximal probability, of equals the later"))
RULES.add("var", Rule(_select(_variance), "per image the member of highest variance over classes, of equals the later"))
RULES.add("entropy_sum", Rule(_entropy_sum, "H2 p1 + H1 p2: probabilities weighted by the other's entropy", needs_two=True))
RULES.add("confidence_sum", Rule(_confidence_sum, "probabilities weighted by the member's own confidence"))
RULES.add("vote", Rule(_vote, "plurality of the members' labels; a tie is decided by the summed logits (FusionDistill)"))
RULES.add(
    "entropy_fuse",
    Rule(_entropy_fuse, "inputs mixed by softmax(H2, H1), classified by member 1", needs_two=True, mixes_images=True),
)
RULES.add(
    "confidence_fuse",
    Rule(_confidence_fuse, "inputs mixed by softmax(C1, C2), classified by member 1", needs_two=True, mixes_images=True),
)
RULES.add("var_fuse", _mixing(_var_fuse, "softmax(V1, V2)"))
