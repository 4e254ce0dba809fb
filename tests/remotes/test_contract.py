"""What every store promises, see `vaultfs.remotes.store`."""

from __future__ import annotations

import io
import threading
import tracemalloc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, suppress
from typing import BinaryIO

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
from vaultfs.remotes.store import BytesSource, Features, ObjectInfo, Store

from .data import body, read

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
SIZES = [0, 1, 1000, PIECE_BYTES - 1, PIECE_BYTES, PIECE_BYTES + 1, 3 * PIECE_BYTES + 7]


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


@pytest.mark.parametrize("size", SIZES)
def test_what_is_put_can_be_got(store: Store, size: int) -> None:
    data = body(size)
    store.put("dir/object", BytesSource(data))
    pieces = list(store.get("dir/object"))
    assert b"".join(pieces) == data
    assert all(0 < len(piece) <= PIECE_BYTES for piece in pieces)
    assert store.size_bytes("dir/object") == size
    assert list(store.list("")) == [ObjectInfo("dir/object", size)]


@pytest.mark.parametrize("key", ["vault.json", "a", "segments/ab/" + "0" * 64, "A-_.9/b..c/d", "a" * 200, "-/_"])
def test_keys(store: Store, key: str) -> None:
    store.put(key, BytesSource(b"data"), if_absent=True)
    assert read(store, key) == b"data"
    assert [info.key for info in store.list("")] == [key]
    store.delete(key)
    assert store.size_bytes(key) is None


@pytest.mark.parametrize("key", INVALID_KEYS)
def test_invalid_keys_are_refused(store: Store, key: str) -> None:
    for request in (
        lambda: store.put(key, BytesSource(b"x")),
        lambda: store.put(key, BytesSource(b"x"), if_absent=True),
        lambda: read(store, key),
        lambda: read(store, key, offset=1, length=0),
        lambda: store.size_bytes(key),
        lambda: store.delete(key),
    ):
        with pytest.raises(UsageError):
            request()
    assert list(store.list("")) == []


@pytest.mark.parametrize("prefix", ["a", "/", "../", "a//", ".a/", "a/../", "a b/"])
def test_invalid_prefixes_are_refused(store: Store, prefix: str) -> None:
    with pytest.raises(UsageError):
        list(store.list(prefix))


def test_put_replaces(store: Store) -> None:
    store.put("key", BytesSource(body(2000)))
    store.put("key", BytesSource(b"new"))
    assert read(store, "key") == b"new"
    assert store.size_bytes("key") == 3
    assert list(store.list("")) == [ObjectInfo("key", 3)]


def test_put_can_refuse_to_replace(conditional_store: Store) -> None:
    store = conditional_store
    store.put("dir/key", BytesSource(b"old"), if_absent=True)
    for data in (b"new", b"old", b""):
        with pytest.raises(ObjectExistsError):
            store.put("dir/key", BytesSource(data), if_absent=True)
    assert read(store, "dir/key") == b"old"
    store.delete("dir/key")
    store.put("dir/key", BytesSource(b"new"), if_absent=True)
    assert read(store, "dir/key") == b"new"


def test_a_large_object_is_not_replaced(conditional_store: Store) -> None:
    """Larger than a piece: some stores send those in another way."""
    data = body(2 * PIECE_BYTES + 1)
    conditional_store.put("large", BytesSource(data), if_absent=True)
    with pytest.raises(ObjectExistsError):
        conditional_store.put("large", BytesSource(bytes(len(data))), if_absent=True)
    assert read(conditional_store, "large") == data


def test_one_of_many_creates(racing_store: Store) -> None:
    store = racing_store
    barrier = threading.Barrier(8)

    def create(number: int) -> bool:
        barrier.wait()
        try:
            store.put("dir/key", BytesSource(bytes([number]) * 5000), if_absent=True)
        except ObjectExistsError:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        outcomes = list(pool.map(create, range(8)))
    assert outcomes.count(True) == 1
    assert read(store, "dir/key") == bytes([outcomes.index(True)]) * 5000


