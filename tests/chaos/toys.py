"""An adapter that costs next to nothing, and waits or hangs as the environment says:
`--include tests.chaos.toys --adapter mirror`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence

import torch
from torch import Tensor

from undegrade.image_adapt.adapters import ADAPTERS, Adapter

PAUSE = "CHAOS_PAUSE"  # seconds a batch takes
HANG = "CHAOS_HANG"  # the rank that never ends its first batch


class Mirror(Adapter):
    """Images from right to left, with a little noise."""

    def adapt(self, x: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        if os.environ.get(HANG) == os.environ.get("PMI_RANK", "none"):
            time.sleep(3600)
        time.sleep(float(os.environ.get(PAUSE, "0")))
        noise = torch.stack([torch.randn(x.shape[1:], generator=g) for g in generators])
        return x.flip(-1) + 0.1 * noise


ADAPTERS.add("mirror", Mirror)
