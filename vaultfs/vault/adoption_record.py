"""The record of an adoption: written before anything is changed, so that whoever opens the vault next can end it.

``.adopting/record``, sealed as a record with the record key for the purpose ``"adopting" | vault id``:

    msgpack array: seq, manifest hash 32, fresh, spare; the last two are arrays of segments' names, 32 bytes

Adopting replaces ``metadata.db`` by one of another history, see `vaultfs.vault.adopting`.  Only that has a row of the
snapshot that is adopted, so after a crash it is clear which of the two is there:

- the new one: what is left to do is done (`Adoption.finish`): manifests get their places, and what only the old
  database needed is deleted;
- the old one: everything is put back as it was (`Adoption.undo`), but for what was fetched, which waits in
  ``.adopting`` for the next attempt.

All steps can be repeated.
"""

from __future__ import annotations

import contextlib
import logging
import os
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Final

import msgspec

from vaultfs.crypto.aead import open_record, seal_record
from vaultfs.crypto.header import LARGEST_HEADER_BYTES, VaultHeader
from vaultfs.errors import IntegrityError
from vaultfs.ids import SegmentName, SnapshotSeq
from vaultfs.metadata.chunk_rows import ChunkRows
from vaultfs.metadata.rekeying import key_epoch
from vaultfs.metadata.snapshot_rows import SnapshotRows
from vaultfs.storage.durable import atomic_replace, fsync_directory, storage_errors
from vaultfs.storage.kept_manifests import kept_files, known_kept_segments
from vaultfs.storage.layout import VaultLayout
from vaultfs.storage.snapshot_history import add_to_history
from vaultfs.vault.adoption_staging import RECORD_NAME, remove_staging
from vaultfs.vault.kept_keys import KeptKeysDamagedError, keep_keys
from vaultfs.vault.kept_snapshots import delete_segments

if TYPE_CHECKING:
    from pathlib import Path

    from vaultfs.crypto.keys import Keyring
    from vaultfs.metadata.database import MetadataDatabase

log = logging.getLogger(__name__)

_LARGEST_BYTES: Final = 256 << 20
_Name = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]


class _Content(msgspec.Struct, array_like=True, frozen=True):
    seq: int
    manifest_hash: _Name
    fresh: list[_Name]
    spare: list[_Name]


@dataclass(frozen=True)
class AdoptionRecord:
    """What is being done.

    Attributes:
        seq: number of the snapshot that is adopted.
        snapshot_id: the hash of its manifest.
        fresh: segments that were fetched for it, and are moved among the vault's own.
        spare: segments that only the old database knows; deleted at the end.
    """

    seq: SnapshotSeq
    snapshot_id: str
    fresh: tuple[SegmentName, ...]
    spare: tuple[SegmentName, ...] = ()

    def write(self, layout: VaultLayout, keyring: Keyring) -> None:
        """Store it durably, in the place of an earlier one.

        Raises:
            NoSpaceError, StorageError: it could not be written.
        """
        content = _Content(
            self.seq,
            bytes.fromhex(self.snapshot_id),
            [bytes.fromhex(name) for name in self.fresh],
            [bytes.fromhex(name) for name in self.spare],
        )
        data = seal_record(keyring.current.record, _purpose(keyring), msgspec.msgpack.encode(content))
        atomic_replace(_record_path(layout), data)

    def is_carried_out(self, database: MetadataDatabase) -> bool:
        """Whether a database is the new one: only that has the row of the snapshot."""
        return any(row.id == self.snapshot_id for row in SnapshotRows(database).all())

    # --- the end

    def settle(self, layout: VaultLayout, keyring: Keyring, database: MetadataDatabase) -> None:
        """Finish it or undo it, according to the database that is there.

        Args:
            layout: the vault; its lock is held.
            keyring: its keys.
            database: open.

        Raises:
            NoSpaceError, StorageError: the disk failed; the next mount goes on.
        """
        if self.is_carried_out(database):
            self.finish(layout, keyring, database)
        else:
            self.undo(layout, database)

    def finish(self, layout: VaultLayout, keyring: Keyring, database: MetadataDatabase) -> None:
        """Do what is left once the new database is in its place.

        Args:
            layout: the vault; its lock is held.
            keyring: its keys.
            database: the new one.

        Raises:
            NoSpaceError, StorageError: the disk failed; the next mount goes on.
        """
        staging = VaultLayout(layout.adopting)
        adopted = layout.manifest_path(self.seq, self.snapshot_id)
        for seq, snapshot_id in kept_files(layout):
            if snapshot_id != self.snapshot_id:
                _unlink(layout.manifest_path(seq, snapshot_id))
        add_to_history(layout, self.seq, self.snapshot_id)  # not sooner, or a sync could take theirs for ours
        staged = staging.manifest_path(self.seq, self.snapshot_id)
        with storage_errors(f"cannot put {adopted} in place"), contextlib.suppress(FileNotFoundError):
            os.rename(staged, adopted)  # noqa: PTH104  # named as the system call
        _sync_manifests(layout)
        known = {row.name for row in ChunkRows(database).segments()} | known_kept_segments(layout)
        delete_segments(layout, [name for name in self.spare if name not in known])
        _put_header_in_place(layout, keyring, database)
        remove_staging(layout)
        log.info("adopted snapshot %d", self.seq)

    def undo(self, layout: VaultLayout, database: MetadataDatabase) -> None:
        """Put things back as they were, as the old database is still in its place.

        That our manifests have second names is mended by every mount, see `vaultfs.vault.kept_snapshots.settle_kept`.

        Args:
            layout: the vault; its lock is held.
            database: the old one.

        Raises:
            NoSpaceError, StorageError: the disk failed; the next mount goes on.
        """
        staging = VaultLayout(layout.adopting)
        known = {row.name for row in ChunkRows(database).segments()} | known_kept_segments(layout)
        move_segments([name for name in self.fresh if name not in known], layout, staging)
        for path in (staging.database, _with_suffix(staging.database, "-wal"), _record_path(layout)):
            _unlink(path)
        fsync_directory(layout.adopting)
        log.info("the adoption of snapshot %d was interrupted, and is taken back", self.seq)


