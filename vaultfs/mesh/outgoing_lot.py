"""What a thread sends at once over TLS: whole frames, each sealed in portions.  Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

LOT_SEND_BYTES: Final = 128 << 10
"""Most bytes of one part of a frame that are sealed at once; the shorter parts before it go along with it."""


class OutgoingLot:
    """Some frames.

    Args:
        next_frame: gives the parts of a frame; None at the end.

    Attributes:
        sealed: what is to be sent of what was sealed.
        has_sent: a frame was begun.
        is_blocked: the other side did not take something in time, which was left to the loop.
    """

    def __init__(self, next_frame: Callable[[], Sequence[bytes | memoryview] | None]) -> None:
        self.sealed = memoryview(b"")
        self.has_sent = False
        self.is_blocked = False
        self._next_frame: Final = next_frame
        self._parts: Final[deque[memoryview]] = deque()

    @property
    def is_between_frames(self) -> bool:
        """Whether a further frame is to be begun, if any."""
        return not self._parts and not self.sealed

    def begin_frame(self) -> bool:
        """Begin the next frame.  Returns whether there is one.

        Raises:
            Exception: what gives frames raises; the frames before were given out.
        """
        frame = self._next_frame()
        if frame is None:
            return False
        self._parts.extend(map(memoryview, frame))
        self.has_sent = True
        return True

    def seal_next(self, seal: Callable[[memoryview], object], take_sealed: Callable[[], bytes]) -> None:
        """Seal what follows of a frame.

        Its head goes along with bytes: alone it would be a packet, and a turn of the other side, for each frame.

        Args:
            seal: seals some bytes.  If it raises, the frame stays begun.
            take_sealed: gives all that was sealed.
        """
        sealed_bytes = 0
        while self._parts and sealed_bytes < LOT_SEND_BYTES:
            part = self._parts[0][:LOT_SEND_BYTES]
            seal(part)
            sealed_bytes += len(part)
            if len(part) == len(self._parts[0]):
                self._parts.popleft()
            else:
                self._parts[0] = self._parts[0][LOT_SEND_BYTES:]
        self.sealed = memoryview(take_sealed())
