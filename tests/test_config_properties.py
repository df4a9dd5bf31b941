"""Any tree is a configuration that is written and read back equal, or is refused in one line."""

from __future__ import annotations

import dataclasses
import typing
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.schemas import ROOTS, keys_of
from undegrade.utils.command_line import ScriptParser
from undegrade.utils.composition import read_yaml
from undegrade.utils.config import build, dump_yaml, parse_value, read_overrides, to_tree

TEXTS = st.text(max_size=8) | st.sampled_from(["no", "1e-3", "010", "null", "{deg}", "{", "jpeg", "noise+blur"])
NUMBERS = st.integers(-2, 400) | st.integers() | st.floats() | st.sampled_from([0.0, 0.5, 1.0])
PLAIN = st.none() | st.booleans() | NUMBERS | TEXTS
WILD = st.recursive(
    PLAIN, lambda below: st.lists(below, max_size=3) | st.dictionaries(TEXTS | NUMBERS, below, max_size=3), max_leaves=6
)


def within(kind: type, limits: Any) -> st.SearchStrategy[Any]:
    """Numbers of a range."""
    low = limits.ge if limits.gt is None else limits.gt
    high = limits.le if limits.lt is None else limits.lt
    if kind is int:
        return st.integers(low, 500 if high is None else high).filter(lambda number: number != limits.lt)
    return st.floats(low, high, allow_nan=False, allow_infinity=False).filter(lambda number: number not in (limits.gt, limits.lt))


def values(hint: Any) -> st.SearchStrategy[Any]:
    """Values of a type, in its range."""
    origin, of = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        return trees(hint)
    if origin is Annotated:
        return within(*of)
    if origin is Literal:
        return st.sampled_from(of)
    if origin is list:
        return st.lists(values(of[0]), max_size=3)
    if origin is dict:
        return st.dictionaries(TEXTS, values(of[1]), max_size=2)
    simple = {str: TEXTS, bool: st.booleans(), type(None): st.none(), int: st.integers(), float: st.floats(allow_nan=False)}
    return simple.get(hint, WILD) if not of else st.one_of([values(option) for option in of])


def trees(schema: Any) -> st.SearchStrategy[dict[str, Any]]:
    """Trees with keys of a schema; now and then a value is of any kind, or a key unknown."""
    bare = {f.name for f in dataclasses.fields(schema) if f.default is f.default_factory is dataclasses.MISSING}
    keys = {key: st.deferred(lambda hint=hint: values(hint)) for key, hint in keys_of(schema).items()}
    right = st.fixed_dictionaries(
        {key: keys[key] for key in bare}, optional={key: value for key, value in keys.items() if key not in bare}
    )
    spoilt = st.tuples(st.sampled_from([*keys, "sede"]), WILD)
    return st.one_of(right, right, st.builds(lambda tree, key_and_value: tree | dict([key_and_value]), right, spoilt))


def in_one_line(error: ValueError) -> bool:
    return "\n" not in str(error) and 10 < len(str(error)) < 2000


@pytest.mark.parametrize("schema", ROOTS, ids=lambda schema: schema.__name__)
@given(data=st.data())
def test_a_tree_is_written_and_read_back_equal_or_refused_in_one_line(schema: Any, tmp_path: Path, data: st.DataObject) -> None:
    tree = data.draw(trees(schema))
    try:
        config = build(schema, tree)
    except ValueError as error:
        assert in_one_line(error)
        return
    (tmp_path / "config.yaml").write_text(dump_yaml(to_tree(config)), encoding="utf-8")
    read = read_yaml(tmp_path / "config.yaml")
    assert read == to_tree(config)
    assert build(schema, read) == config


@given(text=st.text(st.characters(), max_size=8) | WILD.map(str))
def test_a_text_of_the_command_line_is_some_value_or_refused_in_one_line(text: str) -> None:
    try:
        value = read_overrides([f"--a.b={text}"])["a"]["b"]
    except ValueError as error:
        assert in_one_line(error) and "is no text in UTF-8" in str(error)
    else:
        assert str(parse_value(text)) == str(value)


@given(content=st.binary(max_size=60) | st.text(st.sampled_from("ab:-[]{}&*!|>#\"' \t\n0.e<"), max_size=40).map(str.encode))
def test_a_file_of_any_content_is_a_tree_or_refused_in_one_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "any.yaml"
    path.write_bytes(content)
    try:
        tree = read_yaml(path)
    except (ValueError, FileNotFoundError) as error:
        assert "\n" not in str(error) and str(tmp_path) in str(error)
        return
    path.write_text(dump_yaml(tree), encoding="utf-8")
    assert str(read_yaml(path)) == str(tree)  # as text, since .nan is not equal to itself


WORDS = ["--seed", "--data.limit", "-c", "--resume", "-r", "--include", "--print_config", "--", "-", "--=", "--.", "--a..b=1", "-3"]


@given(words=st.lists(st.sampled_from(WORDS) | TEXTS, max_size=5))
def test_any_command_line_is_read_or_refused_in_one_line(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    parser = ScriptParser("a script", ["seed", "data.limit"])
    parser.add_argument("-c", "--config", nargs="+")
    parser.add_argument("-r", "--resume")
    try:
        parser.parse(words)
    except (ValueError, FileNotFoundError) as error:
        assert "\n" not in str(error)
    except SystemExit:
        assert capsys.readouterr().err.count("\n") <= 1
