"""What a sync sends, what it costs, and what it says."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from remotes.faults import Fail, FaultyStore
from remotes.memory_store import MemoryStore

from sync.fabricated import Fabricated, require_same, target
from vaultfs.errors import (
    FormatTooNewError,
    NoSpaceError,
    NotAVaultError,
    RemoteRefusedError,
    RemoteUnreachableError,
    UsageError,
    VaultLockedError,
)
from vaultfs.ids import SegmentName
from vaultfs.remotes.bodies import opened
from vaultfs.remotes.store import Source
from vaultfs.storage.layout import VaultLayout
from vaultfs.sync import rounds
from vaultfs.sync.remote_layout import HEADER_KEY, segment_key
from vaultfs.sync.sealed_source import SegmentSource, open_source
from vaultfs.sync.upload import Missing, StoppedError, SyncProgress, Target, TargetOutcome, missing, sync


def costs(store: MemoryStore) -> dict[str, int]:
    """Requests since the last time, by kind."""
    found: dict[str, int] = {}
    for operation, key in store.requests:
        kind = f"{operation} {key.partition('/')[0]}"
        found[kind] = found.get(kind, 0) + 1
    store.requests.clear()
    return found


def one(vault: Fabricated, away: Target, *, check: bool = False, dry_run: bool = False) -> TargetOutcome:
    [outcome] = sync(vault.layout, [away], check=check, dry_run=dry_run)
    return outcome


def test_everything_is_sent_and_comes_back(vault: Fabricated, away: Target, store: MemoryStore, scratch: Path) -> None:
    outcome = one(vault, away)
    assert outcome == TargetOutcome("away", 5, outcome.bytes, 3, is_up_to_date=True, error=None)
    manifests = sum(path.stat().st_size for path in vault.layout.heads.glob("*.manifest"))
    assert outcome.bytes == sum(map(len, vault.segments.values())) + manifests
    require_same(vault, store, scratch / "back")
    assert len(store.objects) == 1 + 5 + 3


def test_what_a_first_sync_costs(vault: Fabricated, away: Target, store: MemoryStore) -> None:
    one(vault, away)
    assert costs(store) == {
        "get vault.json": 2,
        "list heads": 1,
        "list segments": 1,
        "put vault.json": 1,
        "put segments": 5,
        "size_bytes segments": 5,
        "put heads": 3,
        "size_bytes heads": 3,
    }


def test_a_sync_without_a_change_costs_two_requests_and_opens_nothing(
    vault: Fabricated, away: Target, store: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    one(vault, away)
    costs(store)
    for path in vault.layout.segments.rglob("*.seg"):
        path.unlink()
    monkeypatch.setattr("vaultfs.sync.local_vault.ManifestHold.take", lambda *_: pytest.fail("opened a manifest"))
    assert one(vault, away) == TargetOutcome("away", 0, 0, 0, is_up_to_date=True, error=None)
    assert costs(store) == {"get vault.json": 1, "list heads": 1}


def test_one_snapshot_more_costs_what_it_adds(
    vault: Fabricated, away: Target, store: MemoryStore, scratch: Path
) -> None:
    one(vault, away)
    costs(store)
    old = next(iter(vault.segments))
    vault.snapshot(old, vault.segment(), vault.segment())
    assert one(vault, away).segments == 2
    assert costs(store) == {
        "get vault.json": 1,
        "list heads": 1,
        "put segments": 2,
        "size_bytes segments": 2,
        "put heads": 1,
        "size_bytes heads": 1,
    }
    require_same(vault, store, scratch / "back")


def test_a_lost_ledger_costs_a_listing(vault: Fabricated, store: MemoryStore, scratch: Path) -> None:
    one(vault, target(vault, store, scratch / "state"))
    costs(store)
    again = target(vault, store, scratch / "other state")
    assert one(vault, again, dry_run=True) == TargetOutcome("away", 0, 0, 0, is_up_to_date=True, error=None)
    costs(store)
    assert one(vault, again) == TargetOutcome("away", 0, 0, 0, is_up_to_date=True, error=None)
    assert costs(store) == {"get vault.json": 1, "list heads": 1, "list segments": 1}
    assert one(vault, again).is_up_to_date
    assert costs(store) == {"get vault.json": 1, "list heads": 1}


def test_a_damaged_ledger_costs_a_listing(vault: Fabricated, away: Target, store: MemoryStore) -> None:
    one(vault, away)
    costs(store)
    data = bytearray(away.ledger.path.read_bytes())
    data[200] ^= 1
    away.ledger.path.write_bytes(data)
    assert one(vault, away) == TargetOutcome("away", 0, 0, 0, is_up_to_date=True, error=None)
    assert costs(store)["list segments"] == 1
    assert one(vault, away).is_up_to_date
    assert "list segments" not in costs(store)


def test_a_vault_without_snapshots(scratch: Path, store: MemoryStore) -> None:
    vault = Fabricated(scratch / "empty")
    away = target(vault, store, scratch / "state")
    assert one(vault, away) == TargetOutcome("away", 0, 0, 0, is_up_to_date=True, error=None)
    assert store.objects.keys() == {HEADER_KEY}


def test_a_changed_header_is_put(vault: Fabricated, away: Target, store: MemoryStore) -> None:
    one(vault, away)
    vault.write_header(epoch=2)
    assert not missing(vault.layout, away).is_header_current
    assert not one(vault, away, dry_run=True).is_up_to_date
    costs(store)
    assert one(vault, away).is_up_to_date
    assert store.objects[HEADER_KEY] == vault.layout.header.read_bytes()
    assert costs(store) == {
        "get vault.json": 2,
        "list heads": 1,
        "put vault.json": 1,
    }


def test_what_is_put_in_which_order(vault: Fabricated, away: Target, store: MemoryStore) -> None:
    one(vault, away)
    puts = [key.partition("/")[0] for operation, key in store.requests if operation == "put"]
    assert puts == ["vault.json", *["segments"] * 5, *["heads"] * 3]
    heads = [key[71:81] for operation, key in store.requests if (operation, key[:5]) == ("put", "heads")]
    assert heads == ["0000000001", "0000000002", "0000000003"]


def test_small_rounds_put_snapshots_early(
    vault: Fabricated, away: Target, store: MemoryStore, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vaultfs.sync.plan.ROUND_MANIFESTS", 1)
    one(vault, away)
    puts = [key.partition("/")[0] for operation, key in store.requests if operation == "put"]
    assert puts == ["vault.json", *["segments"] * 2, "heads", "segments", "heads", *["segments"] * 2, "heads"]
    require_same(vault, store, scratch / "back")


# --- several remotes


def test_each_segment_is_opened_once_for_all(
    vault: Fabricated, store: MemoryStore, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stores = [store, MemoryStore("memory:two"), MemoryStore("memory:three")]
    targets = [target(vault, each, scratch / "state", each.name[7:]) for each in stores]
    sync(vault.layout, targets[2:])
    extra = vault.segment()
    vault.snapshot(extra)
    asked: list[SegmentName] = []

    def opening(
        layout: VaultLayout, name: SegmentName, size: int, check: Callable[[], None]
    ) -> AbstractContextManager[SegmentSource]:
        asked.append(name)
        return open_source(layout, name, size, check)

    monkeypatch.setattr(rounds, "open_source", opening)
    outcomes = sync(vault.layout, targets)
    assert [outcome.segments for outcome in outcomes] == [6, 6, 1]
    assert sorted(asked) == sorted(vault.segments)
    assert all(outcome.is_up_to_date for outcome in outcomes)
    for number, each in enumerate(stores):
        require_same(vault, each, scratch / f"back{number}")


@pytest.mark.parametrize("skip", range(0, 18, 2))
def test_a_remote_that_fails_does_not_harm_others(
    vault: Fabricated, store: MemoryStore, scratch: Path, skip: int
) -> None:
    bad = FaultyStore(MemoryStore("memory:bad"), Fail(RemoteRefusedError("no"), skip=skip, times=None))
    targets = [
        target(vault, bad, scratch / "state", "bad"),
        target(vault, store, scratch / "state", "good"),
    ]
    failed, good = sync(vault.layout, targets)
    assert isinstance(failed.error, RemoteRefusedError)
    assert not failed.is_up_to_date
    assert good.is_up_to_date
    require_same(vault, store, scratch / "back")
    assert len(bad.requests) <= skip + 4  # those under way in other threads


def test_one_full_remote(vault: Fabricated, store: MemoryStore, scratch: Path) -> None:
    small = MemoryStore("memory:small", quota_bytes=3000)
    targets = [target(vault, small, scratch / "state", "small"), target(vault, store, scratch / "state", "large")]
    full, good = sync(vault.layout, targets)
    assert isinstance(full.error, NoSpaceError)
    assert good.is_up_to_date
    small.quota_bytes = None
    assert one(vault, targets[0]).is_up_to_date
    require_same(vault, small, scratch / "back")


def test_two_syncs_at_once(vault: Fabricated, away: Target, store: MemoryStore) -> None:
    inside: list[TargetOutcome] = []
    busy = FaultyStore(store)
    busy.before = lambda operation, key: inside.extend(sync(vault.layout, [away])) if not inside else None
    [outcome] = sync(vault.layout, [Target("away", busy, away.ledger)])
    assert outcome.is_up_to_date
    assert isinstance(inside[0].error, VaultLockedError)
    assert (inside[0].segments, inside[0].is_up_to_date) == (0, False)


# --- dry run, check, missing


def test_a_dry_run_changes_nothing_and_says_what_would_be(vault: Fabricated, away: Target, store: MemoryStore) -> None:
    dry = one(vault, away, dry_run=True)
    assert not store.objects
    assert not away.ledger.path.exists()
    assert all(operation != "put" for operation, _ in store.requests)
    assert not dry.is_up_to_date
    wet = one(vault, away)
    assert (dry.segments, dry.bytes, dry.manifests) == (wet.segments, wet.bytes, wet.manifests)
    assert one(vault, away, dry_run=True) == TargetOutcome("away", 0, 0, 0, is_up_to_date=True, error=None)


def test_missing_asks_nobody(vault: Fabricated, away: Target, store: MemoryStore) -> None:
    manifests = sum(path.stat().st_size for path in vault.layout.heads.glob("*.manifest"))
    total = sum(map(len, vault.segments.values())) + manifests
    lacks = missing(vault.layout, away)
    assert lacks == Missing(5, total, 3, is_header_current=False, since_ns=10**9)
    assert not lacks.is_nothing
    assert not store.requests
    one(vault, away)
    store.requests.clear()
    assert missing(vault.layout, away) == Missing(0, 0, 0, is_header_current=True, since_ns=None)
    assert missing(vault.layout, away).is_nothing
    new = vault.segment(123)
    vault.snapshot(new)
    lacks = missing(vault.layout, away)
    assert (lacks.segments, lacks.manifests, lacks.since_ns) == (1, 1, 4 * 10**9)
    assert not store.requests


def test_check_sends_what_was_lost_there(vault: Fabricated, away: Target, store: MemoryStore, scratch: Path) -> None:
    one(vault, away)
    names = sorted(vault.segments)
    del store.objects[segment_key(names[0])]
    store.objects[segment_key(names[1])] = b"x"
    assert one(vault, away).is_up_to_date  # the ledger knows no better
    outcome = one(vault, away, check=True)
    assert (outcome.segments, outcome.manifests, outcome.is_up_to_date) == (2, 0, True)
    require_same(vault, store, scratch / "back")


@pytest.mark.parametrize("lost", [("vault.json",), ("heads/",), ("heads/", "segments/"), ("",), ("segments/",)])
def test_what_a_remote_lost_is_noticed(
    vault: Fabricated, away: Target, store: MemoryStore, scratch: Path, lost: tuple[str, ...]
) -> None:
    one(vault, away)
    for key in [key for key in store.objects if key.startswith(lost)]:
        del store.objects[key]
    one(vault, away, check=lost == ("segments/",))
    require_same(vault, store, scratch / "back")
    assert one(vault, away).is_up_to_date


def test_a_damaged_manifest_there_is_replaced(
    vault: Fabricated, away: Target, store: MemoryStore, scratch: Path
) -> None:
    one(vault, away)
    key = next(key for key in store.objects if key.startswith("heads/"))
    store.objects[key] = store.objects[key][:-1]
    assert one(vault, away).manifests == 1
    require_same(vault, store, scratch / "back")


# --- stopping and progress


def test_progress_rises_to_the_total(vault: Fabricated, away: Target) -> None:
    seen: list[SyncProgress] = []
    threads = set()

    def progress(now: SyncProgress) -> None:
        seen.append(now)
        threads.add(threading.current_thread())

    [outcome] = sync(vault.layout, [away], progress=progress)
    assert threads == {threading.current_thread()}
    assert seen[-1] == SyncProgress(outcome.bytes, outcome.bytes)
    assert [now.done_bytes for now in seen] == sorted(now.done_bytes for now in seen)


def test_a_stopped_sync_goes_on_later(vault: Fabricated, away: Target, store: MemoryStore, scratch: Path) -> None:
    """Stop at every question; each run still gets further, and nothing is sent twice."""
    for stop_at in range(1, 60):
        asked = iter(range(stop_at))
        [outcome] = sync(vault.layout, [away], is_stopped=lambda asked=asked: next(asked, None) is None)  # type: ignore[misc]
        if outcome.is_up_to_date:
            break
        assert isinstance(outcome.error, StoppedError)
    assert outcome.is_up_to_date
    puts = [key for operation, key in store.requests if operation == "put" and key != HEADER_KEY]
    assert len(puts) == len(set(puts)) == 8
    require_same(vault, store, scratch / "back")


def test_a_stop_ends_a_put_that_is_under_way(vault: Fabricated, away: Target, store: MemoryStore) -> None:
    begun = threading.Event()

    class Slow(FaultyStore):
        def put(self, key: str, source: Source, *, if_absent: bool = False) -> None:
            if not key.startswith("segments/"):
                super().put(key, source, if_absent=if_absent)
                return
            with opened(key, source) as file:
                begun.set()
                while True:  # as if the network took a byte now and then
                    file.seek(0)
                    file.read(1)
                    threading.Event().wait(0.01)

    [outcome] = sync(vault.layout, [Target("away", Slow(store), away.ledger)], is_stopped=begun.is_set)
    assert isinstance(outcome.error, StoppedError)


def test_what_the_callers_functions_raise_goes_on(vault: Fabricated, away: Target, store: MemoryStore) -> None:
    def interrupt() -> bool:
        if store.objects:
            raise KeyboardInterrupt
        return False

    with pytest.raises(KeyboardInterrupt):
        sync(vault.layout, [away], is_stopped=interrupt)
    assert one(vault, away).is_up_to_date
    assert not [each for each in threading.enumerate() if each.name.startswith("vaultfs-sync")]


# --- bad arguments


@pytest.mark.parametrize("connections", [0, -1, 65])
def test_senseless_numbers_of_connections(vault: Fabricated, away: Target, connections: int) -> None:
    with pytest.raises(UsageError, match="connections"):
        sync(vault.layout, [away], connections=connections)


@pytest.mark.parametrize("connections", [1, 2, 16])
def test_numbers_of_connections(
    vault: Fabricated, away: Target, store: MemoryStore, scratch: Path, connections: int
) -> None:
    at_once = most = 0
    lock = threading.Lock()

    class Counting(FaultyStore):
        def put(self, key: str, source: Source, *, if_absent: bool = False) -> None:
            nonlocal at_once, most
            with lock:
                at_once += 1
                most = max(most, at_once)
            threading.Event().wait(0.002)
            super().put(key, source, if_absent=if_absent)
            with lock:
                at_once -= 1

    [outcome] = sync(vault.layout, [Target("away", Counting(store), away.ledger)], connections=connections)
    assert outcome.is_up_to_date
    assert most <= connections
    require_same(vault, store, scratch / "back")


def test_no_vault(scratch: Path, away: Target, store: MemoryStore) -> None:
    with pytest.raises(NotAVaultError):
        sync(VaultLayout(scratch / "nothing"), [away])
    assert not store.requests


@pytest.mark.parametrize("content", [b"", b"{}", b"[" * 100_000, b"\xff", b"x" * (2 << 20), b'{"type":"x","format":1}'])
def test_a_damaged_header_here(vault: Fabricated, away: Target, store: MemoryStore, content: bytes) -> None:
    vault.layout.header.write_bytes(content)
    with pytest.raises(NotAVaultError):
        sync(vault.layout, [away])
    assert not store.requests


def test_a_newer_format_here(vault: Fabricated, away: Target, store: MemoryStore) -> None:
    vault.write_header(format=2)
    with pytest.raises(FormatTooNewError):
        sync(vault.layout, [away])
    assert not store.requests


def test_no_remotes(vault: Fabricated) -> None:
    assert sync(vault.layout, []) == []


def test_an_unreachable_remote(vault: Fabricated, store: MemoryStore, scratch: Path) -> None:
    gone = FaultyStore(store, Fail(RemoteUnreachableError("no route"), times=None))
    [outcome] = sync(vault.layout, [target(vault, gone, scratch / "state")])
    assert isinstance(outcome.error, RemoteUnreachableError)
    assert len(gone.requests) == 1
