"""No body is read beyond its limit, and no request outlives its reader."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from remotes.faults import ChangeList, FaultyStore, invent
from remotes.memory_store import MemoryStore

from vaultfs.errors import IntegrityError, RemoteError
from vaultfs.remotes.store import ObjectInfo
from vaultfs.sync.remote_objects import body, list_bounded, read_whole


class Endless(FaultyStore):
    """Bodies without end; counts the pieces."""

    def __init__(self) -> None:
        super().__init__(MemoryStore("memory:endless"))
        self.pieces = 0
        self.open = 0

    def get(self, key: str, *, offset: int = 0, length: int | None = None) -> Iterator[bytes]:
        self.open += 1
        try:
            while self.pieces < 1000:
                self.pieces += 1
                yield bytes(10)
        finally:
            self.open -= 1


def test_not_one_piece_more_than_the_limit_is_read() -> None:
    store = Endless()
    with pytest.raises(IntegrityError, match="more than the 95 bytes"):
        read_whole(store, "vault.json", 95)
    assert (store.pieces, store.open) == (10, 0)


def test_exactly_the_limit_is_allowed() -> None:
    store = Endless()
    store.pieces = 990
    assert read_whole(store, "vault.json", 100) == bytes(100)


def test_a_body_is_ended_with_its_block() -> None:
    store = Endless()
    with body(store, "x") as pieces:
        next(pieces)
        assert store.open == 1
    assert store.open == 0
    with body(store, "x"):
        pass  # never begun
    assert store.open == 0


def test_a_listing_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vaultfs.sync.remote_objects.MOST_OBJECTS", 5)
    store = FaultyStore(MemoryStore(), ChangeList(invent(*[ObjectInfo("heads/x", 1)] * 5), times=None))
    assert len(list(list_bounded(store, "heads/"))) == 5
    store.heal()
    store.add(ChangeList(invent(*[ObjectInfo("heads/x", 1)] * 6), times=None))
    found = list_bounded(store, "heads/")
    with pytest.raises(RemoteError, match="more than 5 objects"):
        list(found)
