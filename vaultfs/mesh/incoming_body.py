"""An object that a peer sends, or a part of it, at the end of whoever asked for it.

Who sends has to make progress: `PROGRESS_BYTES` in the time that it may be silent, so that a peer that sends a byte now
and then does not hold up for ever who reads, although another has the same.
"""

from __future__ import annotations

from typing import Final, Protocol

import trio

from vaultfs.errors import VaultError
from vaultfs.mesh.messages import Body

PROGRESS_BYTES: Final = 256 << 10


class Carrier(Protocol):
    """The connection on which a body comes: a `vaultfs.mesh.connection.PeerConnection`."""

    def failure(self) -> VaultError:
        """Why it has ended."""

    def broken(self, what: str) -> VaultError:
        """Close it because of what the peer does, and return the error."""


class IncomingBody:
    """An object that comes, or a part of it.

    Args:
        carrier: the connection on which it comes.
        body: what the peer has announced.
        pieces: what comes; closed when the connection has ended.
        patience_s: so long the peer may be silent, or take for `PROGRESS_BYTES`.

    Attributes:
        size_bytes: of the whole object, as the peer says.
        body_bytes: that come.
    """

    def __init__(
        self, carrier: Carrier, body: Body, pieces: trio.MemoryReceiveChannel[bytes], patience_s: float
    ) -> None:
        self.size_bytes: Final = body.size_bytes
        self.body_bytes: Final = body.body_bytes
        self._carrier: Final = carrier
        self._pieces: Final = pieces
        self._all_patience_s: Final = patience_s
        self._patience_s = patience_s
        self._left_bytes = body.body_bytes
        self._missing_bytes = PROGRESS_BYTES

    @property
    def is_complete(self) -> bool:
        """Whether all of it was taken."""
        return not self._left_bytes

    async def receive(self) -> bytes:
        """The next bytes; nothing at the end.

        Raises:
            RemoteError: the peer failed, or sent too much.
            RemoteUnreachableError: it is gone, or silent.
        """
        if not self._left_bytes:
            return b""
        began_s = trio.current_time()
        with trio.move_on_after(self._patience_s):
            try:
                piece = await self._pieces.receive()
            except trio.EndOfChannel:
                raise self._carrier.failure() from None
            self._left_bytes -= len(piece)
            if self._left_bytes < 0:
                raise self._carrier.broken("sends more than it has announced")
            self._note_progress(len(piece), trio.current_time() - began_s)
            return piece
        if self._patience_s == self._all_patience_s:
            raise self._carrier.broken(f"has sent nothing for {self._all_patience_s:.0f} s")
        raise self._carrier.broken(
            f"sends an object too slowly, less than {PROGRESS_BYTES} bytes in {self._all_patience_s:.0f} s"
        )

    def _note_progress(self, count: int, waited_s: float) -> None:
        self._patience_s -= waited_s
        self._missing_bytes -= count
        if self._missing_bytes <= 0:
            self._missing_bytes = PROGRESS_BYTES
            self._patience_s = self._all_patience_s
