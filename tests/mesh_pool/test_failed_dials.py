"""A dial fails: who fails with it, and what the breaker lets through."""

from __future__ import annotations

from vaultfs.errors import RemoteRefusedError
from vaultfs.mesh.backoff import Failure, Gate
from vaultfs.mesh.pool_actions import Fail, Reason
from vaultfs.mesh.pool_records import PoolLimits

from .desk import DEAD, A, B, C, Desk

REFUSED = Failure(RemoteRefusedError, "it does not trust this machine")


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
