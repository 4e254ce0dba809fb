from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from functools import partial

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from vaultfs.fuse import polling
from vaultfs.fuse.polling import BargingLock, PollingWaiter, PyfuseTrio


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reading, writing = os.pipe()
    yield reading, writing
    os.close(reading)
    os.close(writing)


async def test_lock_keeps_tasks_apart() -> None:
    lock = BargingLock()
    inside = 0
    passes = 0

    async def work() -> None:
        nonlocal inside, passes
        for _ in range(20):
            async with lock:
                inside += 1
                assert inside == 1
                await trio.lowlevel.checkpoint()
                inside -= 1
            passes += 1
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(work)
    assert passes == 100
    assert lock.waiting == 0


async def test_lock_survives_cancelled_waiters() -> None:
    lock = BargingLock()
    taken = 0

    async def wait(scope: trio.CancelScope) -> None:
        nonlocal taken
        with scope:
            async with lock:
                taken += 1

    scopes = [trio.CancelScope() for _ in range(6)]
    async with trio.open_nursery() as nursery:
        async with lock:
            for scope in scopes:
                nursery.start_soon(wait, scope)
            await wait_all_tasks_blocked()
            assert lock.waiting == 6
            for scope in scopes[:3]:
                scope.cancel()
        scopes[3].cancel()  # the release has chosen one already: the others must not be forgotten
    assert taken >= 2
    assert lock.waiting == 0


async def test_a_task_that_was_woken_but_has_not_run_still_waits() -> None:
    lock = BargingLock()

    async def wait() -> None:
        async with lock:
            pass

    async with trio.open_nursery() as nursery:
        async with lock:
            nursery.start_soon(wait)
            await wait_all_tasks_blocked()
        assert lock.waiting == 1
    assert lock.waiting == 0


async def test_free_lock_is_no_checkpoint() -> None:
    lock = BargingLock()
    with trio.CancelScope() as scope:
        scope.cancel()
        async with lock:
            pass
        async with lock:
            pass
    assert not scope.cancelled_caught


async def test_readable_descriptor_is_served_without_the_loop(pipe: tuple[int, int]) -> None:
    waiter = PollingWaiter()
    os.write(pipe[1], b"x")
    await waiter(pipe[0])
    for _ in range(10):
        await waiter(pipe[0])
    assert waiter.counts.hits == 11
    assert waiter.counts.sleeps == 0


async def test_sleeps_until_readable(pipe: tuple[int, int]) -> None:
    waiter = PollingWaiter()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(waiter, pipe[0])
        await wait_all_tasks_blocked()
        assert waiter.counts.sleeps == 1
        os.write(pipe[1], b"x")
    assert waiter.counts.hits == 0


