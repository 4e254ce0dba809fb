"""Small requests share a connection, and leave idle ones to bodies."""

from __future__ import annotations

from vaultfs.mesh.pool_records import PoolLimits

from .desk import A, B, C, D, Desk


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
