"""What is wrong on this machine: damaged, holed or vanished segments and manifests."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest
from remotes.faults import FaultyStore
from remotes.memory_store import MemoryStore

from sync.fabricated import Fabricated, require_complete_heads, require_same, target
from vaultfs.errors import FormatTooNewError, IntegrityError, StorageError
from vaultfs.ids import SegmentName
from vaultfs.storage.manifest_format import manifest_hash
from vaultfs.storage.segment_reader import punch
from vaultfs.sync.local_vault import LocalManifest, ManifestHold, list_manifests
from vaultfs.sync.remote_layout import LARGEST_SEGMENT_BYTES, segment_key
from vaultfs.sync.upload import Target, TargetOutcome, missing, sync


def one(vault: Fabricated, away: Target) -> TargetOutcome:
    [outcome] = sync(vault.layout, [away])
    return outcome


def shown(store: MemoryStore) -> list[int]:
    """The numbers of the snapshots on a remote."""
    return sorted(int(key[71:81]) for key in store.objects if key.startswith("heads/"))


def third(vault: Fabricated) -> SegmentName:
    """The segment that only snapshot 2 needs."""
    return list(vault.segments)[2]


def replaced(vault: Fabricated, name: SegmentName, how: str) -> None:
    path = vault.layout.sealed_path(name)
    data = vault.segments[name]
    if how == "flipped":
        vault.spoil(name, data[:-1] + bytes([data[-1] ^ 1]))
    elif how == "short":
        vault.spoil(name, data[:-1])
    elif how == "long":
        vault.spoil(name, data + b"x")
    elif how == "empty":
        vault.spoil(name, b"")
    else:
        path.unlink()
        if how == "symlink":
            other = path.with_name("elsewhere")
            other.write_bytes(data)
            path.symlink_to(other)
        elif how == "fifo":
            os.mkfifo(path)
        elif how == "directory":
            path.mkdir()


@pytest.mark.parametrize("how", ["flipped", "short", "long", "empty", "missing", "symlink", "fifo", "directory"])
def test_a_bad_segment_is_never_sent_and_others_are(
    vault: Fabricated, away: Target, store: MemoryStore, scratch: Path, how: str
) -> None:
    name = third(vault)
    replaced(vault, name, how)
    for _ in range(2):  # the second goes on from the ledger, and says the same
        outcome = one(vault, away)
        assert isinstance(outcome.error, IntegrityError)
        assert name in str(outcome.error)
        assert "snapshot 2 was not sent" in str(outcome.error)
        assert not outcome.is_up_to_date
        assert segment_key(name) not in store.objects
        assert shown(store) == [1, 3]
        require_complete_heads(store)
    path = vault.layout.sealed_path(name)
    if how == "directory":
        path.rmdir()
    else:
        path.unlink(missing_ok=True)
    path.write_bytes(vault.segments[name])
    assert one(vault, away).is_up_to_date
    require_same(vault, store, scratch / "back")


def test_a_segment_with_holes_says_so(scratch: Path, store: MemoryStore) -> None:
    vault = Fabricated(scratch / "vault")
    name = vault.segment(64 << 10)
    vault.snapshot(name)
    assert punch(vault.layout.sealed_path(name), 8192, 16384)
    outcome = one(vault, target(vault, store, scratch / "state"))
    assert isinstance(outcome.error, IntegrityError)
    assert "has holes" in str(outcome.error)
    assert "made before the vault had a remote; run vaultfs sync while it is mounted, or with a password" in str(
        outcome.error
    )
    assert shown(store) == []
    assert segment_key(name) not in store.objects


def test_a_damaged_segment_without_holes_does_not_speak_of_holes(vault: Fabricated, away: Target) -> None:
    replaced(vault, third(vault), "flipped")
    assert "holes" not in str(one(vault, away).error)
    assert "damaged" in str(one(vault, away).error)


def test_a_sparse_file_with_the_right_bytes_is_sent(scratch: Path, store: MemoryStore) -> None:
    vault = Fabricated(scratch / "vault")
    data = os.urandom(4096) + bytes(65536) + os.urandom(4096)
    name = vault.segment(data=data)
    path = vault.layout.sealed_path(name)
    path.unlink()
    with path.open("wb") as file:
        file.write(data[:4096])
        file.seek(4096 + 65536)
        file.write(data[-4096:])
    vault.snapshot(name)
    assert one(vault, target(vault, store, scratch / "state")).is_up_to_date


def test_a_bad_segment_that_all_need(vault: Fabricated, away: Target, store: MemoryStore) -> None:
    second = list(vault.segments)[1]
    vault.layout.sealed_path(second).unlink()
    outcome = one(vault, away)
    assert isinstance(outcome.error, IntegrityError)
    assert shown(store) == []


def test_what_only_a_lost_snapshot_needs_is_not_sent(scratch: Path, store: MemoryStore) -> None:
    vault = Fabricated(scratch / "vault")
    names = sorted(vault.segment() for _ in range(6))
    vault.snapshot(*names)
    vault.snapshot(names[5])
    vault.spoil(names[0], b"x")
    [outcome] = sync(vault.layout, [target(vault, store, scratch / "state")], connections=1)
    assert isinstance(outcome.error, IntegrityError)
    assert shown(store) == [2]
    assert [key for key in store.objects if key.startswith("segments/")] == [segment_key(names[5])]


def test_a_segment_of_absurd_size(vault: Fabricated, away: Target, store: MemoryStore) -> None:
    name = vault.segment(10)
    vault.segments[name] = bytes(LARGEST_SEGMENT_BYTES + 1)
    vault.snapshot(name)
    del vault.segments[name]
    outcome = one(vault, away)
    assert isinstance(outcome.error, IntegrityError)
    assert "which no segment has" in str(outcome.error)
    assert shown(store) == [1, 2, 3]


def test_a_disk_that_fails(
    vault: Fabricated, away: Target, store: MemoryStore, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = vault.layout.sealed_path(third(vault))
    inode = bad.stat().st_ino
    real = os.preadv

    def failing(descriptor: int, buffers: list[memoryview], offset: int) -> int:
        if os.fstat(descriptor).st_ino == inode:
            raise OSError(5, "Input/output error")
        return real(descriptor, buffers, offset)

    with monkeypatch.context() as patch:
        patch.setattr(os, "preadv", failing)
        outcome = one(vault, away)
    assert isinstance(outcome.error, StorageError)
    assert shown(store) == [1, 3]
    assert one(vault, away).is_up_to_date
    require_same(vault, store, scratch / "back")


# --- manifests


@pytest.mark.parametrize("what", [b"", b"VFSMAN\0\x01", b"x" * 500])
def test_a_damaged_manifest_is_left_out(vault: Fabricated, away: Target, store: MemoryStore, what: bytes) -> None:
    path = vault.path_of(list_manifests(vault.layout)[1])
    path.write_bytes(what)
    outcome = one(vault, away)
    assert isinstance(outcome.error, IntegrityError)
    assert "snapshot 2" in str(outcome.error)
    assert shown(store) == [1, 3]
    assert missing(vault.layout, away).manifests == 1


def named(vault: Fabricated, data: bytes, seq: int) -> None:
    vault.layout.manifest_path(seq, manifest_hash(data)).write_bytes(data)


def test_manifests_that_are_not_of_this_place(vault: Fabricated, away: Target, scratch: Path) -> None:
    other = Fabricated(scratch / "other", seed=2)
    foreign = other.path_of(other.snapshot()).read_bytes()
    named(vault, foreign, 5)
    named(vault, vault.path_of(list_manifests(vault.layout)[0]).read_bytes(), 6)
    outcome = one(vault, away)
    assert isinstance(outcome.error, IntegrityError)
    assert outcome.manifests == 3


def test_a_manifest_of_a_newer_format_is_left_out(vault: Fabricated, away: Target, store: MemoryStore) -> None:
    named(vault, b"VFSMAN\0\x02" + bytes(100), 9)
    outcome = one(vault, away)
    assert isinstance(outcome.error, FormatTooNewError)
    assert shown(store) == [1, 2, 3]


def test_other_names_in_heads_are_ignored(vault: Fabricated, away: Target) -> None:
    for name in ("HEAD", "x.manifest", "1-" + "a" * 64 + ".manifest", "00000000001-" + "a" * 64 + ".manifest"):
        (vault.layout.heads / name).write_bytes(b"x")
    (vault.layout.heads / f"0000000009-{'b' * 64}.manifest").mkdir()
    (vault.layout.heads / f"0000000008-{'c' * 64}.manifest").symlink_to("/dev/zero")
    assert one(vault, away).is_up_to_date


# --- snapshots that go meanwhile


def test_a_snapshot_deleted_before_its_turn_is_skipped(
    vault: Fabricated, away: Target, store: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vaultfs.sync.plan.ROUND_MANIFESTS", 1)
    last = list_manifests(vault.layout)[2]
    busy = FaultyStore(store)

    def delete(operation: str, key: str) -> None:
        if (operation, key[:5]) == ("put", "heads"):
            vault.path_of(last).unlink(missing_ok=True)
            for name in list(vault.segments)[3:]:
                vault.layout.sealed_path(name).unlink(missing_ok=True)

    busy.before = delete
    [outcome] = sync(vault.layout, [Target("away", busy, away.ledger)])
    assert outcome.error is None
    assert outcome.is_up_to_date
    assert shown(store) == [1, 2]


def test_a_snapshot_deleted_between_listing_and_planning_is_skipped(
    vault: Fabricated, away: Target, store: MemoryStore
) -> None:
    busy = FaultyStore(store)
    busy.before = lambda operation, key: (
        vault.path_of(list_manifests(vault.layout)[0]).unlink()
        if (
            operation,
            key,
        )
        == ("list", "segments/")
        else None
    )
    [outcome] = sync(vault.layout, [Target("away", busy, away.ledger)])
    assert outcome.is_up_to_date
    assert shown(store) == [2, 3]


def test_a_segment_gone_with_its_snapshot_is_no_error(vault: Fabricated, away: Target, store: MemoryStore) -> None:
    """As when an unfinished snapshot is given up, which asks for no lock."""
    busy = FaultyStore(store)
    second = list_manifests(vault.layout)[1]

    def delete(operation: str, key: str) -> None:
        if (operation, key) == ("put", "vault.json"):
            return
        if operation == "put" and vault.path_of(second).exists():
            vault.path_of(second).unlink()
            vault.layout.sealed_path(third(vault)).unlink()

    busy.before = delete
    [outcome] = sync(vault.layout, [Target("away", busy, away.ledger)], connections=1)
    assert outcome.error is None
    assert outcome.is_up_to_date
    assert set(shown(store)) >= {1, 3}
    require_complete_heads(store)


def test_a_snapshot_is_held_while_it_is_sent(vault: Fabricated, away: Target, store: MemoryStore) -> None:
    busy = FaultyStore(store)
    refused = 0

    def delete(operation: str, key: str) -> None:
        nonlocal refused
        if operation == "put" and key != "vault.json":
            for manifest in list_manifests(vault.layout):
                with vault.path_of(manifest).open("rb") as file:
                    try:
                        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    except BlockingIOError:
                        refused += 1

    busy.before = delete
    [outcome] = sync(vault.layout, [Target("away", busy, away.ledger)])
    assert outcome.is_up_to_date
    assert refused == 8 * 3
    for manifest in list_manifests(vault.layout):
        with vault.path_of(manifest).open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_a_snapshot_that_is_being_deleted_is_skipped(vault: Fabricated, away: Target, store: MemoryStore) -> None:
    first = list_manifests(vault.layout)[0]
    with vault.path_of(first).open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        outcome = one(vault, away)
        assert outcome.error is None
        assert shown(store) == [2, 3]
    assert one(vault, away).is_up_to_date
    assert shown(store) == [1, 2, 3]


def test_a_hold(vault: Fabricated) -> None:
    first = list_manifests(vault.layout)[0]
    hold = ManifestHold.take(vault.layout, first)
    again = ManifestHold.take(vault.layout, first)
    assert hold is not None
    assert again is not None
    assert hold.read() == vault.path_of(first).read_bytes()
    assert not hold.is_deleted()
    vault.path_of(first).unlink()
    assert hold.is_deleted()
    assert hold.content(vault.vault_id).seq == 1
    hold.release()
    hold.release()
    again.release()
    assert ManifestHold.take(vault.layout, first) is None


@pytest.mark.parametrize("kind", ["symlink", "fifo", "directory"])
def test_something_else_in_a_manifests_place(vault: Fabricated, kind: str) -> None:
    manifest = LocalManifest(list_manifests(vault.layout)[0].seq, "a" * 64)
    path = vault.path_of(manifest)
    if kind == "symlink":
        path.symlink_to(vault.path_of(list_manifests(vault.layout)[0]))
    elif kind == "fifo":
        os.mkfifo(path)
    else:
        path.mkdir()
    with pytest.raises(StorageError):
        ManifestHold.take(vault.layout, manifest)


def test_a_vault_without_heads(scratch: Path, store: MemoryStore) -> None:
    vault = Fabricated(scratch / "vault")
    vault.layout.heads.rmdir()
    assert one(vault, target(vault, store, scratch / "state")).is_up_to_date
