"""Classify images whose degradation is unknown: blurred, noisy, compressed, or taken in bad
weather.

    import undegrade

    system = undegrade.load("ind/Digits/ResNet20_clean", adapter="configs/adapt/Digits/dda.yaml")
    for found in system.predict("photos", top=5):
        print(found.name, found.names, found.confidences, found.way)

The functions are imported, with the libraries that they need, when one is first used;
docs/tutorial.md shows each.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from undegrade.answers import Explanation, Prediction, Predictions
    from undegrade.joining import ensemble
    from undegrade.listing import list_adapters, list_methods, list_perturbations, list_predictors, list_rules
    from undegrade.opening import load, wrap
    from undegrade.perturbing import corrupt, degrade
    from undegrade.scoring import evaluate
    from undegrade.system import System

_checkout = Path(__file__).resolve().parents[1]
if (_checkout / "pyproject.toml").is_file() and (_checkout / "utils" / "config.py").is_file():
    __path__.append(str(_checkout))  # in a checkout the packages lie beside this folder, installed they lie in it

__all__ = [
    "Explanation", "Prediction", "Predictions", "System", "corrupt", "degrade", "ensemble", "evaluate", "list_adapters",
    "list_methods", "list_perturbations", "list_predictors", "list_rules", "load", "wrap",
]  # fmt: skip

_MODULES = {
    **dict.fromkeys(("list_adapters", "list_methods", "list_perturbations", "list_predictors", "list_rules"), "listing"),
    **dict.fromkeys(("load", "wrap"), "opening"),
    **dict.fromkeys(("corrupt", "degrade"), "perturbing"),
    "ensemble": "joining",
    "evaluate": "scoring",
    **dict.fromkeys(("Explanation", "Prediction", "Predictions"), "answers"),
    "System": "system",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'undegrade' has no attribute {name!r}; it has {', '.join(__all__)}")
    value = getattr(importlib.import_module(f"undegrade.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
