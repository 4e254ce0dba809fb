"""``restore``, its keyless half: a snapshot's header, manifest and segments, from a remote into a directory.

Nothing is believed but hashes.  A segment gets its name when its hash is right, and the manifest, by which everything
else knows that the snapshot is there, comes last, when all segments are durable.  So a fetch may be killed at any
moment; the same one goes on where it ended, and asks for nothing that is there.

What this cannot check is the signature of the manifest: that takes the key.  Until the vault is opened, the snapshot is
what somebody has put there under that hash.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Final

from vaultfs.errors import IntegrityError, NotAVaultError, UsageError
from vaultfs.ids import SegmentName, VaultId
from vaultfs.remotes.store import Store
from vaultfs.storage.durable import atomic_replace, fsync_directory, storage_errors
from vaultfs.storage.layout import VaultLayout
from vaultfs.storage.lock import VaultLock
from vaultfs.storage.manifest_format import Manifest
from vaultfs.sync.fetched_file import SegmentFetch
from vaultfs.sync.local_vault import ManifestHold, list_manifests
from vaultfs.sync.plan import newest_last
from vaultfs.sync.public_header import PublicHeader, read_header
from vaultfs.sync.remote_layout import LARGEST_SEGMENT_BYTES, RemoteHead
from vaultfs.sync.remote_objects import list_head_objects, list_heads, read_remote_header, read_remote_manifest
from vaultfs.sync.workers import Crew, ProgressFunction, StoppedError, SyncProgress

__all__ = ["RemoteHead", "StoppedError", "SyncProgress", "choose_head", "fetch", "find_head", "heads"]

SHORTEST_ID: Final = 4
"""Digits of a snapshot's id that must be given at least."""

_OURS: Final = {"vault.json", "segments", "heads", "lock", "cache", "remotes.json", ".restoring"}
_HALF_MADE: Final = {".metadata.db.restored", "metadata.db", "metadata.db-wal", "metadata.db-shm"}
"""What an interrupted restore may have left besides, if `VaultLayout.restoring` says so; else it is a vault's."""


def heads(store: Store) -> list[RemoteHead]:
    """The snapshots that a remote lists, newest last.

    Raises:
        RemoteError: it cannot be listed.
    """
    return newest_last(list_heads(store))


def find_head(store: Store, which: str | None) -> RemoteHead:
    """The snapshot of a remote that a person means.

    Args:
        store: the remote.
        which: as for `choose_head`.

    Raises:
        UsageError: as `choose_head`; or two histories stand side by side there, so that none is simply the newest.
        RemoteError: it cannot be listed.
    """
    listing = list_head_objects(store)
    if which is None and listing.branches and listing.heads:
        raise UsageError(
            f"{store.name} holds two histories of the vault side by side; 'vaultfs snapshots' shows them, choose one "
            "by its id"
        )
    return choose_head(newest_last(listing.heads), which)


def choose_head(heads: Sequence[RemoteHead], which: str | None) -> RemoteHead:
    """The snapshot that a person means.

    Args:
        heads: of a remote.
        which: its number, or at least `SHORTEST_ID` first digits of its id; None: the newest.

    Raises:
        UsageError: none is meant, or more than one.
    """
    if not heads:
        raise UsageError("there is no snapshot on the remote; 'vaultfs sync' puts them there")
    if which is None:
        newest = max(head.seq for head in heads)
        found = [head for head in heads if head.seq == newest]
        if len(found) > 1:
            ids = ", ".join(head.hash[:12] for head in found)
            raise UsageError(f"two copies of the vault went on from there: snapshot {newest} is {ids}; choose by id")
        return found[0]
    text = which.strip().lower()
    found = [head for head in heads if text == str(head.seq)]
    if not found and len(text) >= SHORTEST_ID:
        found = [head for head in heads if head.hash.startswith(text)]
    if not found:
        raise UsageError(f"there is no snapshot {which!r} on the remote; it has {_summary(heads)}")
    if len(found) > 1:
        raise UsageError(f"{which!r} means {len(found)} snapshots of the remote; give more digits of the id")
    return found[0]


def _summary(heads: Sequence[RemoteHead]) -> str:
    first, last = min(head.seq for head in heads), max(head.seq for head in heads)
    return f"snapshot {first}" if first == last else f"{len(heads)} snapshots, from {first} to {last}"


