"""Test-time adaptation of the classifier: one file a method. Importing this registers them all."""

from undegrade.evaluation.tta import (  # noqa: F401
    bn,
    bn_ema,
    cotta,
    deyo,
    dusa,
    eata,
    lame,
    live_fusion,
    memo,
    neo,
    rmt,
    roid,
    rotta,
    sar,
    t3a,
    tent,
)  # fmt: skip
