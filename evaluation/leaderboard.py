"""Systems of many evaluations side by side, and published numbers beside ours."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from undegrade.evaluation.costs import Cost, evaluation_costs
from undegrade.evaluation.published import PublishedConfig
from undegrade.evaluation.result_files import read_json
from undegrade.evaluation.results import CLEAN, MEAN, Result, percent
from undegrade.evaluation.tables import pivot
from undegrade.utils.composition import SHIPPED, read_yaml
from undegrade.utils.files import read_object
from undegrade.utils.known_sizes import SIZES

RESULTS = "results.json"
NOT_RUN, AGREES = "not run here", "agrees"


@dataclasses.dataclass(frozen=True)
class Entry:
    """A system of a results file.

    Attributes:
        row: its mean over the cells; of a file with one cell that one.
        clean: its accuracy on clean images in [0,1], where they were evaluated beside others.
        network: name below configs/networks, or the architecture where it has none.
        cells: (corruption, severity) that the mean is over.
        images: test images of a cell.
        protocol: in words: what was done to the images, and in which order they came.
        cost: of adapting an image; None where unknown.
        made_by: commit, hardware and version of torch in words.
        results: the file.
    """

    row: Result
    clean: float | None
    network: str
    cells: frozenset[tuple[str, float | None]]
    images: int
    protocol: str
    cost: Cost | None
    made_by: str
    results: Path


def find_results(folders: Sequence[str], out: Path) -> list[Path]:
    """The results.json files below folders, sorted, each once; not those below `out`.

    Raises:
        FileNotFoundError: a folder is not there, or there is no such file.
    """
    for folder in folders:
        if not Path(folder).is_dir():
            raise FileNotFoundError(f"folder {folder} does not exist: give one that evaluations wrote to, such as runs")
    found = {path.resolve(): path for folder in folders for path in sorted(Path(folder).rglob(RESULTS))}
    paths = [path for resolved, path in found.items() if out.resolve() not in resolved.parents]
    if not paths:
        raise FileNotFoundError(
            f"no {RESULTS} below {', '.join(folders)}: python test_ensemble.py -c ... --out <folder below it> writes one"
        )
    return paths


def read_entries(path: Path) -> list[Entry]:
    """The systems of a results file, in its order.

    Raises:
        ValueError: it is no results file of classifiers.
    """
    if any("rule" not in row for row in read_object(path, "remove it").get("rows", [])):
        raise ValueError(f"{path} is of masks or points, which have tables of their own (docs/dense.md)")
    rows, meta = read_json(path)
    if not rows:
        raise ValueError(f"{path} has no rows")
    costs, _ = evaluation_costs(path, meta)
    own = [row for row in rows if row.corruption not in (CLEAN, MEAN)]
    table = pivot(rows)
    arch = str(meta.get("configuration", {}).get("arch", ""))
    entries = []
    for column in table.systems:
        shown = [row for (_, name), row in table.cells.items() if name == column]
        row = next((row for row in shown if row.corruption == MEAN), shown[-1])  # a single cell has no mean
        clean = [other.accuracy for other in rows if (other.system, other.rule, other.corruption) == (row.system, row.rule, CLEAN)]
        mine = [other for other in own if (other.system, other.rule) == (row.system, row.rule)]
        entries.append(
            Entry(
                row, clean[0] if clean and mine else None, network_names().get(arch, arch),
                frozenset((other.corruption, other.severity) for other in mine), int(meta.get("images", row.n)),
                ", ".join(filter(None, [_cells_in_words(mine), table.scope if mine else "", meta.get("protocol")])),
                costs.get(row.system), _made_by(meta), path,
            )
        )  # fmt: skip
    return entries


def network_names() -> dict[str, str]:
    """Architecture -> the network of configs/networks that has it."""
    names = {}
    for path in sorted((SHIPPED / "networks").glob("*.yaml")):
        part = read_yaml(path)
        for block in [part, *(block for block in part.get("by", {}).values() if block)]:
            names[block.get("model", {}).get("arch", path.stem)] = path.stem
    return names


def _cells_in_words(rows: Sequence[Result]) -> str:
    names = list(dict.fromkeys(row.corruption for row in rows))
    return "clean images" if not names else ", ".join(names) if len(names) < 4 else f"{len(names)} corruptions"


def _made_by(meta: Mapping[str, Any]) -> str:
    facts = (meta.get("provenance") or [{}])[-1]
    commit = f"{str(facts.get('commit'))[:10]}{', changed' if facts.get('dirty') else ''}" if facts.get("commit") else ""
    torch = facts.get("libraries", {}).get("torch")
    return ", ".join(filter(None, [commit, facts.get("gpu") or facts.get("cpu"), f"torch {torch}" if torch else ""]))


@dataclasses.dataclass(frozen=True)
class LedgerLine:
    """A published accuracy beside ours.

    Attributes:
        key: data set and network, as in configs/published.
        system: its name.
        published: percent, the mean over the columns of the table that it is from.
        entry: ours with the most test images; None where there is none.
        difference: of the protocols, in words.
        verdict: `NOT_RUN`, `AGREES`, or by how many points ours is above or below.
    """

    key: str
    system: str
    published: float
    entry: Entry | None
    difference: str
    verdict: str


def ledger(config: PublishedConfig, entries: Iterable[Entry]) -> list[LedgerLine]:
    """A line for each system of a file of published numbers; ours are matched by data set, network
    and name of the system.
    """
    known = list(entries)
    lines = []
    for key, systems in config.rows.items():
        dataset, _, network = key.partition(" ")
        for system, cells in systems.items():
            published = cells.get(MEAN, sum(cells.values()) / len(cells))
            columns = config.columns.keys() if MEAN in cells else cells.keys()
            ours = [e for e in known if (Path(e.row.dataset).name, e.network, e.row.system) == (dataset, network, system)]
            if not ours:
                elsewhere = dict.fromkeys(f"{e.row.dataset} {e.network}" for e in known if e.row.system == system)
                where = f"run on {', '.join(elsewhere)} only" if elsewhere else ""
                lines.append(LedgerLine(key, system, published, None, where, NOT_RUN))
                continue
            best = max(ours, key=lambda e: (not _differences(e, columns, config), e.images))
            lines.append(LedgerLine(key, system, published, best, "; ".join(_differences(best, columns, config)),
                                    _verdict(published, best.row)))  # fmt: skip
    return lines


def _differences(entry: Entry, columns: Iterable[str], config: PublishedConfig) -> list[str]:
    """What our protocol has otherwise than the published one."""
    names, levels = {name for name, _ in entry.cells}, {level for _, level in entry.cells}
    found = []
    if names != set(columns):
        found.append(f"ours is over {_some(names)}, published over {_some(columns)}")
    if config.severities and levels != set(config.severities):
        found.append(f"ours at severity {_some(levels)}, published at {_some(config.severities)}")
    whole = SIZES[entry.row.dataset].test if entry.row.dataset in SIZES else 0
    if entry.images < whole:
        found.append(f"ours on {entry.images} of {whole} test images")
    return found


def _some(items: Iterable[object]) -> str:
    words = sorted(map(str, items))
    return ", ".join(words) if 0 < len(words) < 6 else f"{len(words)} corruptions"


def _verdict(published: float, row: Result) -> str:
    if 100 * row.ci95_low <= published <= 100 * row.ci95_high:
        return AGREES
    return f"{percent(100 * row.accuracy - published, '+')} points"
