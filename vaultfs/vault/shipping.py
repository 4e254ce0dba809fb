"""The snapshot that a sync carries away: of the present, in whole segments, and new only if something has changed.

Before it is made, segments with holes (from the time before the vault had a remote) are written again, and what files
have in those that older snapshots hold in place is copied.  So is what the present has in *worn* segments, of which it
needs less than half: compaction cannot touch these, because the newest snapshot of a sync always needs them, and the
vault and its remotes would keep every segment of which any chunk is left.  They go with the snapshots that still need
them, here by the syncs that follow, on a remote by a prune.

Snapshots made here carry the label `LABEL`; older ones of them are deleted but for the newest, which a remote may be
getting just now.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Final

from vaultfs.errors import VaultLockedError
from vaultfs.ids import ChunkId, InodeId, SegmentId, SegmentName
from vaultfs.metadata.compaction_rows import CompactionRows
from vaultfs.storage.durable import storage_errors
from vaultfs.storage.manifest_format import Manifest
from vaultfs.vault.compaction import NOTHING_MORE, POLICY, compact
from vaultfs.vault.reading import ChunkDamageError
from vaultfs.vault.snapshot_deleting import deleting
from vaultfs.vault.snapshot_listing import list_snapshots
from vaultfs.vault.snapshot_making import creating
from vaultfs.vault.steps import Step, run
from vaultfs.vault.worn_segments import finding_worn

if TYPE_CHECKING:
    from vaultfs.vault.filesystem import FileSystem
    from vaultfs.vault.snapshot_manifest import SnapshotInfo
    from vaultfs.vault.steps import Steps

log = logging.getLogger(__name__)

LABEL: Final = "sync"
KEPT: Final = 1
"""Older snapshots of syncs that stay beside the newest."""
EXTENTS_AT_ONCE: Final = 512
WORN_PERCENT: Final = 50
"""At a half, what is copied in the long run is at most as much again as was written."""
WORN_BYTES: Final = 4 << 30
"""So much is copied before one snapshot, or after a large deletion a backup would wait for hours."""
EXTENTS_LOOKED_AT: Final = 4096
"""Of the whole vault, if a segment is worn; some 3 ms, then others have their turn."""


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
    worn = yield from _finding_worn(fs)
    yield from _copying_worn(fs, worn)
    for info in [each for each in known if each.label == LABEL][:-KEPT]:
        try:
            yield from deleting(fs, info.id)  # a kept snapshot may have the same number
        except VaultLockedError:
            log.info("snapshot %d is being copied; a later sync deletes it", info.seq)
    return (yield from creating(fs, LABEL, worn)), True


def _copying_out(fs: FileSystem) -> Steps[None]:
    """Seal anew what files have in segments with holes that older snapshots hold in place.

    Those snapshots cannot be sent, but the present can.  A damaged chunk stays where it is, and is told as such.
    """
    rows = CompactionRows(fs.database)
    after = (0, -1)
    while extents := rows.extents_beside_holes(after, EXTENTS_AT_ONCE):
        yield from _copying(fs, extents)
        after = extents[-1][:2]


def _finding_worn(fs: FileSystem) -> Steps[set[SegmentId]]:
    """The segments on this disk of which the present needs little, and no snapshot of a person anything.

    What a clone has not fetched stays as it is: fetching it would cost more than it gives back.
    """
    if not fs.reclaimer.keeps_whole:
        return set()
    found = yield from finding_worn(fs, LABEL, WORN_PERCENT, POLICY.least_gain, WORN_BYTES)
    rows = (fs.chunk_rows.segment(number) for number in found)
    return {row.id for row in rows if row and row.name and fs.layout.sealed_path(SegmentName(row.name)).exists()}


def _copying_worn(fs: FileSystem, worn: Collection[SegmentId]) -> Steps[None]:
    """Seal anew what files have in worn segments; what images of snapshots have there is not shared any more."""
    rows = CompactionRows(fs.database)
    chunks: set[ChunkId] = set()
    for segment in worn:
        chunks.update(rows.chunks_of_files(segment))
        yield Step.PAUSE
    after = (0, -1)
    while chunks and (extents := rows.extents_after(after, EXTENTS_LOOKED_AT)):
        yield from _copying(fs, [each for each in extents if each[2] in chunks])
        after = extents[-1][:2]
        yield Step.PAUSE


def _copying(fs: FileSystem, extents: Sequence[tuple[InodeId, int, ChunkId]]) -> Steps[None]:
    """Seal the chunks of some extents anew, durably.  A damaged one stays where it is, and is told as such."""
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
    if extents:
        yield Step.COMMIT
