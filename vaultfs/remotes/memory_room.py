"""A bound on what is in memory at once, for stores whose libraries hold whole objects while they send them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final


class MemoryRoom:
    """So many bytes for all who share it.  Who comes first is served first, so that a large one waits no longer.

    Args:
        size_bytes: how much there is; what is larger goes alone.
    """

    def __init__(self, size_bytes: int) -> None:
        self._size_bytes: Final = size_bytes
        self._used_bytes = 0
        self._turn: Final = threading.Lock()
        self._changed: Final = threading.Condition()

    @contextmanager
    def taken(self, count: int) -> Iterator[None]:
        """Wait until there is room for this many bytes; it is theirs as long as the context lasts."""
        count = min(count, self._size_bytes)
        with self._turn, self._changed:
            self._changed.wait_for(lambda: self._used_bytes + count <= self._size_bytes)
            self._used_bytes += count
        try:
            yield
        finally:
            with self._changed:
                self._used_bytes -= count
                self._changed.notify()
