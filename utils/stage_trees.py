"""The configuration that a stage of a pipeline runs with, read off its command line."""

from __future__ import annotations

from typing import Any

from undegrade.utils.composition import read_all
from undegrade.utils.data.cells import parse_severities
from undegrade.utils.stages import SCRIPTS, Command
from undegrade.utils.yaml_trees import Tree, merge, nested, parse_value

_TESTED = {
    "dataset": "data.dataset",
    "corruption": "data.corruptions",
    "severity": "data.severities",
    "dt": "data.sweep",
    "limit": "data.limit",
}
_FLAGS: dict[str, dict[str, str]] = {  # kind of script -> short flag -> key of its configuration
    "train": {"dt": "data.degradations", "deg_type": "data.degradations", "bs": "data.batch_size"},
    "soup": {"dataset": "data.dataset"},
    "ensemble": _TESTED, "fit": _TESTED, "test": {**_TESTED, "r": "checkpoint", "resume": "checkpoint"},
    "adapt": {"model_path": "model", "base_samples": "input.folder", "dataset": "input.dataset", "split": "input.split",
              "limit": "input.limit", "corruption": "input.corruptions", "severity": "input.severities", "N": "dda.start_step",
              "guidance_weight": "dda.guidance_weight", "scale": "dda.guidance_weight", "guidance": "dda.guidance"},
    "generate": {"model_path": "model", "timestep_respacing": "respacing"},
}  # fmt: skip
_LISTS = ("data.degradations", "data.corruptions", "data.sweep", "input.corruptions")


def stage_tree(stage: Command) -> Tree:
    """The configuration of a stage with the arguments of its command."""
    tree, flags = read_all(stage.configs), _FLAGS.get(SCRIPTS.get(stage.script, ""), {})
    words = iter(stage.arguments)
    for word in words:
        if not word.startswith("--"):
            continue
        key = flags.get(word[2:], word[2:])
        text = next(words, "")
        value: Any = parse_value(text)
        if key.endswith("severities") and text != "random":
            value = parse_severities(text)
        elif key in _LISTS and not isinstance(value, list):
            value = text.split(",")
        if text != "combined_deg":
            tree = merge(tree, nested(key, value))
    return tree
