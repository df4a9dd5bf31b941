"""Stages on several processes: who shares which batch, and adapted images in shards."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from tests.scripts import ROOT
from tests.stages import texts
from undegrade.utils import stages
from undegrade.utils.config import build, read_yaml
from undegrade.utils.pipeline import main
from undegrade.utils.processes import TORCHRUN
from undegrade.utils.stages import PipelineConfig, commands


def _training(**more: object) -> dict[str, object]:
    stage = {"script": "train.py", "config": "configs/sda/Imagenet/swinT.yaml", "args": {"run_id": "{stage_id}"}}
    return {"variables": {"processes": "1"}, "stages": {"a": {**stage, **more}}}


@pytest.mark.parametrize(
    ("processes", "recipe", "started", "batch", "accumulate"),
    [
        (1, 1, 1, 128, 1), (4, 1, 4, 32, 1), (3, 1, 2, 64, 1), (8, 8, 8, 128, 1), (1, 8, 1, 128, 8), (2, 8, 2, 128, 4),
        (3, 8, 2, 128, 4), (16, 8, 16, 64, 1), (6, 8, 4, 128, 2), (256, 1, 128, 1, 1),
    ],
)  # fmt: skip
def test_training_is_shared_out_over_processes_so_that_a_step_sees_as_many_images(
    processes: int, recipe: int, started: int, batch: int, accumulate: int, caplog: pytest.LogCaptureFixture
) -> None:
    (command,) = commands(build(PipelineConfig, _training(recipe_processes=recipe)), {"processes": str(processes)})
    words = command.words
    assert words[1:6] == [*TORCHRUN, str(started)] if started > 1 else words[1] == "train.py"
    given = dict(zip(words, words[1:], strict=False))
    assert int(given.get("--data.batch_size", 128)) == batch and int(given.get("--loop.accumulate", 1)) == accumulate
    assert started * batch * accumulate == 128 * recipe
    assert ("the most that divide its" in caplog.text) == (started < processes)


def test_a_batch_size_of_the_command_line_is_what_is_shared_out() -> None:
    for args in ({"bs": 24}, {"data.batch_size": 24}, {"data.batch_size": 6, "loop.accumulate": 4}):
        (command,) = commands(build(PipelineConfig, _training(args=args)), {"processes": "4"})
        assert command.arguments[2:] == ["--data.batch_size", "6", "--loop.accumulate", "1"]


def test_another_number_of_processes_is_the_same_stage_and_other_stages_are_started_as_ever() -> None:
    config = build(PipelineConfig, _training())
    assert len({commands(config, {"processes": str(count)})[0].identity for count in (1, 2, 4)}) == 1
    assert texts({"stages": {"a": {"script": "test.py"}}}, processes="4") == {"a": "test.py"}


def test_as_many_processes_and_ranks_as_gpus_unless_told(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    config = build(PipelineConfig, {"stages": {"a": {"script": "x.py", "args": {"x": "{ranks} {processes}"}}}})
    for gpus, expected in ((0, "2 1"), (1, "1 1"), (4, "4 4")):
        monkeypatch.setattr(stages, "visible_gpus", lambda gpus=gpus: gpus)
        assert commands(config, {})[0].arguments == ["--x", expected]
    with caplog.at_level(logging.INFO):
        assert commands(config, {"ranks": "3", "processes": "5"})[0].arguments == ["--x", "3 5"]
    assert caplog.messages[-1] == "training runs on 5 processes, which share each batch out (--processes)"
    with pytest.raises(ValueError, match=r"^--processes two: give a whole number of at least 1$"):
        commands(config, {"processes": "two"})


@pytest.mark.parametrize(("dataset", "output"), [("Imagenet", "tar"), ("CIFAR10", "png")])
@pytest.mark.parametrize("pipeline", ["diffaud", "sda"])
def test_adapted_images_of_imagenet_are_written_as_shards(
    pipeline: str, dataset: str, output: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    made = commands(build(PipelineConfig, read_yaml(f"configs/pipelines/{pipeline}.yaml")), {"dataset": dataset})
    adapted = {command.name: command.words for command in made if "/adapt_" in command.name}
    assert len(adapted) == {"diffaud": 3, "sda": 4}[pipeline] - (2 if (pipeline, dataset) == ("sda", "Imagenet") else 0)
    assert all(words[words.index("--output") + 1] == output for words in adapted.values())


@pytest.mark.slow
def test_a_pipeline_on_two_processes_with_shards_comes_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    few = ["--known", "noise", "--known_limit", "20", "--corruptions", "fog,contrast", "--train.data.limit", "20"]
    words = ["-c", "configs/pipelines/diffaud.yaml", "--out", str(tmp_path), *few, "--test.limit", "10", "--train.loop.epochs", "1"]
    main([*words, "--processes", "2", "--output", "tar", "--adapt.shard_size", "7", "--adapt.N", "1"])
    for split, shards in (("train/noise/random", 3), ("validation/noise/random", 3), ("test/fog/5", 2)):
        folder = tmp_path / "seed1/adapted" / split
        assert len(list(folder.glob("*.tar"))) == shards and not list(folder.rglob("*.png"))
    assert "DiffAUD" in (tmp_path / "table.md").read_text()
