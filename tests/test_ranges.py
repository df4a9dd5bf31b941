"""Every number of every configuration has a range, and what lies outside is refused by name."""

from __future__ import annotations

import dataclasses
import math
import typing
from collections.abc import Callable
from typing import Annotated, Any

import pytest
import yaml
from annotated_types import Interval

from tests.schemas import SCHEMAS, keys_of, parts_of
from undegrade.evaluation import ensemble_command
from undegrade.image_adapt.scripts import generate, image_sample
from undegrade.models.diffusion.openai_flags import parse_flags
from undegrade.trainers import entry, soups
from undegrade.utils.config import build, check_value, read_overrides
from undegrade.utils.stages import PipelineConfig

KEYS = [(schema, key, hint) for schema in SCHEMAS for key, hint in keys_of(schema).items()]
RANGES = [
    (schema, key, part)
    for schema, key, hint in KEYS
    for part in parts_of(hint)
    if typing.get_origin(part) is Annotated
]  # fmt: skip


def outside(number: Any) -> list[float]:
    """Values just beyond the limits of a range, and those that are no number."""
    kind, limits = typing.get_args(number)
    step = 1 if kind is int else 1e-9
    values = [limit - step for limit in (limits.ge,) if limit is not None] + [limit for limit in (limits.gt,) if limit is not None]
    values += [limit + step for limit in (limits.le,) if limit is not None] + [limit for limit in (limits.lt,) if limit is not None]
    return values if kind is int else [*values, math.inf, -math.inf, math.nan]


def required(schema: Any) -> dict[str, Any]:
    """Something for each key that must be given."""
    bare = [f for f in dataclasses.fields(schema) if f.default is f.default_factory is dataclasses.MISSING]
    return {f.name: {"str": "x", "list[str]": []}.get(f.type, {}) for f in bare}


def test_every_number_has_a_range() -> None:
    bare = {f"{schema.__name__}.{key}" for schema, key, hint in KEYS for part in parts_of(hint) if part in (int, float)}
    assert bare == {f"{PipelineConfig.__name__}.variables"}  # texts for the stages, which check them
    assert len(RANGES) > 80


@pytest.mark.parametrize(("schema", "key", "number"), RANGES, ids=[f"{schema.__name__}.{key}" for schema, key, _ in RANGES])
def test_what_lies_outside_a_range_is_refused(schema: Any, key: str, number: Any) -> None:
    hint = keys_of(schema)[key]
    for value in outside(number):
        given: Any = value
        for around in reversed([typing.get_origin(part) for part in parts_of(hint) if typing.get_origin(part) in (list, dict)]):
            given = [given] if around is list else {"some": given}
        text = yaml.safe_dump(given, default_flow_style=True).partition("\n")[0]
        command = read_overrides([f"--section.{key}={text}"])["section"]
        for tree in ({key: given}, command):
            with pytest.raises(ValueError, match=rf"^config key 'section\.{key}.*': expected .*, got "):
                build(schema, required(schema) | tree, "section")


@pytest.mark.parametrize(
    ("hint", "value", "words"),
    [
        (Annotated[int, Interval(ge=1)], 0, "a whole number of at least 1, got 0"),
        (Annotated[float, Interval(gt=0, le=1)] | None, 1.5, "a number above 0 and of at most 1 or null, got 1.5"),
        (Annotated[float, Interval(ge=0, lt=1)], math.nan, "a number of at least 0 and below 1, got nan, which is not finite"),
        (list[Annotated[int, Interval(ge=1)]], [3, 0], "a list of whole numbers of at least 1, got [3, 0]"),
        (list[float], [math.inf], "a list of numbers, got [inf]"),
        (dict[str, Any], {"a": math.inf}, "a value, got inf, which is not finite"),
    ],
)
def test_the_message_says_the_range(hint: Any, value: Any, words: str) -> None:
    with pytest.raises(ValueError) as caught:
        check_value(hint, value, "a.b")
    assert str(caught.value).partition("expected ")[2] == words


@pytest.mark.parametrize(
    ("main", "words"),
    [
        (entry.main, ["-c", "configs/ind/Digits/ResNet20_clean.yaml", "--bs", "0"]),
        (entry.main, ["-c", "configs/ind/Digits/ResNet20_clean.yaml", "--lr=nan"]),
        (soups.main, ["--dataset", "Digits", "--recalibration_steps", "0"]),
        (ensemble_command.main, ["-c", "configs/ensemble/Digits/ResNet20_diffaud.yaml", "--limit", "0"]),
        (image_sample.parse, ["-c", "configs/adapt/Digits/dda.yaml", "--scale", "nan"]),
        (image_sample.parse, ["-c", "configs/adapt/Digits/dda.yaml", "--batch_size", "0"]),
        (generate.parse, ["-c", "configs/generate/Digits/conditional.yaml", "--cfg-scale", ".inf"]),
    ],
)
def test_flags_have_the_ranges_of_their_keys(main: Callable[[list[str]], object], words: list[str]) -> None:
    with pytest.raises(ValueError, match="^config key '.*': expected .* number"):
        main(words)


def test_flags_without_a_key_have_a_range_too(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        image_sample.parse(["--threads", "0"])
    assert "argument --threads: expected a whole number of at least 1, got 0" in capsys.readouterr().err
    with pytest.raises(ValueError, match="'num_heads': expected a whole number of at least 1, got 0"):
        parse_flags({"num_heads": "0"})
