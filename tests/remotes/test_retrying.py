from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vaultfs.errors import (
    NoSpaceError,
    ObjectExistsError,
    ObjectMissingError,
    RemoteError,
    RemoteRefusedError,
    RemoteUnreachableError,
    VaultError,
)
from vaultfs.remotes.bodies import PIECE_BYTES
from vaultfs.remotes.retrying import RetryingStore, RetryPolicy
from vaultfs.remotes.store import BytesSource, ObjectInfo, Source, Store

from .data import body, read
from .faults import BreakBody, ChangeSize, Fail, FailAfter, Fault, FaultyStore, RandomFailures
from .memory_store import MemoryStore

CUT = RemoteUnreachableError("the line was cut")


class Time:
    """A clock that only waiting moves."""

    def __init__(self) -> None:
        self.now_s = 1000.0
        self.waits: list[float] = []
        self.bounds: list[float] = []

    def clock(self) -> float:
        return self.now_s

    def wait(self, seconds: float) -> bool:
        self.waits.append(seconds)
        self.now_s += seconds
        return False

    def draw_most(self, low: float, high: float) -> float:
        assert low == 0.0
        self.bounds.append(high)
        return high


def retrying(inner: Store, time: Time, policy: RetryPolicy | None = None) -> RetryingStore:
    return RetryingStore(inner, policy or RetryPolicy(), clock=time.clock, wait=time.wait, draw=time.draw_most)


REQUESTS: dict[str, Callable[[Store], object]] = {
    "put": lambda store: store.put("key", BytesSource(b"data")),
    "get": lambda store: read(store, "key"),
    "size_bytes": lambda store: store.size_bytes("key"),
    "list": lambda store: list(store.list("")),
    "delete": lambda store: store.delete("other"),
}


@pytest.fixture
def memory() -> MemoryStore:
    made = MemoryStore()
    made.objects["key"] = b"data"
    return made


@pytest.mark.parametrize("fault", [Fail, FailAfter])
@pytest.mark.parametrize("operation", REQUESTS)
def test_each_request_is_tried_again(memory: MemoryStore, operation: str, fault: Callable[..., Fault]) -> None:
    expected = REQUESTS[operation](memory)
    time = Time()
    faulty = FaultyStore(memory, fault(CUT, times=3))
    assert REQUESTS[operation](retrying(faulty, time)) == expected
    if operation not in {"get", "list"} or fault is Fail:
        assert faulty.count(operation) == 4
        assert time.bounds == [0.5, 1.0, 2.0]
        assert time.waits == time.bounds


@pytest.mark.parametrize("operation", REQUESTS)
def test_it_gives_up_after_some_tries(memory: MemoryStore, operation: str) -> None:
    time = Time()
    faulty = FaultyStore(memory, Fail(CUT, times=None))
    with pytest.raises(RemoteUnreachableError, match="the line was cut"):
        REQUESTS[operation](retrying(faulty, time, RetryPolicy(tries=4)))
    assert faulty.count(operation) == 4
    assert len(time.waits) == 3


@pytest.mark.parametrize("operation", REQUESTS)
@pytest.mark.parametrize(
    "error",
    [
        RemoteRefusedError("no"),
        NoSpaceError("full"),
        RemoteError("odd"),
        ObjectMissingError("none"),
        ObjectExistsError("there"),
    ],
)
def test_other_errors_are_not_retried(memory: MemoryStore, operation: str, error: VaultError) -> None:
    time = Time()
    faulty = FaultyStore(memory, Fail(error, times=None))
    with pytest.raises(type(error)) as caught:
        REQUESTS[operation](retrying(faulty, time))
    assert type(caught.value) is type(error)
    assert len(faulty.requests) == 1
    assert not time.waits


def test_waits_grow_to_a_bound(memory: MemoryStore) -> None:
    time = Time()
    policy = RetryPolicy(tries=8, first_wait_s=1.0, longest_wait_s=5.0, total_s=1000.0)
    with pytest.raises(RemoteUnreachableError):
        retrying(FaultyStore(memory, Fail(CUT, times=None)), time, policy).delete("key")
    assert time.bounds == [1.0, 2.0, 4.0, 5.0, 5.0, 5.0, 5.0]


def test_waits_are_drawn_from_the_whole_range() -> None:
    waits: list[float] = []

    def wait(seconds: float) -> bool:
        waits.append(seconds)
        return False

    faulty = FaultyStore(MemoryStore(), Fail(CUT, times=None))
    store = RetryingStore(faulty, RetryPolicy(tries=400, first_wait_s=1.0, longest_wait_s=1.0, total_s=1e9), wait=wait)
    with pytest.raises(RemoteUnreachableError):
        store.delete("key")
    assert len(waits) == 399
    assert all(0.0 <= seconds <= 1.0 for seconds in waits)
    assert min(waits) < 0.2
    assert max(waits) > 0.8


