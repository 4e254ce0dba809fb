from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest

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


def test_bytes_that_are_read_again_count_once() -> None:
    seen: list[SyncProgress] = []
    crew = Crew(1, seen.append)
    source = CountedSource(bytes(100), crew)
    for _ in range(3):
        with source.open() as file:
            assert len(file.read(60)) == 60
            buffer = bytearray(20)
            assert file.readinto(buffer) == 20  # type: ignore[attr-defined]
        crew.tick()
    assert seen[-1].done_bytes == 80
    source.is_stored()
    crew.tick()
    assert seen[-1] == SyncProgress(100, 100)
