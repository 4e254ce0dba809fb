"""States that are shared among processes are each inspected once, no process fails unnoticed; and what a sample has."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from . import sharing
from .power_cut import Job, Recorded
from .report import Report
from .sharing import share
from .simulated_disk import Loss
from .test_harness import inspect_sqlite, prepare_sqlite


@pytest.fixture(autouse=True)
def three_shares(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever machine this is."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2})


def test_each_share_is_done_once(scratch: Path) -> None:
    def work(number: int, shares: int, place: Path) -> Report:
        assert list(place.iterdir()) == []
        (place / "mine").touch()
        return Report(points=1, states=10**number, problems=[f"{number} of {shares}: {os.getpid()}"])

    report = share(work, scratch)
    assert (report.points, report.states) == (3, 111)
    assert [each.partition(":")[0] for each in report.problems] == ["0 of 3", "1 of 3", "2 of 3"]
    assert len({each.partition(": ")[2] for each in report.problems} | {str(os.getpid())}) == 4


def test_no_more_shares_than_are_worth_it(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    assert share(lambda _number, _shares, _place: Report(points=1), scratch).points == sharing.MOST_SHARES


def test_a_share_that_fails_fails_the_test(scratch: Path) -> None:
    def work(number: int, shares: int, place: Path) -> Report:
        if number == 1:
            raise RuntimeError("in the second")
        return Report()

    with pytest.raises(AssertionError, match="RuntimeError: in the second"):
        share(work, scratch)


def test_a_share_that_dies_fails_the_test(scratch: Path) -> None:
    def work(number: int, shares: int, place: Path) -> Report:
        if number == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return Report()

    with pytest.raises(AssertionError, match="ended with -9"):
        share(work, scratch)


def test_shares_end_with_the_one_that_fails(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[int] = []
    fork = os.fork

    def counted() -> int:
        begun.append(fork())
        return begun[-1]

    def work(number: int, shares: int, place: Path) -> Report:
        if number == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        while True:
            signal.pause()

    monkeypatch.setattr(os, "fork", counted)
    with pytest.raises(AssertionError, match="ended with -9"):
        share(work, scratch)
    assert len(begun) == 3
    for child in begun:
        with pytest.raises(ChildProcessError):
            os.waitpid(child, os.WNOHANG)


def test_every_state_is_inspected_by_one_of_them(scratch: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare_sqlite(root)
    recorded = Recorded(Job("sqlite", "documents", 1, 4), scratch, root)
    states = len(list(recorded.cuts(tuple(Loss), 1)))
    shared = recorded.check(inspect_sqlite)
    assert not shared.problems
    assert shared.states == states > 50
    monkeypatch.setattr(sharing, "MOST_SHARES", 1)
    monkeypatch.setattr(recorded, "_scratch", scratch / "alone")
    alone = recorded.check(inspect_sqlite)
    assert (alone.states, alone.points) == (shared.states, shared.points)


def test_a_sample_has_all_that_is_next_to_a_sync(scratch: Path, root: Path) -> None:
    prepare_sqlite(root)
    recorded = Recorded(Job("sqlite", "documents", 1, 4), scratch, root)

    def keys(every: int) -> list[tuple[int, Loss, int]]:
        return [(cut.position, cut.loss, cut.seed) for cut in recorded.cuts(tuple(Loss), 1, every=every)]

    whole, sample = keys(1), keys(3)
    assert sample == keys(3), "it is another one each time"
    assert set(sample) < set(whole)
    synced = {end + 1 for node in recorded.recording.nodes for _, end in node.syncs}
    assert synced
    positions = recorded.recording.cuts
    for place, position in enumerate(positions):
        if synced & set(positions[max(0, place - 1) : place + 2]):
            assert [key for key in whole if key[0] == position] == [key for key in sample if key[0] == position]
    left_out = [key for key in whole if key not in set(sample)]
    assert len(left_out) > len(whole) // 10
    for loss in (Loss.NOTHING, Loss.SCATTERED, Loss.JOURNAL):
        others = [key for key in whole if key[1] is loss and not synced & _around(positions, key[0])]
        kept = [key for key in others if key in set(sample)]
        assert abs(len(others) - 3 * len(kept)) <= 3, loss


def _around(positions: list[int], position: int) -> set[int]:
    place = positions.index(position)
    return set(positions[max(0, place - 1) : place + 2])
