"""Rotation: what it revokes, what it keeps, and how it goes on after a crash between any two steps.

The vault of these tests opens with a recovery key, which needs no slow key derivation.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import vaultfs
from vault_keys.crashing import survives_every_crash
from vault_keys.sample import FILES, KEY, OTHER, THIRD, WEAK, require_files
from vaultfs.crypto.header import VaultHeader
from vaultfs.crypto.slots import Secret
from vaultfs.errors import (
    ChunkIntegrityError,
    IntegrityError,
    NoSpaceError,
    UsageError,
    VaultLockedError,
    WrongPasswordError,
)
from vaultfs.metadata.chunk_rows import ChunkRows
from vaultfs.metadata.database import MetadataDatabase
from vaultfs.metadata.rekeying import key_epoch
from vaultfs.storage.layout import VaultLayout
from vaultfs.storage.segment_format import HEADER_BYTES, SegmentHeader
from vaultfs.vault.compaction import compact
from vaultfs.vault.head import witness_path
from vaultfs.vault.keyslots import list_slots
from vaultfs.vault.opening import load_header, open_filesystem
from vaultfs.vault.rotation import RotationState, rotate, rotation_state
from vaultfs.vault.snapshot_deleting import delete_snapshot
from vaultfs.vault.snapshot_making import create_snapshot


def rotated(path: Path, *survivors: Secret, rewrite: bool = False) -> RotationState:
    return rotate(
        path, KEY, survivors, lose_others=True, kdf=WEAK, rewrite=(lambda done, total: None) if rewrite else None
    ).state


def state_of(path: Path, key: Secret = KEY) -> RotationState:
    fs = open_filesystem(path, key)
    try:
        return rotation_state(fs)
    finally:
        fs.close()


def finish(path: Path, key: Secret = KEY) -> None:
    """Do what mounts do in the background."""
    fs = open_filesystem(path, key)
    try:
        compact(fs, old_keys_only=True)
    finally:
        fs.close()


def epochs_on_disk(path: Path) -> set[int]:
    return {SegmentHeader.decode(file.read_bytes()[:HEADER_BYTES]).epoch for file in path.glob("segments/*/*.seg")}


def epochs_in_ring(path: Path, key: Secret = KEY) -> tuple[int, ...]:
    return load_header(VaultLayout(path)).unlock(key).epochs


def test_a_rotation_is_in_force_at_once(path: Path) -> None:
    before = {slot.label: slot.created_s for slot in list_slots(path)}
    done = rotate(path, KEY, lose_others=True, kdf=WEAK)
    assert [slot.label for slot in done.kept] == ["paper"]
    assert [slot.label for slot in done.lost] == ["second"]
    assert [(slot.label, slot.created_s) for slot in list_slots(path)] == [("paper", before["paper"])]
    assert (done.state.epoch, done.state.is_over) == (2, False)
    assert done.state.old_segments == 1
    plaintext = len(FILES["/small"]) + len(FILES["/large"]) + len(FILES["/dir/deep"])
    assert plaintext < done.state.old_bytes < 1.01 * plaintext
    with pytest.raises(WrongPasswordError):
        open_filesystem(path, OTHER)
    # All metadata is under the new key: with the old one, nothing opens it.
    ring = load_header(VaultLayout(path)).unlock(KEY)
    with pytest.raises(IntegrityError):
        MetadataDatabase.open(path / "metadata.db", ring.subkeys(ring.epochs[0]).metadata)
    require_files(path, KEY)


def test_survivors_keep_their_slots(path: Path) -> None:
    before = list_slots(path)
    done = rotate(path, OTHER, [KEY], kdf=WEAK)
    assert not done.lost
    assert {(slot.label, slot.created_s) for slot in done.kept} == {(slot.label, slot.created_s) for slot in before}
    require_files(path, KEY)
    require_files(path, OTHER)


def test_no_slot_is_lost_without_being_asked(path: Path) -> None:
    before = (path / "vault.json").read_bytes()
    with pytest.raises(UsageError, match=r"'second' \(recovery\)"):
        rotate(path, KEY, kdf=WEAK)
    with pytest.raises(WrongPasswordError):
        rotate(path, KEY, [THIRD], lose_others=True, kdf=WEAK)
    with pytest.raises(WrongPasswordError):
        rotate(path, THIRD, [KEY], lose_others=True, kdf=WEAK)
    with vaultfs.open_vault(path, KEY), pytest.raises(VaultLockedError):
        rotate(path, KEY, lose_others=True, kdf=WEAK)
    assert (path / "vault.json").read_bytes() == before
    require_files(path, OTHER)


def test_everything_is_written_again_and_the_old_key_goes(path: Path) -> None:
    seen: list[tuple[int, int]] = []
    done = rotate(path, KEY, [OTHER], kdf=WEAK, rewrite=lambda done, total: seen.append((done, total)))
    assert done.state == RotationState(2, 0, 0, 0, True)
    assert seen[-1][0] > 0.99 * seen[-1][1]
    assert epochs_on_disk(path) == {2}
    assert epochs_in_ring(path) == (2,)
    require_files(path, KEY)
    require_files(path, OTHER)


def test_a_later_mount_finishes(path: Path) -> None:
    rotated(path)
    assert epochs_in_ring(path) == (1, 2)
    finish(path)
    assert epochs_on_disk(path) == {2}
    assert epochs_in_ring(path) == (2,)
    require_files(path, KEY)


def test_rotating_again_before_the_first_is_over(path: Path) -> None:
    rotated(path)
    with vaultfs.open_vault(path, KEY) as vault, vault.open("/between", "wb") as file:
        file.write(os.urandom(200_000))
    rotated(path)
    assert epochs_in_ring(path) == (1, 2, 3)
    assert epochs_on_disk(path) == {1, 2}
    finish(path)
    assert epochs_in_ring(path) == (3,)
    assert epochs_on_disk(path) == {3}
    require_files(path, KEY)


def test_the_old_header_opens_nothing_any_more(path: Path) -> None:
    """Somebody who was removed kept vault.json and his secret; that is what a rotation is for."""
    old = (path / "vault.json").read_bytes()
    keyring = VaultHeader.decode(old).unlock(OTHER)
    rotated(path, rewrite=True)
    (path / "vault.json").write_bytes(old)
    with pytest.raises(IntegrityError):
        open_filesystem(path, OTHER)
    witness_path(keyring).unlink()
    with pytest.raises(IntegrityError):
        open_filesystem(path, OTHER)


def test_deduplication_works_again_for_what_was_written_again(path: Path) -> None:
    rotated(path, rewrite=True)
    with vaultfs.open_vault(path, KEY) as vault:
        before = vault.status()["live_bytes"]
        with vault.open("/copy", "wb") as file:
            file.write(FILES["/large"])
        vault.commit()
        after = vault.status()["live_bytes"]
    # The last chunk of the file is short, but all of it is shared.
    assert after - before < 64 << 10


def test_fingerprints_of_the_old_key_are_forgotten(path: Path) -> None:
    rotated(path)
    fs = open_filesystem(path, KEY)
    try:
        assert fs.database.scalar("SELECT count(*) FROM chunk") > 0
        assert fs.database.scalar("SELECT count(*) FROM chunk WHERE fingerprint IS NOT NULL") == 0
        assert key_epoch(fs.database) == 2
    finally:
        fs.close()


def test_a_snapshot_keeps_the_old_key_until_it_is_deleted(path: Path) -> None:
    fs = open_filesystem(path, KEY)
    seq = create_snapshot(fs, "before").seq
    fs.close()
    state = rotated(path, rewrite=True)
    assert state.snapshots == 1
    assert state.old_segments > 0
    assert not state.is_over
    assert epochs_in_ring(path) == (1, 2)
    require_files(path, KEY)
    fs = open_filesystem(path, KEY)
    delete_snapshot(fs, seq)
    fs.close()
    finish(path)
    assert epochs_in_ring(path) == (2,)
    assert epochs_on_disk(path) == {2}
    require_files(path, KEY)


def test_a_damaged_chunk_keeps_the_old_key_and_harms_no_other(path: Path) -> None:
    fs = open_filesystem(path, KEY)
    try:
        rows = ChunkRows(fs.database)
        segment = rows.segments()[0]
        damaged = rows.chunks_of_segment(segment.id)[1]
    finally:
        fs.close()
    file = next(path.glob("segments/*/*.seg"))
    file.chmod(0o600)
    with file.open("r+b") as raw:
        raw.seek(damaged.offset + 40)
        byte = raw.read(1)
        raw.seek(-1, 1)
        raw.write(bytes([byte[0] ^ 1]))
    rotated(path, rewrite=True)
    assert epochs_in_ring(path) == (1, 2)
    fs = open_filesystem(path, KEY)
    try:
        rows = ChunkRows(fs.database)
        assert [row.id for row in rows.chunks_of_segment(segment.id)] == [damaged.id]
    finally:
        fs.close()
    with vaultfs.open_vault(path, KEY) as vault:
        broken = 0
        for name, content in FILES.items():
            with vault.open(name) as opened:
                try:
                    assert opened.read() == content
                except ChunkIntegrityError:
                    broken += 1
        assert broken in {1, 2}  # a chunk may be of both twins


@pytest.mark.parametrize("call", ["copy_database", "_finish_copy"])
def test_a_full_disk_keeps_the_metadata_under_the_old_key_for_now(
    path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    with monkeypatch.context() as patch:

        def fail(*arguments: object) -> None:
            raise NoSpaceError("no space")

        patch.setattr(f"vaultfs.vault.database_key.{call}", fail)
        rotated(path, rewrite=True)
        # Nothing else is left of the old epoch, but the database still needs its key.
        assert epochs_on_disk(path) == {2}
        assert epochs_in_ring(path) == (1, 2)
        require_files(path, KEY)
    assert not list(path.glob(".metadata*"))
    finish(path)
    assert epochs_in_ring(path) == (2,)
    require_files(path, KEY)


def test_a_vault_that_crashed_is_rotated_with_all_that_was_synced(path: Path) -> None:
    """Its WAL, its log of small writes and its open segment are from before the rotation."""
    if os.fork() == 0:
        try:
            vault = vaultfs.open_vault(path, KEY)
            file = vault.open("/synced", "wb")
            file.write(b"x" * 300_000)
            vault.commit()
            file.pwrite(b"y" * 10, 1000)
            file.fsync()
        finally:
            os._exit(0)
    os.wait()
    assert list(path.glob("segments/open/*.seg"))
    assert (path / "metadata.db-wal").stat().st_size
    rotated(path, rewrite=True)
    assert epochs_in_ring(path) == (2,)
    with vaultfs.open_vault(path, KEY) as vault, vault.open("/synced") as opened:
        assert opened.read() == b"x" * 1000 + b"y" * 10 + b"x" * 298_990
    require_files(path, KEY)


def test_what_an_earlier_attempt_left_is_replaced(path: Path) -> None:
    (path / ".metadata.db.new").write_bytes(b"half a database")
    (path / ".metadata.db.new-wal").write_bytes(b"half a log")
    rotated(path, rewrite=True)
    assert not list(path.glob(".metadata*"))
    require_files(path, KEY)


def test_a_database_that_was_rebuilt_without_its_epoch_gets_it_back(path: Path) -> None:
    rotated(path, rewrite=True)
    fs = open_filesystem(path, KEY)
    fs.database.execute("DELETE FROM setting WHERE name='key_epoch'")
    fs.close()
    fs = open_filesystem(path, KEY)
    try:
        assert key_epoch(fs.database) == 2
    finally:
        fs.close()


def test_a_crash_between_any_two_steps(path: Path, tmp_path: Path, long_run: bool) -> None:
    """Killed before and after each call that touches the disk: it opens, has every file, and can be finished."""

    def rotate_all(vault: Path) -> None:
        rotated(vault, rewrite=True)

    def check(vault: Path) -> None:
        header = load_header(VaultLayout(vault))
        if header.epoch == 2:
            with pytest.raises(WrongPasswordError):
                header.unlock(OTHER)
        else:
            header.unlock(OTHER)
        require_files(vault, KEY)
        finish(vault)
        assert epochs_in_ring(vault) == (header.epoch,)
        assert epochs_on_disk(vault) == {header.epoch}
        assert not list(vault.glob(".metadata*"))
        require_files(vault, KEY)

    calls = survives_every_crash(path, tmp_path, rotate_all, check, step=1 if long_run else 3)
    assert calls > 60
