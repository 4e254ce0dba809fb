"""The vault's remotes as a source of segments that this disk lacks, or has damaged.

Nothing is opened before the first byte is wanted.  The remotes are asked in the order of the list, the one that
answered last first; what comes is believed by nobody before it opens.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Final

from vaultfs.errors import ObjectMissingError, VaultError
from vaultfs.ids import SegmentName
from vaultfs.remotes.configured import load_remotes
from vaultfs.remotes.store import Store
from vaultfs.remotes.urls import open_store
from vaultfs.storage.layout import VaultLayout
from vaultfs.sync.remote_layout import segment_key

Opener = Callable[[], Store]


class RemoteSegments:
    """Some remotes as one `vaultfs.storage.segment_source.SegmentSource`.  Threads may share it.

    Args:
        openers: one for each remote, called once at most unless it fails.
    """

    def __init__(self, openers: list[Opener]) -> None:
        self._openers: Final = openers
        self._stores: Final[dict[int, Store]] = {}
        self._order: Final = list(range(len(openers)))
        self._lock: Final = threading.Lock()

    @classmethod
    def of(cls, layout: VaultLayout) -> RemoteSegments | None:
        """The remotes of a vault; None if it has none.

        Raises:
            IntegrityError: their list is damaged.
            StorageError: it cannot be read.
        """
        remotes = load_remotes(layout)
        if not remotes:
            return None
        return cls([lambda each=each: open_store(each.url, each.options) for each in remotes])  # type: ignore[misc]

    def fetch(self, name: SegmentName, offset: int, length: int) -> bytes:
        """Bytes of a segment, from the first remote that has them.

        Raises:
            ObjectMissingError: all remotes answered, and none has the segment.
            VaultError: what the first of the others said.
        """
        failure: VaultError | None = None
        with self._lock:
            order = list(self._order)
        for number in order:
            try:
                data = b"".join(self._store(number).get(segment_key(name), offset=offset, length=length))
            except ObjectMissingError as error:
                failure = failure or error
            except VaultError as error:
                if failure is None or isinstance(failure, ObjectMissingError):
                    failure = error
            else:
                with self._lock:
                    self._order.remove(number)
                    self._order.insert(0, number)
                return data
        assert failure is not None, "there is at least one remote"
        raise failure

    def _store(self, number: int) -> Store:
        with self._lock:
            store = self._stores.get(number)
            if store is None:
                store = self._stores[number] = self._openers[number]()
            return store
