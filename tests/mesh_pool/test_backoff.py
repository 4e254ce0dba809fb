from __future__ import annotations

from dataclasses import replace

import pytest

from vaultfs.errors import RemoteRefusedError, RemoteUnreachableError, UsageError
from vaultfs.ids import PeerId
from vaultfs.mesh.backoff import BackoffLimits, Breakers, BreakerState, Failure, Gate

from .desk import DEAD, A, B

REFUSED = Failure(RemoteRefusedError, "it does not trust this machine")


def patient(limits: BackoffLimits | None = None) -> Breakers:
    """Every pause is as long as may be."""
    return Breakers(limits or BackoffLimits(), draw=lambda _, bound: bound)


def test_a_peer_that_never_failed_is_dialled_as_often_as_wanted() -> None:
    breakers = patient()
    assert breakers.may_dial(A, 0.0)
    assert not breakers.dialling(A), "no trial"
    assert breakers.may_dial(A, 0.0)
    assert breakers.is_closed(A)
    assert breakers.states(0.0) == {}


def test_pauses_double_up_to_the_longest() -> None:
    breakers = patient()
    now_s = 100.0
    pauses_s = []
    for _ in range(10):
        is_trial = breakers.dialling(A)
        breakers.failed(A, DEAD, now_s, is_trial=is_trial)
        pauses_s.append(breakers.last_failure(A)[1] - now_s)
        now_s += pauses_s[-1]
    assert pauses_s == [0.5, 1, 2, 4, 8, 16, 32, 60, 60, 60]
    assert breakers.states(now_s - 60)[A].failures == 10


def test_pauses_are_drawn_between_nothing_and_the_bound() -> None:
    drawn = []

    def draw(low: float, high: float) -> float:
        drawn.append((low, high))
        return high / 4

    breakers = Breakers(draw=draw)
    breakers.failed(A, DEAD, 0.0, is_trial=False)
    assert drawn == [(0.0, 0.5)]
    assert breakers.last_failure(A) == (DEAD, 0.125)


def test_a_pause_is_longer_by_what_the_dial_took() -> None:
    breakers = patient()
    slow = replace(DEAD, took_s=10.0)
    breakers.failed(A, slow, 100.0, is_trial=False)
    assert breakers.last_failure(A) == (slow, 110.5)
    assert not breakers.may_dial(A, 110.4)
    assert breakers.may_dial(A, 110.5)
    breakers.failed(B, replace(DEAD, took_s=100.0), 100.0, is_trial=False)
    assert breakers.last_failure(B)[1] == 160.0


def test_a_real_draw_stays_within_the_bound() -> None:
    pauses_s = set()
    for _ in range(50):
        breakers = Breakers()
        breakers.failed(A, DEAD, 0.0, is_trial=False)
        pauses_s.add(breakers.last_failure(A)[1])
    assert len(pauses_s) > 1
    assert all(0 <= pause_s <= 0.5 for pause_s in pauses_s)


def test_hundreds_of_failures_do_not_overflow() -> None:
    breakers = patient()
    for _ in range(5000):
        breakers.failed(A, DEAD, 0.0, is_trial=True)
    assert breakers.last_failure(A)[1] == 60.0


def test_nobody_dials_before_the_pause_is_over_and_then_exactly_one() -> None:
    breakers = patient()
    breakers.failed(A, REFUSED, 10.0, is_trial=False)
    assert not breakers.may_dial(A, 10.499)
    assert breakers.states(10.25) == {A: BreakerState(Gate.OPEN, 1, 0.25, REFUSED.text)}
    assert breakers.may_dial(B, 10.0), "another peer has nothing to do with it"
    assert breakers.may_dial(A, 10.5)
    assert breakers.states(10.5)[A].state is Gate.HALF_OPEN
    assert breakers.dialling(A), "a trial"
    assert not breakers.may_dial(A, 99.0)
    assert breakers.states(99.0) == {A: BreakerState(Gate.HALF_OPEN, 1, 0.0, REFUSED.text)}


def test_a_success_closes_it() -> None:
    breakers = patient()
    breakers.failed(A, DEAD, 0.0, is_trial=False)
    breakers.dialling(A)
    breakers.succeeded(A)
    assert breakers.may_dial(A, 0.0)
    assert breakers.states(0.0) == {}
    breakers.failed(A, DEAD, 0.0, is_trial=False)
    assert breakers.last_failure(A)[1] == 0.5, "the pauses begin anew"


def test_a_trial_without_a_result_leaves_it_to_the_next() -> None:
    breakers = patient()
    breakers.failed(A, DEAD, 0.0, is_trial=False)
    breakers.dialling(A)
    breakers.given_up(A)
    breakers.given_up(B)
    assert breakers.may_dial(A, 0.5)
    assert breakers.states(0.5)[A].failures == 1


def test_dials_that_were_under_way_together_count_once() -> None:
    breakers = patient()
    for number in range(4):
        breakers.failed(A, Failure(RemoteUnreachableError, str(number)), float(number), is_trial=False)
    assert breakers.states(0.0) == {A: BreakerState(Gate.OPEN, 1, 0.5, "0")}


def test_a_failed_trial_tells_the_newest_error() -> None:
    breakers = patient()
    breakers.failed(A, DEAD, 0.0, is_trial=False)
    assert breakers.dialling(A)
    breakers.failed(A, REFUSED, 1.0, is_trial=True)
    assert breakers.last_failure(A) == (REFUSED, 2.0)
    assert breakers.may_dial(A, 2.0), "the trial is over"


def test_only_the_last_failing_peers_are_kept() -> None:
    breakers = patient(BackoffLimits(most_peers=3))
    peers = [PeerId(bytes([number]) * 32) for number in range(4)]
    for peer in peers[:3]:
        breakers.failed(peer, DEAD, 0.0, is_trial=False)
    breakers.failed(peers[0], DEAD, 1.0, is_trial=True)
    breakers.failed(peers[3], DEAD, 2.0, is_trial=False)
    assert set(breakers.states(2.0)) == {peers[0], peers[2], peers[3]}
    assert breakers.may_dial(peers[1], 0.0)


@pytest.mark.parametrize(
    "limits",
    [
        {"first_pause_s": 0.0},
        {"first_pause_s": 61.0},
        {"first_pause_s": float("nan")},
        {"most_peers": 0},
    ],
)
def test_limits_that_make_no_sense_are_refused(limits: dict[str, float]) -> None:
    with pytest.raises(UsageError, match="make no sense"):
        BackoffLimits(**limits)  # type: ignore[arg-type]  # some are whole numbers
