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
from vaultfs.remotes.retrying import RetryPolicy
from vaultfs.remotes.store import Store
from vaultfs.storage.layout import VaultLayout
from vaultfs.storage.segment_cache import SegmentCache
from vaultfs.sync import remote_segments
from vaultfs.sync.bounded_get import BoundedGet
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
        answers: while it is not set, requests wait.
    """

    def __init__(self, name: str, *segments: SegmentName) -> None:
        super().__init__(name)
        self.objects = {segment_key(each): DATA for each in segments}
        self.failure: VaultError | None = None
        self.cut = 0
        self.opened = 0
        self.answers = threading.Event()
        self.answers.set()

    def get(self, key: str, *, offset: int = 0, length: int | None = None) -> Iterator[bytes]:
        if self.failure is not None:
            self.requests.append(("get", key))
            raise self.failure
        data = b"".join(super().get(key, offset=offset, length=length))
        assert self.answers.wait(60)
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


class Clock:
    """Seconds that a test lets go by."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def both(first: Remoteness, second: Remoteness, clock: Clock) -> RemoteSegments:
    return RemoteSegments([first.open, second.open], clock=clock)


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


def test_who_answered_last_is_asked_first(
    both: RemoteSegments, first: Remoteness, second: Remoteness, clock: Clock
) -> None:
    first.failure = RemoteUnreachableError("the first is away")
    for _ in range(5):
        both.fetch(NAME, 0, 1)
    assert (first.asked, second.asked) == (1, 5)
    first.failure, second.failure = None, RemoteUnreachableError("the second is away")
    clock.now_s += 1
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


def test_the_first_failure_is_told(both: RemoteSegments, first: Remoteness, second: Remoteness, clock: Clock) -> None:
    first.failure, second.failure = RemoteRefusedError("no"), RemoteUnreachableError("away")
    with pytest.raises(RemoteRefusedError):
        both.fetch(NAME, 0, 1)
    first.failure = second.failure = None
    clock.now_s += 1
    assert both.fetch(NAME, 0, 1) == DATA[:1]


def test_one_that_cannot_be_opened(second: Remoteness, clock: Clock) -> None:
    """It is tried again each time it is its turn: what it lacks may be there then."""
    tries = 0

    def broken() -> Store:
        nonlocal tries
        tries += 1
        raise UsageError("opendal is not installed")

    alone = RemoteSegments([broken], clock=clock)
    for _ in range(2):
        with pytest.raises(UsageError):
            alone.fetch(NAME, 0, 1)
        clock.now_s += 2
    assert tries == 2
    together = RemoteSegments([broken, second.open], clock=clock)
    assert together.fetch(NAME, 3, 4) == DATA[3:7]
    assert tries == 3
    together.fetch(NAME, 3, 4)
    assert tries == 3, "the one that answered is asked first"


def test_one_that_can_be_opened_later(first: Remoteness, clock: Clock) -> None:
    answers: list[Callable[[], Store]] = [first.open]

    def opener() -> Store:
        if len(answers) < 2:
            answers.append(first.open)
            raise RemoteUnreachableError("not yet")
        return first.open()

    segments = RemoteSegments([opener], clock=clock)
    with pytest.raises(RemoteUnreachableError):
        segments.fetch(NAME, 0, 1)
    clock.now_s += 1
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


# --- a remote that is away, or silent


