from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).parents[2]

SCRIPT = """
import dataclasses, json, os, sys, time
from pathlib import Path
from vaultfs.errors import WrongPasswordError
from vaultfs.fuse.daemon import daemonise

def run(report_ready):
{body}

start = daemonise(run, log_file=Path(sys.argv[1]))
print(json.dumps(dataclasses.asdict(start)))
"""


def launch(log: Path, body: str) -> dict[str, Any]:
    script = SCRIPT.format(body="\n".join("    " + line for line in body.splitlines()))
    done = subprocess.run(
        [sys.executable, "-c", script, log],
        stdout=subprocess.PIPE,  # would not reach its end if the daemon kept it
        stdin=subprocess.PIPE,
        text=True,
        check=True,
        cwd=REPOSITORY,
        timeout=60,
    )
    start: dict[str, Any] = json.loads(done.stdout)  # exactly one report: nothing is printed twice
    return start


def wait_for(log: Path, text: str) -> str:
    while text not in (found := log.read_text()):
        time.sleep(0.01)
    return found


def test_parent_returns_when_the_daemon_is_ready(tmp_path: Path) -> None:
    log = tmp_path / "log"
    start = launch(log, "report_ready()\nprint('working', flush=True)\ntime.sleep(60)")
    assert start["exit_code"] == 0
    assert start["message"] == ""
    pid = start["pid"]
    wait_for(log, "working")
    assert os.getsid(pid) not in {os.getsid(0), pid}  # a session of its own, which it does not lead: no terminal
    assert Path(f"/proc/{pid}/cwd").readlink() == Path("/")
    assert Path(f"/proc/{pid}/fd/0").readlink() == Path(os.devnull)
    assert Path(f"/proc/{pid}/fd/1").readlink() == log
    assert Path(f"/proc/{pid}/fd/2").readlink() == log
    assert len(list(Path(f"/proc/{pid}/fd").iterdir())) == 3
    assert log.stat().st_mode & 0o777 == 0o600
    os.kill(pid, signal.SIGKILL)


def test_error_of_ours_comes_back_with_its_code(tmp_path: Path) -> None:
    log = tmp_path / "log"
    start = launch(log, "raise WrongPasswordError('wrong\\n password')")
    assert start == {"exit_code": 12, "message": "wrong password", "pid": 0}
    assert log.read_text() == ""


def test_other_error_comes_back_and_is_logged(tmp_path: Path) -> None:
    log = tmp_path / "log"
    start = launch(log, "1 / 0")
    assert start["exit_code"] == 1
    assert "ZeroDivisionError" in start["message"]
    assert "Traceback" in wait_for(log, "ZeroDivisionError")


@pytest.mark.parametrize("body", ["os._exit(3)", "os.kill(os.getpid(), 9)", "pass", "sys.exit(4)"])
def test_daemon_that_ends_before_it_is_ready(tmp_path: Path, body: str) -> None:
    start = launch(tmp_path / "log", body)
    assert start["exit_code"] == 1
    assert str(tmp_path / "log") in start["message"]


def test_error_after_ready_is_logged(tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert launch(log, "report_ready()\nraise WrongPasswordError('late')")["exit_code"] == 0
    wait_for(log, "late")


def test_unwritable_log_is_an_error(tmp_path: Path) -> None:
    start = launch(tmp_path / "missing" / "log", "report_ready()")
    assert start["exit_code"] == 1


def test_threads_are_refused(tmp_path: Path) -> None:
    script = (
        "import threading, sys; from pathlib import Path; from vaultfs.fuse.daemon import daemonise\n"
        "e = threading.Event(); threading.Thread(target=e.wait).start()\n"
        "try: daemonise(print, log_file=Path('/dev/null'))\n"
        "except RuntimeError as error: print(error)\n"
        "finally: e.set()"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=REPOSITORY)
    assert "before threads" in done.stdout
