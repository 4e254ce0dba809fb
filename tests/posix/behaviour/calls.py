"""System calls that Python's os module lacks or bends, and the shapes in which these tests state what they expect."""

from __future__ import annotations

import ctypes
import errno
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

AT_FDCWD = -100
AT_SYMLINK_FOLLOW = 0x400
RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2
RENAME_WHITEOUT = 4
UTIME_NOW = (1 << 30) - 1
UTIME_OMIT = (1 << 30) - 2

CLOCK_REALTIME_COARSE = 5
"""The clock from which the kernel stamps files; the time module has no name for it."""

_libc = ctypes.CDLL(None, use_errno=True)


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_int64), ("nanoseconds", ctypes.c_long))


@contextmanager
def fails(number: int) -> Iterator[None]:
    """Expect an OSError of just this errno."""
    with pytest.raises(OSError) as caught:
        yield
    assert errno.errorcode[caught.value.errno or 0] == errno.errorcode[number]


def _checked(result: int) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def renameat2(source: Path, target: Path, flags: int) -> None:
    _checked(_libc.renameat2(AT_FDCWD, os.fsencode(source), AT_FDCWD, os.fsencode(target), ctypes.c_uint(flags)))


def utimensat(path: Path, access: tuple[int, int], modification: tuple[int, int]) -> None:
    """Set times from (seconds, nanoseconds); the nanoseconds may be UTIME_NOW or UTIME_OMIT."""
    times = (_Timespec * 2)(_Timespec(*access), _Timespec(*modification))
    _checked(_libc.utimensat(AT_FDCWD, os.fsencode(path), times, 0))


def link_descriptor(descriptor: int, target: Path) -> None:
    """Give an open file a name; os.link does not follow the symlink in /proc."""
    source = b"/proc/self/fd/%d" % descriptor
    _checked(_libc.linkat(AT_FDCWD, source, AT_FDCWD, os.fsencode(target), AT_SYMLINK_FOLLOW))


@contextmanager
def opened(path: Path | str, flags: int, mode: int = 0o644) -> Iterator[int]:
    descriptor = os.open(path, flags, mode)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def wait_for_tick(path: Path) -> int:
    """Wait until the kernel's clock for timestamps (a few ms coarse) is past a file's ctime; returns that ctime."""
    ctime_ns = path.lstat().st_ctime_ns
    while time.clock_gettime_ns(CLOCK_REALTIME_COARSE) <= ctime_ns:
        pass
    return ctime_ns


def exists(path: Path) -> bool:
    """Whether there is a directory entry, symlinks not followed."""
    return os.path.lexists(path)
