"""Segments elsewhere, as tests make them up."""

from __future__ import annotations

import threading
from pathlib import Path

from vaultfs.errors import ObjectMissingError, RemoteUnreachableError
from vaultfs.ids import SegmentName


class Elsewhere:
    """Segments in memory; counts what is asked for.

    Attributes:
        requests: (name, offset, length) of each.
        is_down: nothing can be reached.
        flipped: every byte comes with one bit changed.
        closed: how often it was closed.
        cut: so many bytes are missing at each end.
    """

    def __init__(self, segments: dict[str, bytes]) -> None:
        self.segments = segments
        self.requests: list[tuple[str, int, int]] = []
        self.is_down = False
        self.flipped = False
        self.cut = 0
        self.closed = 0
        self._lock = threading.Lock()

    @classmethod
    def of(cls, root: Path) -> Elsewhere:
        return cls({path.stem: path.read_bytes() for path in root.glob("segments/??/*.seg")})

    @property
    def fetched_bytes(self) -> int:
        return sum(length for _, _, length in self.requests)

    def fetch(self, name: SegmentName, offset: int, length: int) -> bytes:
        with self._lock:
            self.requests.append((name, offset, length))
        if self.is_down:
            raise RemoteUnreachableError("elsewhere cannot be reached")
        if name not in self.segments:
            raise ObjectMissingError(f"no segment {name} elsewhere")
        data = self.segments[name][offset : offset + length - self.cut]
        return bytes(byte ^ 1 for byte in data) if self.flipped else data

    def close(self) -> None:
        self.closed += 1
