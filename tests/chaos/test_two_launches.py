"""Two launches into one folder: one writes, the other is told who does. A rank that hangs."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.chaos.launches import ADAPT, Launch, assert_one_line, assert_same_tree, needs_mpiexec, ranks, wait_until
from tests.chaos.test_kill_training import RUN, epochs_of, training
from tests.chaos.toys import HANG, PAUSE

pytestmark = [pytest.mark.slow, needs_mpiexec]

HUNG = 60  # seconds after which a launch with a rank that hangs has ended, as docs/adaptation.md says for these flags


def mirrored(save_dir: Path, count: int, *words: object, **variables: str) -> Launch:
    given = ("--include", "tests.chaos.toys", "--adapter", "mirror", "--corruption", "jpeg", "--limit", 40, "--batch_size", 2)
    return ranks(count, ADAPT, *given, "--save_dir", save_dir, *words, **variables)


def images_in(folder: Path) -> int:
    return sum(1 for _ in folder.rglob("*.png"))


def test_the_second_launch_into_a_folder_is_told_who_writes_there(tmp_path: Path) -> None:
    mirrored(tmp_path / "whole", 1).finish(120).check()
    out = tmp_path / "out"
    one = mirrored(out, 2, **{PAUSE: "3"})
    assert wait_until(lambda: images_in(out) > 0 or not one.running, 120)
    for count in (1, 2):
        refused = mirrored(out, count).finish(120)
        assert one.running, "too fast for this test"
        assert_one_line(refused, "process ", out)
    one.finish(240).check()
    assert_same_tree(out, tmp_path / "whole")


def test_of_launches_that_start_at_once_one_writes(tmp_path: Path) -> None:
    mirrored(tmp_path / "whole", 1).finish(120).check()
    together = [mirrored(tmp_path / "out", 1, **{PAUSE: "3"}) for _ in range(3)]
    ended = [launch.finish(240) for launch in together]
    assert sorted(done.status for done in ended) == [0, 2, 2]
    for done in ended:
        if done.status:
            assert_one_line(done, "process ")
    assert_same_tree(tmp_path / "out", tmp_path / "whole")


def test_a_killed_launch_leaves_a_folder_that_can_be_gone_on_with_at_once(tmp_path: Path) -> None:
    out = tmp_path / "out"
    one = mirrored(out, 2, **{PAUSE: "3"})
    assert wait_until(lambda: images_in(out) > 0 or not one.running, 120)
    one.kill()
    mirrored(out, 1).finish(120).check()
    assert images_in(out) == 40


def test_the_second_training_of_a_run_is_told_who_writes_there(tmp_path: Path) -> None:
    one = training(tmp_path, 1, "--data.limit", 400)
    assert wait_until(lambda: epochs_of(tmp_path) > 0 or not one.running, 120)
    refused = training(tmp_path, 1, "--data.limit", 400).finish(120)
    assert one.running, "too fast for this test"
    one.kill()
    assert_one_line(refused, "process ", tmp_path / RUN)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_launch_with_a_rank_that_hangs_ends_and_names_it(rank: int, tmp_path: Path) -> None:
    mirrored(tmp_path / "whole", 1).finish(120).check()
    out = tmp_path / "out"
    launch = mirrored(out, 2, "--rank_timeout", "20s", **{HANG: str(rank)})
    assert wait_until(lambda: images_in(out) > 0 or not launch.running, 120)
    start = time.monotonic()
    done = launch.finish(HUNG + 60)
    assert time.monotonic() - start < HUNG
    assert done.status != 0 and f"rank {rank}" in done.err, done.err
    mirrored(out, 2).finish(120).check()  # what the others made is kept, and the same command goes on
    assert_same_tree(out, tmp_path / "whole")
