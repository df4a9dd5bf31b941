"""Configurations: YAML files over what they are based on, and composed ones, which are no file.

`configs/ind/CIFAR10/ResNet18/deg.yaml` is composed of `configs/data/CIFAR10.yaml`,
`configs/recipes/ind/deg.yaml` and `configs/networks/ResNet18.yaml` (docs/configuration.md). Files
are looked for in the working folder first, then among those that are shipped.
"""

from __future__ import annotations

import copy
import difflib
import functools
import operator
import re
import types
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from undegrade.utils.choices import fill_names
from undegrade.utils.yaml_trees import Tree, load_yaml, merge, nested

SHIPPED = Path(__file__).resolve().parent.parent / "configs"
# keys of a part that are about the part, not of the configuration that it makes
_ABOUT = ("script", "paths", "takes", "by", "like")


@dataclass(frozen=True)
class Composition:
    """A configuration composed of parts.

    Attributes:
        path: `configs/<family>/<data set>/<rest>.yaml`, as the command line gives it.
        script: the script that reads it.
        dataset, recipe, network: files of the parts; no network where the path names none.
    """

    path: str
    script: str
    dataset: Path
    recipe: Path
    network: Path | None

    def tree(self) -> Tree:
        """The configuration: the data set, over it the recipe, over it the network, over it what
        the recipe says of this data set and of this network.

        Raises:
            ValueError: the recipe takes a key that the data set and the network do not have.
        """
        names, recipe = _names(self.dataset), _part(self.recipe)
        data, network = _body(_part(self.dataset)), {}
        if self.network:
            network = merge(_body(_part(self.network)), _said_of(_part(self.network), names, ""))
        if "takes" in recipe:
            given, data, network = merge(data, network), {}, {}
            for place, source in recipe["takes"].items():
                try:
                    value = functools.reduce(operator.getitem, source.split("."), given)
                except (KeyError, TypeError):
                    raise ValueError(
                        f"{self.recipe} takes {source!r}: {self.dataset} and {self.network} have no such key"
                    ) from None
                data = merge(data, nested(place, value))
        tree = merge(merge(data, _body(recipe)), network)
        return copy.deepcopy(merge(tree, _said_of(recipe, names, self.network.stem if self.network else "")))


def read_yaml(path: str | Path) -> Tree:
    """The configuration of a path: a file with its `base:` files merged under it, or a composed
    one.

    Raises:
        FileNotFoundError: names the path, and the closest one or those that are near it.
        ValueError: not a mapping, a syntax error (file, line, column), a key given twice, a circle
            of bases, a recipe without its keys.
    """
    return _read(Path(path), ())


def read_all(paths: Iterable[str], below: Tree | None = None) -> Tree:
    """The configurations of several paths, the later over the earlier, and all of them over
    `below`; errors of `read_yaml`.
    """
    return functools.reduce(merge, map(read_yaml, paths), below or {})


def find_config(path: str | Path) -> Path | Composition:
    """The file or the composition that a path means.

    Raises:
        FileNotFoundError: names the path, and the closest one or those that are near it.
    """
    path = Path(path)
    if path.is_file():
        return path
    if path.parts[:1] == ("configs",) and (SHIPPED.parent / path).is_file():
        return SHIPPED.parent / path
    root, family, place = _split(path)
    found = compositions(family, root).get(place) if family and path.suffix == ".yaml" else None
    if found is None:
        raise FileNotFoundError(f"config file {path} does not exist{_near(path)}")
    return found


def compositions(family: str, root: Path = Path("configs")) -> dict[str, Composition]:
    """Every composed configuration of a family, by `<data set>/<rest>`.

    Args:
        family: a folder of `configs/recipes`.
        root: a folder `configs` whose files go before those that are shipped.

    Raises:
        ValueError: a recipe without its keys.
    """
    out: dict[str, Composition] = {}
    datasets, networks = _files("data", root), _files("networks", root)
    kinds = {net: _part(path) for net, path in networks.items()}
    for recipe in _files(f"recipes/{family}", root).values():
        rules = _part(recipe)
        if "paths" not in rules or "script" not in rules:
            raise ValueError(f"{recipe}: a recipe needs `script: train.py` and `paths: [...]`, see docs/configuration.md")
        for name, dataset in datasets.items():
            names = _names(dataset)
            fitting = [net for net, part in kinds.items() if _is_for(part, names, "") and _is_for(rules, names, net)]
            for pattern in rules["paths"]:
                for net in fitting if "{net}" in pattern else [""] * _is_for(rules, names, ""):
                    size = re.sub("[^0-9]", "", net)
                    place = f"{name}/{fill_names(pattern, {'net': net, 'size': size}, f'{recipe}, paths')}"
                    path = f"configs/{family}/{place}.yaml"
                    out[place] = Composition(path, rules["script"], dataset, recipe, networks.get(net))
    return out


def families(root: Path = Path("configs")) -> list[str]:
    """The folders of recipes."""
    return sorted({p.name for base in (root, SHIPPED) for p in base.glob("recipes/*") if p.is_dir()})


def _read(path: Path, above: tuple[Path, ...]) -> Tree:
    found = find_config(path)
    if isinstance(found, Composition):
        return found.tree()
    if found.resolve() in above:
        raise ValueError(f"{path}: `base:` goes in a circle: {' -> '.join(p.name for p in (*above, path))}")
    tree = load_yaml(found)
    bases = tree.pop("base", [])
    bases = [bases] if isinstance(bases, str) else bases
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
        raise ValueError(f"{path}: `base: {bases}` must be a file name or a list of them, relative to this file")
    merged: Tree = {}
    for base in bases:
        beside = found.parent / base
        composed = base.startswith("configs/") and not beside.is_file()
        merged = merge(merged, _read(Path(base) if composed else beside, (*above, found.resolve())))
    return merge(merged, tree)


