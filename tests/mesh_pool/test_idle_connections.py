"""Idle connections end, are pinged, and are doubted; closed ones are not given to anybody."""

from __future__ import annotations

from vaultfs.mesh.pool_actions import Abort, Check
from vaultfs.mesh.pool_records import ConnectionId, PoolLimits

from .desk import A, B, Desk


def test_only_idle_connections_count_for_the_limit_of_idle_ones() -> None:
    desk = Desk(PoolLimits(max_per_peer=4, max_total=8, max_idle=2))
    leases = [desk.have(peer) for peer in (A, A, A, A, B, B)]
    desk.release(leases[0])
    desk.release(leases[4])
    assert len(desk.idle()) == 2, "four in use are none of its business"
    line = desk.held[leases[0]] if leases[0] in desk.held else desk.idle(A)[0]
    desk.now_s += 1
    desk.release(leases[5])
    assert desk.leaving() == [line], "the one nobody used for longest"
    assert desk.policy.counters().closed_idle == 1


def test_an_idle_connection_ends_after_its_time() -> None:
    desk = Desk()
    lease = desk.have(A)
    desk.pass_time(1000)
    assert lease in desk.held, "one in use does not"
    desk.release(lease)
    desk.pass_time(299.9)
    assert len(desk.idle()) == 1
    desk.pass_time(0.2)
    assert len(desk.leaving()) == 1
    assert desk.policy.counters().closed_idle == 1
    assert desk.policy.counters().idle == 0


def test_one_long_idle_is_pinged_first() -> None:
    desk = Desk()
    desk.release(desk.have(A))
    desk.now_s += 30
    desk.release(desk.ask(A))
    assert not desk.pinged()
    desk.now_s += 30.5
    lease = desk.ask(A)
    (connection,) = desk.pinged()
    assert desk.log[-1] == Check(connection)
    desk.answer(connection, is_alive=True)
    assert desk.held == {lease: connection}
    assert desk.policy.counters().pings == 1


def test_while_one_is_pinged_for_somebody_nothing_is_dialled_for_him() -> None:
    desk = Desk()
    desk.release(desk.have(A))
    desk.now_s += 31
    desk.ask(A)
    desk.ask(B)
    assert len(desk.pinged(A)) == 1
    assert not desk.dialled(A)


def test_a_ping_counts_as_use_when_the_one_who_wanted_it_has_gone() -> None:
    desk = Desk()
    desk.release(desk.have(A))
    desk.now_s += 290
    desk.cancel(desk.ask(A))
    desk.answer(desk.pinged()[0], is_alive=True)
    desk.now_s += 29
    assert desk.ask(A) in desk.held


def test_a_ping_without_an_answer_condemns_those_idle_for_longer() -> None:
    desk = Desk()
    leases = [desk.have(A) for _ in range(3)]
    lines = [desk.held[lease] for lease in leases]
    other = desk.have(B)
    desk.release(leases[0])
    desk.release(leases[1])
    desk.release(other)
    desk.now_s += 31
    lease = desk.ask(A)
    desk.answer(desk.pinged(A)[0], is_alive=False)
    assert {lines[0], lines[1]} == {action.connection for action in desk.log if isinstance(action, Abort)}
    assert len(desk.dialled(A)) == 1
    assert lease in desk.waiting
    assert len(desk.idle(B)) == 1, "another peer's is not suspected"
    counters = desk.policy.counters()
    assert (counters.ping_failures, counters.closed_stale) == (1, 2)


def test_one_used_a_moment_ago_is_not_condemned_with_one_that_was_not() -> None:
    desk = Desk()
    old, young = desk.have(A), desk.have(A)
    desk.release(old)
    desk.now_s += 31
    desk.ask(A)
    desk.release(young)
    fresh = desk.policy.counters()
    assert fresh.leases == 1, "it went to the one who waited for the ping"
    desk.release(next(iter(desk.held)))
    desk.answer(desk.pinged()[0], is_alive=False)
    assert len(desk.idle(A)) == 1


