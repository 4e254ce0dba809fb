"""Reading segments, and giving the room of dead chunks back to the disk."""

from __future__ import annotations

import ctypes
import errno
import os
from pathlib import Path
from typing import Final, Self

from vaultfs.errors import IntegrityError
from vaultfs.ids import SegmentName
from vaultfs.storage.durable import storage_error, storage_errors
from vaultfs.storage.segment_file import hash_descriptor, open_for_change, open_segment, read_up_to

_BLOCK_BYTES: Final = 4096
_PUNCH_HOLE_KEEP_SIZE: Final = 0x02 | 0x01  # FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE of <linux/falloc.h>
_CANNOT_PUNCH: Final = {errno.EOPNOTSUPP, errno.ENOSYS}

_LIBC_FSTATFS: Final = ctypes.CDLL(None, use_errno=True).fstatfs
_MEMORY_MAGICS: Final = {0x01021994, 0x858458F6}  # TMPFS_MAGIC, RAMFS_MAGIC of <linux/magic.h>
_STATFS_BYTES: Final = 256  # struct statfs begins with the type, a long; it has 120 bytes


def _is_in_memory(descriptor: int) -> bool:
    """Whether a file lies in a file system without a disk (fstatfs(2))."""
    buffer = ctypes.create_string_buffer(_STATFS_BYTES)
    if _LIBC_FSTATFS(descriptor, buffer) != 0:
        return False
    return ctypes.c_long.from_buffer(buffer).value in _MEMORY_MAGICS


class SegmentReader:
    """One segment open for reading.  Threads may share it.

    The file is closed with the last reference, so one that a thread still reads from cannot be closed under it, and its
    descriptor's number cannot come to mean another file meanwhile.

    Args:
        descriptor: the open file; it belongs to the reader from now on.
        segment: what to call it in messages.
    """

    def __init__(self, descriptor: int, segment: str) -> None:
        self._descriptor = descriptor
        self._segment = segment
        self._has_nowait = True
        self._is_in_memory = False

    @classmethod
    def open(cls, path: Path, *, segment: str) -> Self:
        """Open a segment, sealed or open.

        Args:
            path: where it lies.
            segment: what to call it in messages.

        Raises:
            IntegrityError: it is missing, or something else is in its place.
            StorageError: the system refused.
        """
        return cls(open_segment(path, segment=segment), segment)

    def read(self, offset: int, length: int) -> bytes:
        """Read from the disk if need be.

        Args:
            offset: bytes from the start of the file.
            length: bytes.

        Raises:
            IntegrityError: the file ends before.
            StorageError: the disk failed.
        """
        try:
            data = read_up_to(self._descriptor, offset, length)
        except OSError as error:
            raise storage_error(f"cannot read the segment {self._segment}", error) from error
        if len(data) < length:
            raise IntegrityError(
                f"the segment {self._segment} ends before byte {offset + length}: it was cut; restore it"
            )
        return data

    def read_nowait(self, offset: int, into: memoryview) -> bool:
        """Fill a buffer without waiting for the disk; False if that takes waiting, or this file system cannot tell.

        Args:
            offset: bytes from the start of the file.
            into: writable; unless the result is True, nobody knows what is in it.

        Raises:
            StorageError: the disk failed.
        """
        if not self._has_nowait:
            return self._read_memory(offset, into)
        try:
            # Less than asked for: the rest is not in memory, or the file ends.  `read` finds out which.
            return os.preadv(self._descriptor, [into], offset, os.RWF_NOWAIT) == len(into)
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno == errno.EOPNOTSUPP:
                self._has_nowait = False
                self._is_in_memory = _is_in_memory(self._descriptor)
                return self._read_memory(offset, into)
            raise storage_error(f"cannot read the segment {self._segment}", error) from error

    def _read_memory(self, offset: int, into: memoryview) -> bool:
        """Read from tmpfs, which knows no RWF_NOWAIT because it never waits for a disk; False for anything else."""
        if not self._is_in_memory:
            return False
        with storage_errors(f"cannot read the segment {self._segment}"):
            return os.preadv(self._descriptor, [into], offset) == len(into)

    def size_bytes(self) -> int:
        """Bytes in the file.

        Raises:
            StorageError: the disk failed.
        """
        with storage_errors(f"cannot look at the segment {self._segment}"):
            return os.fstat(self._descriptor).st_size

    def close(self) -> None:
        """Close the file now; no thread may be reading from it.  Doing it twice is harmless."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def __del__(self) -> None:
        self.close()


def hash_file(path: Path) -> SegmentName:
    """The name that a segment file's content has: the BLAKE3 of its bytes.

    Raises:
        IntegrityError: it is missing, or not a regular file.
        StorageError: the disk failed.
    """
    descriptor = open_segment(path, segment=path.name)
    try:
        with storage_errors(f"cannot read {path}"):
            return hash_descriptor(descriptor)
    finally:
        os.close(descriptor)


def punch(path: Path, offset: int, length: int) -> bool:
    """Give the disk blocks that lie wholly within a range of a segment back; whatever is there reads as zeros.

    Blocks that lie partly outside stay as they are, so that no block with a living chunk is written again.  A file with
    further hard links stays as it is too: they may be a backup's.  Nothing is synced: after a power cut the room may
    still be taken.

    Args:
        path: the segment.
        offset: bytes from the start of the file.
        length: bytes.

    Returns:
        Whether the room was given back; False where the file system cannot or must not.

    Raises:
        IntegrityError: the segment is missing, or something else is in its place.
        StorageError: the disk failed.
    """
    start = -(-offset // _BLOCK_BYTES) * _BLOCK_BYTES
    end = (offset + length) // _BLOCK_BYTES * _BLOCK_BYTES
    if end <= start:
        return True
    descriptor = open_for_change(path, segment=path.name)
    try:
        with storage_errors(f"cannot punch a hole in {path}"):
            if os.fstat(descriptor).st_nlink > 1:
                return False
            try:
                _fallocate(descriptor, _PUNCH_HOLE_KEEP_SIZE, start, end - start)
            except OSError as error:
                if error.errno in _CANNOT_PUNCH:
                    return False
                raise
    finally:
        os.close(descriptor)
    return True


def _fallocate(descriptor: int, mode: int, offset: int, length: int) -> None:
    """fallocate(2), which the standard library has without its mode."""
    while _LIBC_FALLOCATE(descriptor, mode, offset, length) != 0:
        code = ctypes.get_errno()
        if code != errno.EINTR:
            raise OSError(code, os.strerror(code))


_LIBC: Final = ctypes.CDLL(None, use_errno=True)
_LIBC_FALLOCATE: Final = getattr(_LIBC, "fallocate64", _LIBC.fallocate)
_LIBC_FALLOCATE.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
_LIBC_FALLOCATE.restype = ctypes.c_int
