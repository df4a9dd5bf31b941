"""Make images worse on purpose, as files: each image at its own size, under any perturbation.

    undegrade corrupt photos --corruption fog --severity 3 --out worse
    undegrade corrupt photos --corruption gaussian_noise,snow --severity 1-5 --out worse --format jpg
    undegrade corrupt photos --corruption jpeg --level 20 --out worse
    undegrade corrupt photos --corruption blur+noise+jpeg --out worse

The files are <out>/<corruption>/<severity or level>/<name of the image>.png, as released sets have
them (`random` where a level is drawn for each image). The same command gives the same files.
"""

from __future__ import annotations

import undegrade.utils.quick_start  # noqa: F401  before the rest

# isort: split
import io
import logging
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from undegrade.perturbing import corrupt, degrade
from undegrade.pictures import image_files
from undegrade.utils.command_line import ScriptParser
from undegrade.utils.data.cells import GROUPS, level_text, parse_severities
from undegrade.utils.data.perturbations.perturbation import Perturbation
from undegrade.utils.data.perturbations.registry import find_perturbation
from undegrade.utils.data.sources.image_files import keys_of
from undegrade.utils.data.sources.images import BrokenImageError, read_image
from undegrade.utils.errors import run_main
from undegrade.utils.files import write_atomic
from undegrade.utils.interruption import Interrupted, Interruption
from undegrade.utils.paths import inside
from undegrade.utils.progress import progress_bar

log = logging.getLogger("corrupt")

_SAVED_AS = {"png": {}, "jpg": {"quality": 95}}  # options of Pillow


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; the status is 1 if images could not be read."""
    p = ScriptParser(__doc__)
    p.add_argument("images", help="a folder of images, or an image")
    p.add_argument(
        "--corruption", required=True, help="names joined by commas (undegrade list perturbations); all: the 15 of ImageNet-C"
    )
    p.add_argument("--severity", help="of corruptions: 5, or 1,3,5, or 1-5 (5)")
    p.add_argument("--level", type=float, help="of a degradation, in its own unit (default: drawn for each image)")
    p.add_argument("--out", required=True, help="folder of what is written")
    p.add_argument("--format", default="png", choices=[*_SAVED_AS], help="of the files; jpg has quality 95 (png)")
    p.add_argument("--seed", type=int, default=0, help="of the random numbers (0)")
    args, _ = p.parse(argv)
    wanted = _wanted(args.corruption, args.severity, args.level)
    path = Path(args.images)
    if path.is_dir() and Path(args.out).resolve().is_relative_to(path.resolve()):
        raise ValueError(f"--out {args.out} lies in {path}, whose images the next call would take: name a folder beside it")
    files = image_files(path)
    folder = path if path.is_dir() else path.parent
    keys = keys_of([file.relative_to(folder).as_posix() for file in files])
    interruption, broken, written = Interruption(), list[str](), 0
    with interruption.listening(), progress_bar(total=len(files), unit="img", desc="corrupting") as bar:
        for file, key in zip(files, keys, strict=True):
            try:
                image = Image.fromarray(read_image(file, None).transpose(1, 2, 0).copy())
            except BrokenImageError as error:
                broken.append(str(error))
            else:
                for row, level in wanted:
                    target = inside(args.out, f"{row.name}/{level_text(level)}/{key}.{args.format}")
                    _save(_perturbed(image, row, level, args.seed, key), target, args.format)
                    written += 1
            bar.update()
            if interruption.due and bar.n < len(files):
                raise Interrupted(f"{interruption.reason} after {bar.n} of {len(files)} images; {written} files are in {args.out}")
    if not written:
        raise ValueError(f"none of the {len(files)} images of {path} can be read, e.g. {broken[0]}")
    if broken:
        log.warning("left out %d of %d images that cannot be read:\n  %s", len(broken), len(files), "\n  ".join(broken))
    for row, level in wanted:
        print(f"{Path(args.out) / row.name / level_text(level)}: {len(files) - len(broken)} images")
    return int(bool(broken))


def _wanted(names: str, severity: str | None, level: float | None) -> list[tuple[Perturbation, float | None]]:
    """Perturbations and their levels; None: drawn for each image.

    Raises:
        ValueError: an unknown name, a severity or level that does not exist or that nothing has.
    """
    rows = [find_perturbation(name) for given in names.split(",") for name in GROUPS.get(given, (given,))]
    by_severity = [row for row in rows if row.by_severity]
    if severity is not None and not by_severity:
        raise ValueError(f"--severity {severity}: {names} has no severities; --level says how much ({rows[0].description})")
    if level is not None and (len(rows) > 1 or rows[0].by_severity or len(rows[0].stages) > 1):
        raise ValueError(f"--level {level:g} is that of one degradation, not of {names}: give --severity, or one degradation")
    severities = parse_severities(severity or "5")
    return [
        (row, found)
        for row in rows
        for found in (row.cells(severities) if level is None else [row.check(level)])
    ]  # fmt: skip


def _perturbed(image: Image.Image, row: Perturbation, level: float | None, seed: int, key: str) -> Image.Image:
    if row.by_severity and level is not None:
        return corrupt(image, row.name, int(level), seed=seed, keys=[key])
    return degrade(image, row.name, level, seed=seed, keys=[key])


def _save(image: Image.Image, target: Path, kind: str) -> None:
    buffer = io.BytesIO()
    image.save(buffer, "jpeg" if kind == "jpg" else kind, **_SAVED_AS[kind])
    target.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(target, buffer.getvalue())


if __name__ == "__main__":
    run_main(main)
