"""Whole segments for a vault that is in use: hashes decide, readers go first, and an end is an end."""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import blake3
import pytest
from remotes.memory_store import MemoryStore

from vaultfs.errors import IntegrityError, ObjectMissingError, RemoteUnreachableError, VaultError, VaultLockedError
from vaultfs.ids import SegmentName
from vaultfs.remotes.bodies import PIECE_BYTES
from vaultfs.remotes.store import Store
from vaultfs.storage.layout import VaultLayout
from vaultfs.sync.fetched_file import part_path
from vaultfs.sync.remote_layout import segment_key
from vaultfs.sync.segment_fill import SegmentFill
from vaultfs.sync.workers import StoppedError

DATA = os.urandom(3 * PIECE_BYTES + 100)
NAME = SegmentName(blake3.blake3(DATA).hexdigest())


class Readers:
    """Whether others read."""

    is_in_use = False


class Remoteness(MemoryStore):
    """A store that may fail; ``failure`` is raised after a piece.  ``before_piece`` is called before each."""

    def __init__(self, name: str, data: bytes | None = DATA) -> None:
        super().__init__(name)
        self.failure: VaultError | None = None
        self.before_piece: Callable[[], None] = lambda: None
        if data is not None:
            self.objects[segment_key(NAME)] = data

    def get(self, key: str, *, offset: int = 0, length: int | None = None) -> Iterator[bytes]:
        for piece in super().get(key, offset=offset, length=length):
            self.before_piece()
            yield piece
            if self.failure is not None:
                raise self.failure


@pytest.fixture
def layout(tmp_path: Path) -> VaultLayout:
    layout = VaultLayout(tmp_path / "vault")
    layout.create_directories()
    return layout


@pytest.fixture
def store() -> Remoteness:
    return Remoteness("memory:one")


def filling(layout: VaultLayout, *stores: Store, **more: object) -> SegmentFill:
    openers = [lambda each=each: each for each in stores]
    return SegmentFill(layout, openers, Readers(), **more)  # type: ignore[arg-type]


def test_it_is_there_with_its_mode(layout: VaultLayout, store: Remoteness) -> None:
    fill = filling(layout, store)
    fill.bring(NAME, len(DATA))
    path = layout.sealed_path(NAME)
    assert (path.read_bytes(), path.stat().st_mode & 0o777) == (DATA, 0o400)
    assert path.parent.stat().st_mode & 0o077 == 0
    assert fill.came_bytes == len(DATA)
    assert os.listdir(path.parent) == [path.name]


def test_what_came_is_kept(layout: VaultLayout, store: Remoteness) -> None:
    store.failure = RemoteUnreachableError("the line is cut")
    with pytest.raises(RemoteUnreachableError):
        filling(layout, store).bring(NAME, len(DATA))
    assert part_path(layout, NAME).stat().st_size == PIECE_BYTES
    assert not layout.sealed_path(NAME).exists()
    store.failure = None
    lengths: list[int | None] = []
    real = store.get

    def get(key: str, *, offset: int = 0, length: int | None = None) -> Iterator[bytes]:
        lengths.append(length)
        return real(key, offset=offset, length=length)

    store.get = get  # type: ignore[method-assign]
    filling(layout, store).bring(NAME, len(DATA))
    assert lengths == [len(DATA) - PIECE_BYTES]
    assert layout.sealed_path(NAME).read_bytes() == DATA


def test_the_next_remote_is_asked(layout: VaultLayout, store: Remoteness) -> None:
    wrong, empty = Remoteness("memory:wrong", DATA[:-1] + bytes([DATA[-1] ^ 1])), Remoteness("memory:empty", None)
    filling(layout, empty, wrong, store).bring(NAME, len(DATA))
    assert layout.sealed_path(NAME).read_bytes() == DATA


