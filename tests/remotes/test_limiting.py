from __future__ import annotations

import threading

import pytest

from vaultfs.errors import UsageError
from vaultfs.remotes.bodies import PIECE_BYTES
from vaultfs.remotes.limiting import LimitedStore, TokenBucket
from vaultfs.remotes.store import BytesSource

from .data import body, read
from .memory_store import MemoryStore


class Time:
    def __init__(self) -> None:
        self.now_s = 50.0

    def clock(self) -> float:
        return self.now_s

    def wait(self, seconds: float) -> None:
        assert seconds > 0
        self.now_s += seconds


def bucket(rate: float, time: Time) -> TokenBucket:
    return TokenBucket(rate, clock=time.clock, wait=time.wait)


def test_the_rate_is_kept() -> None:
    time = Time()
    limit = bucket(1000.0, time)
    for _ in range(100):
        limit.take(100)
    assert time.now_s - 50.0 == pytest.approx(10.0)


def test_a_large_piece_takes_its_time_and_is_not_refused() -> None:
    time = Time()
    bucket(1000.0, time).take(60_000)
    assert time.now_s - 50.0 == pytest.approx(60.0)


def test_a_pause_earns_only_a_short_burst() -> None:
    time = Time()
    limit = bucket(1000.0, time)
    time.now_s += 3600.0
    limit.take(250)
    assert time.now_s == pytest.approx(3650.0)
    limit.take(1000)
    assert time.now_s == pytest.approx(3651.0)


@pytest.mark.parametrize("rate", [0.0, -1.0, float("nan")])
def test_a_rate_that_lets_nothing_through(rate: float) -> None:
    with pytest.raises(UsageError):
        TokenBucket(rate)


def test_both_directions_have_their_own_limit() -> None:
    sent, received = Time(), Time()
    memory = MemoryStore()
    store = LimitedStore(memory, sending=bucket(PIECE_BYTES, sent), receiving=bucket(PIECE_BYTES / 2, received))
    data = body(3 * PIECE_BYTES)
    store.put("key", BytesSource(data))
    assert memory.objects["key"] == data
    assert sent.now_s == pytest.approx(53.0)
    assert received.now_s == 50.0
    assert read(store, "key") == data
    assert received.now_s == pytest.approx(56.0)
    assert sent.now_s == pytest.approx(53.0)


def test_no_limit_is_none() -> None:
    store = LimitedStore(MemoryStore())
    store.put("key", BytesSource(b"data"))
    assert read(store, "key") == b"data"


def test_stores_can_share_a_limit() -> None:
    time = Time()
    shared = bucket(100.0, time)
    for store in (LimitedStore(MemoryStore(), sending=shared), LimitedStore(MemoryStore(), sending=shared)):
        store.put("key", BytesSource(bytes(1000)))
    assert time.now_s == pytest.approx(70.0)


def test_threads_share_the_rate() -> None:
    """In real time, as the turns of threads cannot be told apart in a virtual one."""
    limit = TokenBucket(1e6)
    waits = 0.0
    lock = threading.Lock()
    frozen = TokenBucket(1000.0, clock=lambda: 0.0, wait=lambda seconds: None)

    def work() -> None:
        nonlocal waits
        for _ in range(50):
            frozen.take(10)
            limit.take(1)
            with lock:
                waits += 1

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert waits == 400
    assert frozen._free_at_s == pytest.approx(4.0)


def test_opening_wakes_and_ends_the_limit() -> None:
    limit = TokenBucket(1.0)
    thread = threading.Thread(target=limit.take, args=(1_000_000,))
    thread.start()
    limit.open()
    thread.join(10)
    assert not thread.is_alive()
    limit.take(1_000_000)


def test_closing_closes_the_inner_store() -> None:
    memory = MemoryStore()
    LimitedStore(memory).close()
    assert memory.is_closed
