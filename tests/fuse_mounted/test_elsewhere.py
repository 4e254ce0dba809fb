"""Requests while segments lie elsewhere: who waits for a remote holds up nobody else.  A clone is filled meanwhile."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trio
import trio.testing
from pyfuse3 import EntryAttributes, FileHandleT, FUSEError, InodeT

from vaultfs.crypto.kdf import KdfParameters
from vaultfs.crypto.slots import Secret
from vaultfs.errors import (
    IntegrityError,
    NoSpaceError,
    ObjectMissingError,
    RemoteUnreachableError,
    VaultError,
)
from vaultfs.fuse import filling
from vaultfs.fuse.durability import Durability
from vaultfs.fuse.filling import BackgroundFill
from vaultfs.fuse.operations import VaultOperations
from vaultfs.fuse.read_around import ReadAround
from vaultfs.ids import SegmentName
from vaultfs.storage.layout import VaultLayout
from vaultfs.vault.api import Vault, open_vault
from vaultfs.vault.filesystem import FileSystem
from vaultfs.vault.opening import create_vault

CHUNK_BYTES = 4096
FILES = 6
KEY, _ = Secret.generate_recovery()
CONTEXT: Any = SimpleNamespace(uid=0, gid=0, pid=1, umask=0)


class Away:
    """Segments that are somewhere else, for reading and for filling.

    Attributes:
        answers: while it is not set, whoever wants something waits.
        failures: raised by the next requests, in order; None: that one succeeds.
    """

    def __init__(self, layout: VaultLayout) -> None:
        self.layout = layout
        self.segments: dict[str, bytes] = {}
        self.answers = threading.Event()
        self.answers.set()
        self.waiting = threading.Semaphore(0)
        self.failures: list[VaultError | None] = []
        self.brought: list[str] = []
        self.most_at_once = self.at_once = 0
        self.closed = 0
        self.lock = threading.Lock()

    def take(self) -> None:
        """Move every segment of a closed vault away."""
        for path in self.layout.segments.glob("??/*.seg"):
            self.segments[path.stem] = path.read_bytes()
            path.unlink()

    def _wait(self) -> None:
        self.waiting.release()
        assert self.answers.wait(60)
        with self.lock:
            failure = self.failures.pop(0) if self.failures else None
        if failure is not None:
            raise failure

    def fetch(self, name: SegmentName, offset: int, length: int) -> bytes:
        self._wait()
        return self.segments[name][offset : offset + length]

    @property
    def came_bytes(self) -> int:
        return sum(len(self.segments[name]) for name in self.brought)

    def bring(self, name: SegmentName, size: int) -> None:
        with self.lock:
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            self._wait()
            assert len(self.segments[name]) == size
            self.layout.sealed_path(name).write_bytes(self.segments[name])
            self.brought.append(name)
        finally:
            with self.lock:
                self.at_once -= 1

    def close(self) -> None:
        self.closed += 1
        self.answers.set()


@pytest.fixture
def away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Away:
    """A vault with some files, each in a segment of its own, that lies elsewhere."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setattr(filling, "RESERVE_BYTES", 0)
    path = tmp_path / "vault"
    create_vault(path, KEY, kdf=KdfParameters.weakest(), chunk_size_bytes=CHUNK_BYTES)
    for number in range(FILES):
        with open_vault(path, KEY) as vault, vault.open(f"/{number}", "wb") as file:
            file.write(b"%d" % number * CHUNK_BYTES * 2)
    away = Away(VaultLayout(path))
    away.take()
    return away


@pytest.fixture
def fs(away: Away) -> Iterator[FileSystem]:
    with open_vault(away.layout.root, KEY, source=away) as vault, vault.open("/here", "wb") as file:
        file.write(b"here" * CHUNK_BYTES)
        vault.commit()
        yield vault.filesystem


@pytest.fixture
def operations(fs: FileSystem) -> VaultOperations:
    return VaultOperations(fs, Durability(fs), ReadAround(is_on=False))


async def opened(operations: VaultOperations, name: str) -> FileHandleT:
    number = Vault(operations.fs).stat(name).st_ino
    return (await operations.open(InodeT(number), os.O_RDWR, CONTEXT)).fh


# --- requests


async def test_many_who_wait_hold_up_nobody(away: Away, operations: VaultOperations) -> None:
    """More of them than there are threads for everything else."""
    away.answers.clear()
    handles = [await opened(operations, f"/{number % FILES}") for number in range(60)]
    here = await opened(operations, "/here")
    found: list[bytes] = []

    async def read(handle: FileHandleT) -> None:
        found.append(bytes(await operations.read(handle, 0, 10)))

    async with trio.open_nursery() as nursery:
        for handle in handles:
            nursery.start_soon(read, handle)
        for _ in range(FILES):  # each segment is fetched once; the others wait for that
            await trio.to_thread.run_sync(away.waiting.acquire)
        with trio.fail_after(20):
            assert await operations.write(here, 100, b"new") == 3
            await operations.fsync(here, False)
            assert bytes(await operations.read(here, 98, 7))[2:5] == b"new"
            await operations.durability.commit()
        assert found == []
        away.answers.set()
    assert sorted(set(found)) == [b"%d" % number * 10 for number in range(FILES)]


