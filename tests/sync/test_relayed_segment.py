"""Segments that are not on this disk reach a second remote by way of it, whole or not at all."""

from __future__ import annotations

import os
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import blake3
import pytest
from descriptors import open_files
from remotes.memory_store import MemoryStore

from sync.fabricated import Fabricated, require_complete_heads, require_same, target
from vaultfs.errors import IntegrityError, NoSpaceError, ObjectMissingError, RemoteUnreachableError, VaultError
from vaultfs.ids import SegmentName
from vaultfs.remotes.bodies import PIECE_BYTES, read_all
from vaultfs.remotes.store import Source
from vaultfs.storage.layout import VaultLayout
from vaultfs.sync import relayed_segment
from vaultfs.sync.relayed_segment import relayed_source
from vaultfs.sync.remote_layout import LARGEST_SEGMENT_BYTES, segment_key
from vaultfs.sync.sealed_source import SegmentSource
from vaultfs.sync.upload import StoppedError, Target, sync


class Away(MemoryStore):
    """A store that cannot be reached."""

    def get(self, key: str, *, offset: int = 0, length: int | None = None) -> Iterator[bytes]:
        self.requests.append(("get", key))
        raise RemoteUnreachableError(f"{self.name} is away")


@pytest.fixture
def layout(scratch: Path) -> VaultLayout:
    layout = VaultLayout(scratch / "vault")
    layout.create_directories()
    return layout


DATA = os.urandom(2 * PIECE_BYTES + 77)
NAME = SegmentName(blake3.blake3(DATA).hexdigest())


def holding(name: str, data: bytes | None = DATA) -> MemoryStore:
    store = MemoryStore(f"memory:{name}")
    if data is not None:
        store.objects[segment_key(NAME)] = data
    return store


@contextmanager
def relayed(
    layout: VaultLayout, *stores: MemoryStore, size: int = len(DATA), check: Callable[[], None] = lambda: None
) -> Iterator[SegmentSource]:
    with relayed_source(layout, stores, NAME, size, check) as source:
        yield source


def test_it_can_be_read_again_and_again(layout: VaultLayout) -> None:
    """The remote sends it once; and nothing of it is left."""
    before = open_files()
    store = holding("one")
    with relayed(layout, store) as source:
        assert source.size_bytes == len(DATA)
        for _ in range(3):
            assert read_all("it", source) == DATA
        assert len(list(layout.root.rglob("*.tmp*"))) == 0
        assert sorted(os.listdir(layout.root)) == ["heads", "segments"]
    assert [kind for kind, _ in store.requests] == ["get"]
    assert open_files() == before


def test_the_next_one_that_has_it(layout: VaultLayout) -> None:
    wrong, short, long = holding("wrong", bytes(len(DATA))), holding("short", DATA[:-1]), holding("long", DATA + b"x")
    with relayed(layout, holding("empty", None), Away("memory:away"), wrong, long, short, holding("one")) as source:
        assert read_all("it", source) == DATA


@pytest.mark.parametrize(
    ("stores", "failure"),
    [
        ([holding("empty", None), holding("wrong", DATA[1:])], ObjectMissingError),
        ([holding("wrong", DATA[1:]), holding("empty", None)], IntegrityError),
        ([holding("empty", None), Away("memory:away")], RemoteUnreachableError),
    ],
)
def test_what_is_told_if_nobody_has_it(
    layout: VaultLayout, stores: list[MemoryStore], failure: type[VaultError]
) -> None:
    with pytest.raises(failure), relayed(layout, *stores):
        pass
    assert sorted(os.listdir(layout.root)) == ["heads", "segments"]


def test_a_size_that_no_segment_has(layout: VaultLayout) -> None:
    store = holding("one")
    with pytest.raises(IntegrityError, match="no segment has"), relayed(layout, store, size=LARGEST_SEGMENT_BYTES + 1):
        pass
    assert store.requests == []


def test_no_more_is_taken_than_there_may_be(layout: VaultLayout) -> None:
    taken = 0

    class Endless(MemoryStore):
        def get(self, key: str, *, offset: int = 0, length: int | None = None) -> Iterator[bytes]:
            nonlocal taken
            while taken < 100:
                taken += 1
                yield bytes(PIECE_BYTES)

    with pytest.raises(IntegrityError), relayed(layout, Endless("memory:endless")):
        pass
    assert taken == 3


def test_it_can_be_ended(layout: VaultLayout) -> None:
    pieces = 0

    def check() -> None:
        nonlocal pieces
        pieces += 1
        if pieces == 2:
            raise StoppedError("stopped")

    with pytest.raises(StoppedError), relayed(layout, holding("one"), check=check):
        pass


