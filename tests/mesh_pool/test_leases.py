"""What a lease gets: which connection, within which limits, and in which order those get theirs who wait.

What holds for all decisions in any order is in test_policy_model.py.
"""

from __future__ import annotations

from typing import Any

import pytest

from vaultfs.ids import PeerId
from vaultfs.mesh.pool_actions import Assign, Fail, Open, Reason
from vaultfs.mesh.pool_policy import PoolPolicy
from vaultfs.mesh.pool_queue import Waiter
from vaultfs.mesh.pool_records import PoolLimits

from .desk import A, B, C, Desk


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
