from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest

from vaultfs.remotes.bodies import opened
from vaultfs.remotes.store import BytesSource
from vaultfs.sync.workers import CountedSource, Crew, StoppedError, SyncProgress


def test_one_that_fails_ends_the_others() -> None:
    crew = Crew(2)
    ended = threading.Event()

    def failing() -> None:
        raise KeyError("bad")

    def patient() -> None:
        for _ in range(500):
            try:
                crew.check()
            except StoppedError:
                ended.set()
                raise
            threading.Event().wait(0.01)

    with pytest.raises(KeyError):
        crew.work([patient, failing])
    assert ended.is_set()


def test_no_job_is_taken_after_an_end() -> None:
    taken = 0

    def jobs() -> Iterator[Callable[[], None]]:
        nonlocal taken
        for _ in range(100):
            taken += 1
            yield lambda: None

    asked = iter(range(5))
    with pytest.raises(StoppedError):
        Crew(1, is_stopped=lambda: next(asked, None) is None).work(jobs())
    assert taken < 10


def test_bytes_that_are_sent_again_count_once() -> None:
    seen: list[SyncProgress] = []
    crew = Crew(1, seen.append)
    source = CountedSource(BytesSource(bytes(100)), crew)
    for sent in (60, 80, 30):
        with opened("key", source) as file:
            file.is_sending = False
            file.read()  # as who signs it
            file.seek(0)
            file.is_sending = True
            file.read(sent - 10)
            file.read(10)
        crew.tick()
    assert [now.done_bytes for now in seen] == [60, 80]
    source.is_stored()
    crew.tick()
    assert seen[-1] == SyncProgress(100, 100)


def test_of_several_copies_at_once_the_farthest_counts() -> None:
    seen: list[SyncProgress] = []
    crew = Crew(1, seen.append)
    source = CountedSource(BytesSource(bytes(100)), crew)
    with opened("key", source) as first, opened("key", source) as second:
        for file, size in ((first, 40), (second, 30), (second, 50), (first, 60)):
            file.read(size)
            crew.tick()
    assert [now.done_bytes for now in seen] == [40, 80, 100]


def test_an_end_comes_between_two_lots() -> None:
    ending = False
    crew = Crew(1, is_stopped=lambda: ending)
    source = CountedSource(BytesSource(bytes(100)), crew)
    with opened("key", source) as file:
        file.read(10)
        ending = True
        with pytest.raises(StoppedError):
            crew.tick()
        with pytest.raises(StoppedError):
            file.read(10)
        with pytest.raises(StoppedError):
            file.check()
    with pytest.raises(StoppedError), opened("key", source):
        pass
