"""Systems of several classifiers, whatever these are made of."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

from torch import nn

from undegrade.evaluation.config import SystemConfig
from undegrade.evaluation.rules import RULES
from undegrade.opening import load, named_settings, wrap
from undegrade.system import System
from undegrade.utils.choices import check_choice
from undegrade.utils.data.sources.image_source import frame_words
from undegrade.utils.data.views import RAW
from undegrade.utils.device import choose_device
from undegrade.view_adapter import open_view_adapter

log = logging.getLogger(__name__)

Member: TypeAlias = "System | nn.Module | str | Path"
"""A classifier: what `load` or `wrap` returned, a network (`wrap` says how it is taken), or what
`load` takes: a checkpoint, an id of the Hugging Face Hub, a name of timm.
"""


def ensemble(
    members: Mapping[str, Member] | Sequence[Member],
    *,
    rule: str = "sum",
    adapters: Mapping[str, str | Path] | None = None,
    runs: str | Path = "runs",
    device: str | None = None,
    batch_size: int = 64,
) -> System:
    """A system of several classifiers of the same classes.

    Args:
        members: by name, or in a list, where they are called "1", "2", ... One may be there twice,
            to look at images as they are and at adapted ones.
        rule: how they come to one answer: a name of `list_rules()` that needs no fitted file.
        adapters: of members that look at adapted images, what adapts these: a name of
            `list_adapters()` or an adaptation YAML ("configs/adapt/Digits/dda.yaml").
        runs: root of the runs, for checkpoints and models by name.
        device: "cpu", "cuda", "cuda:N" (default: a GPU if there is one); systems stay where they
            are.
        batch_size: images that are classified at a time, at least 1.

    Returns:
        A system whose images are as its first member wants them.

    Raises:
        ValueError: no members, an unknown rule, a number of members that it does not take, other
            classes, a system of several members, an adapter of a member that is not there; see
            `load` and `wrap`, too.
        FileNotFoundError: see `load`.
    """
    given = dict(members) if isinstance(members, Mapping) else {str(place): one for place, one in enumerate(members, 1)}
    if not given:
        raise ValueError("an ensemble without members: give at least one classifier")
    row = RULES.get_row(rule)
    if row.needs_two and len(given) != 2:
        raise ValueError(f"rule {rule!r} is for two members, there are {len(given)}: choose another one of list_rules()")
    asked = dict(adapters or {})
    for name in asked:
        check_choice(name, given, "member", "adapters")
    opened = {name: _open(name, member, runs, device) for name, member in given.items()}
    first, *others = opened
    for name in others:
        _check_alike(first, opened[first], name, opened[name])
    on = choose_device(device)
    views = {
        str(known): open_view_adapter(named_settings(known, "adapted", str(runs)), on) for known in dict.fromkeys(asked.values())
    }
    named = next((one.classes for one in opened.values() if not _numbered(one)), opened[first].classes)
    predictors = {name: next(iter(one.members.values())) for name, one in opened.items()}
    looks = {name: str(asked[name]) if name in asked else RAW for name in opened}
    size, resize = opened[first].image_size, opened[first].resize
    together, chosen = f"{rule} of {', '.join(opened)}", SystemConfig(list(opened), rule)
    return System(together, named, chosen, predictors, looks, views, size, resize, None, batch_size)


def _open(name: str, member: Member, runs: str | Path, device: str | None) -> System:
    if isinstance(member, System):
        found = member
    elif isinstance(member, nn.Module):
        found = wrap(member, device=device)
    else:
        found = load(member, runs=runs, device=device)
    if len(found.members) != 1 or found.adapters:
        raise ValueError(f"member {name!r} is a system of several parts, {found}: give single classifiers, and adapters={{...}}")
    return found


def _numbered(system: System) -> bool:
    """Whether nobody named the classes."""
    return system.classes == [str(number) for number in range(len(system.classes))]


def _check_alike(first: str, one: System, name: str, other: System) -> None:
    """Raise ValueError for other classes; say it where images are wanted otherwise."""
    unnamed = len(one.classes) == len(other.classes) and (_numbered(one) or _numbered(other))
    if one.classes != other.classes and not unnamed:
        raise ValueError(
            f"member {name!r} has {len(other.classes)} classes ({', '.join(other.classes[:3])}, ...), member {first!r} "
            f"{len(one.classes)} ({', '.join(one.classes[:3])}, ...): give classifiers of the same classes, in the same order"
        )
    wanted, here = (frame_words(system.image_size, system.resize) for system in (other, one))
    if wanted != here:
        log.warning("member %s wants images of %s; it sees those of the first member, %s", name, wanted, here)
