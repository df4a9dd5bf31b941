"""Run folders, how stages find each other's checkpoints, and what a run writes while it goes."""

from __future__ import annotations

import json
import logging
import os
import re
from pathlib import Path

import pytest

from undegrade.utils.published_commands import published_run
from undegrade.utils.run_log import RunLog, setup_logging
from undegrade.utils.runs import BEST, create_run, finished_runs, holding, mark_done, resolve_checkpoint


def make_run(save_dir: Path, name: str, run_id: str, finished_at: int | None = None) -> Path:
    """A run folder with a checkpoint; finished at a time (seconds), or unfinished without
    checkpoint.
    """
    run = create_run(save_dir, name, run_id)
    run.mkdir(parents=True)
    (run / "config.yaml").write_text("")
    if finished_at is not None:
        (run / BEST).write_bytes(run_id.encode())
        mark_done(run)
        os.utime(run / "DONE", (finished_at, finished_at))
    return run


def test_runs_without_id_are_named_by_the_time_and_never_collide(tmp_path: Path) -> None:
    runs = [create_run(tmp_path, "ind/Digits/clean") for _ in range(4)]
    assert len(set(runs)) == 4
    assert all(run.is_dir() and run.parent == tmp_path / "ind/Digits/clean" for run in runs)
    assert all(re.fullmatch(r"\d{8}-\d{6}(-\d)?", run.name) for run in runs)


def test_a_folder_that_is_no_run_is_not_written_to_and_one_of_a_kill_is(tmp_path: Path) -> None:
    run = create_run(tmp_path, "a", "mine")
    assert run == tmp_path / "a/mine"
    litter = [run / f".{'0' * 16}.tmp", run / "last" / f".{'a' * 16}.tmp"]
    litter[1].mkdir(parents=True)
    litter[0].touch()
    (run / "config.yaml").touch()
    with holding(run, "training"):
        assert not any(path.exists() for path in litter)
    (run / "config.yaml").rename(run / "thesis.txt")
    with pytest.raises(ValueError, match="mine holds files but no config.yaml, so it is no run"), holding(run, "training"):
        pass
    assert {path.name for path in run.iterdir()} == {"thesis.txt", "last"}


def test_a_run_without_a_checkpoint_has_not_finished(tmp_path: Path) -> None:
    run = make_run(tmp_path, "a", "one")
    with pytest.raises(FileNotFoundError, match=r"one has no best\.safetensors"):
        mark_done(run)
    (run / "DONE").touch()
    assert finished_runs(tmp_path, "a") == []


def test_finished_runs_are_ordered_by_the_time_at_which_they_finished(tmp_path: Path) -> None:
    make_run(tmp_path, "a", "first", finished_at=300)
    make_run(tmp_path, "a", "second", finished_at=100)
    make_run(tmp_path, "a", "third")
    assert [run.name for run in finished_runs(tmp_path, "a")] == ["second", "first"]
    assert finished_runs(tmp_path, "b") == []


def test_a_checkpoint_is_found_by_file_by_folder_by_name_and_by_name_with_id(tmp_path: Path) -> None:
    old = make_run(tmp_path, "ind/clean", "old", finished_at=100)
    new = make_run(tmp_path, "ind/clean", "new", finished_at=200)
    make_run(tmp_path, "ind/clean", "unfinished")
    assert resolve_checkpoint(old / BEST, tmp_path) == old / BEST
    assert resolve_checkpoint(str(old), tmp_path) == old / BEST
    assert resolve_checkpoint("ind/clean", tmp_path) == new / BEST
    assert resolve_checkpoint("ind/clean/old", tmp_path) == old / BEST


def test_a_name_whose_runs_have_not_finished_is_reported_with_the_command_that_goes_on(tmp_path: Path) -> None:
    make_run(tmp_path, "ind/clean", "run1")
    last = make_run(tmp_path, "ind/clean", "run2")
    for reference in ("ind/clean", "ind/clean/run2", Path("ind/clean")):
        message = f"run {str(reference)!r} under {tmp_path}/ has not finished; go on with it: python train.py -r {last}"
        with pytest.raises(FileNotFoundError, match=re.escape(message) + "$"):
            resolve_checkpoint(reference, tmp_path)


