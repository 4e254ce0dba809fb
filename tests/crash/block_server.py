"""A disk that remembers everything: ``python -m tests.crash.block_server IMAGE MOUNTPOINT LOG``.

Serves two files through FUSE.  ``disk`` has the bytes of IMAGE, in memory; a loop device on it makes it a disk.  Every
write and flush of it goes to LOG before it is answered.  What is written to ``marks`` goes there too.  Prints a line
when it is mounted; ends when it is unmounted.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
import sys
from pathlib import Path
from typing import Final, NamedTuple

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
    RequestContext,
    SetattrFields,
)

DISK: Final = InodeT(2)
MARKS: Final = InodeT(3)
NAMES: Final = {b"disk": DISK, b"marks": MARKS}

WRITE: Final = 0
FLUSH: Final = 1
MARK: Final = 2
_RECORD: Final = struct.Struct("<BQQ")


class Record(NamedTuple):
    """One entry of the log: kind, offset in bytes, what was written."""

    kind: int
    offset: int
    data: bytes


def read_log(path: Path) -> list[Record]:
    """All entries of a log, in order."""
    data, position, records = path.read_bytes(), 0, []
    while position < len(data):
        kind, offset, length = _RECORD.unpack_from(data, position)
        position += _RECORD.size
        records.append(Record(kind, offset, data[position : position + length]))
        position += length
    return records


class _Disk(pyfuse3.Operations):
    """Two files in one directory."""

    def __init__(self, image: Path, log: Path) -> None:
        super().__init__()
        self._content = bytearray(image.read_bytes())
        self._log = log.open("wb", buffering=0)

    def _record(self, kind: int, offset: int = 0, data: bytes = b"") -> None:
        self._log.write(_RECORD.pack(kind, offset, len(data)) + data)

    async def getattr(self, inode: InodeT, ctx: RequestContext) -> EntryAttributes:
        entry = EntryAttributes()
        entry.st_ino = inode
        entry.st_mode = ModeT(stat.S_IFDIR | 0o700 if inode == pyfuse3.ROOT_INODE else stat.S_IFREG | 0o600)
        entry.st_nlink = 1
        entry.st_uid, entry.st_gid = os.getuid(), os.getgid()
        entry.st_size = len(self._content) if inode == DISK else 0
        return entry

    async def setattr(
        self, inode: InodeT, attr: EntryAttributes, fields: SetattrFields, fh: FileHandleT | None, ctx: RequestContext
    ) -> EntryAttributes:
        return await self.getattr(inode, ctx)

    async def lookup(self, parent_inode: InodeT, name: FileNameT, ctx: RequestContext) -> EntryAttributes:
        if name not in NAMES:
            raise FUSEError(errno.ENOENT)
        return await self.getattr(NAMES[name], ctx)

    async def open(self, inode: InodeT, flags: FlagT, ctx: RequestContext) -> FileInfo:
        return FileInfo(fh=FileHandleT(inode), direct_io=True)

    async def read(self, fh: FileHandleT, off: int, size: int) -> bytes:
        return bytes(self._content[off : off + size])

    async def write(self, fh: FileHandleT, off: int, buf: bytes) -> int:
        if fh == MARKS:
            self._record(MARK, 0, buf)
            return len(buf)
        if off + len(buf) > len(self._content):
            raise FUSEError(errno.ENOSPC)
        self._record(WRITE, off, buf)
        self._content[off : off + len(buf)] = buf
        return len(buf)

    async def fsync(self, fh: FileHandleT, datasync: bool) -> None:
        self._record(FLUSH)


def main(image: str, mountpoint: str, log: str) -> None:
    """Serve until unmounted."""
    pyfuse3.init(_Disk(Path(image), Path(log)), mountpoint, {"fsname=vaultfs-block-log"})
    print("ready", flush=True)
    try:
        trio.run(pyfuse3.main)
    finally:
        pyfuse3.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
