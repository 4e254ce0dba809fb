"""A filesystem in memory that counts its requests: what the session tests mount."""

from __future__ import annotations

import errno
import os
import stat
import time
from collections import Counter
from dataclasses import dataclass, field

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
    SetattrFields,
    StatvfsData,
    XAttrNameT,
)


@dataclass(slots=True)
class Node:
    number: int
    mode: int
    uid: int = 0
    gid: int = 0
    nlink: int = 1
    mtime_ns: int = 0
    target: bytes = b""
    data: bytearray = field(default_factory=bytearray)
    size: int = 0
    children: dict[bytes, int] = field(default_factory=dict)
    parent: int = 1
    xattrs: dict[bytes, bytes] = field(default_factory=dict)


class MemoryOperations(pyfuse3.Operations):
    """Enough of a filesystem for tar, cp and friends.

    Args:
        keep_data: False forgets what is written, for measurements.
    """

    enable_writeback_cache = True
    supports_dot_lookup = False

    def __init__(self, *, keep_data: bool = True) -> None:
        super().__init__()
        self.nodes = {1: Node(1, stat.S_IFDIR | 0o755, os.getuid(), os.getgid(), 2)}
        self.counts: Counter[str] = Counter()
        self.umasks: list[int] = []
        self.keep_data = keep_data
        self._next = 2

    def _attributes(self, node: Node) -> EntryAttributes:
        entry = EntryAttributes()
        entry.st_ino = InodeT(node.number)
        entry.st_mode = ModeT(node.mode)
        entry.st_nlink = node.nlink
        entry.st_uid = node.uid
        entry.st_gid = node.gid
        entry.st_size = node.size
        entry.st_mtime_ns = entry.st_ctime_ns = entry.st_atime_ns = node.mtime_ns
        entry.entry_timeout = entry.attr_timeout = 3600
        return entry

    def _new(self, parent: int, name: bytes, mode: int, ctx: RequestContext) -> Node:
        node = Node(self._next, mode, ctx.uid, ctx.gid, mtime_ns=time.time_ns(), parent=parent)
        self._next += 1
        self.nodes[node.number] = node
        self.nodes[parent].children[name] = node.number
        return node

    def add_file(self, name: bytes, data: bytes) -> None:
        """Put a file into the root directory without a request."""
        node = Node(self._next, stat.S_IFREG | 0o644, os.getuid(), os.getgid(), parent=1)
        self._next += 1
        node.data, node.size = bytearray(data), len(data)
        self.nodes[node.number] = node
        self.nodes[1].children[name] = node.number

    async def lookup(self, parent_inode: InodeT, name: FileNameT, ctx: RequestContext) -> EntryAttributes:
        self.counts["lookup"] += 1
        number = self.nodes[parent_inode].children.get(name)
        if number is None:
            entry = EntryAttributes()
            entry.st_ino = InodeT(0)
            entry.entry_timeout = 3600
            return entry
        return self._attributes(self.nodes[number])

    async def forget(self, inode_list: object) -> None:
        self.counts["forget"] += 1

    async def getattr(self, inode: InodeT, ctx: RequestContext) -> EntryAttributes:
        self.counts["getattr"] += 1
        return self._attributes(self.nodes[inode])

    async def setattr(
        self, inode: InodeT, attr: EntryAttributes, fields: SetattrFields, fh: FileHandleT | None, ctx: RequestContext
    ) -> EntryAttributes:
        self.counts["setattr"] += 1
        node = self.nodes[inode]
        if fields.update_mode:
            node.mode = attr.st_mode
        if fields.update_uid:
            node.uid = attr.st_uid
        if fields.update_gid:
            node.gid = attr.st_gid
        if fields.update_size:
            node.size = attr.st_size
            del node.data[attr.st_size :]
        if fields.update_mtime:
            node.mtime_ns = attr.st_mtime_ns
        return self._attributes(node)

    async def readlink(self, inode: InodeT, ctx: RequestContext) -> FileNameT:
        self.counts["readlink"] += 1
        return FileNameT(self.nodes[inode].target)

    async def mkdir(self, parent_inode: InodeT, name: FileNameT, mode: ModeT, ctx: RequestContext) -> EntryAttributes:
        self.counts["mkdir"] += 1
        self.umasks.append(ctx.umask)
        return self._attributes(self._new(parent_inode, name, mode, ctx))

    async def symlink(
        self, parent_inode: InodeT, name: FileNameT, target: FileNameT, ctx: RequestContext
    ) -> EntryAttributes:
        self.counts["symlink"] += 1
        node = self._new(parent_inode, name, stat.S_IFLNK | 0o777, ctx)
        node.target = target
        node.size = len(target)
        return self._attributes(node)

    async def unlink(self, parent_inode: InodeT, name: FileNameT, ctx: RequestContext) -> None:
        self.counts["unlink"] += 1
        del self.nodes[parent_inode].children[name]

    async def rmdir(self, parent_inode: InodeT, name: FileNameT, ctx: RequestContext) -> None:
        self.counts["rmdir"] += 1
        del self.nodes[parent_inode].children[name]

    async def link(
        self, inode: InodeT, new_parent_inode: InodeT, new_name: FileNameT, ctx: RequestContext
    ) -> EntryAttributes:
        self.counts["link"] += 1
        self.nodes[new_parent_inode].children[new_name] = inode
        self.nodes[inode].nlink += 1
        return self._attributes(self.nodes[inode])

    async def create(
        self, parent_inode: InodeT, name: FileNameT, mode: ModeT, flags: FlagT, ctx: RequestContext
    ) -> tuple[FileInfo, EntryAttributes]:
        self.counts["create"] += 1
        self.umasks.append(ctx.umask)
        node = self._new(parent_inode, name, mode, ctx)
        return FileInfo(fh=FileHandleT(node.number)), self._attributes(node)

    async def open(self, inode: InodeT, flags: FlagT, ctx: RequestContext) -> FileInfo:
        self.counts["open"] += 1
        if flags & os.O_TRUNC:
            self.nodes[inode].data.clear()
            self.nodes[inode].size = 0
        return FileInfo(fh=FileHandleT(inode))

    async def read(self, fh: FileHandleT, off: int, size: int) -> bytes:
        self.counts["read"] += 1
        node = self.nodes[fh]
        if self.keep_data:
            return bytes(memoryview(node.data)[off : off + size])
        return bytes(min(size, max(0, node.size - off)))

    async def write(self, fh: FileHandleT, off: int, buf: bytes) -> int:
        self.counts["write"] += 1
        node = self.nodes[fh]
        if self.keep_data:
            if len(node.data) < off:
                node.data.extend(bytes(off - len(node.data)))
            node.data[off : off + len(buf)] = buf
        node.size = max(node.size, off + len(buf))
        return len(buf)

    async def flush(self, fh: FileHandleT) -> None:
        self.counts["flush"] += 1
        raise FUSEError(errno.ENOSYS)

    async def release(self, fh: FileHandleT) -> None:
        self.counts["release"] += 1

    async def fsync(self, fh: FileHandleT, datasync: bool) -> None:
        self.counts["fsync"] += 1

    async def opendir(self, inode: InodeT, ctx: RequestContext) -> FileHandleT:
        self.counts["opendir"] += 1
        return FileHandleT(inode)

    async def readdir(self, fh: FileHandleT, start_id: int, token: ReaddirToken) -> None:
        self.counts["readdir"] += 1
        children = self.nodes[fh].children
        for position, (name, number) in enumerate(list(children.items())[start_id:], start_id + 1):
            if not pyfuse3.readdir_reply(token, FileNameT(name), self._attributes(self.nodes[number]), position):
                break

    async def releasedir(self, fh: FileHandleT) -> None:
        self.counts["releasedir"] += 1

    async def statfs(self, ctx: RequestContext) -> StatvfsData:
        self.counts["statfs"] += 1
        data = StatvfsData()
        data.f_bsize = data.f_frsize = 4096
        data.f_blocks = data.f_bfree = data.f_bavail = 1 << 30
        data.f_files = data.f_ffree = data.f_favail = 1 << 30
        data.f_namemax = 255
        return data

    async def getxattr(self, inode: InodeT, name: XAttrNameT, ctx: RequestContext) -> bytes:
        self.counts[f"getxattr {name.decode()}"] += 1
        value = self.nodes[inode].xattrs.get(name)
        if value is None:
            raise FUSEError(pyfuse3.ENOATTR)
        return value

    async def setxattr(self, inode: InodeT, name: XAttrNameT, value: bytes, ctx: RequestContext) -> None:
        self.counts["setxattr"] += 1
        self.nodes[inode].xattrs[name] = value

    async def listxattr(self, inode: InodeT, ctx: RequestContext) -> list[XAttrNameT]:
        self.counts["listxattr"] += 1
        return [XAttrNameT(name) for name in self.nodes[inode].xattrs]
