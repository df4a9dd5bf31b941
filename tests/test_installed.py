"""What `pip install` brings: one name, the configurations, and the command `undegrade`."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.scripts import ROOT, Done


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the wheel of this checkout holds."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    kept = ("undegrade", "utils", "models", "trainers", "image_adapt", "evaluation", "configs")
    for name in kept:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, source / file)
    words = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--quiet", "--wheel-dir", folder, source]
    subprocess.run(words, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as file:
        file.extractall(folder / "site")
    return folder / "site"


def run(site: Path, folder: Path, *words: str) -> Done:
    """Python in another folder, with the wheel's content before everything else that is
    installed.
    """
    done = subprocess.run(
        [sys.executable, *words],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        check=False,
    )
    return Done(done.returncode, done.stdout, done.stderr)


def test_one_name_is_installed(site: Path) -> None:
    assert {path.name for path in site.iterdir() if path.suffix != ".dist-info"} == {"undegrade"}


def test_every_module_and_every_configuration_is_there(site: Path) -> None:
    for name in ("utils", "models", "trainers", "image_adapt", "evaluation", "configs"):
        files = [p.relative_to(ROOT) for kind in ("py", "yaml", "j2") for p in (ROOT / name).rglob(f"*.{kind}")]
        lacking = [str(file) for file in files if not (site / "undegrade" / file).is_file()]
        assert files and not lacking


def test_a_script_beside_the_users_own_utils_and_models_imports_it_unharmed(site: Path, tmp_path: Path) -> None:
    (tmp_path / "utils.py").write_text("mine = True\n")
    (tmp_path / "models.py").write_text("mine = True\n")
    (tmp_path / "script.py").write_text(
        "import utils, models\n"
        "from undegrade.models.classification.classifier import build_classifier\n"
        "from undegrade.utils.data.sources.registry import open_source\n"
        "import undegrade.evaluation.evaluate, undegrade.image_adapt.work, undegrade.trainers.trainer\n"
        "assert utils.mine and models.mine\n"
        "print(undegrade.__file__, len(open_source('Digits', 'test')))\n"
    )
    words = run(site, tmp_path, "script.py").check().out.split()
    assert words == [str(site / "undegrade" / "__init__.py"), "359"]


@pytest.mark.parametrize("word", ["train", "adapt", "test", "ensemble", "pipeline"])
def test_the_command_starts_each_script(word: str, site: Path, tmp_path: Path) -> None:
    assert f"undegrade {word}" in run(site, tmp_path, "-m", "undegrade", word, "--help").check().out


def test_the_command_names_the_closest_word(site: Path, tmp_path: Path) -> None:
    done = run(site, tmp_path, "-m", "undegrade", "tran")
    assert done.status == 2
    assert "'train'" in done.err


TYPED = """
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import undegrade

system = undegrade.load("timm/resnet18.a1_in1k", adapter="median_filter", batch_size=8)
found: undegrade.Predictions = system.predict(Path("photos"), top=3)
best: list[tuple[str, float]] = [(one.names[0], one.confidences[0]) for one in found]
numbers: list[str] = found[0].wnids
cleaned: list[Image.Image] = system.adapt([Image.new("RGB", (8, 8))])
gate: dict[str, float | None] | None = system.explain("a.png").gate
mine: undegrade.System = undegrade.wrap(torch.nn.Identity(), classes=["a", "b"]).with_tta("tent", lr=0.1)
both = undegrade.ensemble({"a": mine, "b": "resnet18", "c": torch.nn.Identity()}, adapters={"b": "median_filter"})
foggy: Image.Image = undegrade.corrupt(Image.new("RGB", (8, 8)), "fog", 3)
noisy: torch.Tensor = undegrade.degrade(torch.zeros(3, 8, 8), "noise", 10.0)
pixels: np.ndarray[tuple[int, ...], np.dtype[np.uint8]] = np.zeros((8, 8, 3), np.uint8)
same = undegrade.corrupt(pixels, "fog", 3, constants="cifar")
lines: dict[str, str] = undegrade.list_adapters()
print(undegrade.evaluate(both, "Digits", ["clean", "fog"], 5))
"""


@pytest.mark.slow
def test_a_users_script_passes_a_strict_check_of_types(site: Path, tmp_path: Path) -> None:
    assert (site / "undegrade" / "py.typed").is_file()
    (tmp_path / "typed.py").write_text(TYPED)
    (tmp_path / "wrong.py").write_text("import undegrade\n\nundegrade.load(5, batch_size='many')\n")
    words = ("-m", "mypy", "--strict", "--ignore-missing-imports", "--cache-dir", str(tmp_path / "cache"))
    assert "Success" in run(site, tmp_path, *words, "typed.py").out
    assert "Found 2 errors" in run(site, tmp_path, *words, "wrong.py").out
