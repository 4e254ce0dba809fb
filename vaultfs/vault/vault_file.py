"""File objects of the Python API: random access to a file in a vault, without FUSE."""

from __future__ import annotations

import errno
import io
import os
from typing import TYPE_CHECKING, Any

from vaultfs.errors import FileSystemError
from vaultfs.ids import InodeId
from vaultfs.vault.filesystem import FileSystem
from vaultfs.vault.inodes import Inode

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer


class VaultFile(io.RawIOBase):
    """A file in a vault, with random access.  ``close`` does not make it durable; ``fsync`` does.

    Args:
        filesystem: the vault.
        inode: the file.
        is_readable: reading is allowed.
        is_writable: writing is allowed.
        is_appending: every write goes to the end.
    """

    def __init__(
        self, filesystem: FileSystem, inode: Inode, *, is_readable: bool, is_writable: bool, is_appending: bool
    ) -> None:
        super().__init__()
        self._fs = filesystem
        self._inode = inode
        self._is_readable = is_readable
        self._is_writable = is_writable
        self._is_appending = is_appending
        self._position = inode.size if is_appending else 0
        filesystem.open(inode)

    @property
    def inode(self) -> InodeId:
        """The file's number."""
        return self._inode.id

    def readable(self) -> bool:
        """Whether reading is allowed."""
        return self._is_readable

    def writable(self) -> bool:
        """Whether writing is allowed."""
        return self._is_writable

    def seekable(self) -> bool:
        """Always."""
        return True

    def tell(self) -> int:
        """The position in bytes."""
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move the position, past the end too; return it."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._inode.size}.get(whence)
        if base is None or base + offset < 0:
            raise FileSystemError(errno.EINVAL)
        self._position = base + offset
        return self._position

    def pread(self, size: int, offset: int) -> bytes:
        """Read at most ``size`` bytes at ``offset``; the position stays.

        Raises:
            ChunkDamageError: the bytes there are damaged.
        """
        self._require(readable=True)
        return bytes(self._fs.read(self._inode, offset, size))

    def pwrite(self, data: bytes | bytearray | memoryview, offset: int) -> int:
        """Write at ``offset``; the position stays."""
        self._require(readable=False)
        self._fs.write(self._inode, offset, bytes(data))
        return len(data)

    def readinto(self, buffer: WriteableBuffer) -> int:
        """Read into a buffer, fewer bytes only at the end of the file."""
        view = memoryview(buffer).cast("B")
        data = self.pread(len(view), self._position)
        view[: len(data)] = data
        self._position += len(data)
        return len(data)

    def write(self, data: Any) -> int:
        """Write all of ``data`` at the position, or at the end if appending."""
        if self._is_appending:
            self._position = self._inode.size
        written = self.pwrite(memoryview(data).cast("B"), self._position)
        self._position += written
        return written

    def truncate(self, size: int | None = None) -> int:
        """Set the size, by default to the position."""
        self._require(readable=False)
        new_size = self._position if size is None else size
        with self._fs.changing():
            self._fs.set_attributes(self._inode, size=new_size, is_privileged=True)
        return new_size

    def fsync(self) -> None:
        """Make the file, and everything done in the vault before, durable."""
        with self._fs.changing():
            self._fs.committer.fsync()

    def _require(self, *, readable: bool) -> None:
        if self.closed:
            raise ValueError("I/O operation on closed file")
        if not (self._is_readable if readable else self._is_writable):
            raise io.UnsupportedOperation("not readable" if readable else "not writable")

    def close(self) -> None:
        """Give the file up."""
        if not self.closed:
            super().close()
            self._fs.release(self._inode)
