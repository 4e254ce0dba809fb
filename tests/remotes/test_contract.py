"""The contract of stores, and what it says beyond that where any name and any bytes will do."""

from __future__ import annotations

import threading
import tracemalloc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest

from vaultfs.errors import IntegrityError, ObjectExistsError, ObjectMissingError, RemoteError
from vaultfs.remotes.bodies import PIECE_BYTES
from vaultfs.remotes.store import BytesSource, Features, ObjectInfo, Store

from .contract import StoreContract, WrongSource
from .data import body, read


class AnyObjects:
    """Any name and any bytes will do."""

    notes = ("dir/key", "dir/other")
    missing = ("key", "dir/key", "dir/object/key", "dir", "no/such/dir/key")

    def made(self, size_bytes: int) -> tuple[str, bytes]:
        return "dir/object", body(size_bytes)


@pytest.fixture
def objects() -> AnyObjects:
    return AnyObjects()


class TestContract(StoreContract):
    """Of all kinds of stores, also below all wrappers."""


@pytest.mark.parametrize("source", [WrongSource(b"", 1), WrongSource(b"1", 0)], ids=["nothing", "something"])
def test_a_source_that_is_empty_or_should_be(store: Store, source: WrongSource) -> None:
    for if_absent in (False, True):
        with pytest.raises(IntegrityError):
            store.put("key", source, if_absent=if_absent)
    assert list(store.list("")) == []


def test_reading_nothing_of_what_is_not_there(store: Store) -> None:
    """It is asked for all the same; the contract does not promise that, as there is no first piece."""
    with pytest.raises(ObjectMissingError):
        read(store, "key", length=0)
    store.put("key", BytesSource(body(10)))
    with pytest.raises(RemoteError) as caught:
        read(store, "key", offset=11, length=0)
    assert type(caught.value) is RemoteError


def test_deleting_what_is_not_there(store: Store) -> None:
    store.put("dir/other", BytesSource(b"x"))
    for key in ("key", "dir/key", "dir/other/key", "dir", "no/such/dir/key"):
        store.delete(key)
    assert read(store, "dir/other") == b"x"


@pytest.mark.parametrize("key", ["vault.json", "a", "segments/ab/" + "0" * 64, "A-_.9/b..c/d", "a" * 200, "-/_"])
def test_keys(store: Store, key: str) -> None:
    store.put(key, BytesSource(b"data"), if_absent=True)
    assert read(store, key) == b"data"
    assert [info.key for info in store.list("")] == [key]
    store.delete(key)
    assert store.size_bytes(key) is None


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
