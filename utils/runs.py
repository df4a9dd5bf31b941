"""Run folders: `<save_dir>/<name>/<run id>/{config.yaml, metrics.jsonl, events, best.safetensors, last/, DONE}`.

Stages find each other by name: `resolve_checkpoint("sl/Digits/ResNet20-ResNet20/jpeg")` is the best checkpoint of the latest
finished run of that name.
"""

from __future__ import annotations

import datetime
import itertools
import re
from collections.abc import Callable
from pathlib import Path

BEST = "best.safetensors"
DONE = "DONE"


def create_run(save_dir: str | Path, name: str, run_id: str | None = None) -> Path:
    """Make and return a new run folder; `run_id` defaults to the local time `YYYYMMDD-HHMMSS`, made unique by a suffix."""
    parent = Path(save_dir) / name
    stem = run_id or datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    for attempt in itertools.count():
        folder = parent / (stem if attempt == 0 else f"{stem}-{attempt}")
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            if run_id is not None:
                raise ValueError(f"run {folder} exists already: resume it with -r {folder}, or choose another --run_id") from None
    raise AssertionError("unreachable")


def mark_done(run: Path) -> None:
    """Mark a run as finished; only finished runs are found by name."""
    (run / DONE).touch()


def finished_runs(save_dir: str | Path, name: str) -> list[Path]:
    """Finished runs of a name, oldest first (by the time at which they finished)."""
    folder = Path(save_dir) / name
    runs = [marker.parent for marker in folder.glob(f"*/{DONE}")] if folder.is_dir() else []
    return sorted(runs, key=lambda run: ((run / DONE).stat().st_mtime_ns, run.name))


_PUBLISHED = re.compile(r"saved/(?P<deg>[^/]+)/(?P<trainer>\w+)/(?P<name>[^/]+)/train(/(?P<run>[^/]+))?(/model_best\.pth)?")
# trainer folder and name of the published FusionDistill code (dataset D) -> run name here
_PUBLISHED_NAMES = (
    (r"IndTrainer/(?P<arch>\w+?)_(?P<D>\w+)_clean", "ind/{D}/{arch}_clean"),
    (r"SLTrainer/(?P<arch>\w+)-\d+_(?P<D>\w+)_soups", "deg_all/{D}/{arch}_soups"),
    (r"SLTrainer/(?P<arch>\w+)-\d+_(?P<D>\w+)", "sl/{D}/{arch}-{arch}/{deg}"),
    (r"SLDA_Trainer/(?P<arch>\w+)-\d+_(?P<D>\w+)", "deg_all/{D}/{arch}-{arch}_fusiondistill"),
    (r"IndDATrainer/(?P<arch>\w+?)_(?P<D>\w+)_deg_(?P<kind>scratch|vanilla)", "deg_all/{D}/{arch}_base_{kind}"),
    (r"IndDATrainer/(?P<arch>\w+?)_(?P<D>\w+)_deg_fused", "deg_all/{D}/{arch}_fused"),
)


def published_run(reference: str) -> str | None:
    """Run name (and id) meant by a path of the published FusionDistill commands, None for anything else.

    `saved/combined_deg/SLDA_Trainer/ResNet56-56_CIFAR10/train/<run id>/model_best.pth` is the run
    `deg_all/CIFAR10/ResNet56-ResNet56_fusiondistill/<run id>`; without the run id, or with `latest`, the latest finished one.
    """
    path = _PUBLISHED.fullmatch(reference)
    if path is None:
        return None
    for pattern, name in _PUBLISHED_NAMES:
        match = re.fullmatch(pattern, f"{path['trainer']}/{path['name']}")
        if match:
            run = path["run"] if path["run"] not in (None, "latest", "model_best.pth") else ""
            return "/".join(filter(None, [name.format(deg=path["deg"], **match.groupdict()), run]))
    return None


# ensemble configurations of the published DiffAUD and SDA commands -> configuration here
_PUBLISHED_ENSEMBLES = (
    (r"(?P<arch>\w+)_ensemble_b64_(?P<D>\w+)", "{D}/{arch}_diffaud"),
    (r"(?P<arch>resnet50|swinT|swinB|convnextT|convnextB)", "Imagenet/{arch}_sda"),
)


def published_config(path: str) -> str:
    """The configuration here that one of the published DiffAUD and SDA ensemble commands means; any other path as it is.

    `configs/ensemble/ResNet50_ensemble_b64_Imagenet.py` is `configs/ensemble/Imagenet/ResNet50_diffaud.yaml`, and
    `eval/configs/ensemble/resnet50.py` is `configs/ensemble/Imagenet/ResNet50_sda.yaml`.
    """
    for pattern, name in _PUBLISHED_ENSEMBLES:
        match = re.fullmatch(r"(?:.*/)?configs/ensemble/" + pattern + r"\.py", path)
        if match:
            words = {key: text.replace("resnet50", "ResNet50") for key, text in match.groupdict().items()}
            return f"configs/ensemble/{name.format(**words)}.yaml"
    return path


def resolve_checkpoint(
    reference: str | Path, save_dir: str | Path = "runs", made_by: str | Callable[[], str] = "", run_id: str | None = None
) -> Path:
    """The checkpoint file meant by `reference`.

    Args:
        reference: a checkpoint file, a run folder, or the name of a run under `save_dir` (its latest finished run is taken;
            `name/run_id` names one run).
        save_dir: where runs are stored.
        made_by: the command that makes it, for the message; or what finds that out, called when it is needed.
        run_id: take the run of this id of a name (its latest finished run for None); files and run folders are taken as they are.

    Raises:
        FileNotFoundError: says where it looked, which names exist, and the command that makes it.
    """
    for path in (Path(reference), Path(save_dir) / reference):
        if path.is_file():
            return path
        if (path / BEST).is_file():
            return path / BEST
    published = published_run(str(reference))
    if published:
        return resolve_checkpoint(published, save_dir, made_by, run_id)
    runs = finished_runs(save_dir, str(reference))
    if run_id is not None and runs:
        chosen = [run for run in runs if run.name == run_id]
        if not chosen:
            have = ", ".join(run.name for run in runs)
            raise FileNotFoundError(f"no finished run {run_id!r} of {str(reference)!r} under {save_dir}/ (finished there: {have})")
        runs = chosen
    if runs:
        return runs[-1] / BEST
    folder = Path(save_dir) / reference
    unfinished = sorted([*folder.glob("config.yaml"), *folder.glob("*/config.yaml")])
    if unfinished:
        raise FileNotFoundError(
            f"run {str(reference)!r} under {save_dir}/ has not finished; go on with it: python train.py -r {unfinished[-1].parent}"
        )
    known = sorted({str(marker.parent.parent.relative_to(save_dir)) for marker in Path(save_dir).rglob(DONE)})
    command = made_by if isinstance(made_by, str) else made_by()
    deeper = sorted({str(Path(save_dir) / name[: -len(f"/{reference}")]) for name in known if name.endswith(f"/{reference}")})
    raise FileNotFoundError(
        f"no checkpoint {str(reference)!r}: it is no file, no run folder and no finished run under {save_dir}/"
        + (f" (finished there: {', '.join(known[:20])})" if known else " (nothing has finished there)")
        + (f"; did you mean --runs {' or '.join(deeper)} (in training --save_dir)?" if deeper else "")
        + (f"; make it with: {command}" if command else "")
    )