def test_a_name_that_does_not_exist_is_reported_with_those_that_do_and_the_command_that_makes_it(tmp_path: Path) -> None:
    make_run(tmp_path, "ind/clean", "r", finished_at=1)
    make_run(tmp_path, "sl/jpeg", "r", finished_at=1)
    message = f"no checkpoint {{!r}}: it is no file, no run folder and no finished run under {tmp_path}/"
    for reference, rest in (
        ("ind/claen", "; did you mean ind/clean?; make it with: python train.py"),
        ("dda", "; make it with: python train.py; finished there: ind/clean, sl/jpeg"),
    ):
        with pytest.raises(FileNotFoundError, match=re.escape(message.format(reference) + rest) + "$"):
            resolve_checkpoint(reference, tmp_path, made_by="python train.py")


def test_a_run_that_has_finished_deeper_is_proposed_with_its_root(tmp_path: Path) -> None:
    for root in ("demo/models", "mine"):
        make_run(tmp_path, f"{root}/diffusion/Digits/ddpm", "r", finished_at=1)
    make_run(tmp_path, "mine/other_diffusion/Digits/ddpm", "r", finished_at=1)
    message = f"; did you mean --runs {tmp_path}/demo/models or {tmp_path}/mine (in training --save_dir)?"
    with pytest.raises(FileNotFoundError, match=re.escape(message) + "$"):
        resolve_checkpoint("diffusion/Digits/ddpm", tmp_path)
    assert resolve_checkpoint("diffusion/Digits/ddpm", tmp_path / "mine").is_relative_to(tmp_path / "mine/diffusion")


def test_a_place_without_runs_is_reported(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no checkpoint 'x'.*nothing has finished there"):
        resolve_checkpoint("x", tmp_path / "none")


# --- paths of the published commands


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("saved/jpeg/IndTrainer/ResNet56_CIFAR100_clean/train", "ind/CIFAR100/ResNet56_clean"),
        ("saved/blur/SLTrainer/ResNet56-56_TinyImagenet/train", "sl/TinyImagenet/ResNet56-ResNet56/blur"),
        ("saved/blur+noise/SLTrainer/ResNet20-20_Digits/train", "sl/Digits/ResNet20-ResNet20/blur+noise"),
        ("saved/combined_deg/SLTrainer/ResNet56-56_CIFAR10_soups/train", "deg_all/CIFAR10/ResNet56_soups"),
        ("saved/combined_deg/SLDA_Trainer/ResNet56-56_CIFAR10/train", "deg_all/CIFAR10/ResNet56-ResNet56_fusiondistill"),
        ("saved/combined_deg/IndDATrainer/ResNet56_CIFAR100_deg_scratch/train", "deg_all/CIFAR100/ResNet56_base_scratch"),
        ("saved/combined_deg/IndDATrainer/ResNet20_Digits_deg_vanilla/train", "deg_all/Digits/ResNet20_base_vanilla"),
        ("saved/combined_deg/IndDATrainer/ResNet56_CIFAR10_deg_fused/train", "deg_all/CIFAR10/ResNet56_fused"),
    ],
)
def test_a_path_of_the_published_commands_means_a_run_here(path: str, name: str, tmp_path: Path) -> None:
    for end in ("", "/latest", "/latest/model_best.pth", "/model_best.pth"):
        assert published_run(path + end) == name
    for end in ("/0824_101500", "/0824_101500/model_best.pth"):
        assert published_run(path + end) == f"{name}/0824_101500"
    old, new = (make_run(tmp_path, name, run_id, finished_at) for finished_at, run_id in enumerate(("old", "new"), 1))
    assert resolve_checkpoint(f"{path}/old/model_best.pth", tmp_path) == old / BEST
    assert resolve_checkpoint(f"{path}/latest/model_best.pth", tmp_path) == new / BEST


