"""The low-pass operator by which an adapted image is held to its reference: shrink by a factor,
enlarge again.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from undegrade.utils.choices import check_choice

BORDERS = ("reflect", "zero")


class LowPass:
    """phi_D(X) = M X M^T: cubic (a = -0.5) antialiased shrinking by D, then cubic enlarging; M is
    [size, size].

    The operator is linear and separable, so two small matrix products replace both resizes. It is
    symmetric (M = M^T) with spectral norm <= 1 and agrees with ResizeRight's filter away from the
    borders.

    Args:
        size: height and width H of the images in pixels.
        downscale_factor: D, a divisor of `size`; 1 gives the identity.
        border: what lies outside the image. "reflect": its mirror image, edge pixel repeated. A
            constant image is then kept everywhere, and M stays symmetric, so that the gradient of
            ||phi(r)|| is phi applied once more, free of border artefacts (weights renormalised at
            the border would keep constants too, but lose the symmetry). "zero": the published
            operator, which pads with zeros after normalising its weights: it changes the mean in a
            frame of 3.5 D pixels (phi(1) is 0.36 in the corners for D = 4), and guides weakly
            there.

    Raises:
        ValueError: unknown border; a factor that does not divide the size.
    """

    def __init__(self, size: int, downscale_factor: int, border: str = "reflect") -> None:
        check_choice(border, BORDERS, "border")
        if downscale_factor < 1 or size % downscale_factor:
            divisors = ", ".join(str(d) for d in range(1, size + 1) if size % d == 0)
            raise ValueError(f"downscale_factor {downscale_factor} does not divide the image size {size}: use one of {divisors}")
        small = size // downscale_factor
        matrix = _resize_matrix(size, small, border) @ _resize_matrix(small, size, border)
        self.matrix = torch.from_numpy(matrix)  # float64, on the CPU
        self._placed: dict[tuple[torch.dtype, torch.device], Tensor] = {}

    def __call__(self, x: Tensor) -> Tensor:
        """phi_D of x [..., H, H], in the dtype of x, differentiable."""
        kind = x.dtype, x.device
        if kind not in self._placed:
            self._placed[kind] = self.matrix.to(x.dtype).to(x.device)
        matrix = self._placed[kind]
        return matrix @ x @ matrix.T


def _resize_matrix(n_out: int, n_in: int, border: str) -> np.ndarray:
    """float64 [n_out, n_in] of 1-D cubic resizing; pixel centres of both grids span the same
    field.
    """
    ratio = n_in / n_out
    width = max(ratio, 1.0)  # a shrinking kernel is widened: antialiasing
    centres = (np.arange(n_out)[:, None] + 0.5) * ratio - 0.5
    reach = int(np.ceil(2 * width))
    taps = np.floor(centres).astype(np.int64) + np.arange(-reach, reach + 2)
    weights = _cubic((taps - centres) / width)
    weights /= weights.sum(axis=1, keepdims=True)
    if border == "zero":
        weights[(taps < 0) | (taps >= n_in)] = 0
    folded = taps % (2 * n_in)
    folded = np.minimum(folded, 2 * n_in - 1 - folded)
    matrix = np.zeros((n_out, n_in))
    np.add.at(matrix, (np.arange(n_out)[:, None], folded), weights)
    return matrix


def _cubic(x: np.ndarray) -> np.ndarray:
    """Keys' cubic convolution kernel with a = -0.5 (Catmull-Rom), zero beyond |x| = 2."""
    x = np.abs(x)
    inner = 1.5 * x**3 - 2.5 * x**2 + 1
    outer = -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    return np.where(x <= 1, inner, np.where(x <= 2, outer, 0.0))
