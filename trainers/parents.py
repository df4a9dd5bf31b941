"""Parents of a run: found by name, checked for what they were trained on; of a missing one, the command that makes it."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from utils.checkpoint import read_description
from utils.config import read_yaml
from utils.runs import published_run, resolve_checkpoint

CONFIGS = Path(__file__).parent.parent / "configs"
_SCRIPTS = {"ind": "train.py", "sl": "train.py", "sda": "train.py", "deg_all": "train_all_deg.py", "diffusion": "train.py"}


def find_parent(name: str, save_dir: str | Path, run_id: str | None = None) -> Path:
    """Checkpoint of the parent `name`: a file, a run folder, or a run's name (its latest finished run, or the run `run_id`).

    Raises:
        FileNotFoundError: says where it looked and which command makes it.
    """
    try:
        return resolve_checkpoint(name, save_dir, run_id=run_id)
    except FileNotFoundError:  # only now: the command is searched for in all configurations
        return resolve_checkpoint(name, save_dir, making_command(published_run(name) or name, str(save_dir)), run_id)


def check_specialist(path: Path, degradation: str) -> None:
    """Raise ValueError when a checkpoint says that it was trained on other degradations than `degradation`."""
    trained_on = read_description(path).get("degradations")
    if trained_on is not None and degradation not in trained_on:
        raise ValueError(
            f"checkpoint {path} stands for the degradation {degradation!r} but was trained on "
            f"{', '.join(trained_on) or 'clean images'}: train one with --dt {degradation}, or name another checkpoint"
        )


def making_command(name: str, save_dir: str = "runs") -> str:
    """The command whose run has this name, from the shipped configurations; "" if none makes it."""
    for folder, script in _SCRIPTS.items():
        # of named data sets first, since those of ImageFolder fit every name; second names of a file last
        for path in sorted(
            (CONFIGS / folder).rglob("*.yaml"),
            key=lambda p: ("ImageFolder" in p.parts, "consistency" in p.name, len(p.parts), p),
        ):
            tree = read_yaml(path)
            family = path.relative_to(CONFIGS / folder).parts[0]
            arch = tree.get("arch") or tree.get("model", {}).get("arch", "")
            pattern = re.escape(str(tree.get("name", "")))
            for key, values in {"dataset": "[^/]+" if family == "ImageFolder" else family, "arch": re.escape(arch)}.items():
                pattern = pattern.replace(re.escape("{" + key + "}"), f"(?P<{key}>{values})", 1)
                pattern = pattern.replace(re.escape("{" + key + "}"), f"(?P={key})")
            match = re.fullmatch(pattern.replace(re.escape("{deg}"), "(?P<deg>[^/]+)"), name)
            if name and match:  # evaluation files in these folders have no name
                script = "utils/model_soups.py" if "members" in tree else script
                words = ["python", script, "-c", str(path.relative_to(CONFIGS.parent))]
                words += ["--data.dataset", f"<path of {match['dataset']}>"] if family == "ImageFolder" else []
                words += ["--dt", match["deg"]] if "deg" in match.groupdict() else []
                words += ["--save_dir", save_dir] if save_dir != "runs" else []
                return shlex.join(words)
    return ""
