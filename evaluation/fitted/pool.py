"""Temperatures and weights of members, fitted on labelled validation images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor

_TO_EQUAL = 0.01


@dataclass(frozen=True)
class Pool:
    """p = sum_m w_m softmax(logits_m / T_m).

    Attributes:
        temperatures: T_m > 0 (Guo et al., ICML 2017).
        weights: w_m >= 0, of sum 1 (a linear opinion pool; of a gate, on each of its sides).
    """

    temperatures: list[float]
    weights: list[float]

    def __post_init__(self) -> None:
        if len(self.temperatures) != len(self.weights) or min(self.temperatures) <= 0 or min(self.weights) < 0:
            raise ValueError("a pool has a positive temperature and a weight of 0 or more for each member")

    def probabilities(self, logits: Tensor, among: Sequence[bool] | None = None) -> Tensor:
        """Float64 [B, K] of logits [M, B, K]; `among`: of these members alone."""
        chosen = torch.tensor([True] * len(self.weights) if among is None else list(among))
        t, w = (torch.tensor(v, dtype=torch.float64)[chosen][:, None, None] for v in (self.temperatures, self.weights))
        return ((logits[chosen].double() / t).softmax(-1) * w).sum(0)


def fit_pool(logits: Tensor, labels: Tensor) -> Pool:
    """Each member's temperature for its own least negative log-likelihood, then the weights for
    that of the sum, a little nearer to equal ones (by `_TO_EQUAL` times the divergence of theirs
    from equal ones, in nats): known degradations say little of small differences under others.

    Args:
        logits: [M, N, K].
        labels: int64 [N].
    """
    logits, at = logits.double(), labels.expand(len(logits), -1)[:, :, None]

    def alone(log_t: Tensor) -> Tensor:
        return -(logits / log_t.exp()[:, None, None]).log_softmax(-1).gather(2, at).mean((1, 2)).sum()

    log_t = _minimum(alone, len(logits))
    true = (logits / log_t.exp()[:, None, None]).softmax(-1).gather(2, at)[:, :, 0]  # of the true class, [M, N]

    def together(scores: Tensor) -> Tensor:
        likelihood = (scores.softmax(0)[:, None] * true).sum(0).clamp_min(1e-12).log().mean()
        return -likelihood - _TO_EQUAL * scores.log_softmax(0).mean()

    weights = _minimum(together, len(logits)).softmax(0)
    return Pool([round(float(t), 6) for t in log_t.exp()], [round(float(w), 6) for w in weights])


def fit_sides(logits: Tensor, labels: Tensor, kept: Sequence[bool]) -> Pool:
    """A pool of the members that a gate keeps, and one of the others, as one: see `fit_pool`."""
    temperatures, weights = [0.0] * len(kept), [0.0] * len(kept)
    for side in (True, False):
        places = [i for i, own in enumerate(kept) if own is side]
        pool = fit_pool(logits[places], labels)
        for place, temperature, weight in zip(places, pool.temperatures, pool.weights, strict=True):
            temperatures[place], weights[place] = temperature, weight
    return Pool(temperatures, weights)


def _minimum(function: Callable[[Tensor], Tensor], count: int) -> Tensor:
    """Of `count` numbers in [-6, 6]: temperatures, or odds of weights, from 1/400 to 400."""

    def value_and_gradient(values: np.ndarray) -> tuple[float, np.ndarray]:
        at = torch.from_numpy(values.copy()).requires_grad_(True)
        out = function(at)
        out.backward()
        assert at.grad is not None
        return float(out.detach()), at.grad.numpy()

    found = minimize(value_and_gradient, np.zeros(count), jac=True, method="L-BFGS-B", bounds=[(-6.0, 6.0)] * count)
    return torch.from_numpy(found.x)
