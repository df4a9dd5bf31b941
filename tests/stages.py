"""Stages that write down how they were called, in a pipeline `pipeline.yaml` of the working
folder.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from undegrade.utils.config import build
from undegrade.utils.pipeline import main
from undegrade.utils.stages import PipelineConfig, commands

STAGE = """
import pathlib, sys
name = sys.argv[sys.argv.index("--name") + 1]
with open("log.txt", "a") as log:
    log.write(" ".join(sys.argv[1:]) + "\\n")
sys.exit(3 if pathlib.Path(f"fail_{name}").exists() else 0)
"""


def run(*arguments: str) -> list[str]:
    """Run the pipeline; returns the names of the stages that ran in this call."""
    Path("log.txt").write_text("")
    main(["-c", "pipeline.yaml", *arguments])
    return [line.partition("--name ")[2].split()[0] for line in Path("log.txt").read_text().splitlines()]


def texts(config: Mapping[str, Any], **given: str) -> dict[str, str]:
    """Commands by stage name, without the path of Python."""
    return {c.name: shlex.join(c.words).replace(f"{sys.executable} ", "") for c in commands(build(PipelineConfig, config), given)}
