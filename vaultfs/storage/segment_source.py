"""Where bytes of segments may come from if this disk does not have them, or has them damaged.

Whoever puts a vault and its remotes together supplies one; nothing here knows what it is.
"""

from __future__ import annotations

from typing import Protocol

from vaultfs.ids import SegmentName


class SegmentSource(Protocol):
    """Sealed segments elsewhere.  What it returns is to be believed only once it opens."""

    def fetch(self, name: SegmentName, offset: int, length: int) -> bytes:
        """Bytes of a segment; blocks; any thread.

        Args:
            name: the segment's.
            offset: bytes from its start.
            length: bytes; that many are returned.

        Raises:
            VaultError: nobody has them, or can be reached.
        """
