"""The flags of the adapters' options: which adapter has which, and what those that are given mean
for the adapter in use.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch

from undegrade.image_adapt.adapters import ADAPTERS, DEFAULT, Adapter, Context, Passes
from undegrade.image_adapt.config import AdaptConfig
from undegrade.image_adapt.scripts.ranks import check_needed, flag_value
from undegrade.utils.config import Tree
from undegrade.utils.key_help import key_help, key_values


@dataclasses.dataclass(frozen=True)
class Target:
    """What a flag sets in an adapter.

    Attributes:
        field: of its options; "" for a flag that describes the file of its model.
        read: from the flag's text and the section's other values to that of the field (None: as
            the field's type says).
    """

    field: str = ""
    read: Callable[[str, Mapping[str, Any]], Any] | None = None


Flags = dict[str, dict[str, Target]]  # flag -> adapter -> target


def add_adapter_flags(p: argparse.ArgumentParser, schema: type) -> Flags:
    """Give `p` the flags of all adapters, in groups by owner; a flag that `p` has already keeps its
    meaning, and the option of that name is set by `--<adapter>.<option>` alone.
    """
    flags: Flags = {}
    for adapter, row in ADAPTERS.items():
        for field in dataclasses.fields(row.Options):
            for flag, read in {field.name: None, **field.metadata.get("flags", {})}.items():
                flags.setdefault(flag, {})[adapter] = Target(field.name, read)
    for adapter, row in ADAPTERS.items():
        for flag in row.model_flags:
            flags.setdefault(flag, {})[adapter] = Target()
    flags = {flag: targets for flag, targets in flags.items() if f"--{flag}" not in p._option_string_actions}
    groups: dict[str, Any] = {}
    for flag, targets in flags.items():
        owners, options = ", ".join(targets), all(target.field for target in targets.values())
        title = f"options of {owners}" if options else f"the network of --model_path, for {owners}"
        about = None if options else "needed where its file does not say it; else they must agree with it"
        if title not in groups:
            groups[title] = p.add_argument_group(title, about)
        groups[title].add_argument(f"--{flag}", **_help(flag, targets, schema))
    return flags


def _help(flag: str, targets: Mapping[str, Target], schema: type) -> dict[str, str]:
    adapter, target = next(iter(targets.items()))
    if not target.field:
        return {"metavar": "VALUE", "help": ADAPTERS[adapter].model_flags[flag].replace("%", "%%")}
    if target.read is not None:
        return {"metavar": "VALUE", "help": (target.read.__doc__ or "").partition("\n")[0].replace("%", "%%")}
    metavar = key_values(schema, f"{adapter}.{target.field}")
    if flag != target.field:
        return {"metavar": metavar, "help": f"the same as --{target.field}"}
    places = [f"{name}.{owned.field}" for name, owned in targets.items() if owned.field]
    return {"metavar": metavar, "help": key_help(schema, *places)}


def check_in_use(flag: str, owners: Collection[str], adapter: str) -> None:
    """Raise ValueError unless the adapter in use is one of the flag's owners."""
    if adapter not in owners:
        whose = f"the adapter{'s' if len(owners) > 1 else ''} {', '.join(owners)}"
        raise ValueError(f"{flag} is an option of {whose}, {adapter} is used here: leave it out")


def read_adapter_flags(
    given: Mapping[str, str], flags: Flags, adapter: str, schema: type, section: Tree
) -> tuple[Tree, dict[str, str]]:
    """What the given flags set for the adapter in use: values of its options, and texts of the
    flags that describe its model.

    Args:
        given: texts by flag.
        flags: of `add_adapter_flags`.
        adapter: its name.
        schema: of the configuration.
        section: the adapter's options from YAML files and dotted keys.

    Raises:
        ValueError: a flag of other adapters; two flags for one option; a text that is no value.
    """
    by_field: dict[str, str] = {}
    for flag in given:
        check_in_use(f"--{flag}", flags[flag], adapter)
        field = flags[flag][adapter].field
        if field in by_field:
            raise ValueError(f"--{by_field[field]} and --{flag} say the same thing twice: give one")
        by_field |= {field: flag} if field else {}
    values: Tree = {}
    for field, flag in by_field.items():
        if flags[flag][adapter].read is None:
            values[field] = flag_value(schema, f"{adapter}.{field}", flag, given[flag])
    for field, flag in by_field.items():
        if (read := flags[flag][adapter].read) is not None:
            values[field] = read(given[flag], section | values)
    for option in dataclasses.fields(ADAPTERS[adapter].Options):
        other = option.metadata.get("instead_of")
        if other and option.name in by_field and other not in by_field:
            values[other] = None  # the flag takes the place of what the YAML gives; both flags are a mistake
    return values, {flag: text for flag, text in given.items() if flag not in by_field.values()}


def chosen_adapter(
    args: argparse.Namespace, overrides: Tree, tree: Tree, flags: Flags, schema: type
) -> tuple[str, Tree, dict[str, str]]:
    """(adapter, its options from the flags, texts of the flags that describe its model) of a
    command line.

    Args:
        args, overrides: what the parser found.
        tree: the configuration without these flags.
        flags: of `add_adapter_flags`.
        schema: of the configuration.

    Raises:
        ValueError: an unknown adapter; options of another one.
    """
    adapter = str(args.adapter or tree.get("adapter", DEFAULT))
    ADAPTERS.get_row(adapter)
    for owner in overrides.keys() & set(ADAPTERS):
        check_in_use(f"--{owner}.{next(iter(overrides[owner]))}", [owner], adapter)
    given = {flag: getattr(args, flag) for flag in flags if getattr(args, flag) is not None}
    section = tree.get(adapter)
    return (adapter, *read_adapter_flags(given, flags, adapter, schema, section if isinstance(section, dict) else {}))


def check_model(tree: Tree, adapter: str) -> None:
    """Raise ValueError unless the configuration names a model if and only if the adapter needs
    one.
    """
    if ADAPTERS[adapter].needs_model:
        check_needed(tree, "model", "--model_path")
    elif tree.get("model") is not None:
        raise ValueError(f"model {tree['model']}: the adapter {adapter} has none, leave --model_path (`model:` in the YAML) out")


def open_adapter(config: AdaptConfig, model_flags: Mapping[str, str], device: torch.device) -> Adapter:
    """The adapter of a configuration.

    Raises:
        ValueError, FileNotFoundError: see `Adapter.open`; a precision where no network runs.
    """
    model = None if config.model is None else config.fill(config.model)
    context = Context(device, model, model_flags, config.runs, config.input.dataset, config.precision)
    adapter = ADAPTERS[config.adapter].open(getattr(config, config.adapter), context)
    if config.precision != "float32" and adapter.passes == Passes():
        raise ValueError(f"precision {config.precision}: the adapter {config.adapter} runs no network, leave it out")
    return adapter
