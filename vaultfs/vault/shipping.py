"""The snapshot that a sync carries away: of the present, in whole segments, and new only if something has changed.

Before it is made, segments with holes (from the time before the vault had a remote) are written again, and what files
have in those that older snapshots hold in place is copied.  Snapshots made here carry the label `LABEL`; older ones of
them are deleted but for the newest, which a remote may be getting just now.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

from vaultfs.errors import VaultLockedError
from vaultfs.metadata.compaction_rows import CompactionRows
from vaultfs.storage.durable import storage_errors
from vaultfs.storage.manifest_format import Manifest
from vaultfs.vault.compaction import NOTHING_MORE, compact
from vaultfs.vault.reading import ChunkDamageError
from vaultfs.vault.snapshots import Step, creating, deleting, list_snapshots, run

if TYPE_CHECKING:
    from vaultfs.vault.filesystem import FileSystem
    from vaultfs.vault.snapshot_manifest import SnapshotInfo
    from vaultfs.vault.snapshots import Steps

log = logging.getLogger(__name__)

LABEL: Final = "sync"
KEPT: Final = 1
"""Older snapshots of syncs that stay beside the newest."""
EXTENTS_AT_ONCE: Final = 512


def prepare(fs: FileSystem) -> tuple[SnapshotInfo, bool]:
    """Bring about a snapshot of the present that can be copied to a remote; nothing else happens meanwhile.

    Returns:
        The snapshot, and whether it is new.

    Raises:
        ReadOnlyError: the vault is open read-only.
        NoSpaceError, StorageError: there is no such snapshot.
    """
    fs.check_writable()
    if has_holes(fs):
        compact(fs, policy=NOTHING_MORE)
    return run(fs, preparing(fs))


def has_holes(fs: FileSystem) -> bool:
    """Whether segments must be written again first; those that snapshots hold in place count as well."""
    with fs.database_safe():
        return fs.reclaimer.keeps_whole and bool(CompactionRows(fs.database).holed_segments())


def is_changed(fs: FileSystem) -> bool:
    """Whether the present is not known to be that of the newest snapshot."""
    return fs.newest_snapshot is None or fs.newest_snapshot[1] != fs.inodes.version


def _is_whole(fs: FileSystem, info: SnapshotInfo) -> bool:
    """Whether no segment that a snapshot names has holes."""
    if not has_holes(fs):
        return True
    path = fs.layout.manifest_path(info.seq, info.id)
    with storage_errors(f"cannot read {path}"):
        manifest, _ = Manifest.decode(path.read_bytes())
    holed = {row.name for row in fs.chunk_rows.segments() if row.holes}
    return not any(name in holed for name, _ in manifest.segments)


def preparing(fs: FileSystem) -> Steps[tuple[SnapshotInfo, bool]]:
    """As `prepare`, in steps, once compaction has done what it can about segments with holes."""
    if has_holes(fs):
        yield from _copying_out(fs)
    yield Step.COMMIT
    known = list_snapshots(fs)
    if known and not is_changed(fs) and _is_whole(fs, known[-1]):
        return known[-1], False
    for info in [each for each in known if each.label == LABEL][:-KEPT]:
        try:
            yield from deleting(fs, info.seq)
        except VaultLockedError:
            log.info("snapshot %d is being copied; a later sync deletes it", info.seq)
    return (yield from creating(fs, LABEL)), True


def _copying_out(fs: FileSystem) -> Steps[None]:
    """Seal anew what files have in segments with holes that older snapshots hold in place.

    Those snapshots cannot be sent, but the present can.  A damaged chunk stays where it is, and is told as such.
    """
    rows = CompactionRows(fs.database)
    after = (0, -1)
    while extents := rows.extents_beside_holes(after, EXTENTS_AT_ONCE):
        for number, index, chunk in extents:
            yield Step.ROOM
            inode = fs.inodes.find(number)
            if inode is None:
                continue
            fs.check_room(fs.chunk_size)
            try:
                fs.files.copy_out(inode, index, chunk)
            except ChunkDamageError as damage:
                fs.report_damage(damage)
        after = extents[-1][:2]
        yield Step.COMMIT
