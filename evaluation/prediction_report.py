"""The page of images without labels: what a system and each of its members say of them."""

from __future__ import annotations

import base64
import collections
import dataclasses
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from undegrade.evaluation.prediction_table import Prediction, in_words
from undegrade.evaluation.report.prediction_page import Page, PageRow, write_page
from undegrade.utils.data.sources.image_source import ImageSource
from undegrade.utils.data.views import RAW
from undegrade.utils.provenance import command, provenance

SHOWN = 1000  # images: a page of more is slow to open, and 20 MB
_SIDE = 192  # pixels of a picture's side at most; it is shown at two thirds of that
_SMALL = 64  # pixels: smaller pictures are kept as they are, to the last digit


@dataclasses.dataclass(frozen=True)
class Labelled:
    """What was labelled.

    Attributes:
        path: folder, or one image.
        system: name.
        rule: of the system.
        members: name of its view and the images that it sees, by member.
        predictions: at least one.
        broken: what could not be read, and why.
        asked: number of images that were to be labelled: more, where the work was stopped.
    """

    path: Path
    system: str
    rule: str
    members: Mapping[str, tuple[str, ImageSource]]
    predictions: Sequence[Prediction]
    broken: Sequence[str]
    asked: int


def write_prediction_report(path: Path, labelled: Labelled) -> None:
    """Write one self-contained HTML file. Of more than 1,000 images it shows so many: those of
    which members disagree, and the least confident ones.

    Args:
        path: file to write.
        labelled: what was labelled.
    """
    views: dict[str, list[str]] = {}
    for member, (view, _) in labelled.members.items():
        views.setdefault(view, []).append(member)
    shown = sorted(_most_doubtful(labelled.predictions), key=lambda row: row.row)
    several, gated = len(labelled.members) > 1, shown[0].restored is not None
    page = Page(
        title=f"{len(labelled.predictions)} images of {labelled.path.name or labelled.path}",
        summary=_summary(labelled, several, gated),
        views={("as it is" if view == RAW else Path(view).name): ", ".join(names) for view, names in views.items()},
        rows=[_row(prediction, labelled, views, several, gated) for prediction in shown],
        confidences=[row.classes[0][1] for row in labelled.predictions],
        disagreeing=[not row.agrees for row in labelled.predictions],
        way="which way" if gated else "who says so" if several else None,
        several=several,
        gated=gated,
        classes=_classes(labelled.predictions),
        numbered=in_words(labelled.predictions),
        notes=_notes(labelled, several),
        provenance={"command": command(), "system": f"{labelled.system}: {labelled.rule} of {', '.join(labelled.members)}"}
        | provenance(),
    )
    write_page(path, page)


def _most_doubtful(predictions: Sequence[Prediction]) -> Sequence[Prediction]:
    return sorted(predictions, key=lambda row: (row.agrees, row.classes[0][1]))[:SHOWN]


def _row(row: Prediction, labelled: Labelled, views: Mapping[str, Sequence[str]], several: bool, gated: bool) -> PageRow:
    said = dict(zip(labelled.members, row.members, strict=True))
    pictures = []
    for names in views.values():
        source = labelled.members[names[0]][1]
        texts = [f"{f'{name}: ' * (len(names) > 1)}{said[name][0]}, {100 * said[name][1]:.0f} %" for name in names]
        pictures.append((_picture(source.images([row.row])[0].permute(1, 2, 0).numpy()), texts if several else []))
    same = [name for name, (word, _) in said.items() if word == row.words[0]]
    way = {True: "restored", False: "kept as it is", None: ", ".join(same) if same else "no member alone"}[row.restored]
    numbers = [name if name != word else "" for (name, _), word in zip(row.classes, row.words, strict=True)]
    classes = list(zip(row.words, numbers, (share for _, share in row.classes), strict=True))
    return PageRow(row.file, pictures, classes, way if several or gated else "", row.agrees, row.restored)


def _picture(image: np.ndarray) -> str:
    """Data URI of uint8 [S,S,3]."""
    picture, buffer = Image.fromarray(image), io.BytesIO()
    kind = "png" if len(image) <= _SMALL else "jpeg"
    picture.thumbnail((_SIDE, _SIDE), Image.Resampling.LANCZOS)
    picture.save(buffer, kind, quality=85)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _classes(predictions: Sequence[Prediction]) -> list[tuple[str, str, int, float]]:
    """Word, number, images and mean confidence of each class, the most frequent first."""
    shares = collections.defaultdict(list)
    for row in predictions:
        shares[row.words[0], row.classes[0][0]].append(row.classes[0][1])
    ordered = sorted(shares.items(), key=lambda item: -len(item[1]))
    return [(word, name if name != word else "", len(found), sum(found) / len(found)) for (word, name), found in ordered]


def _summary(labelled: Labelled, several: bool, gated: bool) -> str:
    predictions = labelled.predictions
    count, names = len(predictions), {row.classes[0][0] for row in predictions}
    mean = sum(row.classes[0][1] for row in predictions) / count
    parts = [f"{labelled.system} finds {len(names)} classes, with a mean confidence of {100 * mean:.0f} %"]
    if gated:
        parts.append(f"it restores {sum(bool(row.restored) for row in predictions)} of {count} images")
    if several:
        parts.append(f"its members disagree on {sum(not row.agrees for row in predictions)}")
    return "; ".join(parts) + "."


def _notes(labelled: Labelled, several: bool) -> list[str]:
    count = len(labelled.predictions)
    missing = labelled.asked - count - len(labelled.broken)
    notes = [f"The work was stopped: {missing} of {labelled.asked} images are missing."] if missing else []
    notes += [
        "Confidence is the share of the scores that the class has, as the networks give it. Nobody has checked it on images like "
        "these: networks are often too sure of themselves, most of all on degraded images.",
        "The pictures show what the classifier sees: the centre of the image, at its size.",
    ]
    if several:
        notes.append("Below a picture stands what the members that see it say on their own; members disagree where one of them "
                     "says something else than the system.")  # fmt: skip
    if count > SHOWN:
        notes.append(f"The page shows {SHOWN} of {count} images: those of which members disagree, and the least confident ones. "
                     "The histogram and the classes are of all.")  # fmt: skip
    if labelled.broken:
        notes.append(f"{len(labelled.broken)} images could not be read: {'; '.join(labelled.broken[:20])}")
    return notes