def test_who_has_just_failed_is_not_asked_again(first: Remoteness, clock: Clock) -> None:
    """A program that reads on and on costs a request now and then, and waits for none of them."""
    alone = RemoteSegments([first.open], clock=clock)
    first.failure = RemoteUnreachableError("the first is away")
    asked_at = []
    for tenth in range(3000):
        before = first.asked
        with pytest.raises(RemoteUnreachableError, match="the first is away"):
            alone.fetch(NAME, 0, 1)
        if first.asked > before:
            asked_at.append(tenth)
        clock.now_s += 0.125
    assert asked_at == [0, 8, 24, 56, 120, 248, *range(488, 3000, 240)]
    first.failure = None
    with pytest.raises(RemoteUnreachableError):
        alone.fetch(NAME, 0, 1)
    clock.now_s += 30
    for _ in range(3):
        assert alone.fetch(NAME, 0, 1) == DATA[:1]
    first.failure = RemoteUnreachableError("away again")
    with pytest.raises(RemoteUnreachableError, match="away again"):
        alone.fetch(NAME, 0, 1)
    clock.now_s += 1
    first.failure = None
    assert alone.fetch(NAME, 0, 1) == DATA[:1], "the pauses begin small again"


@pytest.mark.parametrize("failure", [ObjectMissingError("no such segment"), RemoteError("nonsense")])
def test_who_answered_may_be_asked_for_something_else(first: Remoteness, clock: Clock, failure: VaultError) -> None:
    alone = RemoteSegments([first.open], clock=clock)
    for _ in range(3):
        first.failure = failure
        with pytest.raises(type(failure)):
            alone.fetch(OTHER, 0, 1)
        first.failure = None
        assert alone.fetch(NAME, 0, 1) == DATA[:1]


def test_one_at_a_time_finds_out_whether_it_is_back(first: Remoteness, clock: Clock) -> None:
    alone = RemoteSegments([first.open], clock=clock)
    first.failure = RemoteUnreachableError("away")
    with pytest.raises(RemoteUnreachableError):
        alone.fetch(NAME, 0, 1)
    clock.now_s += 1
    first.failure = None
    first.answers.clear()
    with ThreadPoolExecutor(1) as pool:
        trying = pool.submit(alone.fetch, NAME, 0, 1)
        while first.asked < 2:
            time.sleep(0.001)
        for _ in range(5):
            with pytest.raises(RemoteUnreachableError, match="away"):
                alone.fetch(NAME, 1, 1)
        assert first.asked == 2
        first.answers.set()
        assert trying.result(60) == DATA[:1]
    assert alone.fetch(NAME, 1, 1) == DATA[1:2]


def test_several_that_fail_at_once_count_once(first: Remoteness, clock: Clock) -> None:
    alone = RemoteSegments([first.open], clock=clock)
    barrier = threading.Barrier(8)

    def failing(key: str, **_: int) -> Iterator[bytes]:
        barrier.wait(60)
        raise RemoteUnreachableError(f"{key} is away")

    first.get = failing  # type: ignore[method-assign,assignment]
    with ThreadPoolExecutor(8) as pool:
        for each in [pool.submit(alone.fetch, NAME, 0, 1) for _ in range(8)]:
            with pytest.raises(RemoteUnreachableError):
                each.result(60)
    del first.get
    clock.now_s += 1
    assert alone.fetch(NAME, 0, 1) == DATA[:1]


def test_a_silent_remote_is_left(first: Remoteness, second: Remoteness, clock: Clock) -> None:
    """The client waits for its own timeout; who reads does not."""
    segments = RemoteSegments([first.open, second.open], patience_s=0.2, clock=clock)
    first.answers.clear()
    assert segments.fetch(NAME, 0, 10) == DATA[:10]
    second.answers.clear()
    clock.now_s += 1
    with pytest.raises(RemoteUnreachableError, match="memory:second does not answer: nothing came"):
        segments.fetch(NAME, 0, 10)
    asked = first.asked, second.asked
    with pytest.raises(RemoteUnreachableError, match="nothing came"):
        segments.fetch(NAME, 0, 10)
    assert (first.asked, second.asked) == asked
    first.answers.set()
    second.answers.set()


