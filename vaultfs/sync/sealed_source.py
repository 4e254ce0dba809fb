"""A sealed segment of this vault as something to be sent: read in pieces, hashed on the way, never complete if wrong.

A piece is given out when it has been hashed, and the last one only if the hash of all of them is the segment's name.
So a store that sends what it reads, with the length announced, cannot end up with an object of wrong bytes, although
no segment is ever in memory: its request fails one piece short.  That also holds for a library that reads twice, to
sign and then to send: going back to the start begins a new pass with a new hash, as the file may have changed since.
There is no going to the middle, of which nobody could say what the rest belongs to.

A segment that several remotes lack is opened once and read for each of them; what was just read comes from the page
cache of the kernel.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import BinaryIO, Final, Protocol

import blake3

from vaultfs.errors import IntegrityError, VaultError
from vaultfs.ids import SegmentName
from vaultfs.remotes.bodies import PIECE_BYTES
from vaultfs.remotes.store import Source
from vaultfs.storage.durable import storage_error, storage_errors
from vaultfs.storage.layout import VaultLayout
from vaultfs.storage.segment_file import open_segment
from vaultfs.sync.remote_layout import LARGEST_SEGMENT_BYTES

_BUFFER_BYTES: Final = 256 << 10
"""Who reads as much or more at once gets it without a copy in between."""


class SegmentSource(Source, Protocol):
    """A segment to be stored elsewhere.

    Attributes:
        failure: why its bytes cannot be had; None as long as they can.  Whatever a store says then, it is not at fault.
    """

    failure: VaultError | None


@contextmanager
def open_source(
    layout: VaultLayout, name: SegmentName, size: int, check: Callable[[], None] = lambda: None
) -> Iterator[SegmentSource]:
    """A segment that lies in the vault, for as long as the context lasts.

    Args:
        layout: the vault.
        name: the segment's.
        size: its bytes, as a manifest says.
        check: called before each piece is read; may raise, to end it.

    Raises:
        IntegrityError: it is missing, has another length, or could not be one.  What else is wrong with it is found
            when it is read.
        StorageError: the system refused.
    """
    if size > LARGEST_SEGMENT_BYTES:
        raise IntegrityError(f"the segment {name} would have {size} bytes, which no segment has; run vaultfs fsck")
    descriptor = open_segment(layout.sealed_path(name), segment=name)
    try:
        source = _SealedSource(descriptor, name, size, check)
        source.require_size()
        yield source
    finally:
        os.close(descriptor)


def source_of(descriptor: int, name: SegmentName, size: int, check: Callable[[], None]) -> SegmentSource:
    """A segment in a file that is open, whatever it is called, and that stays its owner's.

    Args:
        descriptor: the file's.
        name: the segment's.
        size: its bytes.
        check: called before each piece is read; may raise, to end it.
    """
    return _SealedSource(descriptor, name, size, check)


class _SealedSource:
    """What `open_source` gives.

    Args:
        descriptor: the open file; stays its owner's.
        name: the segment's.
        size: its bytes.
        check: called before each piece.
    """

    def __init__(self, descriptor: int, name: SegmentName, size: int, check: Callable[[], None]) -> None:
        self.failure: VaultError | None = None
        self._descriptor: Final = descriptor
        self._name: Final = name
        self._size: Final = size
        self._check: Final = check

    @property
    def size_bytes(self) -> int:
        """How many bytes it must have."""
        return self._size

    def open(self) -> BinaryIO:
        """Begin a pass; several may go on at once."""
        if self._size == 0:
            self.require_name(blake3.blake3().hexdigest())
        return io.BufferedReader(_Pass(self), _BUFFER_BYTES)

    def read_into(self, piece: memoryview, offset: int) -> int:
        """Read what lies at an offset, at least a byte.

        Raises:
            IntegrityError: the file has become shorter.
            StorageError: it cannot be read.
        """
        self._check()
        if self.failure is not None:
            raise self.failure
        try:
            count = os.preadv(self._descriptor, [piece], offset)
        except OSError as error:
            self.failure = storage_error(f"cannot read the segment {self._name}", error)
            raise self.failure from error
        if not count:
            self._fail()
        return count

    def require_size(self) -> None:
        """Check its length.

        Raises:
            IntegrityError: it has another one.
            StorageError: the system refused.
        """
        with storage_errors(f"cannot look at the segment {self._name}"):
            actual = os.fstat(self._descriptor).st_size
        if actual != self._size:
            raise IntegrityError(
                f"the segment {self._name} has {actual} bytes instead of {self._size}: it is damaged; restore it"
            )

    def require_name(self, digest: str) -> None:
        """Check the hash of all its bytes.

        Raises:
            IntegrityError: it is not the name.
        """
        if digest != self._name:
            self._fail()

    def _fail(self) -> None:
        """Find out why the bytes are not those of the name, and remember it.

        Raises:
            IntegrityError: always; StorageError if not even that can be found out.
        """
        try:
            self.require_size()
            with storage_errors(f"cannot look at the segment {self._name}"):
                has_holes = self._size > 0 and os.lseek(self._descriptor, 0, os.SEEK_HOLE) < self._size
            if has_holes:
                raise IntegrityError(
                    f"the segment {self._name} has holes where deleted data was, so it cannot be sent: it was made "
                    "before the vault had a remote; run vaultfs sync while it is mounted, or with a password"
                )
            raise IntegrityError(
                f"the segment {self._name} is damaged: its bytes are not those of its name; 'vaultfs scrub' tells "
                "which files it has, and to read them mends it if a remote has it"
            )
        except VaultError as error:
            self.failure = error
            raise


class _Pass(io.RawIOBase):
    """One reading of a segment, from its start."""

    def __init__(self, source: _SealedSource) -> None:
        super().__init__()
        self._source: Final = source
        self._position = 0
        self._hasher = blake3.blake3()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to the start, to begin anew; or to the end, as who wants to know the length does.

        Raises:
            UnsupportedOperation: somewhere else.
        """
        size = self._source.size_bytes
        position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: size}[whence]
        if position == 0:
            self._hasher = blake3.blake3()
        elif position not in {self._position, size}:
            raise io.UnsupportedOperation("a segment is read from its start to its end")
        self._position = position
        return position

    def readinto(self, buffer: bytearray | memoryview, /) -> int:  # type: ignore[override]  # narrower than Buffer
        """Read the next piece, which the buffer holds only if it may be given out."""
        rest = max(0, self._source.size_bytes - self._position)
        piece = memoryview(buffer).cast("B")[: min(rest, PIECE_BYTES)]
        if not piece:
            return 0
        count = self._source.read_into(piece, self._position)
        self._hasher.update(piece[:count])
        if self._position + count == self._source.size_bytes:
            self._source.require_name(self._hasher.hexdigest())
        self._position += count
        return count