def test_it_gives_up_after_some_time(memory: MemoryStore) -> None:
    time = Time()
    policy = RetryPolicy(tries=1000, first_wait_s=10.0, longest_wait_s=10.0, total_s=35.0)
    faulty = FaultyStore(memory, Fail(CUT, times=None))
    with pytest.raises(RemoteUnreachableError):
        retrying(faulty, time, policy).delete("key")
    assert time.waits == [10.0, 10.0, 10.0]
    assert len(faulty.requests) == 4


def test_the_time_counts_from_the_first_failure(memory: MemoryStore) -> None:
    time = Time()
    faulty = FaultyStore(memory, Fail(CUT))

    def take_long(operation: str, key: str) -> None:
        time.now_s += 10_000.0

    faulty.before = take_long
    retrying(faulty, time).put("key", BytesSource(b"new"))
    assert memory.objects["key"] == b"new"


def test_get_goes_on_where_it_was(memory: MemoryStore) -> None:
    data = body(5 * PIECE_BYTES + 3)
    memory.objects["key"] = data
    asked: list[tuple[int, int | None]] = []

    class Asked(MemoryStore):
        def get(self, key: str, *, offset: int = 0, length: int | None = None) -> Iterator[bytes]:
            asked.append((offset, length))
            return super().get(key, offset=offset, length=length)

    inner = Asked()
    inner.objects = memory.objects
    time = Time()
    faulty = FaultyStore(inner, BreakBody(PIECE_BYTES + 5), BreakBody(7, skip=1), Fail(CUT, "get", skip=2))
    assert read(retrying(faulty, time), "key", offset=2, length=4 * PIECE_BYTES) == data[2 : 2 + 4 * PIECE_BYTES]
    first, second = PIECE_BYTES + 5, PIECE_BYTES + 12
    assert asked == [(2, 4 * PIECE_BYTES), (2 + first, 4 * PIECE_BYTES - first), (2 + second, 4 * PIECE_BYTES - second)]
    assert time.bounds == [0.5, 0.5, 1.0]  # progress makes patient again, and a failure without any does not


def test_get_to_the_end_goes_on_where_it_was(memory: MemoryStore) -> None:
    data = body(2 * PIECE_BYTES + 3)
    memory.objects["key"] = data
    faulty = FaultyStore(memory, BreakBody(PIECE_BYTES + 5), FailAfter(CUT, "get", skip=1))
    assert read(retrying(faulty, Time()), "key", offset=1) == data[1:]


def test_get_that_breaks_after_the_last_byte_is_complete(memory: MemoryStore) -> None:
    faulty = FaultyStore(memory, FailAfter(CUT, "get", times=None))
    assert read(retrying(faulty, Time()), "key", length=4) == b"data"
    assert faulty.count("get") == 1


def test_get_that_never_moves_gives_up(memory: MemoryStore) -> None:
    faulty = FaultyStore(memory, BreakBody(2), BreakBody(0, skip=1, times=None))
    pieces = retrying(faulty, Time(), RetryPolicy(tries=3)).get("key")
    assert next(pieces) == b"da"
    with pytest.raises(RemoteUnreachableError):
        next(pieces)
    assert faulty.count("get") == 3


def test_a_slow_reader_does_not_use_up_the_time(memory: MemoryStore) -> None:
    memory.objects["key"] = body(3 * PIECE_BYTES)
    time = Time()
    faulty = FaultyStore(memory, BreakBody(PIECE_BYTES, times=1))
    came = b""
    for piece in retrying(faulty, time).get("key"):
        came += piece
        time.now_s += 10_000.0
    assert came == memory.objects["key"]


def test_a_listing_begins_anew_without_repeating(memory: MemoryStore) -> None:
    memory.objects = {f"key{number}": b"x" * number for number in range(10)}
    faulty = FaultyStore(memory, BreakBody(4, operation="list"), BreakBody(7, operation="list", skip=1))
    time = Time()
    found = list(retrying(faulty, time).list(""))
    assert found == [ObjectInfo(f"key{number}", number) for number in range(10)]
    assert time.bounds == [0.5, 0.5]


