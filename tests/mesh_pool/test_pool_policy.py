"""The decisions one by one; what holds for all of them in any order is in test_policy_model.py."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest

from vaultfs.errors import RemoteRefusedError, UsageError
from vaultfs.ids import PeerId
from vaultfs.mesh.backoff import Failure, Gate
from vaultfs.mesh.pool_actions import Abort, Assign, Check, Fail, GiveUp, Open, Reason, SayGoodbye
from vaultfs.mesh.pool_policy import PoolPolicy
from vaultfs.mesh.pool_queue import Waiter
from vaultfs.mesh.pool_records import ConnectionId, PoolLimits

from .desk import DEAD, A, B, C, D, Desk

REFUSED = Failure(RemoteRefusedError, "it does not trust this machine")


def test_the_first_lease_dials_and_the_next_reuses() -> None:
    desk = Desk()
    lease = desk.ask(A)
    (connection,) = desk.dialled(A)
    assert desk.log == [Open(connection, A)]
    desk.open(connection)
    assert desk.log[1:] == [Assign(lease, connection)]
    desk.release(lease)
    again = desk.ask(A)
    assert desk.held == {again: connection}
    counters = desk.policy.counters()
    assert (counters.opened, counters.reused, counters.waited, counters.leases) == (1, 1, 1, 1)


def test_the_most_recently_used_is_reused_first() -> None:
    desk = Desk()
    leases = [desk.have(A) for _ in range(3)]
    lines = [desk.held[lease] for lease in leases]
    for index in (1, 2, 0):
        desk.now_s += 1
        desk.release(leases[index])
    assert desk.held[desk.ask(A)] == lines[0]
    assert desk.held[desk.ask(A)] == lines[2]
    assert desk.held[desk.ask(A)] == lines[1]


def test_the_limit_for_a_peer_counts_dials_and_what_is_being_closed() -> None:
    desk = Desk(PoolLimits(max_per_peer=2))
    desk.release(desk.have(A))
    desk.pass_time(301)
    (leaving,) = desk.leaving(A)
    desk.ask(A)
    second = desk.ask(A)
    (dialled,) = desk.dialled(A)
    desk.end(leaving)
    assert len(desk.dialled(A)) == 2
    desk.ask(A)
    assert len(desk.dialled(A)) == 2
    desk.open(dialled)
    desk.open(desk.dialled(A)[0])
    assert second in desk.held
    assert len(desk.waiting) == 1
    assert not desk.dialled(A)


def test_who_waits_for_a_full_peer_does_not_hold_up_another_peer() -> None:
    desk = Desk(PoolLimits(max_per_peer=1))
    desk.have(A)
    waits = desk.ask(A)
    other = desk.ask(B)
    desk.open(desk.dialled(B)[0])
    assert waits in desk.waiting
    assert other in desk.held


def test_waiting_is_in_the_order_of_coming() -> None:
    desk = Desk(PoolLimits(max_per_peer=1))
    holder = desk.have(A)
    line = [desk.ask(A) for _ in range(5)]
    desk.cancel(line.pop(2))
    served = []
    for _ in range(4):
        desk.release(holder)
        (holder,) = desk.held
        served.append(holder)
    assert served == line


def test_the_total_limit_evicts_the_longest_idle_of_another_peer() -> None:
    desk = Desk(PoolLimits(max_per_peer=2, max_total=2, max_idle=2))
    of_a, of_b = desk.have(A), desk.have(B)
    line_a, line_b = desk.held[of_a], desk.held[of_b]
    desk.release(of_b)
    desk.now_s += 1
    desk.release(of_a)
    lease = desk.ask(C)
    assert desk.leaving() == [line_b], "the one that nobody used for longer"
    assert not desk.dialled(), "its place is not free yet"
    second = desk.ask(C)
    assert desk.leaving() == [line_a, line_b]
    third = desk.ask(C)
    desk.end(line_b)
    desk.open(desk.dialled(C)[0])
    assert lease in desk.held
    desk.end(line_a)
    desk.open(desk.dialled(C)[0])
    assert second in desk.held
    assert third in desk.waiting
    assert desk.policy.counters().evicted == 2


def test_one_eviction_is_enough_for_many_small_requests() -> None:
    desk = Desk(PoolLimits(max_per_peer=2, max_total=4, max_idle=4))
    for lease in [desk.have(A), desk.have(A), desk.have(B), desk.have(B)]:
        desk.release(lease)
    small = [desk.ask(C, shared=True) for _ in range(10)]
    (leaving,) = desk.leaving()
    desk.end(leaving)
    desk.open(desk.dialled(C)[0])
    assert set(small) == set(desk.held)


def test_no_more_is_evicted_for_a_peer_than_it_may_have() -> None:
    desk = Desk(PoolLimits(max_per_peer=2, max_total=4, max_idle=4))
    for lease in [desk.have(A), desk.have(A), desk.have(B), desk.have(B)]:
        desk.release(lease)
    for _ in range(4):
        desk.ask(C)
    assert len(desk.leaving()) == 2


def test_nobody_starves_behind_a_busy_peer() -> None:
    """Somebody always waits for A; B gets its turn all the same."""
    desk = Desk(PoolLimits(max_per_peer=1, max_total=1, max_idle=1))
    holder = desk.have(A)
    behind = desk.ask(A)
    other = desk.ask(B)
    late = desk.ask(A)
    desk.release(holder)
    assert behind in desk.held
    desk.release(behind)
    assert late in desk.waiting, "B was there before it"
    desk.end(desk.leaving(A)[0])
    desk.open(desk.dialled(B)[0])
    assert other in desk.held


def test_sharing_goes_on_while_a_body_will_make_room_for_who_waits() -> None:
    desk = Desk(PoolLimits(max_per_peer=2, max_total=2, max_idle=2))
    body = desk.have(A)
    desk.have(B, shared=True)
    waits = desk.ask(C)
    assert desk.ask(B, shared=True) in desk.held
    second = desk.ask(D)
    late = desk.ask(B, shared=True)
    assert late in desk.waiting, "two wait, and only one body will end: the shared connection has to end as well"
    desk.release(body)
    desk.end(desk.leaving(A)[0])
    desk.open(desk.dialled(C)[0])
    assert waits in desk.held
    assert second in desk.waiting


def test_small_requests_share_and_leave_idle_connections_to_bodies() -> None:
    desk = Desk(PoolLimits(pipeline_depth=8))
    first, second = desk.have(A), desk.have(A)
    line_first, line_second = desk.held[first], desk.held[second]
    desk.release(first)
    desk.now_s += 1
    desk.release(second)
    small = [desk.ask(A, shared=True) for _ in range(2)]
    assert {desk.held[lease] for lease in small} == {line_second}, "the most recently used one, shared"
    third = desk.ask(A, shared=True)
    assert desk.held[third] == line_first, "a quarter of the depth is reached: an idle one is better"
    burst = [desk.ask(A, shared=True) for _ in range(13)]
    lines = [desk.held[lease] for lease in [*small, third, *burst]]
    assert (lines.count(line_first), lines.count(line_second)) == (8, 8)
    assert desk.policy.counters().shared == 14
    more = desk.ask(A, shared=True)
    assert more in desk.waiting
    assert len(desk.dialled(A)) == 1, "both are full"


def test_the_least_shared_is_joined() -> None:
    desk = Desk(PoolLimits(max_per_peer=2, pipeline_depth=4))
    small = [desk.have(A, shared=True) for _ in range(8)]
    lines = [desk.held[lease] for lease in small]
    assert (lines[:4], lines[4:]) == ([lines[0]] * 4, [lines[4]] * 4)
    for lease in (small[0], small[4], small[5]):
        desk.release(lease)
    assert desk.held[desk.ask(A, shared=True)] == lines[4]


def test_small_requests_count_on_one_dial_together() -> None:
    desk = Desk(PoolLimits(pipeline_depth=3))
    small = [desk.ask(A, shared=True) for _ in range(4)]
    assert len(desk.dialled(A)) == 2, "three and one"
    desk.open(desk.dialled(A)[0])
    assert set(desk.held) == set(small[:3])


def test_a_small_request_does_not_join_past_a_body_that_waits() -> None:
    desk = Desk(PoolLimits(max_per_peer=1))
    small = desk.have(A, shared=True)
    body = desk.ask(A)
    late = desk.ask(A, shared=True)
    assert set(desk.waiting) == {body, late}
    desk.release(small)
    assert set(desk.held) == {body}
    desk.release(body)
    assert set(desk.held) == {late}


def test_a_small_request_joins_while_a_dial_is_under_way_for_the_body() -> None:
    desk = Desk()
    desk.have(A, shared=True)
    body = desk.ask(A)
    assert desk.ask(A, shared=True) in desk.held
    assert body in desk.waiting


def test_what_was_dialled_goes_to_the_next_or_becomes_idle() -> None:
    desk = Desk()
    gone = desk.ask(A)
    desk.cancel(gone)
    assert not [action for action in desk.log if isinstance(action, GiveUp)]
    heir = desk.ask(A)
    assert len(desk.dialled(A)) == 1
    desk.open(desk.dialled(A)[0])
    assert heir in desk.held
    desk.cancel(desk.ask(B))
    desk.open(desk.dialled(B)[0])
    assert len(desk.idle(B)) == 1


def test_a_dial_that_nobody_wants_is_given_up_for_who_waits_for_its_place() -> None:
    desk = Desk(PoolLimits(max_per_peer=2, max_total=2, max_idle=2))
    wanted, gone = desk.ask(A), desk.ask(A)
    desk.cancel(gone)
    lease = desk.ask(B)
    first, second = 1, 2
    assert desk.dialled() == [first]
    assert desk.leaving() == [second], "the one that was begun last"
    desk.end(ConnectionId(second))
    desk.open(desk.dialled(B)[0])
    desk.open(ConnectionId(first))
    assert {wanted, lease} == set(desk.held)


def test_no_more_dials_are_given_up_than_nobody_wants() -> None:
    desk = Desk(PoolLimits(max_per_peer=3, max_total=3, max_idle=3))
    *_, gone = [desk.ask(A) for _ in range(3)]
    desk.ask(B)
    desk.ask(C)
    desk.cancel(gone)
    assert len(desk.leaving(A)) == 1
    assert len(desk.dialled(A)) == 2


def test_a_dial_that_succeeds_after_it_was_given_up_is_ended_politely() -> None:
    desk = Desk(PoolLimits(max_per_peer=1, max_total=1, max_idle=1))
    desk.cancel(desk.ask(A))
    desk.ask(B)
    (late,) = desk.leaving(A)
    desk.open(late)
    assert desk.log[-1] == SayGoodbye(late)
    assert desk.policy.counters().evicted == 1
    desk.end(late)
    assert len(desk.dialled(B)) == 1


def test_a_dial_that_succeeds_after_the_end_is_ended_politely() -> None:
    desk = Desk()
    desk.ask(A)
    desk.close()
    (late,) = desk.leaving()
    desk.open(late)
    assert desk.log[-1] == SayGoodbye(late)


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


def test_a_failed_dial_fails_all_who_wait_for_that_peer() -> None:
    desk = Desk()
    leases = [desk.ask(A, shared=True) for _ in range(5)]
    other = desk.ask(B)
    desk.fail(desk.dialled(A)[0], REFUSED)
    assert [desk.failed[lease] for lease in leases] == [Fail(lease, Reason.FAILURE, REFUSED, 0.5) for lease in leases]
    assert other in desk.waiting
    assert desk.policy.counters().open_failures == 1


def test_while_the_breaker_is_open_a_lease_fails_at_once() -> None:
    desk = Desk()
    desk.ask(A)
    desk.fail(desk.dialled()[0])
    desk.now_s += 0.25
    lease = desk.ask(A)
    assert desk.failed[lease] == Fail(lease, Reason.FAILURE, DEAD, 0.25)
    assert desk.policy.breakers(desk.now_s)[A].state is Gate.OPEN
    assert desk.policy.counters().waited == 1, "the second did not wait"


def test_half_open_there_is_one_trial_and_others_wait_for_it() -> None:
    desk = Desk()
    desk.ask(A)
    desk.fail(desk.dialled()[0])
    desk.now_s += 0.5
    leases = [desk.ask(A) for _ in range(3)]
    (trial,) = desk.dialled()
    assert not desk.failed.keys() & set(leases)
    desk.fail(trial)
    assert {desk.failed[lease].retry_in_s for lease in leases} == {1.0}
    desk.now_s += 1
    leases = [desk.ask(A) for _ in range(3)]
    desk.open(desk.dialled()[0])
    assert leases[0] in desk.held
    assert len(desk.dialled()) == 2, "the others may dial now"
    assert desk.policy.breakers(desk.now_s) == {}


def test_dials_that_fail_together_are_one_failure() -> None:
    desk = Desk()
    leases = [desk.ask(A) for _ in range(4)]
    for connection in desk.dialled(A):
        assert not desk.failed, "a dial that is under way is a hope"
        desk.fail(connection)
    assert set(desk.failed) == set(leases)
    assert desk.policy.breakers(desk.now_s)[A].failures == 1


def test_what_was_a_trial_once_does_not_end_another() -> None:
    desk = Desk()
    desk.ask(A)
    desk.fail(desk.dialled()[0])
    desk.now_s += 0.5
    lease = desk.have(A)
    once_a_trial = desk.held[lease]
    desk.ask(A)
    desk.fail(desk.dialled()[0])
    desk.pass_time(0.5)
    assert len(desk.dialled()) == 1
    desk.ask(A)
    desk.end(once_a_trial)
    assert len(desk.dialled()) == 1


def test_a_trial_that_ends_without_a_result_is_tried_again() -> None:
    desk = Desk()
    desk.ask(A)
    desk.fail(desk.dialled()[0])
    desk.now_s += 0.5
    lease = desk.ask(A)
    (trial,) = desk.dialled()
    desk.end(trial)
    assert len(desk.dialled()) == 1
    assert desk.dialled() != [trial]
    assert lease in desk.waiting


def test_who_waits_for_a_connection_that_works_does_not_fail_with_a_dial() -> None:
    desk = Desk()
    holder = desk.have(A)
    waits = desk.ask(A)
    desk.fail(desk.dialled(A)[0])
    assert waits in desk.waiting
    desk.release(holder)
    assert waits in desk.held


def test_who_waits_beside_an_open_breaker_dials_after_the_pause() -> None:
    desk = Desk()
    desk.have(A)
    waits = desk.ask(A)
    desk.fail(desk.dialled(A)[0])
    desk.pass_time(0.49)
    assert not desk.dialled(A)
    desk.pass_time(0.02)
    desk.open(desk.dialled(A)[0])
    assert waits in desk.held


def test_while_a_trial_is_under_way_there_is_nothing_to_do_at_any_time() -> None:
    desk = Desk()
    desk.have(A)
    desk.ask(A)
    last = desk.ask(A)
    for connection in desk.dialled(A):
        desk.fail(connection)
    desk.pass_time(0.5)
    assert len(desk.dialled(A)) == 1
    assert desk.policy.due_s() == desk.wishes[last].deadline_s


def test_when_the_last_hope_ends_who_waits_fails() -> None:
    desk = Desk()
    holder = desk.have(A)
    waits = desk.ask(A)
    desk.fail(desk.dialled(A)[0])
    desk.lines[desk.held[holder]].is_closed = True
    desk.release(holder)
    assert desk.failed[waits].reason is Reason.FAILURE


def test_a_connection_that_takes_no_more_requests_is_no_hope() -> None:
    desk = Desk()
    desk.lines[desk.held[desk.have(A, shared=True)]].is_closed = True
    late = desk.ask(A, shared=True)
    desk.fail(desk.dialled(A)[0])
    assert desk.failed[late].reason is Reason.FAILURE


def test_a_connection_that_is_being_closed_is_no_hope() -> None:
    desk = Desk(PoolLimits(max_idle=0))
    holder = desk.have(A)
    desk.ask(A)
    desk.fail(desk.dialled(A)[0])
    desk.cancel(next(iter(desk.waiting)))
    desk.release(holder)
    assert len(desk.leaving(A)) == 1
    assert desk.failed[desk.ask(A)].reason is Reason.FAILURE


def test_a_place_in_the_total_goes_to_one_trial_only() -> None:
    desk = Desk(PoolLimits(max_per_peer=2, max_total=2, max_idle=2))
    desk.ask(C)
    desk.fail(desk.dialled()[0])
    for lease in [desk.have(A), desk.have(B)]:
        desk.release(lease)
    desk.now_s += 1
    leases = [desk.ask(C), desk.ask(C)]
    assert len(desk.leaving()) == 1
    assert list(desk.waiting) == leases, "the second waits for what comes of it"


def test_waiting_ends_at_the_deadline() -> None:
    desk = Desk(PoolLimits(max_per_peer=1))
    desk.have(A)
    late, later = desk.ask(A, wait_s=5), desk.ask(A, wait_s=4)
    assert desk.policy.due_s() == desk.now_s + 4
    desk.pass_time(4)
    assert set(desk.failed) == {later}
    desk.pass_time(1)
    assert desk.failed[late] == Fail(late, Reason.TOO_LATE)
    assert desk.policy.counters().timeouts == 2


def test_ten_thousand_who_wait_cost_no_more_each_than_ten(monkeypatch: pytest.MonkeyPatch) -> None:
    looked_at: list[object] = []
    place = PoolPolicy._place

    def counted(self: PoolPolicy, waiter: Waiter, *rest: Any) -> bool:
        looked_at.append(waiter)
        return place(self, waiter, *rest)

    desk = Desk(PoolLimits(max_per_peer=1, pipeline_depth=4))
    desk.have(A, shared=True)
    policy, now_s = desk.policy, desk.now_s
    monkeypatch.setattr(PoolPolicy, "_place", counted)
    leases = [policy.request(A, is_shared=True, now_s=now_s, deadline_s=now_s + 60)[0] for _ in range(10_000)]
    assert len(looked_at) == 4, "three join; the fourth has nothing to count on, and those behind it are not looked at"
    policy.released(leases[0], now_s)
    assert len(looked_at) == 6
    assert policy.audit() == []


def test_deadlines_of_those_who_are_gone_are_forgotten() -> None:
    desk = Desk(PoolLimits(max_per_peer=1))
    desk.have(A)
    for wait_s in (10, 20, 30):
        desk.ask(A, wait_s=wait_s)
    for _ in range(500):
        desk.cancel(desk.ask(A))
    assert desk.policy.due_s() == desk.now_s + 10
    assert len(desk.policy._queue._deadlines) <= 64 + 2 * 3


def test_when_it_is_over_everything_is_closed_and_everybody_told() -> None:
    desk = Desk(PoolLimits(max_per_peer=2))
    held = desk.have(A)
    desk.release(desk.have(B))
    waits = [desk.ask(A), desk.ask(A), desk.ask(C)]
    desk.now_s += 31
    waits.append(desk.ask(B))
    desk.close()
    assert {desk.failed[lease].reason for lease in waits} == {Reason.POOL_CLOSED}
    assert not desk.policy.is_leased(held)
    assert len(desk.leaving()) == len(desk.lines) == 4
    late = desk.ask(A)
    assert desk.failed[late].reason is Reason.POOL_CLOSED
    assert desk.policy.checked(desk.leaving(B)[0], desk.now_s, is_alive=True) == []
    for connection in desk.leaving():
        desk.end(connection)
    assert desk.policy.is_empty()


def test_one_that_is_being_closed_already_is_not_told_again() -> None:
    desk = Desk()
    desk.release(desk.have(A))
    desk.pass_time(301)
    (leaving,) = desk.leaving()
    desk.close()
    assert desk.log.count(SayGoodbye(leaving)) == 1


@pytest.mark.parametrize(
    "change",
    [
        {"max_per_peer": 0},
        {"max_per_peer": 65},
        {"max_idle": -1},
        {"max_idle": 65},
        {"pipeline_depth": 0},
        {"idle_timeout_s": 0},
        {"health_check_after_s": -1},
        {"ping_timeout_s": float("nan")},
        {"connect_timeout_s": 0},
        {"close_timeout_s": -1},
        {"wait_s": 0},
    ],
)
def test_limits_that_make_no_sense_are_refused(change: dict[str, float]) -> None:
    with pytest.raises(UsageError, match="make no sense"):
        dataclasses.replace(PoolLimits(), **change)  # type: ignore[arg-type]  # some are whole numbers


def test_the_audit_finds_what_is_wrong() -> None:
    def spoilt() -> Desk:
        desk = Desk(PoolLimits(max_per_peer=1))
        desk.have(A)
        desk.ask(A)
        desk.release(desk.have(B))
        return desk

    assert spoilt().policy.audit() == []
    spoilers: list[tuple[Callable[[Any], object], str]] = [
        (lambda policy: policy._leases.clear(), "leases that are not"),
        (lambda policy: policy._leases.update({99: 1}), "does not know of it"),
        (lambda policy: policy._records._counts.__setitem__(slice(None), [7] * 8), "not 7"),
        (lambda policy: policy._records._idle.clear(), "list of idle"),
        (lambda policy: policy._queue._deadlines.clear(), "deadline is missing"),
        (lambda policy: policy._queue._lines.clear(), "hold others than wait"),
        (lambda policy: policy._actions.append(Check(ConnectionId(1))), "nobody was told"),
    ]
    for spoil, sign in spoilers:
        desk = spoilt()
        spoil(desk.policy)
        assert any(sign in wrong for wrong in desk.policy.audit()), sign


def test_fairness_holds_for_many_peers() -> None:
    """With one place in all, sixty peers are served strictly in the order in which they came."""
    desk = Desk(PoolLimits(max_per_peer=1, max_total=1, max_idle=1))
    peers = [PeerId(bytes([number]) * 32) for number in range(60)]
    leases = [desk.ask(peer) for peer in peers]
    served = []
    for peer in peers:
        for connection in desk.leaving():
            desk.end(connection)
        desk.open(desk.dialled(peer)[0])
        (lease,) = desk.held
        served.append(lease)
        desk.release(lease)
    assert served == leases
