"""The commits of a mounted vault, with a disk as slow, or as broken, as the test wants it."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest
import trio
import trio.testing

from vaultfs.errors import StorageError
from vaultfs.fuse.durability import Durability
from vaultfs.vault import commit
from vaultfs.vault.api import Vault
from vaultfs.vault.filesystem import FileSystem

from .vaults import CHUNK_BYTES, Place, read, require_consistent, write


@pytest.fixture
def fs(place: Place) -> Iterator[FileSystem]:
    fs = place.open()
    try:
        yield fs
    finally:
        fs.abandon()


@dataclass
class Disk:
    """Syncs wait until the test lets them go on; each is counted."""

    syncs: list[str] = field(default_factory=list)
    errors: list[int] = field(default_factory=list)
    go_on: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))

    @contextmanager
    def slow(self) -> Iterator[None]:
        real = os.fdatasync

        def fdatasync(descriptor: int) -> None:
            name = os.readlink(f"/proc/self/fd/{descriptor}").rpartition(".")[2]
            self.syncs.append(name)
            self.go_on.acquire()
            if self.errors:
                code = self.errors.pop(0)
                raise OSError(code, os.strerror(code))
            real(descriptor)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("vaultfs.fuse.durability.FAST_SYNC_NS", 0)  # the log's syncs are waited for in threads
            patch.setattr(os, "fdatasync", fdatasync)
            try:
                yield
            finally:
                self.go_on.release(1000)

    async def wait_for_syncs(self, count: int) -> None:
        with trio.fail_after(20):
            while len(self.syncs) < count:
                await trio.lowlevel.checkpoint()


def require_open(durability: Durability, fs: FileSystem) -> None:
    """Nothing is held back, and nothing is under way."""
    assert durability.gate is None
    assert not durability._is_committing
    assert not durability._is_syncing
    assert not fs.segments.is_leased


async def test_concurrent_fsyncs_share_syncs(fs: FileSystem) -> None:
    vault = Vault(fs)
    durability, disk = Durability(fs), Disk()
    with disk.slow():
        async with trio.open_nursery() as nursery:
            for number in range(20):
                write(vault, f"/{number}", b"text")
                nursery.start_soon(durability.fsync)
                await trio.testing.wait_all_tasks_blocked()
            await disk.wait_for_syncs(1)
            disk.go_on.release()
            await disk.wait_for_syncs(2)
            disk.go_on.release()
    # The first fsync's own, and one for all that came meanwhile.
    assert disk.syncs == ["db-wal", "db-wal"]
    require_open(durability, fs)


async def test_concurrent_commits_share_one(fs: FileSystem) -> None:
    vault = Vault(fs)
    durability, disk = Durability(fs), Disk()
    write(vault, "/a", b"x" * 3 * CHUNK_BYTES)
    with disk.slow():
        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(durability.commit)
            await disk.wait_for_syncs(1)
            write(vault, "/b", b"y" * 3 * CHUNK_BYTES)
            disk.go_on.release(1000)
    # One commit, and another for those whose call came after the first had begun.
    assert disk.syncs.count("db-wal") <= 2
    require_open(durability, fs)
    assert fs.committer.is_clean


async def test_an_fsync_covers_what_came_before_it_only_if_it_is_synced(fs: FileSystem) -> None:
    """The second fsync's rows are committed while the first one's sync runs: that sync does not count for it."""
    vault = Vault(fs)
    durability, disk = Durability(fs), Disk()
    is_done = False

    async def second() -> None:
        nonlocal is_done
        await durability.fsync()
        is_done = True

    with disk.slow():
        async with trio.open_nursery() as nursery:
            write(vault, "/a", b"1")
            nursery.start_soon(durability.fsync)
            await disk.wait_for_syncs(1)
            write(vault, "/a", b"2")
            nursery.start_soon(second)
            await trio.testing.wait_all_tasks_blocked()
            disk.go_on.release()
            await disk.wait_for_syncs(2)
            assert not is_done
            disk.go_on.release()
    assert is_done


async def test_a_failed_sync_of_the_log_is_told_to_all_who_wait(fs: FileSystem) -> None:
    """The system reports it once; the second sync succeeds, and must not be believed."""
    vault = Vault(fs)
    durability, disk = Durability(fs), Disk(errors=[errno.EIO])
    outcomes: list[str] = []

    async def fsync() -> None:
        try:
            await durability.fsync()
        except StorageError:
            outcomes.append("EIO")
        else:
            outcomes.append("success")

    with disk.slow():
        async with trio.open_nursery() as nursery:
            for number in range(3):
                write(vault, f"/{number}", b"text")
                nursery.start_soon(fsync)
                await trio.testing.wait_all_tasks_blocked()
            await disk.wait_for_syncs(1)
            disk.go_on.release(1000)
    assert outcomes == ["EIO"] * 3
    with pytest.raises(StorageError, match="read-only"):
        write(vault, "/later", b"text")
    with pytest.raises(StorageError, match="read-only"):
        await durability.fsync()
    require_open(durability, fs)


async def test_writes_wait_at_the_gate_and_are_not_lost(place: Place, fs: FileSystem) -> None:
    vault = Vault(fs)
    durability, disk = Durability(fs), Disk()
    write(vault, "/a", b"x" * 3 * CHUNK_BYTES)
    order: list[str] = []

    async def late_write() -> None:
        await durability.room_to_write()
        order.append("written")
        write(vault, "/a", b"late", 5)

    async def commit_() -> None:
        await durability.commit()
        order.append("committed")

    with disk.slow():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(commit_)
            await disk.wait_for_syncs(1)
            # The first sync runs with the gate open; what is written now has to be synced with the gate closed.
            write(vault, "/b", b"y" * 2 * CHUNK_BYTES)
            disk.go_on.release()
            await disk.wait_for_syncs(2)
            assert durability.gate is not None
            nursery.start_soon(late_write)
            await trio.testing.wait_all_tasks_blocked()
            assert order == []
            disk.go_on.release(1000)
        await durability.commit()
    assert sorted(order) == ["committed", "written"]
    place.leave_copy()
    with place.opened() as found:
        assert read(found, "/a") == b"xxxxxlate" + b"x" * (3 * CHUNK_BYTES - 9)
        assert read(found, "/b") == b"y" * 2 * CHUNK_BYTES


@pytest.mark.parametrize("way", ["fsync", "commit"])
async def test_a_large_log_is_emptied_without_halves_of_requests(
    place: Place, fs: FileSystem, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """Requests go on while the log is synced; emptying it must not commit what they have done so far."""
    monkeypatch.setattr(commit, "CHECKPOINT_BYTES", 0)
    vault = Vault(fs)
    durability, disk = Durability(fs), Disk()
    write(vault, "/a", b"x" * 3 * CHUNK_BYTES)
    if way == "fsync":
        await durability.commit()
        write(vault, "/a", b"short")
    with disk.slow():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(getattr(durability, way))
            await disk.wait_for_syncs(1)
            if way == "commit":
                disk.go_on.release()
                await disk.wait_for_syncs(2)
            assert disk.syncs[-1] == "db-wal"
            vault.mkdir("/d")
            write(vault, "/d/b", b"y" * 2 * CHUNK_BYTES)
            fs.pipeline.flush()
            disk.go_on.release(1000)
    place.leave_copy()
    with place.opened() as found:
        assert found.listdir() == [b"a"]
    require_consistent(place.root)


@pytest.mark.parametrize("way", ["fsync", "commit"])
async def test_cancellation_at_any_checkpoint_leaves_nothing_held(
    fs: FileSystem, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    monkeypatch.setattr("vaultfs.fuse.durability.FAST_SYNC_NS", 0)
    vault = Vault(fs)
    durability = Durability(fs)
    number, was_cancelled = 0, True
    while was_cancelled:
        write(vault, f"/{number}", b"x" * 3 * CHUNK_BYTES if way == "commit" else b"x")
        was_cancelled = await _cancelled_at(number, getattr(durability, way))
        require_open(durability, fs)
        number += 1
    assert number >= (3 if way == "commit" else 2)
    write(vault, "/last", b"x" * 3 * CHUNK_BYTES)
    with trio.fail_after(20):
        await durability.commit()
    assert fs.committer.is_clean


async def _cancelled_at(number: int, call: Callable[[], object]) -> bool:
    """Run ``call``, cancelled at its checkpoint with this number; False if it has no more."""
    with trio.CancelScope() as scope:
        if number == 0:
            scope.cancel()
        instrument = _CancelAt(trio.lowlevel.current_task(), scope, number - 1)
        trio.lowlevel.add_instrument(instrument)
        try:
            await call()  # type: ignore[misc]
        finally:
            trio.lowlevel.remove_instrument(instrument)
        # Nothing to cancel any more: leave without a checkpoint.
    return scope.cancelled_caught


class _CancelAt(trio.abc.Instrument):
    """Cancels a scope when a task has gone to sleep for the n-th time."""

    def __init__(self, task: trio.lowlevel.Task, scope: trio.CancelScope, number: int) -> None:
        self._task = task
        self._scope = scope
        self._left = number

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        if task is not self._task:
            return
        if self._left == 0:
            self._scope.cancel()
        self._left -= 1


async def test_a_cancelled_commit_does_not_hold_up_the_others(fs: FileSystem) -> None:
    vault = Vault(fs)
    durability, disk = Durability(fs), Disk()
    write(vault, "/a", b"x" * 3 * CHUNK_BYTES)
    with disk.slow():
        async with trio.open_nursery() as nursery, trio.open_nursery() as first:
            first.start_soon(durability.commit)
            await disk.wait_for_syncs(1)
            nursery.start_soon(durability.commit)
            await trio.testing.wait_all_tasks_blocked()
            first.cancel_scope.cancel()
            disk.go_on.release(1000)
    require_open(durability, fs)
    assert fs.committer.is_clean


async def test_a_failed_commit_opens_the_gate(fs: FileSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    vault = Vault(fs)
    durability = Durability(fs)
    write(vault, "/a", b"x" * 3 * CHUNK_BYTES)

    def fail() -> None:
        raise StorageError("no")

    with monkeypatch.context() as patch:
        patch.setattr(fs.database, "commit", fail)
        with pytest.raises(StorageError):
            await durability.commit()
    require_open(durability, fs)
    with pytest.raises(StorageError, match="read-only"):
        write(vault, "/b", b"x")
    assert read(vault, "/a") == b"x" * 3 * CHUNK_BYTES
