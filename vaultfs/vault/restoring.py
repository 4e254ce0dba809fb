"""A vault out of what was fetched from a remote: header, one manifest, and the segments that it names.

The database is the manifest's image, put together and verified piece by piece, with what an image cannot have: the rows
of its own snapshot.  Older snapshots in it are ended, with the chunks that they alone needed, because their manifests
and segments were not fetched.  HEAD comes last, and says that all is clean; before it is there the directory is no
vault that opens, and everything here can be done again.

The vault is opened once at the end, which shows that it opens.

The generation is above any that this machine has seen: restoring is what the person wants, and an older copy of the
vault that may still lie around must not be taken for the present one.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from vaultfs.crypto.header import VaultHeader
from vaultfs.crypto.keys import Keyring
from vaultfs.errors import IntegrityError, UsageError
from vaultfs.ids import ChunkId, SnapshotSeq
from vaultfs.metadata.check_chunk_rows import CheckChunkRows
from vaultfs.metadata.chunk_rows import ChunkRow, ChunkRows
from vaultfs.metadata.database import MetadataDatabase
from vaultfs.metadata.snapshot_rows import SnapshotRow, SnapshotRows
from vaultfs.storage.durable import fsync_directory, storage_errors
from vaultfs.storage.layout import VaultLayout
from vaultfs.storage.lock import VaultLock
from vaultfs.storage.segment_source import SegmentSource
from vaultfs.storage.snapshot_history import add_to_history
from vaultfs.vault.chunk_table import ChunkTable
from vaultfs.vault.head import Head
from vaultfs.vault.opening import load_header, open_database, open_unlocked
from vaultfs.vault.snapshot_deleting import SWEEP_CHUNKS
from vaultfs.vault.snapshot_image import image_pieces
from vaultfs.vault.snapshot_manifest import SnapshotContent, SnapshotHold, open_manifest

_NEW_NAME: Final = ".metadata.db.restored"


def complete(
    layout: VaultLayout,
    header: VaultHeader,
    keyring: Keyring,
    seq: SnapshotSeq,
    snapshot_id: str,
    source: SegmentSource | None = None,
) -> None:
    """Make ``metadata.db`` and HEAD, so that the vault opens in the state of a snapshot; durable on return.

    Args:
        layout: has the header, the manifest, and its segments unless there is a ``source``.
        header: what was unlocked before anything was fetched.
        keyring: that it gave.
        seq: the snapshot's number.
        snapshot_id: the hash of its manifest.
        source: has segments that are not here; only the metadata is fetched from it.

    Raises:
        UsageError: the directory holds a vault that is complete already, or one that nobody was restoring.
        IntegrityError: the header is another one, or the manifest, a segment or a piece is not what was written.
        NotAVaultError, FormatTooNewError: the header cannot be read.
        NoSpaceError, StorageError: the disk failed; the same can be done again.
    """
    lock = VaultLock.acquire(layout, purpose="restored")
    try:
        if layout.head.exists() or (layout.database.exists() and not layout.restoring.exists()):
            raise UsageError(f"{layout.root} holds a vault already; restore into a directory of its own")
        if load_header(layout).encode() != header.encode():
            raise IntegrityError(
                f"{layout.header} is not the one that was unlocked: it was changed meanwhile; try again"
            )
        hold = SnapshotHold.take(layout, seq, snapshot_id, is_exclusive=False)
        try:
            _, content = open_manifest(keyring, hold.data, seq, snapshot_id)
            add_to_history(layout, seq, snapshot_id)
            generation = make_database(layout, layout, keyring, content, snapshot_id, source=source)
        finally:
            hold.release()
        head = Head(layout, keyring)
        head.write_clean(max(generation, head.seen_generation()) + 1, manifest_hash=bytes.fromhex(snapshot_id))
        with storage_errors(f"cannot remove {layout.restoring}"):
            layout.restoring.unlink(missing_ok=True)
        restored = open_unlocked(layout, keyring, lock, read_only=False, source=source)
    except BaseException:
        lock.release()
        raise
    restored.close()  # gives up the lock


def make_database(
    target: VaultLayout,
    layout: VaultLayout,
    keyring: Keyring,
    content: SnapshotContent,
    snapshot_id: str,
    *,
    source: SegmentSource | None = None,
    settings: Mapping[str, int] | None = None,
) -> int:
    """Make the ``metadata.db`` that a vault in the state of a snapshot has, durably, and return its generation.

    Args:
        target: in whose place for the database it is put; what lies there is replaced.
        layout: where the segments are.
        keyring: of the vault.
        content: of the snapshot's manifest.
        snapshot_id: the hash of that.
        source: has segments that are not in ``layout``.
        settings: what else the database shall say.

    Raises:
        IntegrityError: a segment or a piece is not what was written.
        NoSpaceError, StorageError: the disk failed.
    """
    _write_image(target, layout, keyring, content, source)
    return _add_snapshot(target, keyring, content, snapshot_id, settings or {})


def _write_image(
    target: VaultLayout,
    layout: VaultLayout,
    keyring: Keyring,
    content: SnapshotContent,
    source: SegmentSource | None,
) -> None:
    new = target.root / _NEW_NAME
    for old in (new, target.database, Path(f"{target.database}-wal")):
        with storage_errors(f"cannot remove what was interrupted before: {old}"):
            old.unlink(missing_ok=True)
    with storage_errors(f"cannot write {target.database}"), new.open("xb") as file:
        os.fchmod(file.fileno(), 0o600)
        for piece in image_pieces(layout, keyring, content, source):
            file.write(piece)
        file.flush()
        os.fsync(file.fileno())
        new.rename(target.database)
    fsync_directory(target.root)


def _add_snapshot(
    target: VaultLayout, keyring: Keyring, content: SnapshotContent, snapshot_id: str, settings: Mapping[str, int]
) -> int:
    """Give the database the rows of its own snapshot, end the others, and return its generation."""
    database = open_database(target, keyring)
    try:
        rows = SnapshotRows(database)
        rows.set_making(None)
        for older in rows.all():
            rows.delete(older.seq)
        rows.set_cleaning(True)  # the first mount looks for manifests of the older ones
        rows.insert(
            SnapshotRow(content.seq, snapshot_id, content.created_ns, content.label, content.files, content.bytes)
        )
        database.set_setting("snapshot_seq", content.seq)
        _add_pieces(database, rows, content)
        _end_chunks(database, rows, keyring)
        for name, value in settings.items():
            database.set_setting(name, value)
        generation = database.setting("generation")
        database.commit()
        database.sync_wal()
        database.checkpoint(truncate=True)
    finally:
        database.close()
    fsync_directory(target.root)
    return generation


def _end_chunks(database: MetadataDatabase, rows: SnapshotRows, keyring: Keyring) -> None:
    """End the chunks that only older snapshots needed, and forget segments in which nothing is left."""
    numbers = {name: database.setting(name) for name in ("next_chunk", "snapshot_seq")}
    chunks = ChunkTable(ChunkRows(database), rows, epoch=keyring.epoch, **numbers)
    while pieces := rows.take_stray_pieces(SWEEP_CHUNKS):
        chunks.release_pieces(pieces)
    position: tuple[int, ChunkId] | None = (0, ChunkId(0))
    while position is not None:
        position = chunks.sweep_dead(position, SWEEP_CHUNKS)
    for row in ChunkRows(database).segments():
        if not row.live:
            ChunkRows(database).delete_segment(row.id)


def _add_pieces(database: MetadataDatabase, rows: SnapshotRows, content: SnapshotContent) -> None:
    chunks, data = ChunkRows(database), CheckChunkRows(database)
    known = {row.name: row.id for row in chunks.segments()}
    for index, piece in enumerate(content.pieces):
        facts = content.segments[piece.segment]
        if facts.name not in known:
            known[facts.name] = data.add_segment(facts.name[:32], facts.name, facts.epoch, facts.salt, facts.size)
        number = known[facts.name]
        row = chunks.chunk(piece.chunk)
        if row is None:
            place = (number, piece.offset, piece.stored, piece.length)
            chunks.insert_chunk(ChunkRow(piece.chunk, *place, 1, content.seq, None, None))
            chunks.add_live(number, piece.stored)
        else:
            chunks.set_refs(piece.chunk, row.refs + 1, None)
        rows.put_piece(content.seq, index, piece.chunk)
    last = max((piece.chunk for piece in content.pieces), default=0)
    database.set_setting("next_chunk", max(database.setting("next_chunk"), last + 1))