async def test_stops_polling_when_idle_and_begins_again(pipe: tuple[int, int]) -> None:
    waiter = PollingWaiter(longest_poll_ns=1000)
    for _ in range(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(waiter, pipe[0])
            await trio.sleep(0.001)
            os.write(pipe[1], b"x")
        os.read(pipe[0], 1)
    assert waiter._budget_ns == 0
    waiter._longest_ns = 10**10  # now the same pause counts as short
    async with trio.open_nursery() as nursery:
        nursery.start_soon(waiter, pipe[0])
        await trio.sleep(0.001)
        os.write(pipe[1], b"x")
    assert waiter._budget_ns == 10**10


async def test_the_loop_gets_its_turn_under_endless_requests(
    pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = 0

    def tick() -> int:
        nonlocal clock
        clock += 100_000
        return clock

    monkeypatch.setattr(polling.time, "perf_counter_ns", tick)  # type: ignore[attr-defined]
    waiter = PollingWaiter()
    passes = 0

    async def count() -> None:
        nonlocal passes
        while True:
            passes += 1
            await trio.lowlevel.checkpoint()

    os.write(pipe[1], b"x")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(count)
        for _ in range(200):
            await waiter(pipe[0])
        nursery.cancel_scope.cancel()
    assert waiter.counts.sleeps == 0
    assert waiter.counts.turns >= 15
    assert passes >= waiter.counts.turns - 1


async def test_cancellation_arrives_under_endless_requests(pipe: tuple[int, int]) -> None:
    waiter = PollingWaiter()
    os.write(pipe[1], b"x")
    with trio.CancelScope() as scope:
        scope.cancel()
        while True:
            await waiter(pipe[0])
    assert scope.cancelled_caught


async def test_no_polling_while_another_worker_is_busy(pipe: tuple[int, int]) -> None:
    waiter = PollingWaiter(longest_poll_ns=10**12)  # would hang the test for a quarter of an hour
    lock = waiter.new_lock()

    async def wait() -> None:
        async with lock:
            await waiter(pipe[0])

    async with trio.open_nursery() as workers:
        workers.start_soon(trio.sleep, 0.2)  # a worker in the middle of a request
        workers.start_soon(wait)
        await wait_all_tasks_blocked()
        assert waiter.counts.sleeps == 1
        os.write(pipe[1], b"x")


async def test_idle_workers_do_not_count_as_busy(pipe: tuple[int, int]) -> None:
    waiter = PollingWaiter()
    lock = waiter.new_lock()
    seen: list[bool] = []

    async def hold() -> None:
        async with lock:
            await wait_all_tasks_blocked()
            seen.append(waiter._is_other_worker_busy())

    async def wait() -> None:
        async with lock:
            pass

    async with trio.open_nursery() as workers:
        workers.start_soon(hold)
        workers.start_soon(wait)
        workers.start_soon(wait)
    assert seen == [False]


async def test_notify_closing_ends_the_wait(pipe: tuple[int, int]) -> None:
    substitute = PyfuseTrio(PollingWaiter(), None)

    async def wait() -> None:
        with pytest.raises(substitute.ClosedResourceError):
            await substitute.lowlevel.wait_readable(pipe[0])

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await wait_all_tasks_blocked()
        substitute.lowlevel.notify_closing(pipe[0])


async def test_without_a_waiter_nothing_polls(pipe: tuple[int, int]) -> None:
    substitute = PyfuseTrio(None, None)
    os.write(pipe[1], b"x")
    await substitute.lowlevel.wait_readable(pipe[0])


def test_installed_puts_trio_back() -> None:
    names = vars(polling.pyfuse3)  # type: ignore[attr-defined]
    substitute = PyfuseTrio(None, None)
    with contextlib.suppress(ZeroDivisionError), polling.installed(substitute):
        assert names["trio"] is substitute
        raise ZeroDivisionError
    assert names["trio"] is trio


async def test_many_workers_share_one_descriptor(pipe: tuple[int, int]) -> None:
    """As pyfuse3 does: take the lock, wait, release, read, work; every byte is read once and nobody hangs."""
    waiter = PollingWaiter()
    lock = waiter.new_lock()
    os.set_blocking(pipe[0], False)
    read = 0

    async def worker(number: int) -> None:
        nonlocal read
        while True:
            async with lock:
                if read == 300:
                    return
                await waiter(pipe[0])
            assert os.read(pipe[0], 1) == b"x"
            read += 1
            if read == 300:
                os.write(pipe[1], b"x")  # lets whoever waits come back and see the end
            if read % (number + 2) == 0:
                await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        for number in range(4):
            nursery.start_soon(partial(worker, number))
        for _ in range(30):
            os.write(pipe[1], b"x" * 10)
            await trio.lowlevel.checkpoint()
    assert read >= 300


@pytest.mark.parametrize("waiter", [PollingWaiter(longest_poll_ns=0), None], ids=["polling", "plain"])
async def test_what_was_taken_back_before_the_task_ran_is_not_waited_for(
    pipe: tuple[int, int], waiter: PollingWaiter | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each time it would be read for nothing costs a buffer of pyfuse3's."""
    real = trio.lowlevel.wait_readable
    taken_back: list[bytes] = []

    async def late(descriptor: int) -> None:
        await real(descriptor)
        if len(taken_back) < 2:
            taken_back.append(os.read(descriptor, 1))

    monkeypatch.setattr(trio.lowlevel, "wait_readable", late)
    substitute = PyfuseTrio(waiter, None)
    is_readable = trio.Event()

    async def wait() -> None:
        await substitute.lowlevel.wait_readable(pipe[0])
        is_readable.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        for number in range(2):
            await wait_all_tasks_blocked()
            os.write(pipe[1], b"x")
            await wait_all_tasks_blocked(0.02)
            assert len(taken_back) == number + 1
        assert not is_readable.is_set()
        os.write(pipe[1], b"x")
    assert is_readable.is_set()
