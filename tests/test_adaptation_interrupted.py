"""Launches that are told to end, and folders that another launch holds."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.adapting import SCRIPT, files, manifest_of, pngs
from tests.chaos.launches import ADAPT, assert_one_line, needs_mpiexec, ranks, wait_until
from tests.chaos.toys import PAUSE
from tests.scripts import Done, run_script
from tests.test_generation import generated, save_model
from undegrade.image_adapt.adapters import ADAPTERS, Adapter
from undegrade.image_adapt.generator import ImageGenerator
from undegrade.utils.interruption import STATUS
from undegrade.utils.lock import LOCK, locked

TAR = ("--output", "tar", "--shard_size", 5)


class Signalled(Adapter):
    """Negatives. While `left` is positive it counts batches down; at the last comes a signal."""

    left = 0

    def adapt(self, x: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        if Signalled.left:
            Signalled.left -= 1
            if not Signalled.left:
                os.kill(os.getpid(), signal.SIGTERM)
        return -x


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ADAPTERS._rows, "signalled", Signalled)


def adapt(save_dir: Path, *words: object) -> Done:
    given = ("--adapter", "signalled", "--corruption", "jpeg,fog", "--limit", 10, "--batch_size", 2)
    return run_script(SCRIPT, *given, "--save_dir", save_dir, *words)


@pytest.mark.parametrize("words", [(), TAR])
def test_a_signal_ends_a_launch_after_its_batch_and_the_same_command_goes_on(tmp_path: Path, words: tuple[object, ...]) -> None:
    adapt(tmp_path / "whole", *words).check()
    before = signal.getsignal(signal.SIGTERM)
    for batches in (2, 3, 1):  # in shards of 2, 2 and 1 images: the last two times within one
        Signalled.left = batches
        done = adapt(tmp_path / "out", *words)
        assert done.status == STATUS
        left = 20 - sum(len(manifest_of(folder)) for folder in tmp_path.glob("out/*/*"))
        told = f"stopped: SIGTERM was received; \\d+ images were made, {left} are left; the same command goes on from there"
        assert re.fullmatch(told, done.err.splitlines()[-1])
    adapt(tmp_path / "out", *words).check()
    assert files(tmp_path / "out") == files(tmp_path / "whole")
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_launch_ends_when_its_time_is_over(tmp_path: Path) -> None:
    done = adapt(tmp_path, "--max_time", "0.001s")
    assert (
        done.status == STATUS and "stopped: the 0.001 seconds of --max_time are over; 0 images were made, 20 are left" in done.err
    )
    assert "adapted 20 images" in adapt(tmp_path, "--max_time", "1h").check().err
    assert "adapted 0 images" in adapt(tmp_path, "--max_time", "0.001s").check().err  # nothing was left


def test_generation_ends_on_a_signal_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, whole = save_model(tmp_path / "best.safetensors"), ImageGenerator.generate

    def signalled(self: ImageGenerator, labels: Sequence[int], generators: Sequence[torch.Generator]) -> Tensor:
        os.kill(os.getpid(), signal.SIGUSR1)
        return whole(self, labels, generators)

    with monkeypatch.context() as patch:
        patch.setattr(ImageGenerator, "generate", signalled)
        done = generated(model, tmp_path / "out")
    assert done.status == STATUS and "stopped: SIGUSR1 was received; 4 images were made, 5 are left" in done.err
    assert len(manifest_of(tmp_path / "out")) == 4
    assert "generated 5 images" in generated(model, tmp_path / "out").check().err


def test_a_folder_that_another_launch_holds_is_left_alone(tmp_path: Path) -> None:
    with locked(tmp_path / "jpeg/random", "adaptation"):
        done = adapt(tmp_path)
        assert_one_line(done, f"{tmp_path}/jpeg/random is in use: process {os.getpid()}", "(adaptation)")
        assert not pngs(tmp_path)
        adapt(tmp_path, "--corruption", "fog").check()  # other cells are free
    adapt(tmp_path).check()
    assert not list(tmp_path.rglob(LOCK))
    model = save_model(tmp_path / "best.safetensors")
    with locked(tmp_path / "generated", "generation"):
        assert_one_line(generated(model, tmp_path / "generated"), "is in use")


def test_what_killed_writes_left_is_swept(tmp_path: Path) -> None:
    adapt(tmp_path).check()
    before, file = files(tmp_path), next(tmp_path.glob("jpeg/random/*/*.png"))
    for folder in (file.parent, file.parent.parent):
        (folder / ".0123456789abcdef.tmp").write_bytes(b"half of an image")
    mine = file.parent / ".mine.tmp"
    mine.write_text("kept")
    adapt(tmp_path).check()
    mine.unlink()
    assert files(tmp_path) == before


@pytest.mark.slow
@needs_mpiexec
@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGUSR1"])
def test_a_signal_ends_all_ranks_in_good_order(name: str, tmp_path: Path) -> None:
    given = ("--include", "tests.chaos.toys", "--adapter", "mirror", "--corruption", "jpeg", "--limit", 40, "--batch_size", 2)
    ranks(1, ADAPT, *given, "--save_dir", tmp_path / "whole").finish(120).check()
    out = tmp_path / "out"
    one = ranks(2, ADAPT, *given, "--save_dir", out, **{PAUSE: "1"})
    assert wait_until(lambda: len(pngs(out)) > 2 or not one.running, 120)
    one.signal(name)
    done = one.finish(60)
    assert done.status == STATUS and done.err.count("stopped: ") == 1 and f"{name} was received" in done.err
    assert 2 < len(pngs(out)) == len(manifest_of(out / "jpeg/random")) < 40
    ranks(2, ADAPT, *given, "--save_dir", out).finish(120).check()
    assert files(out) == files(tmp_path / "whole")
