"""Which snapshots stay: hand-made calendars, and what must hold for any rules."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vaultfs.errors import UsageError
from vaultfs.sync.keep_policy import DatedHead, KeepPolicy, kept, parse_duration_ns
from vaultfs.sync.remote_layout import RemoteHead

HOUR_NS = 3600 * 10**9


def head(seq: int) -> RemoteHead:
    return RemoteHead("0" * 64, seq, f"{seq:064x}")


def at(seq: int, text: str) -> DatedHead:
    return DatedHead(head(seq), int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()) * 10**9)


def stays(found: list[DatedHead], policy: KeepPolicy) -> list[int]:
    return sorted(each.seq for each in kept(found, policy, UTC))


WEEK = [
    at(1, "2026-03-01T10:00:00"),  # a Sunday
    at(2, "2026-03-02T10:00:00"),
    at(3, "2026-03-02T18:00:00"),
    at(4, "2026-03-05T00:00:00"),
    at(5, "2026-03-08T23:59:59"),  # a Sunday
    at(6, "2026-03-09T00:00:00"),
    at(7, "2026-03-09T00:20:00"),
]


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        (KeepPolicy(last=2), [6, 7]),
        (KeepPolicy(last=100), [1, 2, 3, 4, 5, 6, 7]),
        (KeepPolicy(hourly=2), [5, 7]),
        (KeepPolicy(daily=1), [7]),
        (KeepPolicy(daily=4), [3, 4, 5, 7]),
        (KeepPolicy(weekly=2), [5, 7]),
        (KeepPolicy(weekly=3), [1, 5, 7]),
        (KeepPolicy(monthly=5), [7]),
        (KeepPolicy(yearly=5), [7]),
        (KeepPolicy(within_ns=24 * HOUR_NS), [5, 6, 7]),
        (KeepPolicy(within_ns=0), [7]),
        (KeepPolicy(last=1, weekly=3), [1, 5, 7]),
        (KeepPolicy(), [7]),
    ],
)
def test_a_week(policy: KeepPolicy, expected: list[int]) -> None:
    assert stays(WEEK, policy) == expected


def test_the_week_at_the_turn_of_a_year_is_one_week() -> None:
    """2026-12-31 and 2027-01-01 lie in week 53 of 2026."""
    found = [at(1, "2026-12-27T12:00:00"), at(2, "2026-12-31T12:00:00"), at(3, "2027-01-01T12:00:00")]
    assert stays(found, KeepPolicy(weekly=2)) == [1, 3]
    assert stays(found, KeepPolicy(monthly=2)) == [2, 3]
    assert stays(found, KeepPolicy(yearly=2)) == [2, 3]


def test_days_are_those_of_the_zone() -> None:
    found = [at(1, "2026-03-01T22:30:00"), at(2, "2026-03-01T23:30:00")]
    assert sorted(each.seq for each in kept(found, KeepPolicy(daily=2), UTC)) == [2]
    assert sorted(each.seq for each in kept(found, KeepPolicy(daily=2), timezone(timedelta(hours=1)))) == [1, 2]


def test_numbers_and_not_clocks_tell_which_is_the_newest() -> None:
    found = [at(1, "2036-01-01T00:00:00"), at(2, "2026-01-01T00:00:00")]
    assert stays(found, KeepPolicy()) == [2]
    assert stays(found, KeepPolicy(last=1)) == [2]


def test_both_of_two_newest_stay() -> None:
    other = DatedHead(RemoteHead("1" * 64, 7, "f" * 64), WEEK[-1].created_ns + 1)
    found = kept([*WEEK, other], KeepPolicy(), UTC)
    assert set(found) == {WEEK[-1].head, other.head}


def test_the_rules_are_told() -> None:
    found = kept(WEEK, KeepPolicy(last=1, daily=2), UTC)
    assert found == {head(7): ["newest", "last", "daily"], head(5): ["daily"]}


@pytest.mark.parametrize("created_ns", [-(1 << 63), (1 << 63) - 1, 0])
def test_absurd_dates(created_ns: int) -> None:
    found = [DatedHead(head(1), created_ns), *WEEK[1:]]
    assert stays(found, KeepPolicy(daily=100, yearly=5))[-1] == 7
    assert kept([DatedHead(head(1), created_ns)], KeepPolicy(daily=1)) == {head(1): ["newest", "daily"]}


def test_nothing_there() -> None:
    assert kept([], KeepPolicy(last=5)) == {}


def test_empty_policies() -> None:
    assert KeepPolicy().is_empty
    assert not KeepPolicy(within_ns=0).is_empty
    assert not KeepPolicy(yearly=1).is_empty


histories = st.lists(st.integers(0, 400 * 24), max_size=40).map(
    lambda hours: [DatedHead(head(seq), hour * HOUR_NS) for seq, hour in enumerate(sorted(hours), 1)]
)
counts = st.integers(0, 12)


@given(found=histories, last=counts, daily=counts, weekly=counts, monthly=counts)
def test_what_holds_for_any_rules(found: list[DatedHead], last: int, daily: int, weekly: int, monthly: int) -> None:
    policy = KeepPolicy(last=last, daily=daily, weekly=weekly, monthly=monthly)
    stay = kept(found, policy, UTC)
    assert set(stay) <= {each.head for each in found}
    assert not found or found[-1].head in stay
    assert len(stay) <= last + daily + weekly + monthly + 1
    days = {each.created_ns // (24 * HOUR_NS) for each in found}
    assert sum("daily" in rules for rules in stay.values()) == min(daily, len(days))
    # What was pruned once is stable: the same rules give nothing more up.
    left = [each for each in found if each.head in stay]
    assert kept(left, policy, UTC).keys() == stay.keys()
    # A more generous rule never gives up more.
    assert (
        kept(found, KeepPolicy(last=last + 1, daily=daily + 1, weekly=weekly, monthly=monthly), UTC).keys()
        >= stay.keys()
    )


@pytest.mark.parametrize(
    ("text", "hours"), [("36h", 36), ("7d", 168), ("2w", 336), ("6mo", 6 * 744), ("1y6mo", 8784 + 6 * 744), ("0h", 0)]
)
def test_durations(text: str, hours: int) -> None:
    assert parse_duration_ns(text, "--keep-within") == hours * HOUR_NS


@pytest.mark.parametrize("text", ["", "7", "d", "7m", "-1d", "1.5d", "7d ", "7 d", "1y-6mo", "\uff19d", "9999999d"])
def test_no_durations(text: str) -> None:
    with pytest.raises(UsageError, match="--keep-within"):
        parse_duration_ns(text, "--keep-within")


def test_a_newest_one_from_the_future() -> None:
    """One wrong clock, and `--keep-within` alone would give up everything else."""
    found = [*WEEK, at(8, "2099-01-01T00:00:00")]
    policy = KeepPolicy(within_ns=24 * HOUR_NS)
    now_ns = at(9, "2026-03-09T12:00:00").created_ns
    assert sorted(each.seq for each in kept(found, policy, UTC, now_ns=now_ns)) == [5, 6, 7, 8]
    # A clock here that is behind keeps too much, and one that is ahead changes nothing.
    assert len(kept(found, policy, UTC, now_ns=0)) == 8
    ahead_ns = at(9, "2040-01-01T00:00:00").created_ns
    assert sorted(each.seq for each in kept(WEEK, policy, UTC, now_ns=ahead_ns)) == [5, 6, 7]
