"""train.py, train_all_deg.py and utils/model_soups.py as a user calls them, one after the other."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml

from tests.scripts import Done, launch, run_script
from undegrade.utils.checkpoint import load_checkpoint

CLEAN = "configs/ind/Digits/ResNet20_clean.yaml"
SPECIALIST = "configs/sl/Digits/ResNet20-20.yaml"
FUSED = "configs/deg_all/Digits/ResNet20_soups.yaml"
STUDENT = "configs/deg_all/Digits/ResNet20-20_fusiondistill.yaml"
SMALL = ("--data.limit", 40, "--loop.epochs", 1, "--bs", 20)
RUN_FILES = {"config.yaml", "metrics.jsonl", "provenance.jsonl", "best.safetensors", "last", "DONE"}


def train(save_dir: Path, config: str = CLEAN, *more: object) -> Done:
    return run_script("train.py", "-c", config, "--save_dir", save_dir, *SMALL, *more)


def epochs_of(run: Path) -> list[int]:
    return [json.loads(line)["epoch"] for line in (run / "metrics.jsonl").read_text().splitlines()]


def config_of(run: Path) -> dict:
    return yaml.safe_load((run / "config.yaml").read_text())


def steps_of(run: Path) -> int:
    return torch.load(run / "last" / "state.pt", weights_only=True)["progress"]["step"]


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """FusionDistill from start to end: clean (in a process of its own), two specialists, their
    average, the student.
    """
    root = tmp_path_factory.mktemp("family")
    where = ("--save_dir", root)
    launch(sys.executable, "train.py", "-c", CLEAN, *where, *SMALL).check()
    for deg in ("jpeg", "noise"):
        train(root, SPECIALIST, "--dt", deg).check()
    run_script("utils/model_soups.py", "-c", FUSED, *where, "--data.limit", 40, "--data.degradations", "[jpeg, noise]").check()
    some = ("--data.degradations", "[jpeg, noise]", "--dt", "combined_deg")
    run_script("train_all_deg.py", "-c", STUDENT, *where, *SMALL, *some).check()
    return root


def only_run(root: Path, name: str) -> Path:
    (run,) = (root / name).iterdir()
    return run


@pytest.mark.parametrize(
    "name",
    [
        "ind/Digits/ResNet20_clean",
        "sl/Digits/ResNet20-ResNet20/jpeg",
        "sl/Digits/ResNet20-ResNet20/noise",
        "deg_all/Digits/ResNet20-ResNet20_fusiondistill",
    ],
)
def test_every_stage_leaves_a_finished_run_under_its_name(family: Path, name: str) -> None:
    run = only_run(family, name)
    assert {p.name for p in run.iterdir() if not p.name.startswith("events")} == RUN_FILES
    assert any(p.name.startswith("events") for p in run.iterdir())
    row = json.loads((run / "metrics.jsonl").read_text())
    assert row["epoch"] == 1 and row["step"] == 2 == steps_of(run)
    assert {"train/loss", "train/accuracy", "train/lr", "validation/loss", "validation/accuracy"} <= set(row)
    description = load_checkpoint(run / "best.safetensors", "classifier")[1]
    assert description["arch"] == "ResNet20" and description["classes"] == [str(d) for d in range(10)]


def test_fusion_is_the_mean_of_the_specialists_and_the_student_starts_from_it(family: Path) -> None:
    run = only_run(family, "deg_all/Digits/ResNet20_soups")
    assert {p.name for p in run.iterdir()} == {"config.yaml", "provenance.jsonl", "best.safetensors", "DONE"}
    fused, description = load_checkpoint(run / "best.safetensors")
    names = [f"sl/Digits/ResNet20-ResNet20/{deg}" for deg in ("jpeg", "noise")]
    assert description["fused_from"] == names
    states = [load_checkpoint(only_run(family, name) / "best.safetensors")[0] for name in names]
    for name, value in fused.items():
        if "running_" not in name and "tracked" not in name:
            torch.testing.assert_close(value, (states[0][name] + states[1][name]) / 2, rtol=0, atol=1e-7)
    assert not torch.equal(fused["bn1.running_mean"], states[0]["bn1.running_mean"])  # measured anew
    config = config_of(only_run(family, "deg_all/Digits/ResNet20-ResNet20_fusiondistill"))
    assert config["model"]["init_from"] == "deg_all/{dataset}/{arch}_soups"
    assert config["data"]["degradations"] == ["jpeg", "noise"]


def test_fusion_under_the_same_run_id_is_written_anew(family: Path) -> None:
    words = ("-c", FUSED, "--save_dir", family, "--data.limit", 40, "--data.degradations", "[jpeg, noise]", "--name", "again")
    weights = []
    for policy in ("average", "copy_first"):
        run_script("utils/model_soups.py", *words, "--run_id", "one", "--buffers", policy).check()
        weights.append(load_checkpoint(family / "again/one/best.safetensors")[0]["bn1.running_mean"])
    assert not torch.equal(*weights)


def test_a_run_of_no_epochs_keeps_the_network_as_it_starts(tmp_path: Path) -> None:
    train(tmp_path, CLEAN, "--run_id", "first").check()
    parent = tmp_path / "ind/Digits/ResNet20_clean/first/best.safetensors"
    train(tmp_path, CLEAN, "--run_id", "kept", "--loop.epochs", 0, "--model.init_from", parent).check()
    run = tmp_path / "ind/Digits/ResNet20_clean/kept"
    assert (run / "DONE").is_file() and parent.read_bytes() != (run / "best.safetensors").read_bytes()
    (before, _), (after, facts) = (load_checkpoint(path) for path in (parent, run / "best.safetensors"))
    assert facts["epoch"] == 0 and all(torch.equal(before[name], after[name]) for name in before)


def test_run_is_gone_on_with_for_more_epochs(tmp_path: Path) -> None:
    train(tmp_path, CLEAN, "--run_id", "a").check()
    run = tmp_path / "ind/Digits/ResNet20_clean/a"
    for word, epochs in ((run, 2), (run / "best.safetensors", 3), (run / "last", 4)):
        done = run_script("train.py", "-r", word, "--loop.epochs", epochs).check()
        assert f"resuming {run} after epoch {epochs - 1} of {epochs}" in done.err
        assert epochs_of(run) == list(range(1, epochs + 1))
    assert config_of(run)["loop"]["epochs"] == 4 and steps_of(run) == 8


def test_short_flags_reach_the_saved_configuration(tmp_path: Path) -> None:
    parent = tmp_path / "ind/Digits/ResNet20_clean/first"
    train(tmp_path, CLEAN, "--run_id", "first").check()
    done = train(tmp_path, SPECIALIST, "--lr", 0.02, "--bs", 10, "--dt", "blur,noise", "--rs", 7, "--run_id", "x").check()
    assert f"classifier ResNet20 from {parent / 'best.safetensors'}" in done.err  # found by name
    config = config_of(tmp_path / "sl/Digits/ResNet20-ResNet20/blur+noise/x")
    assert config["optimizer"]["lr"] == 0.02
    assert config["data"]["batch_size"] == 10
    assert config["data"]["degradations"] == ["blur", "noise"]
    assert config["seed"] == 7
    assert config["name"] == "sl/Digits/ResNet20-ResNet20/blur+noise"


def test_parent_that_is_missing_is_named_with_what_there_is(tmp_path: Path) -> None:
    done = train(tmp_path, SPECIALIST, "--dt", "jpeg")
    assert done.status == 2
    assert "error: no checkpoint 'ind/Digits/ResNet20_clean'" in done.err and "nothing has finished there" in done.err
    assert not (tmp_path / "sl").exists()  # no empty run is left


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--loop.epoch", "3"), r"unknown config key 'epoch' in section 'loop': did you mean 'epochs'?"),
        (("--optimiser.lr", "3"), r"unknown config key 'optimiser': did you mean 'optimizer'?"),
        (("--learning_rat", "3"), r"unknown option '--learning_rat': did you mean '--learning_rate'?"),
        (("--optimizer.schedule", "cosin"), r"unknown value 'cosin' in config key 'optimizer.schedule': did you mean 'cosine'?"),
        (("--method.name", "distilled"), r"'distilled' in config key 'method.name': did you mean 'distillation'?"),
        (("--method.vieww", "clean"), r"unknown config key 'vieww' in section 'method': did you mean 'view'?"),
        (("--model.arch", "ResNet21"), r"unknown arch 'ResNet21': did you mean"),
        (("--dt", "jpg"), r"'jpg'"),
        (("--data.dataset", "Digit"), r"unknown dataset 'Digit': did you mean 'Digits'?"),
        (("--loop.epochs", "many"), r"loop.epochs"),
        (("--loop.epochs",), r"option --loop.epochs has no value"),
        (("-d", "cuda:77"), r"'cuda:77'"),
    ],
)
def test_mistakes_are_named_with_what_was_meant(tmp_path: Path, words: tuple[str, ...], message: str) -> None:
    done = run_script("train.py", "-c", CLEAN, "--save_dir", tmp_path, *words)
    assert done.status == 2
    assert done.err.startswith("error: ") and message in done.err and "Traceback" not in done.err
    assert list(tmp_path.iterdir()) == []


def test_missing_config_names_those_near_it() -> None:
    done = run_script("train.py", "-c", "configs/ind/Digits/ResNet20_claen.yaml")
    assert done.status == 2 and "configs/ind/Digits/ResNet20_clean.yaml" in done.err


def test_neither_config_nor_run_is_an_error() -> None:
    done = run_script("train.py")
    assert done.status == 2 and "give a config with -c, or a run to go on with by -r" in done.err


def test_folder_without_config_cannot_be_gone_on_with(tmp_path: Path) -> None:
    done = run_script("train.py", "-r", tmp_path)
    assert done.status == 2 and f"no config.yaml in {tmp_path}; give the run folder" in done.err


def test_a_run_that_does_not_exist_cannot_be_gone_on_with(tmp_path: Path) -> None:
    done = run_script("train.py", "-r", tmp_path / "nosuch")
    assert done.status == 2 and f"-r {tmp_path / 'nosuch'} does not exist; give the run folder" in done.err


def test_a_negative_learning_rate_is_refused_before_a_run_folder_is_made(tmp_path: Path) -> None:
    done = train(tmp_path, CLEAN, "--optimizer.lr", -1)
    assert done.status == 2 and "optimizer.lr" in done.err
    assert not list(tmp_path.iterdir())


def test_run_id_of_another_configuration_is_refused_and_of_the_same_gone_on_with(tmp_path: Path) -> None:
    train(tmp_path, CLEAN, "--run_id", "a").check()
    run = tmp_path / "ind/Digits/ResNet20_clean/a"
    before = (run / "config.yaml").read_bytes(), (run / "best.safetensors").read_bytes()
    done = train(tmp_path, CLEAN, "--run_id", "a", "--lr", 0.5)
    assert done.status == 2
    assert f"run {run} exists with another configuration (differs in optimizer)" in done.err and f"-r {run}" in done.err
    assert train(tmp_path, CLEAN, "--run_id", "a").status == 0
    assert ((run / "config.yaml").read_bytes(), (run / "best.safetensors").read_bytes()) == before
    assert epochs_of(run) == [1]


def test_nan_ends_the_script_with_one_message(tmp_path: Path) -> None:
    done = train(tmp_path, CLEAN, "--lr", 1e30, "--optimizer.warmup_epochs", 0, "--loop.epochs", 3, "--run_id", "a")
    assert done.status == 2
    assert "error: loss is" in done.err or "error: validation" in done.err
    assert "Traceback" not in done.err and not (tmp_path / "ind/Digits/ResNet20_clean/a/DONE").exists()


def test_diffusion_model_is_trained_and_shows_samples(tmp_path: Path) -> None:
    """With a chain shorter than that of the samples."""
    small = ("--model.channels", "[8]", "--model.diffusion_steps", 5)
    train(tmp_path, "configs/diffusion/Digits/ddpm.yaml", *small, "--run_id", "a").check()
    run = tmp_path / "diffusion/Digits/ddpm/a"
    assert {p.name for p in run.iterdir() if not p.name.startswith("events")} == RUN_FILES | {"samples.png"}
    description = load_checkpoint(run / "best.safetensors", "diffusion")[1]
    assert description["diffusion_steps"] == 5 and description["image_size"] == 32 and "loss" in description
    assert "validation/accuracy" not in (run / "metrics.jsonl").read_text()


def test_metric_that_a_method_does_not_measure_cannot_choose_the_best(tmp_path: Path) -> None:
    words = ("--save_dir", tmp_path, "--loop.monitor", "accuracy", "--model.channels", "[8]")
    done = run_script("train.py", "-c", "configs/diffusion/Digits/ddpm.yaml", *words)
    message = "unknown value 'accuracy' in config key 'loop.monitor' of method denoising: allowed: loss"
    assert done.status == 2 and message in done.err and list(tmp_path.iterdir()) == []


def test_run_on_adapted_images_reads_them_from_disk(tmp_path: Path, save_adapted: Callable[[Path, str], None]) -> None:
    train(tmp_path, CLEAN, "--run_id", "first").check()
    for split in ("train", "validation"):
        save_adapted(tmp_path / "adapted" / split, split)
    words = ("--dt", "jpeg", "--data.adapted", tmp_path / "adapted/{split}", "--run_id", "a")
    train(tmp_path, "configs/ind/Digits/ResNet20/adapt.yaml", *words).check()
    assert (tmp_path / "ind/Digits/ResNet20_adapt/jpeg/a/DONE").is_file()
    done = train(tmp_path, "configs/ind/Digits/ResNet20/adapt.yaml", *words[2:4], "--dt", "blur")
    assert done.status == 2 and "no images for blur/random under" in done.err and "jpeg/random" in done.err


@pytest.mark.slow
@pytest.mark.parametrize("compiler", ["", "/no/such/compiler"], ids=["with a compiler", "without one"])
def test_compiled_run_scores_as_one_that_is_not(tmp_path: Path, compiler: str) -> None:
    if not compiler and shutil.which("g++") is None:
        pytest.skip("torch.compile needs a C++ compiler for CPUs: none on the PATH")
    train(tmp_path, CLEAN, "--run_id", "plain").check()
    variables = {"CXX": compiler, "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")} if compiler else {}
    words = ("-c", CLEAN, "--save_dir", tmp_path, *SMALL, "--loop.compile", "true", "--run_id", "compiled")
    done = launch(sys.executable, "train.py", *words, timeout=600, **variables).check()
    assert ("InvalidCxxCompiler" in done.err) == bool(compiler)
    rows = [
        json.loads((tmp_path / "ind/Digits/ResNet20_clean" / name / "metrics.jsonl").read_text()) for name in ("plain", "compiled")
    ]
    assert rows[0]["train/loss"] == pytest.approx(rows[1]["train/loss"], abs=1e-3)