def _put_header_in_place(layout: VaultLayout, keyring: Keyring, database: MetadataDatabase) -> None:
    """Give the vault the header that waits for it, without keys that only kept snapshots need from now on.

    If anything else needs one of those, or they cannot be kept elsewhere, the header that has them all stays.
    """
    data = _read_file(VaultLayout(layout.adopting).header, LARGEST_HEADER_BYTES + 1)
    if data is None:
        return
    header = VaultHeader.decode(data)
    stays = header.unlock_with(keyring).epochs
    needed = {row.epoch for row in ChunkRows(database).segments() if row.live} | {key_epoch(database)}
    if needed <= set(stays):
        try:
            keep_keys(layout, keyring, stays)
        except KeptKeysDamagedError as error:
            log.warning("%s has more keys than on the other devices: %s", layout.header, error)
            return
        atomic_replace(layout.header, data)


def load_adoption(layout: VaultLayout, keyring: Keyring) -> AdoptionRecord | None:
    """The record of an adoption that was interrupted; None if there is none.

    One that no key opens says nothing; whether the vault can be opened without it, HEAD and database tell.

    Raises:
        StorageError: it cannot be read.
    """
    path = _record_path(layout)
    data = None if layout.adopting.is_symlink() else _read_file(path, _LARGEST_BYTES)
    if data is None:
        return None
    for epoch in reversed(keyring.epochs):
        try:
            plain = open_record(keyring.subkeys(epoch).record, _purpose(keyring), data)
            content = msgspec.msgpack.decode(plain, type=_Content)
        except (IntegrityError, msgspec.DecodeError):
            continue
        return AdoptionRecord(
            SnapshotSeq(content.seq),
            content.manifest_hash.hex(),
            tuple(SegmentName(name.hex()) for name in content.fresh),
            tuple(SegmentName(name.hex()) for name in content.spare),
        )
    log.warning("%s is damaged, and says nothing of the adoption that was interrupted", path)
    return None


def foreign_segments(layout: VaultLayout, adoption: AdoptionRecord | None) -> set[str]:
    """Names of segments that lie beside the vault's own and may be of another history.

    Args:
        layout: the vault.
        adoption: one that was interrupted.
    """
    return {*known_kept_segments(layout), *(() if adoption is None else adoption.fresh)}


def move_segments(names: list[SegmentName], origin: VaultLayout, target: VaultLayout) -> None:
    """Move sealed segments from one place to another on the same disk, durably; those that are not there do not matter.

    Raises:
        StorageError: the disk failed.
    """
    for name in names:
        path = target.sealed_path(name)
        with storage_errors(f"cannot move the segment {name} to {path}"):
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with contextlib.suppress(FileNotFoundError):
                os.rename(origin.sealed_path(name), path)  # noqa: PTH104
            # After a power cut a file may have both names; then rename(2) does nothing.
            origin.sealed_path(name).unlink(missing_ok=True)
    for layout in (target, origin):
        for shard in {layout.sealed_path(name).parent for name in names}:
            if shard.is_dir():
                fsync_directory(shard)
        if names:
            fsync_directory(layout.segments)


def _read_file(path: Path, limit: int) -> bytes | None:
    """So many bytes of a file at most; None if there is none, or something else in its place."""
    with storage_errors(f"cannot read {path}"):
        try:
            if not stat.S_ISREG(path.lstat().st_mode):
                return None
        except FileNotFoundError:
            return None
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            return file.read(limit)


def _purpose(keyring: Keyring) -> bytes:
    return b"adopting" + keyring.vault_id


def _record_path(layout: VaultLayout) -> Path:
    return layout.adopting / RECORD_NAME


def _with_suffix(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


def _unlink(path: Path) -> None:
    with storage_errors(f"cannot delete {path}"):
        path.unlink(missing_ok=True)


def _sync_manifests(layout: VaultLayout) -> None:
    for directory in (layout.heads, layout.kept):
        if directory.is_dir():
            fsync_directory(directory)
