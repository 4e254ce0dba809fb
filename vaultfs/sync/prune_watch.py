"""How a sync keeps out of the way of prunes: it relies on nothing that one may delete, and protects what it needs.

See `vaultfs.sync.condemned` for the notes by which both know of each other.
"""

from __future__ import annotations

import time
from collections.abc import Collection
from typing import Final

from vaultfs.errors import ObjectMissingError, RemoteError
from vaultfs.ids import SegmentName, VaultId
from vaultfs.remotes.store import Store
from vaultfs.sync.condemned import Record, put_spare, read_record, remove_spares, require_bounded
from vaultfs.sync.ledger import OpenLedger
from vaultfs.sync.remote_objects import HeadListing, Tick, list_head_objects
from vaultfs.sync.sweep_claim import awake_or_asleep_ns

LOOK_AGAIN_NS: Final = 2 * 24 * 3600 * 10**9
"""Syncs that take longer look at the marks again before they put a snapshot; much less than the grace period."""


class PruneWatch:
    """The prunes of one remote, as one sync sees them.

    Args:
        store: the remote.
        ledger: of this machine, open.
    """

    def __init__(self, store: Store, ledger: OpenLedger) -> None:
        self._store: Final = store
        self._ledger: Final = ledger
        self._listing = HeadListing()
        self._vault_id = VaultId(b"")
        self._records: Final[dict[str, Record]] = {}
        self._spares: list[str] = []
        self._looked_ns = 0

    def look(self, listing: HeadListing, vault_id: VaultId, tick: Tick) -> bool:
        """Take in what is new, and forget that it is there.

        Args:
            listing: what lies below ``heads/``.
            vault_id: whose remote it is.
            tick: called meanwhile; may raise, to end it.

        Returns:
            Whether something was deleted, and nobody knows what: then everything has to be listed.

        Raises:
            IntegrityError: a record is damaged.
            FormatTooNewError: a newer vaultfs wrote it.
            RemoteError: as `Store.get`, or a prune has just ended.
        """
        self._listing, self._vault_id = listing, vault_id
        self._looked_ns = awake_or_asleep_ns()
        for digest in sorted(listing.condemned - self._ledger.holdings.condemned):
            record = self._record(digest, tick)
            self._ledger.condemned(digest, record.heads, record.segments)
        return bool(self._unknown_marks())

    def without_condemned(self, listed: dict[SegmentName, int], tick: Tick) -> dict[SegmentName, int]:
        """What may be relied on of a listing of all segments: nothing that a prune has given up.

        Raises:
            IntegrityError, FormatTooNewError, RemoteError: as `look`.
        """
        for digest in sorted(self._listing.condemned):
            for name in self._record(digest, tick).segments:
                listed.pop(name, None)
        return listed

    def listed_all(self) -> None:
        """The ledger has been compared with a listing that is newer than all marks that were seen."""
        for mark in sorted(self._unknown_marks()):
            self._ledger.condemned(mark, (), ())

    @property
    def has_condemned(self) -> bool:
        """Whether a prune has given something up that is not deleted yet."""
        return bool(self._listing.condemned)

    def spare(self, needed: Collection[SegmentName], tick: Tick) -> None:
        """See that no prune deletes what the snapshots that will be put rely on, until `unspare`.

        Args:
            needed: the names of all their segments.
            tick: called meanwhile; may raise, to end it.

        Raises:
            IntegrityError: the record of a prune is damaged.
            RemoteError: some of it is being deleted just now, or as `Store.put`.
        """
        relied: set[SegmentName] = set()
        concerned = set()
        for digest in sorted(self._listing.condemned):
            both = self._record(digest, tick).segments.keys() & needed
            relied |= both
            if both:
                concerned.add(digest)
        if not relied:
            return
        self._spares = put_spare(self._store, self._vault_id, time.time_ns(), relied)
        now = list_head_objects(self._store, tick)
        if not now.spared.issuperset(self._spares):
            self.unspare()
            raise RemoteError(
                f"{self._store.name} does not list what was stored there just before, so prunes and syncs could not "
                "see each other; nothing was sent; sync again later"
            )
        if concerned & now.swept or now.swept - self._listing.swept:
            self.unspare()
            raise RemoteError(
                f"{self._store.name}: a prune is deleting segments that this vault needs again, or was interrupted; "
                "wait for its end or run 'vaultfs prune' again, then sync again"
            )

    def require_undisturbed(self, tick: Tick) -> None:
        """After days, in which this machine may have slept: see that no prune has deleted anything meanwhile.

        To be called before a snapshot is put, because what it needs may lie there for so long and none names it.  What
        was only given up since `look` does no harm: the snapshot is there before that may be deleted.

        Raises:
            RemoteError: one has deleted something.
        """
        if awake_or_asleep_ns() - self._looked_ns < LOOK_AGAIN_NS:
            return
        now = list_head_objects(self._store, tick)
        if now.swept - self._listing.swept:
            raise RemoteError(
                f"{self._store.name}: a prune has deleted something during this sync, which took for days; sync again, "
                "and prune after it"
            )
        self._looked_ns = awake_or_asleep_ns()

    def unspare(self) -> None:
        """Take back what `spare` has put.

        Raises:
            RemoteError: as `Store.delete`.
        """
        tokens, self._spares = self._spares, []
        remove_spares(self._store, tokens)

    def _record(self, digest: str, tick: Tick) -> Record:
        if digest not in self._records:
            try:
                self._records[digest] = read_record(self._store, digest, self._vault_id, tick)
            except ObjectMissingError as error:
                raise RemoteError(
                    f"{self._store.name}: a prune has just ended; nothing was sent; sync again"
                ) from error
            require_bounded(self._records.values(), self._store.name)
        return self._records[digest]

    def _unknown_marks(self) -> set[str]:
        return self._listing.swept - self._ledger.holdings.condemned
