"""One way to say that a name is not known: the value, the closest valid one, all valid ones."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def check_choice(value: object, allowed: Iterable[str], what: str, where: str = "") -> str:
    """Return `value` if it is one of `allowed`, else raise.

    Args:
        value: the name that the user gave.
        allowed: the valid names, in the order in which the message lists them.
        what: the noun for the message ("corruption", "config key", ...).
        where: where it stands, for the message ("section 'optimizer'").

    Raises:
        ValueError: names the value, the closest valid name (if one is close) and the allowed set.
    """
    names = list(allowed)
    if isinstance(value, str) and value in names:
        return value
    close = difflib.get_close_matches(str(value), names, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]!r}? " if close else ""
    place = f" in {where}" if where else ""
    raise ValueError(f"unknown {what} {value!r}{place}: {hint}allowed: {', '.join(names)}")
