"""What becomes of a dial that nobody wants any more."""

from __future__ import annotations

from vaultfs.mesh.pool_actions import GiveUp, SayGoodbye
from vaultfs.mesh.pool_records import ConnectionId, PoolLimits

from .desk import A, B, C, Desk


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
