"""undegrade evaluate, corrupt, list and doctor, and completion in the shell."""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import os
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import undegrade
from tests.checkpoints import finished_run
from tests.photo_like import photo_like, save_all
from tests.scripts import Done, launch, run_script
from undegrade.__main__ import COMMANDS
from undegrade.utils.weights import registry

EVALUATE, CORRUPT, LIST, DOCTOR = (f"undegrade/{word}_command.py" for word in ("evaluate", "corrupt", "list", "doctor"))


# --- evaluate


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("runs")
    finished_run(root, "mine", image_size=32)
    return root


def test_the_table_is_that_of_python_with_intervals(runs: Path, tmp_path: Path) -> None:
    words = ("Digits", "--system", "mine", "--runs", runs, "--corruption", "clean,fog,jpeg", "--limit", 20, "--seed", 3)
    done = run_script(EVALUATE, *words, "--out", tmp_path / "new/t.csv").check()
    table = undegrade.evaluate(undegrade.load("mine", runs=runs), "Digits", ["clean", "fog", "jpeg"], limit=20, seed=3)
    written = pd.read_csv(tmp_path / "new/t.csv")
    assert written["corruption"].tolist() == ["clean", "fog", "jpeg", "mean"] == table["corruption"].tolist()
    assert np.allclose(written[["accuracy", "low", "high"]], table[["accuracy", "low", "high"]])
    assert (tmp_path / "new/t.csv").read_text().splitlines()[2].startswith("fog,5,20,")
    head, clean, _, jpeg, mean, last = done.out.splitlines()
    assert head.split() == ["corruption", "severity", "n", "accuracy", "95", "%", "interval"]
    assert (
        clean.split()[:3] == ["clean", "0", "20"] and jpeg.split()[:2] == ["jpeg", "random"] and mean.split()[:2] == ["mean", "40"]
    )
    assert f"{100 * table['accuracy'][0]:.1f}" in clean and last == f"written: {tmp_path}/new/t.csv"
    assert "4/4" not in done.err and "3/3" in done.err


def test_a_table_as_json_and_mistakes(runs: Path, tmp_path: Path) -> None:
    words = ("Digits", "--system", "mine", "--runs", runs, "--corruption", "fog", "--limit", 10)
    run_script(EVALUATE, *words, "--out", tmp_path / "t.json").check()
    (row,) = json.loads((tmp_path / "t.json").read_text())
    assert (row["corruption"], row["severity"], row["n"]) == ("fog", 5, 10) and row["low"] <= row["accuracy"] <= row["high"]
    done = run_script(EVALUATE, *words, "--out", tmp_path / "t.txt")
    assert done.status == 2 and "t.txt: name a file that ends with .csv or .json" in done.err
    done = run_script(EVALUATE, "Digits", "--system", "none", "--corruption", "fgo")
    assert done.status == 2 and "did you mean 'fog'?" in done.err


# --- corrupt


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    save_all(tmp_path / "photos", ["a.png", "b/ü.jpg"], photo_like(2, 40))
    (tmp_path / "photos/broken.png").write_bytes(b"no image")
    return tmp_path / "photos"


def test_images_are_those_of_python_in_a_tree_of_corruptions(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = run_script(CORRUPT, photos, "--corruption", "gaussian_noise,fog", "--severity", "1,5", "--out", out, "--seed", 2)
    assert done.status == 1 and "left out 1 of 3 images that cannot be read" in done.err and "3/3" in done.err
    assert done.out.splitlines() == [f"{out}/{n}/{s}: 2 images" for n in ("gaussian_noise", "fog") for s in (1, 5)]
    assert len(list(out.rglob("*.png"))) == 8
    image = Image.open(photos / "a.png")
    made = undegrade.corrupt(image, "gaussian_noise", 5, seed=2, keys=["a"])
    assert np.array_equal(np.asarray(Image.open(out / "gaussian_noise/5/a.png")), np.asarray(made))
    run_script(CORRUPT, photos / "a.png", "--corruption", "noise", "--level", 20, "--out", out, "--format", "jpg").check()
    assert Image.open(out / "noise/20/a.jpg").size == (40, 40)
    run_script(CORRUPT, photos / "a.png", "--corruption", "blur+jpeg", "--out", out).check()
    drawn = undegrade.degrade(image, "blur+jpeg", keys=["a"])
    assert np.array_equal(np.asarray(Image.open(out / "blur+jpeg/random/a.png")), np.asarray(drawn))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--corruption", "jpeg", "--severity", "2"), "--severity 2: jpeg has no severities; --level says how much (JPEG quality"),
        (("--corruption", "fog", "--level", "2"), "--level 2 is that of one degradation, not of fog: give --severity"),
        (("--corruption", "blur+jpeg", "--level", "2"), "--level 2 is that of one degradation, not of blur+jpeg"),
        (("--corruption", "fgo"), "unknown perturbation 'fgo': did you mean 'fog'?"),
        (("--corruption", "fog", "--severity", "6"), "fog severity 6 is out of range: allowed: 1, 2, 3, 4, 5"),
        (("--corruption", "fog", "--out", "{photos}/out"), "--out {photos}/out lies in {photos}, whose images the next call would"),
        (("--corruption", "fog", "--data.seed", "1"), "unknown option '--data.seed': this command has flags only"),
    ],
)
def test_mistakes_are_said(words: tuple[str, ...], message: str, photos: Path, tmp_path: Path) -> None:
    done = run_script(CORRUPT, photos, "--out", tmp_path / "out", *(word.format(photos=photos) for word in words))
    assert done.status == 2 and message.format(photos=photos) in done.err


