"""Frames: how messages are told apart in a stream.  Pure.

A frame is its payload's length, four bytes, the highest first, and the payload.  An empty payload is none, and the
longest is `MAX_PAYLOAD_BYTES`: a longer one is refused when its length has been read, before anything is kept for it.
Until a peer has said hello it may send `FIRST_PAYLOAD_BYTES` only.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from vaultfs.errors import RemoteError

LENGTH_BYTES: Final = 4
DATA_BYTES: Final = 256 << 10
"""Most bytes of an object in one frame.  A peer holds one frame for each connection, and a hundred connections must not
take 100 MiB; with 1 MiB a transfer was not faster."""
MAX_PAYLOAD_BYTES: Final = DATA_BYTES + 1024
FIRST_PAYLOAD_BYTES: Final = 4096


class FrameError(RemoteError):
    """What came is no frame that the protocol allows: whoever speaks there is not to be listened to any longer."""


def frame(payload: bytes) -> bytes:
    """A frame.

    Args:
        payload: at most `MAX_PAYLOAD_BYTES`.

    Raises:
        ValueError: it is empty or too long.
    """
    if not 0 < len(payload) <= MAX_PAYLOAD_BYTES:
        raise ValueError(f"a frame holds 1 to {MAX_PAYLOAD_BYTES} bytes, not {len(payload)}")
    return len(payload).to_bytes(LENGTH_BYTES, "big") + payload


class FrameDecoder:
    """Takes bytes as they come and gives payloads.

    At most one payload, and what came after it, is held.

    Attributes:
        limit_bytes: of a payload; may be changed between two payloads.
    """

    def __init__(self, limit_bytes: int = MAX_PAYLOAD_BYTES) -> None:
        self.limit_bytes = limit_bytes
        self._parts: list[bytes | memoryview] = []
        self._held_bytes = 0

    @property
    def held_bytes(self) -> int:
        """Bytes that came and are not part of a payload that was given out; not zero at an end: it was cut."""
        return self._held_bytes

    def feed(self, data: bytes) -> None:
        """Bytes that came."""
        if data:
            self._parts.append(data)
            self._held_bytes += len(data)

    def take_raw(self, into: memoryview) -> int:
        """Move bytes that came out of here, for who takes frames apart alone; returns how many."""
        part = self._parts[0]
        count = min(len(part), len(into))
        into[:count] = part[:count]
        if count == len(part):
            del self._parts[0]
        else:
            self._parts[0] = memoryview(part)[count:]
        self._held_bytes -= count
        return count

    def put_back(self, data: bytes) -> None:
        """Bytes that came before those that are held."""
        self._parts.insert(0, data)
        self._held_bytes += len(data)

    def payloads(self) -> Iterator[bytes]:
        """The payloads that are complete.

        Raises:
            FrameError: a length is none that is allowed.
        """
        while self._held_bytes >= LENGTH_BYTES:
            length = self._length()
            if not 0 < length <= self.limit_bytes:
                raise FrameError(f"a frame of {length} bytes came, where 1 to {self.limit_bytes} are allowed")
            if self._held_bytes < LENGTH_BYTES + length:
                return
            yield self._take(LENGTH_BYTES + length)

    def _length(self) -> int:
        first = self._parts[0]
        if len(first) < LENGTH_BYTES:
            first = b"".join(self._parts)
            self._parts = [first]
        return int.from_bytes(first[:LENGTH_BYTES], "big")

    def _take(self, count: int) -> bytes:
        """The payload of the first frame, which has so many bytes with its length."""
        taken: list[bytes | memoryview] = []
        left = count
        position = 0
        while left:
            part = self._parts[position]
            if len(part) > left:
                taken.append(part[:left])
                self._parts[position] = memoryview(part)[left:]
                break
            taken.append(part)
            left -= len(part)
            position += 1
        del self._parts[:position]
        self._held_bytes -= count
        taken[0] = memoryview(taken[0])[LENGTH_BYTES:]
        return b"".join(taken)
