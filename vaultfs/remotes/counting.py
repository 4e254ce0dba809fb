"""Counts what goes through a store, for reports, for progress and for tests that bound the cost of a sync."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from vaultfs.remotes.bodies import MeteredSource
from vaultfs.remotes.store import ObjectInfo, Source, Store


@dataclass
class Counts:
    """What went through.

    Attributes:
        requests: calls; a listing is one, however many pages it has, and so is what was tried again inside.
        sent_bytes: contents of objects, those of tries that failed too.
        received_bytes: contents of objects.
    """

    requests: int = 0
    sent_bytes: int = 0
    received_bytes: int = 0


class CountingStore:
    """A store that counts.

    Args:
        inner: the store.
        on_bytes: is called with the bytes sent and the bytes received, one of which is 0, after each lot; from several
            threads at once if the store is used so.
    """

    def __init__(self, inner: Store, on_bytes: Callable[[int, int], None] | None = None) -> None:
        self.name = inner.name
        self._inner = inner
        self._on_bytes = on_bytes
        self._lock = threading.Lock()
        self._counts = Counts()

    @property
    def counts(self) -> Counts:
        """What went through until now: a copy."""
        with self._lock:
            return replace(self._counts)

    def put(self, key: str, source: Source, *, if_absent: bool = False) -> None:
        """Store an object, as `Store.put`."""
        self._add(requests=1)
        self._inner.put(key, MeteredSource(source, lambda count: self._add(sent=count)), if_absent=if_absent)

    def get(self, key: str, *, offset: int = 0, length: int | None = None) -> Iterator[bytes]:
        """Read an object, as `Store.get`."""
        self._add(requests=1)
        for piece in self._inner.get(key, offset=offset, length=length):
            self._add(received=len(piece))
            yield piece

    def size_bytes(self, key: str) -> int | None:
        """The length of an object, as `Store.size_bytes`."""
        self._add(requests=1)
        return self._inner.size_bytes(key)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """The objects whose keys begin so, as `Store.list`."""
        self._add(requests=1)
        return self._inner.list(prefix)

    def delete(self, key: str) -> None:
        """Remove an object, as `Store.delete`."""
        self._add(requests=1)
        self._inner.delete(key)

    def close(self) -> None:
        """End connections."""
        self._inner.close()

    def _add(self, *, requests: int = 0, sent: int = 0, received: int = 0) -> None:
        with self._lock:
            self._counts.requests += requests
            self._counts.sent_bytes += sent
            self._counts.received_bytes += received
        if self._on_bytes is not None and (sent or received):
            self._on_bytes(sent, received)
