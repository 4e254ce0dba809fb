"""Segments that this disk lacks, or has damaged, from a remote that has them; what it has not keeps nothing else back.

It may be used while the vault is mounted: a segment gets its name when it is whole and right, and replaces a damaged
one in one step.  What was fetched of a segment stays if this ends, and is gone on with.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial

from vaultfs.errors import FormatTooNewError, IntegrityError, ObjectMissingError, VaultError
from vaultfs.ids import SegmentName, VaultId
from vaultfs.remotes.store import Store
from vaultfs.storage.durable import fsync_directory, storage_errors
from vaultfs.storage.kept_manifests import kept_files
from vaultfs.storage.layout import VaultLayout
from vaultfs.storage.manifest_format import MAX_MANIFEST_BYTES, Manifest, manifest_hash
from vaultfs.sync.fetched_file import SegmentFetch
from vaultfs.sync.local_vault import ManifestHold, list_manifests
from vaultfs.sync.workers import Crew, ProgressFunction


@dataclass
class BroughtBack:
    """What became of it.

    Attributes:
        segments: how many are here now that were not, or were damaged.
        bytes: of these.
        missing: those that the remote has not, or has other bytes of, and what it said.
    """

    segments: int = 0
    bytes: int = 0
    missing: dict[SegmentName, VaultError] = field(default_factory=dict)


def bring_back(
    store: Store,
    layout: VaultLayout,
    wanted: Mapping[SegmentName, int],
    *,
    connections: int = 4,
    progress: ProgressFunction | None = None,
    is_stopped: Callable[[], bool] = lambda: False,
) -> BroughtBack:
    """Have segments in a vault, durably.  Those that are there are read, and fetched only if they are damaged.

    Args:
        store: has them.
        layout: the vault.
        wanted: their names and sizes in bytes.
        connections: how many are fetched at once.
        progress: called in this thread.
        is_stopped: asked in this thread, ten times a second; may raise.

    Raises:
        StoppedError: the caller asked for it.
        VaultLockedError: another process fetches one of them.
        NoSpaceError, ReadOnlyError, StorageError: the disk is full, or failed.
        RemoteError: the remote failed.
    """
    crew = Crew(connections, progress, is_stopped)
    crew.total_bytes = sum(wanted.values())
    done = BroughtBack()
    shards = sorted({layout.sealed_path(name).parent for name in wanted})
    for shard in shards:
        with storage_errors(f"cannot create the directory {shard}"):
            shard.mkdir(mode=0o700, exist_ok=True)

    def fetch(name: SegmentName, size: int) -> None:
        before = _mark(layout, name)
        try:
            SegmentFetch(store, layout, name, size, crew).run()
        except (ObjectMissingError, IntegrityError) as error:
            done.missing[name] = error
            return
        if _mark(layout, name) != before:
            done.segments += 1
            done.bytes += size

    try:
        crew.work(partial(fetch, name, size) for name, size in wanted.items())
    finally:
        for directory in (*shards, layout.segments):
            fsync_directory(directory)
    return done


def _mark(layout: VaultLayout, name: SegmentName) -> int | None:
    """Which file has the name of a segment; None: none has."""
    path = layout.sealed_path(name)
    with storage_errors(f"cannot look at {path}"):
        try:
            return path.lstat().st_ino
        except FileNotFoundError:
            return None


def needed_by_snapshots(layout: VaultLayout, vault_id: VaultId) -> dict[SegmentName, int]:
    """The segments that the snapshots of a vault name, kept ones included, and their sizes in bytes.

    A manifest that is damaged, or of a newer vaultfs, says nothing.

    Raises:
        StorageError: the disk failed.
    """
    found: dict[SegmentName, int] = {}
    for manifest in list_manifests(layout):
        hold = ManifestHold.take(layout, manifest)
        if hold is None:
            continue
        try:
            with suppress(IntegrityError, FormatTooNewError):
                found.update(hold.content(vault_id).segments)
        finally:
            hold.release()
    for seq, snapshot_id in kept_files(layout):
        path = layout.kept_path(seq, snapshot_id)
        with storage_errors(f"cannot read {path}"), suppress(FileNotFoundError), path.open("rb") as file:
            data = file.read(MAX_MANIFEST_BYTES + 1)
            if manifest_hash(data) == snapshot_id:
                with suppress(IntegrityError, FormatTooNewError):
                    found.update(Manifest.decode(data)[0].segments)
    return found