def test_all_together_share_what_patience_there_is(
    first: Remoteness, second: Remoteness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who comes later has what the others have left, and each has some."""
    given: list[float] = []

    def result(_: BoundedGet, patience_s: float) -> bytes:
        given.append(round(patience_s, 1))
        raise RemoteUnreachableError("away")

    monkeypatch.setattr(BoundedGet, "result", result)
    third = Remoteness("memory:third", NAME)
    with pytest.raises(RemoteUnreachableError):
        RemoteSegments([first.open, second.open, third.open], patience_s=12).fetch(NAME, 0, 1)
    assert given == [4, 6, 12]


def test_a_slow_remote_is_waited_for(first: Remoteness, clock: Clock) -> None:
    """As long as something comes."""
    segments = RemoteSegments([first.open], patience_s=0.5, clock=clock)

    def slowly(key: str, *, offset: int = 0, length: int | None = None) -> Iterator[bytes]:
        assert length is not None
        for at in range(offset, offset + length, 100):
            time.sleep(0.05)
            yield DATA[at : min(at + 100, offset + length)]

    first.get = slowly  # type: ignore[method-assign]
    assert segments.fetch(NAME, 0, 1600) == DATA[:1600]


def test_a_fault_of_a_client_is_an_error_like_others(first: Remoteness, caplog: pytest.LogCaptureFixture) -> None:
    segments = RemoteSegments([first.open])
    first.failure = ZeroDivisionError("a fault")  # type: ignore[assignment]
    with pytest.raises(RemoteError, match="ZeroDivisionError"):
        segments.fetch(NAME, 0, 1)
    assert "ZeroDivisionError" in caplog.text


# --- the end


def test_closing_ends_what_is_under_way(first: Remoteness, second: Remoteness) -> None:
    segments = RemoteSegments([first.open, second.open])
    first.answers.clear()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(segments.fetch, NAME, 0, 1)
        while not first.asked:
            time.sleep(0.001)
        assert segments.is_in_use
        segments.close()
        with pytest.raises(RemoteUnreachableError, match="being closed"):
            waiting.result(60)
    assert (first.is_closed, second.is_closed) == (True, False), "what was never opened need not be closed"
    with pytest.raises(RemoteUnreachableError, match="being closed"):
        segments.fetch(NAME, 0, 1)
    assert second.opened == 0
    segments.close()
    first.answers.set()


def test_in_use(first: Remoteness, clock: Clock) -> None:
    segments = RemoteSegments([first.open], clock=clock)
    seen = [segments.is_in_use]
    segments.fetch(NAME, 0, 1)
    seen.append(segments.is_in_use)
    clock.now_s += 1
    seen.append(segments.is_in_use)
    assert seen == [False, True, False], "who reads on asks again in a moment"


# --- the remotes of a vault


@pytest.mark.parametrize("is_patient", [False, True])
def test_a_command_has_more_patience_than_a_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, is_patient: bool
) -> None:
    layout = VaultLayout(tmp_path / "vault")
    layout.create_directories()
    save_remotes(layout, [Remote("cloud", "s3://bucket/x")])
    given: list[float] = []

    def result(request: BoundedGet, patience_s: float) -> bytes:
        given.append(patience_s)
        raise RemoteUnreachableError("away")

    policies: list[RetryPolicy | None] = []

    def opened(url: str, options: object, policy: RetryPolicy | None) -> Store:
        policies.append(policy)
        raise RemoteUnreachableError(f"{url} is away")

    monkeypatch.setattr(remote_segments, "open_store", opened)
    segments = RemoteSegments.of(layout, is_patient=is_patient)
    assert segments is not None
    with pytest.raises(RemoteUnreachableError):
        segments.fetch(NAME, 0, 1)
    monkeypatch.setattr(BoundedGet, "result", result)
    segments = RemoteSegments.of(layout, is_patient=is_patient)
    assert segments is not None
    with pytest.raises(RemoteUnreachableError):
        segments.fetch(NAME, 0, 1)
    (policy,) = policies
    longest_s = (policy or RetryPolicy()).total_s
    assert longest_s < given[0] == (remote_segments.LONG_PATIENCE_S if is_patient else remote_segments.PATIENCE_S)
    assert (policy is None) == is_patient


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
