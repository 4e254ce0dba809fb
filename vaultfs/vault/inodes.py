"""Inodes in memory: a bounded cache over the table ``inode``, written back as a whole at each commit.

An inode that was changed, is open, or has data on the way to a segment stays in memory; the others are forgotten in
the order in which they were read.  Nothing outside keeps an `Inode` over a point where it might be forgotten, but by
counting it open.
"""

from __future__ import annotations

import errno
import stat
import time
from itertools import islice
from typing import TYPE_CHECKING, Final

from vaultfs.errors import FileSystemError
from vaultfs.ids import InodeId
from vaultfs.metadata.tree_rows import InodeRow, TreeRows

if TYPE_CHECKING:
    from vaultfs.vault.sealing_jobs import SealJob

CACHED_INODES: Final = 20_000
"""About 10 MB."""
CHANGED_INODES: Final = 10_000
"""More are written into the open transaction, though it is not committed yet, so that they may be forgotten."""
REMEMBERED_GONE: Final = 4096
NO_PARENT: Final = InodeId(0)

_NO_DIRTY: Final[dict[int, bytearray]] = {}
_NO_PENDING: Final[dict[int, SealJob]] = {}


class Inode:
    """A file, directory, symlink or special file; the fields of the row, and its state in this process.

    Attributes:
        answer: what the FUSE side last made of the fields, for as long as they do not change; None: nothing.
        is_gone: it was deleted for good; see `InodeTable.delete`.
        opens: handles that refer to it; with ``nlink`` 0 it lives until this falls to 0.
        dirty: chunks by index that are in memory only; replace the shared empty dict before adding (`own_dirty`).
        pending: chunks by index that were handed to the sealing thread and have no row yet.
    """

    __slots__ = (
        "answer",
        "atime_ns",
        "chunks",
        "ctime_ns",
        "dirty",
        "gid",
        "id",
        "is_gone",
        "mode",
        "mtime_ns",
        "nlink",
        "opens",
        "parent",
        "pending",
        "rdev",
        "size",
        "target",
        "uid",
    )

    def __init__(self, row: InodeRow) -> None:
        (
            self.id,
            self.mode,
            self.uid,
            self.gid,
            self.nlink,
            self.size,
            self.rdev,
            self.atime_ns,
            self.mtime_ns,
            self.ctime_ns,
            self.chunks,
            self.target,
            self.parent,
        ) = row
        self.answer: object = None
        self.opens = 0
        self.is_gone = False
        self.dirty = _NO_DIRTY
        self.pending = _NO_PENDING

    def own_dirty(self) -> dict[int, bytearray]:
        """The dict of dirty chunks, for adding to it."""
        if self.dirty is _NO_DIRTY:
            self.dirty = {}
        return self.dirty

    def own_pending(self) -> dict[int, SealJob]:
        """The dict of pending chunks, for adding to it."""
        if self.pending is _NO_PENDING:
            self.pending = {}
        return self.pending

    def row(self) -> InodeRow:
        """As it stands in the database."""
        return InodeRow(
            self.id,
            self.mode,
            self.uid,
            self.gid,
            self.nlink,
            self.size,
            self.rdev,
            self.atime_ns,
            self.mtime_ns,
            self.ctime_ns,
            self.chunks,
            self.target,
            self.parent,
        )

    @property
    def is_directory(self) -> bool:
        """Whether it is a directory."""
        return stat.S_ISDIR(self.mode)

    @property
    def is_regular(self) -> bool:
        """Whether it is a regular file."""
        return stat.S_ISREG(self.mode)


class InodeTable:
    """All inodes of a vault, by number.

    Args:
        rows: the tables.
        next_inode: the first number that was never used.
    """

    def __init__(self, rows: TreeRows, next_inode: int) -> None:
        self._rows = rows
        self._cached: dict[InodeId, Inode] = {}
        self._changed: dict[InodeId, Inode] = {}
        self._gone: dict[InodeId, Inode] = {}
        self._trim_at = CACHED_INODES
        self.next_inode = next_inode
        self.version = 0
        """Rises with every change of any inode, and so with every change of names."""

    def get(self, number: InodeId) -> Inode:
        """The inode with this number.

        Raises:
            FileSystemError: ESTALE if there is none.
        """
        inode = self._cached.get(number)
        if inode is not None:
            return inode
        inode = self._gone.get(number)
        if inode is not None:
            return inode
        row = self._rows.inode(number)
        if row is None:
            raise FileSystemError(errno.ESTALE, f"inode {number} does not exist (any more)")
        return self._remember(Inode(row))

    def find(self, number: InodeId) -> Inode | None:
        """The inode with this number, or None."""
        inode = self._cached.get(number)
        if inode is None:
            row = self._rows.inode(number)
            return None if row is None else self._remember(Inode(row))
        return inode

    def _remember(self, inode: Inode) -> Inode:
        self._cached[inode.id] = inode
        if len(self._cached) > self._trim_at:
            self._trim()
        return inode

    def _trim(self) -> None:
        """Forget the oldest quarter, as far as it may be; what is in the way is not looked at too soon again."""
        kept: list[Inode] = []
        if len(self._changed) > CHANGED_INODES:
            self.flush()
        for number in list(islice(self._cached, CACHED_INODES // 4)):
            inode = self._cached.pop(number)
            if inode.opens or number in self._changed or inode.dirty or inode.pending:
                kept.append(inode)
        for inode in kept:
            self._cached[inode.id] = inode
        self._trim_at = max(CACHED_INODES, len(self._cached) + len(kept) // 2)

    def create(
        self,
        mode: int,
        uid: int,
        gid: int,
        *,
        nlink: int,
        rdev: int = 0,
        target: bytes | None = None,
        parent: InodeId = NO_PARENT,
    ) -> Inode:
        """Make a new inode, with all times now; ``parent`` for directories only."""
        now_ns = time.time_ns()
        number = InodeId(self.next_inode)
        self.next_inode += 1
        size = 0 if target is None else len(target)
        inode = Inode(InodeRow(number, mode, uid, gid, nlink, size, rdev, now_ns, now_ns, now_ns, 0, target, parent))
        self._changed[number] = inode
        return self._remember(inode)

    def changed(self, inode: Inode) -> None:
        """Have an inode written at the next flush."""
        self.version += 1
        inode.answer = None
        if inode.is_gone:
            return
        self._changed[inode.id] = inode
        # It may have been forgotten since its user got it; a second object read from the database would be out of date.
        self._cached.setdefault(inode.id, inode)

    def has_changes(self) -> bool:
        """Whether a flush would write."""
        return bool(self._changed)

    def flush(self) -> None:
        """Write all changed inodes into the open transaction."""
        if self._changed:
            self._rows.put_inodes([inode.row() for inode in self._changed.values()])
            self._changed.clear()

    def delete(self, inode: Inode) -> None:
        """Remove an inode for good.

        Its attributes are remembered for a while: the kernel may still write back the times of a file that it knows.
        """
        inode.is_gone = True
        self._gone[inode.id] = inode
        if len(self._gone) > REMEMBERED_GONE:
            del self._gone[next(iter(self._gone))]
        self._cached.pop(inode.id, None)
        self._changed.pop(inode.id, None)
        self._rows.delete_inode(inode.id)
