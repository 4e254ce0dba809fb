"""For all tests: ``--long`` and ``--ceph``, a state directory of their own, and a check that nothing outlives a test.

After each test no mount, loop device or process may be left that was not there before.  What is found is removed, so
that one careless test does not spoil the next, and the test fails.
"""

from __future__ import annotations

import ctypes
import fcntl
import itertools
import os
import re
import shutil
import signal
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from backup_faults.real_processes import Forker

MARK_VARIABLE = "VAULTFS_TEST_RUN"
"""Every process that descends from this run has it in its environment, daemons included."""

LOOP_CLR_FD = 0x4C01
MNT_DETACH = 2
END_PATIENCE_S = 5.0
"""A process that has closed everything may still be there for a moment, until its parent has waited for it."""

BLOCK_DEVICES = Path("/sys/block")
SHARED_MEMORY = Path("/dev/shm")
NEEDED_BYTES = 1 << 30

_scratch_numbers = itertools.count()

# How long an example takes says how busy the machine is, and nothing of vaultfs.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")

_libc = ctypes.CDLL(None, use_errno=True)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="run the long forms too: thousands of cases, many minutes")
    parser.addoption(
        "--ceph", action="store_true", help="run the tests over a Ceph cluster too, which must be installed"
    )


def pytest_configure(config: pytest.Config) -> None:
    # A run in the background of a script ignores SIGINT, and so would every process that a test interrupts.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ[MARK_VARIABLE] = f"{os.getpid()}-{uuid.uuid4().hex[:8]}"  # short: it is part of paths of sockets
    config.addinivalue_line("markers", "ceph: over a Ceph cluster on this machine; run with --ceph")


def pytest_unconfigure(config: pytest.Config) -> None:
    shutil.rmtree(_shared_scratch(), ignore_errors=True)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    unwanted = [mark for mark in ("long", "ceph") if not config.getoption(f"--{mark}")]
    left_out = {item for item in items if any(item.get_closest_marker(mark) is not None for mark in unwanted)}
    if left_out:
        config.hook.pytest_deselected(items=[item for item in items if item in left_out])
        items[:] = [item for item in items if item not in left_out]


@pytest.fixture(scope="session")
def long_run(pytestconfig: pytest.Config) -> bool:
    """Whether ``--long`` was given: then tests that count their cases take many more."""
    return bool(pytestconfig.getoption("--long"))


