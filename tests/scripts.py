"""Scripts as a user starts them: in this process, which is quick, or in processes of their own."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from unittest import mock

import torch

ROOT = Path(__file__).resolve().parent.parent


@dataclasses.dataclass(frozen=True)
class Done:
    """What a script left behind."""

    status: int
    out: str
    err: str

    def check(self) -> Done:
        """Itself; an assertion that shows the output unless the script ended well."""
        assert self.status == 0, f"status {self.status}\n{self.out}\n{self.err}"
        return self


def forget_accelerator() -> None:
    """Let the next Accelerator choose its precision anew: its state is one a process."""
    from accelerate.state import AcceleratorState, GradientState, PartialState  # takes a second

    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()


def run_script(script: str, *arguments: object) -> Done:
    """`python <script> <arguments>` in this process."""
    out, err = io.StringIO(), io.StringIO()
    words = [script, *(str(a) for a in arguments)]
    status: object = 0
    forget_accelerator()
    threads = torch.get_num_threads()
    with mock.patch.object(sys, "argv", words), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            runpy.run_path(str(ROOT / script), run_name="__main__")
        except SystemExit as stop:
            status = stop.code or 0
    torch.set_num_threads(threads)
    forget_accelerator()
    assert isinstance(status, int)
    return Done(status, out.getvalue(), err.getvalue())


def launch(*words: object, timeout: float = 240, **variables: str) -> Done:
    """A command in processes of its own, from the repository's root, one thread each; `variables`
    of the environment.
    """
    done = subprocess.run(
        [str(w) for w in words],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)} | variables,  # this checkout, whatever is installed
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    return Done(done.returncode, done.stdout, done.stderr)


def program(name: str) -> str | None:
    """A program beside this Python, or on the PATH."""
    return shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
