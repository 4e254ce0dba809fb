"""A store in memory that keeps the whole contract, and can be told to lack a feature."""

from __future__ import annotations

import threading
from collections.abc import Iterator

from vaultfs.errors import NoSpaceError, ObjectExistsError, ObjectMissingError
from vaultfs.remotes.bodies import PIECE_BYTES, read_all, require_range, wanted_bytes
from vaultfs.remotes.keys import is_listed, require_key, require_prefix
from vaultfs.remotes.store import ObjectInfo, Source


class MemoryStore:
    """Objects in a dictionary, which tests may read and change.

    Args:
        name: for messages.
        quota_bytes: how much fits.
        has_conditional_create: False: ``if_absent`` is ignored, as some stores do.
        lists_at_once: False: a listing shows what was stored before the last ``put`` only.

    Attributes:
        objects: what is stored.
        requests: every request so far: its operation and its key or prefix.
        is_closed: whether `close` was called.
    """

    def __init__(
        self,
        name: str = "memory:",
        *,
        quota_bytes: int | None = None,
        has_conditional_create: bool = True,
        lists_at_once: bool = True,
    ) -> None:
        self.name = name
        self.quota_bytes = quota_bytes
        self.has_conditional_create = has_conditional_create
        self.lists_at_once = lists_at_once
        self.objects: dict[str, bytes] = {}
        self.requests: list[tuple[str, str]] = []
        self.is_closed = False
        self._late: str | None = None
        self._lock = threading.Lock()

    def put(self, key: str, source: Source, *, if_absent: bool = False) -> None:
        require_key(key)
        data = read_all(key, source)
        with self._lock:
            self.requests.append(("put", key))
            if if_absent and self.has_conditional_create and key in self.objects:
                raise ObjectExistsError(f"{self.name} has {key} already")
            others = sum(len(value) for name, value in self.objects.items() if name != key)
            if self.quota_bytes is not None and others + len(data) > self.quota_bytes:
                raise NoSpaceError(f"{self.name} is full: cannot store {key}")
            self._late = None if key in self.objects else key
            self.objects[key] = data

    def get(self, key: str, *, offset: int = 0, length: int | None = None) -> Iterator[bytes]:
        require_key(key)
        require_range(offset, length)
        with self._lock:
            self.requests.append(("get", key))
            data = self.objects.get(key)
        if data is None:
            raise ObjectMissingError(f"{self.name} has no {key}")
        end = offset + wanted_bytes(f"{key} on {self.name}", len(data), offset, length)
        for start in range(offset, end, PIECE_BYTES):
            yield data[start : min(end, start + PIECE_BYTES)]

    def size_bytes(self, key: str) -> int | None:
        require_key(key)
        with self._lock:
            self.requests.append(("size_bytes", key))
            data = self.objects.get(key)
        return None if data is None else len(data)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        require_prefix(prefix)
        with self._lock:
            self.requests.append(("list", prefix))
            late = None if self.lists_at_once else self._late
            found = [
                ObjectInfo(key, len(data))
                for key, data in self.objects.items()
                if is_listed(key, prefix) and key != late
            ]
        yield from found

    def delete(self, key: str) -> None:
        require_key(key)
        with self._lock:
            self.requests.append(("delete", key))
            self.objects.pop(key, None)

    def close(self) -> None:
        self.is_closed = True
