"""Who wants to write a file waits for one store at most, however many readers go on."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pyfuse3
import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from vaultfs.fuse.admission import Admission
from vaultfs.fuse.read_around import BACKLOG, PAGE_BYTES, ReadAround
from vaultfs.ids import InodeId

ONE, OTHER = InodeId(1), InodeId(2)
CHUNK = bytes(8 * PAGE_BYTES)


class Kernel:
    """Takes stores, when it may."""

    def __init__(self) -> None:
        self.began = threading.Semaphore(0)
        self.go_on = threading.Event()
        self.stored: list[int] = []

    def store(self, inode: int, _offset: int, _data: Any) -> None:
        self.began.release()
        assert self.go_on.wait(20)
        self.stored.append(inode)


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    kernel = Kernel()
    monkeypatch.setattr(pyfuse3, "notify_store", kernel.store)
    return kernel


@pytest.fixture
def admission() -> Admission:
    return Admission(1)


@pytest.fixture
def read_around(kernel: Kernel, admission: Admission) -> Iterator[ReadAround]:
    read_around = ReadAround(is_on=True, admission=admission)
    yield read_around
    kernel.go_on.set()
    read_around.close()


def offer(read_around: ReadAround, inode: InodeId) -> None:
    """The chunk's first page was read."""
    read_around.offer(inode, 0, CHUNK, 0, PAGE_BYTES)


async def test_what_has_not_begun_is_dropped_and_nothing_new_begins(
    kernel: Kernel, admission: Admission, read_around: ReadAround
) -> None:
    for inode in (ONE, ONE, OTHER, ONE):
        offer(read_around, inode)
    await trio.to_thread.run_sync(kernel.began.acquire)
    async with trio.open_nursery() as nursery:
        for _ in range(2):
            nursery.start_soon(read_around.settled, ONE)
        await wait_all_tasks_blocked()
        assert admission.admits(2)  # both that wait are excused
        assert not admission.admits(3)
        for _ in range(BACKLOG):
            offer(read_around, ONE)
        offer(read_around, OTHER)
        kernel.go_on.set()
        for _ in range(2):
            await trio.to_thread.run_sync(kernel.began.acquire)
    assert read_around.is_settled(ONE)
    await read_around.end()
    assert kernel.stored == [ONE, OTHER, OTHER]
    assert not admission.admits(1)


async def test_what_is_settled_is_not_waited_for(kernel: Kernel, read_around: ReadAround) -> None:
    offer(read_around, ONE)
    await trio.to_thread.run_sync(kernel.began.acquire)
    await read_around.settled(OTHER)
    assert not kernel.stored
    kernel.go_on.set()
    await read_around.settled(ONE)
    offer(read_around, ONE)  # nobody waits any more
    await trio.to_thread.run_sync(kernel.began.acquire)
    await read_around.settled(ONE)
    assert kernel.stored == [ONE, ONE]


async def test_who_gives_up_leaves_nothing_behind(kernel: Kernel, read_around: ReadAround) -> None:
    offer(read_around, ONE)
    await trio.to_thread.run_sync(kernel.began.acquire)
    with trio.move_on_after(0.01):
        await read_around.settled(ONE)
    offer(read_around, ONE)
    kernel.go_on.set()
    await trio.to_thread.run_sync(kernel.began.acquire)  # the second is made
    await read_around.settled(ONE)


async def test_the_end_begins_nothing_more(kernel: Kernel, read_around: ReadAround) -> None:
    offer(read_around, ONE)
    await trio.to_thread.run_sync(kernel.began.acquire)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(read_around.end)
        await wait_all_tasks_blocked()
        assert not read_around.is_on
        kernel.go_on.set()
    assert read_around.is_settled(ONE)
    assert kernel.stored == [ONE]
