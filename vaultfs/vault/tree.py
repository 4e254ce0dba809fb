"""Names: directories and what is in them.

Rules of POSIX that the kernel leaves to a filesystem: existence, emptiness, link counts, times.  Permissions are the
caller's business (the kernel checks them for a mount).  Directory entries go straight into the open transaction.
"""

from __future__ import annotations

import errno
import stat
import time
from collections.abc import Iterator
from typing import Final, NamedTuple

from vaultfs.errors import FileSystemError
from vaultfs.ids import ROOT_INODE, InodeId
from vaultfs.metadata.tree_rows import TreeRows
from vaultfs.vault.inodes import NO_PARENT, Inode, InodeTable

NAME_MAX_BYTES: Final = 255
SYMLINK_MAX_BYTES: Final = 4095
LINK_MAX: Final = 0x7FFF_FFFF
LISTING_BATCH: Final = 256
FIRST_COOKIE: Final = 3
"""1 and 2 are for . and .., which have no rows."""

RENAME_NOREPLACE: Final = 1
RENAME_EXCHANGE: Final = 2


class DirectoryEntry(NamedTuple):
    """One name of a listing; ``cookie`` continues after it."""

    cookie: int
    name: bytes
    inode: Inode


def check_name(name: bytes) -> None:
    """Refuse what cannot be a name.

    Raises:
        FileSystemError: EINVAL or ENAMETOOLONG.
    """
    if len(name) > NAME_MAX_BYTES:
        raise FileSystemError(errno.ENAMETOOLONG, f"a name has at most {NAME_MAX_BYTES} bytes, this one {len(name)}")
    if not name or name in {b".", b".."} or b"/" in name or b"\0" in name:
        raise FileSystemError(errno.EINVAL, f"{name!r} cannot be a name")


