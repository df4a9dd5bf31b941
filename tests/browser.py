"""Pages as a headless Chromium lays them out: what is too wide, and what can hardly be read."""

from __future__ import annotations

import dataclasses
import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable"))), None)
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")

# Contrast as WCAG 2.2 defines it, of every text against the nearest background that is drawn.
_MEASURE = """
const light = (c) => { const v = c / 255; return v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; };
const luminance = ([r, g, b]) => 0.2126 * light(r) + 0.7152 * light(g) + 0.0722 * light(b);
const numbers = (colour) => colour.match(/[0-9.]+/g).map(Number);
function background(view, element) {
  for (let e = element; e; e = e.parentElement) {
    const c = numbers(view.getComputedStyle(e).backgroundColor);
    if (c.length < 4 || c[3] > 0) return c;
  }
  return [255, 255, 255];
}
function measure(frame) {
  const view = frame.contentWindow, page = frame.contentDocument, wide = [], faint = [];
  for (const e of page.body.querySelectorAll("*")) {
    const box = e.getBoundingClientRect(), style = view.getComputedStyle(e);
    const scrolls = e.closest(".scroll, pre");
    if (!scrolls && box.width && box.right > view.innerWidth + 0.5) wide.push(e.tagName + "." + e.className);
    const own = [...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim());
    if (!own || !box.width || ["SCRIPT", "STYLE", "OPTION", "TITLE", "title"].includes(e.tagName)) continue;
    const svg = e.namespaceURI.endsWith("svg");
    const pair = [luminance(numbers(svg ? style.fill : style.color)), luminance(background(view, svg ? e.closest("svg") : e))];
    const ratio = (Math.max(...pair) + 0.05) / (Math.min(...pair) + 0.05);
    if (ratio < 4.5) faint.push(e.tagName + "." + e.getAttribute("class") + " " + ratio.toFixed(2));
  }
  return { width: view.innerWidth, scroll: page.documentElement.scrollWidth, wide, faint, text: page.body.innerText,
    answer: view.asked ? view.asked() : null };
}
addEventListener("load", () => {
  let found;
  try { found = [...document.querySelectorAll("iframe")].map(measure); } catch (error) { found = String(error); }
  const pre = document.createElement("pre");
  pre.id = "found";
  pre.textContent = JSON.stringify(found);
  document.body.replaceChildren(pre);
});
"""


@dataclasses.dataclass(frozen=True)
class Look:
    """A page at one width.

    Attributes:
        width, scroll: of the window and of the whole page, pixels.
        wide: elements that reach beyond the window, those aside that scroll on their own.
        faint: texts of a contrast below 4.5.
        text: what a reader sees.
        answer: what the script that was asked found.
    """

    width: int
    scroll: int
    wide: list[str]
    faint: list[str]
    text: str
    answer: Any


def looks(page: Path, folder: Path, widths: tuple[int, ...] = (1280, 390), dark: bool = False, ask: str = "") -> list[Look]:
    """How a page looks at each width, and then what the expression `ask` is in it."""
    text = page.read_text(encoding="utf-8").replace(
        "</body>", f"<script>window.asked = () => {ask};</script></body>" if ask else "</body>"
    )
    # a window of a headless Chromium is at least 500 pixels wide, a frame in it is not
    frame = '<iframe style="width: {width}px; height: 5000px; border: 0" srcdoc="{text}"></iframe>'
    frames = "".join(frame.format(width=width, text=html.escape(text)) for width in widths)
    outer = folder / "outer.html"
    style = "<style>:root { color-scheme: light dark }</style>"
    outer.write_text(f'<!DOCTYPE html><meta charset="utf-8">{style}<body>{frames}<script>{_MEASURE}</script>', encoding="utf-8")
    assert CHROMIUM is not None
    words = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--user-data-dir={folder / 'profile'}"]
    words += [f"--blink-settings=preferredColorScheme={int(not dark)}", "--dump-dom", outer.resolve().as_uri()]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=True)
    found = re.search(r'<pre id="found">(.*?)</pre>', done.stdout, re.S)
    assert found, f"Chromium printed {done.stdout[:500]!r} and {done.stderr[-2000:]!r}"
    answer = json.loads(html.unescape(found[1]))
    assert isinstance(answer, list), answer
    return [Look(**look) for look in answer]
