"""Which keys of configurations are looked at while something runs."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from collections.abc import Iterator
from unittest import mock


@contextlib.contextmanager
def recorded(*schemas: type) -> Iterator[set[str]]:
    """The fields of dataclasses that are read in the block, as `Class.field`; not by `dataclasses`
    itself, which copies them all.
    """
    found: set[str] = set()

    def watched(schema: type) -> object:
        names = {field.name for field in dataclasses.fields(schema)}  # type: ignore[arg-type]

        def get(self: object, name: str) -> object:
            if name in names and sys._getframe(1).f_globals.get("__name__") != "dataclasses":
                found.add(f"{schema.__name__}.{name}")
            return object.__getattribute__(self, name)

        return mock.patch.object(schema, "__getattribute__", get)

    with contextlib.ExitStack() as stack:
        for schema in schemas:
            stack.enter_context(watched(schema))  # type: ignore[arg-type]
        yield found


def keys_of(*schemas: type) -> set[str]:
    """All of them."""
    return {f"{schema.__name__}.{field.name}" for schema in schemas for field in dataclasses.fields(schema)}  # type: ignore[arg-type]
