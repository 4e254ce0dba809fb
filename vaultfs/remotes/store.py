"""What a remote is to the rest of the program: a store of objects, each written whole and then never changed.

A contract for every implementation, checked by one test suite:

- All methods block, and may be called from several threads at once.
- ``put`` is atomic: whatever happens meanwhile, readers see no object, the old one, or the new one, never a part.  When
  it has returned the object is stored as durably as the store can; when it has raised, the object may be there or not,
  and the same ``put`` may be repeated.
- ``delete`` of what is not there succeeds.  So every request but ``put(if_absent=True)`` can be repeated.
- Nothing is to be believed but hashes and signatures: a listing may leave out what was just stored, and what ``get``
  returns may be anything.  Lengths are checked by implementations, contents by callers.
- Errors are those of `vaultfs.errors`: `RemoteRefusedError` (do not try again), `RemoteUnreachableError` (try again
  later), `ObjectMissingError`, `ObjectExistsError`, `NoSpaceError`, and `RemoteError` for the rest.  No message holds a
  secret: no password, token, signature or query string.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import BinaryIO, Final, NamedTuple, Protocol

LARGEST_KEY_BYTES: Final = 512
"""Keys are ASCII letters, digits, ``-``, ``_``, ``.`` and ``/`` between parts, none of which begins with a dot."""


class ObjectInfo(NamedTuple):
    """An object in a listing; the size is in bytes."""

    key: str
    size_bytes: int


@dataclass(frozen=True)
class Features:
    """What a store can do, as found by trying.

    Attributes:
        conditional_create: ``put(if_absent=True)`` refuses to replace an object, also in a race.
        range_reads: ``get`` of a part transfers only that part.
        lists_at_once: a listing shows what was stored just before.
    """

    conditional_create: bool = False
    range_reads: bool = False
    lists_at_once: bool = False


class Source(Protocol):
    """Bytes to be stored; can be read again when a request has to be repeated."""

    @property
    def size_bytes(self) -> int:
        """How many bytes there are."""

    def open(self) -> AbstractContextManager[BinaryIO]:
        """Open them for reading, from the start; several may be open at once."""


class BytesSource:
    """A source in memory.

    Args:
        data: the bytes.
    """

    def __init__(self, data: bytes) -> None:
        self._data = data

    @property
    def size_bytes(self) -> int:
        """How many bytes there are."""
        return len(self._data)

    def open(self) -> AbstractContextManager[BinaryIO]:
        """Open them for reading, from the start."""
        return io.BytesIO(self._data)


class Store(Protocol):
    """A remote.

    Attributes:
        name: what to call it in messages: its URL without secrets.
    """

    name: str

    def put(self, key: str, source: Source, *, if_absent: bool = False) -> None:
        """Store an object.

        Args:
            key: its name; must be valid (`LARGEST_KEY_BYTES`).
            source: its bytes.
            if_absent: refuse to replace an object, as far as the store can tell.

        Raises:
            ObjectExistsError: only with ``if_absent``.
            NoSpaceError: the store, or a quota in it, is full.
        """

    def get(self, key: str, *, offset: int = 0, length: int | None = None) -> Iterator[bytes]:
        """Read an object, or a part of it, in pieces of at most 1 MiB; memory does not grow with the object.

        Args:
            key: its name.
            offset: bytes from its start.
            length: bytes; to the end if None.

        Raises:
            ObjectMissingError: there is none; raised at the latest with the first piece.
            RemoteError: fewer bytes came than were asked for, or more.
        """

    def size_bytes(self, key: str) -> int | None:
        """The length of an object; None if there is none."""

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """The objects whose keys begin with ``prefix`` (empty, or ending with ``/``), in any order, at any depth."""

    def delete(self, key: str) -> None:
        """Remove an object, if it is there."""

    def close(self) -> None:
        """End connections.  Doing it twice is harmless."""
