"""Room on the disk below the vault.

Writers are refused while a reserve is left, so that what was accepted can still be committed, and so that deleting
(which writes metadata) works on a full disk.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Final

from vaultfs.errors import NoSpaceError, StorageError

RESERVE_BYTES: Final = 24 << 20
"""Room for the metadata's log of a large deletion, a segment's index, and the dirty chunks' overhead."""
LARGEST_RESERVE_SHARE: Final = 16
"""On a small disk the reserve is at most one part in so many."""
MAX_AGE_NS: Final = 200_000_000
LOOK_AGAIN_BYTES: Final = 16 << 20


class FreeSpace:
    """The free space of a directory's filesystem, looked at a few times a second at most.

    Args:
        path: the vault's directory.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._looked_ns = -MAX_AGE_NS
        self._free_bytes = 0
        self._reserve_bytes = 0
        self._taken_bytes = 0

    def statvfs(self) -> os.statvfs_result:
        """The numbers of the filesystem below.

        Raises:
            StorageError: the directory is gone.
        """
        try:
            return os.statvfs(self._path)
        except OSError as error:
            raise StorageError(f"cannot look at {self._path}: {error.strerror}") from error

    def check(self, wanted_bytes: int) -> None:
        """Refuse if there might be no room.

        Raises:
            NoSpaceError: there might be none.
        """
        now_ns = time.monotonic_ns()
        self._taken_bytes += 0 if wanted_bytes < 0 else min(wanted_bytes, 1 << 20)
        if now_ns - self._looked_ns > MAX_AGE_NS or self._taken_bytes > LOOK_AGAIN_BYTES:
            figures = self.statvfs()
            self._free_bytes = figures.f_bavail * figures.f_frsize
            total_bytes = figures.f_blocks * figures.f_frsize
            self._reserve_bytes = min(RESERVE_BYTES, total_bytes // LARGEST_RESERVE_SHARE)
            self._looked_ns = now_ns
            self._taken_bytes = 0
        if self._free_bytes - self._taken_bytes - wanted_bytes < self._reserve_bytes:
            self._looked_ns = now_ns - MAX_AGE_NS  # who asks again, after deleting something, gets a fresh answer
            raise NoSpaceError(f"the disk below {self._path} is full; free space on it, or delete files in the vault")
