"""One remote in one sync: what it holds is looked at first, and nothing is written unless its history is ours.

A look costs two requests, ``vault.json`` and the list of snapshots, as long as the ledger agrees with them.  All
segments are listed if the ledger is new or was damaged, if the remote has lost something, if a prune of another
machine has deleted something, or if the caller wishes it.  A remote that may lose what was stored, as peers do, finds
out what is gone each time.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Collection, Mapping
from typing import Final

from vaultfs.errors import (
    ForkedError,
    IntegrityError,
    ObjectExistsError,
    RemoteError,
    UsageError,
    VaultError,
)
from vaultfs.ids import SegmentName, VaultId
from vaultfs.remotes.store import BytesSource, Source, Store
from vaultfs.storage.durable import storage_errors
from vaultfs.storage.layout import VaultLayout
from vaultfs.storage.snapshot_history import read_history
from vaultfs.sync.branches import put_branch_note
from vaultfs.sync.ledger import Holdings, OpenLedger
from vaultfs.sync.local_vault import LocalManifest, ManifestHold, list_manifests
from vaultfs.sync.plan import ancestors, descendants, is_due, newest_last, reconciled, strangers, without
from vaultfs.sync.prune_watch import PruneWatch
from vaultfs.sync.public_header import PublicHeader, read_header
from vaultfs.sync.remote_layout import HEADER_KEY, RemoteHead, head_key, segment_key
from vaultfs.sync.remote_objects import (
    HeadListing,
    list_head_objects,
    list_segments,
    read_remote_header,
    read_remote_manifest,
)

FindLost = Callable[[Mapping[SegmentName, int]], Collection[SegmentName]]

_CHOOSE: Final = (
    "nothing was written; 'vaultfs sync --adopt' takes over what is there and keeps what is here as snapshots, "
    "'vaultfs sync --fork' keeps both side by side"
)
_ADOPT: Final = (
    "nothing was written; 'vaultfs sync --adopt' takes over what is there and keeps what is here as snapshots, or send "
    "this vault to an empty remote"
)


class LocalVault:
    """The vault as it was when the sync began.

    Args:
        layout: where it is.

    Raises:
        NotAVaultError, FormatTooNewError, StorageError: it cannot be read.
    """

    def __init__(self, layout: VaultLayout) -> None:
        self.layout: Final = layout
        self.header: Final = read_header(layout)
        self.manifests: Final = list_manifests(layout)

    def size_of(self, manifest: LocalManifest) -> int | None:
        """Bytes in a manifest; None if it was deleted."""
        path = self.layout.manifest_path(*manifest)
        with storage_errors(f"cannot look at {path}"):
            try:
                return path.lstat().st_size
            except FileNotFoundError:
                return None


class RemoteRun:
    """What happens with one remote.

    Args:
        name: what the person calls it.
        store: the remote.
        ledger: open.
        lost: finds out which of some segments, with sizes in bytes, are not there any more, though nobody deleted them;
            None: what was stored stays.

    Attributes:
        error: what ended the work with this remote; None so far.
        skipped: why the first of the snapshots that could not be sent was not.
        unfinished: hashes of local manifests that the remote shall have and has not.
        is_header_due: vault.json has to be put.
        segments, bytes, manifests: what was put.
        prunes: what prunes of other machines do there.
    """

    def __init__(self, name: str, store: Store, ledger: OpenLedger, lost: FindLost | None = None) -> None:
        self._lost: Final = lost
        self.name: Final = name
        self.store: Final = store
        self.ledger: Final = ledger
        self.error: VaultError | None = None
        self.skipped: VaultError | None = None
        self.unfinished: set[str] = set()
        self.is_header_due = True
        self.segments = 0
        self.bytes = 0
        self.manifests = 0
        self._has_header = False
        self.prunes: Final = PruneWatch(store, ledger)
        self._listing = HeadListing()
        self._fork: list[RemoteHead] = []
        self._lock: Final = threading.Lock()

    @property
    def holdings(self) -> Holdings:
        """What is known to be there."""
        return self.ledger.holdings

    def guarded(self, action: Callable[[], None]) -> None:
        """Do something unless this remote has failed; an error is this remote's own."""
        if self.error is not None:
            return
        try:
            action()
        except VaultError as error:
            self.fail(error)

    def fail(self, error: VaultError) -> None:
        """Stop working with this remote; the first error counts."""
        if self.error is None:
            self.error = error

    def skip(self, error: VaultError) -> None:
        """A snapshot cannot be sent; others can."""
        if self.skipped is None:
            self.skipped = error

    # --- looking

    def look(
        self,
        local: LocalVault,
        tick: Callable[[], None],
        *,
        check: bool,
        fork: bool = False,
        distrusted: Collection[SegmentName] = (),
    ) -> None:
        """Find out what the remote holds.

        Args:
            local: the vault.
            tick: called meanwhile; may raise, to end it.
            check: list everything, whatever the ledger says.
            fork: accept another history beside ours; `accept_fork` writes that down.
            distrusted: segments that are to be sent again, whatever the remote says.

        Raises:
            UsageError: it holds another vault.
            ForkedError: it holds another history of this vault.
            FormatTooNewError, IntegrityError, RemoteError: it cannot be read.
        """
        if distrusted:
            self.ledger.replace(without(self.holdings, distrusted))
        header = self._look_at_header(local.header)
        self._listing = list_head_objects(self.store, tick)
        has_deleted = self.prunes.look(self._listing, local.header.vault_id, tick)
        self._require_our_history(local, tick, fork=fork)
        has_lost = (header is None and self.holdings.header is not None) or self._has_lost_a_head(local)
        if check or has_deleted or has_lost or not self.holdings.is_listed:
            listed = self.prunes.without_condemned(list_segments(self.store, tick), tick)
            for name in distrusted:
                listed.pop(name, None)
            self.ledger.replace(reconciled(self.holdings, listed))
            self.prunes.listed_all()
        if self._lost is not None:
            gone = self._lost(self.holdings.there)
            if gone:
                self.ledger.replace(without(self.holdings, gone))
        self.is_header_due = header is None or header.data != local.header.data
        if not self.is_header_due:
            self.ledger.header(local.header.hash)
        self.unfinished = {each.hash for each in local.manifests if self._lacks(each, local)}

    def _look_at_header(self, ours: PublicHeader) -> PublicHeader | None:
        """The remote's ``vault.json``; None if there is none, or a damaged one that this machine put there."""
        offered = self.holdings.offered
        try:
            header = read_remote_header(self.store)
        except IntegrityError as error:
            if not offered:
                raise IntegrityError(f"{error}; nothing was written; remove it if nobody needs it") from error
            self._has_header = True
            return None
        self._has_header = header is not None
        if header is None or header.data == ours.data:
            return header
        if header.vault_id != ours.vault_id:
            raise UsageError(f"{self.store.name} holds another vault; nothing was written; choose another place there")
        if header.epoch > ours.epoch or (offered and header.hash not in offered):
            raise ForkedError(
                f"the {HEADER_KEY} on {self.store.name} was changed by another device: passwords or keys are not those "
                f"of this vault any more; {_ADOPT}"
            )
        return header

    def _require_our_history(self, local: LocalVault, tick: Callable[[], None], *, fork: bool) -> None:
        ours = [(each.seq, each.hash) for each in reversed(local.manifests)]
        older = [(head.seq, head.hash) for head in reversed(newest_last(self.holdings.heads.values()))]
        known = {digest for _, digest in (*ours, *older)}
        oldest = min((seq for seq, _ in (*ours, *older)), default=None)
        branches = self.holdings.branches
        unknown = strangers((head for head in self._listing.heads if head.hash not in branches), known, oldest)
        made_here = set(read_history(local.layout)) if unknown else set()
        for head in [head for head in unknown if (head.seq, head.hash) in made_here]:
            self.ledger.known(head)
            unknown.remove(head)
        if not unknown:
            return
        paths = {each.hash: each for each in local.manifests}
        listed = {head.hash: head for head in self._listing.heads}

        def previous(digest: str) -> str | None:
            if digest in paths:
                with contextlib.suppress(VaultError):  # the remote's copy is as good
                    found = _previous_here(local, paths[digest])
                    if found is not None:
                        return found.hex()
            if digest not in listed:
                return None
            _, manifest = read_remote_manifest(self.store, listed[digest], local.header.vault_id, tick)
            return None if manifest.previous is None else manifest.previous.hex()

        for head in ancestors(unknown, [*ours, *(each for each in older if each[1] not in paths)], previous):
            self.ledger.known(head)
            unknown.remove(head)
        for head in descendants(unknown, branches, previous) if branches else ():
            self.ledger.branch(head)
            unknown.remove(head)
        if not unknown:
            return
        for head in unknown if fork else unknown[-1:]:  # one that is damaged is no history
            read_remote_manifest(self.store, head, local.header.vault_id, tick)
        if fork:
            self._fork = unknown
            return
        newest = unknown[-1]
        raise ForkedError(
            f"{self.store.name} holds snapshot {newest.seq} ({newest.hash[:12]}) of the device {newest.device[:12]}, "
            f"which this vault does not come from: another copy of the vault has moved the remote forward; {_CHOOSE}"
        )

    def _has_lost_a_head(self, local: LocalVault) -> bool:
        """Whether a snapshot that we put is gone; a listing that leaves one out is not enough."""
        for manifest in local.manifests:
            head = self.holdings.heads.get(manifest.hash)
            if head is None or head.hash not in self.holdings.whole or head in self._listing.heads:
                continue
            size = self.store.size_bytes(head_key(head))
            if size is None:
                return True
            self._listing.heads[head] = size
        return False

    def _lacks(self, manifest: LocalManifest, local: LocalVault) -> bool:
        head = self.holdings.heads.get(manifest.hash)
        size = local.size_of(manifest)
        if size is None:
            return False
        if head is None or head.hash not in self.holdings.whole:
            return is_due(manifest.hash, self.holdings, is_newest=manifest == local.manifests[-1])
        return not self.has_head(head, size)

    def has_head(self, head: RemoteHead, size: int) -> bool:
        """Whether the remote lists a manifest, with the right size."""
        return self._listing.heads.get(head) == size

    # --- putting

    def accept_fork(self, vault_id: VaultId) -> None:
        """Write down that another history stands beside ours from now on, if `look` was allowed to accept one.

        Raises:
            RemoteError: as `Store.put`.
        """
        if self._fork and not self._listing.branches:
            put_branch_note(self.store, vault_id, time.time_ns())
        for head in self._fork:
            self.ledger.branch(head)
        self._fork = []

    def put_header(self, ours: PublicHeader) -> None:
        """Put ``vault.json``, if it is due.

        Raises:
            ForkedError: another device did so just now.
            RemoteError: as `Store.put`, or it was not stored.
        """
        if not self.is_header_due:
            return
        self.ledger.offered(ours.hash)  # first: if this ends here, what the remote then has is still ours
        try:
            self.store.put(HEADER_KEY, BytesSource(ours.data), if_absent=not self._has_header)
        except ObjectExistsError:
            there = read_remote_header(self.store)
            if there is None:
                raise RemoteError(f"{self.store.name} does not create {HEADER_KEY}, and has none; sync again") from None
            if there.data != ours.data:
                raise ForkedError(
                    f"another device has just put a {HEADER_KEY} on {self.store.name}; {_ADOPT}"
                ) from None
        # Its bytes are asked for, as one with another password has the same size.
        there = read_remote_header(self.store)
        if there is None or there.data != ours.data:
            raise RemoteError(
                f"{self.store.name} said that it had stored {HEADER_KEY}, but does not have it; sync again, and if "
                "this goes on, do not rely on this remote"
            )
        self.ledger.header(ours.hash)
        self.is_header_due = False

    def put_segment(self, name: SegmentName, source: Source) -> None:
        """Put a segment, whose hash was checked; it is not asked for yet.

        Raises:
            RemoteError: as `Store.put`.
        """
        self.store.put(segment_key(name), source)
        self.ledger.put(name, source.size_bytes)
        with self._lock:
            self.segments += 1
            self.bytes += source.size_bytes

    def put_head(self, head: RemoteHead, source: Source) -> None:
        """Put a manifest, all whose segments are there.

        Raises:
            RemoteError: as `Store.put`, or it was not stored; or a prune came in the way of a long sync.
        """
        key, size = head_key(head), source.size_bytes
        if not self.has_head(head, size):
            self.prunes.require_undisturbed(lambda: None)
            self.store.put(key, source)
            self.require_stored(key, size)
            with self._lock:
                self.manifests += 1
                self.bytes += size
            self._listing.heads[head] = size
        self.ledger.whole(head)
        self.unfinished.discard(head.hash)

    def require_stored(self, key: str, size: int) -> None:
        """Ask whether what was put is there.

        Raises:
            RemoteError: it is not.
        """
        found = self.store.size_bytes(key)
        if found != size:
            what = "does not have it" if found is None else f"has {found} bytes of {size}"
            raise RemoteError(
                f"{self.store.name} said that it had stored {key}, but {what}; sync again, and if this goes on, do not "
                "rely on this remote"
            )


def _previous_here(local: LocalVault, manifest: LocalManifest) -> bytes | None:
    hold = ManifestHold.take(local.layout, manifest)
    if hold is None:
        return None
    try:
        return hold.content(local.header.vault_id).previous
    finally:
        hold.release()
