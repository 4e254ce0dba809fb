"""Where bytes of segments may come from if this disk does not have them, or has them damaged.

Whoever puts a vault and its remotes together supplies what is described here; nothing in here knows what it is.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Protocol

from vaultfs.ids import SegmentName


class SegmentSource(Protocol):
    """Sealed segments elsewhere.  What it returns is to be believed only once it opens."""

    def fetch(self, name: SegmentName, offset: int, length: int) -> bytes:
        """Bytes of a segment; blocks, for a bounded time; any thread.

        Args:
            name: the segment's.
            offset: bytes from its start.
            length: bytes; that many are returned.

        Raises:
            VaultError: nobody has them, or can be reached.
        """

    def close(self) -> None:
        """Let go of all connections, and of everybody who waits; whoever made the source does this, once or twice."""


class SegmentFiller(Protocol):
    """Brings whole segments into the vault's directory, each with its hash checked."""

    def bring(self, name: SegmentName, size: int) -> None:
        """Have a segment under its name, durably; blocks, maybe for long; any thread.

        Args:
            name: the segment's.
            size: its bytes.

        Raises:
            VaultError: it cannot be had, this disk does not take it, or `close` was called; what came is kept for the
                next time.
        """

    @property
    def came_bytes(self) -> int:
        """Bytes of segments that came so far, those of unfinished ones too."""

    def close(self) -> None:
        """End at once all that is under way, and all that begins later.  Doing it twice is harmless."""


@dataclass(frozen=True)
class KnownElsewhere:
    """What this machine knows of the vault's remotes without asking them.

    Attributes:
        names: segments that a remote may have, as far as anything says so.
        is_complete: nothing else is there, so a segment that is neither here nor among these is lost.
    """

    names: Collection[SegmentName]
    is_complete: bool
