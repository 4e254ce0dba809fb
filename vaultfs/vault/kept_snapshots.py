"""Kept snapshots: those of a history that the vault has left for another one (`vaultfs.vault.adopting`).

Of one there is a manifest in ``heads/kept`` and no row: the metadata is another history's, in which the same numbers of
chunks mean other things.  The manifest is enough to open the snapshot.  Every segment that it names stays on the disk
with all its bytes, whatever the metadata says of it (`KeptSnapshots`, which the reclaimer asks).  One that only kept
snapshots name serves nothing else: its chunks are never taken for those of the present.

Deleting one renames its manifest (durable: from here on the snapshot is gone), deletes the segments that neither the
metadata nor another kept snapshot knows, and then the renamed manifest.  A mount goes on with what was interrupted.
"""

from __future__ import annotations

import logging
import os
import re
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

from vaultfs.crypto.device import DeviceKey
from vaultfs.errors import IntegrityError, VaultError
from vaultfs.ids import SegmentName, SnapshotSeq
from vaultfs.storage.durable import fsync_directory, storage_errors
from vaultfs.storage.kept_manifests import kept_files, kept_segments, segments_of
from vaultfs.storage.manifest_format import manifest_hash
from vaultfs.vault.kept_keys import KeptKeysDamagedError, forget_keys, sealing_epoch, with_kept_keys
from vaultfs.vault.snapshot_manifest import SnapshotContent, SnapshotHold, SnapshotInfo, open_manifest

if TYPE_CHECKING:
    from collections.abc import Collection

    from vaultfs.crypto.keys import Keyring
    from vaultfs.storage.layout import VaultLayout
    from vaultfs.vault.filesystem import FileSystem
    from vaultfs.vault.steps import Steps

log = logging.getLogger(__name__)

DAMAGED: Final = "damaged: its manifest, or the file of its keys, is not what was written"
"""Stands in the place of the label of a kept snapshot that can only be deleted."""
_ENDED: Final = re.compile(r"\.([0-9]{10,19})-([0-9a-f]{64})\.ended")


class KeptSnapshots:
    """What all kept snapshots need; read when first asked for, as hardly any vault has some.

    Args:
        layout: the vault.
    """

    def __init__(self, layout: VaultLayout) -> None:
        self._layout = layout
        self._names: frozenset[SegmentName] | None = None
        self._epochs: frozenset[int] | None = None

    def names(self) -> frozenset[SegmentName]:
        """The names of the segments that must stay whole.

        Raises:
            IntegrityError: a manifest is damaged, so that nobody knows what it needs.
            StorageError: the disk failed.
        """
        if self._names is None:
            self._names = kept_segments(self._layout)
        return self._names

    def epochs(self, keyring: Keyring) -> frozenset[int]:
        """The epochs whose keys are needed; all there are if that cannot be told."""
        if self._epochs is None:
            try:
                self._epochs = _kept_epochs(self._layout, keyring)
            except VaultError as error:
                log.warning("no older key is thrown away: %s", error)
                return frozenset(keyring.epochs)
        return self._epochs

    def forget(self) -> None:
        """A kept snapshot was deleted: read anew what the others need."""
        self._names = self._epochs = None


def open_kept(layout: VaultLayout, keyring: Keyring, seq: SnapshotSeq, snapshot_id: str) -> SnapshotContent:
    """What a kept snapshot's manifest says, verified in every respect.

    Raises:
        VaultError: as `SnapshotHold.take` and `open_any_manifest`.
    """
    hold = SnapshotHold.take(layout, seq, snapshot_id, is_exclusive=False)
    try:
        return open_any_manifest(layout, keyring, hold.data, seq, snapshot_id)[1]
    finally:
        hold.release()


def open_any_manifest(
    layout: VaultLayout, keyring: Keyring, data: bytes, seq: SnapshotSeq, snapshot_id: str
) -> tuple[Keyring, SnapshotContent]:
    """What the manifest of a snapshot says, kept or not, and the keys that open all of the snapshot.

    Args:
        layout: the vault.
        keyring: that of its header.
        data: the manifest.
        seq: the number that it must have.
        snapshot_id: the hash that it must have.

    Raises:
        KeptKeysDamagedError: it needs keys that are not in the header.
        VaultError: as `open_manifest`.
    """
    try:
        all_keys = with_kept_keys(layout, keyring)
    except KeptKeysDamagedError:
        content = _opened_by_header(keyring, data, seq, snapshot_id)
        if content is None:
            raise
        return keyring, content
    return all_keys, open_manifest(all_keys, data, seq, snapshot_id)[1]


def _opened_by_header(keyring: Keyring, data: bytes, seq: SnapshotSeq, snapshot_id: str) -> SnapshotContent | None:
    """What a manifest says; None if it, or a segment that it names, needs a key that the header does not have."""
    try:
        content = open_manifest(keyring, data, seq, snapshot_id)[1]
    except IntegrityError:
        if manifest_hash(data) == snapshot_id:
            return None
        raise  # it is damaged itself
    return content if {facts.epoch for facts in content.segments} <= set(keyring.epochs) else None


def list_kept(layout: VaultLayout, keyring: Keyring) -> list[SnapshotInfo]:
    """All kept snapshots, in order of number and id; one that cannot be read has `DAMAGED` for its label."""
    return [_info(layout, keyring, seq, snapshot_id) for seq, snapshot_id in kept_files(layout)]


