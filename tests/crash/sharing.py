"""Shares the inspection of many states among as many processes as there are processors: no state knows of another.

Each process is a fork, lays its states out in a directory of its own, and says at its end what it found.  What is
inspected is the same, in whatever order; only a report that is hopeless may hold other examples.
"""

from __future__ import annotations

import os
import pickle
import shutil
import signal
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final, NoReturn

from .report import Report

MOST_SHARES: Final = 4
"""More have less to do than it costs to begin them."""

Work = Callable[[int, int, Path], Report]
"""Inspect every n-th state from the i-th on: i, n, and a directory that is empty and used by nobody else."""


def share(work: Work, scratch: Path) -> Report:
    """Have each process do its share of the work.

    Args:
        work: what is to be done; called in processes that end after it.
        scratch: directories are made in here.

    Raises:
        AssertionError: a process failed, with its traceback, or died.
    """
    shares = min(MOST_SHARES, len(os.sched_getaffinity(0)))
    running: list[tuple[int, int]] = []
    try:
        for number in range(shares):
            place = scratch / f"share{number}"
            shutil.rmtree(place, ignore_errors=True)
            place.mkdir(parents=True)
            running.append(_begin(work, number, shares, place))
        report = Report()
        for child, outlet in list(running):
            said = _read_to_end(outlet)
            status = os.waitpid(child, 0)[1]
            running.remove((child, outlet))
            assert status == 0, f"a process that inspects ended with {os.waitstatus_to_exitcode(status)}"
            found = pickle.loads(said)
            assert isinstance(found, Report), f"a process that inspects failed:\n{found}"
            report.add(found)
        return report
    finally:
        for child, outlet in running:
            with suppress(OSError):
                os.close(outlet)
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


def _begin(work: Work, number: int, shares: int, place: Path) -> tuple[int, int]:
    """Start one process, and return it and what it will write to."""
    outlet, inlet = os.pipe2(os.O_CLOEXEC)
    child = os.fork()
    if child == 0:
        _be(work, number, shares, place, inlet)
    os.close(inlet)
    return child, outlet


def _be(work: Work, number: int, shares: int, place: Path, inlet: int) -> NoReturn:
    """Do one share, write down what was found, and end; never return to the tests."""
    code = 1
    try:
        try:
            found: Report | str = work(number, shares, place)
        except BaseException:
            found = traceback.format_exc()
        with os.fdopen(inlet, "wb") as file:
            file.write(pickle.dumps(found))
        code = 0
    finally:
        os._exit(code)


def _read_to_end(descriptor: int) -> bytes:
    with os.fdopen(descriptor, "rb") as file:
        return file.read()
