"""Rows by name: methods, adapters, rules, predictors, perturbations, of this project and of others.

Another package adds rows by an entry point (`undegrade.methods`, `undegrade.adapters`, ...) whose
name is the row's and whose value names a module; importing it registers the row. A script imports
further modules by `--include my_module`.
"""

from __future__ import annotations

import importlib
import logging
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import entry_points
from typing import Generic, TypeVar

from undegrade.utils.choices import check_choice

log = logging.getLogger(__name__)

T = TypeVar("T")


class NameTakenError(ValueError):
    """Two rows of one name, of two modules: which of them is meant is never guessed."""


class Registry(Mapping[str, T], Generic[T]):
    """Rows of one kind by name, in the order in which they were registered.

    Entry points of the group are loaded when a row is looked up that is not there, or when all rows
    are listed. One that cannot be imported is named in a warning, and the others work; one whose
    row has the name of another is an error, as it is with `--include`.

    Args:
        kind: noun for messages, in the singular ("adapter").
        group: of the entry points ("undegrade.adapters").
    """

    def __init__(self, kind: str, group: str) -> None:
        self.kind, self.group = kind, group
        self._rows: dict[str, T] = {}
        self._origins: dict[str, str] = {}
        self._complete = False

    def add(self, name: str, row: T) -> T:
        """Register `row` and return it.

        Raises:
            NameTakenError: the name is taken by a row of another module; names both.
        """
        origin = sys._getframe(1).f_globals.get("__name__", "?")
        if name in self._rows and self._origins[name] != origin:
            raise NameTakenError(
                f"two {self.kind}s are called {name!r}: one is of {self._origins[name]}, one of {origin}; give one of them "
                "another name"
            )
        self._rows[name], self._origins[name] = row, origin
        return row

    def get_row(self, name: str, where: str = "") -> T:
        """The row `name`; ValueError with the closest name and all names if there is none."""
        if name not in self._rows:
            self._load()
            check_choice(name, self._rows, self.kind, where)
        return self._rows[name]

    def __getitem__(self, name: str) -> T:
        if name not in self._rows:
            self._load()
        return self._rows[name]

    def __iter__(self) -> Iterator[str]:
        self._load()
        return iter(list(self._rows))

    def __len__(self) -> int:
        self._load()
        return len(self._rows)

    def _load(self) -> None:
        if self._complete:
            return
        self._complete = True
        for point in entry_points(group=self.group):
            try:
                point.load()
            except NameTakenError:
                raise
            except Exception as error:  # of somebody else's package: whatever it is, our rows work without it
                log.warning("the %s %s of %s cannot be imported and is left out: %s", self.kind, point.name,
                            point.dist.name if point.dist else point.value, f"{type(error).__name__}: {error}")  # fmt: skip


def include(words: Sequence[str]) -> None:
    """Import the modules that `--include` names in a command line (joined by commas), those of the
    working folder among them.

    Raises:
        ValueError: none named; one that cannot be imported, with the reason.
    """
    texts = [after for word, after in zip(words, [*words[1:], ""], strict=True) if word == "--include"]
    texts += [word.partition("=")[2] for word in words if word.startswith("--include=")]
    if any(text.startswith("-") or not text for text in texts):
        raise ValueError("option --include has no value: name modules, joined by commas, --include my_module")
    if texts and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    for name in [name for text in texts for name in text.split(",")]:
        try:
            importlib.import_module(name)
        except Exception as error:  # of the user's module: any of them
            raise ValueError(
                f"--include {name}: it cannot be imported ({type(error).__name__}: {error}); name a module as Python imports it, "
                "my_module for my_module.py in the working folder"
            ) from error
