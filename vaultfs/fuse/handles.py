"""Open files and directories, by the number that the kernel hands back."""

from __future__ import annotations

import errno
import os
from collections import deque

from vaultfs.errors import FileSystemError
from vaultfs.ids import InodeId
from vaultfs.vault.inodes import Inode
from vaultfs.vault.tree import DirectoryEntry


class FileHandle:
    """An open file.

    Args:
        inode: counted open.
        flags: of open(2).
        uid: who opened it.
    """

    __slots__ = ("inode", "is_direct", "is_writable", "uid")

    def __init__(self, inode: Inode, flags: int, uid: int) -> None:
        self.inode = inode
        self.uid = uid
        self.is_writable = bool(flags & (os.O_WRONLY | os.O_RDWR))
        self.is_direct = bool(flags & os.O_DIRECT)


class DirectoryHandle:
    """An open directory.

    Attributes:
        ahead: names that were read from the database and not listed yet.
        is_read_to_end: no more names follow these.
        next_cookie: the cookie they follow.
        limit: names with this cookie or a larger one were made after the listing began, and are left out.
        read_at: the version of the inodes when they were read.
    """

    __slots__ = ("ahead", "inode", "is_read_to_end", "limit", "next_cookie", "read_at")

    def __init__(self, inode: Inode) -> None:
        self.inode = inode
        self.ahead: deque[DirectoryEntry] = deque()
        self.is_read_to_end = False
        self.next_cookie = 0
        self.limit = 0
        self.read_at = -1


class Handles:
    """All open handles; numbers rise."""

    def __init__(self) -> None:
        self.newest = 0
        self._handles: dict[int, FileHandle | DirectoryHandle] = {}
        self._writers: dict[InodeId, int] = {}

    def __len__(self) -> int:
        return len(self._handles)

    def add(self, handle: FileHandle | DirectoryHandle) -> int:
        """Number a handle."""
        self.newest += 1
        self._handles[self.newest] = handle
        if isinstance(handle, FileHandle) and handle.is_writable:
            number = handle.inode.id
            self._writers[number] = self._writers.get(number, 0) + 1
        return self.newest

    @property
    def writers(self) -> int:
        """How many files are open for writing."""
        return len(self._writers)

    def has_writers(self, inode: InodeId) -> bool:
        """Whether a file is open for writing."""
        return inode in self._writers

    def file(self, number: int) -> FileHandle:
        """An open file."""
        handle = self._handles[number]
        if not isinstance(handle, FileHandle):
            raise FileSystemError(errno.EISDIR)
        return handle

    def directory(self, number: int) -> DirectoryHandle:
        """An open directory."""
        handle = self._handles[number]
        if not isinstance(handle, DirectoryHandle):
            raise FileSystemError(errno.ENOTDIR)
        return handle

    def remove(self, number: int) -> FileHandle | DirectoryHandle:
        """Forget a handle."""
        handle = self._handles.pop(number)
        if isinstance(handle, FileHandle) and handle.is_writable:
            left = self._writers[handle.inode.id] - 1
            if left:
                self._writers[handle.inode.id] = left
            else:
                del self._writers[handle.inode.id]
        return handle
