"""The configurations that are shipped, files and composed ones, and the runs that they make and
start from.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

from tests.scripts import ROOT
from undegrade.utils.composition import compositions, families
from undegrade.utils.config import Tree, read_yaml

CONFIGS = sorted(p.relative_to(ROOT) for p in (ROOT / "configs").rglob("*.yaml"))
PIPELINES = [p for p in CONFIGS if p.parts[1] == "pipelines"]
COMPOSED = [composition for family in families() for composition in compositions(family).values()]
# one path of each, since a recipe may have several names
_PATHS = {(c.recipe, c.dataset, c.network): Path(c.path) for c in reversed(COMPOSED)}
SHIPPED = [*reversed(_PATHS.values()), *(p for p in CONFIGS if p.parts[1] in ("_compat", "published"))]
MAKE_RUNS = ("train.py", "train_all_deg.py", "utils/model_soups.py")


@functools.cache
def shipped_tree(path: str) -> Tree | None:
    """The configuration of a path, not to be changed; None if there is none."""
    try:
        return read_yaml(path)
    except FileNotFoundError:
        return None


def arch_of(tree: Tree) -> str:
    """The network of a configuration, whichever its kind."""
    model = tree.get("model", {})
    return tree.get("arch") or (model.get("arch", "") if isinstance(model, dict) else "") or "ResNet20"


def names_in(tree: Tree, dataset: str, deg: str) -> tuple[str, list[str]]:
    """(name of the run that a configuration makes, names of the runs that it starts from),
    placeholders replaced.
    """
    model, members = tree.get("model", {}), tree.get("members", [])
    parents = [model] if isinstance(model, str) else [model.get("init_from"), tree.get("method", {}).get("teachers")]
    parents += members if isinstance(members, list) else [member["checkpoint"] for member in members.values()]
    words = {"{deg}": deg, "{arch}": arch_of(tree), "{dataset}": dataset}

    def filled(name: str) -> str:
        for place, word in words.items():
            name = name.replace(place, word)
        return name

    return filled(tree.get("name", "")), [filled(name) for name in parents if name]


def runs_made_by(command: Sequence[str], dataset: str) -> list[str]:
    """Names of the run that a command makes, with and without its id; none if it makes none, or of
    a configuration not shipped.
    """
    words = list(command)
    options = {word: words[i + 1] for i, word in enumerate(words[:-1]) if word.startswith("-")}
    if not set(MAKE_RUNS) & set(words):
        return []
    tree = shipped_tree(options["-c"])
    if tree is None:
        return []
    name, _ = names_in({**tree, "name": options.get("--name", tree["name"])}, dataset, options.get("--dt", ""))
    return [name, f"{name}/{options['--run_id']}"] if "--run_id" in options else [name]
