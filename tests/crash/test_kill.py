"""``kill -9`` at every system call: the page cache survives, so everything that was done must be in order.

strace kills the process as it enters the Nth call of a name, for every name and every N until the workload gets
through.  By default these are the calls that change a file; with ``--long`` all calls.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from .invariants import inspect_vault
from .power_cut import Report
from .recorder import Mark
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


def run_until_killed(operations: list[Operation], root: Path, marks: Path, name: str, number: int) -> bool:
    """Run a workload in a child and kill it at its ``number``-th call of ``name``; return whether that was reached."""
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
    what = f"inject=?{name}:signal=KILL:when={number}"
    command = ["strace", "-f", "-p", str(child), "-o", os.devnull, "-e", f"trace=?{name}", "-e", what]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as strace:
        assert strace.stderr is not None
        first = strace.stderr.readline()
        os.kill(child, signal.SIGCONT)
        _, status = os.waitpid(child, 0)
        strace.stderr.read()
    assert "attached" in first, first
    code = os.waitstatus_to_exitcode(status)
    assert code in {0, -signal.SIGKILL}, f"the workload ended with {code}"
    return code != 0


def marks_in(file: Path) -> list[Mark]:
    """What the workload said before it was killed."""
    lines = file.read_text().splitlines() if file.exists() else []
    return [Mark(position, line) for position, line in enumerate(lines)]


@pytest.mark.parametrize("workload", ["rewrite", "sessions"])
def test_kill_at_every_call(scratch: Path, root: Path, workload: str, long_run: bool) -> None:
    prepare_vault(root)
    template = scratch / "template"
    root.rename(template)
    operations = generate(workload, 4, 5)
    expectation = Expectation(operations)
    report = Report()
    for name in [*MUTATIONS, *(LONG_NAMES if long_run else ())]:
        number = 0
        is_killed = True
        while is_killed:
            number += 1
            shutil.rmtree(root, ignore_errors=True)
            shutil.copytree(template, root)
            marks = scratch / "marks"
            marks.unlink(missing_ok=True)
            is_killed = run_until_killed(operations, root, marks, name, number)
            said = marks_in(marks)
            report.inspected(inspect_vault, root, expectation, expectation.bounds(said, len(said)), f"{name} {number}")
        report.points += number - 1
    report.verify(least_points=80)
