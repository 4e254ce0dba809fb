"""The pool with its tasks, over peers in memory, in virtual time."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import asdict

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from vaultfs.errors import RemoteError, RemoteRefusedError, RemoteUnreachableError, UsageError
from vaultfs.ids import PeerId
from vaultfs.mesh.backoff import Breakers, Gate
from vaultfs.mesh.pool import Pool, PoolCounters, PoolLimits, open_pool

from .desk import A, B
from .network import FakeConnection, Network, name_of

FakePool = Pool[FakeConnection]


def pool_of(network: Network, limits: PoolLimits | None = None) -> AbstractAsyncContextManager[FakePool]:
    breakers = Breakers(draw=lambda _, bound: bound)
    return open_pool(network.connect, limits, describe=name_of, breakers=breakers)


def now(pool: FakePool) -> PoolCounters:
    assert pool.audit() == []
    return pool.snapshot().counters


async def hold(pool: FakePool, peer: PeerId, end: trio.Event, *, is_shared: bool = False) -> None:
    async with pool.lease(peer, is_shared=is_shared):
        await end.wait()


@asynccontextmanager
async def held(pool: FakePool, peer: PeerId, count: int = 1) -> AsyncIterator[None]:
    """So many are in use by others."""
    end = trio.Event()
    async with trio.open_nursery() as nursery:
        for _ in range(count):
            nursery.start_soon(hold, pool, peer, end)
        await wait_all_tasks_blocked()
        yield
        end.set()


async def test_a_connection_is_reused_and_runs_meanwhile() -> None:
    network = Network()
    async with pool_of(network) as pool:
        async with pool.lease(A) as first:
            assert first.is_running
        async with pool.lease(A) as second:
            assert second is first
        async with pool.lease(A, is_shared=True) as third, pool.lease(A, is_shared=True) as fourth:
            assert third is fourth is first
        assert network.dials == [A]
        assert (now(pool).reused, now(pool).shared, now(pool).idle) == (2, 1, 1)
    assert [connection.goodbyes for connection in network.connections] == [1]
    assert network.open() == []


async def test_what_an_exception_leaves_is_the_connections_decision() -> None:
    network = Network()
    async with pool_of(network) as pool:
        with pytest.raises(RemoteError, match="nonsense"):
            async with pool.lease(A) as first:
                raise RemoteError("nonsense")
        async with pool.lease(A) as second:
            assert second is first, "it does not say that it is in disorder"
        with trio.CancelScope() as scope:
            async with pool.lease(A) as third:
                scope.cancel()
                await third.body()
        assert third is first
        async with pool.lease(A) as fourth:
            assert fourth is not first, "its body was cut off"
        assert now(pool).open == 1


async def test_a_lease_can_throw_its_connection_away() -> None:
    network = Network()
    async with pool_of(network) as pool:
        async with pool.lease(A) as first:
            first.abort()
        assert now(pool).open == 0
        async with pool.lease(A) as second:
            assert second is not first


async def test_a_goodbye_keeps_new_requests_away_and_lets_old_ones_end() -> None:
    network = Network()
    async with pool_of(network) as pool:
        async with pool.lease(A, is_shared=True) as first:
            async with pool.lease(A, is_shared=True):
                first.is_leaving = True
            assert first in network.open()
            async with pool.lease(A, is_shared=True) as second:
                assert second is not first
        assert network.open() == [second]


async def test_idle_connections_end_after_their_time(autojump_clock: MockClock) -> None:
    network = Network()
    async with pool_of(network) as pool:
        for peer in (A, B):
            async with pool.lease(peer):
                pass
            await trio.sleep(100)
        await trio.sleep(99)
        assert now(pool).idle == 2
        await trio.sleep(2)
        assert now(pool).idle == 1
        assert [connection.goodbyes for connection in network.connections] == [1, 0]
        await trio.sleep(100)
        assert (now(pool).open, now(pool).closed_idle) == (0, 2)


async def test_an_idle_connection_that_the_peer_closes_is_removed() -> None:
    network = Network()
    async with pool_of(network) as pool:
        async with pool.lease(A) as connection:
            pass
        connection.cut()
        await wait_all_tasks_blocked()
        assert (now(pool).open, now(pool).closed_stale) == (0, 1)


async def test_one_long_idle_is_pinged(autojump_clock: MockClock) -> None:
    network = Network()
    async with pool_of(network) as pool:
        async with pool.lease(A) as first:
            pass
        await trio.sleep(31)
        async with pool.lease(A) as second:
            assert second is first
        assert first.pings == 1
        await trio.sleep(29)
        async with pool.lease(A):
            assert first.pings == 1


@pytest.mark.parametrize("error", [None, RemoteError("what?")])
async def test_one_that_does_not_answer_a_ping_is_replaced(
    autojump_clock: MockClock, error: RemoteError | None
) -> None:
    network = Network()
    async with pool_of(network) as pool:
        async with pool.lease(A) as first:
            first.ping_s, first.ping_error = (3, None) if error is None else (0, error)
        await trio.sleep(31)
        began_s = trio.current_time()
        async with pool.lease(A) as second:
            assert second is not first
            assert trio.current_time() - began_s == (2 if error is None else 0)
        assert first.is_cut
        assert first.goodbyes == 0
        assert (now(pool).ping_failures, now(pool).open) == (1, 1)


async def test_a_dial_that_takes_too_long_fails(autojump_clock: MockClock) -> None:
    network = Network(dial_s=11)
    async with pool_of(network) as pool:
        with pytest.raises(RemoteUnreachableError, match=r"^peer-A did not answer within 10 s$"):
            async with pool.lease(A):
                raise AssertionError
        assert trio.current_time() == 10
        assert network.dialling == 0


async def test_a_long_pause_is_told(autojump_clock: MockClock) -> None:
    network = Network(refusals={A: RemoteRefusedError("no")})
    async with pool_of(network) as pool:
        for pause_s, text in ((0.5, "^no$"), (1.0, "^no; it is tried again in 1 s$"), (0.0, "again in 2 s$")):
            with pytest.raises(RemoteRefusedError, match=text):
                async with pool.lease(A):
                    raise AssertionError
            await trio.sleep(pause_s)


async def test_dead_peers_cost_one_dial_in_all(autojump_clock: MockClock, caplog: pytest.LogCaptureFixture) -> None:
    """Who asks all peers for five things, one after the other, waits once, for all of them together."""
    network = Network(dial_s=60)

    async def ask(pool: FakePool, peer: PeerId) -> None:
        with pytest.raises(RemoteUnreachableError, match=r"did not answer within 10 s$"):
            async with pool.lease(peer, is_shared=True):
                raise AssertionError

    async with pool_of(network) as pool:
        for _ in range(5):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(ask, pool, A)
                nursery.start_soon(ask, pool, B)
    assert sorted(network.dials) == [A, B]
    assert trio.current_time() == 10
    assert caplog.messages == ["no answer yet from peer-A, peer-B; waiting for them"]


async def test_who_is_slow_is_told_once(autojump_clock: MockClock, caplog: pytest.LogCaptureFixture) -> None:
    async with pool_of(Network()) as pool:
        for pause_s in (2.9, 3.1, 3.1):
            with pool.waiting(A):
                await trio.sleep(pause_s)
            assert len(caplog.messages) == (pause_s > 3), pause_s
        async with pool.lease(B):
            await trio.sleep(100)
    assert caplog.messages == ["no answer yet from peer-A; waiting for it"]


async def test_of_several_waits_each_peer_is_told(autojump_clock: MockClock, caplog: pytest.LogCaptureFixture) -> None:
    async with pool_of(Network()) as pool:
        with pool.waiting(A), pool.waiting(A):
            await trio.sleep(2)
            with pool.waiting(B):
                await trio.sleep(4)
    assert caplog.messages == [f"no answer yet from {name}; waiting for it" for name in ("peer-A", "peer-B")]


async def test_a_connection_that_is_closed_from_the_first_is_a_failure(autojump_clock: MockClock) -> None:
    network = Network(closes_at_once=True)
    async with pool_of(network) as pool:
        with pytest.raises(RemoteUnreachableError, match=r"^peer-A closed the connection as soon as it began$"):
            async with pool.lease(A):
                raise AssertionError
        assert network.dials == [A], "it is not dialled again and again"
        assert network.open() == []
        assert now(pool).open_failures == 1


async def test_a_peer_that_fails_is_left_alone_for_a_while(autojump_clock: MockClock) -> None:
    network = Network(refusals={A: RemoteRefusedError("peer-A does not trust this machine")})
    async with pool_of(network) as pool:
        for _ in range(2):
            with pytest.raises(RemoteRefusedError, match=r"^peer-A does not trust this machine$"):
                async with pool.lease(A):
                    raise AssertionError
            await trio.sleep(0.2)
        assert network.dials == [A]
        state = pool.snapshot().breakers[A]
        assert (state.state, state.failures, round(state.retry_in_s, 3)) == (Gate.OPEN, 1, 0.1)
        assert state.last_error == "peer-A does not trust this machine"
        async with pool.lease(B):
            pass
        await trio.sleep(0.2)
        network.refusals.clear()
        async with pool.lease(A):
            pass
        assert pool.snapshot().breakers == {}


async def test_waiting_ends_at_the_deadline(autojump_clock: MockClock) -> None:
    async with pool_of(Network(), PoolLimits(max_per_peer=1)) as pool, held(pool, A):
        with pytest.raises(RemoteUnreachableError, match="no connection to peer-A was free within 5 s"):
            async with pool.lease(A, deadline_s=5):
                raise AssertionError
        assert trio.current_time() == 5
        with pytest.raises(RemoteUnreachableError, match="within 60 s"):
            async with pool.lease(A):
                raise AssertionError
        assert trio.current_time() == 65
        with pytest.raises(RemoteUnreachableError, match="within 0 s"):
            async with pool.lease(A, deadline_s=0):
                raise AssertionError
        assert now(pool).timeouts == 3


async def test_a_deadline_that_is_nearer_than_what_the_pool_waits_for_is_kept(autojump_clock: MockClock) -> None:
    async with pool_of(Network(), PoolLimits(max_per_peer=1)) as pool:
        async with pool.lease(B):
            pass
        await wait_all_tasks_blocked()
        async with held(pool, A):
            with pytest.raises(RemoteUnreachableError):
                async with pool.lease(A, deadline_s=1):
                    raise AssertionError
            assert trio.current_time() == 1


@pytest.mark.parametrize("deadline_s", [-1.0, float("nan")])
async def test_a_deadline_that_makes_no_sense_is_refused(deadline_s: float) -> None:
    async with pool_of(Network()) as pool:
        with pytest.raises(UsageError, match="wait"):
            async with pool.lease(A, deadline_s=deadline_s):
                raise AssertionError


async def test_the_total_limit_holds_for_many_who_want_many_peers(autojump_clock: MockClock) -> None:
    network = Network(dial_s=0.1)
    limits = PoolLimits(max_per_peer=2, max_total=5, max_idle=3)
    served = 0

    async def use(pool: FakePool, peer: PeerId, number: int) -> None:
        nonlocal served
        async with pool.lease(peer, is_shared=number % 3 == 0):
            assert pool.audit() == []
            await trio.sleep(0.01 * (number % 7))
        served += 1

    async with pool_of(network, limits) as pool:
        async with trio.open_nursery() as nursery:
            for number in range(200):
                nursery.start_soon(use, pool, PeerId(bytes([number % 11]) * 32), number)
        assert served == 200
        await wait_all_tasks_blocked()
        assert now(pool).idle == len(network.open()) == 3
    assert network.most == 5
    assert pool.snapshot().counters.leases == 0


async def test_eleven_bodies_over_four_connections(autojump_clock: MockClock) -> None:
    network = Network()
    order = []

    async def use(pool: FakePool, number: int) -> None:
        async with pool.lease(A):
            order.append(number)
            await trio.sleep(1 + number / 100)

    async with pool_of(network) as pool, trio.open_nursery() as nursery:
        for number in range(11):
            nursery.start_soon(use, pool, number)
            await wait_all_tasks_blocked()
    assert order == list(range(11))
    assert 3 < trio.current_time() < 4
    assert len(network.dials) == network.most == 4


async def test_at_the_end_connections_in_use_are_closed_and_who_waits_is_told(autojump_clock: MockClock) -> None:
    network = Network(dial_s=5)
    ends = trio.Event()
    told: list[str] = []

    async def wait(pool: FakePool, peer: PeerId) -> None:
        with pytest.raises(RemoteUnreachableError) as caught:
            async with pool.lease(peer):
                raise AssertionError
        told.append(str(caught.value))

    async with trio.open_nursery() as nursery:
        async with pool_of(network, PoolLimits(max_per_peer=1)) as pool:
            nursery.start_soon(hold, pool, A, ends)
            await trio.sleep(6)
            nursery.start_soon(wait, pool, A)
            nursery.start_soon(wait, pool, B)
            await wait_all_tasks_blocked()
            assert now(pool).waiting == 2
        assert trio.current_time() == 6, "nothing was waited for"
        assert (network.dialling, network.open()) == (0, [])
        counters = pool.snapshot().counters
        assert (counters.open, counters.opening, counters.idle, counters.leases, counters.waiting) == (0, 0, 0, 0, 0)
        nursery.start_soon(wait, pool, A)
        await wait_all_tasks_blocked()
        ends.set()
    assert sorted(told) == [
        f"there is no connection to {peer}: this program is closing its connections"
        for peer in ("peer-A", "peer-A", "peer-B")
    ]
    assert pool.audit() == []


async def test_a_dial_that_is_given_up_is_no_failure_of_the_peer(autojump_clock: MockClock) -> None:
    network = Network(dial_s=5)
    async with pool_of(network, PoolLimits(max_per_peer=1, max_total=1, max_idle=1)) as pool:
        with trio.move_on_after(1):
            async with pool.lease(A):
                raise AssertionError
        async with pool.lease(B):
            assert trio.current_time() == 6
        snapshot = pool.snapshot()
        assert (snapshot.breakers, snapshot.counters.open_failures, snapshot.counters.evicted) == ({}, 0, 1)


async def test_a_goodbye_that_takes_too_long_is_cut_short(autojump_clock: MockClock) -> None:
    network = Network()
    async with pool_of(network) as pool, pool.lease(A) as slow, pool.lease(B) as polite:
        slow.goodbye_s, polite.goodbye_s = 1000, 1
    assert trio.current_time() == 3
    assert (slow.goodbyes, polite.goodbyes) == (0, 1)
    assert network.open() == []


async def test_an_idle_connection_that_cannot_say_goodbye_gives_its_place_all_the_same(
    autojump_clock: MockClock,
) -> None:
    network = Network()
    async with pool_of(network, PoolLimits(max_per_peer=1, max_total=1, max_idle=1)) as pool:
        async with pool.lease(A) as slow:
            slow.goodbye_s = 1000
        async with pool.lease(B) as rude:
            assert trio.current_time() == 3
            rude.goodbye_error = RemoteUnreachableError("it is gone")
        async with pool.lease(A):
            assert trio.current_time() == 3
        assert network.most == 1
        assert now(pool).evicted == 2
    assert network.open() == []


async def test_cancelled_from_outside_it_still_ends_politely(autojump_clock: MockClock) -> None:
    network = Network()
    with trio.CancelScope() as scope:
        async with pool_of(network) as pool:
            async with pool.lease(A) as connection, pool.lease(B) as idle:
                connection.goodbye_s = idle.goodbye_s = 1
            async with pool.lease(A):
                scope.cancel()
                with trio.CancelScope(shield=True):
                    await trio.sleep(1)
                assert connection.is_running, "whoever holds a connection can still say what he must"
                await trio.sleep_forever()
    assert scope.cancelled_caught
    assert trio.current_time() == 2
    assert (connection.goodbyes, idle.goodbyes) == (1, 1)


async def test_an_error_of_the_block_is_raised_as_it_is() -> None:
    with pytest.raises(RemoteError, match=r"^mine$"):
        async with pool_of(Network()) as pool, pool.lease(A):
            raise RemoteError("mine")
    with pytest.raises(KeyboardInterrupt):
        async with pool_of(Network()):
            raise KeyboardInterrupt


async def test_a_group_of_the_block_stays_a_group() -> None:
    with pytest.raises(ExceptionGroup) as caught:
        async with pool_of(Network()):
            raise ExceptionGroup("two", [ValueError("one"), ValueError("other")])
    assert len(caught.value.exceptions) == 2


async def test_an_error_of_the_block_and_a_bug_are_both_raised() -> None:
    async def fail_twice() -> None:
        async with pool_of(Network()) as pool, pool.lease(A) as connection:
            connection.run_error = ZeroDivisionError("a bug")
            connection.cut()
            raise RemoteError("mine")

    with pytest.raises(ExceptionGroup) as caught:
        await fail_twice()
    assert {type(error) for error in caught.value.exceptions} == {ZeroDivisionError, RemoteError}


async def test_a_snapshot_can_be_written_as_json(autojump_clock: MockClock) -> None:
    network = Network(refusals={A: RemoteError("nonsense")})
    async with pool_of(network) as pool:
        with pytest.raises(RemoteError):
            async with pool.lease(A):
                raise AssertionError
        snapshot = pool.snapshot()
        states = json.loads(json.dumps([asdict(state) for state in snapshot.breakers.values()]))
        assert states == [{"state": "open", "failures": 1, "retry_in_s": 0.5, "last_error": "nonsense"}]
        assert json.loads(json.dumps(asdict(snapshot.counters)))["open_failures"] == 1
