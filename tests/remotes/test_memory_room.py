from __future__ import annotations

import threading
from contextlib import ExitStack

import pytest

from vaultfs.remotes.memory_room import MemoryRoom

PATIENCE_S = 30.0


class Taker:
    """A thread that takes room, and gives it back when it is told."""

    def __init__(self, room: MemoryRoom, count: int) -> None:
        self.has = threading.Event()
        self._done = threading.Event()
        self._room = room
        self._count = count
        self._thread = threading.Thread(target=self._take)
        self._thread.start()

    def _take(self) -> None:
        with self._room.taken(self._count):
            self.has.set()
            assert self._done.wait(PATIENCE_S)

    def end(self) -> None:
        self._done.set()
        self._thread.join(PATIENCE_S)


def test_only_what_fits_goes_at_once() -> None:
    room = MemoryRoom(10)
    first, second = Taker(room, 4), Taker(room, 6)
    assert first.has.wait(PATIENCE_S)
    assert second.has.wait(PATIENCE_S)
    third = Taker(room, 5)
    first.end()
    assert not third.has.wait(0.05)
    second.end()
    assert third.has.wait(PATIENCE_S)
    third.end()


def test_what_is_larger_goes_alone() -> None:
    room = MemoryRoom(10)
    with ExitStack() as stack:
        stack.enter_context(room.taken(1))
        large = Taker(room, 1000)
        assert not large.has.wait(0.05)
    assert large.has.wait(PATIENCE_S)
    small = Taker(room, 1)
    assert not small.has.wait(0.05)
    large.end()
    assert small.has.wait(PATIENCE_S)
    small.end()


def test_small_ones_do_not_overtake_a_large_one() -> None:
    room = MemoryRoom(10)
    first = Taker(room, 5)
    assert first.has.wait(PATIENCE_S)
    large = Taker(room, 10)
    assert not large.has.wait(0.05)
    small = Taker(room, 1)
    assert not small.has.wait(0.05)
    first.end()
    assert large.has.wait(PATIENCE_S)
    assert not small.has.is_set()
    large.end()
    assert small.has.wait(PATIENCE_S)
    small.end()


def test_room_comes_back_after_an_error() -> None:
    room = MemoryRoom(10)
    with pytest.raises(KeyError), room.taken(10):
        raise KeyError
    with room.taken(10):
        pass
