"""The command line of a script: its own flags, and any configuration key as `--section.key
value`.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NoReturn

from undegrade.utils.choices import check_choice
from undegrade.utils.completion import asked, complete
from undegrade.utils.composition import Composition, find_config
from undegrade.utils.config import Tree, check_value, dump_yaml, merge, parse_value, read_all, read_overrides

LISTS = "a list is one word, its items joined by commas (fog,snow)"


def typed(hint: Any) -> Callable[[str], Any]:
    """`type=` of a flag: what its text means in YAML, of the type and the range of `hint`."""

    def read(text: str) -> Any:
        try:
            return check_value(hint, parse_value(text), "")
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return read


def _about(keys: Sequence[str]) -> str | None:
    """What --help says of the configuration keys."""
    forms = [f"--{'section.' * dotted}key value" for dotted in (False, True) if any(("." in key) == dotted for key in keys)]
    return f"Any configuration key may be given too: {' or '.join(forms)}" if forms else None


def _resolved(paths: Sequence[str], overrides: Tree) -> str:
    """The configuration of several paths and keys over them, and the files that it comes from."""
    lines = []
    for path in paths:
        found = find_config(path)
        files = [found.dataset, found.recipe, found.network] if isinstance(found, Composition) else [found]
        lines.append(f"# {path}: {' < '.join(os.path.relpath(file) for file in files if file)}")
    return "\n".join([*lines, dump_yaml(merge(read_all(paths), overrides))])


def leaves(tree: Mapping[str, Any], before: str = "") -> Iterator[str]:
    """The dotted keys of a tree's values."""
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from leaves(value, f"{before}{key}.")
        else:
            yield f"{before}{key}"


def check_effect(given: Mapping[str, Any], reasons: Mapping[str, str]) -> None:
    """Raise ValueError for a key of the command line that would change nothing.

    Args:
        given: the keys that it gives.
        reasons: dotted key, or the section that keys are in -> why it has no effect here, and what
            to use; "" where it has one.
    """
    for key in leaves(given):
        reason = next((reason for place, reason in reasons.items() if reason and f"{key}.".startswith(f"{place}.")), "")
        if reason:
            raise ValueError(f"--{key} has no effect here: {reason}")


class ScriptParser(argparse.ArgumentParser):
    """An argument parser that also takes configuration keys and names the closest flag when one is
    misspelt.

    Args:
        description: text of --help, printed as it is.
        keys: the configuration's keys (`utils.config.dotted_keys`): those without a dot may be
            given as they are, the others are proposed to whoever leaves their section out.
    """

    def __init__(self, description: str | None, keys: Sequence[str] = ()) -> None:
        super().__init__(
            description=description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
            epilog=_about(keys),
        )
        self.keys = list(keys)
        self.add_argument("--include", metavar="MODULE", help="Python modules that register rows of their own (docs/extending.md)")
        self.add_argument("--print_config", action="store_true", help="print what -c and the keys given come to, and stop")

    def parse(self, argv: Sequence[str] | None = None) -> tuple[argparse.Namespace, Tree]:
        """(own flags, configuration keys) of a command line.

        Raises:
            ValueError: an unknown flag (names the closest), a key without value, a word that
                belongs to no flag.
        """
        if asked():
            complete(self)
        own, others = [], []
        words = list(sys.argv[1:] if argv is None else argv)
        while words:
            word = words.pop(0)
            name = word.partition("=")[0]
            if not word.startswith("--") or name in self._option_string_actions:
                own.append(word)
                continue
            if "." not in name:
                self._check_flag(name)
            others.append(word)
            if "=" not in word and words and words[0] not in self._option_string_actions:
                others.append(words.pop(0))
        known, left = self.parse_known_args(own)
        if left:
            if left[0].endswith(".yaml") and "--config" in self._option_string_actions and not known.config:
                raise ValueError(f"{left[0]} stands alone, a configuration goes after -c: {self.prog} -c {left[0]} ...")
            raise ValueError(f"unexpected arguments {left}: {LISTS}; --help names the flags")
        if others and not self.keys:
            raise ValueError(f"unknown option {others[0]!r}: this command has flags only, no configuration keys; --help names them")
        overrides = read_overrides(others, self.keys)
        if known.print_config:
            for key in leaves(overrides):
                if not any(f"{key}.".startswith(f"{known_key}.") for known_key in self.keys):
                    check_choice(key, self.keys, "config key")
            given = getattr(known, "config", None) or []
            print(_resolved([given] if isinstance(given, str) else given, overrides), end="")
            self.exit()
        return known, overrides

    def error(self, message: str) -> NoReturn:
        """Leave with the message alone: the usage would be pages of flags."""
        self.exit(2, f"error: {message}; {self.prog} --help names the flags\n")

    def _check_flag(self, name: str) -> None:
        if name[2:] in self.keys:
            return
        meant = [f"--{key}" for key in self.keys if "." in key and key.rpartition(".")[2] == name[2:]]
        if meant:
            raise ValueError(f"unknown option {name!r}: did you mean {' or '.join(meant)}?")
        flags = [*self._option_string_actions, *(f"--{key}" for key in self.keys if "." not in key)]
        check_choice(name, [flag for flag in flags if flag.startswith("--")], "option")
