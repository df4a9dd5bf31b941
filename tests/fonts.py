"""Fonts whose characters are rectangles, for the watermark."""

from __future__ import annotations

from pathlib import Path

from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen

SIDE, SIZE = 700, 112  # of an image, and of its text: 700 / 6.22


def make_font(path: Path, *characters: str) -> str:
    """A font of 10 units a pixel at SIZE, ascent 90 px, whose characters are a large and a small
    rectangle, 112 px apart.
    """

    def rectangle(left: int, bottom: int, right: int, top: int) -> object:
        pen = TTGlyphPen(None)
        pen.moveTo((10 * left, 10 * bottom))
        for x, y in ((left, top), (right, top), (right, bottom)):
            pen.lineTo((10 * x, 10 * y))
        pen.closePath()
        return pen.glyph()

    glyphs = {".notdef": rectangle(0, 0, 30, 30), "large": rectangle(10, 0, 100, 80), "small": rectangle(0, 20, 50, 40)}
    font = FontBuilder(10 * SIZE)
    font.setupGlyphOrder(list(glyphs))
    font.setupCharacterMap({ord(c): name for c, name in zip(characters, ("large", "small"), strict=False)})
    font.setupGlyf(glyphs)
    font.setupHorizontalMetrics({name: (10 * SIZE, 100 * (name == "large")) for name in glyphs})
    font.setupHorizontalHeader(ascent=900, descent=-220)
    font.setupNameTable({"familyName": "Rectangles", "styleName": "Regular"})
    font.setupOS2()
    font.setupPost()
    font.save(path)
    return str(path)
