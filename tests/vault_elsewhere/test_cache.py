"""The cache of segments that lie elsewhere: what it asks for, keeps, bounds and survives."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from descriptors import open_files
from hypothesis import given, settings
from hypothesis import strategies as st

from vault_elsewhere.sources import Elsewhere
from vaultfs.errors import IntegrityError, ObjectMissingError, RemoteUnreachableError
from vaultfs.ids import SegmentName
from vaultfs.storage import segment_cache
from vaultfs.storage.segment_cache import SegmentCache

NAME = SegmentName("ab" * 32)
OTHER = SegmentName("cd" * 32)
BLOCK = 4096
SIZE = 10 * BLOCK + 100


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segment_cache, "BLOCK_BYTES", BLOCK)


@pytest.fixture
def source() -> Elsewhere:
    return Elsewhere({NAME: os.urandom(SIZE), OTHER: os.urandom(SIZE)})


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def read(cache: SegmentCache, offset: int, length: int, name: SegmentName = NAME) -> bytes:
    return cache.read(name, SIZE, offset, length)


def test_blocks_are_fetched_once(source: Elsewhere, directory: Path) -> None:
    cache = SegmentCache(directory, source)
    assert read(cache, 5 * BLOCK + 10, 20) == source.segments[NAME][5 * BLOCK + 10 : 5 * BLOCK + 30]
    assert source.requests == [(NAME, 5 * BLOCK, BLOCK)]
    assert read(cache, 5 * BLOCK, BLOCK) == source.segments[NAME][5 * BLOCK : 6 * BLOCK]
    assert len(source.requests) == 1
    read(cache, 4 * BLOCK + 1, 3 * BLOCK)
    assert source.requests[1:] == [(NAME, 4 * BLOCK, BLOCK), (NAME, 6 * BLOCK, 2 * BLOCK)]


def test_who_reads_on_gets_more_at_once(source: Elsewhere, directory: Path) -> None:
    cache = SegmentCache(directory, source)
    for offset in range(0, SIZE, 1000):
        length = min(1000, SIZE - offset)
        assert read(cache, offset, length) == source.segments[NAME][offset : offset + length]
    assert source.requests == [
        (NAME, 0, BLOCK),
        (NAME, BLOCK, 2 * BLOCK),
        (NAME, 3 * BLOCK, 4 * BLOCK),
        (NAME, 7 * BLOCK, SIZE - 7 * BLOCK),
    ]


def test_who_reads_on_before_the_first_has_come(source: Elsewhere, directory: Path) -> None:
    """As the kernel does, which asks for several pieces at once."""
    cache = SegmentCache(directory, source)
    real, go = source.fetch, threading.Event()

    def fetch(name: SegmentName, offset: int, length: int) -> bytes:
        data = real(name, offset, length)
        assert go.wait(60)
        return data

    source.fetch = fetch  # type: ignore[method-assign]
    with ThreadPoolExecutor(3) as pool:
        found = []
        for count, block in enumerate((0, 1, 3)):
            found.append(pool.submit(read, cache, block * BLOCK, BLOCK))
            while len(source.requests) <= count:
                threading.Event().wait(0.001)
        go.set()
        assert [each.result(60) for each in found] == [
            source.segments[NAME][block * BLOCK : (block + 1) * BLOCK] for block in (0, 1, 3)
        ]
    assert [(offset, length) for _, offset, length in source.requests] == [
        (0, BLOCK),
        (BLOCK, 2 * BLOCK),
        (3 * BLOCK, 4 * BLOCK),
    ]


def test_who_jumps_gets_little(source: Elsewhere, directory: Path) -> None:
    """Also after reading on: what would be fetched on top is in the way of what is wanted."""
    cache = SegmentCache(directory, source)
    read(cache, 0, 1)
    read(cache, BLOCK, 1)
    read(cache, 8 * BLOCK, 1)
    read(cache, 5 * BLOCK, 1)
    read(cache, 6 * BLOCK, 1)
    assert [(offset, length) for _, offset, length in source.requests] == [
        (0, BLOCK),
        (BLOCK, 2 * BLOCK),
        (8 * BLOCK, BLOCK),
        (5 * BLOCK, BLOCK),
        (6 * BLOCK, 2 * BLOCK),
    ]


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.integers(0, SIZE - 1), st.integers(1, SIZE)), max_size=12))
def test_any_ranges(tmp_path_factory: pytest.TempPathFactory, ranges: list[tuple[int, int]]) -> None:
    source = Elsewhere({NAME: os.urandom(SIZE)})
    cache = SegmentCache(tmp_path_factory.mktemp("cache") / "cache", source)
    for offset, most in ranges:
        length = min(most, SIZE - offset)
        assert read(cache, offset, length) == source.segments[NAME][offset : offset + length]
    assert source.fetched_bytes <= SIZE


def test_what_was_fetched_stays(source: Elsewhere, directory: Path) -> None:
    read(SegmentCache(directory, source), 2 * BLOCK, BLOCK)
    read(SegmentCache(directory, source), SIZE - 1, 1)
    source.is_down = True
    cache = SegmentCache(directory, source)
    assert read(cache, 2 * BLOCK, BLOCK) == source.segments[NAME][2 * BLOCK : 3 * BLOCK]
    assert read(cache, SIZE - 50, 50) == source.segments[NAME][-50:]
    with pytest.raises(RemoteUnreachableError):
        read(cache, 7 * BLOCK, 1)


@pytest.mark.parametrize("left", [0, 10 * BLOCK + 50, 9 * BLOCK + 1, 2 * BLOCK])
def test_a_file_that_a_crash_has_cut(source: Elsewhere, directory: Path, left: int) -> None:
    cache = SegmentCache(directory, source)
    read(cache, 0, SIZE)
    os.truncate(directory / f"{NAME}.part", left)
    for each in (cache, SegmentCache(directory, source)):
        assert read(each, 0, SIZE) == source.segments[NAME]


def test_what_does_not_open_is_fetched_again(source: Elsewhere, directory: Path) -> None:
    cache = SegmentCache(directory, source)
    source.flipped = True
    assert read(cache, 0, 10) != source.segments[NAME][:10]
    source.flipped = False
    cache.forget(NAME, 0, 10)
    assert read(cache, 0, 10) == source.segments[NAME][:10]


def test_a_failure_leaves_nothing_behind(source: Elsewhere, directory: Path) -> None:
    cache = SegmentCache(directory, source)
    source.cut = 1
    with pytest.raises(IntegrityError, match="came instead of"):
        read(cache, 0, 10)
    source.cut, source.is_down = 0, True
    with pytest.raises(RemoteUnreachableError):
        read(cache, 0, 10)
    source.is_down = False
    with pytest.raises(ObjectMissingError):
        cache.read(SegmentName("ef" * 32), SIZE, 0, 1)
    assert read(cache, 0, SIZE) == source.segments[NAME]


def test_beyond_the_end(source: Elsewhere, directory: Path) -> None:
    with pytest.raises(IntegrityError, match="ends before"):
        read(SegmentCache(directory, source), SIZE - 1, 2)
    assert not source.requests


def test_it_takes_no_more_room_than_it_may(source: Elsewhere, directory: Path) -> None:
    names = [SegmentName(f"{number:064x}") for number in range(20)]
    source.segments = {name: os.urandom(SIZE) for name in names}
    cache = SegmentCache(directory, source, limit_bytes=3 * SIZE)
    for name in names:
        assert read(cache, 0, SIZE, name) == source.segments[name]
        used = sum(path.stat().st_blocks * 512 for path in directory.iterdir())
        assert used <= 5 * SIZE
    before = len(source.requests)
    read(cache, 0, SIZE, names[-1])
    assert len(source.requests) == before  # the newest is still there
    read(cache, 0, 1, names[0])
    assert len(source.requests) == before + 1  # the oldest is not
    # The bound holds for what an earlier process has left, too.
    cache = SegmentCache(directory, source, limit_bytes=SIZE)
    read(cache, 0, SIZE, names[5])
    assert len(list(directory.iterdir())) == 1


def test_what_is_on_the_disk_now_is_dropped(source: Elsewhere, directory: Path) -> None:
    read(SegmentCache(directory, source), 0, SIZE)
    cache = SegmentCache(directory, source)
    cache.drop(NAME)
    cache.drop(SegmentName("ef" * 32))
    assert list(directory.iterdir()) == []
    read(cache, 0, SIZE)
    read(cache, 0, SIZE, OTHER)
    cache.drop(NAME)
    assert [path.stem for path in directory.iterdir()] == [OTHER]
    before = len(source.requests)
    read(cache, 0, SIZE, OTHER)
    assert len(source.requests) == before
    assert read(cache, 3, 3) == source.segments[NAME][3:6]
    assert len(source.requests) == before + 1


def test_dropped_while_it_is_read(source: Elsewhere, directory: Path) -> None:
    """Who reads goes on, and leaves nothing behind."""
    before = open_files()
    cache = SegmentCache(directory, source)
    real = source.fetch

    def fetch(name: SegmentName, offset: int, length: int) -> bytes:
        cache.drop(name)
        return real(name, offset, length)

    source.fetch = fetch  # type: ignore[method-assign]
    assert read(cache, 10, 3 * BLOCK) == source.segments[NAME][10 : 10 + 3 * BLOCK]
    assert list(directory.iterdir()) == []
    assert open_files() == before


def test_many_threads_fetch_each_block_once(source: Elsewhere, directory: Path) -> None:
    cache = SegmentCache(directory, source)
    barrier = threading.Barrier(8)

    def work(number: int) -> bytes:
        barrier.wait()
        return read(cache, number % 3, SIZE - 3)

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(work, range(8)))
    assert all(each == source.segments[NAME][n % 3 : n % 3 + SIZE - 3] for n, each in enumerate(found))
    assert source.fetched_bytes == SIZE


def test_not_too_many_at_once(source: Elsewhere, directory: Path) -> None:
    """However many wait, what they wait for is bounded."""
    names = [SegmentName(f"{number:064x}") for number in range(40)]
    source.segments = {name: os.urandom(SIZE) for name in names}
    cache = SegmentCache(directory, source)
    real, lock = source.fetch, threading.Lock()
    waiting, go = threading.Semaphore(0), threading.Event()
    now = most = 0

    def fetch(name: SegmentName, offset: int, length: int) -> bytes:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        waiting.release()
        assert go.wait(60)
        try:
            return real(name, offset, length)
        finally:
            with lock:
                now -= 1

    source.fetch = fetch  # type: ignore[method-assign]
    with ThreadPoolExecutor(40) as pool:
        found = [pool.submit(read, cache, 0, SIZE, name) for name in names]
        for _ in range(segment_cache.MOST_REQUESTS):
            assert waiting.acquire(timeout=60)
        go.set()
        assert [each.result(60) for each in found] == [source.segments[name] for name in names]
    assert most == segment_cache.MOST_REQUESTS


def test_a_failure_does_not_strand_those_who_wait(source: Elsewhere, directory: Path) -> None:
    cache = SegmentCache(directory, source)
    entered, go = threading.Event(), threading.Event()
    real = source.fetch

    def slow(name: SegmentName, offset: int, length: int) -> bytes:
        if not entered.is_set():
            entered.set()
            go.wait(10)
            raise RemoteUnreachableError("the first one fails")
        return real(name, offset, length)

    source.fetch = slow  # type: ignore[method-assign]
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(read, cache, 0, 10)
        entered.wait(10)
        second = pool.submit(read, cache, 0, 10)
        go.set()
        with pytest.raises(RemoteUnreachableError):
            first.result(10)
        assert second.result(10) == source.segments[NAME][:10]


def test_nothing_stays_open(source: Elsewhere, directory: Path) -> None:
    before = open_files()
    cache = SegmentCache(directory, source)
    for name in (NAME, OTHER):
        read(cache, 0, SIZE, name)
    source.is_down = True
    with pytest.raises(RemoteUnreachableError):
        cache.read(SegmentName("ef" * 32), SIZE, 0, 1)
    assert open_files() == before
