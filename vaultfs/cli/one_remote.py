"""One remote as the source of all segments, for a command that looks into a snapshot where it lies.

It has the patience of the store, unlike a mounted vault, where programs wait.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator

from vaultfs.errors import IntegrityError, RemoteError, RemoteRefusedError, RemoteUnreachableError
from vaultfs.ids import SegmentName
from vaultfs.remotes.store import Store
from vaultfs.sync.remote_layout import segment_key
from vaultfs.sync.remote_objects import body
from vaultfs.sync.workers import StoppedError


def no_tick() -> None:
    """Tells nobody."""


class OneRemote:
    """A `vaultfs.storage.segment_source.SegmentSource`.

    Args:
        store: the remote; closed by who opened it.

    Attributes:
        is_gap_damage: what is missing of a segment is damage of what needs it, so that everything else can go on;
            otherwise it is a failure of the remote.
        tick: called before each fetch and after it; may raise, to end it.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._ended = threading.Event()
        self.is_gap_damage = False
        self.tick = no_tick

    def fetch(self, name: SegmentName, offset: int, length: int) -> bytes:
        """As `SegmentSource.fetch`.

        Raises:
            IntegrityError: the remote lacks the segment, or this part of it, and that is damage.
            RemoteError: it failed.
            StoppedError: `close` was called.
        """
        self.tick()
        try:
            with body(self._store, segment_key(name), offset=offset, length=length) as pieces:
                data = b"".join(self._unless_ended(pieces))
        except RemoteError as error:
            if not self.is_gap_damage or isinstance(error, RemoteUnreachableError | RemoteRefusedError):
                raise
            raise IntegrityError(str(error)) from error
        self.tick()
        return data

    def _unless_ended(self, pieces: Iterator[bytes]) -> Iterator[bytes]:
        for piece in pieces:
            if self._ended.is_set():
                raise StoppedError("stopped")
            yield piece

    def close(self) -> None:
        """Let what is under way end with its next piece."""
        self._ended.set()
