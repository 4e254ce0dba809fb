"""Runs a function in the background as a daemon, while the caller waits until it reports that it is ready or failed."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NoReturn

from vaultfs.errors import ExitCode, VaultError

_LOG_MODE: Final = 0o600


@dataclass(frozen=True, slots=True)
class Start:
    """How the start of a daemon went.

    Attributes:
        exit_code: 0 if it is ready, else the code to exit with.
        message: one line for the person; empty if it is ready.
        pid: the daemon's process id; 0 if it did not get that far.
    """

    exit_code: int
    message: str = ""
    pid: int = 0


def daemonise(run: Callable[[Callable[[], None]], None], *, log_file: Path) -> Start:
    """Run ``run(report_ready)`` in a daemon and return, in the calling process, when it is ready or has failed.

    The daemon is a grandchild in a session of its own, with ``/`` as its working directory (so give it absolute paths),
    nothing on stdin, and stdout and stderr appended to ``log_file``, which is created readable by its owner alone.
    A `VaultError` before ``report_ready`` comes back as its exit code and message, any other exception as code 1 with
    its traceback in the log.  The daemon never returns from this function; it exits with 0 or the error's code.

    Args:
        run: what to do; it must call the function it is given once, when the work can be used.
        log_file: absolute path; its directory exists.

    Raises:
        RuntimeError: threads are running; they would not survive the fork, while locks they hold would.
        OSError: no process or pipe can be had.
    """
    if threading.active_count() != 1:
        raise RuntimeError("daemonise() must be called before threads or an event loop start")
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    receiving, sending = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(receiving)
        _become_daemon(run, log_file, sending)
    os.close(sending)
    with os.fdopen(receiving, "rb") as pipe:
        report = pipe.read()
    os.waitpid(child, 0)
    if not report:
        return Start(ExitCode.ERROR, f"the daemon ended before it was ready; its log is {log_file}")
    return Start(**json.loads(report))


def _become_daemon(run: Callable[[Callable[[], None]], None], log_file: Path, sending: int) -> NoReturn:
    """In the child: fork again, detach, run, exit.  No exception leaves this function: the stack above is a copy."""
    exit_code = int(ExitCode.ERROR)
    try:
        os.setsid()
        if os.fork() != 0:
            os._exit(0)
        os.chdir("/")
        _detach_streams(log_file)
        exit_code = _run_and_report(run, log_file, sending)
    except BaseException:  # noqa: BLE001  # nothing above may run twice, and the log is the only place to say so
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(exit_code)


def _detach_streams(log_file: Path) -> None:
    null = os.open(os.devnull, os.O_RDONLY)
    log = os.open(log_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, _LOG_MODE)
    os.dup2(null, 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    for descriptor in (null, log):
        if descriptor > 2:
            os.close(descriptor)


def _run_and_report(run: Callable[[Callable[[], None]], None], log_file: Path, sending: int) -> int:
    is_reported = False

    def report(start: Start) -> None:
        nonlocal is_reported
        if not is_reported:
            is_reported = True
            # Less than PIPE_BUF, so one write; a parent that was killed meanwhile is no reason to stop.
            text = json.dumps({"exit_code": start.exit_code, "message": start.message[:1000], "pid": start.pid})
            with contextlib.suppress(BrokenPipeError):
                os.write(sending, text.encode())
            os.close(sending)

    try:
        run(lambda: report(Start(ExitCode.OK, pid=os.getpid())))
    except VaultError as error:
        if is_reported:
            traceback.print_exc()
        report(Start(error.exit_code, " ".join(str(error).split()) or type(error).__name__))
        return int(error.exit_code)
    except Exception as error:  # noqa: BLE001  # the person gets one line, the log gets all
        traceback.print_exc()
        report(Start(ExitCode.ERROR, f"{type(error).__name__}: {error} (its log is {log_file})"))
        return int(ExitCode.ERROR)
    report(Start(ExitCode.ERROR, f"the daemon ended before it was ready; its log is {log_file}"))
    return int(ExitCode.OK)
