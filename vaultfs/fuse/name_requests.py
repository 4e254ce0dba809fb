"""FUSE requests on names, attributes and directories: each is answered by the core in one step of the event loop.

Nothing here waits, not even at a checkpoint; a change of attributes may, so it is in `vaultfs.fuse.operations`.  The
vault has one writer, so the kernel may cache names and attributes for long.
"""

from __future__ import annotations

import errno
import stat
from collections.abc import Iterator, Sequence
from typing import Final

import pyfuse3
from pyfuse3 import (
    EntryAttributes,
    FileHandleT,
    FileInfo,
    FileNameT,
    FlagT,
    FUSEError,
    InodeT,
    ModeT,
    ReaddirToken,
    RequestContext,
    StatvfsData,
    XAttrNameT,
)

from vaultfs.fuse.answering import changing, reading
from vaultfs.fuse.handles import DirectoryHandle, FileHandle, Handles
from vaultfs.ids import InodeId
from vaultfs.vault import acl
from vaultfs.vault.filesystem import FileSystem
from vaultfs.vault.inodes import Inode
from vaultfs.vault.tree import FIRST_COOKIE, LISTING_BATCH, NAME_MAX_BYTES

CACHE_S: Final = 86_400.0
"""How long the kernel may keep names, their absence, and attributes; nobody else changes them."""

_DOTS: Final = (b".", b"..")


