"""Ending on purpose, and one writer a folder."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from undegrade.utils.errors import run_main
from undegrade.utils.interruption import STATUS, Interrupted, Interruption, parse_duration
from undegrade.utils.lock import LOCK, locked


@pytest.mark.parametrize(("text", "seconds"), [("3h50m", 13800), ("90s", 90), ("2d", 172800), ("1.5h", 5400), ("45", 45)])
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "soon", "3x", "0s", "-5m", "h"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="duration"):
        parse_duration(text)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGUSR1"])
def test_a_signal_asks_for_the_end_and_is_named(name: str) -> None:
    before = signal.getsignal(getattr(signal, name))
    with Interruption().listening() as interruption:
        assert not interruption.due
        os.kill(os.getpid(), getattr(signal, name))
        assert interruption.due and name in str(interruption.reason)
    assert signal.getsignal(getattr(signal, name)) is before


def test_the_time_limit_asks_for_the_end() -> None:
    assert not Interruption(100).due
    assert "--max_time" in str(Interruption(0).reason)


def test_a_script_that_was_interrupted_ends_with_a_status_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    def main() -> None:
        raise Interrupted("SIGTERM was received; saved after step 3")

    with pytest.raises(SystemExit, match=str(STATUS)):
        run_main(main)
    assert "saved after step 3" in capsys.readouterr().err


def test_a_folder_has_one_writer_and_the_second_is_told_who_holds_it(tmp_path: Path) -> None:
    with locked(tmp_path, "adaptation"):
        with pytest.raises(ValueError, match=f"process {os.getpid()} .*adaptation"), locked(tmp_path, "another"):
            pass
        assert (tmp_path / LOCK).is_file()
    assert not (tmp_path / LOCK).exists()
    with locked(tmp_path, "again"):
        pass


def test_the_lock_of_a_process_that_is_gone_is_taken_over(tmp_path: Path) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    (tmp_path / LOCK).write_text(json.dumps({"host": socket.gethostname(), "process": gone.pid}))
    with locked(tmp_path, "next"):
        pass


@pytest.mark.skipif(not Path("/proc/self/stat").is_file(), reason="the system does not say when a process started")
def test_a_process_whose_end_nobody_noticed_and_a_later_one_of_its_number_hold_nothing(tmp_path: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    os.waitid(os.P_PID, ended.pid, os.WEXITED | os.WNOWAIT)  # it stays a process that has ended
    for holder in ({"process": ended.pid}, {"process": os.getpid(), "started": "1"}):
        (tmp_path / LOCK).write_text(json.dumps({"host": socket.gethostname(), **holder}))
        with locked(tmp_path, "next"):
            pass
    ended.wait()


def test_the_lock_of_another_host_is_respected_until_it_is_silent(tmp_path: Path) -> None:
    path = tmp_path / LOCK
    path.write_text(json.dumps({"host": "elsewhere", "process": 1}))
    with pytest.raises(ValueError, match="elsewhere"), locked(tmp_path, "next"):
        pass
    os.utime(path, (0, 0))
    with locked(tmp_path, "next"):
        pass


def test_of_many_that_find_a_lock_without_owner_one_gets_it(tmp_path: Path) -> None:
    (tmp_path / LOCK).write_text("{}")
    os.utime(tmp_path / LOCK, (0, 0))
    program = (
        "import sys, time\nfrom pathlib import Path\nfrom undegrade.utils.lock import locked\n"
        "try:\n    with locked(Path(sys.argv[1]), 'race'):\n        time.sleep(3)\n        print('held')\n"
        "except ValueError:\n    print('refused')"
    )
    racers = [subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, text=True) for _ in range(4)]
    assert sorted(racer.communicate()[0].strip() for racer in racers) == ["held", "refused", "refused", "refused"]
    assert not list(tmp_path.iterdir())
