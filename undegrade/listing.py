"""What there is to choose from, by name, with a line each: rows of other packages included."""

from __future__ import annotations

import inspect
import re


def list_adapters() -> dict[str, str]:
    """Name -> one line, of what adapts images: `load(..., adapter=name)` takes those without a
    model of their own, `adapter="configs/adapt/<data set>/<name>.yaml"` all (docs/adaptation.md).
    """
    from undegrade.image_adapt.adapters import ADAPTERS

    return {name: _first_sentence(row.__doc__) for name, row in ADAPTERS.items()}


def list_methods() -> dict[str, str]:
    """Name -> one line, of what trains networks: `method.name` of a training YAML
    (docs/training.md).
    """
    from undegrade.trainers.methods import METHODS

    return {name: _first_sentence(row.method.__doc__) for name, row in METHODS.items()}


def list_predictors() -> dict[str, str]:
    """Name -> one line, of what adapts a classifier to the images that it sees:
    `wrap(model).with_tta(name)` (docs/systems/tta.md).
    """
    import undegrade.evaluation.tta  # noqa: F401  its methods are predictors
    from undegrade.evaluation.predictors import PREDICTORS

    return {name: row.description for name, row in PREDICTORS.items() if name != "frozen"}


def list_rules() -> dict[str, str]:
    """Name -> one line, of how several members come to one answer (docs/evaluation.md)."""
    from undegrade.evaluation.rules import FITTED, RULES

    return {**{name: row.description for name, row in RULES.items()}, **FITTED}


def list_perturbations() -> dict[str, str]:
    """Name -> unit and meaning of its level, of what `corrupt` (severities) and `degrade` (levels)
    do to images.
    """
    from undegrade.utils.data.perturbations.perturbation import PERTURBATIONS

    return {name: row.description for name, row in PERTURBATIONS.items()}


def _first_sentence(text: str | None) -> str:
    paragraph = inspect.cleandoc(text or "").partition("\n\n")[0].replace("\n", " ")
    return re.split(r"\.\s+(?=[A-Z])", paragraph)[0].rstrip(".")
