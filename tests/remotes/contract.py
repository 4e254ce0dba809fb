"""What every store promises (`vaultfs.remotes.store`), whichever names and contents it takes.

A suite makes a class of `StoreContract`, and has the fixtures ``store`` and ``conditional_store``, empty ones, and
``objects``.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import BinaryIO, Protocol

import pytest

from vaultfs.errors import (
    IntegrityError,
    ObjectExistsError,
    ObjectMissingError,
    RemoteError,
    StorageError,
    UsageError,
)
from vaultfs.remotes.bodies import PIECE_BYTES
from vaultfs.remotes.store import BytesSource, ObjectInfo, Store

from .data import read

INVALID_KEYS = [
    "",
    "/",
    "/a",
    "a/",
    "a//b",
    ".",
    "..",
    "../a",
    "a/../b",
    "a/./b",
    ".a",
    "a/.b",
    "a b",
    "a\0",
    "a\n",
    "a\\b",
    "ä",
    "a?b",
    "a%2e",
    "a" * 513,
]
SIZES = [1, 1000, PIECE_BYTES - 1, PIECE_BYTES, PIECE_BYTES + 1, 3 * PIECE_BYTES + 7]


class Objects(Protocol):
    """What a store takes.

    Attributes:
        notes: keys of objects that may hold any few bytes, be replaced and be deleted.
        missing: keys under which there is nothing.
    """

    notes: Sequence[str]
    missing: Sequence[str]

    def made(self, size_bytes: int) -> tuple[str, bytes]:
        """An object of so many bytes."""


class WrongSource:
    """A source that does not have the bytes that it says."""

    def __init__(self, data: bytes, size_bytes: int) -> None:
        self._data = data
        self._size_bytes = size_bytes

    @property
    def size_bytes(self) -> int:
        return self._size_bytes

    def open(self) -> AbstractContextManager[BinaryIO]:
        return io.BytesIO(self._data)


class UnreadableFile(io.BytesIO):
    def read(self, size: int | None = -1, /) -> bytes:
        raise OSError(5, "Input/output error")


class UnreadableSource(WrongSource):
    def open(self) -> AbstractContextManager[BinaryIO]:
        return UnreadableFile(self._data)


class UnopenableSource(WrongSource):
    def open(self) -> AbstractContextManager[BinaryIO]:
        raise FileNotFoundError(2, "No such file or directory")


class StoreContract:
    """The promises, one by one."""

    @pytest.mark.parametrize("size", SIZES)
    def test_what_is_put_can_be_got(self, store: Store, objects: Objects, size: int) -> None:
        key, data = objects.made(size)
        store.put(key, BytesSource(data))
        pieces = list(store.get(key))
        assert b"".join(pieces) == data
        assert all(0 < len(piece) <= PIECE_BYTES for piece in pieces)
        assert store.size_bytes(key) == size
        assert list(store.list("")) == [ObjectInfo(key, size)]

    @pytest.mark.parametrize("key", INVALID_KEYS)
    def test_invalid_keys_are_refused(self, store: Store, key: str) -> None:
        requests: list[Callable[[], object]] = [
            lambda: store.put(key, BytesSource(b"x")),
            lambda: store.put(key, BytesSource(b"x"), if_absent=True),
            lambda: read(store, key),
            lambda: read(store, key, offset=1, length=0),
            lambda: store.size_bytes(key),
            lambda: store.delete(key),
        ]
        for request in requests:
            with pytest.raises(UsageError):
                request()
        assert list(store.list("")) == []

    @pytest.mark.parametrize("prefix", ["a", "/", "../", "a//", ".a/", "a/../", "a b/"])
    def test_invalid_prefixes_are_refused(self, store: Store, prefix: str) -> None:
        with pytest.raises(UsageError):
            list(store.list(prefix))

    def test_what_is_missing(self, store: Store, objects: Objects) -> None:
        there, data = objects.made(10)
        store.put(there, BytesSource(data))
        for key in objects.missing:
            with pytest.raises(ObjectMissingError):
                next(iter(store.get(key)))
            with pytest.raises(ObjectMissingError):
                read(store, key, offset=5)
            with pytest.raises(ObjectMissingError):
                read(store, key, offset=1, length=1)
            assert store.size_bytes(key) is None
        assert read(store, there) == data

    def test_put_replaces_and_delete_removes(self, store: Store, objects: Objects) -> None:
        key, other, *_ = objects.notes
        store.put(key, BytesSource(b"one, which is longer"))
        store.put(other, BytesSource(b"other"))
        store.put(key, BytesSource(b"two"))
        assert read(store, key) == b"two"
        assert store.size_bytes(key) == 3
        for _ in range(2):
            store.delete(key)
            assert store.size_bytes(key) is None
            with pytest.raises(ObjectMissingError):
                read(store, key)
            assert list(store.list("")) == [ObjectInfo(other, 5)]

    def test_put_can_refuse_to_replace(self, conditional_store: Store, objects: Objects) -> None:
        store, key = conditional_store, objects.notes[0]
        store.put(key, BytesSource(b"old"), if_absent=True)
        for data in (b"new", b"newer"):
            with pytest.raises(ObjectExistsError):
                store.put(key, BytesSource(data), if_absent=True)
        assert read(store, key) == b"old"
        store.delete(key)
        store.put(key, BytesSource(b"new"), if_absent=True)
        assert read(store, key) == b"new"

    @pytest.mark.parametrize(
        ("offset", "length"),
        [
            (0, None),
            (0, 1),
            (0, 0),
            (1, None),
            (5, 7),
            (PIECE_BYTES - 1, 2),
            (PIECE_BYTES, PIECE_BYTES + 1),
            (5, 2 * PIECE_BYTES),
            (2 * PIECE_BYTES + 9, 1),
            (2 * PIECE_BYTES + 10, 0),
            (2 * PIECE_BYTES + 10, None),
            (2 * PIECE_BYTES + 9, None),
            (0, 2 * PIECE_BYTES + 10),
        ],
    )
    def test_parts(self, store: Store, objects: Objects, offset: int, length: int | None) -> None:
        key, data = objects.made(2 * PIECE_BYTES + 10)
        store.put(key, BytesSource(data))
        pieces = list(store.get(key, offset=offset, length=length))
        assert b"".join(pieces) == data[offset : None if length is None else offset + length]
        assert all(0 < len(piece) <= PIECE_BYTES for piece in pieces)

    @pytest.mark.parametrize(("offset", "length"), [(0, 11), (5, 6), (10, 1), (11, None), (1000, None), (1000, 1)])
    def test_parts_beyond_the_end(self, store: Store, objects: Objects, offset: int, length: int | None) -> None:
        key, data = objects.made(10)
        store.put(key, BytesSource(data))
        with pytest.raises(RemoteError) as caught:
            read(store, key, offset=offset, length=length)
        assert type(caught.value) is RemoteError

    @pytest.mark.parametrize(("offset", "length"), [(-1, None), (0, -1), (-5, 5)])
    def test_parts_that_make_no_sense(self, store: Store, objects: Objects, offset: int, length: int | None) -> None:
        key, data = objects.made(10)
        store.put(key, BytesSource(data))
        with pytest.raises(UsageError):
            read(store, key, offset=offset, length=length)

    @pytest.mark.parametrize("if_absent", [False, True])
    @pytest.mark.parametrize(
        ("kind", "more_bytes", "error"),
        [
            (WrongSource, 1, IntegrityError),
            (WrongSource, -1, IntegrityError),
            (WrongSource, -PIECE_BYTES, IntegrityError),
            (UnreadableSource, 0, StorageError),
            (UnopenableSource, 0, StorageError),
        ],
        ids=["short", "long", "longer", "unreadable", "unopenable"],
    )
    def test_a_source_that_is_wrong(
        self,
        store: Store,
        objects: Objects,
        kind: type[WrongSource],
        more_bytes: int,
        error: type[Exception],
        *,
        if_absent: bool,
    ) -> None:
        there, *_ = objects.notes
        store.put(there, BytesSource(b"old"))
        key, data = objects.made(2 * PIECE_BYTES)
        with pytest.raises(error):
            store.put(key, kind(data, len(data) + more_bytes), if_absent=if_absent)
        assert [info.key for info in store.list("")] == [there]
        if not if_absent:
            with pytest.raises(error):
                store.put(there, kind(b"new", 3 + max(-3, more_bytes)))
            assert read(store, there) == b"old"