class NameRequests(pyfuse3.Operations):
    """Their handlers.

    Args:
        fs: the vault.

    Attributes:
        handles: what is open.
        requests: how many there were, of all kinds.
    """

    supports_dot_lookup = True
    enable_acl = True

    def __init__(self, fs: FileSystem) -> None:
        super().__init__()
        self.fs = fs
        self.handles = Handles()
        self.requests = 0
        self._absent = EntryAttributes()
        self._absent.st_ino = InodeT(0)
        self._absent.entry_timeout = CACHE_S

    @property
    def is_stopped(self) -> bool:
        """Whether changes are refused."""
        fs = self.fs
        return fs.is_read_only or fs.committer.failure is not None or fs.pipeline.failure is not None

    def _attributes(self, inode: Inode) -> EntryAttributes:
        known = inode.answer
        if isinstance(known, EntryAttributes):
            return known
        inode.answer = entry = EntryAttributes()
        entry.st_ino = InodeT(inode.id)
        entry.st_mode = ModeT(inode.mode)
        # Only what differs from pyfuse3's defaults: a listing fills in thousands of these.
        if inode.nlink != 1:
            entry.st_nlink = inode.nlink
        if inode.uid:
            entry.st_uid = inode.uid
        if inode.gid:
            entry.st_gid = inode.gid
        if inode.rdev:
            entry.st_rdev = inode.rdev
        size = inode.size
        if size:
            entry.st_size = size
            entry.st_blocks = -(-self.fs.files.data_on_disk_bytes(inode) // 512)
        entry.st_atime_ns = inode.atime_ns
        entry.st_mtime_ns = inode.mtime_ns
        entry.st_ctime_ns = inode.ctime_ns
        entry.entry_timeout = entry.attr_timeout = CACHE_S
        return entry

    # --- names

    @reading
    def lookup(self, parent_inode: InodeT, name: FileNameT, ctx: RequestContext) -> EntryAttributes:
        """Find a name."""
        if len(name) > NAME_MAX_BYTES:
            raise FUSEError(errno.ENAMETOOLONG)
        if name in _DOTS:
            # open_by_handle_at(2) asks so for inodes that the kernel has forgotten.
            itself = self.fs.inodes.get(InodeId(parent_inode))
            found = itself if name == b"." else self.fs.inodes.get(itself.parent)
            if not found.nlink:
                raise FUSEError(errno.ESTALE)
            return self._attributes(found)
        inode = self.fs.tree.lookup(InodeId(parent_inode), name)
        return self._absent if inode is None else self._attributes(inode)

    async def forget(self, inode_list: Sequence[tuple[InodeT, int]]) -> None:
        """Nothing to do: numbers are never used twice, and open handles keep inodes alive."""

    @changing
    def mknod(
        self, parent_inode: InodeT, name: FileNameT, mode: ModeT, rdev: int, ctx: RequestContext
    ) -> EntryAttributes:
        """Make a file, FIFO, socket or device node."""
        return self._attributes(
            self.fs.make(InodeId(parent_inode), name, mode, ctx.uid, ctx.gid, umask=ctx.umask, rdev=rdev)
        )

    @changing
    def mkdir(self, parent_inode: InodeT, name: FileNameT, mode: ModeT, ctx: RequestContext) -> EntryAttributes:
        """Make a directory."""
        mode = ModeT(stat.S_IFDIR | (mode & 0o7777))
        return self._attributes(self.fs.make(InodeId(parent_inode), name, mode, ctx.uid, ctx.gid, umask=ctx.umask))

    @changing
    def symlink(self, parent_inode: InodeT, name: FileNameT, target: FileNameT, ctx: RequestContext) -> EntryAttributes:
        """Make a symlink."""
        return self._attributes(
            self.fs.make(InodeId(parent_inode), name, stat.S_IFLNK | 0o777, ctx.uid, ctx.gid, target=target)
        )

    @changing
    def create(
        self, parent_inode: InodeT, name: FileNameT, mode: ModeT, flags: FlagT, ctx: RequestContext
    ) -> tuple[FileInfo, EntryAttributes]:
        """Make a regular file and open it."""
        mode = ModeT(stat.S_IFREG | (mode & 0o7777))
        inode = self.fs.make(InodeId(parent_inode), name, mode, ctx.uid, ctx.gid, umask=ctx.umask)
        return self._opened(inode, flags, ctx), self._attributes(inode)

    def _opened(self, inode: Inode, flags: int, ctx: RequestContext) -> FileInfo:
        self.fs.open(inode)
        number = self.handles.add(FileHandle(inode, flags, ctx.uid))
        return FileInfo(fh=FileHandleT(number), keep_cache=True)

    @changing
    def link(
        self, inode: InodeT, new_parent_inode: InodeT, new_name: FileNameT, ctx: RequestContext
    ) -> EntryAttributes:
        """Give a file one more name."""
        linked = self.fs.inodes.get(InodeId(inode))
        self.fs.check_room(0)
        self.fs.tree.link(linked, InodeId(new_parent_inode), new_name)
        return self._attributes(linked)

    @changing
    def unlink(self, parent_inode: InodeT, name: FileNameT, ctx: RequestContext) -> None:
        """Remove a name."""
        self.fs.unlink(InodeId(parent_inode), name)

    @changing
    def rmdir(self, parent_inode: InodeT, name: FileNameT, ctx: RequestContext) -> None:
        """Remove an empty directory."""
        self.fs.rmdir(InodeId(parent_inode), name)

    @changing
    def rename(
        self,
        parent_inode_old: InodeT,
        name_old: FileNameT,
        parent_inode_new: InodeT,
        name_new: FileNameT,
        flags: FlagT,
        ctx: RequestContext,
    ) -> None:
        """Move or exchange names."""
        self.fs.rename(InodeId(parent_inode_old), name_old, InodeId(parent_inode_new), name_new, flags)

    @reading
    def readlink(self, inode: InodeT, ctx: RequestContext) -> FileNameT:
        """The target of a symlink."""
        target = self.fs.inodes.get(InodeId(inode)).target
        if target is None:
            raise FUSEError(errno.EINVAL)
        return FileNameT(target)

    # --- attributes

    @reading
    def getattr(self, inode: InodeT, ctx: RequestContext) -> EntryAttributes:
        """The attributes of an inode."""
        return self._attributes(self.fs.inodes.get(InodeId(inode)))

    @reading
    def statfs(self, ctx: RequestContext) -> StatvfsData:
        """Room, as the disk below has it."""
        below = self.fs.space.statvfs()
        data = StatvfsData()
        data.f_bsize = data.f_frsize = 4096
        factor = below.f_frsize
        data.f_blocks = below.f_blocks * factor // 4096
        data.f_bfree = below.f_bfree * factor // 4096
        data.f_bavail = below.f_bavail * factor // 4096
        # Inodes live in the database; only bytes limit them.
        data.f_ffree = data.f_favail = data.f_bavail
        data.f_files = data.f_ffree + self.fs.inodes.next_inode
        data.f_namemax = NAME_MAX_BYTES
        return data

    @reading
    def getxattr(self, inode: InodeT, name: XAttrNameT, ctx: RequestContext) -> bytes:
        """The value of an attribute."""
        return self.fs.xattrs.get(self.fs.inodes.get(InodeId(inode)), name)

    @reading
    def listxattr(self, inode: InodeT, ctx: RequestContext) -> list[XAttrNameT]:
        """The names of an inode's attributes."""
        return [XAttrNameT(name) for name in self.fs.xattrs.names(self.fs.inodes.get(InodeId(inode)))]

    @changing
    def setxattr(self, inode: InodeT, name: XAttrNameT, value: bytes, ctx: RequestContext) -> None:
        """Set an attribute."""
        self.fs.check_room(len(value))
        target = self.fs.inodes.get(InodeId(inode))
        self.fs.xattrs.set(target, name, value)
        if name == acl.ACCESS and target.mode & stat.S_ISGID and not self._may_set_gid(target, ctx):
            target.mode &= ~stat.S_ISGID  # CVE-2016-7097
            self.fs.inodes.changed(target)

    @staticmethod
    def _may_set_gid(inode: Inode, ctx: RequestContext) -> bool:
        """Whether a process may keep the set-group-id bit when it changes permissions."""
        return ctx.uid == 0 or inode.gid == ctx.gid or inode.gid in pyfuse3.get_sup_groups(ctx.pid)

    @changing
    def removexattr(self, inode: InodeT, name: XAttrNameT, ctx: RequestContext) -> None:
        """Remove an attribute."""
        self.fs.xattrs.remove(self.fs.inodes.get(InodeId(inode)), name)

    # --- directories

    @reading
    def opendir(self, inode: InodeT, ctx: RequestContext) -> FileHandleT:
        """Open a directory."""
        directory = self.fs.inodes.get(InodeId(inode))
        self.fs.open(directory)
        return FileHandleT(self.handles.add(DirectoryHandle(directory)))

    @reading
    def readdir(self, fh: FileHandleT, start_id: int, token: ReaddirToken) -> None:
        """List names with attributes, so that looking at each needs no request of its own."""
        handle = self.handles.directory(fh)
        if start_id == 0 or not handle.limit:
            # A program that renames each name it is shown would be shown it again, without end.  A listing may
            # also go on in a directory that was opened anew, as an NFS server does.
            handle.limit = self.fs.tree.next_cookie
        # The kernel takes only number and type of these two.
        for cookie, name in ((1, b"."), (2, b"..")):
            if start_id < cookie:
                directory = handle.inode if cookie == 1 else self.fs.inodes.find(handle.inode.parent) or handle.inode
                if not pyfuse3.readdir_reply(token, FileNameT(name), self._attributes(directory), cookie):
                    return
        for cookie, name, inode in self._names(handle, start_id):
            if cookie >= handle.limit:
                break
            if not pyfuse3.readdir_reply(token, FileNameT(name), self._attributes(inode), cookie):
                break

    def _names(self, handle: DirectoryHandle, start: int) -> Iterator[tuple[int, bytes, Inode]]:
        """The names after a cookie, from what an earlier call has read as long as nothing has changed since."""
        inodes = self.fs.inodes
        start = max(start, FIRST_COOKIE - 1)
        if handle.read_at != inodes.version or handle.next_cookie != start:
            handle.ahead.clear()
            handle.is_read_to_end = False
            handle.next_cookie = start
        while True:
            if not handle.ahead:
                if handle.is_read_to_end:
                    return
                handle.read_at = inodes.version
                handle.ahead.extend(self.fs.tree.batch(handle.inode.id, start))
                # Most directories are read at once; then the kernel asks once more, to hear that this was all.
                handle.is_read_to_end = len(handle.ahead) < LISTING_BATCH
                if not handle.ahead:
                    return
            entry = handle.ahead[0]
            yield entry
            # Only what the caller took, by asking for more, counts as listed.
            handle.ahead.popleft()
            start = handle.next_cookie = entry.cookie

    @reading
    def releasedir(self, fh: FileHandleT) -> None:
        """Close a directory."""
        self.fs.release(self.handles.remove(fh).inode)
