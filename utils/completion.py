"""Completion of command lines in the shell, by argcomplete, which is an extra."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Iterable
from typing import NoReturn

_ASKED = "_ARGCOMPLETE"  # argcomplete's: set by the shell; the words that stand before the arguments


def asked() -> bool:
    """Whether the shell asks what may follow; the command line is then in COMP_LINE."""
    return _ASKED in os.environ


def command_word() -> str | None:
    """The word behind the program's name, if the cursor is behind it."""
    words = os.environ["COMP_LINE"][: int(os.environ["COMP_POINT"])].split(" ")
    words = [word for word in words[:-1] if word]
    return words[1] if len(words) > 1 else None


def skip_command_word() -> None:
    """Let the parser see what stands behind `<program> <word>`."""
    os.environ[_ASKED] = "2"


def complete(parser: argparse.ArgumentParser) -> NoReturn:
    """Tell the shell what may follow in a command line of an argparse parser, nothing where
    argcomplete is not installed; and end the process.
    """
    with contextlib.suppress(ImportError):
        import argcomplete  # an extra

        argcomplete.autocomplete(parser)
    sys.exit()


def complete_words(words: Iterable[str]) -> NoReturn:
    """The same of a command line that begins with one of several words."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("command", choices=list(words))
    complete(parser)
