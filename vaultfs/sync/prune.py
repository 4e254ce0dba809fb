"""``prune``: give up snapshots of a remote by rules, and delete, later, what nothing needs any more.

In two phases, which may be months apart; each run of a prune does what is due of both:

1. What the rules drop, and what no snapshot needs, is written into a record (`vaultfs.sync.condemned`).  That is one
   PUT.  Nothing is deleted, and until the second phase the dropped snapshots can still be restored.
2. When a record is older than the grace period: other prunes are kept from deleting (`vaultfs.sync.sweep_claim`); a
   mark is put; everything is looked at anew; the manifests that the record names are deleted, then the segments that it
   names and nothing needs now, then the record.

So a kill at any moment leaves complete snapshots, and the next prune goes on.  What is deleted was unneeded twice, a
grace period apart, by all manifests that could be found, not by a listing alone: an object that a listing leaves out
or invents makes nothing else deletable, and if one manifest cannot be read, nothing is deleted at all.

Another machine may sync meanwhile.  It takes in records before it relies on anything, and protects what it needs of
them; see `RemoteRun.spare`.  This machine's own syncs wait for the ledger's lock.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import tzinfo
from functools import partial
from typing import Final, TypeVar

from vaultfs.errors import IntegrityError, UsageError, VaultError
from vaultfs.ids import SegmentName, VaultId
from vaultfs.remotes.store import Store
from vaultfs.storage.layout import VaultLayout
from vaultfs.sync.condemned import Record, put_mark, put_record
from vaultfs.sync.download import choose_head
from vaultfs.sync.keep_policy import DatedHead, KeepPolicy, kept
from vaultfs.sync.ledger import OpenLedger
from vaultfs.sync.needed_here import needed_here
from vaultfs.sync.prune_report import KeptSnapshot, PruneReport, WaitingRecord
from vaultfs.sync.remote_layout import (
    BRANCHES_PREFIX,
    CONDEMNED_PREFIX,
    SWEPT_PREFIX,
    RemoteHead,
    head_key,
    segment_key,
)
from vaultfs.sync.remote_objects import list_segments, read_remote_header
from vaultfs.sync.remote_snapshots import RemoteHistory, needs_of
from vaultfs.sync.spares import SKEW_NS, Spares
from vaultfs.sync.sweep_claim import SweepClaim
from vaultfs.sync.workers import Crew, ProgressFunction, StoppedError, SyncProgress

__all__ = ["KeptSnapshot", "PruneReport", "StoppedError", "SyncProgress", "WaitingRecord", "prune"]

DeleteAll = Callable[[Sequence[str]], None]
"""Deletes the objects with these keys; if it raises, some may be gone."""
_What = TypeVar("_What")

_TOGETHER: Final = 256
"""So many objects are deleted at once, where that can be: as many as one order to peers may name."""
GRACE_NS: Final = 7 * 24 * 3600 * 10**9
"""Long enough for a weekend in which somebody finds out that the rules were wrong, and for the longest upload."""


def prune(
    store: Store,
    ledger: OpenLedger,
    policy: KeepPolicy,
    *,
    now_ns: int,
    layout: VaultLayout | None = None,
    vault_id: VaultId | None = None,
    drop: Sequence[str] = (),
    grace_ns: int = GRACE_NS,
    dry_run: bool = False,
    zone: tzinfo | None = None,
    connections: int = 4,
    delete_all: DeleteAll | None = None,
    progress: ProgressFunction | None = None,
    is_stopped: Callable[[], bool] = lambda: False,
) -> PruneReport:
    """Give up what the rules do not keep, and delete what was given up long enough ago.

    Args:
        store: the remote.
        ledger: what this machine knows of it, open; an empty one without a file if it knows nothing.
        policy: which snapshots stay; an empty one keeps all.
        now_ns: nanoseconds since 1970.
        layout: the vault on this machine; None if there is none.
        vault_id: whose remote it must be; None: of any vault.
        drop: snapshots to be given up whatever the rules say, as `choose_head` takes them.
        grace_ns: how old a record must be before what it names is deleted.
        dry_run: change nothing.
        zone: whose calendar the rules count by; the machine's if None.
        connections: so many requests at once.
        delete_all: deletes many objects at once, where that costs less; None: they are deleted one by one.
        progress: called in this thread, with bytes of segments deleted.
        is_stopped: asked in this thread, ten times a second; may raise.

    Raises:
        UsageError: the remote holds another vault, or none; a snapshot is not there, or the newest is to be dropped.
        IntegrityError, ObjectMissingError: a manifest cannot be read, so it is not known what is needed.
        FormatTooNewError: a newer vaultfs wrote there.
        VaultLockedError: another prune is deleting.
        StorageError: the vault here, or the ledger, cannot be read or written.
        StoppedError: the caller asked for it.
        RemoteError: the remote failed.  As after all of these, the same prune may be run again.
    """
    crew = Crew(connections, progress, is_stopped)
    crew.tick()
    header = read_remote_header(store)
    if header is None:
        raise UsageError(f"{store.name} has no vault.json: it holds no vault")
    if vault_id is not None and header.vault_id != vault_id:
        raise UsageError(f"{store.name} holds another vault; nothing was changed")
    history = RemoteHistory(store, header.vault_id, crew, ledger.holdings, layout)
    work = _Prune(store, ledger, history, crew, header.vault_id, layout, delete_all, now_ns=now_ns, dry_run=dry_run)
    return work.run(policy, drop, grace_ns, zone)


class _Prune:
    def __init__(
        self,
        store: Store,
        ledger: OpenLedger,
        history: RemoteHistory,
        crew: Crew,
        vault_id: VaultId,
        layout: VaultLayout | None,
        delete_all: DeleteAll | None,
        *,
        now_ns: int,
        dry_run: bool,
    ) -> None:
        self._store: Final = store
        self._delete_all: Final = delete_all
        self._ledger: Final = ledger
        self._history: Final = history
        self._crew: Final = crew
        self._vault_id: Final = vault_id
        self._layout: Final = layout
        self._now_ns: Final = now_ns
        self._dry_run: Final = dry_run
        self._report: Final = PruneReport()
        self._claim: Final = SweepClaim(store, ledger, vault_id, now_ns, crew.tick)
        self._spares: Final = Spares(store, vault_id, now_ns, crew.tick)

    def run(self, policy: KeepPolicy, drop: Sequence[str], grace_ns: int, zone: tzinfo | None) -> PruneReport:
        history, report = self._history, self._report
        history.read()
        if not history.snapshots:
            raise UsageError(f"{self._store.name} has no snapshot, so there is nothing to prune")
        for digest, record in history.records.items():
            self._ledger.condemned(digest, record.heads, record.segments)
        self._choose(policy, drop, zone)
        self._condemn()
        ripe, future = {}, {}
        for digest, record in history.records.items():
            age_ns = self._now_ns - record.created_ns
            if age_ns < -SKEW_NS:
                future[digest] = record
                age_ns = 0
            if age_ns >= grace_ns:
                ripe[digest] = record
            else:
                due_ns = self._now_ns - max(0, age_ns) + grace_ns
                size = sum(record.segments.values())
                report.waiting.append(WaitingRecord(due_ns, len(record.heads), len(record.segments), size))
        if ripe or future:
            self._sweep(ripe, future)
        elif not self._dry_run:
            self._claim.remove_left_behind(sorted(history.listing.sweeping))
        self._remove_old_notes()
        return report

    # --- the first phase

    def _choose(self, policy: KeepPolicy, drop: Sequence[str], zone: tzinfo | None) -> None:
        """Which snapshots stay."""
        snapshots = list(self._history.snapshots.values())
        ours = [DatedHead(each.head, each.created_ns) for each in snapshots if self._is_ours(each.head)]
        rules: dict[RemoteHead, list[str]] = {each.head: ["not ours"] for each in snapshots}
        for each in ours:
            del rules[each.head]
        if policy.is_empty:
            rules |= {each.head: ["no rule"] for each in ours}
        else:
            rules |= kept(ours, policy, zone, now_ns=self._now_ns)
        newest = max((each.head.seq for each in ours), default=0)
        # Which was given up before may be named again: that changes nothing.
        before = {head for record in self._history.records.values() for head in record.heads}
        known = list({each.head for each in snapshots} | before)
        dropped = {choose_head(known, which) for which in drop} - before
        for head in dropped:
            if head.seq == newest and self._is_ours(head):
                raise UsageError(f"snapshot {head.seq} is the newest one of {self._store.name}; it is not dropped")
        for found in sorted(snapshots, key=lambda each: (each.head.seq, each.head.hash), reverse=True):
            if found.head in rules and found.head not in dropped:
                self._report.kept.append(KeptSnapshot(found.head, found.created_ns, rules[found.head]))
            else:
                self._report.dropped.append(DatedHead(found.head, found.created_ns))

    def _is_ours(self, head: RemoteHead) -> bool:
        """Whether the rules apply to a snapshot: not to those of another history that stands beside ours."""
        if not self._history.listing.branches:
            return True
        if self._layout is None:
            raise UsageError(
                f"{self._store.name} holds two histories of the vault side by side; prune it from a machine that has "
                "the vault, as in 'vaultfs prune VAULT REMOTE', which knows its own"
            )
        return head.hash in self._ledger.holdings.heads

    def _condemn(self) -> None:
        """Write down what is given up now."""
        history, report = self._history, self._report
        stays = [history.snapshots[each.head.hash] for each in report.kept]
        goes = [history.snapshots[each.head.hash] for each in report.dropped]
        needed = needs_of(stays).keys() | self._needed_here()
        known = set().union(*(record.segments for record in history.records.values()))
        listed = list_segments(self._store, self._crew.tick)
        segments = {
            name: size
            for name, size in (listed | needs_of(goes)).items()
            if size > 0 and name not in needed and name not in known
        }
        report.condemned_segments, report.condemned_bytes = len(segments), sum(segments.values())
        if not segments and not goes:
            return
        heads = tuple(each.head for each in goes)
        for part in Record(self._vault_id, self._now_ns, heads, segments).parts():
            digest = part.digest if self._dry_run else put_record(self._store, part)
            self._ledger.condemned(digest, part.heads, part.segments)
            history.records[digest] = part
        for each in goes:
            del history.snapshots[each.head.hash]

    def _needed_here(self) -> set[SegmentName]:
        layout = self._layout
        return set() if layout is None else needed_here(layout, self._vault_id, self._ledger.holdings)

    def _date_anew(self, digest: str, record: Record) -> None:
        """Replace a record that says that it was written in the future, or it would wait until then."""
        new = Record(record.vault_id, self._now_ns, record.heads, record.segments)
        now_called = put_record(self._store, new)
        self._ledger.condemned(now_called, new.heads, new.segments)
        self._store.delete(CONDEMNED_PREFIX + digest)

    # --- the second phase

    def _sweep(self, ripe: dict[str, Record], future: dict[str, Record]) -> None:
        """Delete what ripe records name and nothing needs now; date those from the future anew."""
        if self._dry_run:
            self._tell_doomed(ripe)
            return
        try:
            self._claim.take()
            self._sweep_alone(ripe, future)
        except VaultError:
            self._claim.give_up()
            raise
        self._claim.release()

    def _sweep_alone(self, ripe: dict[str, Record], future: dict[str, Record]) -> None:
        history = self._history
        marks = set(history.listing.swept)  # each of a deletion that began before this one
        token = secrets.token_hex(32)
        for name in (token, *ripe) if ripe else ():
            put_mark(self._store, name)
        history.look_again()
        # What another prune has carried out since the first look may be sent anew just now.
        ripe = {digest: record for digest, record in ripe.items() if digest in history.listing.condemned}
        for digest, record in future.items():
            if digest in history.listing.condemned:
                self._date_anew(digest, record)
        if not ripe:
            return
        goes, doomed = self._tell_doomed(ripe)
        self._crew.total_bytes += self._report.deleted_bytes
        self._delete({head_key(head): 0 for head in goes})
        self._delete({segment_key(name): size for name, size in doomed.items()})
        for digest in ripe:
            self._store.delete(CONDEMNED_PREFIX + digest)
            del history.records[digest]
        self._ledger.condemned(token, (), ())
        self._spares.remove_old()
        # A mark without its record is of a deletion that has ended; the new token does for all before it.
        for old in (marks | ripe.keys()) - (history.listing.condemned - ripe.keys()):
            self._store.delete(SWEPT_PREFIX + old)

    def _tell_doomed(self, ripe: dict[str, Record]) -> tuple[set[RemoteHead], dict[SegmentName, int]]:
        """The snapshots that records give up, and the segments of theirs that nothing needs now."""
        history, report = self._history, self._report
        if not history.snapshots:
            raise IntegrityError(f"no snapshot would be left on {self._store.name}; nothing was deleted")
        goes = {head for record in ripe.values() for head in record.heads}
        # A snapshot that another record gives up shows until that one is ripe, and needs its segments so long.
        history.read_given_up(goes)
        needed = (
            needs_of(history.snapshots.values()).keys()
            | self._needed_here()
            | self._spares.read(history.listing.spared)
        )
        doomed = {
            name: size for record in ripe.values() for name, size in record.segments.items() if name not in needed
        }
        report.deleted_snapshots = len(goes)
        report.deleted_segments, report.deleted_bytes = len(doomed), sum(doomed.values())
        return goes, doomed

    def _delete(self, sizes: Mapping[str, int]) -> None:
        """Delete objects; the next step begins when all are gone.

        Args:
            sizes: their lengths in bytes, by key.
        """
        if self._delete_all is None:
            self._crew.work(partial(self._delete_some, self._store.delete, key, {key: sizes[key]}) for key in sizes)
            return
        keys = list(sizes)
        batches = [keys[start : start + _TOGETHER] for start in range(0, len(keys), _TOGETHER)]
        # One after the other: each goes to all peers at once, and who is asked to stop does so between two.
        for batch in batches:
            delete = partial(self._delete_some, self._delete_all, batch, {key: sizes[key] for key in batch})
            self._crew.work([delete])

    def _delete_some(self, delete: Callable[[_What], None], what: _What, sizes: Mapping[str, int]) -> None:
        self._crew.check()
        self._claim.require_valid()
        delete(what)
        self._crew.advance(sum(sizes.values()))

    def _remove_old_notes(self) -> None:
        """Records that are damaged protect and delete nothing; branches that have ended."""
        if self._dry_run:
            return
        listing = self._history.listing
        for digest in self._history.damaged_records:
            self._store.delete(CONDEMNED_PREFIX + digest)
        if listing.branches and self._has_one_history(listing.heads):
            for token in listing.branches:
                self._store.delete(BRANCHES_PREFIX + token)

    def _has_one_history(self, heads: Collection[RemoteHead]) -> bool:
        """Whether all that is left on the remote is ours, so that there are no branches any more."""
        given_up = self._history.given_up
        return all(self._is_ours(head) for head in heads if head not in given_up)
