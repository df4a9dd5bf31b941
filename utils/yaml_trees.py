"""Plain trees of mappings, lists and values, and YAML as their text."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

Tree = dict[str, Any]

_MERGED = "tag:yaml.org,2002:merge"  # of `<<: *name`, which may stand beside the keys that it brings


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]  # the one in C, where there is one
    """Safe loader that reads `1e-3` as a number (YAML 1.1 wants `1.0e-3`) and refuses a key given
    twice.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value if key.tag != _MERGED]
        twice = sorted({str(k) for k in keys if keys.count(k) > 1})
        if twice:
            raise yaml.constructor.ConstructorError(None, None, f"key given twice: {', '.join(twice)}", node.start_mark)
        return super().construct_mapping(node, deep)


_NUMBER = re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$")
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _NUMBER, list("-+0123456789."))


def load_yaml(path: Path) -> Tree:
    """The mapping that a YAML file holds; an empty file is an empty one.

    Raises:
        ValueError: not a mapping, a syntax error (file, line, column), or a key given twice.
    """
    try:
        with path.open("rb") as file:
            tree = yaml.load(file, Loader=_Loader)  # noqa: S506  a SafeLoader
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(tree, dict | None):
        raise ValueError(f"{path}: expected `key: value` lines at the top level, found a {type(tree).__name__}")
    return tree or {}


def parse_value(text: str) -> Any:
    """The YAML meaning of a command-line value: `0.1` a number, `[a, b]` a list, `null` nothing,
    else text.
    """
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506
    except yaml.YAMLError:
        return text


def dump_yaml(tree: Mapping[str, Any]) -> str:
    """YAML text of a plain tree, keys in their order."""
    return yaml.safe_dump(dict(tree), sort_keys=False, allow_unicode=True, width=120)


def merge(low: Tree, high: Tree) -> Tree:
    """`low` with the keys of `high` laid over it; mappings merge, everything else is replaced."""
    out = dict(low)
    for key, value in high.items():
        both = isinstance(out.get(key), dict) and isinstance(value, dict)
        out[key] = merge(out[key], value) if both else value
    return out


def nested(place: str, value: Any) -> Tree:
    """`a.b.c` and a value as `{a: {b: {c: value}}}`."""
    for part in reversed(place.split(".")):
        value = {part: value}
    return value
