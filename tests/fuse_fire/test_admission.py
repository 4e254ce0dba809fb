"""The limit of requests under way, with workers as pyfuse3 has them, on a pipe."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from vaultfs.fuse.admission import Admission
from vaultfs.fuse.polling import PollingWaiter, PyfuseTrio

MOST = 3


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for end in ends:
        os.close(end)


class Workers:
    """As many as there are requests, and one that waits; a request is a byte, which says how it waits.

    Args:
        substitute: stands for trio.
        admission: its limit.
        descriptor: where requests come from.
    """

    def __init__(self, substitute: PyfuseTrio, admission: Admission, descriptor: int) -> None:
        self.substitute = substitute
        self.admission = admission
        self.descriptor = descriptor
        self.lock = substitute.Lock()
        self.taken = b""
        self.go_on = trio.Event()
        self.excuse = trio.Event()

    async def serve(self) -> None:
        async with self.substitute.open_nursery() as nursery:

            async def worker() -> None:
                while True:
                    async with self.lock:
                        await self.substitute.lowlevel.wait_readable(self.descriptor)
                    kind = os.read(self.descriptor, 1)
                    self.taken += kind
                    nursery.start_soon(worker, name="worker")
                    await self.work(kind)
                    if kind == b"o":
                        return

            nursery.start_soon(worker, name="worker")

    async def work(self, kind: bytes) -> None:
        if kind == b"e":  # at once
            with self.admission.excused():
                await self.go_on.wait()
        elif kind == b"l":  # later
            await self.excuse.wait()
            with self.admission.excused():
                await self.go_on.wait()
        else:
            await self.go_on.wait()


@pytest.fixture(params=["polling", "plain"])
def workers(pipe: tuple[int, int], request: pytest.FixtureRequest) -> Workers:
    admission = Admission(MOST)
    waiter = PollingWaiter(longest_poll_ns=1000) if request.param == "polling" else None
    return Workers(PyfuseTrio(waiter, None, admission), admission, pipe[0])


@pytest.mark.parametrize(
    ("requests", "taken"),
    [("wwwww", 3), ("eeeeeeee", 8), ("ewewewew", 6), ("wwwe", 3), ("eeewww", 6), ("lllll", 3)],
)
async def test_only_so_many_that_count_are_taken(
    workers: Workers, pipe: tuple[int, int], requests: str, taken: int
) -> None:
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(workers.serve)
            os.write(pipe[1], requests.encode())
            await wait_all_tasks_blocked(0.05)
            assert workers.taken == requests[:taken].encode()
            workers.excuse.set()
            workers.go_on.set()
            await wait_all_tasks_blocked(0.05)
            assert workers.taken == requests.encode()
            nursery.cancel_scope.cancel()


async def test_who_is_excused_later_makes_room(workers: Workers, pipe: tuple[int, int]) -> None:
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(workers.serve)
            os.write(pipe[1], b"lllwwwww")
            await wait_all_tasks_blocked(0.05)
            assert workers.taken == b"lll"
            workers.excuse.set()
            await wait_all_tasks_blocked(0.05)
            assert workers.taken == b"lllwww"
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize("kind", [b"w", b"o"], ids=["comes back", "ends"])
async def test_a_worker_that_is_done_makes_room(workers: Workers, pipe: tuple[int, int], kind: bytes) -> None:
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(workers.serve)
            os.write(pipe[1], MOST * kind)
            await wait_all_tasks_blocked(0.05)
            first, workers.go_on = workers.go_on, trio.Event()
            os.write(pipe[1], MOST * b"w")
            await wait_all_tasks_blocked(0.05)
            assert workers.taken == MOST * kind
            first.set()
            await wait_all_tasks_blocked(0.05)
            assert workers.taken == MOST * kind + MOST * b"w"
            nursery.cancel_scope.cancel()


def test_who_was_excused_counts_again() -> None:
    admission = Admission(MOST)
    with admission.excused():
        assert admission.admits(MOST)
        assert not admission.admits(MOST + 1)
    assert admission.admits(MOST - 1)
    assert not admission.admits(MOST)
