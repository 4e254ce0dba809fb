from __future__ import annotations

from collections.abc import Callable

import pytest

from vaultfs.errors import ObjectMissingError, RemoteUnreachableError
from vaultfs.remotes.bodies import PIECE_BYTES
from vaultfs.remotes.counting import CountingStore, Counts
from vaultfs.remotes.retrying import RetryingStore, RetryPolicy
from vaultfs.remotes.store import BytesSource, Store

from .data import body, read
from .faults import BreakBody, Fail, FailAfter, FaultyStore
from .memory_store import MemoryStore

CUT = RemoteUnreachableError("the line was cut")


@pytest.mark.parametrize("name", ["memory", "directory", "s3", "opendal-fs"])
def test_what_is_counted(make_store: Callable[[str], Store], name: str) -> None:
    heard: list[tuple[int, int]] = []
    store = CountingStore(make_store(name), lambda sent, received: heard.append((sent, received)))
    data = body(2 * PIECE_BYTES + 5)
    store.put("key", BytesSource(data))
    assert store.counts == Counts(requests=1, sent_bytes=len(data))
    store.put("empty", BytesSource(b""))
    assert store.counts == Counts(requests=2, sent_bytes=len(data))
    assert read(store, "key", offset=5) == data[5:]
    assert store.counts == Counts(requests=3, sent_bytes=len(data), received_bytes=len(data) - 5)
    store.size_bytes("key")
    list(store.list(""))
    store.delete("key")
    with pytest.raises(ObjectMissingError):
        read(store, "key")
    assert store.counts == Counts(requests=7, sent_bytes=len(data), received_bytes=len(data) - 5)
    assert sum(sent for sent, _ in heard) == len(data)
    assert sum(received for _, received in heard) == len(data) - 5
    assert len(heard) >= 5
    assert all(sent + received <= PIECE_BYTES for sent, received in heard)


def test_counts_are_a_copy() -> None:
    store = CountingStore(MemoryStore())
    before = store.counts
    store.delete("key")
    assert before == Counts()


def test_what_is_sent_again_is_counted_again() -> None:
    store = CountingStore(RetryingStore(FaultyStore(MemoryStore(), FailAfter(CUT, "put")), RetryPolicy(first_wait_s=0)))
    store.put("key", BytesSource(bytes(1000)))
    assert store.counts == Counts(requests=1, sent_bytes=2000)


def test_what_came_is_counted_once() -> None:
    memory = MemoryStore()
    memory.objects["key"] = bytes(1000)
    faulty = FaultyStore(memory, BreakBody(300), Fail(CUT, "get", skip=1))
    store = CountingStore(RetryingStore(faulty, RetryPolicy(first_wait_s=0)))
    read(store, "key")
    assert store.counts == Counts(requests=1, received_bytes=1000)


def test_counting_twice() -> None:
    inner = CountingStore(MemoryStore())
    outer = CountingStore(inner)
    outer.put("key", BytesSource(bytes(1000)))
    assert inner.counts == outer.counts == Counts(requests=1, sent_bytes=1000)


def test_closing_closes_the_inner_store() -> None:
    memory = MemoryStore()
    CountingStore(memory).close()
    assert memory.is_closed
