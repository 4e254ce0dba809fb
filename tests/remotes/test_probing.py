from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from vaultfs.errors import ObjectExistsError, RemoteError, RemoteRefusedError, RemoteUnreachableError
from vaultfs.remotes.probing import probe
from vaultfs.remotes.store import BytesSource, Features, ObjectInfo, Source, Store

from .faults import ChangeBody, ChangeList, ChangeSize, Fail, FaultyStore, LosePut, cut, flip, omit, resize
from .memory_store import MemoryStore

ALL = Features(conditional_create=True, range_reads=True, lists_at_once=True)


@pytest.mark.parametrize("name", ["memory", "directory", "s3", "opendal-memory", "all-over-directory", "all-over-s3"])
def test_good_stores(make_store: Callable[[str], Store], name: str) -> None:
    store = make_store(name)
    assert probe(store) == ALL
    assert list(store.list("")) == []


def test_webdav_is_found_out(make_store: Callable[[str], Store]) -> None:
    store = make_store("webdav")
    assert probe(store) == Features(conditional_create=False, range_reads=True, lists_at_once=True)
    assert list(store.list("")) == []


def test_a_store_that_ignores_if_absent_is_found_out() -> None:
    store = MemoryStore(has_conditional_create=False)
    assert probe(store) == Features(conditional_create=False, range_reads=True, lists_at_once=True)
    assert not store.objects


def test_a_store_that_looks_before_it_writes_loses_the_race() -> None:
    class Looking(MemoryStore):
        def put(self, key: str, source: Source, *, if_absent: bool = False) -> None:
            if if_absent and key in self.objects:
                raise ObjectExistsError(key)
            pause.wait(0.05)
            super().put(key, source)

    import threading

    pause = threading.Event()
    assert not probe(Looking()).conditional_create


def test_a_store_that_lets_nobody_win() -> None:
    class Shy(MemoryStore):
        def put(self, key: str, source: Source, *, if_absent: bool = False) -> None:
            if self.objects:
                raise ObjectExistsError(key)
            super().put(key, source)

    assert not probe(Shy()).conditional_create


def test_a_store_that_refuses_and_replaces_all_the_same() -> None:
    class Both(MemoryStore):
        def put(self, key: str, source: Source, *, if_absent: bool = False) -> None:
            is_there = key in self.objects
            super().put(key, source)
            if if_absent and is_there:
                raise ObjectExistsError(key)

    with pytest.raises(RemoteError, match="other bytes"):
        probe(Both())


def test_a_store_without_ranges() -> None:
    class Whole(MemoryStore):
        def get(self, key: str, *, offset: int = 0, length: int | None = None) -> Iterator[bytes]:
            if offset or length is not None:
                raise RemoteError("sent all of it")
            return super().get(key)

    assert probe(Whole()) == Features(conditional_create=True, range_reads=False, lists_at_once=True)


def test_a_store_whose_listing_is_late() -> None:
    class Late(MemoryStore):
        def list(self, prefix: str) -> Iterator[ObjectInfo]:
            return iter(())

    assert probe(Late()) == Features(conditional_create=True, range_reads=True, lists_at_once=False)
    assert not probe(FaultyStore(MemoryStore(), ChangeList(omit()))).lists_at_once
    assert not probe(FaultyStore(MemoryStore(), ChangeList(resize(7)))).lists_at_once


@pytest.mark.parametrize("fault", [ChangeBody(flip(3)), ChangeBody(cut(1)), ChangeSize(5), ChangeSize(None)])
def test_a_store_that_returns_something_else(fault: ChangeBody) -> None:
    fault.times = None
    memory = MemoryStore()
    store = FaultyStore(memory, fault)
    with pytest.raises(RemoteError):
        probe(store)
    assert not memory.objects


def test_a_store_that_loses_what_is_put() -> None:
    with pytest.raises(RemoteError):
        probe(FaultyStore(MemoryStore(), LosePut(times=None)))


@pytest.mark.parametrize("operation", ["put", "get", "size_bytes", "list"])
@pytest.mark.parametrize("error", [RemoteRefusedError("no"), RemoteUnreachableError("away")])
def test_errors_pass(operation: str, error: RemoteError) -> None:
    memory = MemoryStore()
    with pytest.raises(type(error)):
        probe(FaultyStore(memory, Fail(error, operation)))
    assert not memory.objects


@pytest.mark.parametrize("error", [RemoteRefusedError("no"), RemoteUnreachableError("away")])
def test_errors_of_a_part_pass_too(error: RemoteError) -> None:
    with pytest.raises(type(error)):
        probe(FaultyStore(MemoryStore(), Fail(error, "get", skip=3, times=None)))


def test_a_store_that_may_not_be_deleted_from() -> None:
    assert probe(FaultyStore(MemoryStore(), Fail(RemoteRefusedError("no"), "delete", times=None))) == ALL


def test_what_is_there_is_left_alone() -> None:
    store = MemoryStore()
    store.put("probe/other", BytesSource(b"x"))
    store.put("vault.json", BytesSource(b"y"))
    probe(store)
    assert store.objects == {"probe/other": b"x", "vault.json": b"y"}
    assert all(key.startswith("probe/") for operation, key in store.requests[2:] if operation == "put")
