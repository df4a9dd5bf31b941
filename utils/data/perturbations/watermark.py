"""The watermark of ImageNet-W: the Chinese word for "shortcut" three times, half transparent (Li et
al., CVPR 2023).

Published with the font Source Han Serif SC, ExtraLight. It is not shipped here; of the fonts below
the first that is installed is taken. That of the package imagenet-w is the published one: the
pixels are then those of the published transform. Noto Serif CJK SC has the same outlines: in
ExtraLight the same watermark, in Regular somewhat bolder strokes (6.1 instead of 5.4 % of the
pixels of a 224 px image, at the same place). The released ImageNet-W is watermarked at 224 px,
after the centre is cut, as is done here.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as PILImage
from PIL import ImageDraw, ImageFont
from torch import Tensor

from undegrade.utils.checkpoint import file_digest
from undegrade.utils.data.perturbations.image_batch import Image, map_images
from undegrade.utils.data.perturbations.perturbation import PERTURBATIONS, Perturbation, PerturbationOptions
from undegrade.utils.extras import how_to_install

WATERMARK = "watermark"
TEXT = "\u6377\u5f84" * 3
_OPACITY = 128  # of 255
_ANCHOR = (0.01, 0.4)  # of the text's upper left corner: share of width and height
_FONT_SIZES = {224: 36, 384: 62, 512: 82, 518: 84}  # by image side; else side / 6.22

# Package, or folder of a system package, and the file in it; of a collection the Simplified Chinese
# face is taken
_FONTS = (
    ("imagenet_w", "fonts/SourceHanSerifSC-ExtraLight.otf"),
    ("/usr/share/fonts/opentype/noto", "NotoSerifCJK-ExtraLight.ttc"),
    ("/usr/share/fonts/opentype/noto", "NotoSerifCJK-Regular.ttc"),
    ("mplfonts", "fonts/NotoSerifCJKsc-Regular.otf"),
)


@dataclass(frozen=True, kw_only=True)
class _Watermark(Perturbation):
    """Each image with the watermark over it; nothing is drawn at random.

    `apply` raises ValueError for a file that is no font or lacks the two characters, and
    FileNotFoundError for no such file, or where no font is installed; it says which package brings
    one.
    """

    def perturbed(self, images: Tensor, levels: Tensor, keys: Sequence[str], seed: int, options: PerturbationOptions) -> Tensor:
        overlay = _overlay(font_file(options.compat.watermark_font), images.shape[-1], images.shape[-2])

        def add(image: Image, index: int) -> Image:
            below = PILImage.fromarray(image).convert("RGBA")
            return np.asarray(PILImage.alpha_composite(below, overlay).convert("RGB"))

        return map_images(images, add)

    def identity(self, options: PerturbationOptions, image_size: int) -> dict[str, Any]:
        font = font_file(options.compat.watermark_font)
        return {"font": f"{font.name} {file_digest(font)}"}

    @property
    def reads(self) -> set[str]:
        return {"compat.watermark_font"}


PERTURBATIONS.add(WATERMARK, _Watermark(name=WATERMARK, description="one level", sweep=(0,), released_as="val"))


def font_file(font: str | None = None) -> Path:
    """The font file: `font` if it is given, else the first installed one."""
    if font is not None:
        if not Path(font).is_file():
            raise FileNotFoundError(f"data.compat.watermark_font {font} does not exist")
        return Path(font)
    found = next((path for path in _installed() if path.is_file()), None)
    if found is None:
        raise FileNotFoundError(
            f"the watermark needs a font with Chinese characters, and none is installed: {how_to_install('watermark')} (which "
            "has the published one), or the system package fonts-noto-cjk-extra, or name a font file with "
            "data.compat.watermark_font"
        )
    return found


def _installed() -> Iterator[Path]:
    for place, file in _FONTS:
        package = None if place.startswith("/") else importlib.util.find_spec(place)  # which does not import it
        if package is not None and package.origin is not None:
            yield Path(package.origin).parent / file
        elif place.startswith("/"):
            yield Path(place) / file


@functools.lru_cache
def _overlay(path: Path, width: int, height: int) -> PILImage.Image:
    """RGBA picture of the text, transparent around it."""
    side = min(width, height)
    font = _load(path, _FONT_SIZES.get(side, max(1, int(side / 6.22))))
    overlay = PILImage.new("RGBA", (width, height), (255, 255, 255, 0))
    place = (_ANCHOR[0] * width, _ANCHOR[1] * height)
    ImageDraw.Draw(overlay).text(place, TEXT, fill=(255, 255, 255, _OPACITY), font=font)
    return overlay


def _load(path: Path, size: int) -> ImageFont.FreeTypeFont:
    """The Simplified Chinese face of a collection, or the only face."""
    faces: list[ImageFont.FreeTypeFont] = []
    with contextlib.suppress(OSError):  # beyond the last face
        while len(faces) < 32:
            # the basic layout is the same wherever Pillow runs
            faces.append(ImageFont.truetype(str(path), size, len(faces), layout_engine=ImageFont.Layout.BASIC))
    if not faces:
        raise ValueError(f"{path} is not a font that can be read: name another with data.compat.watermark_font")
    font = next((face for face in faces if str(face.getname()[0]).endswith("SC")), faces[0])
    drawn = [bytes(font.getmask(character)) for character in (*TEXT[:2], "\U0010fffd")]
    if drawn[2] in drawn[:2]:  # like a character that no font has
        raise ValueError(f"font {path} lacks the characters {TEXT[:2]}: name another with data.compat.watermark_font")
    return font