@pytest.mark.parametrize(
    "path",
    [
        "saved/jpeg/OtherTrainer/ResNet56-56_CIFAR10/train/a/model_best.pth",
        "saved/combined_deg/IndDATrainer/ResNet56_CIFAR10_deg_other/train",
        "saved/combined_deg/SLDA_Trainer/ResNet56-56_CIFAR10/test/a",
        "saved/combined_deg/SLDA_Trainer/ResNet56-56_CIFAR10/train/a/checkpoint-epoch9.pth",
        "save/jpeg/SLTrainer/ResNet56-56_CIFAR10/train",
        "sl/CIFAR10/ResNet56-ResNet56/jpeg",
        "saved",
    ],
)
def test_any_other_path_means_no_run(path: str) -> None:
    assert published_run(path) is None


def test_a_file_that_lies_at_a_published_path_is_taken_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    ours = make_run(tmp_path / "runs", "sl/CIFAR10/ResNet56-ResNet56/jpeg", "a", finished_at=1)
    theirs = Path("saved/jpeg/SLTrainer/ResNet56-56_CIFAR10/train/a/model_best.pth")
    assert resolve_checkpoint(theirs, tmp_path / "runs") == ours / BEST
    theirs.parent.mkdir(parents=True)
    theirs.touch()
    assert resolve_checkpoint(theirs, tmp_path / "runs") == theirs


# --- metrics


def rows(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_metrics_are_rows_of_numbers_that_are_on_disk_at_once(tmp_path: Path) -> None:
    log = RunLog(tmp_path)
    log.write(1, 10, {"train/loss": 0.12345678})
    assert rows(tmp_path) == [{"epoch": 1, "step": 10, "train/loss": 0.123457}]
    log.close()


def test_a_resumed_log_holds_every_epoch_once(tmp_path: Path) -> None:
    log = RunLog(tmp_path)
    for epoch in (1, 2, 3):
        log.write(epoch, epoch, {"loss": epoch})
    log.close()
    log = RunLog(tmp_path, resume_epoch=2)
    log.write(3, 3, {"loss": 30})
    log.close()
    assert [(row["epoch"], row["loss"]) for row in rows(tmp_path)] == [(1, 1), (2, 2), (3, 30)]


@pytest.mark.parametrize("rest", ['{"epoch": 2, "st', "{", "\0\0\0", '"text', "[" * 100_000])
def test_a_row_cut_off_by_a_kill_does_not_stop_a_resume_and_is_named(
    tmp_path: Path, rest: str, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"epoch": 1, "step": 1}\n' + rest)
    RunLog(tmp_path, resume_epoch=2).close()
    assert rows(tmp_path) == [{"epoch": 1, "step": 1}]
    assert f"{tmp_path}/metrics.jsonl: its last line was cut off" in caplog.text
    assert "lacks 1 of the 2 epochs that are done" in caplog.text


@pytest.mark.parametrize("line", ["x", "5", "[1]", '{"step": 1}', '{"epoch": "1"}', "\xff"])
def test_a_damaged_row_among_others_is_named(tmp_path: Path, line: str) -> None:
    content = '{"epoch": 1, "step": 1}\n' + line + '\n{"epoch": 2, "step": 2}\n'
    (tmp_path / "metrics.jsonl").write_text(content, encoding="latin-1")
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 2 is damaged \(.*\): remove that line, or the file"):
        RunLog(tmp_path, resume_epoch=2)
    assert (tmp_path / "metrics.jsonl").read_text(encoding="latin-1") == content


def test_a_loss_of_nan_is_kept_in_the_rows(tmp_path: Path) -> None:
    log = RunLog(tmp_path)
    log.write(1, 1, {"loss": float("nan"), "accuracy": 0.5})
    log.close()
    assert rows(tmp_path)[0]["loss"] != rows(tmp_path)[0]["loss"] and not list(tmp_path.glob("events*"))


def test_a_log_without_folder_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    log = RunLog(None)
    log.write(1, 1, {"loss": 1.0})
    log.close()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("quiet", "expected"), [(False, "told\nwarned\n"), (True, "warned\n")])
def test_console_lines_are_messages_alone_and_quiet_keeps_the_warnings(
    quiet: bool, expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    try:
        setup_logging(quiet)
        logging.getLogger("some.module").info("told")
        logging.getLogger("some.module").warning("warned")
        logging.getLogger("PIL").info("noise of a library")
    finally:
        root.handlers[:], root.level = before, level
    assert capsys.readouterr().err == expected