def _part(path: Path) -> Tree:
    """A part; the shipped ones are read once, since they do not change while a program runs."""
    return _shipped_part(path) if SHIPPED in path.parents else _check_part(_read(path, ()), path)


@functools.cache
def _shipped_part(path: Path) -> Tree:
    return _read(path, ())


def _check_part(part: Tree, path: Path) -> Tree:
    """The part; ValueError where a key that is about it has another form than the others read."""

    def texts_to(kind: type | types.UnionType, value: Any) -> bool:
        return isinstance(value, dict) and all(isinstance(key, str) and isinstance(to, kind) for key, to in value.items())

    forms: dict[str, tuple[Callable[[Any], bool], str]] = {
        "script": (lambda value: isinstance(value, str), "train.py"),
        "like": (lambda value: isinstance(value, str), "ImageFolder"),
        "paths": (lambda value: isinstance(value, list) and all(isinstance(path, str) for path in value), "[{net}/deg]"),
        "takes": (lambda value: texts_to(str, value), "{arch: model.arch}"),
        "by": (lambda value: texts_to(dict | None, value), "{CIFAR10: {loop: {epochs: 3}}}"),
    }
    for key, (fits, example) in forms.items():
        if key in part and not fits(part[key]):
            raise ValueError(f"{path}: `{key}: {part[key]!r}` is not of the form `{key}: {example}`, see docs/configuration.md")
    return part


def _files(kind: str, root: Path) -> dict[str, Path]:
    """Parts of a kind by name; those of `root` go before the shipped ones."""
    roots = [SHIPPED] if root.resolve() == SHIPPED else [SHIPPED, root]
    return {p.stem: p for base in roots for p in sorted((base / kind).glob("*.yaml"))}


def _body(part: Tree) -> Tree:
    return {key: value for key, value in part.items() if key not in _ABOUT}


def _blocks(part: Tree) -> Iterator[tuple[str, Tree]]:
    """(data set or data set/network, what is said of it) of a part's `by:`; `null` says nothing."""
    for keys, block in part.get("by", {}).items():
        yield from ((key.strip(), block) for key in keys.split(",") if block is not None)


def _names(dataset: Path) -> list[str]:
    """The names under which parts speak of a data set, the later over the earlier: the one that it
    is like, and its own.
    """
    like = _part(dataset).get("like")
    return [like, dataset.stem] if like else [dataset.stem]


def _is_for(part: Tree, datasets: list[str], network: str) -> bool:
    named = {key for key, _ in _blocks(part)}
    return "by" not in part or any({name, f"{name}/{network}"} & named for name in datasets)


def _said_of(part: Tree, datasets: list[str], network: str) -> Tree:
    """What a part says of a data set, and over it what it says of that data set with a network."""
    said: Tree = {}
    for wanted in [*datasets, *(f"{name}/{network}" for name in datasets)]:
        for key, block in _blocks(part):
            said = merge(said, block) if key == wanted else said
    return said


def _split(path: Path) -> tuple[Path, str, str]:
    """(folder `configs`, family, `<data set>/<rest>`) of a path; the family is empty where there is
    none of that name.
    """
    parts = path.with_suffix("").parts if path.suffix == ".yaml" else path.parts
    if "configs" not in parts:
        return Path("configs"), "", ""
    at = len(parts) - 1 - parts[::-1].index("configs")
    root, below = Path(*parts[: at + 1]), parts[at + 1 :]
    return root, below[0] if below and below[0] in families(root) else "", "/".join(below[1:])


def _near(path: Path) -> str:
    """What a path that does not exist may mean, for the message: the closest one where it is
    misspelt, what there is where its parts are known but do not go together.
    """
    root, family, place = _split(path)
    composed = {name: compositions(name, root) for name in ([family] if family else families(root))}
    folder = path.parent if path.parent.is_dir() else path.parent.parent
    files = sorted(file for pattern in ("*.yaml", "*/*.yaml") for file in folder.glob(pattern))  # no deeper: it may be /
    beside = {str(file.relative_to(folder).with_suffix("")): str(file) for file in files}
    paths = [f"configs/{name}" for name in composed] + [found.path for known in composed.values() for found in known.values()]
    known = list(composed[family]) if family else []
    dataset, _, rest = place.partition("/")
    listed = any(name.startswith(f"{place}/") or rest and name.endswith(f"/{rest}") for name in known)
    if str(path) not in ("configs", *paths) and not listed:
        close = [] if family else difflib.get_close_matches(str(path.relative_to(folder).with_suffix("")), beside, n=1)
        meant = [beside[name] for name in close] or difflib.get_close_matches(str(path), paths, n=1)
        if meant:
            return f"; did you mean {meant[0]}?"
    if family:
        near = [name for name in known if name.startswith(f"{dataset}/") or rest and name.endswith(f"/{rest}")]
        return f"; {family} has {', '.join(near or dict.fromkeys(name.partition('/')[0] for name in known))}"
    near = [f"configs/{name}/<data set>/..." for name in composed] if "configs" in path.parts else []
    near += [*beside.values()][:12]
    return f"; near it: {', '.join(near)}" if near else ""
