"""image_sample.py on two real MPI ranks: the same bytes as one process, and no rank that waits for
ever.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from tests.adapting import files
from tests.photo_like import photo_like
from tests.scripts import Done, launch, program, run_script
from undegrade.utils.data.sources.registry import open_source

MPIEXEC = program("mpiexec")
SCRIPT = "image_adapt/scripts/image_sample.py"

pytestmark = pytest.mark.skipif(MPIEXEC is None, reason="no mpiexec beside this Python or on the PATH: pip install mpich")


def words(ddpm: Path, save_dir: Path) -> tuple[object, ...]:
    """Ten digits in batches of 4, 4 and 2 for each of two cells."""
    short = ("--timestep_respacing", 10, "--N", 3, "--guidance_weight", 3, "--batch_size", 4)
    return "--model_path", ddpm, "--save_dir", save_dir, *short, "--limit", 10, "--corruption", "gaussian_noise,jpeg"


def two_ranks(*arguments: object) -> Done:
    return launch(MPIEXEC, "-n", 2, sys.executable, SCRIPT, *arguments)


def test_two_ranks_write_the_bytes_of_one_process(ddpm: Path, tmp_path: Path) -> None:
    run_script(SCRIPT, *words(ddpm, tmp_path / "one")).check()
    one = files(tmp_path / "one")
    assert len(one) == 2 * (10 + 2)
    (tmp_path / "two").mkdir()
    kept = "jpeg/random/settings.json"  # a launch that was stopped: some images are there
    some = [kept, *[name for name in sorted(one) if name.startswith("jpeg") and name.endswith(".png")][:3]]
    for name in some:
        (tmp_path / "two" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "two" / name).write_bytes(one[name])
    done = two_ranks(*words(ddpm, tmp_path / "two")).check()
    assert "20 images in 2 cells, 2 rank(s) on cpu" in done.err
    assert "adapted 17 images" in done.err and "3 were there already" in done.err
    assert files(tmp_path / "two") == one  # images, manifests, settings


def test_mistake_in_the_command_is_said_once(ddpm: Path, tmp_path: Path) -> None:
    done = two_ranks(*words(ddpm, tmp_path / "out"), "--D", 5)
    assert done.status != 0
    assert done.err.count("downscale_factor 5 does not divide") == 1 and "Traceback" not in done.err
    assert not (tmp_path / "out").exists()


def test_failure_of_one_rank_ends_them_all(ddpm: Path, tmp_path: Path) -> None:
    """A file lies where the second rank must make a folder; the first rank alone would wait for its
    progress for ever.
    """
    out = tmp_path / "out"
    run_script(SCRIPT, *words(ddpm, out)).check()
    for path in (out / "gaussian_noise/5").rglob("*.png"):
        path.unlink()
    blocked = (out / "gaussian_noise/5" / open_source("Digits", "test", limit=10).keys[5]).parent  # in the second of three batches
    blocked.rmdir()
    blocked.write_text("in the way")
    done = two_ranks(*words(ddpm, out))
    assert done.status != 0
    assert done.err.count(f"File exists: '{blocked}'") == 1
    assert len(list((out / "gaussian_noise/5").rglob("*.png"))) >= 4  # the first rank's work is kept
    blocked.unlink()
    assert "adapted" in run_script(SCRIPT, *words(ddpm, out)).check().err  # and the same command goes on
    assert len(list((out / "gaussian_noise/5").rglob("*.png"))) == 10


def test_arrays_are_the_same_from_two_ranks(ddpm: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    np.save(tmp_path / "in/fog.npy", photo_like(35, 32).numpy().transpose(0, 2, 3, 1))
    np.save(tmp_path / "in/labels.npy", np.tile([3, 0, 9, 9, 1, 5, 5], 5))
    given = ("--model_path", ddpm, "--timestep_respacing", 10, "--N", 3, "--guidance_weight", 3, "--batch_size", 4)
    given += ("--base_samples", tmp_path / "in", "--corruption", "fog", "--severity", "1-5", "--output", "npy")
    run_script(SCRIPT, *given, "--save_dir", tmp_path / "one").check()
    two_ranks(*given, "--save_dir", tmp_path / "two").check()
    one = files(tmp_path / "one")
    assert len(one) == 5 * (7 + 2) + 2
    assert files(tmp_path / "two") == one


def test_dry_run_of_two_ranks_is_printed_once_for_both(ddpm: Path, tmp_path: Path) -> None:
    done = two_ranks(*words(ddpm, tmp_path / "out"), "--dry_run").check()
    assert done.out.count("cell ") == 1 and "ranks: 2, at most 3 batches of 4 each" in done.out
    assert not (tmp_path / "out").exists()


def test_ranks_of_one_machine_are_counted_for_their_gpus() -> None:
    program = "from image_adapt.mpi import connect; w = connect(); print(sorted(w.gather((w.rank, w.local_rank)) or []))"
    done = launch(MPIEXEC, "-n", 2, sys.executable, "-c", program).check()
    assert "[(0, 0), (1, 1)]" in done.out
