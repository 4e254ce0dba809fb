from __future__ import annotations

import errno
import fcntl
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from descriptors import open_files

from vaultfs.errors import ReadOnlyError, StorageError, VaultLockedError
from vaultfs.storage.layout import VaultLayout
from vaultfs.storage.lock import Holder, VaultLock, read_holder

from .faults import failing


class Clock:
    """Time that passes only while somebody sleeps."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_s = 100.0
        self.sleeps: list[float] = []
        self.at: dict[int, object] = {}
        monkeypatch.setattr(time, "monotonic", lambda: self.now_s)
        monkeypatch.setattr(time, "sleep", self._sleep)

    def _sleep(self, seconds: float) -> None:
        self.sleeps.append(seconds)
        self.now_s += seconds
        action = self.at.get(len(self.sleeps))
        if callable(action):
            action()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def test_one_holder_at_a_time(layout: VaultLayout, clock: Clock) -> None:
    assert read_holder(layout) is None
    with VaultLock.acquire(layout, purpose="mount at /mnt/x"):
        assert read_holder(layout) == Holder(os.getpid(), "mount at /mnt/x")
        with pytest.raises(VaultLockedError) as caught:
            VaultLock.acquire(layout, purpose="fsck")
        assert f"process {os.getpid()} (mount at /mnt/x)" in str(caught.value)
        assert str(layout.root) in str(caught.value)
        assert read_holder(layout) == Holder(os.getpid(), "mount at /mnt/x")
    assert clock.sleeps == []
    assert read_holder(layout) is None
    assert layout.lock.exists()
    VaultLock.acquire(layout, purpose="fsck").release()


def test_the_lock_file_is_private_and_says_who_and_what_for(layout: VaultLayout) -> None:
    old = os.umask(0)
    try:
        lock = VaultLock.acquire(layout, purpose="a purpose that is longer than the next one")
    finally:
        os.umask(old)
    lock.release()
    with VaultLock.acquire(layout, purpose="two\nlines\tand a \udcff"):
        assert layout.lock.read_bytes() == f"{os.getpid()}\ntwo lines and a \\udcff\n".encode()
    assert stat.S_IMODE(layout.lock.stat().st_mode) == 0o600


def test_waiting_until_it_is_released(layout: VaultLayout, clock: Clock) -> None:
    held = VaultLock.acquire(layout, purpose="first")
    clock.at[3] = held.release
    with VaultLock.acquire(layout, purpose="second", wait_s=10.0):
        assert clock.sleeps == [0.05] * 3


def test_waiting_in_vain(layout: VaultLayout, clock: Clock) -> None:
    before = open_files()
    with VaultLock.acquire(layout, purpose="first"):
        with pytest.raises(VaultLockedError):
            VaultLock.acquire(layout, purpose="second", wait_s=0.5)
        assert open_files() == before + 1
    assert 10 <= len(clock.sleeps) <= 11


def test_releasing_twice_is_harmless(layout: VaultLayout) -> None:
    lock = VaultLock.acquire(layout, purpose="x")
    lock.release()
    other = VaultLock.acquire(layout, purpose="y")
    lock.release()
    assert read_holder(layout) is not None
    other.release()


def test_a_look_at_the_holder_never_makes_acquiring_fail(layout: VaultLayout, clock: Clock) -> None:
    layout.lock.touch()
    probe = os.open(layout.lock, os.O_RDONLY)
    fcntl.flock(probe, fcntl.LOCK_SH)
    clock.at[1] = lambda: os.close(probe)
    with VaultLock.acquire(layout, purpose="mount", wait_s=0.0):
        assert clock.sleeps == [0.05]


def test_somebody_who_looks_for_ever_does_not_block_for_ever(layout: VaultLayout, clock: Clock) -> None:
    layout.lock.touch()
    probe = os.open(layout.lock, os.O_RDONLY)
    fcntl.flock(probe, fcntl.LOCK_SH)
    with pytest.raises(VaultLockedError, match="another process"):
        VaultLock.acquire(layout, purpose="mount")
    assert 20 <= len(clock.sleeps) <= 21
    os.close(probe)


@pytest.mark.parametrize("by_another", [False, True])
def test_a_file_that_was_deleted_meanwhile_is_not_the_lock(
    layout: VaultLayout, monkeypatch: pytest.MonkeyPatch, clock: Clock, *, by_another: bool
) -> None:
    real = fcntl.flock
    replaced: list[bool] = []

    def replace_first(descriptor: int, operation: int) -> None:
        if not replaced:
            layout.lock.unlink()
            if by_another:
                layout.lock.touch()
            replaced.append(True)
        real(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", replace_first)
    with VaultLock.acquire(layout, purpose="mount"):
        assert read_holder(layout) == Holder(os.getpid(), "mount")
        with pytest.raises(VaultLockedError):
            VaultLock.acquire(layout, purpose="again")


def test_the_lock_survives_fork_and_release_in_the_parent(layout: VaultLayout) -> None:
    lock = VaultLock.acquire(layout, purpose="daemon")
    receiving, sending = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(sending)
        os.read(receiving, 1)
        os._exit(0)
    os.close(receiving)
    lock.release()
    with pytest.raises(VaultLockedError):
        VaultLock.acquire(layout, purpose="second")
    assert read_holder(layout) is not None
    os.close(sending)
    os.waitpid(child, 0)
    VaultLock.acquire(layout, purpose="second").release()


def test_a_killed_holder_leaves_no_lock(layout: VaultLayout) -> None:
    receiving, sending = os.pipe()
    child = os.fork()
    if child == 0:
        VaultLock.acquire(layout, purpose="victim")
        os.write(sending, b"x")
        signal.pause()
    assert os.read(receiving, 1) == b"x"
    assert read_holder(layout) == Holder(child, "victim")
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    os.close(receiving)
    os.close(sending)
    assert read_holder(layout) is None
    VaultLock.acquire(layout, purpose="next").release()


def test_programs_that_the_holder_starts_do_not_hold_it(layout: VaultLayout) -> None:
    lock = VaultLock.acquire(layout, purpose="daemon")
    command = [sys.executable, "-c", "import sys; print(flush=True); sys.stdin.read()"]
    with subprocess.Popen(command, close_fds=False, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as program:
        assert program.stdout is not None
        program.stdout.readline()
        lock.release()
        assert read_holder(layout) is None
        program.communicate()


@pytest.mark.parametrize(
    ("text", "holder"),
    [
        (b"", Holder(0, "")),
        (b"12\nmount\n", Holder(12, "mount")),
        (b"12", Holder(12, "")),
        (b"-1\nx\n", Holder(0, "x")),
        (b"9" * 5000, Holder(0, "")),
        ("\N{SUPERSCRIPT TWO}\nx\n".encode(), Holder(0, "x")),
        (b"7\nevil\x1b[2J\xff\n", Holder(7, "evil\N{REPLACEMENT CHARACTER}[2J\N{REPLACEMENT CHARACTER}")),
    ],
)
def test_whatever_the_file_says_the_holder_can_be_shown(layout: VaultLayout, text: bytes, holder: Holder) -> None:
    with VaultLock.acquire(layout, purpose="x"):
        layout.lock.write_bytes(text)
        assert read_holder(layout) == holder
        with pytest.raises(VaultLockedError, match=r"in use by (another process|process \d+)"):
            VaultLock.acquire(layout, purpose="y")


def test_holders_in_words() -> None:
    assert str(Holder(0, "x")) == "another process"
    assert str(Holder(5, "")) == "process 5"
    assert str(Holder(5, "fsck")) == "process 5 (fsck)"


def test_a_symlink_in_the_locks_place_is_not_followed(layout: VaultLayout, tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_bytes(b"keep")
    layout.lock.symlink_to(target)
    with pytest.raises(StorageError):
        VaultLock.acquire(layout, purpose="x")
    with pytest.raises(StorageError):
        read_holder(layout)
    assert target.read_bytes() == b"keep"


@pytest.mark.parametrize("kind", ["fifo", "directory"])
def test_something_else_in_the_locks_place_does_not_block(layout: VaultLayout, kind: str) -> None:
    before = open_files()
    if kind == "fifo":
        os.mkfifo(layout.lock)
    else:
        layout.lock.mkdir()
    with pytest.raises(StorageError):
        VaultLock.acquire(layout, purpose="x")
    assert read_holder(layout) is None
    assert open_files() == before


def test_a_full_disk_does_not_keep_a_vault_shut(layout: VaultLayout, monkeypatch: pytest.MonkeyPatch) -> None:
    failing(monkeypatch, "pwrite", errno.ENOSPC)
    with VaultLock.acquire(layout, purpose="rm"):
        assert read_holder(layout) == Holder(0, "")


@pytest.mark.parametrize(
    ("call", "code", "expected"),
    [
        ("pwrite", errno.EIO, StorageError),
        ("open", errno.EROFS, ReadOnlyError),
        ("open", errno.EMFILE, StorageError),
    ],
)
def test_other_errors_are_reported_and_nothing_stays_locked(
    layout: VaultLayout, monkeypatch: pytest.MonkeyPatch, call: str, code: int, expected: type[Exception]
) -> None:
    before = open_files()
    with monkeypatch.context() as patch:
        failing(patch, call, code)
        with pytest.raises(expected, match="cannot lock"):
            VaultLock.acquire(layout, purpose="x")
    assert open_files() == before
    VaultLock.acquire(layout, purpose="x").release()


def test_a_file_system_without_locks_is_reported(layout: VaultLayout, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_descriptor: int, _operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(StorageError, match="No locks available"):
        VaultLock.acquire(layout, purpose="x")
