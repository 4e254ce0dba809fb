"""Adopting: a vault takes over the history that another copy has sent to a remote, and keeps its own as snapshots.

Numbers of chunks and inodes of the two histories collide, so their rows cannot be merged.  The whole ``metadata.db`` is
replaced by the one that the other's snapshot has an image of, and every snapshot of ours becomes a kept one
(`vaultfs.vault.kept_snapshots`).  What is in no snapshot gets one before.

The order, under the vault's lock from the beginning to the end; each step is durable before the next:

1. the present: a snapshot, unless the newest one shows the same; the vault is closed;
2. missing segments are fetched into ``.adopting``; whoever calls does that, between `keep_present` and `complete`;
3. the record (`vaultfs.vault.adoption_record`), from which a crash is recovered;
4. our manifests are linked into ``heads/kept``; theirs lies in ``.adopting``, where no sync sees it;
5. what was fetched is moved among the segments, and the new database is made in ``.adopting``;
6. HEAD says ``open``, with the generation of the new database and the one of the old: either is accepted;
7. the new database takes the place of the old one: this is the moment;
8. the vault is opened as after a crash: the record says what is left to do.

Whatever stops this before 7 leaves the vault as it was, and the next attempt fetches only the rest.

``vault.json`` is the remote's from step 1 on if that has another one (`vaultfs.vault.adopted_header`).
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

from vaultfs.crypto.header import VaultHeader
from vaultfs.errors import FormatTooNewError, IntegrityError, UsageError, VaultError, VaultLockedError
from vaultfs.ids import SegmentName, SnapshotSeq
from vaultfs.metadata.tree_comparison import shows_the_same
from vaultfs.storage.durable import atomic_replace
from vaultfs.storage.kept_manifests import kept_files
from vaultfs.storage.layout import VaultLayout
from vaultfs.storage.lock import VaultLock
from vaultfs.storage.segment_reader import hash_file
from vaultfs.vault.adopted_header import AdoptedHeader, adopted_header
from vaultfs.vault.adoption_record import AdoptionRecord, move_segments
from vaultfs.vault.adoption_staging import prepare_staging, require_own_staging, sealed_size
from vaultfs.vault.adoption_steps import keep_manifests, only_known_before, switch
from vaultfs.vault.head import Head
from vaultfs.vault.kept_snapshots import list_kept
from vaultfs.vault.opening import load_header, open_unlocked
from vaultfs.vault.restoring import make_database
from vaultfs.vault.shipping import LABEL as SYNC_LABEL
from vaultfs.vault.snapshot_deleting import delete_snapshot
from vaultfs.vault.snapshot_image import open_with_keys
from vaultfs.vault.snapshot_listing import list_snapshots
from vaultfs.vault.snapshot_making import create_snapshot
from vaultfs.vault.snapshot_manifest import SnapshotInfo, open_manifest

if TYPE_CHECKING:
    from types import TracebackType

    from vaultfs.crypto.slots import Secret
    from vaultfs.metadata.chunk_rows import SegmentRow
    from vaultfs.storage.segment_source import SegmentSource
    from vaultfs.vault.filesystem import FileSystem

log = logging.getLogger(__name__)

LABEL: Final = "before adopt"
"""Of the snapshot of what was in none."""


@dataclass(frozen=True)
class Theirs:
    """What a remote has.

    Attributes:
        header: its ``vault.json``; None if that of this vault is newer.
        seq: number of the snapshot to be adopted.
        snapshot_id: the hash of its manifest.
        manifest: the bytes of that.
    """

    header: VaultHeader | None
    seq: SnapshotSeq
    snapshot_id: str
    manifest: bytes


class Adopting:
    """One adoption.  A context manager; what was not completed at its end is as it was.

    Made by `begin`.

    Attributes:
        content: what the manifest of theirs says.
        has_new_header: ``vault.json`` is the remote's now, and was another one before.
    """

    def __init__(
        self, layout: VaultLayout, lock: VaultLock, header: AdoptedHeader, theirs: Theirs, source: SegmentSource | None
    ) -> None:
        self._layout: Final = layout
        self._lock: Final = lock
        self._header: Final = header
        self._keyring: Final = header.keyring
        self._theirs: Final = theirs
        self._source: Final = source
        self.content: Final = open_manifest(self._keyring, theirs.manifest, theirs.seq, theirs.snapshot_id)[1]
        self.has_new_header = False
        self._fs: FileSystem | None = None
        self._segments: list[SegmentRow] = []
        self._snapshots: list[SnapshotInfo] = []
        self._generation = 0

    @classmethod
    def begin(cls, path: Path, secret: Secret, theirs: Theirs, source: SegmentSource | None = None) -> Self:
        """Lock and open the vault, which recovers it from a crash or an interrupted adoption.

        Args:
            path: the vault's directory.
            secret: opens the vault as the remote has it; or as it is here, if the header is the same or ours is newer.
            theirs: what shall be taken over.
            source: has segments that are missing here.

        Raises:
            VaultLockedError: it is mounted, or another command works on it.
            WrongPasswordError: the secret does not open the header that counts; nothing was changed.
            UsageError: keys have gone different ways, see `adopted_header`; nothing was changed.
            VaultError: as `open_filesystem`, as `open_manifest` for theirs, and as `require_own_staging`.
        """
        layout = VaultLayout(path)
        load_header(layout)  # first, because taking the lock creates a file
        lock = VaultLock.acquire(layout, purpose="adopting another history")
        try:
            ours = load_header(layout)
            choice = adopted_header(ours, theirs.header, secret)
            adopting = cls(layout, lock, choice, theirs, source)
            require_own_staging(layout)
            adopting._take_header(ours)
            adopting._fs = adopting._open()
        except BaseException:
            lock.release()
            raise
        return adopting

    def _open(self) -> FileSystem:
        """The vault, as a mount opens it; the lock stays when it is closed."""
        lock = self._lock.share()
        try:
            return open_unlocked(self._layout, self._keyring, lock, read_only=False, source=self._source)
        except BaseException:
            lock.release()
            raise

    def _take_header(self, ours: VaultHeader) -> None:
        header = self._header.header
        if header.encode() != ours.encode():
            atomic_replace(self._layout.header, header.encode())
            self.has_new_header = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            fs, self._fs = self._fs, None
            if fs is not None:
                fs.close()
        finally:
            self._lock.release()

    # --- the steps

    def keep_present(self) -> SnapshotInfo | None:
        """Step 1.  Return the snapshot that had to be made.

        Raises:
            UsageError: what shall be taken over is a snapshot of this vault's own.
            NoSpaceError, StorageError: nothing can be kept, so nothing is changed.
        """
        fs, self._fs = self._opened(), None
        made = None
        try:
            with fs.database_safe():
                known = list_snapshots(fs)
                self._require_foreign(known)
                if not known or not self._is_shown_by(known[-1], fs):
                    made = create_snapshot(fs, LABEL)
                self._snapshots = list_snapshots(fs)
                self._segments = fs.chunk_rows.segments()
                self._generation = fs.database.setting("generation")
        finally:
            fs.close()
        return made

    def _require_foreign(self, known: list[SnapshotInfo]) -> None:
        """After a crash the row of the adopted snapshot must tell the new database from the old one."""
        if any(info.id == self._theirs.snapshot_id for info in known):
            raise UsageError(
                f"snapshot {self._theirs.seq} is this vault's own, but its manifest is missing here; nothing was "
                "changed.  Give it up with 'vaultfs snapshot delete', and adopt again"
            )

    def _opened(self) -> FileSystem:
        if self._fs is None:
            raise UsageError("the steps of an adoption are done once, and in order")
        return self._fs

    def _is_shown_by(self, info: SnapshotInfo, fs: FileSystem) -> bool:
        """Whether a snapshot shows the present; one that cannot be read does not."""
        fs.committer.commit()
        try:
            snapshot = open_with_keys(self._layout, self._keyring, info.id, self._source)
        except VaultError as error:
            log.info("snapshot %d cannot be compared with the present: %s", info.seq, error)
            return False
        try:
            return shows_the_same(fs.database, snapshot.database)
        finally:
            snapshot.close()

    def is_ours(self, seq: SnapshotSeq, snapshot_id: str, manifest: bytes) -> bool:
        """Whether a manifest was made by who has this vault's key.

        Args:
            seq: the number that it must have.
            snapshot_id: the hash that it must have.
            manifest: the bytes.
        """
        try:
            open_manifest(self._keyring, manifest, seq, snapshot_id)
        except (IntegrityError, FormatTooNewError):
            return False
        return True

    @property
    def is_partial(self) -> bool:
        """Whether most of the present is not on this disk, as in a clone that was not filled."""
        here = missing = 0
        for row in self._segments:
            if row.name is not None and sealed_size(self._layout, row.name):
                here += row.live
            elif row.name is not None:
                missing += row.live
        return missing > here

    @property
    def staging(self) -> VaultLayout:
        """Where segments are to be fetched to; its directories exist."""
        return prepare_staging(self._layout)

    def missing(self) -> list[tuple[SegmentName, int]]:
        """Step 2: names and sizes of the segments that must be in `staging` before `complete`.

        Those that the metadata does not know, or that have holes, count as here only if their hash is right.

        Raises:
            StorageError: the disk failed.
        """
        layout = self._layout
        whole = {row.name for row in self._segments if row.name is not None and not row.holes}
        return [
            (facts.name, facts.size)
            for facts in self.content.segments
            if sealed_size(layout, facts.name) != facts.size
            or (facts.name not in whole and hash_file(layout.sealed_path(facts.name)) != facts.name)
        ]

    def complete(self, ancestors: Collection[str], highest_seq: int) -> list[SnapshotInfo]:
        """Steps 3 to 8; return the snapshots of ours that are kept.

        Of snapshots that syncs have made, which the remote's history goes on from, only the newest is kept.

        Args:
            ancestors: hashes of snapshots known to be in the history that is adopted.
            highest_seq: no snapshot of this vault on the remote has a higher number; later ones here get higher ones.

        Raises:
            NoSpaceError, StorageError: the disk failed; the vault is as it was, or as the next mount makes it.
            IntegrityError: a segment of theirs is not here, or not what it must be; a snapshot of ours has no manifest.
        """
        layout, theirs = self._layout, self._theirs
        if self._fs is not None:
            raise UsageError("the steps of an adoption are done once, and in order")
        staging = self.staging
        fresh = [facts.name for facts in self.content.segments if sealed_size(staging, facts.name) == facts.size]
        record = AdoptionRecord(theirs.seq, theirs.snapshot_id, tuple(fresh))
        atomic_replace(staging.manifest_path(theirs.seq, theirs.snapshot_id), theirs.manifest)
        if self._header.at_the_end is not None:
            atomic_replace(staging.header, self._header.at_the_end.encode())
        elif os.path.lexists(staging.header):
            staging.header.unlink()  # of an earlier attempt
        record.write(layout, self._keyring)
        keep_manifests(layout, self._snapshots)
        move_segments(fresh, staging, layout)
        generation = self._make_database(staging, highest_seq)
        spare = only_known_before(layout, staging, self._keyring, self._segments)
        replace(record, spare=spare).write(layout, self._keyring)
        switch(layout, staging, self._keyring, self._generation, generation)
        return self._open_adopted(ancestors)

    def _make_database(self, staging: VaultLayout, highest_seq: int) -> int:
        """Make the new database, and return its generation, which nobody has seen before."""
        layout = self._layout
        head = Head(layout, self._keyring)
        generation = max(head.load().generation, head.seen_generation()) + 1
        numbers = (seq for seq, _ in kept_files(layout))
        settings = {
            "generation": generation,
            "snapshot_seq": max(self.content.seq, highest_seq, *numbers),
        }
        theirs = self._theirs.snapshot_id
        make_database(staging, layout, self._keyring, self.content, theirs, source=self._source, settings=settings)
        return generation

    def _open_adopted(self, ancestors: Collection[str]) -> list[SnapshotInfo]:
        """Step 8."""
        layout, keyring = self._layout, self._keyring
        fs = self._open()
        try:
            kept = list_kept(layout, keyring)
            for info in [each for each in kept if each.label == SYNC_LABEL and each.id in ancestors][:-1]:
                with contextlib.suppress(VaultLockedError):  # it is mounted; a later adoption deletes it
                    delete_snapshot(fs, info.id)
            ours = {info.id for info in self._snapshots}
            return [info for info in list_kept(layout, keyring) if info.id in ours]
        finally:
            fs.close()
