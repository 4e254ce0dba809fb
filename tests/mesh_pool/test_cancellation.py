"""Cancelled at the first checkpoint, at the second, and so on until it runs through: the books are right every time.

The n-th checkpoint is that of any task, the pool's own included, so that a cancellation arrives at every moment of a
dial, a ping, a goodbye and a body, and not only of a lease.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from vaultfs.errors import RemoteUnreachableError
from vaultfs.mesh.backoff import Breakers
from vaultfs.mesh.pool import Pool, PoolLimits, open_pool

from .desk import A, B
from .network import FakeConnection, Network, name_of

FakePool = Pool[FakeConnection]
NARROW = PoolLimits(max_per_peer=1, max_total=2, max_idle=1, pipeline_depth=2)
Story = Callable[[FakePool, Network], Awaitable[None]]


class CancelAt(trio.abc.Instrument):
    """Cancels a scope when tasks have come to so many checkpoints since `arm`."""

    def __init__(self, checkpoint: int) -> None:
        self.left = checkpoint
        self.scope: trio.CancelScope | None = None

    def arm(self, scope: trio.CancelScope) -> None:
        self.scope = scope

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        if self.scope is not None and self.left:
            self.left -= 1
            if not self.left:
                self.scope.cancel()

    @property
    def was_reached(self) -> bool:
        return self.left == 0


async def body(pool: FakePool, network: Network) -> None:
    async with pool.lease(A) as connection:
        assert not connection.is_closed
        await connection.body()


async def small_requests(pool: FakePool, network: Network) -> None:
    for peer in (A, B):
        async with pool.lease(peer, is_shared=True) as connection:
            assert not connection.is_closed
            await trio.lowlevel.checkpoint()


async def after_a_long_pause(pool: FakePool, network: Network) -> None:
    """With a ping that is answered, and one that is not."""
    async with pool.lease(A) as connection:
        await connection.body()
    await trio.sleep(31)
    async with pool.lease(A, is_shared=True) as connection:
        connection.ping_s = 5
    await trio.sleep(31)
    async with pool.lease(A) as connection:
        await connection.body()


async def a_dial_that_fails(pool: FakePool, network: Network) -> None:
    network.refusals[B] = RemoteUnreachableError("nobody is there")
    try:
        async with pool.lease(B):
            raise AssertionError
    except RemoteUnreachableError as error:
        assert "nobody is there" in str(error)  # noqa: PT017  # cancelled, it raises nothing
    finally:
        network.refusals.clear()
    await trio.sleep(1)
    async with pool.lease(B) as connection:
        await connection.body()


async def somebody_elses_place(pool: FakePool, network: Network) -> None:
    """Goodbyes take a while, so that the next has to wait for the place."""
    for peer in (A, B, A):
        async with pool.lease(peer) as connection:
            connection.goodbye_s = 1
            await connection.body(1)


STORIES = [body, small_requests, after_a_long_pause, a_dial_that_fails, somebody_elses_place]


async def bystander(pool: FakePool) -> None:
    """Uses the same few connections, and must be served whatever happens to others."""
    for number in range(4):
        async with pool.lease((A, B)[number % 2], is_shared=number < 2) as connection:
            assert not connection.is_closed
            if number >= 2:
                await connection.body(2)


async def one_of_several(story: Story, cancel: CancelAt) -> None:
    """One task is cancelled, among others that go on."""
    network = Network(dial_s=0.01)
    async with open_pool(network.connect, NARROW, describe=name_of, breakers=Breakers(draw=lambda *_: 0.5)) as pool:
        async with trio.open_nursery() as nursery:
            with trio.CancelScope() as scope:
                cancel.arm(scope)
                if story is not a_dial_that_fails:
                    nursery.start_soon(bystander, pool)
                    nursery.start_soon(bystander, pool)
                await story(pool, network)
        await trio.sleep(12)  # whatever was begun is done, or given up
        await wait_all_tasks_blocked()
        assert pool.audit() == []
        counters = pool.snapshot().counters
        assert (counters.leases, counters.waiting, counters.opening, network.dialling) == (0, 0, 0, 0)
        assert counters.open == counters.idle == len(network.open()) <= 1
        assert counters.timeouts == 0
        for peer in (A, B):  # it can still be used
            async with pool.lease(peer) as connection:
                await connection.body()
    require_nothing_left(pool, network)


async def all_together(story: Story, cancel: CancelAt) -> None:
    """The pool is cancelled from outside, with all who use it."""
    network = Network(dial_s=0.01)
    pool: FakePool | None = None
    with trio.CancelScope() as scope:
        cancel.arm(scope)
        breakers = Breakers(draw=lambda *_: 0.5)
        async with (
            open_pool(network.connect, NARROW, describe=name_of, breakers=breakers) as pool,
            trio.open_nursery() as nursery,
        ):
            if story is not a_dial_that_fails:
                nursery.start_soon(bystander, pool)
            await story(pool, network)
    if pool is not None:
        require_nothing_left(pool, network)
    assert not network.open()


def require_nothing_left(pool: FakePool, network: Network) -> None:
    assert pool.audit() == []
    counters = pool.snapshot().counters
    assert (counters.open, counters.opening, counters.idle, counters.leases, counters.waiting) == (0, 0, 0, 0, 0)
    assert network.open() == []
    assert network.dialling == 0
    assert not any(connection.is_running for connection in network.connections)
    assert network.most <= NARROW.max_total


@pytest.mark.parametrize("who", [one_of_several, all_together])
@pytest.mark.parametrize("story", STORIES)
def test_cancelled_at_any_checkpoint(
    story: Story, who: Callable[[Story, CancelAt], Awaitable[None]], long_run: bool
) -> None:
    for _ in range(50 if long_run else 1):
        checkpoint = 0
        was_reached = True
        while was_reached:
            checkpoint += 1
            cancel = CancelAt(checkpoint)
            trio.run(who, story, cancel, clock=MockClock(autojump_threshold=0), instruments=[cancel])
            was_reached = cancel.was_reached
        assert checkpoint > 20, "it was never cancelled in the midst of anything"
