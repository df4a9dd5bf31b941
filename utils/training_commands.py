"""The command that makes a run, from the configurations."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from undegrade.utils.composition import Composition, compositions, families


def training_command(name: str, save_dir: str = "runs", dataset: str = "") -> str:
    """The command whose run has this name, from the composed configurations; "" if none makes it.

    Args:
        name: of the run.
        save_dir: root of the runs.
        dataset: data set or path of the image folder in use; it is in the command if the name is of
            it.
    """
    family = name.partition("/")[0]
    found = compositions(family).values() if family in families() else []
    # of named data sets first, since those of ImageFolder fit every name
    for composition in sorted(found, key=lambda composition: composition.dataset.stem == "ImageFolder"):
        match = _makes(composition, name)
        if match:
            of_folder = composition.dataset.stem == "ImageFolder"
            path_of = dataset if Path(dataset).name == match["dataset"] else f"<path of {match['dataset']}>"
            words = ["python", composition.script, "-c", composition.path]
            words += ["--data.dataset", path_of] if of_folder else []
            words += ["--dt", match["deg"]] if "deg" in match.groupdict() else []
            words += ["--save_dir", save_dir] if save_dir != "runs" else []
            return shlex.join(words)
    return ""


def _makes(composition: Composition, name: str) -> re.Match[str] | None:
    """The parts of a run's name, where the runs of a configuration have such names."""
    tree = composition.tree()
    arch = tree.get("arch") or tree.get("model", {}).get("arch", "")
    dataset = "[^/]+" if composition.dataset.stem == "ImageFolder" else composition.dataset.stem
    pattern = re.escape(tree.get("name", ""))
    for key, values in {"dataset": dataset, "arch": re.escape(arch), "deg": "[^/]+"}.items():
        place = re.escape(f"{{{key}}}")
        pattern = pattern.replace(place, f"(?P<{key}>{values})", 1).replace(place, f"(?P={key})")
    return re.fullmatch(pattern, name) if "name" in tree else None  # evaluations have none
