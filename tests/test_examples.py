"""The figure of typical test images of an evaluation."""

from __future__ import annotations

from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import yaml
from PIL import Image

from tests.checkpoints import save_random
from tests.scoring import logits_by_hand
from tests.scripts import run_script
from undegrade.evaluation.examples_command import typical
from undegrade.evaluation.report.plots_pictures import image_grid
from undegrade.utils.data.cells import Cell
from undegrade.utils.data.sources.registry import SourceConfig
from undegrade.utils.data.views import open_view

SYSTEMS = {"alone": {"members": ["one"]}, "pair": {"members": ["one", "other"], "rule": "sum"}}


def bools(text: str) -> np.ndarray:
    return np.array([letter == "1" for letter in text])


@pytest.mark.parametrize(("start", "place"), [(0, 1), (2, 3), (4, 1)])
def test_typical_is_the_next_image_with_the_most_frequent_outcome(start: int, place: int) -> None:
    assert typical(bools("10001"), bools("11010"), start) == place


@pytest.fixture
def evaluated(tmp_path: Path) -> Path:
    """Of two systems on two corruptions of 12 digits."""
    for seed in (0, 1):
        save_random(tmp_path / f"{seed}.safetensors", seed, image_size=32)
    members = {"one": {"checkpoint": str(tmp_path / "0.safetensors")}, "other": {"checkpoint": str(tmp_path / "1.safetensors")}}
    tree = {"members": members, "systems": SYSTEMS, "data": {"dataset": "Digits", "limit": 12}}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(tree))
    words = ("--corruption", "gaussian_noise,fog", "--severity", 5, "--out", tmp_path / "out")
    run_script("test_ensemble.py", "-c", tmp_path / "c.yaml", *words).check()
    return tmp_path


def test_the_figure_shows_what_the_systems_say(evaluated: Path) -> None:
    words = ("--corruption", "gaussian_noise,fog", "--system", "pair", "--out", evaluated / "figure.png")
    with mock.patch("undegrade.evaluation.report.plots_pictures.image_grid", side_effect=image_grid) as grid:
        run_script("evaluation/examples_command.py", evaluated / "out", *words).check()
    columns, labels = grid.call_args[0]
    assert labels == ["test image:\ntrue class", "degraded:\nalone says", "and adapted:\npair says"]
    source = SourceConfig("Digits", limit=12).open("test")
    for (heading, (clean, alone, pair)), name in zip(columns.items(), ("gaussian_noise", "fog"), strict=True):
        images = open_view("raw", source, 0).source(Cell(name, 5)).images(range(12))
        shares = [logits_by_hand(evaluated / f"{seed}.safetensors", images).softmax(1) for seed in (0, 1)]
        answers = [shares[0].argmax(1), sum(shares).argmax(1)]  # type: ignore[union-attr]
        rates = [100 * float((each == source.labels).float().mean()) for each in answers]
        assert heading == f"{name.replace('_', ' ')}\n{rates[0]:.1f} → {rates[1]:.1f} %"
        place = next(i for i in range(12) if np.array_equal(alone.image, images[i].permute(1, 2, 0)))
        assert [alone.text, pair.text] == [str(int(each[place])) for each in answers]
        assert [alone.right, pair.right] == [bool(each[place] == source.labels[place]) for each in answers]
        assert (clean.text, clean.right) == (str(int(source.labels[place])), None)
    assert Image.open(evaluated / "figure.png").width > 300


def test_a_system_that_is_not_there_is_named(evaluated: Path) -> None:
    done = run_script(
        "evaluation/examples_command.py", evaluated / "out", "--corruption", "fog", "--system", "pear", "--out", evaluated / "f.png"
    )
    assert done.status == 2 and "pear" in done.err and "pair" in done.err
