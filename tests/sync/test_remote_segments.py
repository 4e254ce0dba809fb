"""Several remotes as one source of segments: who is asked, in which order, and what is said when nobody has it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from remotes.memory_store import MemoryStore

from vaultfs.errors import (
    IntegrityError,
    ObjectMissingError,
    RemoteError,
    RemoteRefusedError,
    RemoteUnreachableError,
    UsageError,
    VaultError,
)
from vaultfs.ids import SegmentName
from vaultfs.remotes.configured import Remote, save_remotes
from vaultfs.remotes.store import Store
from vaultfs.storage.layout import VaultLayout
from vaultfs.storage.segment_cache import SegmentCache
from vaultfs.sync.remote_layout import segment_key
from vaultfs.sync.remote_segments import RemoteSegments

NAME = SegmentName("ab" * 32)
OTHER = SegmentName("cd" * 32)
DATA = bytes(range(256)) * 16


class Remoteness(MemoryStore):
    """A store in memory that may fail.

    Attributes:
        failure: raised by every request.
        cut: so many bytes are missing at the end of what comes.
        opened: how often it was opened.
    """

    def __init__(self, name: str, *segments: SegmentName) -> None:
        super().__init__(name)
        self.objects = {segment_key(each): DATA for each in segments}
        self.failure: VaultError | None = None
        self.cut = 0
        self.opened = 0

    def get(self, key: str, *, offset: int = 0, length: int | None = None) -> Iterator[bytes]:
        if self.failure is not None:
            self.requests.append(("get", key))
            raise self.failure
        data = b"".join(super().get(key, offset=offset, length=length))
        yield data[: len(data) - self.cut]

    def open(self) -> Store:
        self.opened += 1
        return self

    @property
    def asked(self) -> int:
        return len(self.requests)


@pytest.fixture
def first() -> Remoteness:
    return Remoteness("memory:first", NAME)


@pytest.fixture
def second() -> Remoteness:
    return Remoteness("memory:second", NAME, OTHER)


@pytest.fixture
def both(first: Remoteness, second: Remoteness) -> RemoteSegments:
    return RemoteSegments([first.open, second.open])


def test_nothing_is_opened_before_it_is_needed(both: RemoteSegments, first: Remoteness, second: Remoteness) -> None:
    assert (first.opened, second.opened) == (0, 0)
    for _ in range(3):
        assert both.fetch(NAME, 10, 20) == DATA[10:30]
    assert (first.opened, second.opened) == (1, 0)
    assert (first.asked, second.asked) == (3, 0)


def test_the_next_one_is_asked(both: RemoteSegments, first: Remoteness, second: Remoteness) -> None:
    first.failure = RemoteUnreachableError("the first is away")
    assert both.fetch(NAME, 0, len(DATA)) == DATA
    assert (first.asked, second.asked) == (1, 1)


def test_who_answered_last_is_asked_first(both: RemoteSegments, first: Remoteness, second: Remoteness) -> None:
    first.failure = RemoteUnreachableError("the first is away")
    for _ in range(5):
        both.fetch(NAME, 0, 1)
    assert (first.asked, second.asked) == (1, 5)
    first.failure, second.failure = None, RemoteUnreachableError("the second is away")
    for _ in range(5):
        both.fetch(NAME, 0, 1)
    assert (first.asked, second.asked) == (6, 6)
    assert (first.opened, second.opened) == (1, 1)


def test_one_that_lacks_a_segment(both: RemoteSegments, first: Remoteness, second: Remoteness) -> None:
    assert both.fetch(OTHER, 5, 5) == DATA[5:10]
    assert (first.asked, second.asked) == (1, 1)


@pytest.mark.parametrize(
    "failure", [RemoteUnreachableError("away"), RemoteRefusedError("refused"), RemoteError("something else")]
)
@pytest.mark.parametrize("who", [0, 1])
def test_missing_or_only_not_to_be_had(
    both: RemoteSegments, first: Remoteness, second: Remoteness, failure: VaultError, who: int
) -> None:
    """Only if all say that they have no such segment, there is none."""
    gone = SegmentName("ef" * 32)
    with pytest.raises(ObjectMissingError, match="first"):
        both.fetch(gone, 0, 1)
    (first, second)[who].failure = failure
    with pytest.raises(type(failure)) as caught:
        both.fetch(gone, 0, 1)
    assert caught.value is failure


def test_the_first_failure_is_told(both: RemoteSegments, first: Remoteness, second: Remoteness) -> None:
    first.failure, second.failure = RemoteRefusedError("no"), RemoteUnreachableError("away")
    with pytest.raises(RemoteRefusedError):
        both.fetch(NAME, 0, 1)
    first.failure = second.failure = None
    assert both.fetch(NAME, 0, 1) == DATA[:1]


def test_one_that_cannot_be_opened(second: Remoteness) -> None:
    """It is tried again each time it is its turn: what it lacks may be there then."""
    tries = 0

    def broken() -> Store:
        nonlocal tries
        tries += 1
        raise UsageError("opendal is not installed")

    alone = RemoteSegments([broken])
    for _ in range(2):
        with pytest.raises(UsageError):
            alone.fetch(NAME, 0, 1)
    assert tries == 2
    together = RemoteSegments([broken, second.open])
    assert together.fetch(NAME, 3, 4) == DATA[3:7]
    assert tries == 3
    together.fetch(NAME, 3, 4)
    assert tries == 3, "the one that answered is asked first"


def test_one_that_can_be_opened_later(first: Remoteness) -> None:
    answers: list[Callable[[], Store]] = [first.open]

    def opener() -> Store:
        if len(answers) < 2:
            answers.append(first.open)
            raise RemoteUnreachableError("not yet")
        return first.open()

    segments = RemoteSegments([opener])
    with pytest.raises(RemoteUnreachableError):
        segments.fetch(NAME, 0, 1)
    assert segments.fetch(NAME, 0, 1) == DATA[:1]
    assert segments.fetch(NAME, 0, 1) == DATA[:1]
    assert first.opened == 1


def test_short_bodies_are_refused_by_the_cache(both: RemoteSegments, first: Remoteness, tmp_path: Path) -> None:
    """Stores check lengths themselves; if one does not, who keeps the bytes does."""
    first.cut = 1
    cache = SegmentCache(tmp_path / "cache", both)
    with pytest.raises(IntegrityError, match="came instead of"):
        cache.read(NAME, len(DATA), 0, len(DATA))
    first.cut = 0
    assert cache.read(NAME, len(DATA), 0, len(DATA)) == DATA


def test_a_segment_that_was_cut_there(both: RemoteSegments, first: Remoteness, second: Remoteness) -> None:
    """Such a store says so, and the next one is asked."""
    first.objects[segment_key(NAME)] = DATA[:-1]
    assert both.fetch(NAME, 0, len(DATA)) == DATA
    second.objects[segment_key(NAME)] = DATA[:-1]
    with pytest.raises(VaultError):
        both.fetch(NAME, 0, len(DATA))


def test_many_threads(first: Remoteness, second: Remoteness) -> None:
    """Each store is opened once."""
    both = RemoteSegments([first.open, second.open])
    barrier = threading.Barrier(8)

    def work(number: int) -> None:
        barrier.wait()
        name = OTHER if number % 2 else NAME
        for offset in range(500):
            assert both.fetch(name, offset, 100) == DATA[offset : offset + 100]

    with ThreadPoolExecutor(8) as pool:
        for done in [pool.submit(work, number) for number in range(8)]:
            done.result(60)
    assert (first.opened, second.opened) == (1, 1)


def test_nobody_sees_a_list_that_is_being_reordered(first: Remoteness, monkeypatch: pytest.MonkeyPatch) -> None:
    removed = threading.Event()

    class Slow(list[int]):
        def remove(self, value: int, /) -> None:
            super().remove(value)
            removed.set()
            time.sleep(0.05)

    segments = RemoteSegments([first.open])
    monkeypatch.setattr(segments, "_order", Slow([0]))
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(segments.fetch, NAME, 0, 1)
        assert removed.wait(10)
        assert segments.fetch(NAME, 1, 1) == DATA[1:2]
        assert other.result(10) == DATA[:1]


# --- the remotes of a vault


def test_the_list_of_a_vault(tmp_path: Path) -> None:
    layout = VaultLayout(tmp_path / "vault")
    layout.create_directories()
    assert RemoteSegments.of(layout) is None
    save_remotes(layout, [])
    assert RemoteSegments.of(layout) is None
    disks = [tmp_path / "one", tmp_path / "two"]
    for disk in disks:
        disk.mkdir()
    save_remotes(layout, [Remote(disk.name, disk.as_uri()) for disk in disks])
    segments = RemoteSegments.of(layout)
    assert segments is not None
    with pytest.raises(ObjectMissingError, match="one"):
        segments.fetch(NAME, 0, 1)
    path = disks[1] / segment_key(NAME)
    path.parent.mkdir(parents=True)
    path.write_bytes(DATA)
    assert segments.fetch(NAME, 7, 9) == DATA[7:16]
    layout.remotes.write_text("{")
    with pytest.raises(IntegrityError):
        RemoteSegments.of(layout)
