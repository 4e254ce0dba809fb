"""Requests that wait for others must not keep these from being read, however many they are."""

from __future__ import annotations

import os
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pyfuse3
import pytest
import trio
from pyfuse3 import FileHandleT

from vaultfs.fuse.admission import Admission
from vaultfs.fuse.durability import Durability
from vaultfs.fuse.operations import VaultOperations
from vaultfs.fuse.read_around import ReadAround
from vaultfs.fuse.session import MOST_WORKERS, MountRequest, serve
from vaultfs.vault.filesystem import FileSystem

from .conftest import FILE_BYTES

STEPS = 500
"""Steps of 10 ms: long enough for anything that happens at all."""

pytestmark = pytest.mark.timeout(60)


class Watched(VaultOperations):
    """Counts the reads that were served."""

    def __init__(self, fs: FileSystem, read_around: ReadAround) -> None:
        super().__init__(fs, Durability(fs), read_around)
        self.reads = 0
        self.was_read = threading.Event()

    async def read(self, fh: FileHandleT, off: int, size: int) -> bytes:
        self.reads += 1
        if self.reads > 1:
            self.was_read.set()
        return await super().read(fh, off, size)


class Waiters(ReadAround):
    """Counts who waits."""

    waiting = 0

    async def settled(self, inode: Any) -> None:
        self.waiting += 1
        try:
            await super().settled(inode)
        finally:
            self.waiting -= 1


@asynccontextmanager
async def mounted(operations: Watched, folder: Path, **rest: Any) -> AsyncIterator[None]:
    ready, stop = trio.Event(), trio.Event()
    request = MountRequest("a vault", folder)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(
            partial(serve, operations, request, on_ready=ready.set, stop=stop, handle_signals=False, **rest)
        )
        await ready.wait()
        try:
            yield
        finally:
            stop.set()


def read_page(path: Path, page: int) -> bytes:
    """One page, and nothing around it."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)
        return os.pread(descriptor, 4096, page * 4096)
    finally:
        os.close(descriptor)


async def for_a_while(is_over: Callable[[], bool]) -> None:
    """Wait until something is so, or it is clear that it never will be."""
    for _ in range(STEPS):
        if is_over():
            break
        await trio.sleep(0.01)


def open_for_writing(path: Path) -> None:
    os.close(os.open(path, os.O_RDWR))


async def test_who_waits_for_a_store_leaves_room_for_the_read_that_it_waits_for(
    fs: FileSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel keeps a page that a queued read wants locked; the store of what is around another one waits for it."""
    folder = tmp_path / "folder"
    folder.mkdir()
    path = folder / "file"
    admission = Admission(0)
    read_around = Waiters(is_on=True, admission=admission)
    operations = Watched(fs, read_around)
    began = threading.Event()

    def store(*_: object) -> None:
        began.set()
        operations.was_read.wait()

    monkeypatch.setattr(pyfuse3, "notify_store", store)
    limiter = trio.CapacityLimiter(100)
    try:
        async with mounted(operations, folder, admission=admission), trio.open_nursery() as nursery:
            try:
                await trio.to_thread.run_sync(read_page, path, 0)
                await trio.to_thread.run_sync(began.wait)
                for number in range(2 * MOST_WORKERS):
                    open_one = partial(trio.to_thread.run_sync, open_for_writing, path, limiter=limiter)
                    cut = partial(trio.to_thread.run_sync, os.truncate, path, FILE_BYTES, limiter=limiter)
                    nursery.start_soon(open_one if number else cut)
                await for_a_while(lambda: read_around.waiting == 2 * MOST_WORKERS)
                assert read_around.waiting == 2 * MOST_WORKERS
                nursery.start_soon(partial(trio.to_thread.run_sync, read_page, path, 100, limiter=limiter))
                await for_a_while(operations.was_read.is_set)
                assert operations.was_read.is_set(), "the read was never taken from the kernel"
            finally:
                operations.was_read.set()  # or the threads would never come back from the kernel
    finally:
        read_around.close()


async def test_the_limit_holds_for_all_others(fs: FileSystem, tmp_path: Path) -> None:
    """What waits at the gate may hold memory, so no more of it is read than the limit; in the end all is served."""
    folder = tmp_path / "folder"
    folder.mkdir()
    operations = Watched(fs, ReadAround(is_on=False))
    arrived = 0
    pass_gate = operations.durability.pass_gate

    async def counted() -> None:
        nonlocal arrived
        arrived += 1
        await pass_gate()

    operations.durability.pass_gate = counted  # type: ignore[method-assign]
    limiter = trio.CapacityLimiter(100)
    async with mounted(operations, folder, admission=Admission(0)), trio.open_nursery() as nursery:
        await trio.to_thread.run_sync(read_page, folder / "file", 0)
        gate = operations.durability.gate = trio.Event()
        for _ in range(2 * MOST_WORKERS):
            nursery.start_soon(lambda: trio.to_thread.run_sync(open_for_writing, folder / "file", limiter=limiter))
        try:
            await for_a_while(lambda: arrived == MOST_WORKERS)
            await trio.sleep(0.1)
            assert arrived == MOST_WORKERS
        finally:
            operations.durability.gate = None
            gate.set()


async def test_a_session_that_is_ended_by_force_ends_its_stores_first(
    fs: FileSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store that waits for a read which nobody serves any more would hold the device, and with it everybody."""
    folder = tmp_path / "folder"
    folder.mkdir()
    read_around = ReadAround(is_on=True)
    operations = Watched(fs, read_around)
    began = threading.Event()
    order: list[str] = []
    terminate = pyfuse3.terminate

    def store(*_: object) -> None:
        began.set()
        operations.was_read.wait()
        order.append("the store ended")

    def end_of_session() -> None:
        order.append("the session ended")
        terminate()

    monkeypatch.setattr(pyfuse3, "notify_store", store)
    monkeypatch.setattr(pyfuse3, "terminate", end_of_session)
    descriptor = -1

    async def before() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(read_around.end)
            nursery.start_soon(trio.to_thread.run_sync, os.pread, descriptor, 4096, 100 * 4096)

    try:
        async with mounted(operations, folder, grace_s=0.5, before_terminating=before):
            descriptor = await trio.to_thread.run_sync(os.open, folder / "file", os.O_RDONLY)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)
            await trio.to_thread.run_sync(os.pread, descriptor, 4096, 0)
            await trio.to_thread.run_sync(began.wait)
        assert order[0] == "the store ended", order
    finally:
        operations.was_read.set()
        read_around.close()
        with suppress(OSError):  # the session is over
            os.close(descriptor)
    assert "the session ended" in order
