"""Opening existing segment files safely, and their hash.

A segment is opened only if it is a regular file under its own name.  A symlink is not followed, and a FIFO, socket or
directory in its place neither blocks nor is read.  Further hard links are no reason to refuse reading: backups made
with ``cp -l`` or ``rsync --link-dest`` consist of them, and what is read is authenticated chunk by chunk.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import Final

import blake3

from vaultfs.errors import IntegrityError
from vaultfs.ids import SegmentName
from vaultfs.storage.durable import storage_error, storage_errors

SEALED_MODE: Final = 0o400
"""Of sealed segments: an editor or a stray redirection cannot damage them; `open_for_change` can."""
OPEN_MODE: Final = 0o600

_BLOCK_BYTES: Final = 1 << 20
# O_NONBLOCK: opening a FIFO must not wait for a writer.  It changes nothing for regular files.
_FLAGS: Final = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_MISSING: Final = {errno.ENOENT, errno.ENOTDIR}
_NOT_A_FILE: Final = {errno.ELOOP, errno.ENXIO, errno.EISDIR}


def open_segment(path: Path, *, segment: str, access: int = os.O_RDONLY) -> int:
    """Open a segment file and return its descriptor.

    Args:
        path: where it must lie.
        segment: what to call it in messages.
        access: ``os.O_RDONLY`` or ``os.O_RDWR``.

    Raises:
        IntegrityError: it is missing, or something else is in its place.
        StorageError: the system refused.
    """
    descriptor, is_regular = -1, False
    try:
        descriptor = os.open(path, access | _FLAGS)
        is_regular = stat.S_ISREG(os.fstat(descriptor).st_mode)
    except OSError as error:
        if error.errno in _MISSING:
            raise IntegrityError(f"the segment {segment} is missing; restore it from a backup") from error
        if error.errno not in _NOT_A_FILE:
            raise storage_error(f"cannot open the segment {segment}", error) from error
    finally:
        if descriptor >= 0 and not is_regular:
            os.close(descriptor)
    if not is_regular:
        raise IntegrityError(f"the segment {segment} is not a regular file: something took its place; restore it")
    return descriptor


def open_for_change(path: Path, *, segment: str) -> int:
    """Open a segment file for writing although its mode may forbid it; the mode is as before when this returns.

    Args:
        path: where it must lie.
        segment: what to call it in messages.

    Raises:
        IntegrityError: as `open_segment`.
        StorageError, ReadOnlyError: the system refused.
    """
    reading = open_segment(path, segment=segment)
    try:
        with storage_errors(f"cannot open the segment {segment} for writing"):
            before = os.fstat(reading)
            os.fchmod(reading, OPEN_MODE)
            try:
                descriptor = open_segment(path, segment=segment, access=os.O_RDWR)
            finally:
                os.fchmod(reading, stat.S_IMODE(before.st_mode))
            if not os.path.samestat(before, os.fstat(descriptor)):
                os.close(descriptor)
                raise IntegrityError(f"the segment {segment} was replaced while it was opened; run vaultfs fsck")
            return descriptor
    finally:
        os.close(reading)


def read_up_to(descriptor: int, offset: int, length: int) -> bytes:
    """Read ``length`` bytes at ``offset``; fewer only if the file ends before.

    Raises:
        OSError: as the system says.
    """
    data = os.pread(descriptor, length, offset)
    while len(data) < length:
        # Some file systems return less than there is; only an empty answer means the end.
        more = os.pread(descriptor, length - len(data), offset + len(data))
        if not more:
            break
        data += more
    return data


def hash_descriptor(descriptor: int) -> SegmentName:
    """The name that the content of an open file has, whatever its position.

    Raises:
        OSError: as the system says.
    """
    hasher = blake3.blake3()
    block = memoryview(bytearray(_BLOCK_BYTES))
    offset = 0
    while count := os.preadv(descriptor, [block], offset):
        hasher.update(block[:count])
        offset += count
    return SegmentName(hasher.hexdigest())
