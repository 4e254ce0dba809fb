"""Parts of segments that lie elsewhere, kept on disk as they were fetched: ciphertext, in blocks, bounded.

Each segment has a sparse file; a block is there if all of its file's range is (SEEK_DATA tells, so nothing else has to
be kept in step).  A block that a crash left torn is found by who opens a chunk of it, and dropped (`forget`).  Files
used least recently go first when there is too much.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import threading
from collections import OrderedDict
from pathlib import Path
from typing import Final

from vaultfs.errors import IntegrityError
from vaultfs.ids import SegmentName
from vaultfs.storage.durable import storage_errors
from vaultfs.storage.segment_source import SegmentSource

BLOCK_BYTES: Final = 1 << 20
READ_AHEAD_BLOCKS: Final = 4
"""Fetched at once, at most, when somebody reads on from what is there; two the first time, so that who wants a little
waits for little."""
DEFAULT_LIMIT_BYTES: Final = 2 << 30
MOST_REQUESTS: Final = 16
"""At once; each may hold twice its bytes in memory."""

_FILE: Final = re.compile(r"([0-9a-f]{64})\.part")
_FLAGS: Final = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC


class _Part:
    """The file of one segment; it is open while somebody uses it.

    Attributes:
        blocks: numbers of those that are there.
        fetching: numbers of those that a thread is about to bring.
        ahead: how many were fetched at once last.
        users: threads that use the descriptor.
    """

    def __init__(self, blocks: set[int]) -> None:
        self.descriptor = -1
        self.blocks = blocks
        self.fetching: set[int] = set()
        self.ahead = 1
        self.users = 0


class SegmentCache:
    """The cache of one vault.  Threads share it.

    Args:
        directory: for its files; made when it is needed.
        source: where the bytes come from.
        limit_bytes: what it may take on the disk; a request that is under way may add to it.
    """

    def __init__(self, directory: Path, source: SegmentSource, limit_bytes: int = DEFAULT_LIMIT_BYTES) -> None:
        self._directory: Final = directory
        self._source: Final = source
        self._limit_bytes: Final = limit_bytes
        self._changed: Final = threading.Condition()
        self._turns: Final = threading.BoundedSemaphore(MOST_REQUESTS)
        self._parts: Final[OrderedDict[SegmentName, _Part]] = OrderedDict()
        self._is_loaded = False

    def read(self, name: SegmentName, size: int, offset: int, length: int) -> bytes:
        """Bytes of a segment; fetches what is not there.  Any thread.

        Args:
            name: the segment's.
            size: its bytes.
            offset: bytes from its start.
            length: bytes.

        Raises:
            IntegrityError: the segment ends before.
            NoSpaceError, StorageError: the disk failed.
            VaultError: as the source says.
        """
        if offset + length > size:
            raise IntegrityError(f"the segment {name} ends before byte {offset + length}")
        first, last = offset // BLOCK_BYTES, (offset + length - 1) // BLOCK_BYTES
        part = self._use(name)
        try:
            for _ in range(2):
                while (wanted := self._claim(part, first, last, size)) is not None:
                    self._bring(part, name, size, wanted)
                with storage_errors(f"cannot read the cache of segment {name}"):
                    data = os.pread(part.descriptor, length, offset)
                if len(data) == length:
                    return data
                self.forget(name, offset, length)  # a crash has cut the last block
        finally:
            self._end_use(part)
        raise IntegrityError(f"the cache of segment {name} does not keep what is written to it")

    def forget(self, name: SegmentName, offset: int, length: int) -> None:
        """Drop what is there of a range, because it does not open."""
        with self._changed:
            part = self._parts.get(name)
            if part is not None:
                part.blocks.difference_update(range(offset // BLOCK_BYTES, (offset + length - 1) // BLOCK_BYTES + 1))

    def drop(self, name: SegmentName) -> None:
        """Give back the room of a segment that is on this disk now; who reads it from here may end that.

        Raises:
            StorageError: its file cannot be removed.
        """
        with self._changed:
            self._load()
            if self._parts.pop(name, None) is not None:
                self._remove(name)

    # --- blocks

    def _claim(self, part: _Part, first: int, last: int, size: int) -> range | None:
        """Blocks that the caller is to bring, side by side; None once all are there.  Waits while others bring them."""
        with self._changed:
            while True:
                lacking = [each for each in range(first, last + 1) if each not in part.blocks]
                if not lacking:
                    return None
                free = [each for each in lacking if each not in part.fetching]
                if not free:
                    self._changed.wait()
                    continue
                start = end = free[0]
                reads_on = start - 1 in part.blocks or start - 1 in part.fetching
                part.ahead = min(part.ahead * 2, READ_AHEAD_BLOCKS) if reads_on else 1
                most = max(last, start + part.ahead - 1)
                while end <= most and end * BLOCK_BYTES < size and end not in part.blocks | part.fetching:
                    end += 1
                part.fetching.update(range(start, end))
                return range(start, end)

    def _bring(self, part: _Part, name: SegmentName, size: int, blocks: range) -> None:
        start, end = blocks.start * BLOCK_BYTES, min(blocks.stop * BLOCK_BYTES, size)
        is_there = False
        try:
            with self._turns:
                data = self._source.fetch(name, start, end - start)
            if len(data) != end - start:
                raise IntegrityError(f"{len(data)} bytes of segment {name} came instead of {end - start}")
            with storage_errors(f"cannot write the cache of segment {name}"):
                written = os.pwrite(part.descriptor, data, start)
                if written != len(data):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            is_there = True
        finally:
            with self._changed:
                part.fetching.difference_update(blocks)
                if is_there:
                    part.blocks.update(blocks)
                self._changed.notify_all()
        self._make_room()

    # --- files

    def _use(self, name: SegmentName) -> _Part:
        with self._changed:
            self._load()
            part = self._parts.get(name) or _Part(set())
            if not part.users:
                part.descriptor = self._open(name)
            self._parts[name] = part
            self._parts.move_to_end(name)
            part.users += 1
            return part

    def _end_use(self, part: _Part) -> None:
        with self._changed:
            part.users -= 1
            if not part.users:
                os.close(part.descriptor)

    def _path(self, name: SegmentName) -> Path:
        return self._directory / f"{name}.part"

    def _open(self, name: SegmentName) -> int:
        with storage_errors(f"cannot open {self._path(name)}"):
            self._directory.mkdir(mode=0o700, exist_ok=True)
            return os.open(self._path(name), _FLAGS, 0o600)

    def _load(self) -> None:
        """Take in what an earlier process has left, the oldest first."""
        if self._is_loaded:
            return
        self._is_loaded = True
        with storage_errors(f"cannot list {self._directory}"), contextlib.suppress(FileNotFoundError):
            found = [entry for entry in os.scandir(self._directory) if _FILE.fullmatch(entry.name)]
            for entry in sorted(found, key=lambda each: each.stat(follow_symlinks=False).st_mtime_ns):
                name = SegmentName(entry.name.removesuffix(".part"))
                descriptor = self._open(name)
                try:
                    self._parts[name] = _Part(_whole_blocks(descriptor))
                finally:
                    os.close(descriptor)

    def _make_room(self) -> None:
        with self._changed:
            total = sum(len(part.blocks) for part in self._parts.values()) * BLOCK_BYTES
            for name in list(self._parts):
                if total <= self._limit_bytes:
                    break
                part = self._parts[name]
                if part.users:
                    continue
                total -= len(part.blocks) * BLOCK_BYTES
                del self._parts[name]
                self._remove(name)

    def _remove(self, name: SegmentName) -> None:
        with storage_errors(f"cannot remove {self._path(name)}"):
            self._path(name).unlink(missing_ok=True)


def _whole_blocks(descriptor: int) -> set[int]:
    """The blocks of a sparse file that have no hole in them; the last one may be short."""
    size = os.fstat(descriptor).st_size
    blocks: set[int] = set()
    position = 0
    while position < size:
        try:
            start = os.lseek(descriptor, position, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # nothing but a hole is left
                break
            raise
        end = os.lseek(descriptor, start, os.SEEK_HOLE)
        blocks.update(range(-(-start // BLOCK_BYTES), end // BLOCK_BYTES if end < size else -(-end // BLOCK_BYTES)))
        position = end
    return blocks