@pytest.mark.parametrize(
    ("first", "failure"), [("empty", ObjectMissingError), ("wrong", IntegrityError), ("away", RemoteUnreachableError)]
)
def test_what_is_told_if_nobody_has_it(layout: VaultLayout, first: str, failure: type[VaultError]) -> None:
    """That one cannot be reached is worth another try, whatever the others say."""
    stores = {
        "empty": Remoteness("memory:empty", None),
        "wrong": Remoteness("memory:wrong", bytes(len(DATA))),
        "away": Remoteness("memory:away"),
    }
    stores["away"].failure = RemoteUnreachableError("away")
    for order in ([first], [first, "empty"], ["empty", first] if first == "away" else [first]):
        with pytest.raises(failure):
            filling(layout, *(stores[each] for each in order)).bring(NAME, len(DATA))
    assert not layout.sealed_path(NAME).exists()


def test_who_answered_last_is_asked_first(layout: VaultLayout, store: Remoteness) -> None:
    empty = Remoteness("memory:empty", None)
    fill = filling(layout, empty, store)
    fill.bring(NAME, len(DATA))
    layout.sealed_path(NAME).unlink()
    fill.bring(NAME, len(DATA))
    assert (len(empty.requests), len(store.requests)) == (1, 2)


def test_readers_go_first(layout: VaultLayout, store: Remoteness) -> None:
    """While others read it takes a piece a second."""
    readers, waits = Readers(), []

    def wait(seconds: float) -> bool:
        waits.append(seconds)
        return False

    fill = SegmentFill(layout, [lambda: store], readers, wait=wait)
    fill.bring(NAME, len(DATA))
    assert waits == []
    layout.sealed_path(NAME).unlink()
    readers.is_in_use = True
    fill.bring(NAME, len(DATA))
    checks = 1 + 4  # at the start, and before each piece
    assert sum(waits) == pytest.approx(checks * 1.0)


def test_closing_ends_it(layout: VaultLayout, store: Remoteness) -> None:
    fill = filling(layout, store)
    entered, go_on = threading.Event(), threading.Event()

    def block() -> None:
        entered.set()
        assert go_on.wait(60)

    store.before_piece = block
    with ThreadPoolExecutor(1) as pool:
        bringing = pool.submit(fill.bring, NAME, len(DATA))
        assert entered.wait(60)
        fill.close()
        go_on.set()
        with pytest.raises(StoppedError):
            bringing.result(60)
    assert store.is_closed
    assert not layout.sealed_path(NAME).exists()
    with pytest.raises(StoppedError):
        fill.bring(NAME, len(DATA))
    fill.close()


def test_closing_ends_waiting_for_the_rate(layout: VaultLayout, store: Remoteness) -> None:
    fill = filling(layout, store, bytes_per_s=1)
    entered = threading.Event()
    store.before_piece = entered.set
    with ThreadPoolExecutor(1) as pool:
        bringing = pool.submit(fill.bring, NAME, len(DATA))
        assert entered.wait(60)
        fill.close()
        with pytest.raises(StoppedError):
            bringing.result(60)


def test_one_that_another_process_fetches(layout: VaultLayout, store: Remoteness) -> None:
    """Two that write one file would spoil it."""
    part = part_path(layout, NAME)
    part.parent.mkdir()
    with part.open("wb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(VaultLockedError, match="another process"):
            filling(layout, store).bring(NAME, len(DATA))
        assert store.requests == []
    filling(layout, store).bring(NAME, len(DATA))


def test_one_that_another_process_has_just_fetched(
    layout: VaultLayout, store: Remoteness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was opened under the temporary name is the segment by now: it must not be touched."""
    path, part = layout.sealed_path(NAME), part_path(layout, NAME)
    part.parent.mkdir()
    part.write_bytes(DATA)
    real = fcntl.flock

    def flock(descriptor: int, operation: int) -> None:
        part.rename(path)
        real(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    store.objects[segment_key(NAME)] = bytes(len(DATA))
    with pytest.raises(VaultLockedError):
        filling(layout, store).bring(NAME, len(DATA))
    assert path.read_bytes() == DATA
