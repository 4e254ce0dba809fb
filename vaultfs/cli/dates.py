"""Moments as people read them, in this machine's zone."""

from __future__ import annotations

from datetime import UTC, datetime


def format_moment(moment_ns: int) -> str:
    """A moment to the second: ``2026-03-01 17:05:00``; a question mark for one that no calendar has.

    Args:
        moment_ns: nanoseconds since 1970; may come from a remote, so it may be anything.
    """
    try:
        return datetime.fromtimestamp(moment_ns // 10**9, tz=UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S")
    except (OverflowError, ValueError, OSError):
        return "?"