async def test_cutting_within_a_chunk_holds_up_nobody(away: Away, operations: VaultOperations) -> None:
    handle = await opened(operations, "/3")
    number = Vault(operations.fs).stat("/3").st_ino
    away.answers.clear()

    async def cut() -> None:
        attributes = EntryAttributes()
        attributes.st_size = CHUNK_BYTES + 10
        fields: Any = SimpleNamespace(
            update_size=True,
            update_mode=False,
            update_uid=False,
            update_gid=False,
            update_atime=False,
            update_mtime=False,
            update_ctime=False,
        )
        await operations.setattr(InodeT(number), attributes, fields, handle, CONTEXT)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(cut)
        await trio.to_thread.run_sync(away.waiting.acquire)
        with trio.fail_after(20):
            here = await opened(operations, "/here")
            assert await operations.read(here, 0, 4) == b"here"
        assert Vault(operations.fs).stat("/3").st_size == 2 * CHUNK_BYTES
        away.answers.set()
    assert Vault(operations.fs).stat("/3").st_size == CHUNK_BYTES + 10
    assert await operations.read(handle, 0, 3 * CHUNK_BYTES) == b"3" * (CHUNK_BYTES + 10)
    await operations.durability.commit()
    assert await operations.read(handle, 0, 3 * CHUNK_BYTES) == b"3" * (CHUNK_BYTES + 10)


