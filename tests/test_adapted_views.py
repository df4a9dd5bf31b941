"""Adapted images as evaluation reads them: what settings and manifest say is checked first."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.adapting import digits, manifest_of
from undegrade.utils.data.cells import Cell
from undegrade.utils.data.perturbations.perturbation import PerturbationOptions
from undegrade.utils.data.sources.image_source import ImageSource
from undegrade.utils.data.sources.registry import open_source
from undegrade.utils.data.views import open_view

NOISE = Cell("gaussian_noise", 5)


@pytest.fixture(scope="module")
def clean() -> ImageSource:
    return open_source("Digits", "test", limit=6)


@pytest.fixture(scope="module")
def adapted(ddpm: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapted")
    digits(ddpm, folder, "--input.seed", 1, "--input.constants", "tiny").check()
    return folder


def test_images_that_were_corrupted_otherwise_are_no_view(adapted: Path, clean: ImageSource) -> None:
    tiny = PerturbationOptions(constants="tiny")
    assert len(open_view(str(adapted), clean, 1, tiny).source(NOISE)) == 6
    for seed, options, words in (
        (0, tiny, r"\(seed: 1 there, 0 here\): .*data\.seed"),
        (1, None, r"\(constants: tiny there, cifar here\)"),
        (0, PerturbationOptions(constants="imagenet"), r"\(constants: tiny there, imagenet here; seed: 1 there, 0 here\)"),
    ):
        view = open_view(str(adapted), clean, seed, options)
        for look in (view.source, view.identity):  # cached logits are asked for by identity alone
            with pytest.raises(ValueError, match=words):
                look(NOISE)
    assert len(open_view(str(adapted), clean, 1).source(Cell("jpeg"))) == 6  # it has no constants


def test_images_that_were_not_corrupted_have_no_seed(ddpm: Path, clean: ImageSource, tmp_path: Path) -> None:
    (tmp_path / "seed.yaml").write_text("input: {seed: 1}\n")
    digits(ddpm, tmp_path / "a", "--corruption", "clean", "-c", tmp_path / "seed.yaml").check()
    assert len(open_view(str(tmp_path / "a"), clean, 0).source(Cell("clean", 0))) == 6


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"file": "../outside.tar"}, "would leave the output folder"),
        ({"file": "link.tar"}, "would leave the output folder"),
        ({"file": "shard-000009.tar"}, "has 0 bytes"),
        ({"offset": 10**9}, "would be .*, but that file has"),
        ({"size": 10**12}, "would be .*, but that file has"),
        ({"size": 0}, "would be .*, but that file has"),
        ({"size": None}, "size None is no number of bytes"),
    ],
)
def test_a_manifest_names_places_in_its_own_shards_alone(
    ddpm: Path, clean: ImageSource, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    root = tmp_path / "adapted"
    digits(ddpm, root, "--output", "tar").check()
    cell = root / NOISE.folder
    for outside in (cell.parent / "outside.tar", tmp_path / "outside.tar"):
        outside.write_bytes((cell / "shard-000000.tar").read_bytes())
    (cell / "link.tar").symlink_to(tmp_path / "outside.tar")
    rows = manifest_of(cell)
    (cell / "manifest.jsonl").write_text("\n".join(map(json.dumps, [rows[0] | change, *rows[1:]])))
    with pytest.raises(ValueError, match=f"{cell}/manifest.jsonl.*{message}"):
        open_view(str(root), clean, 0).source(NOISE)
