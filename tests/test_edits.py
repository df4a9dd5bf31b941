"""Several edits of every image in one launch: each is what a launch of its seed makes."""

from __future__ import annotations

from pathlib import Path

from tests.adapting import digits, files
from tests.scripts import Done
from undegrade.image_adapt.config import AdaptConfig


def launch(ddpm: Path, folder: Path, *words: object, seed: int = 5) -> Done:
    return digits(ddpm, folder, "--seed", seed, *words).check()


def test_each_edit_is_a_launch_of_its_seed_and_more_of_them_leave_the_first_as_they_are(ddpm: Path, tmp_path: Path) -> None:
    out = tmp_path / "edits"
    assert launch(ddpm, out, "--edits", 2).err.count("adapted 12 images") == 2
    both = files(out)
    for k in range(2):
        launch(ddpm, tmp_path / f"alone{k}", seed=5 + k)
        alone = files(tmp_path / f"alone{k}")
        assert alone == {name.partition("/")[2]: data for name, data in both.items() if name.startswith(f"edit{k}/")}
    assert files(tmp_path / "alone0") != files(tmp_path / "alone1")
    next(out.glob("edit1/jpeg/random/*/*.png")).unlink()
    plan = launch(ddpm, out, "--edits", 3, "--dry_run").out
    assert [line.split()[2:4] for line in plan.splitlines() if line.startswith("total")] == [["12", "0"], ["11", "1"], ["0", "12"]]
    again = launch(ddpm, out, "--edits", 3).err
    assert [f"adapted {count} images" in again for count in (0, 1, 12)] == [True] * 3
    assert {name: data for name, data in files(out).items() if not name.startswith("edit2/")} == both


def test_one_edit_has_a_folder_too_and_none_asked_for_has_not() -> None:
    assert [(edit.save_dir, edit.seed) for edit in AdaptConfig("out", seed=5, edits=1).each_edit()] == [("out/edit0", 5)]
    assert [edit.save_dir for edit in AdaptConfig("out").each_edit()] == ["out"]