async def test_the_log_grows_slower_than_programs_try(
    away: Away, operations: VaultOperations, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = 100.0
    clock = SimpleNamespace(monotonic=lambda: now_s, time_ns=time.time_ns)
    monkeypatch.setattr("vaultfs.fuse.failed_reads.time", clock)
    handle = await opened(operations, "/1")
    for _ in range(30):
        away.failures = [RemoteUnreachableError("the remote is away")]
        with pytest.raises(FUSEError):
            await operations.read(handle, 0, 10)
        now_s += 0.125
    assert caplog.text.count("the remote is away") == 4
    assert caplog.text.count("(7 reads failed since the last such line)") == 3


async def test_what_cannot_be_had_is_an_io_error(
    away: Away, operations: VaultOperations, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever a remote says: a program that reads a file knows nothing of hosts."""
    monkeypatch.setattr("vaultfs.fuse.failed_reads.TELL_EVERY_S", 0.0)
    handle = await opened(operations, "/1")
    number = Vault(operations.fs).stat("/1").st_ino
    attributes = EntryAttributes()
    attributes.st_size = 10
    fields: Any = SimpleNamespace(update_size=True)
    for request in (
        lambda: operations.read(handle, 0, 10),
        lambda: operations.write(handle, 5, b"new"),
        lambda: operations.setattr(InodeT(number), attributes, fields, handle, CONTEXT),
    ):
        away.failures = [RemoteUnreachableError("the remote is away")]
        caplog.clear()
        with pytest.raises(FUSEError) as caught:
            await request()
        assert caught.value.errno == errno.EIO
        assert "the remote is away" in caplog.text
    assert bytes(await operations.read(handle, 0, 20)) == b"1" * 20


# --- filling


def files_of(away: Away) -> set[str]:
    return {path.stem for path in away.layout.segments.glob("??/*.seg")}


async def until_it_waits(fill: BackgroundFill) -> None:
    for _ in range(2000):
        if fill.state()["state"] == "waiting":
            break
        await trio.sleep(0.01)


async def test_a_clone_is_filled(fs: FileSystem, away: Away) -> None:
    assert Vault(fs).open("/2").read() == b"2" * CHUNK_BYTES * 2
    assert len(list(away.layout.cache.glob("*.part"))) == 1
    fill = BackgroundFill(fs, away)
    assert fill.state()["state"] == "looking"
    total = sum(map(len, away.segments.values()))
    await fill.run()
    assert sorted(away.brought) == sorted(away.segments)
    assert away.most_at_once <= filling.CONNECTIONS
    expected = {"state": "done", "done_bytes": total, "total_bytes": total, "left_s": None, "error": None}
    assert {**fill.state(), **expected} == fill.state()
    assert away.closed == 1
    assert list(away.layout.cache.glob("*.part")) == []
    away.answers.clear()
    for number in range(FILES):
        assert Vault(fs).open(f"/{number}").read() == b"%d" % number * CHUNK_BYTES * 2


async def test_nothing_to_fill(fs: FileSystem, away: Away) -> None:
    for name, content in away.segments.items():
        away.layout.sealed_path(SegmentName(name)).write_bytes(content)
    fill = BackgroundFill(fs, away)
    await fill.run()
    assert (away.brought, fill.state()["state"], fill.state()["total_bytes"]) == ([], "done", 0)


async def test_two_at_once_and_how_far_it_is(
    fs: FileSystem, away: Away, autojump_clock: trio.testing.MockClock
) -> None:
    autojump_clock.autojump_threshold = float("inf")
    away.answers.clear()
    fill = BackgroundFill(fs, away)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(fill.run)
        for _ in range(filling.CONNECTIONS):
            await trio.to_thread.run_sync(away.waiting.acquire)
        assert fill.state()["state"] == "filling"
        assert (fill.state()["done_bytes"], fill.state()["rate_bytes"], fill.state()["left_s"]) == (0, 0, None)
        away.brought += list(away.segments)[:3]  # as if so much had come
        autojump_clock.jump(2.0)
        await trio.testing.wait_all_tasks_blocked()
        state = fill.state()
        size = len(next(iter(away.segments.values())))
        assert state["rate_bytes"] == round(3 * size / 2)
        assert state["left_s"] == round(FILES * size / (3 * size / 2))
        away.brought.clear()
        away.answers.set()
    assert away.most_at_once == filling.CONNECTIONS
    assert fill.state()["state"] == "done"


@pytest.mark.parametrize("failure", [RemoteUnreachableError("away"), NoSpaceError("full")])
async def test_what_may_work_later_is_tried_later(
    fs: FileSystem,
    away: Away,
    failure: VaultError,
    autojump_clock: trio.testing.MockClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In pauses that grow; progress makes them small again."""
    autojump_clock.autojump_threshold = 0.05
    monkeypatch.setattr(filling, "CONNECTIONS", 1)
    monkeypatch.setattr(filling, "_SAMPLE_S", 1e6)
    away.failures = [*[failure] * 9, None, failure]
    began_s = trio.current_time()
    fill = BackgroundFill(fs, away)
    await fill.run()
    assert sorted(away.brought) == sorted(away.segments)
    assert fill.state()["state"] == "done"
    passed_s = trio.current_time() - began_s
    assert passed_s == pytest.approx(5 + 10 + 20 + 40 + 80 + 160 + 300 + 300 + 300 + 5)


async def test_waiting_is_told(fs: FileSystem, away: Away) -> None:
    away.failures = [RemoteUnreachableError("the remote is away")] * 2
    fill = BackgroundFill(fs, away)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(fill.run)
        await until_it_waits(fill)
        assert fill.state()["error"] == "the remote is away"
        nursery.cancel_scope.cancel()
    assert away.closed == 1


@pytest.mark.parametrize("failure", [ObjectMissingError("gone"), IntegrityError("damaged")])
async def test_what_nobody_has_is_left_out(
    fs: FileSystem, away: Away, failure: VaultError, caplog: pytest.LogCaptureFixture
) -> None:
    away.failures = [None, failure]
    fill = BackgroundFill(fs, away)
    await fill.run()
    assert len(away.brought) == FILES - 1
    assert (fill.state()["state"], fill.state()["error"]) == ("incomplete", str(failure))
    assert "but for 1 segments" in caplog.text


async def test_a_disk_that_is_nearly_full_is_left_to_programs(
    fs: FileSystem, away: Away, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(filling, "RESERVE_BYTES", 1 << 62)
    fill = BackgroundFill(fs, away)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(fill.run)
        await until_it_waits(fill)
        assert (away.brought, fill.state()["state"]) == ([], "waiting")
        assert "full" in fill.state()["error"]
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("what", ["before", "meanwhile"])
async def test_what_is_deleted_is_not_kept(fs: FileSystem, away: Away, what: str) -> None:
    vault = Vault(fs)
    if what == "meanwhile":
        away.answers.clear()

    def delete() -> None:
        for number in range(FILES):
            vault.remove(f"/{number}")
        while fs.files.sweep():
            pass
        vault.commit()
        vault.commit()

    fill = BackgroundFill(fs, away)
    real: Callable[[Any], bool] = fs.segments.is_needed
    async with trio.open_nursery() as nursery:
        if what == "before":
            sealed = fs.segments.sealed()
            delete()
            fs.segments.sealed = lambda: sealed  # type: ignore[method-assign]
        nursery.start_soon(fill.run)
        if what == "meanwhile":
            for _ in range(filling.CONNECTIONS):
                await trio.to_thread.run_sync(away.waiting.acquire)
            delete()
            away.answers.set()
    assert not any(real(each) for each in fs.segments.sealed() if each.name in away.segments)
    assert len(away.brought) == (0 if what == "before" else filling.CONNECTIONS)
    assert not files_of(away) & set(away.segments)
    assert (fill.state()["state"], fill.state()["total_bytes"] - fill.state()["done_bytes"]) == ("done", 0)


async def test_it_ends_at_once(fs: FileSystem, away: Away) -> None:
    """However silent the remote is; the thread that waits for it is left alone."""
    away.answers.clear()
    away.close = lambda: None  # type: ignore[method-assign]  # even if closing does not help
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(BackgroundFill(fs, away).run)
            for _ in range(filling.CONNECTIONS):
                await trio.to_thread.run_sync(away.waiting.acquire)
            nursery.cancel_scope.cancel()
    assert away.at_once == filling.CONNECTIONS
    away.answers.set()
