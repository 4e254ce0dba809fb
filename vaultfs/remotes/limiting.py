"""Keeps a store below a rate, so that a sync leaves the line to others.

A `TokenBucket` may be shared by several stores: then they are limited together.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Final

from vaultfs.errors import UsageError
from vaultfs.remotes.bodies import MeteredSource
from vaultfs.remotes.store import ObjectInfo, Source, Store

_BURST_S: Final = 0.25
"""What may go at once after a pause, in seconds of the rate."""


class TokenBucket:
    """So many bytes in a second.  Safe in several threads, which get their turns in the order in which they came.

    Args:
        bytes_per_s: the rate.
        clock: seconds, never going back.
        wait: is given seconds.

    Raises:
        UsageError: the rate is not above zero.
    """

    def __init__(
        self,
        bytes_per_s: float,
        *,
        clock: Callable[[], float] = time.monotonic,
        wait: Callable[[float], object] | None = None,
    ) -> None:
        if not bytes_per_s > 0:
            raise UsageError(f"a limit of {bytes_per_s:g} bytes per second lets nothing through; leave the limit away")
        self._bytes_per_s = bytes_per_s
        self._clock = clock
        self._opened = threading.Event()
        self._wait = wait or self._opened.wait
        self._lock = threading.Lock()
        self._free_at_s = clock()
        """When all that was let through will have been paid for."""

    def take(self, count: int) -> None:
        """Wait until this many bytes may go.  More than the rate at once is let through late, not refused."""
        with self._lock:
            now_s = self._clock()
            start_s = max(self._free_at_s, now_s - _BURST_S)
            self._free_at_s = start_s + count / self._bytes_per_s
            wait_s = self._free_at_s - now_s
        if wait_s > 0:
            self._wait(wait_s)

    def open(self) -> None:
        """Limit nothing from now on, and wake whoever waits."""
        self._opened.set()


class LimitedStore:
    """A store that is slow on purpose.  Requests without contents are not limited.

    Args:
        inner: the store.
        sending: limits what is stored.
        receiving: limits what is read.
    """

    def __init__(
        self, inner: Store, *, sending: TokenBucket | None = None, receiving: TokenBucket | None = None
    ) -> None:
        self.name = inner.name
        self._inner = inner
        self._sending = sending
        self._receiving = receiving

    def put(self, key: str, source: Source, *, if_absent: bool = False) -> None:
        """Store an object, as `Store.put`."""
        if self._sending is not None:
            source = MeteredSource(source, self._sending.take)
        self._inner.put(key, source, if_absent=if_absent)

    def get(self, key: str, *, offset: int = 0, length: int | None = None) -> Iterator[bytes]:
        """Read an object, as `Store.get`."""
        for piece in self._inner.get(key, offset=offset, length=length):
            if self._receiving is not None:
                self._receiving.take(len(piece))
            yield piece

    def size_bytes(self, key: str) -> int | None:
        """The length of an object, as `Store.size_bytes`."""
        return self._inner.size_bytes(key)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """The objects whose keys begin so, as `Store.list`."""
        return self._inner.list(prefix)

    def delete(self, key: str) -> None:
        """Remove an object, as `Store.delete`."""
        self._inner.delete(key)

    def close(self) -> None:
        """End connections.  Buckets are closed by who made them."""
        self._inner.close()
