"""Reads that failed: what the program gets, and a log that does not grow as fast as a program tries again."""

from __future__ import annotations

import errno
import logging
import time
from typing import Final

from pyfuse3 import FUSEError

from vaultfs.errors import RemoteError, VaultError
from vaultfs.vault.filesystem import FileSystem
from vaultfs.vault.inodes import Inode
from vaultfs.vault.reading import ChunkDamageError

log = logging.getLogger(__name__)

TELL_EVERY_S: Final = 1.0


class FailedReads:
    """Those of a mounted vault.

    Args:
        fs: the vault.
    """

    def __init__(self, fs: FileSystem) -> None:
        self._fs = fs
        self._told_at_s = -TELL_EVERY_S
        self._untold = 0

    def answer(self, inode: Inode, error: VaultError) -> FUSEError:
        """What a program gets when stored bytes cannot be had, whether they are damaged or only cannot be reached."""
        if isinstance(error, ChunkDamageError):
            self._fs.report_damage(error)
            return FUSEError(errno.EIO)
        if not isinstance(error, RemoteError):
            log.error("read of inode %d: %s", inode.id, error)
            return FUSEError(error.errno)
        # A program may try again as fast as it can; the log need not grow as fast.
        now_s = time.monotonic()
        if now_s - self._told_at_s < TELL_EVERY_S:
            self._untold += 1
        else:
            more = f" ({self._untold} reads failed since the last such line)" if self._untold else ""
            log.error("read of inode %d: %s%s", inode.id, error, more)
            self._told_at_s, self._untold = now_s, 0
        return FUSEError(errno.EIO)
