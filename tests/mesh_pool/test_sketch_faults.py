"""Faults of the sketch that this project began with: each has a test that fails if it comes back."""

from __future__ import annotations

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from vaultfs.errors import RemoteUnreachableError
from vaultfs.mesh.pool import PoolLimits, open_pool

from .desk import A, B
from .network import FakeConnection, Network, name_of
from .test_pool import now, pool_of


async def test_active_counts_do_not_leak() -> None:
    """Whatever ends a lease or keeps it from beginning, it is counted no more: else the pool is full one day."""
    network = Network()
    async with pool_of(network, PoolLimits(max_per_peer=1, max_total=1, max_idle=1)) as pool:
        for _ in range(3):
            with pytest.raises(ZeroDivisionError):
                async with pool.lease(A):
                    raise ZeroDivisionError
            with trio.CancelScope() as scope:
                async with pool.lease(A):
                    scope.cancel()
                    await trio.sleep_forever()
            async with pool.lease(A) as connection:
                connection.cut()
                await wait_all_tasks_blocked()
            network.refusals[B] = RemoteUnreachableError("nobody is there")
            with pytest.raises(RemoteUnreachableError):
                async with pool.lease(B):
                    raise AssertionError
            async with pool.lease(A):
                with trio.move_on_after(0):
                    async with pool.lease(B):
                        raise AssertionError
            async with pool.lease(A):
                pass
            counters = now(pool)
            assert (counters.leases, counters.waiting, counters.open, counters.idle) == (0, 0, 1, 1)


async def test_the_limit_for_open_connections_is_kept() -> None:
    """Many ask in the same moment, before the first dial is done; dials count as well as connections."""
    network = Network()

    async def use(peer: object) -> None:
        async with pool.lease(peer):  # type: ignore[arg-type]  # of two peers
            await trio.lowlevel.checkpoint()

    async with pool_of(network, PoolLimits(max_per_peer=2, max_total=3, max_idle=3)) as pool:
        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(use, A)
                nursery.start_soon(use, B)
        assert network.most == 3
        assert max(network.dials.count(A), network.dials.count(B)) >= 2


@pytest.mark.parametrize("where", ["dialling", "running", "pinging"])
async def test_an_error_that_nobody_expected_is_not_swallowed(where: str, autojump_clock: object) -> None:
    """A bug, in the connector or a connection, is no failure of the network: it ends the pool, and is raised."""
    network = Network(refusals={A: ZeroDivisionError("a bug")} if where == "dialling" else {})

    async def use() -> None:
        async with open_pool(network.connect, describe=name_of) as pool:
            async with pool.lease(A) as connection:
                spoil(connection)
            await trio.sleep(31)
            async with pool.lease(A):
                await trio.sleep_forever()

    def spoil(connection: FakeConnection) -> None:
        if where == "running":
            connection.run_error = ZeroDivisionError("a bug")
            connection.cut()
        else:
            connection.ping_error = ZeroDivisionError("a bug")  # type: ignore[assignment]  # which it must not be

    with pytest.raises(ZeroDivisionError, match=r"^a bug$"):  # as it was, and not as a failure of the peer
        await use()
    assert network.open() == []
    assert network.dialling == 0


async def test_cancellation_is_not_swallowed() -> None:
    network = Network(dial_s=1000)
    with trio.CancelScope() as scope:
        async with pool_of(network) as pool:
            scope.cancel()
            async with pool.lease(A):
                raise AssertionError
    assert scope.cancelled_caught
    assert network.dialling == 0
