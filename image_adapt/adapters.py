"""The adapters by name: those of this project here, those of others by entry points of the group
`undegrade.adapters` or by `--include`.
"""

from __future__ import annotations

from undegrade.image_adapt.adapter import Adapter, Context, NoOptions, Passes, option
from undegrade.image_adapt.classical import CLASSICAL
from undegrade.image_adapt.dda import DDA
from undegrade.image_adapt.decorruptor import Decorruptor
from undegrade.image_adapt.ilvr import ILVR
from undegrade.image_adapt.restoration import Restoration
from undegrade.utils.registry import Registry

__all__ = ["ADAPTERS", "DEFAULT", "Adapter", "Context", "NoOptions", "Passes", "option"]

ADAPTERS: Registry[type[Adapter]] = Registry("adapter", "undegrade.adapters")
ADAPTERS.add("dda", DDA)
ADAPTERS.add("ilvr", ILVR)
ADAPTERS.add("decorruptor", Decorruptor)
ADAPTERS.add("restoration", Restoration)
for _name, _adapter in CLASSICAL.items():
    ADAPTERS.add(_name, _adapter)

DEFAULT = "dda"  # where neither YAML nor command line names one
