"""The manifests of kept snapshots, ``heads/kept``, as anybody may read them: which there are, and what they need.

What kept snapshots are is told in `vaultfs.vault.kept_snapshots`.  Signatures are not looked at here, only that a file
is the one of its name.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from vaultfs.errors import IntegrityError, VaultError
from vaultfs.ids import SegmentName, SnapshotSeq
from vaultfs.storage.durable import storage_errors
from vaultfs.storage.layout import VaultLayout
from vaultfs.storage.manifest_format import MAX_MANIFEST_BYTES, Manifest, manifest_hash


def kept_files(layout: VaultLayout) -> list[tuple[SnapshotSeq, str]]:
    """Number and id of every kept snapshot, by the names of the manifests, in order.

    Raises:
        StorageError: the directory cannot be read.
    """
    return layout.manifests_in(layout.kept) if layout.kept.is_dir() else []


def kept_segments(layout: VaultLayout) -> frozenset[SegmentName]:
    """The names of all segments that kept snapshots need.

    Raises:
        IntegrityError: a manifest is damaged, so that nobody knows what it needs.
        StorageError: the disk failed.
    """
    found: set[SegmentName] = set()
    for seq, snapshot_id in kept_files(layout):
        found.update(segments_of(layout.kept_path(seq, snapshot_id), seq, snapshot_id))
    return frozenset(found)


def known_kept_segments(layout: VaultLayout) -> frozenset[SegmentName]:
    """As `kept_segments`, but passing over manifests that are damaged; fsck reports them."""
    found: set[SegmentName] = set()
    for seq, snapshot_id in kept_files(layout):
        with contextlib.suppress(VaultError):
            found.update(segments_of(layout.kept_path(seq, snapshot_id), seq, snapshot_id))
    return frozenset(found)


def segments_of(path: Path, seq: int, snapshot_id: str) -> list[SegmentName]:
    """The segments that a manifest names.

    Args:
        path: of the file.
        seq: the snapshot's number.
        snapshot_id: its id, which the file must have.

    Raises:
        IntegrityError: it is another one.
        StorageError: the disk failed.
    """
    with storage_errors(f"cannot read {path}"):
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            data = file.read(MAX_MANIFEST_BYTES + 1)
    if manifest_hash(data) != snapshot_id:
        raise IntegrityError(
            f"the manifest of the kept snapshot {seq} ({snapshot_id[:12]}) is not the one that was written, so nobody "
            "knows which segments it needs; restore it, or delete the snapshot"
        )
    return [name for name, _ in Manifest.decode(data)[0].segments]
