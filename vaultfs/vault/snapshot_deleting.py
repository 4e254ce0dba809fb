"""Snapshots are deleted, and what they alone needed is given back, in steps.

Deleting takes the row away (durable), then the manifest, then pieces and chunks in small steps; ``snapshot_cleaning``
says that this is not over, and a mount goes on with it.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Generator
from functools import partial
from typing import TYPE_CHECKING, Final

from vaultfs.errors import VaultLockedError
from vaultfs.ids import ChunkId, SnapshotSeq
from vaultfs.storage.durable import fsync_directory, storage_errors
from vaultfs.storage.kept_manifests import kept_files
from vaultfs.storage.layout import VaultLayout
from vaultfs.vault.kept_snapshots import dropping
from vaultfs.vault.snapshot_listing import list_snapshots
from vaultfs.vault.snapshot_manifest import SnapshotHold, SnapshotInfo, choose, manifest_files, remove_leftovers
from vaultfs.vault.steps import Step, Steps, run

if TYPE_CHECKING:
    from vaultfs.vault.filesystem import FileSystem

log = logging.getLogger(__name__)

SWEEP_CHUNKS: Final = 1000


def delete_snapshot(fs: FileSystem, which: str | int) -> SnapshotInfo:
    """Delete a snapshot and give back what it alone needed; return what it was.

    Args:
        fs: the vault; nothing else happens in it meanwhile.
        which: its number, or the beginning of its id.

    Raises:
        UsageError: there is no such snapshot.
        VaultLockedError: it is mounted, or being read.
        ReadOnlyError: the vault is open read-only.
        NoSpaceError, StorageError: it is not durably deleted.
    """
    return run(fs, deleting(fs, which))


def deleting(fs: FileSystem, which: str | int) -> Steps[SnapshotInfo]:
    """As `delete_snapshot`, in steps."""
    with one_at_a_time(fs):
        known = {info.seq: info for info in list_snapshots(fs)}
        kept = kept_files(fs.layout)
        seq, snapshot_id = choose(which, [*((info.seq, info.id) for info in known.values()), *kept])
        if (seq, snapshot_id) in kept:
            return (yield from dropping(fs, seq, snapshot_id))
        hold = None
        if fs.layout.manifest_path(seq, snapshot_id).is_file():
            hold = SnapshotHold.take(fs.layout, seq, snapshot_id, is_exclusive=True)
        try:
            fs.snapshot_rows.delete(seq)
            fs.snapshot_rows.set_cleaning(True)
            fs.chunks.snapshot_ended(seq)
            yield Step.COMMIT
            log.info("deleted snapshot %d", seq)
            yield from cleaning(fs)
        finally:
            if hold is not None:
                hold.release()
        return known[seq]


@contextlib.contextmanager
def one_at_a_time(fs: FileSystem) -> Generator[None]:
    """One snapshot at a time is made or deleted."""
    fs.check_writable()
    if fs.is_snapshot_busy:
        raise VaultLockedError("another snapshot is being made or deleted; try again when that is done")
    fs.is_snapshot_busy = True
    try:
        with fs.database_safe():
            yield
    finally:
        fs.is_snapshot_busy = False


def cleaning(fs: FileSystem) -> Steps[None]:
    """Give back what ended snapshots have left: manifests, pieces, chunks.  May be interrupted and begun again."""
    rows = fs.snapshot_rows
    yield partial(_remove_manifests, fs.layout, {row.seq for row in rows.all()}, fs.chunks.snapshot_seq)
    while pieces := rows.take_stray_pieces(SWEEP_CHUNKS):
        fs.chunks.release_pieces(pieces)
        yield Step.PAUSE
    position: tuple[int, ChunkId] | None = (0, ChunkId(0))
    while position is not None:
        position = fs.chunks.sweep_dead(position, SWEEP_CHUNKS)
        yield Step.PAUSE
    rows.set_cleaning(False)
    yield Step.COMMIT


def _remove_manifests(layout: VaultLayout, living: set[SnapshotSeq], newest: int) -> None:
    """Remove manifests of snapshots that do not exist.  Those of later ones are not ours to judge."""
    for seq, snapshot_id in manifest_files(layout):
        if seq not in living and seq <= newest:
            path = layout.manifest_path(seq, snapshot_id)
            with storage_errors(f"cannot delete {path}"):
                path.unlink(missing_ok=True)
    remove_leftovers(layout)
    fsync_directory(layout.heads)
