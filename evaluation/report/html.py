"""An evaluation as one HTML file that needs nothing else: no script, no link, pictures inside."""

from __future__ import annotations

import base64
import os
from collections.abc import Mapping, Sequence
from html import escape

import numpy as np
from matplotlib.figure import Figure

from undegrade.evaluation.report.plots import system_colours
from undegrade.evaluation.results import Result
from undegrade.evaluation.tables import Pivot, caption, pivot
from undegrade.utils.figures import png_bytes
from undegrade.utils.files import write_atomic

_STYLE = """
:root { color-scheme: light; --ink: #1f2328; --quiet: #656d76; --line: #d8dee4; --soft: #f6f8fa; --best: #dff3e4; }
* { box-sizing: border-box; }
body { margin: 0; background: #fff; color: var(--ink); font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto,
  "Helvetica Neue", Arial, sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 40px 24px 56px; }
h1 { font-size: 1.95rem; line-height: 1.2; margin: 0 0 .6rem; letter-spacing: -.01em; }
h2 { font-size: 1.2rem; margin: 2.6rem 0 .8rem; padding-bottom: .3rem; border-bottom: 1px solid var(--line); }
p, li { max-width: 75ch; }
.lead { font-size: 1.15rem; margin: 0 0 1.6rem; }
.quiet, figcaption, small { color: var(--quiet); }
.quiet, figcaption { font-size: .9rem; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 12px; }
.tile { background: var(--soft); border-top: 4px solid; border-radius: 4px; padding: 10px 14px; }
.tile.best { background: var(--best); }
.tile b { display: block; font-size: 1.65rem; line-height: 1.3; font-variant-numeric: tabular-nums; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .92rem; }
th, td { padding: 6px 12px; border-bottom: 1px solid var(--line); text-align: left; vertical-align: baseline; }
.results { width: 100%; font-variant-numeric: tabular-nums; }
.results th, .results td { line-height: 1.3; padding-block: 4px; }
.results th + th, .results td { text-align: right; }
.results thead th { border-bottom: 3px solid var(--ink); vertical-align: bottom; }
.results tbody th { font-weight: normal; white-space: nowrap; position: sticky; left: 0; background: #fff; }
.results small { display: block; font-size: .74rem; line-height: 1.25; font-weight: normal; white-space: nowrap; }
.results .best { background: var(--best); }
.results .mean th, .results .mean td { font-weight: bold; border-top: 2px solid var(--ink); }
figure { margin: 0 0 2rem; }
figure img { display: block; max-width: 100%; height: auto; margin: 0 auto; }
figcaption { margin-top: .5rem; }
details { border: 1px solid var(--line); border-radius: 4px; margin-bottom: 8px; }
summary { cursor: pointer; padding: 8px 14px; font-weight: 600; }
pre { margin: 0; padding: 12px 14px; background: var(--soft); overflow-x: auto; font-size: .82rem; line-height: 1.45; }
.facts th { font-weight: 600; white-space: nowrap; }
.facts td { overflow-wrap: anywhere; }
@media (max-width: 600px) {
  main { padding: 22px 14px 36px; } h1 { font-size: 1.5rem; } .lead { font-size: 1.05rem; } th, td { padding: 5px 8px; }
  .tiles { grid-template-columns: 1fr 1fr; } figure img { max-width: 820px; }
}
@media print {
  @page { margin: 15mm; } body { font-size: 10.5pt; -webkit-print-color-adjust: exact; print-color-adjust: exact; }
  main { max-width: none; padding: 0; } .scroll, pre { overflow: visible; } pre { white-space: pre-wrap; }
  h2 { break-after: avoid; } figure, .tile, tr { break-inside: avoid; }
  figure img { max-height: 235mm; }
  details::details-content { content-visibility: visible; display: block; }
}
"""


