"""The accuracies of a system for its model card, out of an evaluation's results.json. Figures of
other weights, another rule or other adapted images are refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from undegrade.evaluation.fitted.rule import adapter_facts
from undegrade.evaluation.result_files import read_json
from undegrade.evaluation.results import CLEAN, MEAN, Result
from undegrade.system import System
from undegrade.utils.choices import check_choice
from undegrade.utils.config import dump_yaml
from undegrade.utils.data.cells import level_text
from undegrade.utils.data.manifest import SETTINGS, read_settings
from undegrade.utils.data.views import RAW
from undegrade.utils.model_card import Measured, Row


def read_measured(path: Path, system: System, row: str | None = None) -> Measured:
    """The rows of a system in a results file.

    Args:
        path: results.json.
        system: whose results they have to be: the same checkpoints and predictors in the same
            order, the same rule, the same adapter where the adapted images are still there.
        row: name of the system in the file (default: the system's own, or the only one that has its
            members).

    Raises:
        FileNotFoundError: no such file.
        ValueError: no results file, no such row, or results of another system; names the
            difference.
    """
    check_results(path)
    rows, meta = read_json(path)
    name = _row(path, meta, system, row)
    _check_weights(path, meta, name, system)
    checked = _check_views(path, meta, name, system)
    own = [found for found in rows if found.system == name]
    if not own:
        raise ValueError(f"{path} has no rows of {name!r} yet: let the evaluation end")
    own.sort(key=lambda found: (found.corruption == MEAN, found.corruption != CLEAN))
    notes = [f"{meta.get('images', own[0].n)} {meta.get('split', 'test')} images a row; {_made_by(meta)}."]
    if not checked:
        notes.append("The adapted images of the evaluation are not there any more: that this adapter made them was not checked.")
    about = f", constants of {meta['constants']}" if meta.get("constants") else ""
    configuration = dump_yaml(_portable(_of_row(meta.get("configuration", {}), name)))
    return Measured(own[0].dataset, str(meta.get("split", "test")), about, [_shown(found) for found in own], notes, configuration)


def check_results(path: Path) -> None:
    """Raise FileNotFoundError unless there is such a file."""
    if not path.is_file():
        raise FileNotFoundError(f"results {path} do not exist: give the results.json of an evaluation of this system")


def _shown(found: Result) -> Row:
    level = "" if found.severity is None else level_text(found.severity)
    interval = f"{100 * found.ci95_low:.1f} to {100 * found.ci95_high:.1f}"
    return Row(found.corruption, level, found.n, f"{100 * found.accuracy:.1f}", interval, round(found.accuracy, 6))


def _digests(system: System) -> list[str]:
    return [system.origins[name].digest if name in system.origins else "" for name in system.rule.members]


def _row(path: Path, meta: Mapping[str, Any], system: System, row: str | None) -> str:
    systems: dict[str, Any] = meta.get("systems", {})
    if row is not None or system.name in systems:
        return check_choice(row or system.name, systems, "system", str(path))
    looks = [system.views[member] == RAW for member in system.rule.members]
    fitting = [
        name for name, found in systems.items() if (_weights_of(meta, found), _looks_of(meta, found)) == (_digests(system), looks)
    ]
    if len(fitting) != 1:
        raise ValueError(
            f"{path} has the systems {', '.join(systems)}, of which {len(fitting)} have the members of {system.name!r}: name one "
            "(--row)"
        )
    return fitting[0]


def _weights_of(meta: Mapping[str, Any], system: Mapping[str, Any]) -> list[str]:
    return [meta.get("members", {}).get(member, "") for member in system["members"]]


def _looks_of(meta: Mapping[str, Any], system: Mapping[str, Any]) -> list[bool]:
    """Of each member, whether it looked at images as they are."""
    return [meta.get("views", {}).get(member, RAW) == RAW for member in system["members"]]


def _check_weights(path: Path, meta: Mapping[str, Any], name: str, system: System) -> None:
    found = meta["systems"][name]
    if _weights_of(meta, found) != _digests(system) or "" in _digests(system):
        theirs, ours = (", ".join(filter(None, digests)) or "not known" for digests in (_weights_of(meta, found), _digests(system)))
        raise ValueError(
            f"{path}: {name!r} was evaluated with other checkpoints or predictors ({theirs}) than those of {system.name!r} "
            f"({ours}): evaluate this system, or leave the results out"
        )
    if (found["rule"], bool(found.get("double_softmax"))) != (system.rule.rule, system.rule.double_softmax):
        raise ValueError(f"{path}: {name!r} was evaluated with the rule {found['rule']}, the system has {system.rule.rule}")


def _check_views(path: Path, meta: Mapping[str, Any], name: str, system: System) -> bool:
    """Whether all adapted images were there to be compared."""
    views, checked = meta.get("views", {}), True
    for theirs, own in zip(meta["systems"][name]["members"], system.rule.members, strict=True):
        folder = views.get(theirs, RAW)
        if (folder == RAW) != (system.views[own] == RAW):
            raise ValueError(f"{path}: member {theirs!r} looked at {folder}, {own!r} of {system.name!r} at {system.views[own]}")
        if folder == RAW:
            continue
        settings = _settings_in(path, meta, folder)
        checked = checked and settings is not None
        if settings is not None and adapter_facts(read_settings(settings.parent)) != dict(system.adapters[system.views[own]].facts):
            raise ValueError(f"{path}: the images in {folder} were adapted by another adapter than that of {system.name!r}")
    return checked


def _settings_in(path: Path, meta: Mapping[str, Any], folder: str) -> Path | None:
    """File of the settings that the images of a view were adapted with: below the folder as it was
    named, or as it lies beside the results where both were moved; None where they are gone.
    """
    places, out = [Path(folder)], Path(meta.get("configuration", {}).get("out", ""))
    if Path(folder).is_relative_to(out):
        places.append(path.parent / Path(folder).relative_to(out))
    return next((file for place in places if place.is_dir() for file in sorted(place.rglob(SETTINGS))), None)


def _of_row(configuration: Mapping[str, Any], name: str) -> dict[str, Any]:
    """What of an evaluation's configuration is about one system."""
    systems, members = (configuration.get(key, {}) for key in ("systems", "members"))
    if name not in systems:
        return dict(configuration)
    used = {member: members[member] for member in systems[name]["members"] if member in members}
    return {**configuration, "systems": {name: systems[name]}, "members": used or members}


def _made_by(meta: Mapping[str, Any]) -> str:
    facts = (meta.get("provenance") or [{}])[-1]
    commit = f"code {str(facts['commit'])[:10]}{' with changes' if facts.get('dirty') else ''}" if facts.get("commit") else ""
    torch = facts.get("libraries", {}).get("torch")
    words = [commit, facts.get("gpu") or facts.get("cpu") or "", f"torch {torch}" if torch else ""]
    return ", ".join(filter(None, words)) or "made where is not stated"


def _portable(value: Any) -> Any:
    """Without the folders of a machine."""
    if isinstance(value, Mapping):
        return {key: _portable(below) for key, below in value.items()}
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value
