"""What was written since the last full commit, kept as it came, so that a small fsync needs one disk sync.

An fsync of little data does not seal chunks.  It stores these records in the database (table ``intent``) with the same
commit that stores the metadata; a mount after a crash applies them again.  The next full commit makes them obsolete.
"""

from __future__ import annotations

from typing import Final

from vaultfs.ids import InodeId

UNLOGGED_LIMIT_BYTES: Final = 512 << 10
"""More than this is faster sealed than logged: the database writes it twice."""

LOGGED_LIMIT_BYTES: Final = 4 << 20
"""Of records in the database; bounds the time a mount after a crash takes."""


class WriteLog:
    """Records in the order of the writes."""

    def __init__(self) -> None:
        self._records: list[tuple[InodeId, int, bytes]] = []
        self._unlogged_bytes = 0
        self._logged_bytes = 0
        self._is_over = False
        self.has_stored = False
        """Whether the table holds records, of this mount or of one that crashed."""

    def wrote(self, inode: InodeId, offset: int, data: bytes | memoryview) -> None:
        """Data was written.  It is kept, not copied, unless it is a view."""
        if self._is_over:
            return
        self._unlogged_bytes += len(data) + 64
        if self._unlogged_bytes > UNLOGGED_LIMIT_BYTES:
            self._overflow()
        elif data:
            self._records.append((inode, offset, data if isinstance(data, bytes) else bytes(data)))

    def cut(self, inode: InodeId, size: int) -> None:
        """A file was cut to ``size`` bytes."""
        if not self._is_over:
            self._unlogged_bytes += 64
            self._records.append((inode, size, b""))
            if self._unlogged_bytes > UNLOGGED_LIMIT_BYTES:
                self._overflow()

    def _overflow(self) -> None:
        self._is_over = True
        self._records.clear()

    @property
    def is_usable(self) -> bool:
        """Whether the records are complete and few."""
        return not self._is_over and self._logged_bytes + self._unlogged_bytes <= LOGGED_LIMIT_BYTES

    @property
    def is_empty(self) -> bool:
        """Whether nothing was written since the last full commit."""
        return not (self._is_over or self._unlogged_bytes or self._logged_bytes or self.has_stored)

    def take(self) -> list[tuple[InodeId, int, bytes]]:
        """The records since the last call, which the caller stores."""
        records, self._records = self._records, []
        self.has_stored |= bool(records)
        self._logged_bytes += self._unlogged_bytes
        self._unlogged_bytes = 0
        return records

    def clear(self) -> bool:
        """Everything is in chunks now; return whether the table holds records that are obsolete."""
        had_stored, self.has_stored = self.has_stored, False
        self._records.clear()
        self._unlogged_bytes = self._logged_bytes = 0
        self._is_over = False
        return had_stored
