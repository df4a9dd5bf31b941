"""The one place where uint8 pixels become model input and model output becomes uint8 pixels."""

from __future__ import annotations

import torch
from torch import Tensor

from undegrade.utils.choices import check_choice

ROUNDINGS = ("round", "truncate")


def to_unit(pixels: Tensor) -> Tensor:
    """uint8 of any shape -> float32 in [0, 1]. Raises ValueError for another dtype (pixels scaled
    twice).
    """
    return _checked(pixels).float().div_(255)


def to_signed(pixels: Tensor) -> Tensor:
    """uint8 of any shape -> float32 in [-1, 1], the range of diffusion models. Raises ValueError
    for another dtype.
    """
    return _checked(pixels).float() / 127.5 - 1


def unit_to_signed(x: Tensor) -> Tensor:
    """Float in [0, 1] -> float in [-1, 1], any shape."""
    return x * 2 - 1


def signed_to_unit(x: Tensor) -> Tensor:
    """Float in [-1, 1] -> float in [0, 1], any shape."""
    return (x + 1) / 2


def from_signed(x: Tensor, rounding: str = "round") -> Tensor:
    """Float in [-1, 1] (values beyond are clamped) -> uint8 of the same shape.

    Args:
        x: any shape.
        rounding: "round" gives back every one of the 256 levels after `to_signed`; "truncate" is
            the published DiffAUD writer, which returns 63 of them one level darker.

    Raises:
        ValueError: unknown rounding.
    """
    check_choice(rounding, ROUNDINGS, "rounding")
    levels = (x.float() + 1) * 127.5
    if rounding == "round":
        levels = levels.round()
    return levels.clamp(0, 255).to(torch.uint8)


def _checked(pixels: Tensor) -> Tensor:
    if pixels.dtype != torch.uint8:
        raise ValueError(f"pixels have dtype {pixels.dtype}: uint8 0..255 is needed (already scaled?)")
    return pixels
