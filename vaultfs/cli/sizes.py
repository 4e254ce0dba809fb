"""Sizes and durations as people write and read them: ``128K``, ``1.5G``, ``30m``, ``1h30m``."""

from __future__ import annotations

import re
from typing import Final

from vaultfs.errors import UsageError

_UNITS: Final = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4, "P": 5}
_SIZE: Final = re.compile(r"(\d{1,19})(?:\.(\d{1,6}))?\s*(?:([KMGTP])(?:i?B)?|B)?", re.ASCII | re.IGNORECASE)
_SECONDS: Final = {"d": 86400, "h": 3600, "m": 60, "s": 1}
_DURATION: Final = re.compile(
    r"(?:(\d{1,9})d)?(?:(\d{1,9})h)?(?:(\d{1,9})m)?(?:(\d{1,9}(?:\.\d{1,6})?)s?)?", re.ASCII | re.IGNORECASE
)


def parse_size(text: str, what: str) -> int:
    """Bytes from ``4096``, ``128K``, ``64MiB`` or ``1.5G``; all units are powers of 1024.

    Args:
        text: the size as written.
        what: the option or field, for the message.

    Raises:
        UsageError: it is no size, or no whole number of bytes.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise UsageError(f"{what}: {text!r} is no size; write it like 4096, 128K, 64M or 1.5G")
    whole, fraction, unit = match.groups()
    factor = 1 << (10 * _UNITS[(unit or "").upper()])
    scaled = int(whole + (fraction or "")) * factor
    denominator: int = 10 ** len(fraction or "")
    size, rest = divmod(scaled, denominator)
    if rest:
        raise UsageError(f"{what}: {text!r} is not a whole number of bytes")
    return size


def parse_duration(text: str, what: str) -> float:
    """Seconds from ``45``, ``45s``, ``0.5``, ``30m``, ``1h30m`` or ``2d``.

    Args:
        text: the duration as written.
        what: the option or field, for the message.

    Raises:
        UsageError: it is no duration.
    """
    stripped = text.strip()
    match = _DURATION.fullmatch(stripped)
    if match is None or not stripped:
        raise UsageError(f"{what}: {text!r} is no duration; write it like 45s, 30m or 1h30m")
    return float(sum(float(n) * s for n, s in zip(match.groups("0"), _SECONDS.values(), strict=True)))


def format_size(size_bytes: float) -> str:
    """A size with three digits and a binary unit: ``999 B``, ``1.50 KiB``, ``64.0 MiB``."""
    value, unit = float(size_bytes), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB", "PiB"):
        if abs(value) < 999.5:
            break
        value, unit = value / 1024, larger
    if unit == "B":
        return f"{value:.0f} B"
    digits = 2 if abs(value) < 9.995 else 1 if abs(value) < 99.95 else 0
    return f"{value:.{digits}f} {unit}"


def format_duration(seconds: float) -> str:
    """A duration in whole seconds: ``0:07``, ``12:05``, ``3:00:00``, ``2d 1:00:00``."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    clock = f"{hour}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"
    return f"{days}d {clock}" if days else clock


def format_age(seconds: float) -> str:
    """A duration in its largest unit, in words: ``less than a minute``, ``1 minute``, ``23 hours``, ``12 days``."""
    for name in ("day", "hour", "minute"):
        count = int(seconds // _SECONDS[name[0]])
        if count:
            return f"{count} {name}{'' if count == 1 else 's'}"
    return "less than a minute"
