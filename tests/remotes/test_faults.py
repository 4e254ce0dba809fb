"""The faults that other tests rely on do what they say."""

from __future__ import annotations

import pytest

from vaultfs.errors import NoSpaceError, ObjectMissingError, RemoteUnreachableError
from vaultfs.remotes.bodies import PIECE_BYTES
from vaultfs.remotes.store import BytesSource, ObjectInfo

from .data import read
from .faults import (
    BreakBody,
    ChangeBody,
    ChangeList,
    ChangePut,
    ChangeSize,
    EndlessBody,
    Fail,
    FailAfter,
    FaultyStore,
    LosePut,
    cut,
    flip,
    instead,
    invent,
    omit,
    repeat,
    resize,
)
from .memory_store import MemoryStore

CUT = RemoteUnreachableError("cut")


@pytest.fixture
def memory() -> MemoryStore:
    made = MemoryStore()
    made.objects = {"a/1": b"12345", "b/2": b"67"}
    return made


def test_which_requests_are_hit(memory: MemoryStore) -> None:
    fault = Fail(CUT, "size_bytes", "a/", skip=1, times=2)
    store = FaultyStore(memory, fault)
    store.delete("a/x")
    store.size_bytes("b/2")
    store.size_bytes("a/1")
    for _ in range(2):
        with pytest.raises(RemoteUnreachableError) as caught:
            store.size_bytes("a/1")
        assert caught.value is not CUT
    assert store.size_bytes("a/1") == 5
    assert fault.hits == 2
    assert store.count("size_bytes") == 5
    assert store.count("size_bytes", "a/") == 4


def test_before_and_after(memory: MemoryStore) -> None:
    store = FaultyStore(memory, Fail(CUT, "put"), FailAfter(CUT, "put", skip=1))
    for _ in range(2):
        assert "c" not in memory.objects
        with pytest.raises(RemoteUnreachableError):
            store.put("c", BytesSource(b"x"))
    assert memory.objects["c"] == b"x"


def test_lies(memory: MemoryStore) -> None:
    store = FaultyStore(memory)
    store.add(LosePut("c"))
    store.put("c", BytesSource(b"x"))
    assert "c" not in memory.objects
    store.add(ChangePut(flip(), "d"))
    store.put("d", BytesSource(b"\x00"))
    assert memory.objects["d"] == b"\x01"
    store.add(ChangeBody(cut(2)), ChangeBody(instead(b"other"), skip=1), ChangeBody(flip(4), skip=2))
    assert read(store, "a/1") == b"123"
    assert read(store, "a/1") == b"other"
    assert read(store, "a/1", offset=3, length=2) == b"44"
    store.add(ChangeSize(7), ChangeSize(None, skip=1))
    assert store.size_bytes("a/1") == 7
    assert store.size_bytes("a/1") is None
    assert store.size_bytes("a/1") == 5


def test_listings(memory: MemoryStore) -> None:
    one, two = ObjectInfo("a/1", 5), ObjectInfo("b/2", 2)
    store = FaultyStore(memory)
    for change, expected in (
        (omit("a/1"), [two]),
        (omit(), []),
        (repeat(), [one, one, two, two]),
        (invent(ObjectInfo("x", 1)), [ObjectInfo("x", 1), one, two]),
        (resize(9), [ObjectInfo("a/1", 9), ObjectInfo("b/2", 9)]),
    ):
        store.heal()
        store.add(ChangeList(change))
        assert list(store.list("")) == expected
        assert list(store.list("")) == [one, two]


def test_bodies(memory: MemoryStore) -> None:
    store = FaultyStore(memory, BreakBody(3, NoSpaceError("x")), BreakBody(99, skip=1))
    for expected, error in ((b"123", NoSpaceError), (b"12345", RemoteUnreachableError)):
        came: list[bytes] = []
        with pytest.raises(error):
            came.extend(store.get("a/1"))
        assert b"".join(came) == expected
    store.add(EndlessBody(size_bytes=3 * PIECE_BYTES + 1))
    assert sum(len(piece) for piece in store.get("a/1")) == 3 * PIECE_BYTES + 1


def test_a_quota() -> None:
    store = MemoryStore(quota_bytes=10)
    store.put("a", BytesSource(bytes(6)))
    with pytest.raises(NoSpaceError):
        store.put("b", BytesSource(bytes(5)))
    store.put("a", BytesSource(bytes(10)))
    with pytest.raises(ObjectMissingError):
        read(store, "b")


def test_a_late_listing() -> None:
    store = MemoryStore(lists_at_once=False)
    store.put("a", BytesSource(b"x"))
    store.put("b", BytesSource(b"x"))
    assert [info.key for info in store.list("")] == ["a"]
