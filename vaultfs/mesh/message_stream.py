"""Messages over a connection, each within its time.  Both ends use it.

Nobody waits for ever: a frame that has begun must be complete within `FRAME_S`, and what is sent must be taken within
`FRAME_S`.  How long the other side may be silent between two frames is for the caller to say.  At most one frame, and
what came along with it, is held.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Final, Protocol, TypeVar

import trio

from vaultfs.errors import RemoteUnreachableError
from vaultfs.mesh.frames import MAX_PAYLOAD_BYTES, FrameDecoder
from vaultfs.mesh.message_codec import encode
from vaultfs.mesh.messages import Message

FRAME_S: Final = 30.0
"""For a frame that has begun to come, and for one that is sent."""
_LAST_WORD_S: Final = 2.0
_MOST_DROPPED_BYTES: Final = 4 << 20


NextFrame = Callable[[], Sequence[bytes | memoryview] | None]
"""Gives the parts of the next frame that is to be sent, in a thread; None at the end."""

_T = TypeVar("_T")


class InThread(Protocol):
    """Does something in a thread."""

    def __call__(self, work: Callable[..., _T], *args: Any) -> Awaitable[_T]:
        """Call ``work`` and wait for it, cancelled or not."""


class ConnectionLostError(RemoteUnreachableError):
    """The connection broke, or the other side was too slow; what was under way has to be done again elsewhere."""


class TookNothingError(ConnectionLostError):
    """What was sent was not taken in time."""


class SilenceError(ConnectionLostError):
    """The other side did not begin to say anything; the connection itself is whole."""


class Transport(Protocol):
    """What carries the bytes: a `vaultfs.mesh.tls_stream.TlsStream`."""

    async def send_all(self, data: bytes) -> None:
        """Send bytes; raises `trio.BrokenResourceError` or `trio.ClosedResourceError`."""

    async def send_some(self, next_frame: NextFrame, in_thread: InThread) -> bool:
        """Send at least one frame, whole; whether there may be more.  Raises likewise."""

    async def receive_some(self) -> bytes:
        """Some bytes; none at the end.  Raises likewise."""

    def borrowed(self) -> AbstractContextManager[None]:
        """While another thread uses `read_now`."""

    def read_now(self, into: memoryview) -> int | None:
        """In a thread: some bytes; 0 at the end; None: nothing is there.  Raises likewise."""

    async def wait_readable(self) -> None:
        """Wait until something comes.  Raises likewise."""

    async def finish_sending(self) -> None:
        """Nothing more is sent, and the other side hears so.  Raises likewise."""

    async def aclose(self) -> None:
        """Close; cancelled, it has closed."""

    def abort(self) -> None:
        """Close at once."""


class MessageStream:
    """Messages over one connection.  One task may send while another receives.

    Args:
        transport: connected; it belongs to this stream from now on.
        limit_bytes: longest payload that is taken at first.
    """

    def __init__(self, transport: Transport, limit_bytes: int = MAX_PAYLOAD_BYTES) -> None:
        self._transport: Final = transport
        self._decoder: Final = FrameDecoder(limit_bytes)

    def set_limit(self, limit_bytes: int) -> None:
        """How long a payload may be from now on; a longer one is refused when its length has come."""
        self._decoder.limit_bytes = limit_bytes

    async def send(self, message: Message | bytes) -> None:
        """Send a message.  Cancelled, nothing more can be sent.

        Args:
            message: or the frame of one.

        Raises:
            ConnectionLostError: the connection broke, or the other side took nothing for too long.
        """
        data = message if isinstance(message, bytes) else encode(message)
        with trio.move_on_after(FRAME_S) as scope:
            try:
                await self._transport.send_all(data)
            except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
                raise _lost(error) from error
        if scope.cancelled_caught:
            raise TookNothingError(f"the other side took nothing for {FRAME_S:.0f} s")

    async def send_frames(self, next_frame: NextFrame, in_thread: InThread) -> None:
        """Send frames of an object, as `send` sends messages.

        Args:
            next_frame: gives frames; each has its own time.
            in_thread: calls something in a thread, and waits for it, cancelled or not.

        Raises:
            ConnectionLostError: as `send`.
            VaultError: what ``next_frame`` raises; the stream can be used further.
        """
        has_more = True
        while has_more:
            with trio.move_on_after(FRAME_S) as scope:
                try:
                    has_more = await self._transport.send_some(next_frame, in_thread)
                except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
                    raise _lost(error) from error
            if scope.cancelled_caught:
                raise TookNothingError(f"the other side took nothing for {FRAME_S:.0f} s")

    def borrowed(self) -> AbstractContextManager[None]:
        """While a thread uses `read_now`."""
        return self._transport.borrowed()

    def read_now(self, into: memoryview) -> int | None:
        """In a thread, while it is `borrowed`: bytes of frames that nobody has taken yet.

        Returns:
            How many bytes; 0 at the end; None: nothing is there.

        Raises:
            ConnectionLostError: the connection broke.
        """
        if self._decoder.held_bytes:
            return self._decoder.take_raw(into)
        try:
            return self._transport.read_now(into)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise _lost(error) from error

    def put_back(self, data: bytes) -> None:
        """Bytes of `read_now` that begin a frame which is for `receive_payload`."""
        self._decoder.put_back(data)

    async def wait_readable(self) -> None:
        """Wait until something comes, when `read_now` has found nothing.

        Raises:
            ConnectionLostError: this side closed the connection.
        """
        try:
            await self._transport.wait_readable()
        except trio.ClosedResourceError as error:
            raise _lost(error) from error

    def next_payload(self) -> bytes | None:
        """A payload that has come already; None if none has come wholly.

        Raises:
            FrameError: what came is no frame.
        """
        return next(self._decoder.payloads(), None)

    async def receive_payload(self, begin_s: float = math.inf) -> bytes | None:
        """The next payload; None if the connection ended between two.

        Cancelled, it has lost nothing.

        Args:
            begin_s: how long the other side may take to begin.

        Raises:
            FrameError: what came is no frame.
            SilenceError: nothing has begun in time.
            ConnectionLostError: the connection broke, or ended within a frame, or the frame took too long.
        """
        payload = self.next_payload()
        if payload is not None:
            await trio.lowlevel.cancel_shielded_checkpoint()
            return payload
        has_begun = self._decoder.held_bytes > 0
        with trio.move_on_after(FRAME_S if has_begun else begin_s) as scope:
            while True:
                try:
                    data = await self._transport.receive_some()
                except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
                    raise _lost(error) from error
                if not data:
                    break
                self._decoder.feed(data)
                payload = self.next_payload()
                if payload is not None:
                    return payload
                if not has_begun:
                    has_begun = True
                    scope.deadline = trio.current_time() + FRAME_S
        if scope.cancelled_caught:
            if not has_begun:
                raise SilenceError(f"the other side was silent for {begin_s:.0f} s")
            raise ConnectionLostError(f"the other side did not end a frame within {FRAME_S:.0f} s")
        if has_begun:
            raise ConnectionLostError("the connection ended in the middle of a frame")
        return None

    async def refuse(self, message: Message) -> None:
        """Say a last thing, and close.  Cancelled, it has closed.

        What the other side has sent meanwhile is read and dropped for a moment: a socket that is closed with unread
        bytes resets the connection, and the other side would never see the message.
        """
        with trio.move_on_after(_LAST_WORD_S):
            try:
                await self._transport.send_all(encode(message))
                await self._transport.finish_sending()
                dropped_bytes = 0
                while dropped_bytes < _MOST_DROPPED_BYTES and (data := await self._transport.receive_some()):
                    dropped_bytes += len(data)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                pass  # it has gone already
            finally:
                self._transport.abort()

    async def aclose(self) -> None:
        """Close.  Cancelled, it has closed."""
        await self._transport.aclose()

    def abort(self) -> None:
        """Close at once, without awaiting: what other tasks wait for here ends with `ConnectionLostError`."""
        self._transport.abort()


def _lost(error: Exception) -> ConnectionLostError:
    return ConnectionLostError(str(error) or "the connection broke")