def write_report(
    path: str | os.PathLike[str],
    *,
    title: str,
    summary: str,
    rows: Sequence[Result],
    figures: Mapping[str, Figure | np.ndarray | bytes],
    configs: Mapping[str, str],
    provenance: Mapping[str, object],
    notes: Sequence[str] = (),
) -> None:
    """Write the report atomically.

    All text is escaped; nothing is loaded from elsewhere. The file holds no date unless
    `provenance` does.

    Args:
        path: the HTML file.
        title: heading of the page.
        summary: one sentence with the key figure, below the heading.
        rows: results; cells and means as `evaluation.tables.pivot` arranges them.
        figures: caption -> figure, image uint8 [H,W,3] or the bytes of a PNG, shown in this order.
        configs: name -> YAML text, folded.
        provenance: fact -> value (command, commit, seed, ...); a mapping or list fills one line,
            None is a dash.
        notes: paragraphs on what to keep in mind when reading the numbers.

    Raises:
        ValueError: no or doubled rows, or bytes that are not a PNG.
    """
    arranged, colours = pivot(rows), system_colours(rows)
    sections = [
        ("", _tiles(arranged, colours)),
        ("Accuracy", _results_table(arranged, colours, caption(rows))),
        ("Figures", "".join(_figure(text, picture) for text, picture in figures.items())),
        ("Notes", _list(notes)),
        ("Configuration", "".join(_folded(name, text) for name, text in configs.items())),
        ("Provenance", _facts(provenance)),
    ]
    body = "".join((f"<h2>{name}</h2>\n" if name else "") + content + "\n" for name, content in sections if content)
    write_atomic(
        path,
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<main>\n"
        f'<h1>{escape(title)}</h1>\n<p class="lead">{escape(summary)}</p>\n{body}</main>\n</body>\n</html>\n',
    )


def _tiles(arranged: Pivot, colours: Mapping[str, str]) -> str:
    """The mean of every system in large print; nothing when the rows hold no mean, or several."""
    means = [line for line in arranged.lines if arranged.is_mean(line)]
    if len(means) != 1:
        return ""
    tiles = []
    for system in arranged.systems:
        row = arranged.cells.get((means[0], system))
        if row is not None:
            best = " best" if system in arranged.best[means[0]] else ""
            tiles.append(
                f'<div class="tile{best}" style="border-color: {colours[system]}">{escape(system)}'
                f"<b>{100 * row.accuracy:.1f} %</b><small>{_interval(row)}</small></div>"
            )
    scope = f", {arranged.scope}" if arranged.scope else ""
    return f'<p class="quiet">Mean accuracy{escape(scope)}</p>\n<div class="tiles">{"".join(tiles)}</div>'


def _results_table(arranged: Pivot, colours: Mapping[str, str], text: str) -> str:
    width = f"{80 / len(arranged.systems):.1f}%"
    heads = "".join(
        f'<th scope="col" style="border-color: {colours[system]}; width: {width}">{escape(system)}</th>'
        for system in arranged.systems
    )
    body = []
    for line in arranged.lines:
        cells = "".join(
            _result_cell(arranged.cells.get((line, system)), system in arranged.best[line]) for system in arranged.systems
        )
        kind = ' class="mean"' if arranged.is_mean(line) else ""
        body.append(f'<tr{kind}><th scope="row">{escape(line.replace("_", " "))}</th>{cells}</tr>\n')
    return (
        f'<p class="quiet">{escape(text)}. Small print: 95 % interval. Shaded: best of the line.</p>\n'
        f'<div class="scroll"><table class="results">\n<thead><tr><th scope="col">corruption</th>{heads}</tr></thead>\n'
        f"<tbody>\n{''.join(body)}</tbody>\n</table></div>"
    )


def _result_cell(row: Result | None, best: bool) -> str:
    if row is None:
        return "<td>–</td>"
    kind = ' class="best"' if best else ""
    return f"<td{kind}>{100 * row.accuracy:.1f}<small>{_interval(row)}</small></td>"


def _interval(row: Result) -> str:
    return f"{100 * row.ci95_low:.1f} – {100 * row.ci95_high:.1f}"


def _figure(text: str, picture: Figure | np.ndarray | bytes) -> str:
    data = picture if isinstance(picture, bytes) else png_bytes(picture)
    if not data.startswith(b"\x89PNG\r\n\x1a\n"):
        raise ValueError(f"picture of figure {text!r} starts with {data[:8]!r}: give a figure, an array or a PNG")
    source = f"data:image/png;base64,{base64.b64encode(data).decode()}"
    image = f'<div class="scroll"><img src="{source}" alt="{escape(text)}"></div>'
    return f"<figure>{image}<figcaption>{escape(text)}</figcaption></figure>\n"


def _list(texts: Sequence[str]) -> str:
    items = "".join(f"<li>{escape(text)}</li>" for text in texts)
    return f"<ul>{items}</ul>" if items else ""


def _folded(name: str, text: str) -> str:
    return f"<details><summary>{escape(name)}</summary><pre>{escape(text)}</pre></details>\n"


def _facts(facts: Mapping[str, object]) -> str:
    lines = "".join(
        f'<tr><th scope="row">{escape(name)}</th><td>{escape(_fact(value))}</td></tr>\n' for name, value in facts.items()
    )
    return f'<div class="scroll"><table class="facts"><tbody>\n{lines}</tbody></table></div>' if lines else ""


def _fact(value: object) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_fact(part)}" for name, part in value.items())
    return ", ".join(map(_fact, value)) if isinstance(value, list | tuple) else str(value)