def test_a_full_disk(layout: VaultLayout, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(relayed_segment, "write_all", full)
    with pytest.raises(NoSpaceError), relayed(layout, holding("one"), holding("two")):
        pass


# --- in a sync


@pytest.fixture
def unfilled(vault: Fabricated, away: Target) -> Fabricated:
    """A vault none of whose segments is here; `away` has them all."""
    [outcome] = sync(vault.layout, [away])
    assert outcome.is_up_to_date
    for name in vault.segments:
        vault.layout.sealed_path(name).unlink()
    return vault


@pytest.fixture
def second(vault: Fabricated, scratch: Path) -> Target:
    return target(vault, MemoryStore("memory:two"), scratch / "state", "second")


def test_a_second_remote_is_filled(
    unfilled: Fabricated, away: Target, store: MemoryStore, second: Target, scratch: Path
) -> None:
    store.requests.clear()
    [outcome] = sync(unfilled.layout, [second], spares=[store])
    assert (outcome.error, outcome.is_up_to_date, outcome.segments) == (None, True, 5)
    require_same(unfilled, second.store, scratch / "back")  # type: ignore[arg-type]
    assert [kind for kind, _ in store.requests] == ["get"] * 5
    assert not any(unfilled.layout.sealed_path(name).exists() for name in unfilled.segments)


def test_both_in_one_run(unfilled: Fabricated, away: Target, store: MemoryStore, second: Target, scratch: Path) -> None:
    """One that is brought up to date itself is asked for what it has."""
    unfilled.snapshot(*list(unfilled.segments)[:2], unfilled.segment())
    outcomes = sync(unfilled.layout, [away, second])
    assert [outcome.is_up_to_date for outcome in outcomes] == [True, True]
    require_same(unfilled, second.store, scratch / "back")  # type: ignore[arg-type]
    require_same(unfilled, store, scratch / "back too")


def test_nobody_has_one(unfilled: Fabricated, store: MemoryStore, second: Target) -> None:
    """Snapshots that do not need it are sent all the same."""
    first = next(iter(unfilled.segments))
    del store.objects[segment_key(first)]
    [outcome] = sync(unfilled.layout, [second], spares=[store])
    assert (outcome.is_up_to_date, outcome.manifests) == (False, 1)
    assert isinstance(outcome.error, ObjectMissingError)
    assert str(first) in str(outcome.error)
    require_complete_heads(second.store)  # type: ignore[arg-type]


def test_one_is_damaged_there(unfilled: Fabricated, store: MemoryStore, second: Target) -> None:
    first = next(iter(unfilled.segments))
    store.objects[segment_key(first)] = bytes(len(unfilled.segments[first]))
    [outcome] = sync(unfilled.layout, [second], spares=[store])
    assert (outcome.is_up_to_date, outcome.manifests) == (False, 1)
    assert isinstance(outcome.error, IntegrityError)
    assert segment_key(first) not in second.store.objects  # type: ignore[attr-defined]
    require_complete_heads(second.store)  # type: ignore[arg-type]


def test_what_is_here_but_damaged_is_not_relayed(unfilled: Fabricated, store: MemoryStore, second: Target) -> None:
    """Damage on this disk is told, not passed over."""
    first = next(iter(unfilled.segments))
    unfilled.layout.sealed_path(first).write_bytes(bytes(len(unfilled.segments[first])))
    [outcome] = sync(unfilled.layout, [second], spares=[store])
    assert not outcome.is_up_to_date
    assert "is damaged" in str(outcome.error)


def test_the_source_is_away(unfilled: Fabricated, second: Target, scratch: Path, store: MemoryStore) -> None:
    away = Away("memory:away")
    [outcome] = sync(unfilled.layout, [second], spares=[away])
    assert (outcome.is_up_to_date, outcome.manifests) == (False, 0)
    assert isinstance(outcome.error, RemoteUnreachableError)
    [outcome] = sync(unfilled.layout, [second], spares=[away, store])
    assert outcome.is_up_to_date
    require_same(unfilled, second.store, scratch / "back")  # type: ignore[arg-type]


class Zeros(MemoryStore):
    """A store that has a large segment of zeros, and keeps none."""

    def get(self, key: str, *, offset: int = 0, length: int | None = None) -> Iterator[bytes]:
        for _ in range(24):
            yield bytes(PIECE_BYTES)


class Sink(MemoryStore):
    """A store that says that it has what was sent, which it does not keep."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.sizes: dict[str, int] = {}

    def put(self, key: str, source: Source, *, if_absent: bool = False) -> None:
        if not key.startswith("segments/"):
            super().put(key, source, if_absent=if_absent)
            return
        count = 0
        with source.open() as file:
            while piece := file.read(PIECE_BYTES):
                count += len(piece)
        self.sizes[key] = count

    def size_bytes(self, key: str) -> int | None:
        return self.sizes.get(key) or super().size_bytes(key)


def test_memory_does_not_grow_with_the_segment(scratch: Path) -> None:
    vault = Fabricated(scratch / "large")
    name = vault.segment(data=bytes(24 * PIECE_BYTES))
    vault.snapshot(name)
    vault.layout.sealed_path(name).unlink()
    vault.segments.clear()
    sink = Sink("memory:sink")
    away = target(vault, sink, scratch / "state")
    tracemalloc.start()
    try:
        [outcome] = sync(vault.layout, [away], spares=[Zeros("memory:zeros")])
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (outcome.is_up_to_date, sink.sizes) == (True, {segment_key(name): 24 * PIECE_BYTES})
    assert peak < 12 * PIECE_BYTES


def test_what_was_acknowledged_and_is_not_there_is_not_known(
    vault: Fabricated, away: Target, store: MemoryStore
) -> None:
    """A check that asks for it in vain says so to everybody who reads the ledger."""
    [outcome] = sync(vault.layout, [away])
    assert outcome.is_up_to_date
    first = next(iter(vault.segments))
    del store.objects[segment_key(first)]
    vault.layout.sealed_path(first).unlink()
    [outcome] = sync(vault.layout, [away], check=True)
    assert not outcome.is_up_to_date
    holdings = away.ledger.read(store.name)
    assert holdings.is_listed
    assert first not in holdings.there
    assert first not in holdings.put
