"""Which writes take the set-id bits of a file away.

FUSE_HANDLE_KILLPRIV_V2 makes the filesystem responsible for that, but pyfuse3 does not show which write asks for it.  A
write through a handle that an ordinary user opened after the bits were set takes them; writes through older handles may
be the kernel's late ones, of data from before.
"""

from __future__ import annotations

import stat
from typing import Final

from vaultfs.fuse.handles import FileHandle
from vaultfs.ids import InodeId

SET_ID: Final = stat.S_ISUID | stat.S_ISGID


class SetIdBits:
    """When the bits of files that are open were set."""

    def __init__(self) -> None:
        self._since: dict[InodeId, int] = {}

    def set(self, inode: InodeId, newest: int) -> None:
        """Note that a file which is open has got the bits.

        Args:
            inode: the file.
            newest: the number of the handle that was opened last.
        """
        self._since[inode] = newest

    def forget(self, inode: InodeId) -> None:
        """A file is not open any more."""
        self._since.pop(inode, None)

    def are_taken_by(self, number: int, handle: FileHandle) -> bool:
        """Whether a write through a handle takes the bits."""
        return handle.uid != 0 and number > self._since.get(handle.inode.id, 0)