class TestCreating:
    def test_a_lost_answer_is_not_another_object(self) -> None:
        memory = MemoryStore()
        faulty = FaultyStore(memory, FailAfter(CUT, "put"))
        retrying(faulty, Time()).put("key", BytesSource(b"data"), if_absent=True)
        assert memory.objects == {"key": b"data"}
        assert faulty.count("put") == 2

    def test_a_large_one_is_told_by_its_length(self) -> None:
        data = body(2 * PIECE_BYTES)
        faulty = FaultyStore(MemoryStore(), FailAfter(CUT, "put"))
        retrying(faulty, Time()).put("key", BytesSource(data), if_absent=True)
        assert faulty.count("get") == 0

    def test_one_that_was_there_before_is_another(self, memory: MemoryStore) -> None:
        faulty = FaultyStore(memory)
        with pytest.raises(ObjectExistsError):
            retrying(faulty, Time()).put("key", BytesSource(b"data"), if_absent=True)
        assert faulty.requests == [("put", "key")]

    @pytest.mark.parametrize("data", [b"DATA", b"longer than that", b"", body(PIECE_BYTES + 1)])
    def test_one_that_differs_is_another(self, memory: MemoryStore, data: bytes) -> None:
        faulty = FaultyStore(memory, Fail(CUT, "put"))
        with pytest.raises(ObjectExistsError):
            retrying(faulty, Time()).put("key", BytesSource(data), if_absent=True)
        assert memory.objects["key"] == b"data"

    def test_a_large_one_of_another_length_is_another(self, memory: MemoryStore) -> None:
        memory.objects["key"] = body(PIECE_BYTES + 1)
        faulty = FaultyStore(memory, Fail(CUT, "put"))
        with pytest.raises(ObjectExistsError):
            retrying(faulty, Time()).put("key", BytesSource(body(PIECE_BYTES + 2)), if_absent=True)

    def test_looking_is_retried_too(self) -> None:
        memory = MemoryStore()
        faulty = FaultyStore(memory, FailAfter(CUT, "put"), Fail(CUT, "size_bytes"), Fail(CUT, "get"))
        retrying(faulty, Time()).put("key", BytesSource(b"data"), if_absent=True)
        assert memory.objects == {"key": b"data"}

    def test_one_that_is_there_and_is_not(self, memory: MemoryStore) -> None:
        """S3 answers 409 while another request for the same key is under way."""
        faulty = FaultyStore(memory, Fail(CUT, "put"), ChangeSize(None, times=None))
        with pytest.raises(RemoteUnreachableError, match="both has and lacks"):
            retrying(faulty, Time(), RetryPolicy(tries=3)).put("key", BytesSource(b"data"), if_absent=True)

    def test_one_that_comes_while_looking(self, memory: MemoryStore) -> None:
        faulty = FaultyStore(memory, Fail(CUT, "put"), ChangeSize(None))
        retrying(faulty, Time()).put("key", BytesSource(b"data"), if_absent=True)
        assert faulty.count("put") == 3


class TestClosing:
    def test_it_ends_waiting(self) -> None:
        faulty = FaultyStore(MemoryStore(), Fail(CUT, times=None))
        store = RetryingStore(faulty, RetryPolicy(first_wait_s=1000.0, longest_wait_s=1000.0, total_s=1e6))
        errors: list[BaseException] = []

        def work() -> None:
            try:
                store.delete("key")
            except RemoteUnreachableError as error:
                errors.append(error)

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        while not faulty.requests:
            pass
        store.close()
        thread.join(10)
        assert not thread.is_alive()
        assert [str(error) for error in errors] == [str(CUT)]
        assert len(faulty.requests) == 1

    def test_it_closes_the_inner_store(self) -> None:
        memory = MemoryStore()
        RetryingStore(memory).close()
        assert memory.is_closed


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 1 << 30), share=st.floats(0.0, 0.6))
def test_under_random_failures_all_is_as_without(seed: int, share: float) -> None:
    memory = MemoryStore()
    faulty = FaultyStore(memory, RandomFailures(seed, share))
    store = retrying(faulty, Time(), RetryPolicy(tries=200, total_s=1e9))
    data = body(3 * PIECE_BYTES)
    for number in range(5):
        store.put(f"key{number}", BytesSource(data[: number * 1000]), if_absent=True)
    store.put("large", BytesSource(data))
    assert read(store, "large") == data
    assert read(store, "large", offset=5, length=PIECE_BYTES) == data[5 : 5 + PIECE_BYTES]
    store.delete("key3")
    assert sorted(store.list("")) == sorted(
        [ObjectInfo(f"key{number}", number * 1000) for number in (0, 1, 2, 4)] + [ObjectInfo("large", len(data))],
    )
    with pytest.raises(ObjectExistsError):
        FaultyStore(memory).put("key1", BytesSource(b"x"), if_absent=True)


def test_a_source_is_opened_for_each_try() -> None:
    opened = 0

    class Counted(BytesSource):
        def open(self):  # type: ignore[no-untyped-def]  # noqa: ANN202
            nonlocal opened
            opened += 1
            return super().open()

    source: Source = Counted(b"data")
    memory = MemoryStore()
    faulty = FaultyStore(memory, FailAfter(CUT, "put", times=2))
    retrying(faulty, Time()).put("key", source)
    assert opened == 3
    assert memory.objects == {"key": b"data"}
