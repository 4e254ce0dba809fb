"""The bytes of one `Put`: a thread reads, opens, hashes and writes what comes, until nothing more is there.

So a byte is touched by one thread and copied once, and the event loop has nothing to do with a fast sender but to begin
the next lot.  What is held is bounded whatever the size of the frames: one buffer of `DATA_BYTES`.  A transfer has to
make progress: `PROGRESS_BYTES` in `PROGRESS_S`, which is less than a modem does, so that nobody keeps a place by a byte
now and then.
"""

from __future__ import annotations

import enum
import time
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

import trio

from vaultfs.errors import VaultError
from vaultfs.mesh.data_frames import DataFrames, Next
from vaultfs.mesh.frames import DATA_BYTES, FrameError
from vaultfs.mesh.message_codec import decode_from_caller
from vaultfs.mesh.message_stream import FRAME_S, ConnectionLostError, InThread, MessageStream
from vaultfs.mesh.messages import Abort, Data, Fail, FromCaller, Goodbye
from vaultfs.mesh.partial_uploads import Upload

PROGRESS_BYTES: Final = DATA_BYTES
PROGRESS_S: Final = FRAME_S
CLOSING_S: Final = 10.0
"""For an object under way when its sender says goodbye."""
LOT_S: Final = 0.1
"""How long a thread takes what comes before it lets others, and a cancellation, have their turn."""

_T = TypeVar("_T")


class End(enum.Enum):
    """How a transfer ended."""

    COMPLETE = "complete"
    ABORTED = "aborted"
    FAILED = "failed"


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
        self, stream: MessageStream, upload: Upload, disk: InThread, failure: Callable[[VaultError], Fail]
    ) -> None:
        self.received_bytes = 0
        self.is_last = False
        self._stream: Final = stream
        self._upload: Final = upload
        self._disk: Final = disk
        self._failure: Final = failure
        self._failed: VaultError | None = None
        self._is_told = False
        self._left_bytes = upload.size_bytes - upload.offset
        self._buffer: Final = memoryview(bytearray(min(DATA_BYTES, max(self._left_bytes, 1))))
        self._held_bytes = 0
        self._frames: Final = DataFrames(stream.read_now)
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
        is_complete = True
        with trio.CancelScope() as closing:
            while self._left_bytes:
                message = await self._other_message()
                if isinstance(message, Goodbye):
                    self.is_last = True
                    closing.deadline = trio.current_time() + CLOSING_S
                elif isinstance(message, Abort) and message.request == request:
                    is_complete = False
                    break
                elif isinstance(message, Data):  # in another encoding than vaultfs's own
                    await self._disk(self._take, message.data)
                    await self._tell()
                elif message is not None:
                    raise FrameError(f"{type(message).__name__} came in the middle of an object")
        if closing.cancelled_caught:
            raise ConnectionLostError(f"an object was not complete {CLOSING_S:.0f} s after its sender had said goodbye")
        if self._failed is not None:
            return End.FAILED
        return End.COMPLETE if is_complete else End.ABORTED

    async def _other_message(self) -> FromCaller | None:
        """Take bytes until something else comes; None: all came."""
        while True:
            before_bytes, began_s = self.received_bytes, trio.current_time()
            with self._stream.borrowed():
                found = await self._disk(self._lot)
            if self.received_bytes == before_bytes:  # it waited, or took what holds no byte of the object
                self._patience_s -= trio.current_time() - began_s
            await self._tell()
            if not self._left_bytes:
                return None
            if found is Next.END:
                raise ConnectionLostError("the connection ended in the middle of an object")
            if found is Next.OTHER:
                self._stream.put_back(self._frames.take_head())
                payload = await self._in_time(self._stream.receive_payload)
                if payload is None:
                    raise ConnectionLostError("the connection ended in the middle of an object")
                return decode_from_caller(payload)
            if self._patience_s <= 0:
                raise _too_slow()
            if found is Next.NOTHING:
                await self._in_time(self._stream.wait_readable)

    async def _in_time(self, wait: Callable[[], Awaitable[_T]]) -> _T:
        """Wait for the sender, within what is left of the time for this part of the object."""
        began_s = trio.current_time()
        with trio.move_on_after(max(0.0, self._patience_s)):
            found = await wait()
            self._patience_s -= trio.current_time() - began_s
            return found
        raise _too_slow()

    async def _tell(self) -> None:
        """Tell the sender, once, that it sends in vain."""
        if self._failed is not None and not self._is_told:
            self._is_told = True
            await self._stream.send(self._failure(self._failed))

    def _lot(self) -> Next:
        """In a thread: take what is there."""
        began_s = time.monotonic()
        end_s, next_progress_bytes = began_s + LOT_S, self._next_progress_bytes
        was_failed = self._failed is not None
        found = Next.BYTES
        while found is Next.BYTES and self._left_bytes and time.monotonic() < end_s:
            found, count = self._frames.read(self._buffer[self._held_bytes :], self._left_bytes)
            self._count(count)
            if self._held_bytes == len(self._buffer):
                self._write()
            if self._failed is not None and not was_failed:
                break  # the sender is to hear of it at once
        if found in {Next.OTHER, Next.END} or not self._left_bytes:
            self._write()  # it may end here, and go on another time
        if self._next_progress_bytes == next_progress_bytes:  # who dribbles keeps a thread, and not the loop, waiting
            self._patience_s -= time.monotonic() - began_s
        return found

    def _take(self, data: bytes) -> None:
        """In a thread: take bytes that came in a message."""
        if len(data) > self._left_bytes:
            raise FrameError("more bytes came than were announced")
        while data:
            part = data[: len(self._buffer) - self._held_bytes]
            self._buffer[self._held_bytes : self._held_bytes + len(part)] = part
            self._count(len(part))
            self._write()
            data = data[len(part) :]

    def _count(self, count: int) -> None:
        self._held_bytes += count
        self._left_bytes -= count
        self.received_bytes += count
        if self.received_bytes >= self._next_progress_bytes:
            self._next_progress_bytes = self.received_bytes + PROGRESS_BYTES
            self._patience_s = PROGRESS_S

    def _write(self) -> None:
        """Write what is held, unless that has failed before."""
        held, self._held_bytes = self._buffer[: self._held_bytes], 0
        if not held or self._failed is not None:
            return
        try:
            self._upload.write(held)
        except VaultError as error:
            self._failed = error


def _too_slow() -> ConnectionLostError:
    return ConnectionLostError(f"less than {PROGRESS_BYTES} bytes of an object came within {PROGRESS_S:.0f} s")
