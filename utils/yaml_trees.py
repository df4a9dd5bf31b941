"""Plain trees of mappings, lists and values, and YAML as their text."""

from __future__ import annotations

import re
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import yaml

Tree = dict[str, Any]

_MERGED = "tag:yaml.org,2002:merge"  # of `<<: *name`, which may stand beside the keys that it brings
_DEEPEST, _MOST = 50, 100_000  # levels, and values, that a tree may come to
# What is plainly a number or a truth value, as in YAML 1.2; all else is text. YAML 1.1 also reads
# 010 as 8, 1:30 as 90, no as false and 2024-01-01 as a date, but 1e-3 as a text.
_PLAIN = {
    "bool": ("true|True|TRUE|false|False|FALSE", "tTfF"),
    "int": (r"[-+]?(0|[1-9][0-9_]*)", "-+0123456789"),
    "float": (r"[-+]?((\d+\.\d*|\.\d+)([eE][-+]?\d+)?|\d+[eE][-+]?\d+|\.(inf|Inf|INF))|\.(nan|NaN|NAN)", "-+0123456789."),
}


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]  # the one in C, where there is one
    """Safe loader that reads plain values as `_PLAIN` says, and refuses a key given twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else []:
            name = self.construct_object(key, deep=True) if key.tag != _MERGED else key
            if isinstance(name, Hashable) and name in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key given twice: {name}", key.start_mark)
            seen |= {name} if isinstance(name, Hashable) else set()
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Safe dumper that puts into quotes whatever `_Loader` would not read as text."""


_OTHERS = {"tag:yaml.org,2002:null", _MERGED}
_Loader.yaml_implicit_resolvers = {
    first: [row for row in rows if row[0] in _OTHERS] for first, rows in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _kind, (_pattern, _first) in _PLAIN.items():
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_kind}", re.compile(f"^({_pattern})$"), list(_first))


def load_yaml(path: Path) -> Tree:
    """The mapping that a YAML file holds.

    Raises:
        ValueError: an empty file, not a mapping, a syntax error (file, line, column), a key given
            twice, or more than a configuration can be.
    """
    data = path.read_bytes()
    if not data.strip():
        raise ValueError(f"{path} is empty: write `key: value` lines into it, or restore it from a copy")
    try:
        tree = _loaded(data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise ValueError(f"{path}, line {line} is no text in UTF-8 ({error.reason}): save the file in that encoding") from error
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not valid YAML{_said(error)}") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    if not isinstance(tree, dict | None):
        raise ValueError(f"{path}: expected `key: value` lines at the top level, found a {type(tree).__name__}")
    return tree or {}


def parse_value(text: str) -> Any:
    """The YAML meaning of a command-line value: `0.1` a number, `[a, b]` a list, `null` nothing,
    else text.
    """
    try:
        return _loaded(text)
    except (yaml.YAMLError, ValueError):
        return text


def _loaded(text: str) -> Any:
    try:
        tree = yaml.load(text, Loader=_Loader)  # noqa: S506  a SafeLoader
        values, levels = _extent(tree, {})
    except RecursionError:
        values, levels = 0, _DEEPEST + 1
    except (LookupError, AttributeError) as error:  # of a tag such as !!bool on a text that is none
        raise ValueError(f"a value does not fit its tag ({error!r}): leave the tag, such as !!int, out") from error
    if levels > _DEEPEST or values > _MOST:
        raise ValueError(
            f"it comes to more than {_DEEPEST} levels or {_MOST:,} values, aliases (*name) counted each time: no configuration does"
        )
    return tree


def _extent(value: Any, known: dict[int, tuple[int, int]]) -> tuple[int, int]:
    """(values, levels) of a tree in which the same mapping or list may stand several times.

    Raises:
        ValueError: something that is no mapping, list, text, number, truth value or nothing.
    """
    if not isinstance(value, (dict, list)):
        if not isinstance(value, (str, int, float, type(None))):
            raise ValueError(f"{value!r} is a {type(value).__name__}: write it as text, in quotes")
        return 1, 0
    if id(value) not in known:
        items = [*value.keys(), *value.values()] if isinstance(value, dict) else value
        below = [_extent(item, known) for item in items]
        known[id(value)] = 1 + sum(count for count, _ in below), 1 + max((levels for _, levels in below), default=0)
    return known[id(value)]


def _said(error: yaml.YAMLError) -> str:
    """Place, problem and mend of a syntax error in one line."""
    mark, start = getattr(error, "problem_mark", None), getattr(error, "context_mark", None)
    place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
    place += f" (of what begins in line {start.line + 1})" if mark and start and start.line < mark.line else ""
    problem = getattr(error, "problem", None) or " ".join(str(error).split())
    if isinstance(error, yaml.reader.ReaderError):
        problem = f"{error.reason} (place {error.position}); take them out"
    elif problem.startswith("but"):
        problem = f"{getattr(error, 'context', '')}, {problem}"
    elif "cannot start any token" in problem or "tab character" in problem:
        problem += "; indent with spaces, not tabs, and put a text that begins with @, ` or % into quotes"
    return f"{place}: {problem}"


def dump_yaml(tree: Mapping[str, Any]) -> str:
    """YAML text of a plain tree, keys in their order."""
    return yaml.dump(dict(tree), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


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
