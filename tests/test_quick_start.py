"""Scripts and the package start without libraries that they do not need."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.scripts import ROOT, launch, run_script
from undegrade.image_adapt.adapters import ADAPTERS
from undegrade.utils.quick_start import HEAVY, StandIn, needs_no_library

SCRIPTS = sorted(
    path.relative_to(ROOT).as_posix()
    for place in ("*.py", "utils/*.py", "trainers/*.py", "evaluation/*.py", "image_adapt/scripts/*.py", "undegrade/*_command.py")
    for path in ROOT.glob(place)
    if '\n    run_main(main)\n' in path.read_text(encoding="utf-8") and path.name != "errors.py"
)  # fmt: skip
PROGRAM = """
import contextlib, io, json, runpy, sys
texts = {}
for script in sys.argv[1].split(","):
    sys.argv, out = [script, "--help"], io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        runpy.run_path(script, run_name="__main__")
    texts[script] = out.getvalue()
real = [name for name, module in sys.modules.items() if hasattr(module, "__file__")]
print(json.dumps([texts, real]))
"""


@pytest.fixture(scope="module")
def started() -> tuple[dict[str, str], set[str]]:
    """The help of every script, and the modules that were imported for it."""
    done = launch(sys.executable, "-c", PROGRAM, ",".join(SCRIPTS)).check()
    texts, modules = json.loads(done.out)
    return texts, {name.partition(".")[0] for name in modules}


def test_help_of_every_script_imports_none_of_the_large_libraries(started: tuple[dict[str, str], set[str]]) -> None:
    texts, modules = started
    assert len(SCRIPTS) >= 16
    assert not modules & set(HEAVY)
    assert [script for script, text in texts.items() if not text.startswith("usage: ")] == []


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_script_begins_with_that_import(script: str) -> None:
    lines = (ROOT / script).read_text(encoding="utf-8").splitlines()
    imports = [line for line in lines if line.startswith(("import ", "from ")) and "__future__" not in line]
    assert imports[0].startswith("import undegrade.utils.quick_start")


@pytest.mark.parametrize("script", ["train.py", "test_ensemble.py", "image_adapt/scripts/image_sample.py"])
def test_help_says_the_same_with_and_without_the_libraries(
    script: str, started: tuple[dict[str, str], set[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = {name: row for name, row in ADAPTERS.items() if row.__module__.startswith("undegrade.")}
    monkeypatch.setattr(ADAPTERS, "_rows", ours)  # other tests include adapters of their own
    assert run_script(script, "--help").out == started[0][script]


def test_the_package_and_the_dry_run_of_a_pipeline_import_none_either() -> None:
    look = f"import sys, undegrade; sys.exit(' '.join({set(HEAVY)} & set(sys.modules)) or 0)"
    launch(sys.executable, "-c", look).check()
    words = "utils/pipeline.py -c configs/pipelines/diffaud.yaml --dataset Digits --ranks 2 --dry_run"
    done = launch(sys.executable, "-X", "importtime", *words.split()).check()
    assert "| undegrade" in done.err.replace("  ", "") and "torch._C" not in done.err


def test_rows_of_other_packages_and_work_get_the_libraries() -> None:
    assert needs_no_library("test.py", ["--help"]) and needs_no_library("x/utils/pipeline.py", [])
    assert not needs_no_library("test.py", ["--help", "--include", "mine"])
    assert not needs_no_library("test.py", ["-r", "run"])


def test_another_program_keeps_its_libraries(tmp_path: Path) -> None:
    program = tmp_path / "mine.py"
    program.write_text("import undegrade.utils.quick_start\nimport scipy\nprint(scipy.__version__)\n")
    done = launch(sys.executable, program, "--help").check()
    assert done.out[0].isdigit()


def test_a_stand_in_is_base_class_decorator_and_annotation() -> None:
    nn = StandIn("torch").nn

    class Network(nn.Module):  # type: ignore[misc]
        @nn.no_grad()
        def three(self) -> int:
            return 3

    assert Network().three() == 3
    assert isinstance(nn.Tensor | None, StandIn)