def test_what_is_missing(store: Store) -> None:
    store.put("dir/other", BytesSource(b"x"))
    for key in ("key", "dir/key", "dir/other/key", "dir", "no/such/dir/key"):
        with pytest.raises(ObjectMissingError):
            next(iter(store.get(key)))
        with pytest.raises(ObjectMissingError):
            read(store, key, offset=5)
        with pytest.raises(ObjectMissingError):
            read(store, key, offset=1, length=1)
        with pytest.raises(ObjectMissingError):
            read(store, key, length=0)
        assert store.size_bytes(key) is None
        store.delete(key)
    assert read(store, "dir/other") == b"x"


def test_delete(store: Store) -> None:
    store.put("dir/key", BytesSource(b"x"))
    store.put("dir/other", BytesSource(b"y"))
    store.delete("dir/key")
    store.delete("dir/key")
    assert store.size_bytes("dir/key") is None
    with pytest.raises(ObjectMissingError):
        read(store, "dir/key")
    assert list(store.list("")) == [ObjectInfo("dir/other", 1)]


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
def test_parts(store: Store, offset: int, length: int | None) -> None:
    data = body(2 * PIECE_BYTES + 10)
    store.put("key", BytesSource(data))
    pieces = list(store.get("key", offset=offset, length=length))
    assert b"".join(pieces) == data[offset : None if length is None else offset + length]
    assert all(0 < len(piece) <= PIECE_BYTES for piece in pieces)


@pytest.mark.parametrize(("offset", "length"), [(0, 11), (5, 6), (10, 1), (11, 0), (11, None), (1000, None), (1000, 1)])
def test_parts_beyond_the_end(store: Store, offset: int, length: int | None) -> None:
    store.put("key", BytesSource(body(10)))
    with pytest.raises(RemoteError) as caught:
        read(store, "key", offset=offset, length=length)
    assert type(caught.value) is RemoteError


@pytest.mark.parametrize(("offset", "length"), [(-1, None), (0, -1), (-5, 5)])
def test_parts_that_make_no_sense(store: Store, offset: int, length: int | None) -> None:
    store.put("key", BytesSource(body(10)))
    with pytest.raises(UsageError):
        read(store, "key", offset=offset, length=length)


def test_an_empty_object(store: Store) -> None:
    store.put("key", BytesSource(b""), if_absent=True)
    assert list(store.get("key")) == []
    assert list(store.get("key", length=0)) == []
    assert store.size_bytes("key") == 0
    assert list(store.list("")) == [ObjectInfo("key", 0)]


def test_an_empty_object_is_not_replaced(conditional_store: Store) -> None:
    conditional_store.put("key", BytesSource(b""), if_absent=True)
    with pytest.raises(ObjectExistsError):
        conditional_store.put("key", BytesSource(b""), if_absent=True)
    with pytest.raises(ObjectExistsError):
        conditional_store.put("key", BytesSource(b"data"), if_absent=True)
    assert read(conditional_store, "key") == b""


def test_listings(store: Store) -> None:
    assert list(store.list("")) == []
    assert list(store.list("a/")) == []
    keys = ["vault.json", "a/1", "a/2", "a/b/3", "ab/4", "a-/5", "heads/" + "f" * 64 + "/0000000001-" + "0" * 64]
    for size, key in enumerate(keys):
        store.put(key, BytesSource(body(size)))
    for prefix in ("", "a/", "a/b/", "ab/", "heads/", "no/", "a/1/"):
        expected = sorted(ObjectInfo(key, size) for size, key in enumerate(keys) if key.startswith(prefix))
        assert sorted(store.list(prefix)) == expected


