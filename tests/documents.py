"""Code blocks of the documentation, as files."""

from __future__ import annotations

import re
from pathlib import Path

from tests.scripts import ROOT


def blocks_of(document: str, language: str) -> list[str]:
    """The blocks of one language in a file below `docs/`, in their order."""
    text = (ROOT / "docs" / document).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def write_block(document: str, language: str, path: Path) -> Path:
    """Write the only block of a language to `path`."""
    (block,) = blocks_of(document, language)
    path.write_text(block, encoding="utf-8")
    return path
