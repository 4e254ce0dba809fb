"""What a mount does about snapshots: HEAD must name the newest, and what a crash has interrupted is brought to an end.

A snapshot whose manifest is complete is finished, and any other given up; the table in `vaultfs.vault.snapshot_making`
tells which is which.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from vaultfs.errors import IntegrityError
from vaultfs.ids import SnapshotSeq
from vaultfs.vault.snapshot_deleting import cleaning
from vaultfs.vault.snapshot_making import add_row, announcing
from vaultfs.vault.snapshot_manifest import SnapshotContent, SnapshotHold, manifest_files, open_manifest
from vaultfs.vault.steps import run

if TYPE_CHECKING:
    from vaultfs.vault.filesystem import FileSystem

log = logging.getLogger(__name__)


def check_newest(fs: FileSystem) -> None:
    """Compare the newest snapshot with HEAD.

    Raises:
        IntegrityError: they are not of one vault state.
    """
    record = fs.head.record
    newest = fs.snapshot_rows.all()[-1:]
    if record is None or not newest or newest[0].seq != fs.chunks.snapshot_seq or fs.snapshot_rows.making():
        return
    if record.manifest_hash != bytes.fromhex(newest[0].id):
        raise IntegrityError(
            f"HEAD does not name the newest snapshot, {newest[0].seq}: one of metadata.db and HEAD was replaced; "
            "restore both together, or run vaultfs fsck"
        )


def finish_interrupted(fs: FileSystem) -> None:
    """Finish or give up the snapshot that was being made when the vault stopped.  Before anything releases a chunk.

    Raises:
        NoSpaceError, StorageError: the disk failed.
    """
    seq = fs.snapshot_rows.making()
    if seq is None:
        return
    found = _complete_manifest(fs, seq)
    if found is None:
        log.info("snapshot %d was not finished, and is given up", seq)
        fs.snapshot_rows.set_making(None)
        fs.snapshot_rows.set_cleaning(True)
        return
    snapshot_id, content = found
    fs.chunks.snapshot_taken(seq)
    record = fs.head.record
    if record is None or record.manifest_hash != bytes.fromhex(snapshot_id):
        fs.committer.commit()  # the generation that HEAD says now, before it says the next one
        run(fs, announcing(fs, snapshot_id))
    add_row(fs, content, snapshot_id)
    log.info("snapshot %d was interrupted, and is finished now", seq)


def _complete_manifest(fs: FileSystem, seq: SnapshotSeq) -> tuple[str, SnapshotContent] | None:
    """The manifest of the snapshot being made, if it got that far."""
    places = fs.snapshot_rows.places(seq)
    for number, snapshot_id in manifest_files(fs.layout):
        if number != seq:
            continue
        hold = SnapshotHold.take(fs.layout, seq, snapshot_id, is_exclusive=False)
        try:
            _, content = open_manifest(fs.keyring, hold.data, seq, snapshot_id)
        except IntegrityError as error:
            log.warning("snapshot %d: %s", seq, error)
            continue
        finally:
            hold.release()
        named = [(content.segments[p.segment].name, p.offset, p.stored, p.length, p.chunk) for p in content.pieces]
        if named == [(p.name, p.offset, p.stored, p.length, p.chunk) for p in places]:
            return snapshot_id, content
    return None


def clean_up(fs: FileSystem) -> None:
    """Go on with `cleaning` if it was interrupted.

    Raises:
        NoSpaceError, StorageError: the disk failed.
    """
    if fs.snapshot_rows.is_cleaning():
        run(fs, cleaning(fs))
