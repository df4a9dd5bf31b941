"""What --help says of configuration keys: their documentation, values and defaults."""

from __future__ import annotations

import dataclasses
from dataclasses import field
from typing import Literal

import pytest

from undegrade.image_adapt.scripts import generate, image_sample
from undegrade.utils.command_line import ScriptParser
from undegrade.utils.data.sources.registry import DATASETS
from undegrade.utils.key_help import key_help, key_values


@dataclasses.dataclass(frozen=True)
class Base:
    """What sections have in common.

    Attributes:
        rate: share of 100 % that is
            kept: two lines.
        left, right: margins.
    """

    rate: float = 0.5
    left: int | None = None
    right: bool = False


@dataclasses.dataclass(frozen=True)
class Other(Base):
    """Another default.

    Attributes:
        kind: one | two (default: see there).
    """

    rate: float = 0.25
    kind: Literal["one", "two"] | None = "one"


@dataclasses.dataclass(frozen=True)
class Whole:
    """No section of attributes."""

    name: str
    base: Base = field(default_factory=Base)
    other: Other = field(default_factory=Other)


@pytest.mark.parametrize(
    ("places", "text"),
    [
        (("name",), "sets name: "),
        (("base.rate",), "sets base.rate: share of 100 %% that is kept: two lines (default: 0.5)"),
        (
            ("base.rate", "other.rate"),
            "sets base.rate or other.rate: share of 100 %% that is kept: two lines (default: 0.5 of base, 0.25 of other)",
        ),
        (("base.left",), "sets base.left: margins"),
        (("other.right", "base.right"), "sets other.right or base.right: margins (default: false)"),
        (("other.kind",), "sets other.kind: one | two (default: see there)"),
    ],
)
def test_the_documented_line_and_the_default_are_shown(places: tuple[str, ...], text: str) -> None:
    assert key_help(Whole, *places) == text


def test_choices_stand_for_the_value() -> None:
    assert [key_values(Whole, place) for place in ("name", "base.left", "base.right", "other.kind")] == [
        "VALUE", "VALUE", "true|false", "one|two",
    ]  # fmt: skip


@pytest.mark.parametrize("script", [image_sample, generate])
def test_every_flag_of_a_key_is_explained(script: object) -> None:
    parser: ScriptParser = script.parser()  # type: ignore[attr-defined]
    set_keys = [action for action in parser._actions if (action.help or "").startswith("sets ")]
    assert len(set_keys) > 15
    assert [action.option_strings for action in set_keys if len((action.help or "").partition(": ")[2]) < 10] == []
    parser.format_help()


def test_adaptation_names_choices_defaults_and_every_data_set() -> None:
    text = " ".join(image_sample.parser().format_help().split())
    assert "--guidance full|jacobian_free sets dda.guidance: full (gradient through the network) | jacobian_free" in text
    assert "(default: 4 of dda, 8 of ilvr)" in text
    assert (
        f"--dataset DATASET {', '.join(DATASETS)}, an image folder; with --base_samples its layout: plain, imagenetc, imagenetw"
        in text
    )
