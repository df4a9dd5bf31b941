"""Launches that are stopped, watched and compared: what the tests of this folder have in common."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import psutil
import pytest

from tests.scripts import ROOT, Done, program
from undegrade.utils.data.manifest import PROVENANCE

ADAPT = "image_adapt/scripts/image_sample.py"
GENERATE = "image_adapt/scripts/generate.py"
MPIEXEC = program("mpiexec")
needs_mpiexec = pytest.mark.skipif(MPIEXEC is None, reason="no mpiexec beside this Python or on the PATH: pip install mpich")
_PAUSE = 0.01  # seconds between looks


class Launch:
    """A command with all the processes that it starts, from the repository's root, one thread
    each.

    Args:
        words: of the command.
        variables: of the environment, besides.
    """

    def __init__(self, *words: object, **variables: str) -> None:
        self._out, self._err = (tempfile.TemporaryFile("w+", errors="replace") for _ in range(2))  # noqa: SIM115  until done
        self._gone: set[psutil.Process] = set()
        self.process = subprocess.Popen(
            [str(word) for word in words],
            cwd=ROOT,
            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)} | variables,
            stdout=self._out,
            stderr=self._err,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )

    @property
    def running(self) -> bool:
        return self.process.poll() is None

    def tree(self) -> list[psutil.Process]:
        """The processes of the launch, the first one first."""
        with contextlib.suppress(psutil.NoSuchProcess):
            first = psutil.Process(self.process.pid)
            return [first, *first.children(recursive=True)]
        return []

    def kill(self) -> None:
        """End all processes at once, in no order that they could use to tidy up."""
        while self.running:
            found = self.tree()
            for one in found:
                with contextlib.suppress(psutil.NoSuchProcess):
                    one.kill()
            self._gone |= set(found)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(_PAUSE)
        wait_until(lambda: not any(map(_works, self._gone)), 30)

    def pythons(self) -> list[psutil.Process]:
        """The processes that work: not the launcher's own."""
        found = []
        for one in self.tree():
            with contextlib.suppress(psutil.NoSuchProcess):
                words = one.cmdline()
                if any(word.endswith(".py") for word in words) and not words[0].endswith(("mpiexec", "hydra_pmi_proxy")):
                    found.append(one)
        return [one for one in found if not any("torchrun" in word for word in one.cmdline())]

    def signal(self, name: str) -> None:
        """Send a signal to every process that works, as a scheduler does."""
        for one in self.pythons():
            with contextlib.suppress(psutil.NoSuchProcess):
                one.send_signal(getattr(signal, name))

    def memory(self) -> int:
        """Bytes that the working processes hold, together."""
        total = 0
        for one in self.pythons():
            with contextlib.suppress(psutil.NoSuchProcess):
                total += one.memory_info().rss
        return total

    def finish(self, limit: float) -> Done:
        """Wait for the end, `limit` seconds at most: after these it is killed, and the test
        fails.
        """
        try:
            self.process.wait(limit)
        except subprocess.TimeoutExpired:
            self.kill()
            done = self.done()
            pytest.fail(f"not ended after {limit} s\n{done.out[-2000:]}\n{done.err[-2000:]}")
        return self.done()

    def done(self) -> Done:
        """What it left behind."""
        texts = []
        for file in (self._out, self._err):
            file.seek(0)
            texts.append(file.read())
        return Done(self.process.returncode, *texts)


def _works(process: psutil.Process) -> bool:
    """Whether a process is there and not merely waiting for its parent to notice its end."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def ranks(count: int, script: str, *words: object, **variables: str) -> Launch:
    """`python <script>` alone, or on so many ranks of `mpiexec`."""
    launcher = [] if count == 1 else [MPIEXEC, "-n", count]
    return Launch(*launcher, sys.executable, script, *words, **variables)


def wait_until(met: Callable[[], bool], limit: float) -> bool:
    """Look until it is met; False when it is not after `limit` seconds."""
    until = time.monotonic() + limit
    while not met():
        if time.monotonic() > until:
            return False
        time.sleep(_PAUSE)
    return True


def kill_at(launch: Launch, met: Callable[[], bool], delay: float, limit: float = 120) -> bool:
    """Kill the launch `delay` seconds after the condition is met; False when it ended by itself
    before.
    """
    assert wait_until(lambda: met() or not launch.running, limit), f"nothing was done within {limit} s"
    wait_until(lambda: not launch.running, delay)
    stopped = launch.running
    launch.kill()
    return stopped


def kill_often(
    start: Callable[[random.Random], Launch], progress: Callable[[], int], total: int, kills: int, seed: int, startup: float
) -> Done:
    """Start a command again and again and kill it so many times, at moments drawn by `seed`; then
    let it end.

    Args:
        start: starts the command; may draw the number of its ranks.
        progress: how much of `total` is done, by the files that are there.
        total: of the whole work.
        kills: a third of them while a launch starts and what it finds is looked at (within
            `startup` seconds), one when all work is done and the launch has not ended yet, the
            others in the work.
        seed: of all draws.
        startup: seconds.
    """
    rng = random.Random(seed)
    early = {*rng.sample(range(kills - 1), kills // 3)}
    for number in range(kills):
        launch, before = start(rng), progress()
        if number in early:
            killed = kill_at(launch, lambda: True, rng.uniform(0, startup))
        else:
            share = 1 if number == kills - 1 else rng.uniform(0.2, 1.2) / (kills - number)
            goal = min(total, before + max(1, round(share * (total - before))))
            killed = kill_at(launch, lambda goal=goal: progress() >= goal, 0.0 if goal == total else rng.uniform(0, 0.2))
        if not killed:
            launch.done().check()  # it was done before it could be killed
    return start(rng).finish(300).check()


def tree_of(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, hidden ones and links, too, but for the notes on launches."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if (path.is_symlink() or path.is_file()) and path.name != PROVENANCE:
            found[str(path.relative_to(folder))] = path.read_bytes() if path.is_file() else b"link"
    return found


def assert_same_tree(folder: Path, expected: Path) -> None:
    """The same files with the same bytes; shows the names of those that differ."""
    one, other = tree_of(folder), tree_of(expected)
    assert sorted(one) == sorted(other)
    assert [name for name in one if one[name] != other[name]] == []


def assert_one_line(done: Done, *names: object) -> None:
    """A mistake that a script tells the user: status 2, one line that begins with `error:` and has
    the names in it, no traceback.
    """
    lines = [line for line in done.err.splitlines() if line.startswith("error: ")]
    assert "Traceback" not in done.err, done.err[-3000:]
    assert done.status == 2 and len(lines) == 1, f"status {done.status}: {done.err[-3000:]}"
    for name in names:
        assert str(name) in lines[0], lines[0]


@contextlib.contextmanager
def within(seconds: float) -> Iterator[None]:
    """The block fails when it takes longer, even while it waits for a file."""

    def late(*_: object) -> NoReturn:
        raise AssertionError(f"not ended after {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