def _info(layout: VaultLayout, keyring: Keyring, seq: SnapshotSeq, snapshot_id: str) -> SnapshotInfo:
    try:
        return replace(open_kept(layout, keyring, seq, snapshot_id).info(snapshot_id), is_kept=True)
    except IntegrityError:
        return SnapshotInfo(seq, snapshot_id, DAMAGED, 0, 0, 0, is_kept=True)


def _kept_epochs(layout: VaultLayout, keyring: Keyring) -> frozenset[int]:
    sealing = sealing_epoch(layout, keyring)
    found: set[int] = set() if sealing is None else {sealing}
    keyring = with_kept_keys(layout, keyring)
    devices = {DeviceKey(keyring.subkeys(epoch).device).public: epoch for epoch in keyring.epochs}
    for seq, snapshot_id in kept_files(layout):
        hold = SnapshotHold.take(layout, seq, snapshot_id, is_exclusive=False)
        try:
            manifest, content = open_manifest(keyring, hold.data, seq, snapshot_id)
        finally:
            hold.release()
        # Its image has the key that the database had then: the signer's, or an older one while that was changed.
        found.update(epoch for epoch in keyring.epochs if epoch <= devices[manifest.device])
        found.update(facts.epoch for facts in content.segments)
    return frozenset(found)


# --- deleting


def dropping(fs: FileSystem, seq: SnapshotSeq, snapshot_id: str) -> Steps[SnapshotInfo]:
    """Delete a kept snapshot, in steps as of `vaultfs.vault.steps`.

    Args:
        fs: the vault.
        seq: the snapshot's number.
        snapshot_id: its id.

    Raises:
        VaultLockedError: it is mounted, or being read.
        NoSpaceError, StorageError: it is not durably deleted.
    """
    layout = fs.layout
    info = _info(layout, fs.keyring, seq, snapshot_id)
    hold = SnapshotHold.take(layout, seq, snapshot_id, is_exclusive=True)
    try:
        ended = _ended_path(layout, seq, snapshot_id)
        yield partial(_end, layout.kept_path(seq, snapshot_id), ended)
        fs.kept.forget()
        log.info("deleted the kept snapshot %d (%s)", seq, snapshot_id[:12])
        yield partial(_give_back_all, layout, _known_to(fs))
    finally:
        hold.release()
    return info


def settle_kept(fs: FileSystem) -> None:
    """Go on with deletions that were interrupted; and what is an ordinary snapshot is no kept one."""
    layout = fs.layout
    kept = kept_files(layout)
    if not kept:
        forget_keys(layout)
    twins = {(row.seq, row.id) for row in fs.snapshot_rows.all()}.intersection(kept) if kept else ()
    for seq, snapshot_id in twins:
        if os.path.lexists(layout.manifest_path(seq, snapshot_id)):
            path = layout.kept_path(seq, snapshot_id)
            with storage_errors(f"cannot delete {path}"):
                path.unlink(missing_ok=True)
            fs.kept.forget()
    if _ended_files(fs.layout):
        _give_back_all(fs.layout, _known_to(fs))


def _known_to(fs: FileSystem) -> frozenset[str]:
    return frozenset(row.name for row in fs.chunk_rows.segments() if row.name is not None)


def _ended_path(layout: VaultLayout, seq: SnapshotSeq, snapshot_id: str) -> Path:
    return layout.kept / f".{seq:010d}-{snapshot_id}.ended"


def _ended_files(layout: VaultLayout) -> list[tuple[SnapshotSeq, str]]:
    if not layout.kept.is_dir():
        return []
    with storage_errors(f"cannot list {layout.kept}"), os.scandir(layout.kept) as entries:
        matches = [_ENDED.fullmatch(entry.name) for entry in entries if entry.is_file(follow_symlinks=False)]
    return [(SnapshotSeq(int(match[1])), match[2]) for match in matches if match is not None]


def _end(path: Path, ended: Path) -> None:
    with storage_errors(f"cannot delete {path}"):
        os.rename(path, ended)  # noqa: PTH104  # named as the system call
    fsync_directory(path.parent)


def _give_back_all(layout: VaultLayout, known: Collection[str]) -> None:
    """Delete what only kept snapshots needed that were deleted.

    What cannot be done now is told and left for the next mount; no data depends on it.

    Args:
        layout: the vault.
        known: names of the segments that the metadata has.
    """
    for seq, snapshot_id in _ended_files(layout):
        try:
            if not kept_files(layout):
                forget_keys(layout)
            _give_back(layout, seq, snapshot_id, known)
        except VaultError as error:
            log.warning("cannot give back the space of the deleted snapshot %d: %s", seq, error)


def _give_back(layout: VaultLayout, seq: SnapshotSeq, snapshot_id: str, known: Collection[str]) -> None:
    ended = _ended_path(layout, seq, snapshot_id)
    try:
        names = segments_of(ended, seq, snapshot_id)
    except IntegrityError as error:
        log.warning("some segments may be left over: %s", error)
        names = []
    others = kept_segments(layout) if names else frozenset()
    delete_segments(layout, [name for name in names if name not in known and name not in others])
    with storage_errors(f"cannot delete {ended}"):
        ended.unlink(missing_ok=True)


def delete_segments(layout: VaultLayout, names: Collection[SegmentName]) -> None:
    """Delete sealed segments, durably; those that are not there do not matter.

    Raises:
        StorageError: the disk failed.
    """
    for name in names:
        path = layout.sealed_path(name)
        with storage_errors(f"cannot delete {path}"):
            path.unlink(missing_ok=True)
    for directory in {layout.sealed_path(name).parent for name in names}:
        if directory.is_dir():
            fsync_directory(directory)
