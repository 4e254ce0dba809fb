"""Which snapshots a vault has, those of its own history and the kept ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vaultfs.vault.kept_snapshots import list_kept
from vaultfs.vault.snapshot_manifest import SnapshotInfo

if TYPE_CHECKING:
    from vaultfs.vault.filesystem import FileSystem


def list_snapshots(fs: FileSystem) -> list[SnapshotInfo]:
    """All snapshots, oldest first."""
    with fs.database_safe():
        return [SnapshotInfo(r.seq, r.id, r.label, r.created_ns, r.files, r.bytes) for r in fs.snapshot_rows.all()]


def all_snapshots(fs: FileSystem) -> list[SnapshotInfo]:
    """All snapshots in order of their times, the kept ones included, each once."""
    own = list_snapshots(fs)
    ids = {info.id for info in own}
    found = [*own, *(info for info in list_kept(fs.layout, fs.keyring) if info.id not in ids)]
    return sorted(found, key=lambda info: (info.created_ns, info.seq, info.id))