# --- list


def test_everything_is_listed(runs: Path) -> None:
    finished_run(runs, "deeper/mine", "two")
    text = run_script(LIST, "--runs", runs).check().out
    lists = (undegrade.list_adapters, undegrade.list_methods, undegrade.list_rules, undegrade.list_predictors)
    for rows in (*(one() for one in lists), undegrade.list_perturbations()):
        assert all(f"  {name} " in text and line in text for name, line in rows.items())
    assert all(f"\n{name} " in text for name in registry())
    assert [line.split()[0] for line in text.partition("runs: ")[2].splitlines()[1:]] == ["deeper/mine", "mine"]
    rules = run_script(LIST, "rules").check().out
    assert rules.startswith("rules: ") and len(rules.splitlines()) == len(undegrade.list_rules()) + 1
    assert run_script(LIST, "runs", "--runs", runs / "none").check().out.endswith("(none)\n")


def test_a_list_whose_reader_has_enough_ends_in_silence() -> None:
    done = launch("bash", "-c", f"{sys.executable} -m undegrade list | head -1")
    assert done.check().out.startswith("adapters: ") and not done.err


# --- doctor


def test_a_machine_that_is_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "weights/frost_photographs").mkdir(parents=True)
    (tmp_path / "ckpt/dit").mkdir(parents=True)
    monkeypatch.setenv("UNDEGRADE_WEIGHTS", str(tmp_path / "weights"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)
    lines = (
        _doctor(monkeypatch, ["numpy>=1.20", 'nothing-of-that-name>=1; extra == "strange"', 'numpy>=1; extra == "mine"'])
        .check()
        .out
    )
    assert f"ok   packages    numpy {np.__version__}\n" in lines
    assert "ok   extras      mine; not installed: strange (pip install 'undegrade[<name>]')\n" in lines
    assert f"frost_photographs in {tmp_path}/weights" in lines and "ok   ckpt/       dit\n" in lines
    assert "warn network     HF_HUB_OFFLINE=1: nothing is downloaded; unset it to download\n" in lines
    assert "warn MPI         no mpiexec, adaptation runs as a single process: pip install 'undegrade[mpich]' brings one" in lines
    assert "processor" in lines and "GB free at" in lines and lines.splitlines()[-1].startswith("0 broken, ")


def test_what_is_broken_has_its_mend_and_a_status(monkeypatch: pytest.MonkeyPatch) -> None:
    done = _doctor(monkeypatch, ["numpy>=1.20", "pillow>=1000", "nothing-of-that-name"])
    assert done.status == 1 and done.out.splitlines()[-1].startswith("2 broken, ")
    assert "FAIL nothing-of-that-name not installed, any version is needed: pip install 'nothing-of-that-name'" in done.out
    assert ", >=1000 is needed: pip install 'pillow>=1000'" in done.out


def _doctor(monkeypatch: pytest.MonkeyPatch, requires: list[str]) -> Done:
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: requires)
    monkeypatch.setattr("undegrade.utils.stages.find_mpiexec", lambda: None)
    return run_script(DOCTOR)


def test_a_library_that_cannot_be_loaded_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.import_module

    def load(name: str, package: str | None = None) -> object:
        if name == "torchvision":
            raise ImportError("undefined symbol")
        return real(name, package)

    monkeypatch.setattr(importlib, "import_module", load)
    done = _doctor(monkeypatch, ["numpy"])
    assert done.status == 1 and "FAIL torchvision cannot be loaded (undefined symbol): install it anew" in done.out


# --- completion


def completed(line: str, tmp_path: Path) -> list[str]:
    """What the shell would offer, by the protocol of argcomplete: file descriptor 8."""
    shell = f"{sys.executable} -X importtime -m undegrade 8> {tmp_path}/offered 2> {tmp_path}/imported"
    asked = {"_ARGCOMPLETE": "1", "COMP_LINE": line, "COMP_POINT": str(len(line)), "_ARGCOMPLETE_IFS": "\n", "COMP_TYPE": "9"}
    launch("bash", "-c", shell, _ARGCOMPLETE_SHELL="bash", _ARGCOMPLETE_SUPPRESS_SPACE="1", **asked).check()
    assert "torch._C" not in (tmp_path / "imported").read_text()
    return (tmp_path / "offered").read_text().split("\n")


def test_the_shell_completes_words_flags_and_files(tmp_path: Path) -> None:
    pytest.importorskip("argcomplete")
    assert completed("undegrade ", tmp_path) == list(COMMANDS)
    assert completed("undegrade ev", tmp_path) == ["evaluate"]
    assert completed("undegrade predict --re", tmp_path) == ["--report"]
    assert completed("undegrade corrupt x --format ", tmp_path) == ["png", "jpg"]
    assert completed("undegrade train -c configs/pip", tmp_path) == ["configs/pipelines/"]


def test_without_argcomplete_nothing_is_offered_and_nothing_run(tmp_path: Path) -> None:
    (tmp_path / "argcomplete.py").write_text("raise ImportError\n")
    words = {"_ARGCOMPLETE": "1", "COMP_LINE": "undegrade list ", "COMP_POINT": "15"}
    where = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", ".")])
    done = launch(sys.executable, "-m", "undegrade", PYTHONPATH=where, **words).check()
    assert not done.out and not done.err
