"""The end of a pool, limits that make no sense, and the audit of its records."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest

from vaultfs.errors import UsageError
from vaultfs.mesh.pool_actions import Check, Reason, SayGoodbye
from vaultfs.mesh.pool_records import ConnectionId, PoolLimits

from .desk import A, B, C, Desk


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