@pytest.mark.parametrize("if_absent", [False, True])
@pytest.mark.parametrize(
    ("source", "error"),
    [
        (WrongSource(b"12345", 6), IntegrityError),
        (WrongSource(b"12345", 4), IntegrityError),
        (WrongSource(b"", 1), IntegrityError),
        (WrongSource(b"1", 0), IntegrityError),
        (WrongSource(body(PIECE_BYTES * 3), PIECE_BYTES * 2), IntegrityError),
        (UnreadableSource(b"12345", 5), StorageError),
        (UnopenableSource(b"12345", 5), StorageError),
    ],
    ids=["short", "long", "nothing", "something", "longer", "unreadable", "unopenable"],
)
def test_a_source_that_is_wrong(store: Store, source: WrongSource, error: type[Exception], if_absent: bool) -> None:
    store.put("there", BytesSource(b"old"))
    with pytest.raises(error):
        store.put("key", source, if_absent=if_absent)
    assert [info.key for info in store.list("")] == ["there"]
    if not if_absent:
        with pytest.raises(error):
            store.put("there", source)
        assert read(store, "there") == b"old"


def test_readers_see_no_mixture(store: Store) -> None:
    versions = [bytes([number]) * (300_000 + 50_000 * number) for number in range(4)]
    store.put("key", BytesSource(versions[0]))
    done = threading.Event()

    def write() -> None:
        try:
            for turn in range(16):
                store.put("key", BytesSource(versions[turn % 4]))
        finally:
            done.set()

    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(write)
        seen = 0
        while not done.is_set() or not seen:
            assert store.size_bytes("key") in {None, *(len(version) for version in versions)}
            with suppress(RemoteError):  # replaced while it was read: told, and never wrong bytes
                assert read(store, "key") in versions
                seen += 1
        writing.result()


def test_many_threads(store: Store) -> None:
    def work(number: int) -> None:
        key, data = f"{number % 3}/{number}", body(10_000 + number)
        store.put(key, BytesSource(data), if_absent=True)
        assert read(store, key) == data
        assert read(store, key, offset=number, length=100) == data[number : number + 100]
        assert store.size_bytes(key) == len(data)
        assert key in {info.key for info in store.list(f"{number % 3}/")}
        if number % 2:
            store.delete(key)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(48)))
    assert {info.key for info in store.list("")} == {f"{number % 3}/{number}" for number in range(0, 48, 2)}


def test_a_body_that_is_not_read_to_its_end(store: Store) -> None:
    data = body(3 * PIECE_BYTES)
    store.put("key", BytesSource(data))
    for _ in range(40):
        pieces = iter(store.get("key"))
        first = next(pieces)
        assert first == data[: len(first)]
        del pieces
    assert read(store, "key") == data


@pytest.mark.parametrize("name", ["directory", "s3", "opendal-fs", "webdav", "all-over-s3"])
def test_memory_does_not_grow_with_the_object(make_store: Callable[[str], Store], name: str) -> None:
    store = make_store(name)
    store.put("key", BytesSource(bytes(10 * PIECE_BYTES)))
    tracemalloc.start()
    try:
        assert sum(len(piece) for piece in store.get("key")) == 10 * PIECE_BYTES
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 5 * PIECE_BYTES


@pytest.mark.parametrize(
    ("name", "most"),
    [("directory", 5), ("s3", 5), ("all-over-s3", 5), ("opendal-fs", 12), ("webdav", 12)],
)
def test_memory_for_what_is_sent(make_store: Callable[[str], Store], name: str, most: int) -> None:
    """Pieces; or, with OpenDAL, the object once and not twice."""
    store = make_store(name)
    source = BytesSource(bytes(10 * PIECE_BYTES))  # which is opened without a copy
    store.put("before", BytesSource(b""))  # the libraries' own memory is not meant
    tracemalloc.start()
    try:
        store.put("key", source)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < most * PIECE_BYTES


def test_features_say_nothing_by_themselves() -> None:
    assert Features() == Features(conditional_create=False, range_reads=False, lists_at_once=False)
