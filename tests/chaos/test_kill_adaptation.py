"""20 kills of adaptation, of shards and of generation, with 1, 2 and 3 ranks: the folder of a
launch that was never stopped, to the byte.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from tests.adapting import SHORT, manifest_of
from tests.chaos.launches import ADAPT, GENERATE, Launch, assert_same_tree, kill_often, needs_mpiexec, ranks
from tests.scripts import run_script
from tests.test_generation import save_model
from undegrade.utils.data.sources.registry import open_source

pytestmark = [pytest.mark.slow, needs_mpiexec]

CELLS = ("gaussian_noise/5", "jpeg/random")
LIMIT = 40  # images of a cell


def adaptation(ddpm: Path, save_dir: Path, *words: object) -> tuple[object, ...]:
    given = ("--corruption", "gaussian_noise,jpeg", "--limit", LIMIT, "--batch_size", 4)
    return "--model_path", ddpm, "--save_dir", save_dir, *SHORT, *given, *words


def killed(script: str, words: tuple[object, ...], folder: Path, pattern: str, total: int, kills: int, seed: int) -> None:
    """Kill the command so many times, let it end with another number of ranks each time."""

    def start(rng: random.Random) -> Launch:
        return ranks(rng.choice((1, 2, 3)), script, *words)

    kill_often(start, lambda: sum(1 for _ in folder.rglob(pattern)), total, kills, seed, startup=8)


def accuracy(folder: Path, classifier: Path, out: Path) -> dict[str, float]:
    """What evaluation makes of the adapted images, by cell."""
    members = {"shown": {"checkpoint": str(classifier), "view": str(folder)}}
    data = {"dataset": "Digits", "limit": LIMIT, "corruptions": ["gaussian_noise", "jpeg"], "severities": [5]}
    tree = {"members": members, "systems": {"shown": {"members": ["shown"]}}, "data": data, "out": str(out / "results")}
    out.mkdir()
    (out / "e.yaml").write_text(json.dumps(tree))
    run_script("test_ensemble.py", "-c", out / "e.yaml").check()
    rows = json.loads((out / "results/results.json").read_text())["rows"]
    return {row["corruption"]: row["accuracy"] for row in rows}


@pytest.mark.parametrize(
    ("words", "pattern", "total", "kills", "seed"),
    [((), "*.png", 2 * LIMIT, 8, 1), (("--output", "tar", "--shard_size", 5), "*.tar", 2 * LIMIT // 5, 6, 2)],
    ids=["a file an image", "shards"],
)
def test_adaptation_that_was_killed_again_and_again_leaves_the_bytes_of_one_launch(
    words: tuple[object, ...], pattern: str, total: int, kills: int, seed: int, ddpm: Path, classifier: Path, tmp_path: Path
) -> None:
    run_script(ADAPT, *adaptation(ddpm, tmp_path / "whole", *words)).check()
    out = tmp_path / "killed"
    killed(ADAPT, adaptation(ddpm, out, *words), out, pattern, total, kills, seed)
    assert_same_tree(out, tmp_path / "whole")
    assert [len(manifest_of(out / cell)) for cell in CELLS] == [LIMIT, LIMIT]
    evaluated = accuracy(out, classifier, tmp_path / "first")
    assert evaluated == accuracy(tmp_path / "whole", classifier, tmp_path / "second")
    assert evaluated.keys() == {"gaussian_noise", "jpeg", "mean"}


def test_generation_that_was_killed_again_and_again_leaves_the_bytes_of_one_launch(tmp_path: Path) -> None:
    model, out = save_model(tmp_path / "best.safetensors"), tmp_path / "killed"
    given = ("--model_path", model, "--num_per_class", 30, "--timestep_respacing", 12, "--batch_size", 3)
    run_script(GENERATE, *given, "--save_dir", tmp_path / "whole").check()
    killed(GENERATE, (*given, "--save_dir", out), out, "*.png", 90, 6, 3)
    assert_same_tree(out, tmp_path / "whole")
    train, validation = (open_source(str(out), split) for split in ("train", "validation"))
    assert len(train) + len(validation) == 90 and train.classes == ("zero", "one", "two")
