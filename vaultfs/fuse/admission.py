"""How many requests may be under way at once, and which of them do not count.

Each request that waits holds a worker, and with it the memory of what it wrote; so there is a limit.  But who waits for
something that another request must bring would wait for ever, if those that wait like him had taken all workers and the
other could not be read.  So while a request waits for others, or for long without holding data, it does not count.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import trio


class Admission:
    """The requests of one mount.  For the event loop's thread.

    Attributes:
        most: so many requests that count may be under way.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._excused = 0
        self._changed: trio.Event | None = None

    def admits(self, under_way: int) -> bool:
        """Whether one more request may be read while there are so many."""
        return under_way < self.most + self._excused

    @contextlib.contextmanager
    def excused(self) -> Iterator[None]:
        """The request that runs the body does not count meanwhile."""
        self._excused += 1
        self.reconsider()
        try:
            yield
        finally:
            self._excused -= 1

    def reconsider(self) -> None:
        """There may be fewer requests that count than a moment ago."""
        if self._changed is not None:
            self._changed.set()

    async def changed(self) -> None:
        """Wait until there may be fewer requests that count; one task at a time."""
        self._changed = trio.Event()
        try:
            await self._changed.wait()
        finally:
            self._changed = None
