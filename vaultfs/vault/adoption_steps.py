"""The steps of an adoption that change the vault on the disk; see `vaultfs.vault.adopting` for their order.

Each is durable when it returns.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING

from vaultfs.errors import IntegrityError, StorageError
from vaultfs.ids import SegmentName
from vaultfs.metadata.chunk_rows import ChunkRows, SegmentRow
from vaultfs.storage.durable import fsync_directory, storage_errors
from vaultfs.storage.kept_manifests import kept_segments
from vaultfs.storage.layout import VaultLayout
from vaultfs.vault.head import Head
from vaultfs.vault.opening import open_database

if TYPE_CHECKING:
    from vaultfs.crypto.keys import Keyring
    from vaultfs.vault.snapshot_manifest import SnapshotInfo


def keep_manifests(layout: VaultLayout, snapshots: Iterable[SnapshotInfo]) -> None:
    """Give the manifests of snapshots a second name in ``heads/kept``.

    Raises:
        IntegrityError: one has none.
        NoSpaceError, StorageError: the disk failed.
    """
    with storage_errors(f"cannot create {layout.kept}"):
        layout.kept.mkdir(mode=0o700, exist_ok=True)
    fsync_directory(layout.heads)
    for info in snapshots:
        kept = layout.kept_path(info.seq, info.id)
        if kept.exists():
            continue
        with storage_errors(f"cannot keep snapshot {info.seq} as {kept}"):
            try:
                os.link(layout.manifest_path(info.seq, info.id), kept, follow_symlinks=False)
            except FileNotFoundError:
                raise IntegrityError(
                    f"snapshot {info.seq} has no manifest any more, so it cannot be kept; nothing was changed.  "
                    "Restore it, or give the snapshot up with 'vaultfs snapshot delete' or 'vaultfs fsck --repair'"
                ) from None
    fsync_directory(layout.kept)


def only_known_before(
    layout: VaultLayout, staging: VaultLayout, keyring: Keyring, rows: Iterable[SegmentRow]
) -> tuple[SegmentName, ...]:
    """The segments that neither the new database nor a kept snapshot needs.

    Args:
        layout: the vault.
        staging: has the new database.
        keyring: its keys.
        rows: those of the old database.

    Raises:
        IntegrityError: the new database, or the manifest of a kept snapshot, is damaged.
        StorageError: the disk failed.
    """
    database = open_database(staging, keyring)
    try:
        needed = {row.name for row in ChunkRows(database).segments()} | kept_segments(layout)
    finally:
        database.close()
    fsync_directory(staging.root)
    return tuple(SegmentName(row.name) for row in rows if row.name is not None and row.name not in needed)


def switch(layout: VaultLayout, staging: VaultLayout, keyring: Keyring, old_generation: int, generation: int) -> None:
    """Put the new database in the place of the old one; HEAD accepts either before.

    Args:
        layout: the vault, closed.
        staging: has the new database.
        keyring: its keys.
        old_generation: of the old database.
        generation: of the new one.

    Raises:
        NoSpaceError, StorageError: the disk failed, or the vault is not closed as it must be.
    """
    for database in (layout.database, staging.database):
        if os.path.lexists(f"{database}-wal"):
            raise StorageError(f"{database}-wal was not moved into the database; mount the vault, and try again")
    left_open = layout.open_tokens()
    if left_open:
        raise StorageError(f"segment open/{left_open[0]} could not be sealed; run vaultfs fsck, and try again")
    fsync_directory(layout.open_segments)  # or a power cut could bring back names of what is sealed
    head = Head(layout, keyring)
    head.write_open(generation, old_generation, manifest_hash=head.load().manifest_hash)
    with storage_errors(f"cannot replace {layout.database}"):
        os.rename(staging.database, layout.database)  # noqa: PTH104  # named as the system call
    fsync_directory(layout.root)
    fsync_directory(staging.root)
