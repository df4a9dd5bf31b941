"""Start-up without the libraries that a command does not need: imported first by every script.

PyTorch and its like take seconds to import, and `--help` computes nothing with them, nor do the
lists, completion in the shell, and the pipeline, which starts other programs. There they are
replaced by stand-ins: modules of which every attribute is another stand-in, as base class nothing,
as decorator what leaves a function as it is. Rows of other packages are code that is not known
here: with entry points or `--include` the libraries are imported.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
import types
from collections.abc import Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from undegrade.utils.completion import asked

HEAVY = (
    "accelerate", "cv2", "diffusers", "huggingface_hub", "imagecorruptions", "imagedegrade", "matplotlib", "pandas",
    "scipy", "sklearn", "spandrel",
    "tensorboard", "timm", "torch", "torchvision", "transformers",
)  # fmt: skip
_GROUPS = "undegrade."  # of entry points
_COMPUTES_NOTHING = ("utils/pipeline.py", "list_command.py")
_PLANS = ("export_command.py",)  # what computes nothing with --dry_run


class StandIn(types.ModuleType):
    """A library that is not imported, or anything in it."""

    __path__: list[str] = []  # where submodules are looked for: `_Finder` makes them

    def __getattr__(self, name: str) -> StandIn:
        if name.startswith("__"):
            raise AttributeError(name)
        found = StandIn(f"{self.__name__}.{name}")
        setattr(self, name, found)
        return found

    def __call__(self, *given: Any, **named: Any) -> Any:
        return given[0] if len(given) == 1 and not named and isinstance(given[0], (type, types.FunctionType)) else self

    def __mro_entries__(self, bases: tuple[Any, ...]) -> tuple[Any, ...]:
        return ()

    def __getitem__(self, key: Any) -> StandIn:
        return self

    def __or__(self, other: Any) -> StandIn:
        return self

    __ror__ = __mul__ = __or__


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds stand-ins for `HEAVY` and all that is in them."""

    def find_spec(self, name: str, path: Any, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        return importlib.machinery.ModuleSpec(name, self, is_package=True) if name.partition(".")[0] in HEAVY else None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        return StandIn(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        """There is nothing to run."""


def needs_no_library(script: str, words: Sequence[str]) -> bool:
    """Whether a script of this project ends without any of `HEAVY`.

    Args:
        script: its path.
        words: of its command line.
    """
    if any(word.partition("=")[0] == "--include" for word in words):
        return False
    helps = asked() or any(word in ("-h", "--help") for word in words)
    plans = "--dry_run" in words and script.endswith(_PLANS)
    return (helps or plans or script.endswith(_COMPUTES_NOTHING)) and not any(g.startswith(_GROUPS) for g in entry_points().groups)


def start(script: str, words: Sequence[str]) -> None:
    """Let stand-ins be imported from now on, if the script needs no more and none is imported."""
    if not any(name in sys.modules for name in HEAVY) and needs_no_library(script, words):
        sys.meta_path.insert(0, _Finder())


_script = getattr(sys.modules["__main__"], "__file__", None)
if _script is not None and Path(_script).resolve().is_relative_to(Path(__file__).resolve().parents[1]):
    start(Path(_script).resolve().as_posix(), sys.argv[1:])  # else somebody else's program, whose --help is not ours
