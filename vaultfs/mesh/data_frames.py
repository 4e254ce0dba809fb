"""Takes `Data` apart as it comes, into a buffer, without waiting for whole frames.  Pure.

Only the encoding that `vaultfs.mesh.message_codec.data_head` writes is known here, and any other frame is for
`vaultfs.mesh.frames` and `vaultfs.mesh.message_codec`: its first bytes are kept for them.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Final

from vaultfs.mesh.frames import DATA_BYTES, LENGTH_BYTES, MAX_PAYLOAD_BYTES

_KINDS: Final = {b"\x92\x05\xc4": 1, b"\x92\x05\xc5": 2, b"\x92\x05\xc6": 4}
"""How `Data` begins, and how many bytes its length takes then."""
_KIND_END: Final = LENGTH_BYTES + 3
_LONGEST_HEAD_BYTES: Final = _KIND_END + 4
_SHORTEST_BYTES: Final = _KIND_END - LENGTH_BYTES + 2


class Next(enum.Enum):
    """What is next."""

    BYTES = "bytes"
    NOTHING = "nothing yet"
    OTHER = "another frame"
    END = "the end of the connection"


class DataFrames:
    """Reads bytes of `Data`.

    Args:
        read: reads into a buffer; gives how many bytes, 0 at the end, None if nothing is there now.
    """

    def __init__(self, read: Callable[[memoryview], int | None]) -> None:
        self._read: Final = read
        self._head: Final = bytearray(_LONGEST_HEAD_BYTES)
        self._head_bytes = 0
        self._left_bytes = 0

    def take_head(self) -> bytes:
        """The first bytes of a frame that is none of `Data`; from now on the next frame is due."""
        head, self._head_bytes = bytes(self._head[: self._head_bytes]), 0
        return head

    def read(self, into: memoryview, most_bytes: int) -> tuple[Next, int]:
        """Read some bytes.

        Args:
            into: where to; at least one byte.
            most_bytes: that may come until the end of the object; a frame that has more is another one.

        Returns:
            What is next, and how many bytes came, which may be none.
        """
        if not self._left_bytes:
            found = self._begin(most_bytes)
            if found is not Next.BYTES:
                return found, 0
        count = self._read(into[: self._left_bytes])
        if not count:
            return Next.NOTHING if count is None else Next.END, 0
        self._left_bytes -= count
        return Next.BYTES, count

    def _begin(self, most_bytes: int) -> Next:
        """Read what stands before the bytes of a frame."""
        needed = _KIND_END
        while True:
            with memoryview(self._head) as head:
                while self._head_bytes < needed:
                    count = self._read(head[self._head_bytes : needed])
                    if not count and self._has_odd_length():
                        return Next.OTHER
                    if not count:
                        return Next.NOTHING if count is None else Next.END
                    self._head_bytes += count
            length_bytes = _KINDS.get(bytes(self._head[LENGTH_BYTES:_KIND_END]))
            if length_bytes is None:
                return Next.OTHER
            needed = _KIND_END + length_bytes
            if self._head_bytes == needed:
                break
        count = int.from_bytes(self._head[_KIND_END:needed], "big")
        whole = int.from_bytes(self._head[:LENGTH_BYTES], "big")
        if not 0 < count <= min(DATA_BYTES, most_bytes) or whole != needed - LENGTH_BYTES + count:
            return Next.OTHER  # it is no message, or too long a one, as who decodes it will say
        self._head_bytes = 0
        self._left_bytes = count
        return Next.BYTES

    def _has_odd_length(self) -> bool:
        """Whether a frame has begun whose length alone is a reason to refuse it, or too short for its head."""
        if self._head_bytes < LENGTH_BYTES:
            return False
        return not _SHORTEST_BYTES <= int.from_bytes(self._head[:LENGTH_BYTES], "big") <= MAX_PAYLOAD_BYTES
