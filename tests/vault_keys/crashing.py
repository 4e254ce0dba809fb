"""Kill a process before each system call that changes the disk, one run per call, and look at what is left."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

CALLS = ("open", "rename", "fsync", "fdatasync", "link", "unlink", "ftruncate", "fchmod", "pwritev", "write")
KILLED = 77


def _die_before(number: int) -> None:
    """From now on, end the process right before the call with this number, counted from 0."""
    seen = 0

    def counted(real: Callable[..., object]) -> Callable[..., object]:
        def call(*arguments: object, **options: object) -> object:
            nonlocal seen
            if seen == number:
                os._exit(KILLED)
            seen += 1
            return real(*arguments, **options)

        return call

    for name in CALLS:
        setattr(os, name, counted(getattr(os, name)))


def survives_every_crash(
    vault: Path, scratch: Path, work: Callable[[Path], None], check: Callable[[Path], None], step: int = 1
) -> int:
    """Run ``work`` on copies of a vault, killed before call 0, 1, 2 ..., and ``check`` each; return how many."""
    number = 0
    while True:
        copy = scratch / "crashed"
        state = scratch / "crashed-state"
        for each in (copy, state):
            shutil.rmtree(each, ignore_errors=True)
        shutil.copytree(vault, copy)
        os.environ["XDG_STATE_HOME"] = str(state)
        child = os.fork()
        if child == 0:
            code = 1
            try:
                _die_before(number)
                work(copy)
                code = 0
            finally:
                os._exit(code)
        _, status = os.waitpid(child, 0)
        code = os.waitstatus_to_exitcode(status)
        assert code in {0, KILLED}, f"the run that should die before call {number} ended with {code}"
        check(copy)
        if code == 0:
            return number
        number += step
