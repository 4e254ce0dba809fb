"""Whose remote it is, and whose history: nothing is written where either is not ours."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from remotes.faults import EndlessBody, FailAfter, FaultyStore
from remotes.memory_store import MemoryStore

from sync.fabricated import OTHER_DEVICE, Fabricated, require_same, small_vault, target
from vaultfs.errors import (
    ForkedError,
    FormatTooNewError,
    IntegrityError,
    RemoteUnreachableError,
    UsageError,
    VaultError,
)
from vaultfs.storage.layout import VaultLayout
from vaultfs.storage.manifest_format import Manifest, manifest_hash
from vaultfs.sync.download import fetch, heads
from vaultfs.sync.local_vault import list_manifests
from vaultfs.sync.remote_layout import HEADER_KEY
from vaultfs.sync.upload import Target, TargetOutcome, sync


def one(vault: Fabricated, away: Target, *, check: bool = False, dry_run: bool = False) -> TargetOutcome:
    [outcome] = sync(vault.layout, [away], check=check, dry_run=dry_run)
    return outcome


def refused(vault: Fabricated, away: Target, store: MemoryStore, error: type[VaultError]) -> VaultError:
    """A sync that must write nothing, however it is asked."""
    before = dict(store.objects)
    for check, dry_run in ((False, False), (True, False), (False, True), (False, False)):
        store.requests.clear()
        outcome = one(vault, away, check=check, dry_run=dry_run)
        assert type(outcome.error) is error
        assert (outcome.segments, outcome.bytes, outcome.manifests, outcome.is_up_to_date) == (0, 0, 0, False)
        assert store.objects == before
        assert not any(operation in {"put", "delete"} for operation, _ in store.requests)
    assert outcome.error is not None
    return outcome.error


def copied(vault: Fabricated, root: Path) -> Fabricated:
    """The same vault on another machine."""
    shutil.copytree(vault.layout.root, root)
    copy = Fabricated.__new__(Fabricated)
    copy.__dict__.update(vault.__dict__)
    copy.layout = VaultLayout(root)
    copy.segments = dict(vault.segments)
    return copy


# --- another vault, another format


def test_another_vault(vault: Fabricated, away: Target, store: MemoryStore, scratch: Path) -> None:
    other = small_vault(scratch / "other", seed=2)
    assert one(other, target(other, store, scratch / "others state")).is_up_to_date
    error = refused(vault, away, store, UsageError)
    assert "holds another vault" in str(error)
    assert "memory:one" in str(error)


def test_a_remote_that_was_exchanged_for_another_vaults(
    vault: Fabricated, away: Target, store: MemoryStore, scratch: Path
) -> None:
    assert one(vault, away).is_up_to_date
    store.objects.clear()
    other = small_vault(scratch / "other", seed=2)
    assert one(other, target(other, store, scratch / "others state")).is_up_to_date
    refused(vault, away, store, UsageError)


def test_a_newer_format_there(vault: Fabricated, away: Target, store: MemoryStore) -> None:
    store.objects[HEADER_KEY] = json.dumps({"type": "vaultfs vault", "format": 2, "new": True}).encode()
    refused(vault, away, store, FormatTooNewError)
    assert one(vault, away).segments == 0


@pytest.mark.parametrize(
    "content", [b"", b"<html>please log in</html>", b"[" * 100_000, b"{" * 100, b"\xff\xfe", b" " * (3 << 20)]
)
def test_something_else_there(vault: Fabricated, away: Target, store: MemoryStore, content: bytes) -> None:
    store.objects[HEADER_KEY] = content
    error = refused(vault, away, store, IntegrityError)
    assert "nothing was written" in str(error)


def test_a_header_that_was_damaged_there_is_put_again(
    vault: Fabricated, away: Target, store: MemoryStore, scratch: Path
) -> None:
    assert one(vault, away).is_up_to_date
    store.objects[HEADER_KEY] = b"garbage"
    assert one(vault, away).is_up_to_date
    require_same(vault, store, scratch / "back")


def test_a_huge_header_is_not_read_to_its_end(vault: Fabricated, away: Target, store: MemoryStore) -> None:
    faulty = FaultyStore(store, EndlessBody(HEADER_KEY))
    [outcome] = sync(vault.layout, [Target("away", faulty, away.ledger)])
    assert isinstance(outcome.error, IntegrityError)


def test_two_vaults_race_for_one_remote(vault: Fabricated, away: Target, store: MemoryStore, scratch: Path) -> None:
    other = small_vault(scratch / "other", seed=2)
    faulty = FaultyStore(store)

    def race(operation: str, key: str) -> None:
        if (operation, key) == ("put", HEADER_KEY) and HEADER_KEY not in store.objects:
            store.objects[HEADER_KEY] = other.layout.header.read_bytes()

    faulty.before = race
    [outcome] = sync(vault.layout, [Target("away", faulty, away.ledger)])
    assert isinstance(outcome.error, ForkedError)
    assert store.objects == {HEADER_KEY: other.layout.header.read_bytes()}


# --- headers of another device


def test_a_newer_key_there(vault: Fabricated, away: Target, store: MemoryStore, scratch: Path) -> None:
    assert one(vault, away).is_up_to_date
    vault.write_header(epoch=3)
    store.objects[HEADER_KEY] = vault.layout.header.read_bytes()
    vault.write_header(epoch=2)
    refused(vault, away, store, ForkedError)
    refused(vault, target(vault, store, scratch / "new state"), store, ForkedError)


def test_a_password_that_another_device_changed(vault: Fabricated, away: Target, store: MemoryStore) -> None:
    assert one(vault, away).is_up_to_date
    vault.write_header(mac="new")
    store.objects[HEADER_KEY] = vault.layout.header.read_bytes()
    vault.write_header(mac="own")
    error = refused(vault, away, store, ForkedError)
    assert "changed by another device" in str(error)


def test_a_header_whose_put_was_not_acknowledged_is_ours(vault: Fabricated, away: Target, store: MemoryStore) -> None:
    assert one(vault, away).is_up_to_date
    vault.write_header(mac="second")
    faulty = FaultyStore(store, FailAfter(RemoteUnreachableError("cut"), "put", HEADER_KEY))
    [outcome] = sync(vault.layout, [Target("away", faulty, away.ledger)])
    assert not outcome.is_up_to_date
    vault.write_header(mac="third")
    assert one(vault, away).is_up_to_date
    assert store.objects[HEADER_KEY] == vault.layout.header.read_bytes()


# --- histories


def test_another_device_went_on(vault: Fabricated, away: Target, store: MemoryStore, scratch: Path) -> None:
    assert one(vault, away).is_up_to_date
    other = copied(vault, scratch / "copy")
    other.snapshot(other.segment(), device=OTHER_DEVICE)
    assert one(other, target(other, store, scratch / "others state")).is_up_to_date
    vault.segment()
    error = refused(vault, away, store, ForkedError)
    assert "snapshot 4" in str(error)
    assert OTHER_DEVICE.hex()[:12] in str(error)
    assert "--adopt" in str(error)
    assert "--fork" in str(error)
    # Both went on.
    vault.snapshot(vault.segment())
    refused(vault, away, store, ForkedError)
    # Also without a ledger.
    refused(vault, target(vault, store, scratch / "new state"), store, ForkedError)


def test_an_older_copy_that_went_on(vault: Fabricated, away: Target, store: MemoryStore, scratch: Path) -> None:
    """It took the same numbers."""
    other = copied(vault, scratch / "copy")
    vault.snapshot(vault.segment())
    assert one(vault, away).is_up_to_date
    other.snapshot(other.segment(10))
    refused(other, target(other, store, scratch / "others state"), store, ForkedError)


def test_snapshots_deleted_here_are_still_ours(
    vault: Fabricated, away: Target, store: MemoryStore, scratch: Path
) -> None:
    assert one(vault, away).is_up_to_date
    for manifest in list_manifests(vault.layout)[:2]:
        vault.path_of(manifest).unlink()
    vault.snapshot(vault.segment())
    store.requests.clear()
    assert one(vault, away).is_up_to_date
    assert sum(operation == "get" for operation, _ in store.requests) == 1
    assert [head.seq for head in heads(store)] == [1, 2, 3, 4]


def test_without_a_ledger_the_chain_tells_what_is_ours(
    vault: Fabricated, away: Target, store: MemoryStore, scratch: Path
) -> None:
    for _ in range(4):
        vault.snapshot(vault.segment())
    assert one(vault, away).is_up_to_date
    kept = list_manifests(vault.layout)
    for manifest in kept[1:-1]:  # 1 and 7 are left: 2 to 6 are between them
        vault.path_of(manifest).unlink()
    vault.layout.history.unlink()
    again = target(vault, store, scratch / "new state")
    store.requests.clear()
    assert one(vault, again).is_up_to_date
    assert sum(key.startswith("heads/") for operation, key in store.requests if operation == "get") == 4
    store.requests.clear()
    assert one(vault, again).is_up_to_date  # now the ledger knows
    assert len(store.requests) == 2


def test_without_a_ledger_and_with_a_gap_in_the_chain(
    vault: Fabricated, away: Target, store: MemoryStore, scratch: Path
) -> None:
    """A snapshot that was made and deleted between two syncs is nowhere; the vault knows what it has made."""
    assert one(vault, away).is_up_to_date
    vault.snapshot(vault.segment())
    vault.snapshot(vault.segment())
    for manifest in list_manifests(vault.layout)[1:-1]:  # 1 and 5 are left, and 4 was never sent
        vault.path_of(manifest).unlink()
    history = vault.layout.history.read_bytes()
    vault.layout.history.unlink()
    refused(vault, target(vault, store, scratch / "state without history"), store, ForkedError)
    vault.layout.history.write_bytes(b"torn" + history + b"\n000")
    again = target(vault, store, scratch / "new state")
    assert one(vault, again).is_up_to_date
    store.requests.clear()
    assert one(vault, again).is_up_to_date
    assert len(store.requests) == 2


def test_older_than_all_of_ours_is_ignored(vault: Fabricated, away: Target, store: MemoryStore, scratch: Path) -> None:
    assert one(vault, away).is_up_to_date
    layout = VaultLayout(scratch / "restored")
    fetch(store, layout, heads(store)[-1])
    restored = copied(vault, scratch / "unused")
    restored.layout = layout
    restored.snapshot(restored.segment())
    again = target(restored, store, scratch / "new state")
    store.requests.clear()
    assert one(restored, again).is_up_to_date
    assert sum(key.startswith("heads/") for operation, key in store.requests if operation == "get") == 0
    assert [head.seq for head in heads(store)] == [1, 2, 3, 4]


def test_an_older_snapshot_restored_is_behind(
    vault: Fabricated, away: Target, store: MemoryStore, scratch: Path
) -> None:
    assert one(vault, away).is_up_to_date
    restored = copied(vault, scratch / "unused")
    restored.layout = VaultLayout(scratch / "restored")
    fetch(store, restored.layout, heads(store)[0])
    refused(restored, target(restored, store, scratch / "new state"), store, ForkedError)


def test_nothing_known_here_and_snapshots_there(
    vault: Fabricated, away: Target, store: MemoryStore, scratch: Path
) -> None:
    assert one(vault, away).is_up_to_date
    for manifest in list_manifests(vault.layout):
        vault.path_of(manifest).unlink()
    vault.layout.history.unlink()
    again = target(vault, store, scratch / "new state")
    refused(vault, again, store, ForkedError)
    vault.snapshot(vault.segment())  # it names the one before, so it is known again
    assert one(vault, again).is_up_to_date


def planted(store: MemoryStore, vault: Fabricated, seq: int, **changes: bytes) -> str:
    """A manifest that somebody has put on the remote."""
    manifest = Manifest(
        changes.get("vault_id", vault.vault_id),  # type: ignore[arg-type]
        OTHER_DEVICE,
        seq,  # type: ignore[arg-type]
        0,
        None,
        (),
        b"",
    )
    data = changes.get("data") or manifest.encode(bytes(64))
    digest = changes["hash"].decode() if "hash" in changes else manifest_hash(data)
    device = changes.get("device", OTHER_DEVICE).hex()
    key = f"heads/{device}/{seq:010d}-{digest}"
    store.objects[key] = data
    return key


def test_planted_snapshots(vault: Fabricated, away: Target, store: MemoryStore) -> None:
    assert one(vault, away).is_up_to_date
    key = planted(store, vault, 99)
    refused(vault, away, store, ForkedError)
    del store.objects[key]
    for change in (
        {"data": b"garbage", "hash": b"a" * 64},
        {"data": b"garbage"},
        {"device": bytes(32)},
        {"vault_id": bytes(16)},
    ):
        key = planted(store, vault, 99, **change)
        error = refused(vault, away, store, IntegrityError)
        assert "99" in str(error) or "manifest" in str(error)
        del store.objects[key]
    assert one(vault, away).is_up_to_date


def test_a_planted_name_beside_ours_does_not_stand_for_ours(
    vault: Fabricated, away: Target, store: MemoryStore, scratch: Path
) -> None:
    """Our hash under another device: our own has to be there all the same."""
    manifest = list_manifests(vault.layout)[0]
    store.objects[f"heads/{OTHER_DEVICE.hex()}/{manifest.seq:010d}-{manifest.hash}"] = b"x"
    outcome = one(vault, away)
    assert outcome.is_up_to_date
    assert outcome.manifests == 3
    found = [head for head in heads(store) if head.device != OTHER_DEVICE.hex()]
    assert [head.seq for head in found] == [1, 2, 3]
