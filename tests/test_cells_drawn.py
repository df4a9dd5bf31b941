"""Cells whose level is drawn image by image, for every family; and the options under which degraded
images are made.
"""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
import torch

from tests.perturbing import corrupt, degrade, draw
from tests.test_cells import CLEAN, write_tree
from undegrade.utils.data.cells import Cell
from undegrade.utils.data.manifest import MANIFEST
from undegrade.utils.data.perturbations.degradations import REFERENCE
from undegrade.utils.data.perturbations.perturbation import PerturbationOptions
from undegrade.utils.data.perturbations.registry import find_perturbation
from undegrade.utils.data.views import FolderTree, OnTheFly

PUBLISHED = PerturbationOptions(compat=REFERENCE)


@pytest.mark.parametrize("name", ["fog", "speckle_noise"])
def test_a_corruption_without_severity_has_one_drawn_for_each_image(name: str) -> None:
    view = OnTheFly(CLEAN, seed=3)
    severity = view.levels(Cell(name), CLEAN.keys)
    assert torch.equal(severity, draw(name, CLEAN.keys, 3)) and len(severity.unique()) > 1
    source = view.source(Cell(name))
    assert source.name == f"Toy/test/{name}/random"
    whole = source.images(range(6))
    assert torch.equal(whole, corrupt(CLEAN.images(range(6)), name, severity.long(), keys=CLEAN.keys, seed=3))
    assert torch.equal(source.images([4, 1]), whole[[4, 1]])
    assert len({view.identity(Cell(name, severity)) for severity in (None, 1, 3)}) == 3


@pytest.mark.parametrize("severity", [0, 6, 2.5])
def test_a_severity_that_does_not_exist_is_reported(severity: float) -> None:
    with pytest.raises(ValueError, match=f"fog severity {severity:g} is out of range: allowed: 1, 2, 3, 4, 5"):
        OnTheFly(CLEAN).source(Cell("fog", severity)).images([0])


def test_a_source_made_on_the_fly_can_be_sent_to_a_freshly_started_worker() -> None:
    source = OnTheFly(CLEAN, seed=1).source(Cell("noise"))
    assert torch.equal(pickle.loads(pickle.dumps(source)).images([2, 3]), source.images([2, 3]))


# --- compatibility


@pytest.mark.parametrize("name", ["blur", "saltpepper", "noise+blur"])
def test_compat_reaches_the_images(name: str) -> None:
    level = draw(name, CLEAN.keys, 3)
    images = OnTheFly(CLEAN, 3, PUBLISHED).source(Cell(name)).images(range(6))
    assert torch.equal(images, degrade(CLEAN.images(range(6)), name, level, keys=CLEAN.keys, seed=3, compat=REFERENCE))
    assert not torch.equal(images, OnTheFly(CLEAN, 3).source(Cell(name)).images(range(6)))


def test_identity_covers_compat_where_images_depend_on_it() -> None:
    right, published = OnTheFly(CLEAN), OnTheFly(CLEAN, options=PUBLISHED)
    for cell in (Cell("noise"), Cell("blur", 2.0), Cell("weak_seq", 0)):
        assert right.identity(cell) != published.identity(cell)
    for cell in (Cell("fog", 3), Cell("fog"), Cell("clean", 0)):
        assert right.identity(cell) == published.identity(cell)


@pytest.mark.parametrize(
    ("cell", "digest"),
    [(Cell("noise"), "b01f3ce357110e28"), (Cell("fog", 5), "cd4044219930471a"), (Cell("clean", 0), "054a5c7bc4840025")],
)
def test_identities_stay_as_recorded_so_that_caches_stay_valid(cell: Cell, digest: str) -> None:
    assert OnTheFly(CLEAN, 3).identity(cell) == digest


# --- levels of adapted images


@pytest.mark.parametrize("name", ["fog", "jpeg", "blur+noise"])
def test_levels_come_from_the_manifest_beside_adapted_images(tmp_path: Path, name: str) -> None:
    cell = Cell(name)
    write_tree(tmp_path, cell, CLEAN)
    drawn = OnTheFly(CLEAN, 1).levels(cell, CLEAN.keys)
    lines = [
        json.dumps({"key": key, "file": f"{key}.png", "level": level})
        for key, level in zip(CLEAN.keys, drawn.tolist(), strict=True)
    ]
    (tmp_path / cell.folder / MANIFEST).write_text("\n".join(lines[::-1]))
    few = CLEAN.subset([4, 1])
    level = FolderTree(tmp_path, few).source(cell).level
    assert level is not None and torch.allclose(level, find_perturbation(name).unit(drawn)[[4, 1]])


@pytest.mark.parametrize("level", [None, 3.0])
def test_levels_are_unknown_where_the_manifest_lacks_some(tmp_path: Path, level: float | None) -> None:
    cell = Cell("fog")
    write_tree(tmp_path, cell, CLEAN)
    assert FolderTree(tmp_path, CLEAN).source(cell).level is None  # no manifest
    rows = [{"key": key, "file": f"{key}.png", "level": level} for key in CLEAN.keys[1:]]
    (tmp_path / cell.folder / MANIFEST).write_text("\n".join(json.dumps(row) for row in rows))
    assert FolderTree(tmp_path, CLEAN).source(cell).level is None
