"""provenance.jsonl of a run: for each launch what it started from, on which machine."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from pathlib import Path

from undegrade.utils.data.sources.image_source import ImageSource
from undegrade.utils.provenance import listing_digest, provenance
from undegrade.utils.run_log import read_rows, write_rows

PROVENANCE = "provenance.jsonl"  # in the run folder

log = logging.getLogger(__name__)


def record_launch(run: Path, seed: int, processes: int, weights: Mapping[str, str], sources: Mapping[str, ImageSource]) -> None:
    """Add a row for this launch, and compare it with the one before.

    Args:
        run: its folder.
        seed: of the run.
        processes: that train together.
        weights: digest of each checkpoint that the run starts or learns from, by its name.
        sources: images of each split.

    Raises:
        ValueError: a name stands for other weights than at the launch before.
    """
    path = run / PROVENANCE
    rows = read_rows(path)
    listings = {split: {"images": len(s), "digest": listing_digest(s.keys, s.labels)} for split, s in sources.items()}
    before = rows[-1] if rows else {}
    for name, digest in weights.items():
        known = before.get("weights", {}).get(name, digest)
        if known != digest:
            raise ValueError(
                f"run {run} learnt from other weights than {name} now names (digest {known} before, {digest} now): name the run "
                "of before by --run ID, or the checkpoint by its path"
            )
    for split, listing in listings.items():
        if before.get("listings", {}).get(split, listing) != listing:
            log.warning("the %s images are not those of the launch before: %d now, under keys and labels of the digest %s",
                        split, listing["images"], listing["digest"])  # fmt: skip
    row = {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S"), "seed": seed, "processes": processes, **provenance(),
        "weights": dict(weights), "listings": listings,
    }  # fmt: skip
    write_rows(path, [*rows, row])
