"""The bytes of one `Put`: they come while those before them are written.

What is held is bounded whatever the size of the frames: what is written, what waits for that, and what comes.  A
transfer has to make progress: `PROGRESS_BYTES` in `PROGRESS_S`, which is less than a modem does, so that nobody keeps a
place by a byte now and then.
"""

from __future__ import annotations

import enum
from collections.abc import Awaitable, Callable
from typing import Any, Final, Protocol

import trio

from vaultfs.errors import VaultError
from vaultfs.mesh.frames import DATA_BYTES, FrameError
from vaultfs.mesh.message_stream import FRAME_S, ConnectionLostError, MessageStream
from vaultfs.mesh.messages import Abort, Data, Fail, FromCaller, Goodbye, decode_from_caller
from vaultfs.mesh.partial_uploads import Upload

PROGRESS_BYTES: Final = DATA_BYTES
PROGRESS_S: Final = FRAME_S
CLOSING_S: Final = 10.0
"""For an object under way when its sender says goodbye."""
_LARGE_BYTES: Final = DATA_BYTES // 4
"""Smaller pieces are joined before they are written: a turn of a thread costs as much as writing 100 KiB."""


class End(enum.Enum):
    """How a transfer ended."""

    COMPLETE = "complete"
    ABORTED = "aborted"
    FAILED = "failed"


class Disk(Protocol):
    """Does something in a thread."""

    def __call__(self, work: Callable[..., None], *args: Any) -> Awaitable[None]:
        """Call ``work`` and wait for it."""


class IncomingObject:
    """An object that comes.

    Args:
        stream: from where.
        upload: to where; whoever made it ends it.
        disk: does the writing.
        failure: what the sender is told of an error.

    Attributes:
        received_bytes: so far.
        is_last: the sender has said goodbye meanwhile.
    """

    def __init__(
        self, stream: MessageStream, upload: Upload, disk: Disk, failure: Callable[[VaultError], Fail]
    ) -> None:
        self.received_bytes = 0
        self.is_last = False
        self._stream: Final = stream
        self._upload: Final = upload
        self._disk: Final = disk
        self._failure: Final = failure
        self._has_failed = False
        self._left_bytes = upload.size_bytes - upload.offset
        self._next_progress_bytes = PROGRESS_BYTES
        self._patience_s = PROGRESS_S

    async def take(self, request: int) -> End:
        """Receive it to its end, or to where the sender gives up.

        If it cannot be written, the sender is told at once, and the rest is dropped.

        Args:
            request: the number of the `Put`.

        Raises:
            ConnectionLostError: the sender went away, or is too slow.
            FrameError: it sends something else.
        """
        sender, receiver = trio.open_memory_channel[bytes](0)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._write, receiver)
            async with sender:
                is_complete = await self._receive(request, sender)
        if self._has_failed:
            return End.FAILED
        return End.COMPLETE if is_complete else End.ABORTED

    async def _receive(self, request: int, written: trio.MemorySendChannel[bytes]) -> bool:
        """Hand on what comes.  Returns whether all came."""
        held = bytearray()
        is_complete = True
        with trio.CancelScope() as closing:
            while self._left_bytes:
                message = await self._next_message()
                if isinstance(message, Goodbye):
                    self.is_last = True
                    closing.deadline = trio.current_time() + CLOSING_S
                    continue
                if isinstance(message, Abort) and message.request == request:
                    is_complete = False
                    break
                if not isinstance(message, Data):
                    raise FrameError(f"{type(message).__name__} came in the middle of an object")
                data = self._counted(message.data)
                del message
                if self._has_failed:
                    continue
                if len(data) >= _LARGE_BYTES and not held:
                    await written.send(data)
                    continue
                held += data
                if len(held) >= DATA_BYTES:
                    await written.send(bytes(held))
                    held = bytearray()
            if held and not self._has_failed:
                await written.send(bytes(held))
        if closing.cancelled_caught:
            raise ConnectionLostError(f"an object was not complete {CLOSING_S:.0f} s after its sender had said goodbye")
        return is_complete

    async def _next_message(self) -> FromCaller:
        """What comes next, within what is left of the time for this part of the object."""
        began_s = trio.current_time()
        with trio.move_on_after(self._patience_s):
            payload = await self._stream.receive_payload()
            if payload is None:
                raise ConnectionLostError("the connection ended in the middle of an object")
            self._patience_s -= trio.current_time() - began_s
            return decode_from_caller(payload)
        raise ConnectionLostError(f"less than {PROGRESS_BYTES} bytes of an object came within {PROGRESS_S:.0f} s")

    def _counted(self, data: bytes) -> bytes:
        if len(data) > self._left_bytes:
            raise FrameError("more bytes came than were announced")
        self._left_bytes -= len(data)
        self.received_bytes += len(data)
        if self.received_bytes >= self._next_progress_bytes:
            self._next_progress_bytes = self.received_bytes + PROGRESS_BYTES
            self._patience_s = PROGRESS_S
        return data

    async def _write(self, pieces: trio.MemoryReceiveChannel[bytes]) -> None:
        async with pieces:
            async for piece in pieces:
                if self._has_failed:
                    continue
                try:
                    await self._disk(self._upload.write, piece)
                except VaultError as error:
                    self._has_failed = True
                    await self._stream.send(self._failure(error))
