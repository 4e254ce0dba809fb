"""What has come of objects that are being read, before it is given out: for who shows how far a restore is.

A whole object is kept until its hash was checked, and only then given out, all at once.  Here its bytes count as they
arrive, and are taken back if they were wrong or the peer failed.  Thread-safe: the event loop reports, others look.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

from vaultfs.mesh.share_keys import parse_share_key
from vaultfs.sync.remote_layout import segment_key


@dataclass(eq=False)
class Attempt:
    """What one peer has sent of one object."""

    of: _Reading
    key: str
    came_bytes: int = 0
    is_over: bool = False


@dataclass(eq=False)
class _Reading:
    attempts: list[Attempt] = field(default_factory=list)
    handed_bytes: int = 0
    most_bytes: int | None = None

    def pending_bytes(self) -> int:
        """What has come and was not given out; of an object that two peers send, what the faster one has sent."""
        farthest: dict[str, int] = {}
        for attempt in self.attempts:
            farthest[attempt.key] = max(farthest.get(attempt.key, 0), attempt.came_bytes)
        came = sum(farthest.values())
        return max(0, (came if self.most_bytes is None else min(came, self.most_bytes)) - self.handed_bytes)


class Arrivals:
    """Those of one store."""

    def __init__(self) -> None:
        self._lock: Final = threading.Lock()
        self._readings: Final[dict[str, _Reading]] = {}

    @property
    def pending_bytes(self) -> int:
        """What has come of all that is being read, and was not given out."""
        with self._lock:
            return sum(reading.pending_bytes() for reading in self._readings.values())

    @contextmanager
    def reading(self, key: str) -> Iterator[None]:
        """An object is read in this block; what comes of it counts.  A second reader of the same one is not counted."""
        with self._lock:
            is_first = key not in self._readings
            if is_first:
                self._readings[key] = _Reading()
        try:
            yield
        finally:
            if is_first:
                with self._lock:
                    del self._readings[key]

    def handed(self, key: str, count: int) -> None:
        """So many bytes of an object that is being read are given out now."""
        with self._lock:
            if key in self._readings:
                self._readings[key].handed_bytes += count

    def begin(self, key: str) -> Attempt | None:
        """A peer is asked for an object, or for a share of one; None: nobody counts what comes.

        An earlier attempt at the same key that is over has failed its check, or there would be no other.
        """
        share = parse_share_key(key)
        whole = key if share is None else segment_key(share.coded.name)
        with self._lock:
            reading = self._readings.get(whole)
            if reading is None:
                return None
            if share is not None:
                reading.most_bytes = share.coded.size_bytes
            reading.attempts[:] = [each for each in reading.attempts if not (each.is_over and each.key == key)]
            reading.attempts.append(Attempt(reading, key))
            return reading.attempts[-1]

    def came(self, attempt: Attempt, count: int) -> None:
        """So many bytes more have come."""
        with self._lock:
            attempt.came_bytes += count

    def end(self, attempt: Attempt, *, is_whole: bool) -> None:
        """No more will come.

        Args:
            attempt: of `begin`.
            is_whole: all has come; else it is taken back.
        """
        with self._lock:
            attempt.is_over = True
            if not is_whole:
                attempt.of.attempts.remove(attempt)