def test_when_one_fails_in_use_the_idle_ones_are_doubted() -> None:
    """A peer that has gone silent would cost the time for an answer on each of its connections, one after the other."""
    desk = Desk()
    leases = [desk.have(A) for _ in range(3)]
    broken, *others = (desk.held[lease] for lease in leases)
    elsewhere = desk.have(B)
    for lease in (*leases[1:], elsewhere):
        desk.release(lease)
    desk.lines[broken].is_closed = True
    desk.release(leases[0])
    assert desk.ask(B) in desk.held, "another peer's are as good as before"
    lease = desk.ask(A)
    assert lease in desk.waiting
    desk.answer(desk.pinged(A)[0], is_alive=False)
    assert {broken, *others} == {action.connection for action in desk.log if isinstance(action, Abort)}
    assert len(desk.dialled(A)) == 1


def test_one_that_breaks_in_use_casts_a_doubt_that_an_answer_lifts() -> None:
    desk = Desk()
    first, second = desk.have(A), desk.have(A)
    desk.release(second)
    desk.end(desk.held[first])
    desk.release(first)
    waits = desk.ask(A)
    desk.answer(desk.pinged(A)[0], is_alive=True)
    assert waits in desk.held
    desk.release(waits)
    assert desk.ask(A) in desk.held


def test_one_that_ends_while_nobody_uses_it_casts_no_doubt() -> None:
    desk = Desk()
    leases = [desk.have(A) for _ in range(2)]
    first = desk.held[leases[0]]
    for lease in leases:
        desk.release(lease)
    desk.end(first)
    assert desk.ask(A) in desk.held


def test_a_closed_connection_is_neither_reused_nor_joined() -> None:
    desk = Desk()
    desk.release(desk.have(A))
    (idle,) = desk.idle()
    desk.lines[idle].is_closed = True
    desk.ask(A)
    assert idle not in desk.lines
    assert len(desk.dialled(A)) == 1
    assert desk.policy.counters().closed_stale == 1
    small = desk.have(B, shared=True)
    leaving = desk.held[small]
    desk.lines[leaving].is_closed = True
    late = desk.ask(B, shared=True)
    assert late in desk.waiting
    assert leaving in desk.lines, "the first may get its answer yet"
    desk.release(small)
    assert leaving not in desk.lines


def test_those_who_share_a_closed_connection_get_their_answers() -> None:
    desk = Desk()
    first, second = desk.have(A, shared=True), desk.have(A, shared=True)
    connection = desk.held[first]
    desk.lines[connection].is_closed = True
    desk.release(first)
    assert connection in desk.lines
    desk.release(second)
    assert desk.log[-1] == Abort(connection)


def test_one_that_comes_back_closed_makes_room_for_who_waits() -> None:
    desk = Desk(PoolLimits(max_per_peer=1))
    broken = desk.have(A)
    desk.ask(A)
    desk.lines[desk.held[broken]].is_closed = True
    desk.release(broken)
    assert len(desk.dialled(A)) == 1


def test_one_that_breaks_in_use_makes_room_at_once() -> None:
    desk = Desk(PoolLimits(max_per_peer=1))
    broken = desk.have(A)
    desk.ask(A)
    desk.end(desk.held[broken])
    assert len(desk.dialled(A)) == 1
    assert desk.policy.counters().leases == 1, "the lease lasts until it is given back"
    desk.release(broken)
    assert desk.policy.counters().leases == 0


def test_a_peer_that_closes_an_idle_connection_is_noticed() -> None:
    desk = Desk()
    desk.release(desk.have(A))
    desk.end(desk.idle()[0])
    desk.policy.closed(ConnectionId(1), desk.now_s)
    counters = desk.policy.counters()
    assert (counters.open, counters.idle, counters.closed_stale) == (0, 0, 1)
