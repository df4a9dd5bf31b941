"""One way to say that a name is not known: the value, the closest valid one, all valid ones; and to
fill names into texts.
"""

from __future__ import annotations

import difflib
import string
from collections.abc import Collection, Iterable, Mapping


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


def fill_names(text: str, values: Mapping[str, object], where: str, later: Collection[str] = ()) -> str:
    """`text` with each `{name}` replaced by its value; `{{` and `}}` stand for braces.

    Args:
        text: of a configuration: a name, a path, an argument.
        values: by name.
        where: what the text is, for the message ("stage 'clean'").
        later: names that stay as they are, for whoever fills them in.

    Raises:
        ValueError: a name that is neither (says the closest), or a lone brace (says the mend).
    """
    filled = ""
    try:
        for plain, name, spec, conversion in string.Formatter().parse(text):
            if name is not None and (not name.isidentifier() or spec or conversion):
                raise ValueError(f"{{{name}}} is no name")
            filled += plain
            if name in later:
                filled += f"{{{name}}}"
            elif name is not None:
                filled += str(values[name])
    except KeyError as error:
        check_choice(error.args[0], [*values, *later], "name", where)
        raise
    except ValueError as error:
        raise ValueError(f"{where}: {error}; write {{{{ and }}}} for braces that are no name: {text}") from None
    return filled
