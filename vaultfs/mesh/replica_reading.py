"""Bytes of replicas on their way out, and proofs that they are there."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from types import TracebackType
from typing import Final, Self

import blake3

from vaultfs.errors import RemoteError
from vaultfs.mesh.messages import HASH_BYTES, Range
from vaultfs.mesh.partial_uploads import PIECE_BYTES
from vaultfs.mesh.replica_files import disk_errors
from vaultfs.mesh.replica_keys import ObjectKey, audited_object

_OWN_LACK: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})


class Reader:
    """An object, or a part of it, open for reading; by one thread at a time.  A context manager.

    What is deleted or replaced meanwhile is read to its end.

    Args:
        key: names it in messages.
        descriptor: the file; is closed here.
        offset: bytes from its start.
        length: bytes; to its end if None.

    Attributes:
        size_bytes: of the whole object.
        body_bytes: of the part.

    Raises:
        RemoteError: the part does not lie inside the object; or the disk failed.
    """

    def __init__(self, key: str, descriptor: int, offset: int, length: int | None) -> None:
        self._key: Final = key
        self._descriptor = descriptor
        self._position = offset
        try:
            with disk_errors(f"read {key}"):
                self.size_bytes: Final = os.fstat(descriptor).st_size
            self.body_bytes: Final = self.size_bytes - offset if length is None else length
            if min(offset, self.body_bytes) < 0 or offset + self.body_bytes > self.size_bytes:
                raise RemoteError(f"{key} has {self.size_bytes} bytes; {length} from {offset} were asked for")
        except BaseException:
            os.close(descriptor)
            raise
        self._end: Final = offset + self.body_bytes

    def read(self, most_bytes: int) -> bytes:
        """The next bytes, at most so many; none after the last.

        Raises:
            RemoteError: the disk failed, or the file was cut meanwhile.
        """
        wanted = min(most_bytes, self._end - self._position)
        if wanted <= 0:
            return b""
        with disk_errors(f"read {self._key}"):
            piece = os.pread(self._descriptor, wanted, self._position)
        if not piece:
            raise RemoteError(f"{self._key} was cut at byte {self._position} while it was read")
        self._position += len(piece)
        return piece

    def close(self) -> None:
        """Doing it twice is harmless."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def hash_of(descriptor: int) -> tuple[bytes | None, int]:
    """The BLAKE3 of a file, and its length as far as it could be read; None if the disk could not read all of it."""
    hasher = blake3.blake3()
    position = 0
    try:
        while piece := os.pread(descriptor, PIECE_BYTES, position):
            hasher.update(piece)
            position += len(piece)
    except OSError:  # a part of the disk that cannot be read has damaged the object like wrong bytes
        return None, position
    return hasher.digest(), position


def proof_of(open_object: Callable[[ObjectKey], int], key: bytes, wanted: Range) -> bytes:
    """The answer to a range of an audit: zeros if it is not all there, or cannot be read.

    Args:
        open_object: opens a segment or a share; -1 if it is not there.
        key: 32 bytes.
        wanted: which part of which segment or share.

    Raises:
        OSError: this machine lacks descriptors or memory just now, which says nothing about the segment.
    """
    named = audited_object(wanted.name, wanted.share)
    if named is None:
        return bytes(HASH_BYTES)
    hasher = blake3.blake3((named.digest or b"") + wanted.offset.to_bytes(8, "big"), key=key)
    position, end = wanted.offset, wanted.offset + wanted.length
    try:
        descriptor = open_object(named)
        if descriptor < 0:
            return bytes(HASH_BYTES)
        try:
            if end > os.fstat(descriptor).st_size:
                return bytes(HASH_BYTES)
            while position < end:
                piece = os.pread(descriptor, min(PIECE_BYTES, end - position), position)
                if not piece:
                    return bytes(HASH_BYTES)
                hasher.update(piece)
                position += len(piece)
        finally:
            os.close(descriptor)
    except OSError as error:  # as in `hash_of`
        if error.errno in _OWN_LACK:
            raise
        return bytes(HASH_BYTES)
    return hasher.digest()
