"""The snapshots of a remote, read: what each needs, when it was made, and which of them are given up.

A listing is not believed alone.  Snapshots that the ledger knows and the listing leaves out are asked for by name, and
so is the one before each, by its number and the hash by which the next one names it.  Manifests that are on this
machine too are read here; all are checked by their hashes.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterable
from functools import partial
from typing import Final, NamedTuple

from vaultfs.errors import IntegrityError, ObjectMissingError, VaultError
from vaultfs.ids import SegmentName, SnapshotSeq, VaultId
from vaultfs.remotes.store import Store
from vaultfs.storage.layout import VaultLayout
from vaultfs.storage.manifest_format import Manifest
from vaultfs.sync.condemned import Record, read_record, require_bounded
from vaultfs.sync.ledger import Holdings
from vaultfs.sync.local_vault import LocalManifest, ManifestHold
from vaultfs.sync.remote_layout import RemoteHead, head_key
from vaultfs.sync.remote_objects import HeadListing, list_head_objects, read_remote_manifest
from vaultfs.sync.workers import Crew


class RemoteSnapshot(NamedTuple):
    """A snapshot on a remote.

    Attributes:
        head: its name there.
        created_ns: nanoseconds since 1970, by the clock of the machine that made it.
        previous: hash of the manifest before it; None for the first.
        segments: names and sizes of what it needs.
    """

    head: RemoteHead
    created_ns: int
    previous: str | None
    segments: tuple[tuple[SegmentName, int], ...]

    @property
    def size_bytes(self) -> int:
        """Bytes of all segments that it needs, those included that others need too."""
        return sum(size for _, size in self.segments)


class RemoteHistory:
    """What is known of the snapshots of a remote.

    Args:
        store: the remote.
        vault_id: whose it is.
        crew: does the work.
        holdings: what this machine knows to be there; empty if it knows nothing.
        layout: the vault on this machine; None if there is none.

    Attributes:
        listing: what lies below ``heads/``.
        records: what prunes have given up and not deleted yet, by hash.
        damaged_records: hashes of those that make no sense.
        snapshots: those that nobody has given up, by hash.
    """

    def __init__(
        self, store: Store, vault_id: VaultId, crew: Crew, holdings: Holdings, layout: VaultLayout | None = None
    ) -> None:
        self.listing = HeadListing()
        self.records: Final[dict[str, Record]] = {}
        self.damaged_records: Final[set[str]] = set()
        self.snapshots: Final[dict[str, RemoteSnapshot]] = {}
        self._store: Final = store
        self._vault_id: Final = vault_id
        self._crew: Final = crew
        self._holdings: Final = holdings
        self._layout: Final = layout
        self._pairs: Final[dict[tuple[SegmentName, int], tuple[SegmentName, int]]] = {}
        self._lock: Final = threading.Lock()

    @property
    def given_up(self) -> dict[RemoteHead, Record]:
        """Snapshots that a prune has given up, there still or not."""
        return {head: record for record in self.records.values() for head in record.heads}

    def read(self) -> None:
        """List, and read everything but what prunes have given up.

        Raises:
            IntegrityError: a manifest is not what its name says, so nobody knows what it needs.
            ObjectMissingError: one is listed but not there, likewise.
            FormatTooNewError: a newer vaultfs wrote there.
            StoppedError, RemoteError: as usual.
        """
        self.listing = list_head_objects(self._store, self._crew.tick)
        if not self._read_records():  # a prune has just ended, and the snapshots that it gave up are listed still
            self.listing = list_head_objects(self._store, self._crew.tick)
            self._read_records()
        self._ask_for_known()
        self.read_new(self.listing.heads)

    def read_given_up(self, but: Collection[RemoteHead] = ()) -> None:
        """Read also the snapshots that prunes have given up, as long as they are listed.

        Args:
            but: not these.

        Raises:
            IntegrityError, ObjectMissingError, FormatTooNewError, StoppedError, RemoteError: as `read`.
        """
        wanted = [head for head in self.given_up if head in self.listing.heads and head not in but]
        self._crew.work(partial(self._read_one, head) for head in wanted)

    def look_again(self) -> None:
        """List again, and read the snapshots that have come since.

        Raises:
            IntegrityError, FormatTooNewError, StoppedError, RemoteError: as `read`.
        """
        self.listing = list_head_objects(self._store, self._crew.tick)
        self.read_new(self.listing.heads)

    def read_new(self, heads: Iterable[RemoteHead]) -> None:
        """Read the manifests of these snapshots, and of those before them that were not listed."""
        given_up = self.given_up
        new = [head for head in heads if head.hash not in self.snapshots and head not in given_up]
        while new:
            self._crew.work(partial(self._read_one, head) for head in new)
            known = self.snapshots.keys() | {head.hash for head in given_up} | {head.hash for head in new}
            guesses = {guess for head in new if (guess := self._before(head)) and guess.hash not in known}
            new = []
            self._crew.work(partial(self._ask, guess, new.append) for guess in guesses)

    def _read_records(self) -> bool:
        """Whether all that are listed are there."""
        are_there = True
        for digest in sorted(self.listing.condemned - self.records.keys()):
            try:
                self.records[digest] = read_record(self._store, digest, self._vault_id, self._crew.tick)
                require_bounded(self.records.values(), self._store.name)
            except IntegrityError:
                self.damaged_records.add(digest)
            except ObjectMissingError:  # another prune has just finished with it, or the listing has invented it
                are_there = False
        return are_there

    def _ask_for_known(self) -> None:
        """Ask for the snapshots that this machine knows to be there and the listing leaves out."""
        listed = {head.hash for head in self.listing.heads}
        known = [head for digest, head in self._holdings.heads.items() if digest in self._holdings.whole - listed]
        found: list[RemoteHead] = []
        self._crew.work(partial(self._ask, head, found.append) for head in known)
        self.listing.heads.update(dict.fromkeys(found, 0))

    def _ask(self, head: RemoteHead, found: Callable[[RemoteHead], None]) -> None:
        self._crew.check()
        if self._store.size_bytes(head_key(head)) is not None:
            found(head)

    def _before(self, head: RemoteHead) -> RemoteHead | None:
        """What the snapshot before one would be called, if that is still there."""
        snapshot = self.snapshots.get(head.hash)
        if snapshot is None or snapshot.previous is None or head.seq < 2:  # the first has none before it
            return None
        return RemoteHead(head.device, head.seq - 1, snapshot.previous)

    def _read_one(self, head: RemoteHead) -> None:
        # If it is listed and not there, that is an error: only with all manifests it is known what is needed.
        manifest = self._here(head) or read_remote_manifest(self._store, head, self._vault_id, self._crew.check)[1]
        previous = None if manifest.previous is None else manifest.previous.hex()
        with self._lock:  # so that a segment that a thousand snapshots need takes 8 bytes for each, and not 200
            segments = tuple(self._pairs.setdefault(pair, pair) for pair in manifest.segments)
            self.snapshots[head.hash] = RemoteSnapshot(head, manifest.created_ns, previous, segments)

    def _here(self, head: RemoteHead) -> Manifest | None:
        """The same manifest on this machine, if it is here and sound."""
        if self._layout is None:
            return None
        try:
            hold = ManifestHold.take(self._layout, LocalManifest(SnapshotSeq(head.seq), head.hash))
            if hold is None:
                return None
            try:
                manifest = hold.content(self._vault_id)
            finally:
                hold.release()
        except VaultError:  # the remote's will do
            return None
        return manifest if manifest.device.hex() == head.device else None


def needs_of(snapshots: Iterable[RemoteSnapshot]) -> dict[SegmentName, int]:
    """The segments that any of these needs, and their sizes."""
    found: dict[SegmentName, int] = {}
    for snapshot in snapshots:
        found.update(snapshot.segments)
    return found
