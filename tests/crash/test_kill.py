"""``kill -9`` at every system call: the page cache survives, so everything that was done must be in order.

strace kills the process as it enters the Nth call of a name, for every name and every N until the workload gets
through.  By default these are the calls that change a file; with ``--long`` all calls.  All processors share this.
"""

from __future__ import annotations

import itertools
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from .invariants import inspect_vault
from .recorder import Mark
from .report import Report
from .sharing import share
from .trace import MUTATIONS
from .vault_store import VaultStore, prepare_vault
from .workload import Expectation, Operation, generate, run

pytestmark = [pytest.mark.usefixtures("small_vaults"), pytest.mark.timeout(3600)]

LONG_NAMES = (
    "openat",
    "close",
    "read",
    "pread64",
    "preadv2",
    "lseek",
    "newfstatat",
    "fstat",
    "mmap",
    "munmap",
    "futex",
)
_CALL = re.compile(r"^\d+ +(\w+)\(", re.MULTILINE)


def fork_stopped(operations: list[Operation], root: Path, marks: Path) -> int:
    """A child that runs a workload when it is told to continue."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.kill(os.getpid(), signal.SIGSTOP)
            run(operations, lambda: VaultStore(root), marks)
            code = 0
        finally:
            os._exit(code)
    os.waitpid(child, os.WUNTRACED)
    return child


def go_on_traced(child: int, words: Sequence[str]) -> int:
    """Have a stopped child continue below strace, and return its exit code."""
    command = ["strace", "-f", "-p", str(child), *words]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as strace:
        assert strace.stderr is not None
        first = strace.stderr.readline()
        os.kill(child, signal.SIGCONT)
        _, status = os.waitpid(child, 0)
        strace.stderr.read()
    assert "attached" in first, first
    code = os.waitstatus_to_exitcode(status)
    assert code in {0, -signal.SIGKILL}, f"the workload ended with {code}"
    return code


def run_until_killed(operations: list[Operation], root: Path, marks: Path, name: str, number: int) -> bool:
    """Run a workload in a child and kill it at its ``number``-th call of ``name``; return whether that was reached."""
    what = f"inject=?{name}:signal=KILL:when={number}"
    child = fork_stopped(operations, root, marks)
    return go_on_traced(child, ["-o", os.devnull, "-e", f"trace=?{name}", "-e", what]) != 0


def called_names(operations: list[Operation], scratch: Path, root: Path, names: Sequence[str]) -> list[str]:
    """Those of some system calls that a workload makes at all; ``root`` is used up."""
    log = scratch / "called"
    child = fork_stopped(operations, root, scratch / "marks")
    code = go_on_traced(child, ["-o", str(log), "-e", "trace=" + ",".join(f"?{name}" for name in names)])
    assert code == 0
    called = {match[1] for match in _CALL.finditer(log.read_text(errors="replace"))}
    return [name for name in names if name in called]


def marks_in(file: Path) -> list[Mark]:
    """What the workload said before it was killed."""
    lines = file.read_text().splitlines() if file.exists() else []
    return [Mark(position, line) for position, line in enumerate(lines)]


@pytest.mark.parametrize("workload", ["rewrite", "sessions"])
def test_kill_at_every_call(scratch: Path, root: Path, workload: str, long_run: bool) -> None:
    prepare_vault(root)
    template = scratch / "template"
    shutil.copytree(root, template)
    operations = generate(workload, 4, 5)
    expectation = Expectation(operations)
    names = called_names(operations, scratch, root, [*MUTATIONS, *(LONG_NAMES if long_run else ())])

    def work(number: int, shares: int, place: Path) -> Report:
        report = Report()
        own, marks = place / "disk", place / "marks"
        for name in names:
            for when in itertools.count(number + 1, shares):
                shutil.rmtree(own, ignore_errors=True)
                shutil.copytree(template, own)
                marks.unlink(missing_ok=True)
                is_killed = run_until_killed(operations, own, marks, name, when)
                said = marks_in(marks)
                survivors = expectation.bounds(said, len(said))
                report.inspected(inspect_vault, own, expectation, survivors, f"{name} {when}")
                if not is_killed:
                    break
                report.points += 1
        return report

    share(work, scratch).verify(least_points=80)
