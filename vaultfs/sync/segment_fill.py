"""Whole segments for a vault that is in use: from its remotes, one after the other, behind whoever reads.

While somebody reads from a remote, this takes a piece a second at most, so that the line is theirs; the request stays
open meanwhile.  What came of a segment before this was ended is gone on with.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Final, Protocol

from vaultfs.errors import IntegrityError, ObjectMissingError, RemoteError, VaultError
from vaultfs.ids import SegmentName
from vaultfs.remotes.limiting import LimitedStore, TokenBucket
from vaultfs.remotes.store import Store
from vaultfs.storage.durable import fsync_directory, storage_errors
from vaultfs.storage.layout import VaultLayout
from vaultfs.sync.fetched_file import SegmentFetch
from vaultfs.sync.workers import Crew, StoppedError

PAUSE_S: Final = 1.0
"""A piece is taken after so long, however much others read: a server closes a connection that nobody reads from."""
_LOOKS: Final = 10


class Readers(Protocol):
    """Whoever else reads from the remotes."""

    @property
    def is_in_use(self) -> bool:
        """Whether somebody does, or did a moment ago."""


class _Turns(Crew):
    """What a fetch asks between two pieces, and tells how much came."""

    def __init__(self, fill: SegmentFill) -> None:
        super().__init__(1)
        self._fill: Final = fill

    def check(self) -> None:
        self._fill.wait_for_turn()

    def advance(self, count: int) -> None:
        self._fill.came(count)


class SegmentFill:
    """A `vaultfs.storage.segment_source.SegmentFiller`.

    Args:
        layout: the vault.
        openers: one for each remote; called when it is needed, once unless it fails.
        readers: go first.
        bytes_per_s: at most, of all together; None: no limit.
        wait: is given seconds; returns early, and true, once there is an end.
    """

    def __init__(
        self,
        layout: VaultLayout,
        openers: Sequence[Callable[[], Store]],
        readers: Readers,
        bytes_per_s: int | None = None,
        *,
        wait: Callable[[float], bool] | None = None,
    ) -> None:
        self._layout: Final = layout
        self._openers: Final = openers
        self._readers: Final = readers
        self._bucket: Final = None if bytes_per_s is None else TokenBucket(bytes_per_s)
        self._ending: Final = threading.Event()
        self._wait: Final = wait or self._ending.wait
        self._lock: Final = threading.Lock()
        self._stores: Final[dict[int, Store]] = {}
        self._order: Final = list(range(len(openers)))
        self._came_bytes = 0

    @property
    def came_bytes(self) -> int:
        """Bytes of segments that came so far."""
        with self._lock:
            return self._came_bytes

    def bring(self, name: SegmentName, size: int) -> None:
        """Have a segment under its name, durably, from the first remote that has it whole.

        Raises:
            StoppedError: it was closed.
            VaultLockedError: another process fetches this segment.
            NoSpaceError, StorageError: the disk is full, or failed.
            ObjectMissingError, IntegrityError: all remotes answered, and none has it, or all have something else.
            VaultError: what the first of the others said.
        """
        shard = self._layout.sealed_path(name).parent
        with storage_errors(f"cannot create the directory {shard}"):
            shard.mkdir(mode=0o700, exist_ok=True)
        self._fetch(name, size)
        fsync_directory(shard)
        fsync_directory(self._layout.segments)

    def _fetch(self, name: SegmentName, size: int) -> None:
        failure: VaultError | None = None
        with self._lock:
            order = list(self._order)
        for number in order:
            try:
                SegmentFetch(self._store(number), self._layout, name, size, _Turns(self)).run()
            except (ObjectMissingError, IntegrityError) as error:
                failure = failure or error
            except RemoteError as error:
                if failure is None or isinstance(failure, ObjectMissingError | IntegrityError):
                    failure = error
            else:
                with self._lock:
                    self._order.remove(number)
                    self._order.insert(0, number)
                return
        assert failure is not None, "there is at least one remote"
        raise failure

    def _store(self, number: int) -> Store:
        with self._lock:
            if self._ending.is_set():
                raise StoppedError("the vault is being closed")
            store = self._stores.get(number)
            if store is None:
                store = self._openers[number]()
                if self._bucket is not None:
                    store = LimitedStore(store, receiving=self._bucket)
                self._stores[number] = store
            return store

    def wait_for_turn(self) -> None:
        """Called between two pieces.

        Raises:
            StoppedError: there is an end.
        """
        for _ in range(_LOOKS):
            if self._ending.is_set() or not self._readers.is_in_use:
                break
            self._wait(PAUSE_S / _LOOKS)
        if self._ending.is_set():
            raise StoppedError("the vault is being closed")

    def came(self, count: int) -> None:
        """So many bytes came; fewer than none, if what came before was damaged."""
        with self._lock:
            self._came_bytes += count

    def close(self) -> None:
        """End what is under way, and close all stores."""
        self._ending.set()
        if self._bucket is not None:
            self._bucket.open()
        with self._lock:
            stores = list(self._stores.values())
            self._stores.clear()
        for store in stores:
            store.close()
