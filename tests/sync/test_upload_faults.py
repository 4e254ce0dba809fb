"""A sync that fails, is stopped or killed at any request: the remote is never wrong, and the next one finishes."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from remotes.faults import (
    BreakBody,
    ChangeList,
    ChangePut,
    ChangeSize,
    Fail,
    FailAfter,
    FaultyStore,
    LosePut,
    RandomFailures,
    cut,
    flip,
    invent,
    omit,
    repeat,
    resize,
)
from remotes.memory_store import MemoryStore

from sync.fabricated import Fabricated, require_complete_heads, require_same, small_vault, target
from vaultfs.errors import ObjectExistsError, RemoteError, RemoteUnreachableError, VaultError
from vaultfs.remotes.store import ObjectInfo
from vaultfs.sync.remote_layout import HEADER_KEY, segment_key
from vaultfs.sync.upload import StoppedError, TargetOutcome, sync
from vaultfs.sync.verify import verify

LOST = RemoteUnreachableError("the line is cut")
REQUESTS = 21
"""Of a first sync, see test_upload."""


class Killed(BaseException):
    """As if the process ended here: nobody may handle it."""


class Case:
    """A vault, a remote with faults, and a look at the remote at each request."""

    def __init__(self, scratch: Path) -> None:
        self.vault = small_vault(scratch / "vault")
        self.memory = MemoryStore("memory:one")
        self.store = FaultyStore(self.memory)
        self.target = target(self.vault, self.store, scratch / "state")
        self.back = scratch / "back"
        self.watch()

    def watch(self, act: Callable[[int], None] = lambda number: None) -> None:
        count = 0
        lock = threading.Lock()

        def before(operation: str, key: str) -> None:
            nonlocal count
            with lock:
                count += 1
                number = count
                require_complete_heads(self.memory)
            act(number)

        self.store.before = before

    def sync(self, *, connections: int = 4) -> TargetOutcome:
        [outcome] = sync(self.vault.layout, [self.target], connections=connections)
        require_complete_heads(self.memory)
        return outcome

    def finish(self) -> None:
        """Without faults, all is well after one sync; and a further one has nothing to do."""
        self.store.heal()
        self.watch()
        outcome = self.sync()
        assert outcome.error is None
        assert outcome.is_up_to_date
        self.store.requests.clear()
        assert self.sync() == TargetOutcome("away", 0, 0, 0, is_up_to_date=True, error=None)
        assert len(self.store.requests) == 2
        require_same(self.vault, self.memory, self.back)


@pytest.fixture
def case(scratch: Path) -> Case:
    return Case(scratch)


def test_how_many_requests_there_are(case: Case) -> None:
    assert case.sync().is_up_to_date
    assert len(case.store.requests) == REQUESTS


@pytest.mark.parametrize("connections", [1, 4])
@pytest.mark.parametrize("fault", [Fail, FailAfter])
@pytest.mark.parametrize("number", range(REQUESTS))
def test_any_request_fails(case: Case, fault: type[Fail | FailAfter], number: int, connections: int) -> None:
    case.store.add(fault(LOST, skip=number))
    outcome = case.sync(connections=connections)
    if fault is Fail or number > 0:  # the first asks for what is not there, and so ends before its end
        assert isinstance(outcome.error, RemoteUnreachableError)
        assert not outcome.is_up_to_date
    case.finish()


@pytest.mark.parametrize("number", range(REQUESTS))
def test_offline_from_any_request_on(case: Case, number: int) -> None:
    case.store.add(Fail(LOST, skip=number, times=None))
    assert isinstance(case.sync().error, RemoteUnreachableError)
    case.finish()


@pytest.mark.parametrize("connections", [1, 4])
@pytest.mark.parametrize("number", range(1, REQUESTS + 1))
def test_killed_at_any_request(case: Case, number: int, connections: int) -> None:
    def kill(now: int) -> None:
        if now >= number:
            raise Killed

    case.watch(kill)
    with pytest.raises(Killed):
        case.sync(connections=connections)
    case.finish()


@pytest.mark.parametrize("number", range(1, REQUESTS))
def test_killed_while_the_ledger_was_written(case: Case, number: int) -> None:
    """The ledger ends in the middle of a line, at any of them."""
    assert case.sync().is_up_to_date
    lines = case.target.ledger.path.read_bytes().splitlines(keepends=True)
    number = min(number, len(lines) - 1)
    case.target.ledger.path.write_bytes(b"".join(lines[:number]) + lines[number][:-5])
    case.finish()


@pytest.mark.parametrize("number", range(1, REQUESTS + 1))
def test_stopped_at_any_request(case: Case, number: int) -> None:
    stop = threading.Event()
    case.watch(lambda now: stop.set() if now >= number else None)
    [outcome] = sync(case.vault.layout, [case.target], is_stopped=stop.is_set)
    assert outcome.is_up_to_date or isinstance(outcome.error, StoppedError)
    case.finish()


def test_interrupted_all_the_time_nothing_is_sent_twice(case: Case) -> None:
    """Every run ends after few requests, and the next goes on."""
    for _ in range(60):
        case.store.heal()
        case.store.add(Fail(LOST, skip=6, times=None))
        if case.sync(connections=1).is_up_to_date:
            break
    puts = [key for key in case.memory.requests if key[0] == "put"]
    assert len(puts) == len(set(puts))
    case.finish()


def test_bad_luck(scratch: Path) -> None:
    for seed in range(20):
        (scratch / str(seed)).mkdir()
        case = Case(scratch / str(seed))
        case.store.add(RandomFailures(seed, 0.15))
        for _ in range(5):
            outcome = case.sync()
            assert outcome.error is None or isinstance(outcome.error, RemoteUnreachableError)
        case.finish()


# --- a remote that lies


@pytest.mark.parametrize("key", ["segments/", "heads/", HEADER_KEY])
@pytest.mark.parametrize("times", [1, None])
def test_a_put_that_is_not_stored(case: Case, key: str, times: int | None) -> None:
    case.store.add(LosePut(key, times=times))
    outcome = case.sync()
    assert type(outcome.error) is RemoteError
    assert "said that it had stored" in str(outcome.error)
    assert not outcome.is_up_to_date
    if key != "heads/":
        assert not any(name.startswith("heads/") for name in case.memory.objects)
    case.finish()


def test_a_put_that_is_stored_in_part(case: Case) -> None:
    case.store.add(ChangePut(cut(), "segments/"))
    outcome = case.sync()
    assert type(outcome.error) is RemoteError
    case.finish()


def test_a_put_that_is_lost_after_it_was_asked_for(case: Case) -> None:
    """Nothing but reading finds this, or ``check``."""
    assert case.sync().is_up_to_date
    lost = segment_key(min(case.vault.segments))
    del case.memory.objects[lost]
    assert any(lost in problem for problem in verify(case.memory).problems)
    case.watch()
    case.store.before = lambda _operation, _key: None
    [outcome] = sync(case.vault.layout, [case.target], check=True)
    assert outcome.is_up_to_date
    case.finish()


def test_a_put_that_is_stored_changed_is_found_by_reading(case: Case) -> None:
    case.store.add(ChangePut(flip(), "segments/"))
    assert case.sync().is_up_to_date
    assert verify(case.memory).problems == []
    assert len(verify(case.memory, read_share=1.0).problems) == 1


@pytest.mark.parametrize("answer", [None, 1, 10**18])
@pytest.mark.parametrize("key", ["segments/", "heads/"])
def test_a_wrong_answer_about_a_size(case: Case, key: str, answer: int | None) -> None:
    case.store.add(ChangeSize(answer, key))
    assert type(case.sync().error) is RemoteError
    case.finish()


def test_a_replaced_header_that_was_not_stored(case: Case) -> None:
    """The old one has the same size."""
    assert case.sync().is_up_to_date
    case.vault.write_header(mac="first")
    assert case.sync().is_up_to_date
    case.vault.write_header(mac="other")
    case.store.add(LosePut(HEADER_KEY))
    outcome = case.sync()
    assert type(outcome.error) is RemoteError
    assert "do not rely on this remote" in str(outcome.error)
    case.finish()


def test_a_store_that_refuses_to_create_what_it_lacks(case: Case) -> None:
    """S3 answers 409 while somebody else creates the same object, and that may come to nothing."""
    case.store.add(Fail(ObjectExistsError("busy"), "put", HEADER_KEY))
    error = case.sync().error
    assert type(error) is RemoteError
    assert "sync again" in str(error)
    case.finish()


def test_a_listing_that_leaves_everything_out(case: Case) -> None:
    assert case.sync().is_up_to_date
    case.store.add(ChangeList(omit(), times=None))
    for check in (False, True):
        [outcome] = sync(case.vault.layout, [case.target], check=check)
        assert outcome == TargetOutcome("away", 0, 0, 0, is_up_to_date=True, error=None)
    case.target.ledger.path.unlink()
    [outcome] = sync(case.vault.layout, [case.target])
    assert (outcome.is_up_to_date, outcome.segments) == (True, 5)  # without ledger and listing all is sent again
    case.finish()


def test_a_listing_that_leaves_one_out(case: Case) -> None:
    assert case.sync().is_up_to_date
    for key in [key for key in case.memory.objects if key != HEADER_KEY]:
        case.store.heal()
        case.store.add(ChangeList(omit(key), times=None))
        for check in (False, True):
            [outcome] = sync(case.vault.layout, [case.target], check=check)
            assert outcome == TargetOutcome("away", 0, 0, 0, is_up_to_date=True, error=None)
    case.finish()


def test_a_listing_that_repeats(case: Case) -> None:
    case.store.add(ChangeList(repeat(3), times=None))
    assert case.sync().is_up_to_date
    [outcome] = sync(case.vault.layout, [case.target], check=True)
    assert outcome.segments == 0
    case.finish()


ABSURD = [
    "heads/../../etc/passwd",
    "heads/x",
    "heads/" + "a" * 64 + "/9999999999-" + "b" * 63,
    "heads/" + "a" * 64 + "/0000000000-" + "b" * 64,
    "heads/" + "a" * 64 + "/99999999999999999999999-" + "b" * 64,
    "segments/aa/" + "b" * 64,
    "segments/" + "b" * 64,
    "segments/bb/" + "b" * 64 + "/x",
    "segments/bb/\0",
    "",
]


def test_a_listing_with_absurd_names(case: Case) -> None:
    case.store.add(ChangeList(invent(*(ObjectInfo(key, 10) for key in ABSURD)), times=None))
    assert case.sync().is_up_to_date
    [outcome] = sync(case.vault.layout, [case.target], check=True)
    assert outcome.is_up_to_date
    case.finish()


def test_a_listing_with_wrong_sizes(case: Case) -> None:
    """What is listed with another size is sent again: better too much than a gap."""
    assert case.sync().is_up_to_date
    case.store.add(ChangeList(resize(7), times=None))
    [outcome] = sync(case.vault.layout, [case.target], check=True)
    assert outcome.is_up_to_date
    assert outcome.segments == 5
    case.finish()


def test_a_listing_without_end(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vaultfs.sync.remote_objects.MOST_OBJECTS", 1000)
    case.store.add(ChangeList(invent(*[ObjectInfo("heads/x", 1)] * 2000)))
    outcome = case.sync()
    assert type(outcome.error) is RemoteError
    assert "more than 1000" in str(outcome.error)
    case.finish()


@pytest.mark.parametrize("prefix", ["heads/", "segments/"])
def test_a_listing_that_breaks_off(case: Case, prefix: str) -> None:
    assert case.sync().is_up_to_date
    case.store.add(BreakBody(1, operation="list", key=prefix))
    [outcome] = sync(case.vault.layout, [case.target], check=True)
    assert isinstance(outcome.error, RemoteUnreachableError)
    case.finish()


def test_a_store_that_lists_late(scratch: Path) -> None:
    vault = small_vault(scratch / "vault")
    store = MemoryStore("memory:late", lists_at_once=False)
    away = target(vault, store, scratch / "state")
    for _ in range(3):
        [outcome] = sync(vault.layout, [away])
        assert outcome.is_up_to_date
    assert sum(operation == "put" for operation, _ in store.requests) == 9


def test_a_ledger_that_cannot_be_written(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("vaultfs.sync.ledger.write_all", full)
        outcome = case.sync()
    assert isinstance(outcome.error, VaultError)
    assert not outcome.is_up_to_date
    case.finish()


def test_many_vaults_of_chance(scratch: Path) -> None:
    """Snapshots come and go between syncs that fail; in the end the remote has what there is."""
    for seed in range(15):
        vault = Fabricated(scratch / f"vault{seed}", seed)
        memory = MemoryStore("memory:one")
        store = FaultyStore(memory, RandomFailures(seed, 0.1))
        away = target(vault, store, scratch / f"state{seed}")
        kept: list[Path] = []
        for _ in range(12):
            for _ in range(vault.random.randrange(3)):
                known = list(vault.segments)
                reused = vault.random.sample(known, min(len(known), vault.random.randrange(4)))
                manifest = vault.snapshot(*{*reused, vault.segment()})
                kept.append(vault.path_of(manifest))
            if len(kept) > 2 and vault.random.random() < 0.5:
                kept.pop(vault.random.randrange(len(kept))).unlink()
            sync(vault.layout, [away], check=vault.random.random() < 0.2)
            require_complete_heads(memory)
        store.heal()
        [outcome] = sync(vault.layout, [away])
        assert outcome.is_up_to_date, outcome.error
        report = verify(memory, read_share=1.0)
        assert report.problems == []
        shown = {key[-64:] for key in memory.objects if key.startswith("heads/")}
        assert {path.name[11:75] for path in kept} <= shown
