"""Running the commands of a pipeline: in order or several at once, and what becomes of a signal."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import psutil

from undegrade.utils.errors import Stopped
from undegrade.utils.files import read_object, write_atomic
from undegrade.utils.interruption import STATUS, Interrupted, Interruption
from undegrade.utils.processes import TORCHRUN, available_cores
from undegrade.utils.stages import Command

log = logging.getLogger("pipeline")

_LOOK = 0.2  # seconds between looks at the processes
_SHOWN = 15  # last lines of a failed stage's log


class _Running:
    """A stage's process, in a session of its own, so that a Ctrl-C of the terminal reaches it
    through this process alone.

    Args:
        stage: what is run.
        output: file for what it writes; None: where this process writes.
        jobs: stages at once, of which each has its share of the cores.
    """

    def __init__(self, stage: Command, output: Path | None, jobs: int) -> None:
        self.stage, self.output, self.start, self.told = stage, output, time.perf_counter(), False
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
        # threads that wait asleep: spinning ones make a stage many times slower as soon as anything
        # else uses the cores
        environment = {"OMP_WAIT_POLICY": "PASSIVE"}
        if jobs > 1:
            environment["OMP_NUM_THREADS"] = str(max(1, available_cores() // jobs))
        with contextlib.nullcontext() if output is None else output.open("wb") as file:
            self.process = subprocess.Popen(
                stage.words, env=environment | os.environ | {"PATH": path}, start_new_session=True, stdout=file, stderr=file
            )

    @property
    def seconds(self) -> float:
        """Since it was started."""
        return round(time.perf_counter() - self.start, 1)

    def tell(self, received: str) -> None:
        """Pass the wish to stop on, once; `received` is the signal, if there was one."""
        if not self.told and self.process.poll() is None:
            # torchrun would end at once on SIGUSR1, and leave its processes behind
            own = received in ("SIGINT", "SIGUSR1") and TORCHRUN[1] not in self.stage.words
            self.process.send_signal(getattr(signal, received) if own else signal.SIGTERM)
        self.told = True

    def kill(self) -> None:
        """End it and all that it has started."""
        with contextlib.suppress(psutil.NoSuchProcess):
            first = psutil.Process(self.process.pid)
            for one in [*first.children(recursive=True), first]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    one.kill()

    def failure(self) -> str:
        """What went wrong, with the last lines of its output if they are in a file."""
        shown = ""
        if self.output is not None:
            lines = self.output.read_text(errors="replace").splitlines()[-_SHOWN:]
            shown = "".join(f"\n    {line}" for line in [f"... {self.output}", *lines])
        return (
            f"stage {self.stage.name!r} failed with status {self.process.returncode}; the same command goes on from there. "
            f"It ran: {shlex.join(self.stage.words)}{shown}"
        )


class StageRuns:
    """Runs what is not finished of a pipeline; a stage starts when all that it needs has ended.

    Args:
        stages: commands, of which those that come first start first.
        out: folder for the note of what is done, and for the output of stages that run side by
            side: `<out>/stages/<name>.json` and `.log`.
        jobs: processes at once; a stage of several processes counts as so many, and as `jobs` at
            the most.
    """

    def __init__(self, stages: Sequence[Command], out: Path, jobs: int = 1) -> None:
        self.stages, self.out, self.jobs = stages, out / "stages", jobs
        self.seconds: dict[str, float] = {}
        self.running: list[_Running] = []
        self.waiting = list(enumerate(stages, 1))

    def run(self, interruption: Interruption) -> dict[str, float]:
        """Seconds by stage, those of earlier calls included.

        Raises:
            Stopped: a stage failed; names it and its command. Those beside it come to their end.
            Interrupted: the end was asked for, or a stage was stopped on purpose.
        """
        failed: _Running | None = None
        self._skip_done()
        try:
            while self.running or (self.waiting and not failed and not interruption.due):
                if not failed and not interruption.due:
                    self._start()
                ended = self._wait(interruption)
                failed = failed or next((one for one in ended if one.process.returncode), None)
                if failed in ended and self.running:
                    beside = ", ".join(one.stage.name for one in self.running)
                    log.warning("stage %r has failed; waiting for the end of %s", failed.stage.name, beside)
        except KeyboardInterrupt:
            for one in self.running:
                one.kill()
            raise
        if failed is not None:
            status = failed.process.returncode
            if status == STATUS or interruption.due:
                reason = interruption.reason or "it was stopped"
                raise Interrupted(f"{reason} in stage {failed.stage.name!r}, which ended with status {status}")
            raise Stopped(failed.failure())
        if self.waiting:
            raise Interrupted(f"{interruption.reason} before stage {self.waiting[0][1].name!r}")
        return self.seconds

    def _skip_done(self) -> None:
        for number, stage in list(self.waiting):
            marker = self.out / f"{stage.name}.json"
            done = read_object(marker, "remove it, and the stage runs again") if marker.is_file() else {}
            if done.get("identity") == stage.identity and isinstance(done.get("seconds"), (int, float)):
                self.seconds[stage.name] = done["seconds"]
                self.waiting.remove((number, stage))
                log.info("[%d/%d] %s: done before (%.0f s)", number, len(self.stages), stage.name, done["seconds"])

    def _start(self) -> None:
        """Start what is ready, as far as there is room; what is ready first is not overtaken."""
        for number, stage in list(self.waiting):
            if any(name not in self.seconds for name in stage.needs):
                continue
            taken = sum(min(one.stage.processes, self.jobs) for one in self.running)
            if taken + min(stage.processes, self.jobs) > self.jobs:
                return
            output = self.out / f"{stage.name}.log" if self.jobs > 1 else None
            if output is not None:
                output.parent.mkdir(parents=True, exist_ok=True)
            log.info("[%d/%d] %s: %s", number, len(self.stages), stage.name, shlex.join(stage.words))
            self.waiting.remove((number, stage))
            self.running.append(_Running(stage, output, self.jobs))

    def _wait(self, interruption: Interruption) -> list[_Running]:
        """Those that have ended after a while; with success they are noted as done."""
        time.sleep(_LOOK)
        if interruption.due:
            for one in self.running:
                one.tell(str(interruption.received))
        ended = [one for one in self.running if one.process.poll() is not None]
        for one in ended:
            self.running.remove(one)
            if one.process.returncode == 0:
                name = one.stage.name
                self.seconds[name] = one.seconds
                write_atomic(self.out / f"{name}.json", json.dumps({"identity": one.stage.identity, "seconds": one.seconds}) + "\n")
                if one.output is not None:
                    log.info("%s: done in %.0f s", name, one.seconds)
                    if one.stage.shown:
                        print(one.output.read_text(errors="replace"), flush=True)
        return ended
