"""Bytes on their way to and from stores: in pieces, and exactly as many as were announced.

A file that is shorter or longer than its `Source` says, or that cannot be read, is a fault of this machine, not of the
remote.  The libraries that send it would report a broken connection, and the request would be repeated for nothing.  So
`SourceReader` remembers what went wrong, and `SourceReader.check` raises that instead.

Wrappers that count or limit put a `MeteredSource` around what they pass on.  Its meter hears of bytes as they are sent,
not as they are read: a library may read everything once before, to sign it.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import BinaryIO, Final

from vaultfs.errors import IntegrityError, RemoteError, UsageError, VaultError
from vaultfs.remotes.store import Source
from vaultfs.storage.durable import storage_error, storage_errors

PIECE_BYTES: Final = 1 << 20
"""The most that `Store.get` yields at once."""


class MeteredSource:
    """A source, and somebody who wants to hear of its bytes as they are sent.

    Args:
        inner: the bytes; may be metered too.
        meter: is called with the number of bytes before each lot is sent, in the sending thread; may make it wait.
    """

    def __init__(self, inner: Source, meter: Callable[[int], None]) -> None:
        self.inner = inner
        self.meter = meter

    @property
    def size_bytes(self) -> int:
        """How many bytes there are."""
        return self.inner.size_bytes

    def open(self) -> AbstractContextManager[BinaryIO]:
        """Open them for reading; nobody hears of that."""
        return self.inner.open()

    def new_meter(self) -> Callable[[int], None]:
        """The meter of one reading from the start; several may be at work at once, each for another receiver."""
        return self.meter


class SourceReader(io.RawIOBase):
    """A source, open for reading: a seekable file that ends where the source said it would.

    Args:
        file: the opened source; stays its owner's.
        size_bytes: how many bytes it must have.
        what: names it in messages.
        meters: are called with the number of bytes of each read while `is_sending`.

    Attributes:
        is_sending: whether what is read is sent at once.
    """

    def __init__(
        self, file: BinaryIO, size_bytes: int, what: str, meters: Sequence[Callable[[int], None]] = ()
    ) -> None:
        super().__init__()
        self.is_sending = True
        self._meters = meters
        self._file = file
        self._size_bytes = size_bytes
        self._what = what
        self._position = 0
        self._error: VaultError | None = None

    def __len__(self) -> int:
        return self._size_bytes

    def readable(self) -> bool:
        """Always."""
        return True

    def seekable(self) -> bool:
        """Always: libraries go back to the start to repeat a request."""
        return True

    def tell(self) -> int:
        """Bytes from the start."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to a position."""
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size_bytes}[whence]
        self._position = max(0, start + offset)
        with self._remembered():
            self._file.seek(self._position)
        return self._position

    def read(self, size: int = -1, /) -> bytes:
        """Read the next bytes, at most ``size``; all that are left if it is negative.

        Raises:
            IntegrityError: the source is shorter or longer than it said.
            StorageError: it cannot be read.
        """
        with self._remembered():
            rest = self._size_bytes - self._position
            if size < 0:
                size = rest + 1
            data = self._file.read(min(size, rest)) if rest > 0 else b""
            if not data and rest > 0 and size > 0:
                raise IntegrityError(f"{self._what} has {self._position} bytes, not {self._size_bytes}: it was cut")
            self._position += len(data)
            if len(data) >= rest and size > rest and self._file.read(1):
                raise IntegrityError(f"{self._what} is longer than {self._size_bytes} bytes: it has changed")
            if self.is_sending:
                self._tell(len(data))
            return data

    def _tell(self, count: int) -> None:
        """Tell the meters, in lots of at most `PIECE_BYTES`: who reads all at once shall not wait for all at once."""
        for start in range(0, count, PIECE_BYTES):
            for meter in self._meters:
                meter(min(PIECE_BYTES, count - start))

    def readall(self) -> bytes:
        """Read all that is left, as `read`."""
        return b"".join(source_pieces(self))

    def check(self) -> None:
        """Raise what went wrong with the source, if anything did.

        Raises:
            IntegrityError, StorageError: as `read`.
        """
        if self._error is not None:
            raise self._error

    @contextmanager
    def _remembered(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self._error = storage_error(f"cannot read {self._what}", error)
            raise self._error from error
        except VaultError as error:
            self._error = error
            raise


@contextmanager
def opened(key: str, source: Source) -> Iterator[SourceReader]:
    """Open a source that is to be stored.

    Args:
        key: the object it will be, for messages.
        source: the bytes.

    Raises:
        StorageError: it cannot be opened.
    """
    what = f"what is to be stored as {key}"
    with storage_errors(f"cannot open {what}"):
        manager = source.open()
    meters = []
    size_bytes = source.size_bytes
    while isinstance(source, MeteredSource):
        meters.append(source.new_meter())
        source = source.inner
    with manager as file:
        yield SourceReader(file, size_bytes, what, meters)


def read_all(key: str, source: Source) -> bytes:
    """The bytes of a source, for stores that want them in memory.

    Raises:
        IntegrityError: they are not as many as the source said.
        StorageError: they cannot be read.
    """
    with opened(key, source) as reader:
        return reader.readall()


def source_pieces(reader: SourceReader) -> Iterator[bytes]:
    """The bytes of an open source, in pieces.

    Raises:
        IntegrityError: they are not as many as the source said.
        StorageError: they cannot be read.
    """
    while piece := reader.read(PIECE_BYTES):
        yield piece


def require_range(offset: int, length: int | None) -> None:
    """Check what part of an object is asked for.

    Raises:
        UsageError: a negative number.
    """
    if offset < 0 or (length is not None and length < 0):
        raise UsageError(f"not a part of an object: {length} bytes from {offset}")


def wanted_bytes(what: str, size_bytes: int, offset: int, length: int | None) -> int:
    """How many bytes a part of an object has.

    Args:
        what: names the object in messages.
        size_bytes: its length.
        offset: bytes from its start.
        length: bytes; to the end if None.

    Raises:
        RemoteError: the object ends before.
    """
    end = size_bytes if length is None else offset + length
    if max(offset, end) > size_bytes:
        raise RemoteError(f"{what} has {size_bytes} bytes; bytes {offset} to {max(offset, end)} were asked for")
    return end - offset


def exact(what: str, pieces: Iterable[bytes], expected: int) -> Iterator[bytes]:
    """Pass pieces on, cut to `PIECE_BYTES`, and see that they add up.

    Args:
        what: names the object in messages.
        pieces: what came.
        expected: how many bytes it must be.

    Raises:
        RemoteError: it is fewer or more; nothing beyond what was expected is passed on.
    """
    rest = expected
    for piece in pieces:
        if len(piece) > rest:
            raise RemoteError(f"{what} sent more than the {expected} bytes that were asked for")
        rest -= len(piece)
        for start in range(0, len(piece), PIECE_BYTES):
            yield piece[start : start + PIECE_BYTES]
    if rest:
        raise RemoteError(f"{what} sent {expected - rest} bytes instead of {expected}")