@pytest.fixture(scope="session", autouse=True)
def own_directories(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Logs, witnesses and sockets of tests never reach those of the person who runs them."""
    with pytest.MonkeyPatch.context() as patch:
        for variable in ("XDG_STATE_HOME", "XDG_RUNTIME_DIR", "XDG_CONFIG_HOME"):
            patch.setenv(variable, str(tmp_path_factory.mktemp(variable.lower())))
        yield


@pytest.fixture(scope="session")
def forker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forker]:
    """Starts real commands quickly, for tests in which it is not the point how Python begins."""
    from backup_faults.real_processes import forking

    with forking(tmp_path_factory.mktemp("said")) as started:
        yield started


@pytest.fixture
def scratch(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A directory in memory, where there is one: for tests that make thousands of small disks, or sync all the time.

    Packages whose tests do have it for their ``tmp_path``.
    """
    name = re.sub(r"\W", "_", request.node.name)[:20]  # short, as there will be sockets below it
    if not os.access(SHARED_MEMORY, os.W_OK) or shutil.disk_usage(SHARED_MEMORY).free < NEEDED_BYTES:
        yield tmp_path_factory.mktemp(name)
        return
    where = _shared_scratch() / f"{name}{next(_scratch_numbers)}"
    where.mkdir(parents=True)
    yield where
    shutil.rmtree(where, ignore_errors=True)  # what is still mounted there is found and removed after this


def _shared_scratch() -> Path:
    return SHARED_MEMORY / f"vaultfs-{os.environ[MARK_VARIABLE]}"


@dataclass(frozen=True)
class Resources:
    """What can outlive a test."""

    mounts: frozenset[str]
    loops: frozenset[tuple[str, str]]
    processes: frozenset[int]


def _mounts() -> frozenset[str]:
    """Mount points of FUSE and of loop devices; others on this machine mount such things, but not meanwhile."""
    found = set()
    for line in Path("/proc/self/mounts").read_text(encoding="utf-8", errors="surrogateescape").splitlines():
        source, where, kind, *_ = line.split(" ")
        if kind.split(".")[0] in {"fuse", "fuseblk"} or source.startswith("/dev/loop"):
            found.add(where.encode("utf-8", "surrogateescape").decode("unicode_escape"))
    return frozenset(found)


def _loops() -> frozenset[tuple[str, str]]:
    found = set()
    for name in os.listdir(BLOCK_DEVICES) if BLOCK_DEVICES.is_dir() else ():
        if name.startswith("loop"):
            try:
                found.add((name, Path(BLOCK_DEVICES, name, "loop/backing_file").read_text(errors="replace").strip()))
            except OSError:  # it has no file, or was detached meanwhile
                continue
    return frozenset(found)


def _is_ours(text: str, base: Path) -> bool:
    """Whether a path was made by this run: below pytest's directory, or named after the run."""
    return text.startswith(f"{base}/") or os.environ[MARK_VARIABLE] in text


class Processes:
    """Finds the processes that descend from this run.

    There may be thousands of others, and this is asked twice for each test: whoever was a stranger before a test, and
    is still there, is not asked again.
    """

    def __init__(self) -> None:
        self._mark = f"{MARK_VARIABLE}={os.environ[MARK_VARIABLE]}".encode()
        self._strangers: frozenset[int] = frozenset({os.getpid()})

    def find(self, *, is_before_a_test: bool) -> frozenset[int]:
        """Those of this run that are there now."""
        present = {int(entry) for entry in os.listdir("/proc") if entry.isdecimal()}
        ours = frozenset(pid for pid in present - self._strangers if self._is_marked(pid))
        if is_before_a_test:  # after one, a child may have no environment of its own yet
            self._strangers = frozenset(present - ours)
        return ours

    def _is_marked(self, pid: int) -> bool:
        try:
            environment = Path("/proc", str(pid), "environ").read_bytes()  # that of a zombie is empty
        except OSError:  # it ended, or belongs to another user
            return False
        return self._mark in environment.split(b"\0")


@pytest.fixture(scope="session")
def processes() -> Processes:
    """Those of this run, and what is known of others."""
    return Processes()


def _resources(base: Path, processes: frozenset[int]) -> Resources:
    return Resources(
        frozenset(where for where in _mounts() if _is_ours(where, base)),
        frozenset(loop for loop in _loops() if _is_ours(loop[1], base)),
        processes,
    )


def _left(before: Resources, base: Path, processes: Processes) -> Resources:
    now = _resources(base, processes.find(is_before_a_test=False))
    return Resources(now.mounts - before.mounts, now.loops - before.loops, now.processes - before.processes)


def _remove(left: Resources) -> None:
    for where in sorted(left.mounts, reverse=True):
        _libc.umount2(os.fsencode(where), MNT_DETACH)
    for name, _ in left.loops:
        device = os.open(f"/dev/{name}", os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.ioctl(device, LOOP_CLR_FD)
        except OSError:  # it went with its mount
            continue
        finally:
            os.close(device)
    for pid in left.processes:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


def _command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()[:200]
    except OSError:
        return "ended meanwhile"


@pytest.fixture(autouse=True)
def nothing_is_left(tmp_path_factory: pytest.TempPathFactory, processes: Processes) -> Iterator[None]:
    """Fail a test that leaves a mount, a loop device or a process behind, and remove them."""
    base = tmp_path_factory.getbasetemp()
    before = _resources(base, processes.find(is_before_a_test=True))
    yield
    left = _left(before, base, processes)
    deadline = time.monotonic() + END_PATIENCE_S
    while left != Resources(frozenset(), frozenset(), frozenset()) and time.monotonic() < deadline:
        time.sleep(0.02)
        left = _left(before, base, processes)
    problems = [f"mount {where}" for where in sorted(left.mounts)]
    problems += [f"{name} on {file}" for name, file in sorted(left.loops)]
    problems += [f"process {pid}: {_command_line(pid)}" for pid in sorted(left.processes)]
    _remove(left)
    if problems:
        pytest.fail("the test left behind: " + "; ".join(problems))
