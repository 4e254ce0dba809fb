"""Peers that can be reached and do not answer are passed over for a while."""

from __future__ import annotations

import pytest

from vaultfs.errors import RemoteUnreachableError
from vaultfs.ids import PeerId
from vaultfs.mesh.silences import FIRST_PAUSE_S, LONGEST_PAUSE_S, Silences

A, B = PeerId(b"a" * 32), PeerId(b"b" * 32)


def pauses(silences: Silences, count: int) -> list[float]:
    """How long it is passed over after each silence, if it is asked as soon as it may be."""
    found = []
    now_s = 0.0
    for _ in range(count):
        silences.require_none(A, now_s)
        silences.note(A, "nas has not answered", now_s)
        began_s = now_s
        while True:
            try:
                silences.require_none(A, now_s)
            except RemoteUnreachableError:
                now_s += 1
            else:
                break
        found.append(now_s - began_s)
    return found


def test_the_pause_doubles_up_to_a_bound() -> None:
    found = pauses(Silences(), 6)
    assert found[:3] == [FIRST_PAUSE_S, 2 * FIRST_PAUSE_S, 4 * FIRST_PAUSE_S]
    assert found[-1] == LONGEST_PAUSE_S


def test_who_asks_meanwhile_hears_why_and_how_long() -> None:
    silences = Silences()
    silences.note(A, "nas has not answered for 60 s", 100.0)
    with pytest.raises(RemoteUnreachableError, match="nas has not answered for 60 s; it is asked again in 20 s"):
        silences.require_none(A, 110.0)
    silences.require_none(B, 110.0)


def test_requests_that_were_under_way_together_are_one_silence() -> None:
    silences = Silences()
    for moment in range(10):
        silences.note(A, "nas", float(moment))
    silences.require_none(A, FIRST_PAUSE_S)


def test_an_answer_ends_it() -> None:
    silences = Silences()
    silences.note(A, "nas", 0.0)
    silences.end(A)
    silences.end(B)
    silences.require_none(A, 0.0)
    assert pauses(silences, 1) == [FIRST_PAUSE_S]
