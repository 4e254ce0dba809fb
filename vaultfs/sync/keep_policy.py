"""Which snapshots of a remote stay, by rules like "one for each of the last 30 days": decided without a request.

A rule that counts periods looks at the snapshots from the newest back, keeps the newest one of each period that has
any, and stops after so many periods.  A snapshot that one rule keeps stays.  The newest always stays.  Periods are
those of a calendar, in the zone that the caller gives; a year and a week are those of ISO 8601.  All of this is pure.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, tzinfo
from typing import Final, NamedTuple

from vaultfs.errors import UsageError
from vaultfs.sync.remote_layout import RemoteHead

_UNIT_HOURS: Final = {"h": 1, "d": 24, "w": 24 * 7, "mo": 24 * 31, "y": 24 * 366}
_DURATION: Final = re.compile(r"(?:[0-9]{1,6}(?:mo|[hdwy]))+")
_PART: Final = re.compile(r"([0-9]{1,6})(mo|[hdwy])")
_HOUR_NS: Final = 3600 * 10**9
_EARLIEST_NS: Final = -(10**18)
_LATEST_NS: Final = 2 * 10**20
"""Outside of these (1938 and 8307) a date is somebody's joke; it is taken for the nearest one inside."""


class DatedHead(NamedTuple):
    """A snapshot and when it was made, in nanoseconds since 1970, as its manifest says."""

    head: RemoteHead
    created_ns: int


@dataclass(frozen=True)
class KeepPolicy:
    """How many stay by each rule.

    Attributes:
        last: so many, whenever they were made.
        hourly, daily, weekly, monthly, yearly: one for each of so many hours, and so on, that have any.
        within_ns: all that are not older, before the newest one, than so many nanoseconds; None: no such rule.
    """

    last: int = 0
    hourly: int = 0
    daily: int = 0
    weekly: int = 0
    monthly: int = 0
    yearly: int = 0
    within_ns: int | None = None

    @property
    def is_empty(self) -> bool:
        """Whether no rule was given, so that nobody has said what is to be kept."""
        return self.within_ns is None and not any(
            (self.last, self.hourly, self.daily, self.weekly, self.monthly, self.yearly)
        )


def parse_duration_ns(text: str, option: str) -> int:
    """Nanoseconds from ``36h``, ``7d``, ``2w``, ``6mo``, ``1y``, or a sum; months have 31 days, years 366.

    Args:
        text: as written.
        option: which option it was, for the message.

    Raises:
        UsageError: it is no duration.
    """
    if not _DURATION.fullmatch(text):
        raise UsageError(f"{option}: {text!r} is no duration; write it like 36h, 7d, 2w, 6mo or 1y6mo")
    return sum(int(count) * _UNIT_HOURS[unit] for count, unit in _PART.findall(text)) * _HOUR_NS


def kept(
    found: Iterable[DatedHead], policy: KeepPolicy, zone: tzinfo | None = None, *, now_ns: int | None = None
) -> dict[RemoteHead, list[str]]:
    """The snapshots that stay, and by which rules.

    Args:
        found: all that there are.  Which is the newest is told by their numbers, because clocks go wrong.
        policy: the rules.
        zone: whose calendar counts; the machine's if None.
        now_ns: nanoseconds since 1970; a newest one from after that was made by a wrong clock, and counts as made now,
            or everything would be far older than it.
    """
    newest_first = sorted(found, key=lambda each: (each.head.seq, each.created_ns, each.head.hash), reverse=True)
    stays: dict[RemoteHead, list[str]] = {}
    if not newest_first:
        return stays
    newest_seq = newest_first[0].head.seq
    newest_ns = max(each.created_ns for each in newest_first if each.head.seq == newest_seq)
    if now_ns is not None:
        newest_ns = min(newest_ns, now_ns)
    for each in newest_first:
        if each.head.seq == newest_seq:
            _keep(stays, each, "newest")
    for each in newest_first[: policy.last]:
        _keep(stays, each, "last")
    if policy.within_ns is not None:
        for each in newest_first:
            if each.created_ns >= newest_ns - policy.within_ns:
                _keep(stays, each, "within")
    for name, count, period in _periods(policy):
        seen: set[tuple[int, ...]] = set()
        for each in newest_first:
            number = period(_local(each.created_ns, zone))
            if number not in seen:
                if len(seen) == count:
                    break
                seen.add(number)
                _keep(stays, each, name)
    return stays


def _keep(stays: dict[RemoteHead, list[str]], each: DatedHead, why: str) -> None:
    stays.setdefault(each.head, []).append(why)


def _local(created_ns: int, zone: tzinfo | None) -> datetime:
    bounded_ns = max(_EARLIEST_NS, min(created_ns, _LATEST_NS))
    return datetime.fromtimestamp(bounded_ns // 10**9, tz=UTC).astimezone(zone)


def _periods(policy: KeepPolicy) -> list[tuple[str, int, Callable[[datetime], tuple[int, ...]]]]:
    return [
        ("hourly", policy.hourly, lambda time: (time.year, time.month, time.day, time.hour, time.fold)),
        ("daily", policy.daily, lambda time: (time.year, time.month, time.day)),
        ("weekly", policy.weekly, lambda time: tuple(time.isocalendar())[:2]),
        ("monthly", policy.monthly, lambda time: (time.year, time.month)),
        ("yearly", policy.yearly, lambda time: (time.year,)),
    ]
