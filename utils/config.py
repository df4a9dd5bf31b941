"""YAML and command-line overrides into typed dataclasses; whatever is not known is an error that
names the closest valid key.

A file may open with `base: other.yaml` (or a list): the named files, relative to this one, are
merged first, this file's keys win.
"""

from __future__ import annotations

import copy
import dataclasses
import re
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import jsonargparse
import yaml

from undegrade.utils.choices import check_choice

T = TypeVar("T")
Tree = dict[str, Any]


class _Loader(yaml.SafeLoader):
    """Safe loader that reads `1e-3` as a number (YAML 1.1 wants `1.0e-3`) and refuses a key given
    twice.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]  # type: ignore[no-untyped-call]
        twice = sorted({str(k) for k in keys if keys.count(k) > 1})
        if twice:
            raise yaml.constructor.ConstructorError(None, None, f"key given twice: {', '.join(twice)}", node.start_mark)
        return super().construct_mapping(node, deep)


_NUMBER = re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$")
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _NUMBER, list("-+0123456789."))


def merge(low: Tree, high: Tree) -> Tree:
    """`low` with the keys of `high` laid over it; mappings merge, everything else is replaced."""
    out = dict(low)
    for key, value in high.items():
        both = isinstance(out.get(key), dict) and isinstance(value, dict)
        out[key] = merge(out[key], value) if both else value
    return out


def read_yaml(path: str | Path) -> Tree:
    """Read a YAML mapping with its `base:` files merged under it.

    Raises:
        FileNotFoundError: names the file and the YAML files that are near it.
        ValueError: not a mapping, a syntax error (file, line, column), a key given twice, a circle
            of bases.
    """
    return _read(Path(path), ())


def _read(path: Path, above: tuple[Path, ...]) -> Tree:
    if path.resolve() in above:
        raise ValueError(f"{path}: `base:` goes in a circle: {' -> '.join(p.name for p in (*above, path))}")
    if not path.is_file():
        parent = path.parent if path.parent.is_dir() else path.parent.parent
        near = sorted(str(p) for p in parent.rglob("*.yaml"))[:12] if parent.is_dir() else []
        raise FileNotFoundError(f"config file {path} does not exist" + (f"; near it: {', '.join(near)}" if near else ""))
    try:
        with path.open("rb") as file:
            tree = yaml.load(file, Loader=_Loader)  # noqa: S506  a SafeLoader
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not valid YAML: {error}") from error
    tree = {} if tree is None else tree
    if not isinstance(tree, dict):
        raise ValueError(f"{path}: expected `key: value` lines at the top level, found a {type(tree).__name__}")
    bases = tree.pop("base", [])
    merged: Tree = {}
    bases = [bases] if isinstance(bases, str) else bases
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
        raise ValueError(f"{path}: `base: {bases}` must be a file name or a list of them, relative to this file")
    for base in bases:
        merged = merge(merged, _read(path.parent / base, (*above, path.resolve())))
    return merge(merged, tree)


def parse_value(text: str) -> Any:
    """The YAML meaning of a command-line value: `0.1` a number, `[a, b]` a list, `null` nothing,
    else text.
    """
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506
    except yaml.YAMLError:
        return text


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


def nested(place: str, value: Any) -> Tree:
    """`a.b.c` and a value as `{a: {b: {c: value}}}`."""
    for part in reversed(place.split(".")):
        value = {part: value}
    return value


def build(schema: type[T], tree: Mapping[str, Any], where: str = "") -> T:
    """An instance of the dataclass `schema` from a plain tree, every key and type checked.

    Args:
        schema: a dataclass whose fields are the allowed keys; fields may be dataclasses again.
        tree: plain values, as YAML gives them.
        where: dotted place of `tree` in the whole configuration, for messages.

    Raises:
        ValueError: an unknown key or choice (names the closest), or a value of the wrong type
            (names key, value, type).
    """
    _check_keys(schema, tree, where)
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(schema, "it")
    try:
        namespace = parser.parse_object({"it": copy.deepcopy(dict(tree))})  # it writes into what it is given
        instantiate = getattr(parser, "instantiate", None) or parser.instantiate_classes  # renamed in jsonargparse 4.49
        return instantiate(namespace)["it"]
    except (TypeError, ValueError, jsonargparse.ArgumentError) as error:
        prefix = f"{where}." if where else ""
        message = _in_words(str(error)).replace("Parser key", "config key")
        for before in ('"', "required: ", ", "):  # of a key, of the first and of further missing keys
            message = message.replace(f"{before}it.", f"{before}{prefix}")
        raise ValueError(message) from error


# patterns of types as jsonargparse prints them -> as a user calls them
_WORDS: dict[str, str | Callable[[re.Match[str]], str]] = {
    r"(?:typing\.)?Literal\[(.*?)\]": lambda match: match[1].replace("'", "").replace(", ", " | "),
    r"list\[int\]": "a list of whole numbers",
    r"<class 'int'>": "a whole number",
    r"<class 'float'>": "a number",
    r"<class 'bool'>": "true or false",
    r"<class 'str'>": "a text",
    r"<class 'list'>": "a list",
    r"<class 'dict'>": "`key: value` lines",
    r"<class 'NoneType'>": "null",
}
_UNION = re.compile(
    r"Does not validate against any of the Union subtypes\s+Subtypes: \[(.*)\]\s+Errors:(?:\n +- .*)+"
    r"\s+Given value type: .*\s+Given value: "
)


def _in_words(message: str) -> str:
    """A message of jsonargparse with its types as a user calls them."""
    message = message.replace("Expected a ", "Expected ")
    for pattern, word in _WORDS.items():
        message = re.sub(pattern, word, message)
    return _UNION.sub(lambda match: f"Expected {match[1].replace(', ', ' or ')}. Got value: ", message)


def _check_keys(schema: type, tree: Mapping[str, Any], where: str) -> None:
    """Names first, so that a misspelt key is reported with the key that was meant."""
    if not isinstance(tree, Mapping):
        raise ValueError(f"config section {where or '(top level)'} must be `key: value` lines, not {tree!r}")
    hints = typing.get_type_hints(schema)
    fields = [f.name for f in dataclasses.fields(schema)]
    for key, value in tree.items():
        place = f"{where}.{key}" if where else str(key)
        check_choice(key, fields, "config key", f"section {where!r}" if where else "")
        hint = hints[key]
        if dataclasses.is_dataclass(hint):
            _check_keys(typing.cast(type, hint), value, place)
        elif typing.get_origin(hint) is dict and dataclasses.is_dataclass(typing.get_args(hint)[1]) and isinstance(value, dict):
            for name, entry in value.items():
                _check_keys(typing.get_args(hint)[1], entry, f"{place}.{name}")
        elif isinstance(value, str) and (literal := literal_of(hint)):
            check_choice(value, [str(a) for a in typing.get_args(literal)], "value", f"config key {place!r}")


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


def dump_yaml(tree: Mapping[str, Any]) -> str:
    """YAML text of a plain tree, keys in their order."""
    return yaml.safe_dump(dict(tree), sort_keys=False, allow_unicode=True, width=120)
