"""What works with the required packages alone, and what says which extra it needs."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence

import pytest

from tests.scripts import ROOT, launch
from undegrade.__main__ import COMMANDS
from undegrade.utils.extras import how_to_install, import_extra

FOLDERS = ("utils", "models", "trainers", "image_adapt", "evaluation", "undegrade")
# imports of every module of the project in turn, without what the extras bring
PROGRAM = """
import importlib, json, sys
from importlib.machinery import PathFinder

EXTRAS = set(sys.argv[1].split(","))

real = PathFinder.find_spec

def find_spec(name, path=None, target=None):
    return None if name.partition(".")[0] in EXTRAS else real(name, path, target)

PathFinder.find_spec = find_spec
failed = {}
for module in sys.argv[2].split(","):
    try:
        importlib.import_module(module)
    except Exception as error:
        failed[module] = repr(error)
print(json.dumps([failed, sorted({name.partition(".")[0] for name in sys.modules})]))
"""


def extras() -> dict[str, list[str]]:
    tomllib = pytest.importorskip("tomllib")  # from Python 3.11
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return project["optional-dependencies"]


@pytest.fixture(scope="module")
def absent() -> set[str]:
    """Modules of the extras, and of what those bring."""
    named = {re.split(r"[>=<\[ ]", word)[0] for words in extras().values() for word in words} - {"setuptools"}  # torch's own
    modules = {"guided-diffusion-sdk": "guided_diffusion", "imagecorruptions-imaug": "imagecorruptions", "pytest-xdist": "xdist"}
    return {modules.get(name, name).replace("-", "_") for name in named} | {"skimage", "numba", "grpc"}


def imported(modules: Sequence[str], absent: set[str]) -> dict[str, str]:
    """What cannot be imported without the modules `absent`, and why."""
    done = launch(sys.executable, "-c", PROGRAM, ",".join(sorted(absent)), ",".join(modules)).check()
    failed, loaded = json.loads(done.out)
    assert not absent.intersection(loaded)
    return dict(failed)


def test_classification_dda_and_the_commands_start_without_the_extras(absent: set[str]) -> None:
    commands = [module for module, _ in COMMANDS.values()]
    parts = [*commands, "image_adapt.dda", "models.diffusion.inference_blocks", "utils.data.perturbations.corruptions", "opening"]
    assert imported([f"undegrade.{name}" for name in parts], absent) == {}


@pytest.mark.slow
def test_every_module_is_imported_without_the_extras(absent: set[str]) -> None:
    files = sorted(path.relative_to(ROOT) for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
    names = [".".join(file.with_suffix("").parts).removesuffix(".__init__") for file in files if file.name != "model_soups.py"]
    ours = [name if name.startswith("undegrade") else f"undegrade.{name}" for name in names]
    assert len(ours) > 200 and imported(ours, absent) == {}


def test_a_message_names_the_extra() -> None:
    assert how_to_install("video") == "pip install 'undegrade[video]'"
    with pytest.raises(ValueError, match=r"^all of it needs the package not_there: pip install 'undegrade\[video\]'$"):
        import_extra("not_there", "video", "all of it")
    assert import_extra("json", "video", "all of it") is json


def test_every_extra_that_is_named_exists() -> None:
    texts = {path: path.read_text(encoding="utf-8") for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")}
    named = {(path, name) for path, text in texts.items() for name in re.findall(r"how_to_install\([\"'](\w+)[\"']\)", text)}
    named |= {(path, name) for path, text in texts.items() for name in re.findall(r"import_extra\(\"\w+\", \"(\w+)\"", text)}
    assert {name for _, name in named} >= {"video", "editor", "mpich", "watermark", "frost", "onnx"}
    assert {name for _, name in named} <= extras().keys()
    by_hand = [str(path) for path, text in texts.items() if "pip install 'undegrade[" in text and path.name != "extras.py"]
    assert not by_hand, "use utils/extras.py"
