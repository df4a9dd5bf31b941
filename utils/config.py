"""Configurations: YAML and command-line overrides into typed dataclasses; whatever is not known is
an error that names the closest valid key.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar

from annotated_types import Interval

from undegrade.utils.choices import check_choice
from undegrade.utils.composition import read_all, read_yaml
from undegrade.utils.paths import escaped
from undegrade.utils.yaml_trees import Tree, dump_yaml, merge, nested, parse_value

__all__ = [
    "Tree", "build", "dotted_keys", "dump_yaml", "literal_of", "merge", "nested", "parse_value", "read_all",
    "read_overrides", "read_yaml", "to_tree",
]  # fmt: skip

T = TypeVar("T")


def read_overrides(arguments: Sequence[str], known_flags: Sequence[str] = ()) -> Tree:
    """`--a.b.c value` and `--a.b.c=value` pairs into a tree.

    Raises:
        ValueError: a flag without value, a stray word, or a flag with no dot that is not a
            top-level key of the caller (`known_flags`, used for the closest name).
    """
    tree: Tree = {}
    rest = list(arguments)
    while rest:
        flag = rest.pop(0)
        if not flag.startswith("--"):
            raise ValueError(f"unexpected argument {flag!r}; options look like --key value or --section.key value")
        name, sign, text = flag[2:].partition("=")
        if "." not in name:
            check_choice(name, [f.lstrip("-") for f in known_flags], "option")
        if not sign:
            if not rest or rest[0].startswith("--"):
                raise ValueError(f"option --{name} has no value: write --{name} VALUE or --{name}=VALUE")
            text = rest.pop(0)
        tree = merge(tree, nested(name, parse_value(text)))
    return tree


class _ConfigError(ValueError):
    """A mistake at a place of the configuration."""

    def __init__(self, what: str, place: str, text: str) -> None:
        super().__init__(f"config {what} {place!r}: {text}" if place else text)
        self.what, self.place, self.text = what, place, text


def build(schema: type[T], tree: Mapping[str, Any], where: str = "") -> T:
    """An instance of the dataclass `schema` from a plain tree; every key, type and range checked.

    Args:
        schema: a dataclass whose fields are the allowed keys; fields may be dataclasses again. What
            its `__post_init__` raises is of keys below its own place.
        tree: plain values, as YAML gives them. Nothing is converted, but a whole number where a
            number is wanted.
        where: dotted place of `tree` in the whole configuration, for messages.

    Raises:
        ValueError: an unknown or a missing key, an unknown choice (names the closest), or a value
            of the wrong type, outside its range or not finite (names key, value, what is allowed).
    """
    if not isinstance(tree, Mapping):
        raise ValueError(f"config section {escaped(where) or '(top level)'} must be `key: value` lines, not {_shown(tree)}")
    fields = dataclasses.fields(typing.cast(Any, schema))
    hints, prefix = typing.get_type_hints(schema, include_extras=True), f"{where}." if where else ""
    for key in tree:
        check_choice(key, [field.name for field in fields], "config key", f"section {where!r}" if where else "")
    values = {key: check_value(hints[key], value, f"{prefix}{key}") for key, value in tree.items()}
    needed = [f for f in fields if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING]
    missing = [f"{prefix}{field.name}" for field in needed if field.name not in tree]
    if missing:
        raise ValueError(f"config keys that are required: {escaped(', '.join(missing))}")
    try:
        return schema(**values)
    except _ConfigError as error:
        raise _ConfigError(error.what, f"{prefix}{error.place}", error.text) from None
    except ValueError as error:
        raise _ConfigError("section", where, str(error)) from error


def check_value(hint: Any, value: Any, place: str) -> Any:
    """The value of the key at `place`, of the type and the range of `hint`.

    Raises:
        ValueError: see `build`.
    """
    kinds = (hint, *typing.get_args(hint))
    sections = [kind for kind in kinds if isinstance(kind, type) and dataclasses.is_dataclass(kind)]
    if sections and typing.get_origin(hint) is not dict and (value is not None or sections[0] is hint):
        return build(typing.cast(type, sections[0]), value, place)  # or of a section that may be null
    if typing.get_origin(hint) is dict and isinstance(value, Mapping):
        names, entries = typing.get_args(hint)
        return {check_value(names, name, place): check_value(entries, entry, f"{place}.{name}") for name, entry in value.items()}
    if isinstance(value, str) and (literal := literal_of(hint)):
        return check_choice(value, map(str, typing.get_args(literal)), "value", f"config key {place!r}")
    if isinstance(value, float) and not math.isfinite(value):
        raise _ConfigError("key", place, f"expected {_in_words(hint)}, got {value}, which is not finite")
    try:
        return _checker(hint)(value, strict=True)
    except ValueError:
        words = _in_words(hint)
        mend = "; in quotes it is a text" if "a text" in words and isinstance(value, (int, float)) else ""
        raise _ConfigError("key", place, f"expected {words}, got {_shown(value)}{mend}") from None


def _shown(value: Any) -> str:
    """A value in a message, cut off where it is long."""
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}..."


@functools.cache
def _checker(hint: Any) -> Any:
    import pydantic  # here, since it takes a fifth of the time of --help

    return pydantic.TypeAdapter(hint, config={"allow_inf_nan": False}).validate_python


_WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", type(None): "null", Any: "a value"}


def _in_words(hint: Any) -> str:
    """A type as a user calls it."""
    origin, of = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return " ".join([_in_words(of[0]), *(_range(about) for about in of[1:] if isinstance(about, Interval))])
    if origin is Literal:
        return " | ".join(map(str, of))
    if origin in (typing.Union, types.UnionType):
        return " or ".join(map(_in_words, of))
    if origin is list:
        one = _in_words(of[0]).removeprefix("a ")
        return f"a list of {one.replace('number', 'numbers') if 'number' in one else f'{one}s'}"
    return "`key: value` lines" if origin is dict else _WORDS.get(hint, str(hint))


def _range(limits: Interval) -> str:
    """A range as it follows the name of what it is a range of."""
    if limits.ge is not None and limits.le is not None:
        return f"from {limits.ge} to {limits.le}"
    words = {"of at least": limits.ge, "above": limits.gt, "of at most": limits.le, "below": limits.lt}
    return " and ".join(f"{word} {limit}" for word, limit in words.items() if limit is not None)


def dotted_keys(schema: type) -> list[str]:
    """All keys of a schema as the command line writes them: `seed`, `optimizer.lr`, ..."""
    keys = []
    for name, hint in typing.get_type_hints(schema).items():
        below = dotted_keys(typing.cast(type, hint)) if dataclasses.is_dataclass(hint) else []
        keys += [f"{name}.{key}" for key in below] or [name]
    return keys


def literal_of(hint: Any) -> Any:
    """`hint` if it is a Literal, the Literal of `Literal[...] | None`, else None."""
    options = [option for option in typing.get_args(hint) if option is not type(None)]
    candidate = hint if typing.get_origin(hint) is Literal else options[0] if len(options) == 1 else None
    return candidate if typing.get_origin(candidate) is Literal else None


def to_tree(config: Any) -> Tree:
    """Plain tree of a dataclass instance, as `build` reads it back."""
    return dataclasses.asdict(config)
