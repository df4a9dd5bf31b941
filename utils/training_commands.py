"""The command that makes a run, from the shipped configurations."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from undegrade.utils.config import read_yaml

CONFIGS = Path(__file__).parent.parent / "configs"
_SCRIPTS = {"ind": "train.py", "sl": "train.py", "sda": "train.py", "deg_all": "train_all_deg.py", "diffusion": "train.py"}


def training_command(name: str, save_dir: str = "runs", dataset: str = "") -> str:
    """The command whose run has this name, from the shipped configurations; "" if none makes it.

    Args:
        name: of the run.
        save_dir: root of the runs.
        dataset: data set or path of the image folder in use; it is in the command if the name is of
            it.
    """
    for folder, script in _SCRIPTS.items():
        # of named data sets first, since those of ImageFolder fit every name; second names of a
        # file last
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
                path_of = dataset if Path(dataset).name == match["dataset"] else f"<path of {match['dataset']}>"
                words += ["--data.dataset", path_of] if family == "ImageFolder" else []
                words += ["--dt", match["deg"]] if "deg" in match.groupdict() else []
                words += ["--save_dir", save_dir] if save_dir != "runs" else []
                return shlex.join(words)
    return ""
