"""Packages that few need and that are installed by name: the extras of pyproject.toml."""

from __future__ import annotations

import importlib
from typing import Any


def how_to_install(extra: str) -> str:
    """The command that brings the packages of an extra."""
    return f"pip install 'undegrade[{extra}]'"


def import_extra(module: str, extra: str, what: str) -> Any:
    """A module of an extra.

    Args:
        module: its name, which is also that of the package.
        extra: of pyproject.toml.
        what: what needs it, for the message.

    Raises:
        ValueError: it is not installed; names the extra.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ValueError(f"{what} needs the package {module}: {how_to_install(extra)}") from error
