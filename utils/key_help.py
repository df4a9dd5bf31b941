"""What --help says of a configuration key: its line in the dataclass's docstring, its values, its
default.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import re
import typing
from typing import Any

from undegrade.utils.config import literal_of


def key_help(schema: type, *places: str) -> str:
    """The help of a flag that sets a key.

    Args:
        schema: dataclass of the whole configuration.
        places: the key, as `seed` or `dda.guidance`; or one in each of several sections.
    """
    found = {place: _owner(schema, place) for place in places}
    text = "; or: ".join(dict.fromkeys(_text(*where) for where in found.values()))
    defaults = {place.rpartition(".")[0]: _default(*where) for place, where in found.items()}
    several = len(set(defaults.values())) > 1
    shown = ", ".join(f"{value} of {section}" for section, value in defaults.items()) if several else defaults.popitem()[1]
    default = f" (default: {shown})" if shown and "(default: " not in text else ""
    return f"sets {' or '.join(places)}: {text}{default}".replace("%", "%%")


def key_values(schema: type, place: str) -> str:
    """What stands for the value of a key in --help: its choices, where it has any."""
    kinds = key_types(schema, place)
    if bool in kinds:
        return "true|false"
    literal = literal_of(kinds[0])
    return "VALUE" if literal is None else "|".join(map(str, typing.get_args(literal)))


def key_types(schema: type, place: str) -> list[Any]:
    """The type of a key, then those that it is a union of."""
    owner, name = _owner(schema, place)
    hint = typing.get_type_hints(owner)[name]
    return [hint, *typing.get_args(hint)]


def _text(owner: type, name: str) -> str:
    """What the docstring of the dataclass, or of one that it derives from, says of a key."""
    return next((texts[name] for texts in map(attribute_texts, owner.__mro__) if name in texts), "").rstrip(".")


def _owner(schema: type, place: str) -> tuple[type, str]:
    """The dataclass that a key belongs to, and its name there."""
    section, _, rest = place.partition(".")
    return _owner(typing.get_type_hints(schema)[section], rest) if rest else (schema, section)


def _default(owner: type, name: str) -> str:
    """As the command line writes it; "" where there is none or an empty one."""
    field: Any = next(f for f in dataclasses.fields(owner) if f.name == name)
    value = field.default
    if value in (dataclasses.MISSING, None, ""):
        return ""
    return str(value).lower() if isinstance(value, bool) else str(value)


@functools.lru_cache
def attribute_texts(owner: type) -> dict[str, str]:
    """Name -> text of the section "Attributes:" of a class's docstring."""
    _, _, section = (inspect.cleandoc(owner.__doc__ or "")).partition("Attributes:\n")
    entries = re.findall(r"^ {4}(\w[\w, ]*): (.*(?:\n {5,}.*)*)", section, re.M)
    return {name: " ".join(text.split()) for names, text in entries for name in names.split(", ")}
