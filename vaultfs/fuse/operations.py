"""FUSE requests, answered by the core: a thin adapter.

Those on names are in `NameRequests`.  Here are those on the contents of files.  Most are answered in one step of the
event loop too; what may wait for the disk (a read that misses the page cache, a commit) goes to a thread.
"""

from __future__ import annotations

import errno
import os
import time
from typing import Final

import pyfuse3
import trio
from pyfuse3 import (
    EntryAttributes,
    FileHandleT,
    FileInfo,
    FlagT,
    FUSEError,
    InodeT,
    RequestContext,
    SetattrFields,
)

from vaultfs.errors import VaultError
from vaultfs.fuse.answering import changing, reading
from vaultfs.fuse.durability import Durability
from vaultfs.fuse.failed_reads import FailedReads
from vaultfs.fuse.name_requests import NameRequests
from vaultfs.fuse.read_around import ReadAround
from vaultfs.fuse.session import MOST_WORKERS_ELSEWHERE
from vaultfs.fuse.set_id import SET_ID, SetIdBits
from vaultfs.ids import InodeId
from vaultfs.metadata.database import database_failures
from vaultfs.vault.filesystem import FileSystem
from vaultfs.vault.inodes import Inode
from vaultfs.vault.reading import ChunkDamageError, ReadPlan

_Database: Final = database_failures()


class VaultOperations(NameRequests):
    """All handlers.

    Args:
        fs: the vault.
        durability: makes it durable.
        read_around: fills the kernel's page cache.
    """

    enable_writeback_cache = True

    def __init__(self, fs: FileSystem, durability: Durability, read_around: ReadAround) -> None:
        super().__init__(fs)
        self.durability = durability
        self.read_around = read_around
        self._set_id = SetIdBits()
        self._failed_reads = FailedReads(fs)
        self._waiting_elsewhere = trio.CapacityLimiter(MOST_WORKERS_ELSEWHERE)

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
            raise self._failed_reads.answer(inode, error) from None
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
        if mode is not None and mode & SET_ID and inode.opens:
            self._set_id.set(inode.id, self.handles.newest)
        return self._attributes(inode)

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
            raise self._failed_reads.answer(self.handles.file(fh).inode, error) from None
        except _Database as error:
            raise FUSEError(fs.committer.fail(error).errno) from None
        # Any buffer will do, and this one need not be copied.
        return plan.result  # type: ignore[return-value]

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
                    raise self._failed_reads.answer(inode, error) from None
                if has_waited:
                    await durability.pass_gate()
                for rewrite in rewrites:
                    fs.files.adopt(inode, rewrite, has_waited=has_waited)
            fs.files.write(inode, off, buf)
            if handle.is_direct:
                inode.mtime_ns = inode.ctime_ns = time.time_ns()
            if inode.mode & SET_ID and self._set_id.are_taken_by(fh, handle):
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

    async def flush(self, fh: FileHandleT) -> None:
        """Not needed; saying so once saves a request per close."""
        raise FUSEError(errno.ENOSYS)

    @reading
    def release(self, fh: FileHandleT) -> None:
        """Close a file."""
        inode = self.handles.remove(fh).inode
        self.fs.release(inode)
        if not inode.opens:
            self._set_id.forget(inode.id)

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
