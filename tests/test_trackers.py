"""Where the curves of a training run go."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter

from tests.scripts import Done, run_script
from undegrade.trainers.trackers import ID, check_trackers

RUN = (
    "-c", "configs/ind/Digits/ResNet20_clean.yaml", "--data.limit", "20", "--bs", "10",
    "--run_id", "one",
)  # fmt: skip


class Notes(GeneralTracker):
    """Keeps what it is told, by project."""

    name, requires_logging_directory = "notes", False
    told: dict[str, list[Any]] = {}  # noqa: RUF012

    def __init__(self, project: str, **options: Any) -> None:
        super().__init__()
        self.project = project

    @property
    def tracker(self) -> list[Any]:
        return self.told.setdefault(self.project, [])

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self.tracker.append(values)

    def log(self, values: dict[str, Any], step: int | None = None, **options: Any) -> None:
        self.tracker.append((step, values))

    def finish(self) -> None:
        self.tracker.append("finished")


def train(root: Path, *words: object) -> Done:
    return run_script("train.py", *RUN, "--save_dir", root, *words)


def curve(run: Path, name: str) -> list[tuple[int, float]]:
    events = EventAccumulator(str(run), purge_orphaned_data=True)
    events.Reload()
    return [(point.step, point.value) for point in events.Scalars(name)]


def test_curves_in_tensorboard_go_on_without_what_is_trained_again(tmp_path: Path) -> None:
    train(tmp_path, "--loop.epochs", 2).check()
    run = tmp_path / "ind/Digits/ResNet20_clean/one"
    before = curve(run, "train/loss")
    assert [step for step, _ in before] == [2, 4] and not (run / ID).exists()
    with SummaryWriter(str(run)) as lost:  # of an epoch after which a kill came
        lost.add_scalar("train/loss", 99.0, 6)
    assert curve(run, "train/loss")[-1] == (6, 99.0)
    run_script("train.py", "-r", run, "--loop.epochs", 4).check()
    after = curve(run, "train/loss")
    assert [step for step, _ in after] == [2, 4, 6, 8] and after[:2] == before and after[2][1] < 99
    assert curve(run, "validation/accuracy")[-1][0] == 8


def test_another_tracker_is_told_project_configuration_and_metrics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, "notes", Notes)
    monkeypatch.setattr(Notes, "told", {})
    train(tmp_path, "--loop.epochs", 1, "--loop.trackers", "notes").check()
    run = tmp_path / "ind/Digits/ResNet20_clean/one"
    ((project, (configuration, (step, metrics), end)),) = Notes.told.items()
    assert (project, step, end) == ("ind-Digits-ResNet20_clean", 2, "finished")
    assert configuration["optimizer.lr"] == 0.003 and configuration["data.degradations"] == "[]"
    assert {"train/loss", "validation/accuracy"} <= metrics.keys()
    assert len((run / ID).read_text()) == 32 and not list(run.glob("events*"))
    own = (run / ID).read_text()
    run_script("train.py", "-r", run, "--loop.epochs", 2).check()
    assert [step for step, _ in [row for row in Notes.told[project] if isinstance(row, tuple)]] == [2, 4]
    assert (run / ID).read_text() == own


def test_none_leaves_the_rows_alone(tmp_path: Path) -> None:
    train(tmp_path, "--loop.epochs", 1, "--loop.trackers", "none").check()
    run = tmp_path / "ind/Digits/ResNet20_clean/one"
    assert (run / "metrics.jsonl").is_file() and not list(run.glob("events*"))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("wandbb", "unknown tracker 'wandbb' in config key 'loop.trackers': did you mean 'wandb'?"),
        ("comet_ml", "the tracker comet_ml (config key 'loop.trackers') is not installed: pip install comet-ml, or leave it out"),
        ("none,tensorboard", "none stands alone, not beside tensorboard"),
    ],
)
def test_a_tracker_that_cannot_be_is_refused_before_there_is_a_run(given: str, words: str, tmp_path: Path) -> None:
    done = train(tmp_path, "--loop.trackers", given)
    assert done.status == 2 and words in done.err and not list(tmp_path.iterdir())


def test_without_tensorboard_a_line_says_so(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr("accelerate.tracking._available_trackers", [])
    with caplog.at_level(logging.INFO):
        assert check_trackers(["tensorboard"]) == []
    assert "not installed (pip install 'undegrade[tensorboard]'); metrics.jsonl has the numbers" in caplog.text
