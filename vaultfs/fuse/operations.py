"""FUSE requests, answered by the core: a thin adapter.

Nearly every request is answered in one step of the event loop, without a checkpoint; what may wait for the disk (a
read that misses the page cache, a commit) goes to a thread.  The vault has one writer, so the kernel may cache names
and attributes for long.

Set-id bits: FUSE_HANDLE_KILLPRIV_V2 makes the filesystem responsible for taking them away, but pyfuse3 does not show
which write asks for it.  A write through a handle that an ordinary user opened after the bits were set takes them;
writes through older handles may be the kernel's late ones, of data from before.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
import time
from collections.abc import Iterator, Sequence
from typing import Final

import pyfuse3
import trio
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
    SetattrFields,
    StatvfsData,
    XAttrNameT,
)

from vaultfs.errors import RemoteError, VaultError
from vaultfs.fuse.answering import changing, reading
from vaultfs.fuse.durability import Durability
from vaultfs.fuse.handles import DirectoryHandle, FileHandle, Handles
from vaultfs.fuse.read_around import ReadAround
from vaultfs.fuse.session import MOST_WORKERS_ELSEWHERE
from vaultfs.ids import InodeId
from vaultfs.metadata.database import database_failures
from vaultfs.vault import acl
from vaultfs.vault.filesystem import FileSystem
from vaultfs.vault.inodes import Inode
from vaultfs.vault.reading import ChunkDamageError, ReadPlan
from vaultfs.vault.tree import FIRST_COOKIE, LISTING_BATCH, NAME_MAX_BYTES

log = logging.getLogger(__name__)

CACHE_S: Final = 86_400.0
"""How long the kernel may keep names, their absence, and attributes; nobody else changes them."""

TELL_EVERY_S: Final = 1.0

_DOTS: Final = (b".", b"..")
_SET_ID: Final = stat.S_ISUID | stat.S_ISGID
_MASKED: Final = 0o7777 | stat.S_IFMT(0o177777)

_Database: Final = database_failures()


class VaultOperations(pyfuse3.Operations):
    """The handlers.

    Args:
        fs: the vault.
        durability: makes it durable.
        read_around: fills the kernel's page cache.
    """

    supports_dot_lookup = True
    enable_writeback_cache = True
    enable_acl = True

    def __init__(self, fs: FileSystem, durability: Durability, read_around: ReadAround) -> None:
        super().__init__()
        self.fs = fs
        self.durability = durability
        self.read_around = read_around
        self.handles = Handles()
        self.requests = 0
        self._absent = EntryAttributes()
        self._absent.st_ino = InodeT(0)
        self._absent.entry_timeout = CACHE_S
        self._set_id_since: dict[InodeId, int] = {}
        self._told_at_s = -TELL_EVERY_S
        self._untold = 0
        self._waiting_elsewhere = trio.CapacityLimiter(MOST_WORKERS_ELSEWHERE)

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

    async def setattr(
        self, inode: InodeT, attr: EntryAttributes, fields: SetattrFields, fh: FileHandleT | None, ctx: RequestContext
    ) -> EntryAttributes:
        """Change attributes; a change of size waits while a commit is being completed."""
        if not fields.update_size:
            return await self._setattr(inode, attr, fields, ctx)
        await self._before_writing(InodeId(inode))
        if self.fs.segments.has_elsewhere:
            await self._before_cutting(InodeId(inode), attr.st_size)
        return await self._setattr(inode, attr, fields, ctx)

    async def _before_writing(self, inode: InodeId) -> None:
        """Wait for what must not be under way while a file is changed."""
        while self.durability.gate is not None or not self.read_around.is_settled(inode):
            await self.durability.pass_gate()
            await self.read_around.settled(inode)

    async def _before_cutting(self, number: InodeId, size: int) -> None:
        """Have the chunk in memory within which a file is cut, if it lies elsewhere: that takes long to read."""
        inode = self.fs.inodes.find(number)
        if inode is None or not inode.chunks or size >= inode.size or not size % self.fs.chunk_size or self.is_stopped:
            return
        try:
            for rewrite in self.fs.files.plan_write(inode, size, 1):
                if rewrite.plan.is_here:
                    continue
                await self._fill(rewrite.plan)
                await self._before_writing(number)
                self.fs.files.adopt(inode, rewrite, has_waited=True)
        except VaultError as error:
            raise self._failed_read(inode, error) from None
        except _Database as error:
            raise FUSEError(self.fs.committer.fail(error).errno) from None

    @changing
    def _setattr(
        self, number: InodeT, attr: EntryAttributes, fields: SetattrFields, ctx: RequestContext
    ) -> EntryAttributes:
        inode = self.fs.inodes.get(InodeId(number))
        mode = attr.st_mode if fields.update_mode else None
        self.fs.set_attributes(
            inode,
            mode=mode,
            uid=attr.st_uid if fields.update_uid else None,
            gid=attr.st_gid if fields.update_gid else None,
            size=attr.st_size if fields.update_size else None,
            atime_ns=attr.st_atime_ns if fields.update_atime else None,
            mtime_ns=attr.st_mtime_ns if fields.update_mtime else None,
            ctime_ns=attr.st_ctime_ns if fields.update_ctime else None,
            is_privileged=ctx.uid == 0,
        )
        if mode is not None and mode & _SET_ID and inode.opens:
            self._set_id_since[inode.id] = self.handles.newest
        return self._attributes(inode)

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

    # --- extended attributes

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

    # --- files

    def _opened(self, inode: Inode, flags: int, ctx: RequestContext) -> FileInfo:
        self.fs.open(inode)
        number = self.handles.add(FileHandle(inode, flags, ctx.uid))
        return FileInfo(fh=FileHandleT(number), keep_cache=True)

    async def open(self, inode: InodeT, flags: FlagT, ctx: RequestContext) -> FileInfo:
        """Open a file."""
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_TRUNC):
            await self._before_writing(InodeId(inode))
        return await self._open(inode, flags, ctx)

    @reading
    def _open(self, number: InodeT, flags: FlagT, ctx: RequestContext) -> FileInfo:
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_TRUNC) and self.is_stopped:
            self.fs.check_writable()
        inode = self.fs.inodes.get(InodeId(number))
        if flags & os.O_TRUNC and inode.size:
            self.fs.set_attributes(inode, size=0, is_privileged=ctx.uid == 0)
        return self._opened(inode, flags, ctx)

    async def read(self, fh: FileHandleT, off: int, size: int) -> bytes:
        """Read; what is not in the page cache is read in a thread."""
        fs = self.fs
        self.requests += 1
        try:
            inode = self.handles.file(fh).inode
            plan = fs.files.plan_read(inode, off, size)
            if not await self._fill(plan):
                # What was written meanwhile must not be hidden, in the kernel's page cache, by what was there before.
                extent = fs.chunk_rows.extent
                plan.opened = [each for each in plan.opened if extent(inode.id, each[0].idx) == each[0].chunk]
            if plan.opened:
                plan.keep_opened()
                self._offer_around(inode, off, size, plan)
        except VaultError as error:
            raise self._failed_read(self.handles.file(fh).inode, error) from None
        except _Database as error:
            raise FUSEError(fs.committer.fail(error).errno) from None
        # Any buffer will do, and this one need not be copied.
        return plan.result  # type: ignore[return-value]

    def _failed_read(self, inode: Inode, error: VaultError) -> FUSEError:
        """What a program gets when stored bytes cannot be had, whether they are damaged or only cannot be reached."""
        if isinstance(error, ChunkDamageError):
            self.fs.report_damage(error)
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

    def _offer_around(self, inode: Inode, offset: int, size: int, plan: ReadPlan) -> None:
        if not self.read_around.is_on or inode.dirty or inode.pending or self.handles.has_writers(inode.id):
            return
        for place, data in plan.opened:
            base = place.idx * self.fs.chunk_size
            start, end = max(offset - base, 0), min(offset + size - base, len(data))
            if end - start <= len(data) // 2 and base + len(data) <= inode.size:
                self.read_around.offer(inode.id, base, data, start, end)

    async def write(self, fh: FileHandleT, off: int, buf: bytes) -> int:
        """Write; waits while the sealing thread is behind, a commit is being completed, or the disk is read."""
        fs = self.fs
        durability = self.durability
        if durability.gate is not None or fs.pipeline.is_full:
            await durability.room_to_write()
        handle = self.handles.file(fh)
        self.requests += 1
        try:
            if self.is_stopped:
                fs.check_writable()
            fs.check_room(len(buf))
            inode = handle.inode
            if inode.chunks:
                rewrites = fs.files.plan_write(inode, off, len(buf))
                # All are read before anything else is waited for: at the gate nobody holds a lease, and what a plan
                # was going to read may be given back.
                has_waited = False
                try:
                    for rewrite in rewrites:
                        has_waited |= not await self._fill(rewrite.plan)
                except VaultError as error:
                    raise self._failed_read(inode, error) from None
                if has_waited:
                    await durability.pass_gate()
                for rewrite in rewrites:
                    fs.files.adopt(inode, rewrite, has_waited=has_waited)
            fs.files.write(inode, off, buf)
            if handle.is_direct:
                inode.mtime_ns = inode.ctime_ns = time.time_ns()
            if inode.mode & _SET_ID and self._takes_set_id(fh, handle):
                fs.drop_set_id(inode)
                # Or the kernel would execute the file with the mode that it has cached.
                pyfuse3.invalidate_inode(InodeT(inode.id), attr_only=True)
        except ChunkDamageError as damage:
            fs.report_damage(damage)
            raise FUSEError(errno.EIO) from None
        except VaultError as error:
            raise FUSEError(error.errno) from None
        except _Database as error:
            raise FUSEError(fs.committer.fail(error).errno) from None
        return len(buf)

    async def _fill(self, plan: ReadPlan) -> bool:
        """Read what a plan lacks; return whether that took no waiting."""
        if plan.fill_nowait():
            return True
        segments = self.fs.segments
        segments.lease()
        try:
            # Who waits for a remote must not take the threads that commits and local reads need.
            await trio.to_thread.run_sync(plan.fill, limiter=None if plan.is_here else self._waiting_elsewhere)
        finally:
            segments.end_lease()
        return False

    def _takes_set_id(self, fh: int, handle: FileHandle) -> bool:
        """Whether a write through a handle takes the set-id bits; see the module's text."""
        return handle.uid != 0 and fh > self._set_id_since.get(handle.inode.id, 0)

    async def flush(self, fh: FileHandleT) -> None:
        """Not needed; saying so once saves a request per close."""
        raise FUSEError(errno.ENOSYS)

    @reading
    def release(self, fh: FileHandleT) -> None:
        """Close a file."""
        inode = self.handles.remove(fh).inode
        self.fs.release(inode)
        if not inode.opens:
            self._set_id_since.pop(inode.id, None)

    async def fsync(self, fh: FileHandleT, datasync: bool) -> None:
        """Make everything durable."""
        self.requests += 1
        await self._durable()

    async def fsyncdir(self, fh: FileHandleT, datasync: bool) -> None:
        """Make everything durable."""
        self.requests += 1
        await self._durable()

    async def _durable(self) -> None:
        if self.fs.is_read_only:
            return
        try:
            await self.durability.fsync()
        except VaultError as error:
            raise FUSEError(error.errno) from None

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
