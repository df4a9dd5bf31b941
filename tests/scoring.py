"""Accuracies worked out from the networks themselves."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor

from undegrade.models.classification.loading import load_classifier

LIMIT = 10  # images of a cell


def rows_of(out: Path) -> list[dict]:
    return json.loads((out / "results.json").read_text())["rows"]


def logits_by_hand(checkpoint: Path, images: Tensor) -> Tensor:
    with torch.no_grad():
        return load_classifier(checkpoint)(images.float() / 255)
