"""A leaderboard as static pages: every system of the results.json files below folders, and the
published numbers beside ours.

    python evaluation/site_command.py runs --out site
    python evaluation/site_command.py runs/demo runs/sda --out site --title "Digits"

`index.html` is the table, sorted by a click on a heading, `ledger.html` the published numbers;
reports beside the results are copied to `reports/`. The pages load nothing from elsewhere.
"""

from __future__ import annotations

import undegrade.utils.quick_start  # noqa: F401  before the rest

# isort: split
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path

import jinja2

from undegrade.evaluation.leaderboard import Entry, LedgerLine, find_results, ledger, read_entries
from undegrade.evaluation.published import PublishedConfig
from undegrade.evaluation.results import percent
from undegrade.utils.command_line import ScriptParser
from undegrade.utils.composition import SHIPPED
from undegrade.utils.config import build, read_yaml
from undegrade.utils.errors import run_main
from undegrade.utils.files import write_atomic
from undegrade.utils.yaml_trees import load_yaml

log = logging.getLogger("site")

REPORT = "report.html"


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    p = ScriptParser(__doc__)
    p.add_argument("folders", nargs="+", help="where results.json files lie, at any depth")
    p.add_argument("--out", required=True, help="folder of the pages")
    p.add_argument("--title", default="Leaderboard", help="heading of the pages")
    args, _ = p.parse(argv)
    paths = find_results(args.folders, Path(args.out))
    entries, left_out = [], []
    for path in paths:
        try:
            entries += read_entries(path)
        except ValueError as error:
            left_out.append(str(error))
    for reason in left_out:
        log.warning("left out: %s", reason)
    if not entries:
        raise ValueError(f"none of the {len(paths)} results files below {', '.join(args.folders)} has systems of classifiers")
    write_site(Path(args.out), args.title, entries, left_out)
    print(f"{len(entries)} systems of {len(paths) - len(left_out)} evaluations: {args.out}/index.html, {args.out}/ledger.html")


def write_site(out: Path, title: str, entries: Sequence[Entry], left_out: Sequence[str] = ()) -> None:
    """Write the two pages and copy the reports.

    Args:
        out: folder, made if it is not there.
        title: heading.
        entries: what the table shows.
        left_out: what could not be shown, and why.
    """
    reports: dict[Path, str] = {}
    for path in dict.fromkeys(entry.results for entry in entries):
        report = path.parent / REPORT
        if report.is_file():
            name = f"reports/{len(reports) + 1:03d}.html"
            (out / "reports").mkdir(parents=True, exist_ok=True)
            shutil.copyfile(report, out / name)
            reports[path] = name
    published = published_tables(entries)
    environment = _environment()
    for page in ("index", "ledger"):
        text = environment.get_template(f"site_{page}.html.j2").render(
            title=title, entries=entries, reports=reports, published=published, left_out=left_out
        )
        write_atomic(out / f"{page}.html", text)


def published_tables(entries: Sequence[Entry]) -> dict[str, list[LedgerLine]]:
    """Source -> its lines, of every file of published numbers that has any."""
    tables = {}
    for path in sorted((SHIPPED / "published").glob("*.yaml")):
        config = build(PublishedConfig, read_yaml(path) | {"rows": load_yaml(path)["rows"]})  # without those of its `base:`
        if config.rows:
            tables[config.source] = ledger(config, entries)
    return tables


def _environment() -> jinja2.Environment:
    folder = Path(__file__).parent / "report"
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder), autoescape=True, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
        undefined=jinja2.StrictUndefined,
    )  # fmt: skip
    environment.filters["percent"] = lambda share: percent(100 * share)
    environment.filters["points"] = percent
    return environment


if __name__ == "__main__":
    run_main(main)
