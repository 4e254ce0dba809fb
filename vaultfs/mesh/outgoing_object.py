"""The bytes of an object on their way out, in frames of `Data`: each piece is read when the one before it was sent.

`DataSource.next_frame` is for `vaultfs.mesh.message_stream.MessageStream.send_frames`, which calls it in a thread.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from vaultfs.errors import RemoteError
from vaultfs.mesh.frames import DATA_BYTES
from vaultfs.mesh.message_codec import data_head


class DataSource:
    """An object, or a part of it, as frames.

    Args:
        read: gives the next bytes, any number; nothing at the end.  Called in a thread.
        size_bytes: how many there are to be.
        is_in_vain: asked before each frame; if so, no further one is begun.

    Attributes:
        sent_bytes: of the object, so far.
    """

    def __init__(
        self, read: Callable[[], bytes], size_bytes: int, is_in_vain: Callable[[], bool] | None = None
    ) -> None:
        self.sent_bytes = 0
        self._read: Final = read
        self._size_bytes: Final = size_bytes
        self._is_in_vain: Final = is_in_vain
        self._piece = memoryview(b"")

    def next_frame(self) -> tuple[bytes, memoryview] | None:
        """What the next frame consists of; None after the last one.

        Raises:
            RemoteError: there are more bytes than were announced, or less.
            VaultError: what reading raises.
        """
        if self.sent_bytes == self._size_bytes or (self._is_in_vain is not None and self._is_in_vain()):
            return None
        if not self._piece:
            self._piece = memoryview(self._read())
            if not 0 < len(self._piece) <= self._size_bytes - self.sent_bytes:
                raise RemoteError("an object changed its length while it was sent")
        data, self._piece = self._piece[:DATA_BYTES], self._piece[DATA_BYTES:]
        self.sent_bytes += len(data)
        return data_head(len(data)), data