class Tree:
    """The directories of a vault.

    Args:
        rows: the tables.
        inodes: all inodes.
        next_cookie: the first directory cookie that was never used.
    """

    def __init__(self, rows: TreeRows, inodes: InodeTable, next_cookie: int) -> None:
        self._rows = rows
        self._inodes = inodes
        self.next_cookie = next_cookie
        self._absent: tuple[InodeId, bytes, int] | None = None
        """The name that was looked for last and not found, and the version of the inodes then."""

    def lookup(self, parent: InodeId, name: bytes) -> Inode | None:
        """The inode behind a name, or None."""
        number = self._rows.entry(parent, name)
        if number is None:
            self._absent = (parent, name, self._inodes.version)
            return None
        return self._inodes.get(number)

    def _is_absent(self, parent: InodeId, name: bytes) -> bool:
        """Whether a name is free; the kernel has asked for it right before it makes a file."""
        return self._absent == (parent, name, self._inodes.version) or self._rows.entry(parent, name) is None

    def child(self, parent: InodeId, name: bytes) -> Inode:
        """The inode behind a name.

        Raises:
            FileSystemError: ENOENT.
        """
        inode = self.lookup(parent, name)
        if inode is None:
            raise FileSystemError(errno.ENOENT)
        return inode

    def _insert(self, parent: Inode, name: bytes, inode: Inode) -> None:
        self._rows.insert_entry(parent.id, name, inode.id, self.next_cookie)
        self.next_cookie += 1

    def _living_directory(self, number: InodeId) -> Inode:
        """A directory to which names may be added."""
        parent = self._inodes.get(number)
        if not parent.is_directory:
            raise FileSystemError(errno.ENOTDIR)
        if parent.nlink == 0:
            raise FileSystemError(errno.ENOENT, "the directory has been removed")
        return parent

    def _modified(self, directory: Inode, now_ns: int) -> None:
        directory.mtime_ns = directory.ctime_ns = now_ns
        self._inodes.changed(directory)

    def add(
        self,
        parent_number: InodeId,
        name: bytes,
        mode: int,
        uid: int,
        gid: int,
        *,
        rdev: int = 0,
        target: bytes | None = None,
    ) -> Inode:
        """Make a new inode of the type in ``mode`` and give it a name.  A set-gid parent passes its group on.

        Raises:
            FileSystemError: EEXIST, ENOTDIR, ENOENT (the parent is gone), ENAMETOOLONG, EINVAL, EMLINK.
        """
        check_name(name)
        parent = self._living_directory(parent_number)
        if not self._is_absent(parent_number, name):
            raise FileSystemError(errno.EEXIST)
        if target is not None and not 0 < len(target) <= SYMLINK_MAX_BYTES:
            raise FileSystemError(errno.ENAMETOOLONG if target else errno.ENOENT)
        is_directory = stat.S_ISDIR(mode)
        if parent.mode & stat.S_ISGID:
            gid = parent.gid
            if is_directory:
                mode |= stat.S_ISGID
        if is_directory and parent.nlink >= LINK_MAX:
            raise FileSystemError(errno.EMLINK)
        inode = self._inodes.create(
            mode,
            uid,
            gid,
            nlink=2 if is_directory else 1,
            rdev=rdev,
            target=target,
            parent=parent.id if is_directory else NO_PARENT,
        )
        self._insert(parent, name, inode)
        if is_directory:
            parent.nlink += 1
        self._modified(parent, inode.ctime_ns)
        return inode

    def link(self, inode: Inode, parent_number: InodeId, name: bytes) -> None:
        """Give an inode one more name.

        Raises:
            FileSystemError: EEXIST, EPERM (a directory), ENOENT (it has no name left), EMLINK, and as `add`.
        """
        check_name(name)
        parent = self._living_directory(parent_number)
        if inode.is_directory:
            raise FileSystemError(errno.EPERM, "a directory has one name only")
        if inode.nlink == 0:
            raise FileSystemError(errno.ENOENT, "the file has been removed")
        if inode.nlink >= LINK_MAX:
            raise FileSystemError(errno.EMLINK)
        if not self._is_absent(parent_number, name):
            raise FileSystemError(errno.EEXIST)
        self._insert(parent, name, inode)
        now_ns = time.time_ns()
        inode.nlink += 1
        inode.ctime_ns = now_ns
        self._inodes.changed(inode)
        self._modified(parent, now_ns)

    def unlink(self, parent_number: InodeId, name: bytes) -> Inode:
        """Take a name from something that is no directory, and return it; with ``nlink`` 0 it is the caller's to end.

        Raises:
            FileSystemError: ENOENT, EISDIR.
        """
        inode = self.child(parent_number, name)
        if inode.is_directory:
            raise FileSystemError(errno.EISDIR)
        parent = self._inodes.get(parent_number)
        self._rows.delete_entry(parent_number, name)
        now_ns = time.time_ns()
        self._drop_link(inode, now_ns)
        self._modified(parent, now_ns)
        return inode

    def _drop_link(self, inode: Inode, now_ns: int) -> None:
        inode.nlink = 0 if inode.is_directory else inode.nlink - 1
        inode.ctime_ns = now_ns
        self._inodes.changed(inode)

    def rmdir(self, parent_number: InodeId, name: bytes) -> Inode:
        """Remove an empty directory, and return it with ``nlink`` 0.

        Raises:
            FileSystemError: ENOENT, ENOTDIR, ENOTEMPTY.
        """
        inode = self.child(parent_number, name)
        if not inode.is_directory:
            raise FileSystemError(errno.ENOTDIR)
        if self._rows.has_entries(inode.id):
            raise FileSystemError(errno.ENOTEMPTY)
        parent = self._inodes.get(parent_number)
        self._rows.delete_entry(parent_number, name)
        now_ns = time.time_ns()
        self._drop_link(inode, now_ns)
        parent.nlink -= 1
        self._modified(parent, now_ns)
        return inode

    def rename(
        self, old_parent_number: InodeId, old_name: bytes, new_parent_number: InodeId, new_name: bytes, flags: int = 0
    ) -> Inode | None:
        """Move a name, and return the inode that was replaced, if any; with ``nlink`` 0 it is the caller's to end.

        The caller makes sure that a directory is not moved into itself (the kernel does, and so does path resolution).

        Raises:
            FileSystemError: ENOENT, EEXIST, EISDIR, ENOTDIR, ENOTEMPTY, EINVAL, and as `add`.
        """
        check_name(new_name)
        if flags & ~(RENAME_NOREPLACE | RENAME_EXCHANGE) or flags == RENAME_NOREPLACE | RENAME_EXCHANGE:
            raise FileSystemError(errno.EINVAL)
        old_parent = self._inodes.get(old_parent_number)
        new_parent = self._living_directory(new_parent_number)
        inode = self.child(old_parent_number, old_name)
        target = self.lookup(new_parent_number, new_name)
        if flags & RENAME_EXCHANGE:
            if target is None:
                raise FileSystemError(errno.ENOENT)
            self._exchange(old_parent, old_name, inode, new_parent, new_name, target)
            return None
        if target is not None:
            if flags & RENAME_NOREPLACE:
                raise FileSystemError(errno.EEXIST)
            if target is inode:
                return None
            self._check_replaceable(inode, target)
        now_ns = time.time_ns()
        self._rows.delete_entry(old_parent_number, old_name)
        if target is None:
            self._insert(new_parent, new_name, inode)
        else:
            self._rows.point_entry(new_parent_number, new_name, inode.id)
            self._drop_link(target, now_ns)
            if target.is_directory:
                new_parent.nlink -= 1
        if inode.is_directory and old_parent is not new_parent:
            old_parent.nlink -= 1
            new_parent.nlink += 1
            inode.parent = new_parent.id
        inode.ctime_ns = now_ns
        self._inodes.changed(inode)
        self._modified(old_parent, now_ns)
        self._modified(new_parent, now_ns)
        return target

    def _check_replaceable(self, inode: Inode, target: Inode) -> None:
        if target.is_directory:
            if not inode.is_directory:
                raise FileSystemError(errno.EISDIR)
            if self._rows.has_entries(target.id):
                raise FileSystemError(errno.ENOTEMPTY)
        elif inode.is_directory:
            raise FileSystemError(errno.ENOTDIR)

    def _exchange(
        self, old_parent: Inode, old_name: bytes, inode: Inode, new_parent: Inode, new_name: bytes, target: Inode
    ) -> None:
        self._rows.point_entry(old_parent.id, old_name, target.id)
        self._rows.point_entry(new_parent.id, new_name, inode.id)
        if old_parent is not new_parent and inode.is_directory != target.is_directory:
            moved_in = 1 if inode.is_directory else -1
            old_parent.nlink -= moved_in
            new_parent.nlink += moved_in
        if inode.is_directory:
            inode.parent = new_parent.id
        if target.is_directory:
            target.parent = old_parent.id
        now_ns = time.time_ns()
        for each in (inode, target):
            each.ctime_ns = now_ns
            self._inodes.changed(each)
        self._modified(old_parent, now_ns)
        self._modified(new_parent, now_ns)

    def batch(self, directory: InodeId, after_cookie: int) -> list[DirectoryEntry]:
        """The next names of a directory after a cookie, in the order they were made; empty at the end."""
        get = self._inodes.get
        return [
            DirectoryEntry(cookie, name, get(number))
            for cookie, name, number in self._rows.listing(directory, after_cookie, LISTING_BATCH)
        ]

    def entries(self, directory: InodeId) -> Iterator[DirectoryEntry]:
        """The names in a directory in the order they were made.

        Names that come or go meanwhile are seen or not; all others are seen exactly once.
        """
        cookie = 0
        while batch := self.batch(directory, cookie):
            yield from batch
            cookie = batch[-1].cookie

    def root(self) -> Inode:
        """The root directory."""
        return self._inodes.get(ROOT_INODE)
