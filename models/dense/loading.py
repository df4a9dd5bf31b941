"""Networks for masks and points from their checkpoints."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from undegrade.models.dense.backbone import build_backbone
from undegrade.models.dense.landmarks import LANDMARKS, LandmarkNetwork
from undegrade.models.dense.segmentation import SEGMENTER, BiSeNet
from undegrade.utils.checkpoint import load_checkpoint

log = logging.getLogger(__name__)

KINDS = (SEGMENTER, LANDMARKS)
DenseNetwork = BiSeNet | LandmarkNetwork


def load_dense(path: Path) -> tuple[DenseNetwork, dict[str, Any]]:
    """(network in eval mode, its description) of a checkpoint of one of `KINDS`.

    Raises:
        FileNotFoundError, ValueError: missing, damaged, of another kind, or tensors that do not fit
            its description.
    """
    state, description = load_checkpoint(path)
    kind = description.get("kind")
    if kind not in KINDS:
        raise ValueError(
            f"checkpoint {path} holds a {kind or 'network without description'}, one of {', '.join(KINDS)} is needed here"
        )
    try:
        arch, mean, std, sizes = (description[key] for key in ("arch", "mean", "std", "sizes"))
        network: DenseNetwork
        if kind == SEGMENTER:
            network = BiSeNet(build_backbone(arch), arch, description["classes"], mean, std, **sizes)
        else:
            network = LandmarkNetwork(build_backbone(arch), arch, description["points"], mean, std, **sizes)
        network.load_state_dict(state)
    except (KeyError, TypeError, RuntimeError, ValueError) as error:
        raise ValueError(
            f"checkpoint {path}: its tensors and its description do not fit ({type(error).__name__}: {error}): take another copy "
            "of the file, or train it anew"
        ) from error
    log.info("%s with %s from %s", kind, network.arch, path)
    return network.eval(), description
