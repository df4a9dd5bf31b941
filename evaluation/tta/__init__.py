"""Test-time adaptation of the classifier: one file a method. Importing this registers them all."""

from __future__ import annotations

from undegrade.evaluation.tta import (  # noqa: F401
    bn,
    bn_ema,
    cotta,
    deyo,
    eata,
    lame,
    memo,
    neo,
    rmt,
    roid,
    rotta,
    sar,
    t3a,
    tent,
)  # fmt: skip
