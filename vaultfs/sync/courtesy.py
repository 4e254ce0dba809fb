"""Leaves the machine to whoever works in the mounted vault: while its daemon is busy, a sync reads slowly.

A sync at full speed takes what processors and memory there are, and the mount would share them with it.  A network
seldom takes as much as `BUSY_BYTES_PER_S`; so this shows where the remote is a disk or a server nearby, and only while
somebody works.  A priority (nice(2)) would not do: Linux weighs it among the processes of one session, and the daemon
has its own.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from vaultfs.remotes.limiting import TokenBucket

BUSY_BYTES_PER_S: Final = 64 << 20
FREE_BYTES: Final = 128 << 20
"""Are never waited with: most syncs are small, and over before anybody feels them."""
LOOK_S: Final = 0.1
"""How often it is looked whether the daemon is busy."""
BUSY_SHARE: Final = 0.2
"""Of one processor, since the last look."""

_TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")


class Courtesy:
    """Slows down what is read while a process is busy.  Safe in several threads.

    Args:
        pid: of the daemon; 0 if there is none.
        used_s: processor time that a process has used, in seconds; 0 if it has gone.
        clock: seconds, never going back.
        bucket: what to wait for.
    """

    def __init__(
        self,
        pid: int,
        *,
        used_s: Callable[[int], float] | None = None,
        clock: Callable[[], float] = time.monotonic,
        bucket: TokenBucket | None = None,
    ) -> None:
        self._pid: Final = pid
        self._used_s: Final = used_s or _used_s
        self._clock: Final = clock
        self._bucket: Final = bucket or TokenBucket(BUSY_BYTES_PER_S, clock=clock)
        self._lock: Final = threading.Lock()
        self._free_bytes = FREE_BYTES
        self._looked_at_s = clock()
        self._seen_s = self._used_s(pid) if pid else 0.0
        self._is_busy = False

    def wait(self, count: int) -> None:
        """Called before so many bytes are read: returns at once, or when they may be, if the daemon is busy."""
        if self._pid and self._is_to_wait(count):
            self._bucket.take(count)

    def _is_to_wait(self, count: int) -> bool:
        with self._lock:
            if self._free_bytes > 0:
                self._free_bytes -= count
                return False
            passed_s = self._clock() - self._looked_at_s
            if passed_s >= LOOK_S:
                used_s = self._used_s(self._pid)
                self._is_busy = used_s - self._seen_s > BUSY_SHARE * passed_s
                self._looked_at_s += passed_s
                self._seen_s = used_s
            return self._is_busy


def _used_s(pid: int) -> float:
    """From proc_pid_stat(5): utime and stime, the 14th and 15th field; the 2nd may hold spaces and brackets."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS_PER_S
    except (OSError, IndexError, ValueError):
        return 0.0
