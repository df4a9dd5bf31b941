"""image_sample.py: what it writes, resuming, layouts of folders, broken files. Ranks:
test_adaptation_mpi.py.
"""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.adapting import adapt, digits, manifest_of, pixels, pngs, save_images
from tests.photo_like import photo_like
from undegrade.image_adapt.adapters import Adapter
from undegrade.image_adapt.config import AdaptConfig, InputConfig
from undegrade.image_adapt.dda import DDA
from undegrade.image_adapt.mpi import World
from undegrade.image_adapt.sharing import cut_pieces
from undegrade.image_adapt.work import adapt_batch, plan_jobs, run_jobs
from undegrade.models.diffusion.loading import load_denoiser
from undegrade.utils.checkpoint import file_digest
from undegrade.utils.data.cells import Cell
from undegrade.utils.data.pixels import from_signed, to_signed
from undegrade.utils.data.sources.registry import open_source
from undegrade.utils.data.views import OnTheFly
from undegrade.utils.seeding import torch_generator


@pytest.fixture(scope="module")
def done_before(ddpm: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of `digits`."""
    folder = tmp_path_factory.mktemp("adapted")
    assert "adapted 12 images" in digits(ddpm, folder).check().err
    return folder


# --- what is written


def test_files_hold_what_the_adapter_makes_of_each_image_alone(done_before: Path, ddpm: Path) -> None:
    source = OnTheFly(open_source("Digits", "test", limit=6)).source(Cell("gaussian_noise", 5))
    adapter = DDA(load_denoiser(ddpm), respacing="10", start_step=3, downscale_factor=4, guidance_weight=3.0)
    folder = done_before / "gaussian_noise/5"
    assert set(pngs(folder)) == {f"{key}.png" for key in source.keys}
    for i, key in enumerate(source.keys):
        alone = adapter.adapt(to_signed(source.images([i])), [torch_generator(0, "adapt", key)])
        expected = from_signed(alone)[0].permute(1, 2, 0).numpy().astype(int)
        found = pixels(folder / f"{key}.png")
        assert np.abs(found - expected).max() <= 1
        assert np.abs(found - source.images([i])[0].permute(1, 2, 0).numpy()).mean() > 1  # it was changed


def test_manifest_lists_each_image_with_label_level_and_settings(done_before: Path, ddpm: Path) -> None:
    source = open_source("Digits", "test", limit=6)
    levels = dict(zip(source.keys, OnTheFly(source).levels(Cell("jpeg"), source.keys).tolist(), strict=True))
    digests = set()
    for cell, drawn in (("gaussian_noise/5", False), ("jpeg/random", True)):
        rows = manifest_of(done_before / cell)
        assert [row["key"] for row in rows] == sorted(source.keys)
        for row in rows:
            assert list(row) == ["key", "file", "label", "level", "seed", "settings", "input_side", "size", "digest"]
            assert row["file"] == f"{row['key']}.png" and (done_before / cell / row["file"]).is_file()
            assert row["label"] == int(row["key"].split("/")[0]) and row["seed"] == 0
            assert row["level"] == (levels[row["key"]] if drawn else None)
        digests |= {row["settings"] for row in rows}
    assert len(digests) == 2
    settings = json.loads((done_before / "gaussian_noise/5/settings.json").read_text())
    parameters = {
        "respacing": "10", "start_step": 3, "downscale_factor": 4, "guidance_weight": 3, "guidance_norm": "per_image",
        "border": "reflect", "start_mismatch": False, "variance": None, "clip_denoised": True, "guidance": "full",
        "sampler": "ddpm",
    }  # fmt: skip
    assert settings == {
        "adapter": "dda", "parameters": parameters, "model": file_digest(ddpm), "seed": 0, "precision": "float32",
        "rounding": "round", "output": "png", "corruption": "gaussian_noise", "severity": 5,
        "input": {"dataset": "Digits", "split": "test", "constants": "cifar", "seed": 0},
    }  # fmt: skip


def test_batches_of_1_and_of_16_differ_by_a_grey_level_at_most(ddpm: Path, tmp_path: Path) -> None:
    for size in (1, 16):
        words = ("--corruption", "gaussian_noise", "--limit", 18, "--batch_size", size)
        adapt(ddpm, tmp_path / str(size), *words).check()
    names = list(pngs(tmp_path / "1"))
    assert names == list(pngs(tmp_path / "16")) and len(names) == 18
    difference = np.abs(np.stack([pixels(tmp_path / "1" / n) - pixels(tmp_path / "16" / n) for n in names]))
    assert difference.max() <= 1 and (difference > 0).mean() <= 1e-3


def test_every_batch_has_the_full_shape_and_each_image_its_own_stream() -> None:
    seen = []

    class Noting(Adapter):
        def adapt(self, x: torch.Tensor, generators: list[torch.Generator]) -> torch.Tensor:
            seen.append((tuple(x.shape), [g.initial_seed() for g in generators]))
            return x

    images = photo_like(2, 8)
    adapted = adapt_batch(Noting(), images, ["a", "b"], 5, 4, torch.device("cpu"))
    a, b = (torch_generator(5, "adapt", key).initial_seed() for key in "ab")
    assert seen == [((4, 3, 8, 8), [a, b, b, b])]
    assert torch.equal(from_signed(adapted), images)


class LoneRank(World):
    """The second of three ranks, to which the others do not listen; `told` is what the first one
    broadcasts, in order.
    """

    def __init__(self, told: list[object]) -> None:
        super().__init__()
        self.told = iter(told)
        self.rank, self.size, self.communicator = 1, 3, self

    def bcast(self, value: object, root: int) -> object:
        return next(self.told)

    def gather(self, value: object, root: int = 0) -> None:
        return None


def test_rank_adapts_a_fixed_share_where_mpi_allows_no_threads(ddpm: Path, tmp_path: Path) -> None:
    given = InputConfig(corruptions=["clean"], limit=18)
    config = AdaptConfig(str(tmp_path), batch_size=4, input=given)  # batches of 4, 4, 4, 4 and 2
    adapter = DDA(load_denoiser(ddpm), respacing="10", start_step=1, guidance_weight=0)
    (job,) = plan_jobs(config, 32)
    without_threads = 0
    rank = LoneRank([cut_pieces([job], [{}], 4), without_threads, None])
    run_jobs([job], adapter, config, rank, torch.device("cpu"))
    keys = job.source.keys
    assert set(pngs(job.folder)) == {f"{key}.png" for key in keys[4:8] + keys[16:18]}
    assert not (job.folder / "manifest.jsonl").exists()  # that is the first rank's


def test_num_samples_takes_the_same_images_of_every_cell_with_their_levels(done_before: Path, ddpm: Path, tmp_path: Path) -> None:
    digits(ddpm, tmp_path, "--num_samples", 3).check()
    keys = [[row["key"] for row in manifest_of(tmp_path / cell)] for cell in ("gaussian_noise/5", "jpeg/random")]
    assert keys[0] == keys[1] and len(keys[0]) == 3
    every = {row["key"]: row for row in manifest_of(done_before / "jpeg/random")}
    assert manifest_of(tmp_path / "jpeg/random") == [every[key] for key in keys[1]]
    assert pngs(tmp_path).items() <= pngs(done_before).items()


def test_another_seed_gives_other_images(done_before: Path, ddpm: Path, tmp_path: Path) -> None:
    digits(ddpm, tmp_path, "--seed", 1).check()
    first, second = pngs(done_before), pngs(tmp_path)
    assert first.keys() == second.keys() and all(first[name] != second[name] for name in first)


# --- the same command again


def test_deleted_outputs_come_back_to_the_byte_and_the_others_are_left_alone(ddpm: Path, tmp_path: Path) -> None:
    digits(ddpm, tmp_path).check()
    before = pngs(tmp_path)
    lost = list(before)[1::4]
    assert len(lost) == 3
    for name in lost:
        (tmp_path / name).unlink()
    (tmp_path / "jpeg/random/manifest.jsonl").unlink()
    (tmp_path / "jpeg/random/3").mkdir(exist_ok=True)
    (tmp_path / "jpeg/random/3/.half.png.part").write_bytes(b"a write that was cut off")
    times = {name: (tmp_path / name).stat().st_mtime_ns for name in before if name not in lost}
    assert "adapted 3 images" in (done := digits(ddpm, tmp_path).check()).err and "9 were there already" in done.err
    assert pngs(tmp_path) == before
    assert {name: (tmp_path / name).stat().st_mtime_ns for name in times} == times
    assert len(manifest_of(tmp_path / "jpeg/random")) == 6
    assert "adapted 0 images" in digits(ddpm, tmp_path).check().err


def test_images_of_other_settings_are_refused_and_replaced_when_asked(ddpm: Path, tmp_path: Path) -> None:
    digits(ddpm, tmp_path).check()
    before = pngs(tmp_path)
    done = digits(ddpm, tmp_path, "--N", 2)
    assert done.status == 2 and "--overwrite true" in done.err
    assert "gaussian_noise/5 holds images made with other settings (start_step: 3 there, 2 now):" in done.err
    fast = digits(ddpm, tmp_path, "--guidance", "jacobian_free", "--input.seed", 1)
    assert "(guidance: full there, jacobian_free now; input.seed: 0 there, 1 now)" in fast.err
    assert pngs(tmp_path) == before
    assert "adapted 12 images" in digits(ddpm, tmp_path, "--N", 2, "--overwrite", "true").check().err
    after = pngs(tmp_path)
    assert after.keys() == before.keys() and all(after[name] != before[name] for name in before)
    assert "adapted 0 images" in digits(ddpm, tmp_path, "--N", 2, "--overwrite", "true").check().err  # the same settings: kept


# --- folders


@pytest.mark.parametrize(
    ("layout", "words", "below"),
    [
        (None, (), "some/deep"),
        ("imagenetc", ("--corruption", "fog", "--severity", "2"), "fog/2/n01"),
        ("imagenet", ("--corruption", "jpeg"), "jpeg/val/n01"),
        ("imagenet", ("--corruption", "jpeg", "--train", "True"), "jpeg/train/n01"),
        ("cifar10", ("--corruption", "blur"), "blur/cifar_test/cat"),
        ("cifar10", ("--corruption", "blur", "--train", "True"), "blur/cifar_train/cat"),
        ("cifar10c", ("--corruption", "clean,fog", "--severity", "1"), "fog/1/cat"),
    ],
)
def test_folders_of_every_layout_come_out_as_they_went_in(
    ddpm: Path, tmp_path: Path, layout: str | None, words: tuple[str, ...], below: str
) -> None:
    save_images(tmp_path / "in", [f"{below}/a.png", f"{below}/b.jpg"])
    if layout == "cifar10c":
        save_images(tmp_path / "in", ["clean/0/cat/a.png"])
    if layout:
        save_images(tmp_path / "in", ["not/asked/for.png"])
        words += ("--dataset", layout)
    adapt(ddpm, tmp_path / "out", "--base_samples", tmp_path / "in", *words, "--batch_size", 2).check()
    names = {f"{below}/a.png", f"{below}/b.png"} | ({"clean/0/cat/a.png"} if layout == "cifar10c" else set())
    assert set(pngs(tmp_path / "out")) == names
    root = tmp_path / "out" / ("" if layout is None else "/".join(below.split("/")[:2]))
    key = f"{below}/a".removeprefix("/".join(below.split("/")[:2]) + "/" if layout else "")
    row = manifest_of(root)[0]
    assert row["key"] == key and row["label"] == -1 and (root / row["file"]).is_file()


def test_photos_of_any_size_and_kind_are_cropped_to_the_models_size(ddpm: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name, mode, size in (("wide.png", "RGB", (90, 40)), ("grey.png", "L", (32, 50)), ("clear.png", "RGBA", (64, 64))):
        Image.new(mode, size).save(tmp_path / "in" / name)
    adapt(ddpm, tmp_path / "out", "--base_samples", tmp_path / "in").check()
    assert {Image.open(p).size for p in (tmp_path / "out").glob("*.png")} == {(32, 32)}
    assert len(pngs(tmp_path / "out")) == 3


def test_files_that_differ_by_suffix_alone_keep_it(ddpm: Path, tmp_path: Path) -> None:
    save_images(tmp_path / "in", ["a.png", "a.jpg", "b.png"])
    adapt(ddpm, tmp_path / "out", "--base_samples", tmp_path / "in").check()
    assert set(pngs(tmp_path / "out")) == {"a.png.png", "a.jpg.png", "b.png"}


def test_a_folder_of_broken_files_alone_is_reported_and_may_be_done_anew(ddpm: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.png").write_text("no image at all")
    words = ("--base_samples", tmp_path / "in", "--skip_broken", "true")
    assert "adapted 0 images" in adapt(ddpm, tmp_path / "out", *words).check().err
    assert manifest_of(tmp_path / "out") == []
    save_images(tmp_path / "in", ["a.png"])
    assert "adapted 1 images" in adapt(ddpm, tmp_path / "out", *words, "--seed", 5, "--overwrite", "true").check().err


def test_broken_files_are_named_and_counted_and_the_others_adapted(ddpm: Path, tmp_path: Path) -> None:
    save_images(tmp_path / "in", [f"{i}.png" for i in range(6)])
    whole = (tmp_path / "in/2.png").read_bytes()
    (tmp_path / "in/2.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "in/4.png").write_text("no image at all")
    words = ("--base_samples", tmp_path / "in", "--batch_size", 4)
    done = adapt(ddpm, tmp_path / "out", *words)
    assert done.status == 1
    assert "adapted 4 images" in done.err and "2 broken" in done.err
    for name, reason in (("2", "truncated"), ("4", "none of the image formats that are read")):
        assert re.search(rf"broken: {name}: .*{name}.png: .*{reason}", done.err)
    assert "2 files could not be adapted; mend them and run the same command, or accept that with --skip_broken true" in done.err
    good = pngs(tmp_path / "out")
    assert set(good) == {f"{i}.png" for i in (0, 1, 3, 5)}
    assert [row["key"] for row in manifest_of(tmp_path / "out")] == ["0", "1", "3", "5"]
    accepted = adapt(ddpm, tmp_path / "out", *words, "--skip_broken", "true")
    assert accepted.status == 0 and "2 broken" in accepted.err and "broken: 4: " in accepted.err
    (tmp_path / "in/2.png").write_bytes(whole)
    (tmp_path / "in/4.png").unlink()
    assert "adapted 1 images" in adapt(ddpm, tmp_path / "out", *words).check().err
    assert {name: data for name, data in pngs(tmp_path / "out").items() if name != "2.png"} == good


# --- without MPI


def test_single_process_works_without_mpi4py(
    done_before: Path, ddpm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    digits(ddpm, tmp_path).check()
    assert pngs(tmp_path) == pngs(done_before)


@pytest.mark.parametrize("variable", ["PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS"])
def test_ranks_without_mpi4py_are_refused_instead_of_working_apart(
    ddpm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    monkeypatch.setitem(os.environ, variable, "2")
    done = digits(ddpm, tmp_path)
    assert done.status == 2 and "launched as 2 MPI ranks, but mpi4py cannot be loaded" in done.err
    assert "undegrade[mpi]" in done.err


def test_processes_that_mpi_does_not_join_are_refused(ddpm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mpi4py.MPI")
    monkeypatch.setitem(os.environ, "SLURM_STEP_NUM_TASKS", "8")
    done = digits(ddpm, tmp_path / "out")
    assert done.status == 2 and "launched as 8 processes, but MPI sees one rank" in done.err and "--mpi" in done.err
    assert not (tmp_path / "out").exists()


def test_sequences_draw_a_level_for_each_stage(ddpm: Path, tmp_path: Path) -> None:
    adapt(ddpm, tmp_path, "--corruption", "blur+noise+jpeg", "--limit", 2).check()
    rows = manifest_of(tmp_path / "blur+noise+jpeg/random")
    assert all(len(row["level"]) == 3 for row in rows) and rows[0]["level"] != rows[1]["level"]
    assert all(torch.isfinite(torch.tensor(row["level"])).all() for row in rows)


def test_pictures_that_nobody_adapted_are_refused_and_replaced_when_asked(ddpm: Path, tmp_path: Path) -> None:
    save_images(tmp_path / "in", ["a/1.png", "b/2.png"])
    save_images(tmp_path / "out", ["a/1.png"])
    before = pngs(tmp_path / "out")
    words = ("--base_samples", tmp_path / "in", "--enlarge", "true")
    done = adapt(ddpm, tmp_path / "out", *words)
    assert done.status == 2 and "a/1.png" in done.err and "--overwrite true" in done.err
    assert pngs(tmp_path / "out") == before
    assert "adapted 2 images" in adapt(ddpm, tmp_path / "out", *words, "--overwrite", "true").check().err
    assert pngs(tmp_path / "out")["a/1.png"] != before["a/1.png"]


def test_a_manifest_deletes_nothing_outside_its_folder(ddpm: Path, tmp_path: Path) -> None:
    save_images(tmp_path / "in", ["a/1.png"])
    words = ("--base_samples", tmp_path / "in", "--enlarge", "true")
    adapt(ddpm, tmp_path / "out", *words).check()
    victim = tmp_path / "victim.txt"
    victim.write_text("kept")
    manifest = tmp_path / "out" / "manifest.jsonl"
    manifest.write_text(manifest.read_text() + json.dumps({"key": "x", "file": "../victim.txt"}) + "\n")
    done = adapt(ddpm, tmp_path / "out", *words, "--seed", 5, "--overwrite", "true")
    assert done.status == 2 and "../victim.txt" in done.err and victim.read_text() == "kept"


def test_a_dry_run_refuses_what_the_launch_refuses(ddpm: Path, tmp_path: Path) -> None:
    save_images(tmp_path / "in", ["a/1.png"])
    save_images(tmp_path / "out", ["a/1.png"])
    done = adapt(ddpm, tmp_path / "out", "--base_samples", tmp_path / "in", "--enlarge", "true", "--dry_run")
    assert done.status == 2 and "a/1.png" in done.err and "--overwrite true" in done.err


def test_a_class_folder_that_is_a_link_is_never_written_through(ddpm: Path, tmp_path: Path) -> None:
    save_images(tmp_path / "in", ["a/1.png"])
    save_images(tmp_path / "elsewhere", ["1.png"])
    before = pngs(tmp_path / "elsewhere")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a").symlink_to(tmp_path / "elsewhere")
    for more in ((), ("--overwrite", "true")):
        done = adapt(ddpm, tmp_path / "out", "--base_samples", tmp_path / "in", "--enlarge", "true", *more)
        assert done.status == 2 and "'a/1'" in done.err and "would leave the output folder" in done.err
    assert pngs(tmp_path / "elsewhere") == before
