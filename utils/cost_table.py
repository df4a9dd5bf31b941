"""The costs of a pipeline's stages as a table, with the hours of a device at a stated speed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from undegrade.utils.costs import Cost, costs
from undegrade.utils.stages import Command

USUAL_SPEED = 20.0  # TFLOP a second
_UNITS = """\
forward, backward: passes of networks, an image each, at most. GB: on disk, about and at most.
hours: of one device at {speed:g} TFLOP a second (--speed), which ranks and processes share out; reading, degrading and writing
images come on top. GPUs of users of DDA did 20 and 49, two CPU cores 0.1 on Digits.
"""


def plan(stages: Sequence[Command], speed: float) -> str:
    """The costs as a table, what is left out, and what the hours are.

    Args:
        stages: of a pipeline.
        speed: of a device, TFLOP a second.
    """
    found = costs(stages)
    lines = [["stage", "images", "forward", "backward", "hours", "GB"]]
    for name, cost in [*((stage.name, cost) for stage, cost in zip(stages, found, strict=True)), ("total", _sum(found))]:
        counts = (f"{count:,}" for count in (cost.images, cost.forward, cost.backward))
        lines.append([name, *counts, _hours(cost, speed), f"{cost.disk / 1e9:,.2f}"])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    table = ["  ".join([row[0].ljust(widths[0]), *(t.rjust(w) for t, w in zip(row[1:], widths[1:], strict=True))]) for row in lines]
    left_out = [f"not counted, {stage.name}: {cost.unknown}" for stage, cost in zip(stages, found, strict=True) if cost.unknown]
    return "\n".join([*table, *left_out, _UNITS.format(speed=speed)])


def _hours(cost: Cost, speed: float) -> str:
    if cost.gflop is None:
        return "-"
    hours = cost.gflop / speed / 3.6e6
    return f"{hours:,.0f}" if hours >= 100 else f"{hours:.2g}" if hours < 10 else f"{hours:.1f}"


def _sum(found: Sequence[Cost]) -> Cost:
    """Of all stages; what is not known counts as nothing."""
    sums: dict[str, Any] = {name: sum(getattr(cost, name) or 0 for cost in found) for name in vars(Cost()) if name != "unknown"}
    return Cost(**sums)
