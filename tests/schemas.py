"""Every dataclass that a configuration is built from, found through what the scripts know."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Iterator
from typing import Any

from undegrade.evaluation.config import EvaluationConfig
from undegrade.evaluation.predictors import PREDICTORS
from undegrade.evaluation.published import PublishedConfig
from undegrade.image_adapt.config import adapt_schema
from undegrade.image_adapt.generator import GenerateConfig
from undegrade.models.diffusion.openai_flags import ModelFlags
from undegrade.trainers.config import TrainConfig
from undegrade.trainers.methods import METHODS
from undegrade.trainers.soups import SoupConfig
from undegrade.utils.data.perturbations.registry import PERTURBATIONS
from undegrade.utils.stages import PipelineConfig

ROOTS: list[Any] = [
    TrainConfig, EvaluationConfig, adapt_schema(), GenerateConfig, SoupConfig, PipelineConfig, PublishedConfig, ModelFlags,
    *(section for row in METHODS.values() for section in (row.model, row.method)),
    *(row.options for row in PREDICTORS.values()),
    *(row.options for row in PERTURBATIONS.values() if row.options is not None),
]  # fmt: skip


def parts_of(hint: Any) -> Iterator[Any]:
    """A type, and all types that it is made of; a number with its range is one."""
    yield hint
    if typing.get_origin(hint) not in (typing.Annotated, typing.Literal):
        for part in typing.get_args(hint):
            yield from parts_of(part)


def keys_of(schema: Any) -> dict[str, Any]:
    """Type of each key of a schema."""
    hints = typing.get_type_hints(schema, include_extras=True)
    return {field.name: hints[field.name] for field in dataclasses.fields(schema)}


def reachable(roots: list[Any]) -> list[Any]:
    """The schemas, and those of their sections."""
    found: list[Any] = []
    waiting = list(roots)
    while waiting:
        schema = waiting.pop(0)
        if schema not in found:
            found.append(schema)
            waiting += [part for hint in keys_of(schema).values() for part in parts_of(hint) if dataclasses.is_dataclass(part)]
    return found


SCHEMAS = reachable(ROOTS)
