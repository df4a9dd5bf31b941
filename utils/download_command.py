"""Weights that others published: what there is, and bringing it here.

    undegrade download                                      # the list
    undegrade download ffdnet_color sd-vae-ft-ema           # into the folder of downloads
    undegrade download 256x256_diffusion_uncond --to ckpt   # into a folder of your own
    undegrade download timm/resnet18.a1_in1k --to ckpt      # any other model of the Hub

Whatever opens weights finds them in the folder of downloads by their names (docs/weights.md).
A download that was cut off goes on with the same command.
"""

from __future__ import annotations

import undegrade.utils.quick_start  # noqa: F401  before the rest

# isort: split
import logging
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from undegrade.utils.choices import check_choice
from undegrade.utils.command_line import ScriptParser
from undegrade.utils.errors import run_main
from undegrade.utils.weights import FOLDER, Published, known, registry, weights_folder

log = logging.getLogger("download")


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line; prints where each file lies, and nothing else, to stdout."""
    p = ScriptParser(__doc__)
    p.add_argument("names", nargs="*", help="of the list, or ids of the Hugging Face Hub, <owner>/<name>")
    p.add_argument("--to", metavar="FOLDER", help=f"put the files there as they are (default: {FOLDER}, else the user's cache)")
    p.add_argument("--markdown", action="store_true", help="print the list as the table of docs/weights.md")
    args, _ = p.parse(argv)
    if args.markdown or not args.names:
        print(markdown(registry().values()) if args.markdown else listing(registry().values()))
        return
    wanted = [known(name) or _of_hub(name) or _listed(name) for name in args.names]
    from undegrade.utils.downloads import download  # here, since the list does without

    for published in wanted:
        path = download(published, Path(args.to) if args.to else None)
        sys.stderr.flush()
        print(path, flush=True)
        if published.next:
            log.info("next: %s", published.next.replace("{path}", str(path)))


def _listed(name: str) -> Published:
    return registry()[check_choice(name, registry(), "published weights")]


def _of_hub(name: str) -> Published | None:
    """A model of the Hub that is not in the list."""
    from undegrade.utils.hub import hub_id, page  # here, since the list does without

    of = hub_id(name) if "/" in name else None
    return of and Published(of.name.rpartition("/")[2], "", page(of), "see there", hub=of.name)


def listing(rows: Iterable[Published]) -> str:
    """The list for a terminal: name, size, whether it is here, licence, what it is."""
    folder = weights_folder()
    cells = [("name", "size", "here", "licence", "what")]
    cells += [(p.name, size_of(p), "yes" if (folder / p.stored).exists() else "", p.licence or "not stated", p.what) for p in rows]
    widths = [max(len(row[i]) for row in cells) for i in range(4)]
    lines = ["  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[4]]) for row in cells]
    return "\n".join([*lines, "", f"in {folder} (another one: {FOLDER}); those of the Hub are links into its cache"])


def size_of(published: Published) -> str:
    """A size in words: `2.2 GB`; "" where none is known."""
    if published.size is None:
        return ""
    return f"{published.size / 1e9:.1f} GB" if published.size >= 1e9 else f"{published.size / 1e6:.1f} MB"


def markdown(rows: Iterable[Published]) -> str:
    """The list as a table of Markdown, with sources and digests."""
    lines = ["| name | what | source | licence | size | SHA-256, stated by |", "|---|---|---|---|---:|---|"]
    for p in rows:
        place = f"Hub, {p.hub}" if p.hub else f"PyPI, {p.wheel}" if p.wheel else p.page.removeprefix("https://github.com/")
        digest = f"`{p.sha256[:16]}…` {p.stated}" if p.sha256 else ""
        lines.append(f"| `{p.name}` | {p.what} | [{place}]({p.page}) | {p.licence or 'not stated'} | {size_of(p)} | {digest} |")
    return "\n".join(lines)


if __name__ == "__main__":
    run_main(main)