def fetch(
    store: Store,
    layout: VaultLayout,
    head: RemoteHead,
    *,
    connections: int = 4,
    progress: ProgressFunction | None = None,
    is_stopped: Callable[[], bool] = lambda: False,
    with_segments: bool = True,
) -> Manifest:
    """Have a snapshot's header, manifest and segments in a directory; durable on return.

    Args:
        store: the remote.
        layout: a directory that is empty, does not exist, or was fetched into before.
        head: which snapshot.
        connections: how many segments are fetched at once, each with at most some MiB of memory.
        progress: called in this thread.
        is_stopped: asked in this thread, ten times a second; may raise.
        with_segments: otherwise they stay where they are, for `fill`.

    Returns:
        What the manifest says; its signature was not verified.

    Raises:
        UsageError: the directory holds something else, or the remote no vault.
        VaultLockedError: somebody works on the directory.
        StoppedError: the caller asked for it.  Fetch again to go on, as after all that follows.
        NoSpaceError, ReadOnlyError, StorageError: the disk is full, or failed.
        IntegrityError: the remote has something else than what the snapshot needs.
        FormatTooNewError: a newer vaultfs wrote it.
        RemoteError: the remote failed.
    """
    crew = Crew(connections, progress, is_stopped)
    crew.tick()
    header = read_remote_header(store)
    if header is None:
        raise UsageError(f"{store.name} has no vault.json: it holds no vault")
    _require_room(layout, header.vault_id)
    data, manifest = read_remote_manifest(store, head, header.vault_id, crew.tick)
    too_large = [name for name, size in manifest.segments if size > LARGEST_SEGMENT_BYTES]
    if too_large:
        raise IntegrityError(f"the manifest of snapshot {head.seq} names segments larger than any: {too_large[0]}, ...")
    layout.create_directories()
    with VaultLock.acquire(layout, purpose="restoring"):
        _require_room(layout, header.vault_id)
        atomic_replace(layout.restoring, b"")
        _place_header(layout, header)
        if with_segments:
            _fetch_segments(store, layout, manifest.segments, crew)
        atomic_replace(layout.manifest_path(head.seq, head.hash), data)
    return manifest


def fill(
    store: Store,
    layout: VaultLayout,
    *,
    connections: int = 4,
    progress: ProgressFunction | None = None,
    is_stopped: Callable[[], bool] = lambda: False,
) -> None:
    """Fetch what a clone lacks of the segments that its newest snapshot names.  It may be mounted meanwhile.

    Args:
        store: has them.
        layout: the vault.
        connections: how many segments are fetched at once.
        progress: called in this thread.
        is_stopped: asked in this thread, ten times a second; may raise.

    Raises:
        UsageError: the vault has no snapshot.
        StoppedError, NoSpaceError, ReadOnlyError, StorageError, IntegrityError, RemoteError: as `fetch`.
    """
    crew = Crew(connections, progress, is_stopped)
    newest = list_manifests(layout)[-1:]
    hold = ManifestHold.take(layout, newest[0]) if newest else None
    if hold is None:
        raise UsageError(f"{layout.root} has no snapshot that says what it lacks")
    try:
        manifest = hold.content(read_header(layout).vault_id)
        _fetch_segments(store, layout, manifest.segments, crew)
    finally:
        hold.release()


def fetch_segments(
    store: Store,
    layout: VaultLayout,
    segments: Sequence[tuple[SegmentName, int]],
    *,
    connections: int = 4,
    progress: ProgressFunction | None = None,
    is_stopped: Callable[[], bool] = lambda: False,
) -> None:
    """Have some segments in a directory; durable on return, and gone on with where it ended.

    Args:
        store: has them.
        layout: where they shall be; its directories exist.
        segments: names and sizes.
        connections: how many segments are fetched at once.
        progress: called in this thread.
        is_stopped: asked in this thread, ten times a second; may raise.

    Raises:
        StoppedError, NoSpaceError, ReadOnlyError, StorageError, IntegrityError, RemoteError: as `fetch`.
    """
    _fetch_segments(store, layout, segments, Crew(connections, progress, is_stopped))


def _require_room(layout: VaultLayout, vault_id: VaultId) -> None:
    """Check that nothing is in the way.

    Raises:
        UsageError: a vault in use, another vault, or something else altogether.
    """
    root = layout.root
    with storage_errors(f"cannot look at {root}"):
        if not os.path.lexists(root):
            return
        if not root.is_dir():
            raise UsageError(f"{root} is not a directory; choose another place")
        found = set(os.listdir(root))  # noqa: PTH208  # names, not paths
        is_half_made = layout.restoring.name in found
        is_in_use = os.path.lexists(layout.head) or (layout.database.name in found and not is_half_made)
    if is_in_use:
        raise UsageError(f"{root} holds a vault already; choose an empty directory")
    foreign = found - _OURS - (_HALF_MADE if is_half_made else set())
    others = sorted(name for name in foreign if not name.startswith((".vault.json.", "..restoring.")))
    if others:
        raise UsageError(f"{root} is not empty: it holds {others[0]!r}; choose an empty directory")
    if layout.header.name not in found:
        return
    try:
        is_same = read_header(layout).vault_id == vault_id
    except NotAVaultError:
        is_same = False
    if not is_same:
        raise UsageError(f"{root} holds another vault than the remote; choose an empty directory")


def _place_header(layout: VaultLayout, header: PublicHeader) -> None:
    if not os.path.lexists(layout.header) or read_header(layout).data != header.data:
        atomic_replace(layout.header, header.data)


def _fetch_segments(store: Store, layout: VaultLayout, segments: Iterable[tuple[SegmentName, int]], crew: Crew) -> None:
    needed = dict(segments)
    crew.total_bytes = sum(needed.values())
    shards = sorted({layout.sealed_path(name).parent for name in needed})
    for shard in shards:
        with storage_errors(f"cannot create the directory {shard}"):
            shard.mkdir(mode=0o700, exist_ok=True)
    crew.work(partial(_fetch_one, store, layout, name, size, crew) for name, size in needed.items())
    for directory in (*shards, layout.segments):
        fsync_directory(directory)


def _fetch_one(store: Store, layout: VaultLayout, name: SegmentName, size: int, crew: Crew) -> None:
    SegmentFetch(store, layout, name, size, crew).run()
