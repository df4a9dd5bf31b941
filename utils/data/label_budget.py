"""How many labelled images are meant."""

from __future__ import annotations

import re


def label_count(labels: int | str, images: int, classes: int) -> int:
    """Number of images that a number, a share (`10%`) or one a class (`5 a class`) stand for.

    Raises:
        ValueError: another text, or more than there are.
    """
    match = re.fullmatch(r"(?:(\d+)|(\d+(?:\.\d+)?) ?%|(\d+) a class)", str(labels).strip())
    if match is None:
        raise ValueError(f"labels {labels!r}: give a number of images, a share such as 10%, or 5 a class")
    number, share, each = match.groups()
    count = int(number) if number else int(each) * classes if each else round(images * float(share) / 100)
    if not 1 <= count <= images:
        raise ValueError(f"labels {labels!r} are {count} of the {images} training images: give 1 to {images}")
    return count
