"""``vaultfs sync --adopt``: take over what another device has sent to a remote, and keep what is here as snapshots.

The half without keys looks at the remote and fetches (`vaultfs.sync`); the half with keys changes the vault
(`vaultfs.vault.adopting`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from vaultfs.cli.interrupts import Interrupts
from vaultfs.cli.output import counted, emit_json, note, say
from vaultfs.cli.progress import Progress
from vaultfs.cli.secret_sources import Prompt, SecretOptions, obtain
from vaultfs.cli.sizes import format_size
from vaultfs.cli.spare_segments import lent_segments
from vaultfs.cli.targets import Stores
from vaultfs.crypto.header import VaultHeader
from vaultfs.errors import (
    FormatTooNewError,
    IntegrityError,
    ObjectMissingError,
    UsageError,
    VaultError,
    VaultLockedError,
)
from vaultfs.ids import SnapshotSeq
from vaultfs.remotes.configured import Remote
from vaultfs.remotes.counting import CountingStore
from vaultfs.storage.kept_manifests import kept_files
from vaultfs.storage.layout import VaultLayout
from vaultfs.storage.lock import read_holder
from vaultfs.storage.manifest_format import Manifest
from vaultfs.storage.snapshot_history import read_history
from vaultfs.sync.cloned_remote import note_cloned
from vaultfs.sync.download import fetch_segments, find_head, heads
from vaultfs.sync.ledger import Ledger
from vaultfs.sync.lineage import Lineage, Relation
from vaultfs.sync.local_vault import list_manifests
from vaultfs.sync.public_header import read_header
from vaultfs.sync.remote_layout import RemoteHead
from vaultfs.sync.remote_objects import read_remote_header, read_remote_manifest
from vaultfs.sync.workers import StoppedError
from vaultfs.vault.adopting import Adopting, Theirs
from vaultfs.vault.snapshot_manifest import SnapshotInfo

_SHOWN_ID: int = 12


def adopt(
    path: Path,
    layout: VaultLayout,
    remotes: list[Remote],
    stores: Stores,
    *,
    take: str | None,
    secret: SecretOptions | None,
    connections: int,
    bar: Progress,
    json: bool,
) -> int:
    """Take over what a remote holds.

    Args:
        path: as the person wrote it.
        layout: the vault.
        remotes: which were chosen.
        stores: opens them.
        take: which snapshot, by number or id; None: the newest.
        secret: where the password comes from.
        connections: how many segments are fetched at once.
        bar: shows how far it is.
        json: print the outcome as JSON.

    Raises:
        UsageError: more than one remote; no such snapshot, or none without doubt.
        VaultLockedError: the vault is mounted, or in use.
        VaultError: as `Adopting`, and as the remote says.
    """
    if len(remotes) != 1:
        names = ", ".join(remote.name for remote in remotes)
        raise UsageError(f"--adopt takes over what one remote holds; say which: {names}")
    holder = read_holder(layout)
    if holder is not None:  # before anybody types a password
        raise VaultLockedError(f"the vault {path} is in use by {holder}; unmount it or wait until it is done")
    remote = remotes[0]
    store = stores.open(remote.url, remote.options)
    head = find_head(store, take)
    listed = heads(store)
    theirs, overruled = _read(store, layout, head, Ledger.of(read_header(layout).vault_id, remote.name))
    key = obtain(secret or SecretOptions(), Prompt(f"Password for {path}"))
    with (
        Interrupts() as interrupts,
        lent_segments(layout.root) as spare,
        Adopting.begin(layout.root, key, theirs, spare) as adopting,
    ):
        work = _Work(layout, remote, store, listed, head, adopting, theirs)
        interrupts.check()
        if overruled is not None:
            work.overrule(overruled)
        with stores.interruptible() as is_stopped:
            work.look(is_stopped, is_chosen=take is not None)
        if work.relation is not Relation.OURS:
            work.made = adopting.keep_present()
            interrupts.check()
            with bar, stores.interruptible() as is_stopped:
                work.fetch(bar, is_stopped, connections)
            work.complete()  # a signal comes too late from here on
            work.note_on_remote()
    if json:
        emit_json(work.as_json())
    else:
        work.show()
    return 0


def _read(store: CountingStore, layout: VaultLayout, head: RemoteHead, ledger: Ledger) -> tuple[Theirs, str | None]:
    """What the remote says of itself; and the hash of its ``vault.json`` if a key rotation here has overruled that.

    Raises:
        UsageError: it holds no vault, or another one.
        VaultError: it cannot be read, or is not what it claims to be.
    """
    ours = read_header(layout)
    public = read_remote_header(store)
    if public is None:
        raise UsageError(f"{store.name} has no vault.json: it holds no vault")
    if public.vault_id != ours.vault_id:
        raise UsageError(f"{store.name} holds another vault; nothing was changed")
    data, _ = read_remote_manifest(store, head, ours.vault_id)
    # One that this machine has put there is older than ours; the next sync replaces it.
    is_older = public.hash in ledger.read(store.name).offered and public.epoch <= ours.epoch
    theirs = Theirs(None if is_older else VaultHeader.decode(public.data), SnapshotSeq(head.seq), head.hash, data)
    return theirs, public.hash if public.epoch < ours.epoch else None


def _ticking(is_stopped: Callable[[], bool]) -> Callable[[], None]:
    """What is called often while a remote is read.

    Args:
        is_stopped: whether a signal came.
    """

    def tick() -> None:
        if is_stopped():
            raise StoppedError("stopped; the same command goes on where it ended")

    return tick


class _Work:
    """One adoption, and what became of it.

    Args:
        layout: the vault.
        remote: as it stands in the list.
        store: the same, open.
        listed: its snapshots.
        head: the one that shall be taken over.
        adopting: the half with keys.
        theirs: what the remote says of itself.

    Attributes:
        relation: of the vault to that snapshot; known after `look`.
        made: the snapshot of what was in none.
        kept: the snapshots of ours that are kept.
    """

    def __init__(
        self,
        layout: VaultLayout,
        remote: Remote,
        store: CountingStore,
        listed: list[RemoteHead],
        head: RemoteHead,
        adopting: Adopting,
        theirs: Theirs,
    ) -> None:
        self._layout = layout
        self._remote = remote
        self._store = store
        self._listed = listed
        self._head = head
        self._adopting = adopting
        self._theirs = theirs
        self._vault_id = read_header(layout).vault_id
        self._ancestors: set[str] = set()
        self._highest_seq = head.seq
        self.relation = Relation.APART
        self.made: SnapshotInfo | None = None
        self.kept: list[SnapshotInfo] = []

    def overrule(self, header_hash: str) -> None:
        """Let the next sync replace the remote's ``vault.json``, whoever has put it there.

        Args:
            header_hash: of that, which is from before a rotation of the key on this device.
        """
        with Ledger.of(self._vault_id, self._remote.name).locked(self._store.name) as ledger:
            ledger.offered(header_hash)

    def look(self, is_stopped: Callable[[], bool], *, is_chosen: bool) -> None:
        """Find out how the two histories stand to each other.

        Args:
            is_stopped: whether a signal came.
            is_chosen: the person has said which snapshot, so it may be one of a history that this vault has left.

        Raises:
            StoppedError: a signal came.
            VaultError: as the remote says.
        """
        local = list_manifests(self._layout)
        tick = _ticking(is_stopped)
        lineage = Lineage(self._store, self._layout, self._vault_id, local, self._listed, tick)
        self.relation = lineage.relation(self._head)
        if not is_chosen and any(digest == self._head.hash for _, digest in read_history(self._layout)):
            self.relation = Relation.OURS  # although manifests in between are nowhere any more
        if self.relation is not Relation.OURS:
            lowest = min((seq for seq, _ in (*local, *kept_files(self._layout))), default=self._head.seq)
            self._ancestors = set(lineage.ancestors(self._head.hash, lowest))
            self._highest_seq = self._highest(tick)

    def _highest(self, tick: Callable[[], None]) -> int:
        """The highest number of a snapshot there.

        One that is not signed by the vault does not count: it could have the last number that there is.
        """
        newer = sorted((head for head in self._listed if head.seq > self._head.seq), key=lambda head: -head.seq)
        for head in newer:
            try:
                data, _ = read_remote_manifest(self._store, head, self._vault_id, tick)
            except (IntegrityError, FormatTooNewError, ObjectMissingError):
                continue
            if self._adopting.is_ours(SnapshotSeq(head.seq), head.hash, data):
                return head.seq
        return self._head.seq

    def fetch(self, bar: Progress, is_stopped: Callable[[], bool], connections: int) -> None:
        """Fetch what is missing, unless the vault is one that fetches what is read.

        Raises:
            StoppedError, VaultError: as `fetch_segments`; the next adoption fetches the rest.
        """
        with Ledger.of(self._vault_id, self._remote.name).locked(self._store.name) as ledger:
            # What the other device has put there is not in it; without this the next sync would send it again.
            ledger.replace(replace(ledger.holdings, is_listed=False))
        if self._adopting.is_partial:
            note(f"{self._layout.root} is a clone that was not filled, and stays one: only the metadata is fetched now")
            return
        fetch_segments(
            self._store,
            self._adopting.staging,
            self._adopting.missing(),
            connections=connections,
            progress=lambda state: bar(state.done_bytes, state.total_bytes),
            is_stopped=is_stopped,
        )

    def complete(self) -> None:
        """Take it over.

        Raises:
            VaultError: as `Adopting.complete`.
        """
        self.kept = self._adopting.complete(self._ancestors, self._highest_seq)

    def note_on_remote(self) -> None:
        """Remember that the remote has what was taken over, so that `status` knows it and a sync sends nothing."""
        manifest, _ = Manifest.decode(self._theirs.manifest)
        ledger = Ledger.of(self._vault_id, self._remote.name)
        try:
            lacking = note_cloned(self._remote.name, self._store, ledger, self._layout, self._head, manifest)
        except VaultError as error:
            note(f"'vaultfs status' does not know what is on {self._remote.name} until the next sync: {error}")
            return
        if lacking:
            note(f"warning: {self._store.name} lacks {counted(len(lacking), 'segment')} of this snapshot")

    # --- the outcome

    def as_json(self) -> dict[str, Any]:
        """The outcome, for machines."""
        is_taken = self.relation is not Relation.OURS
        return {
            "vault": str(self._layout.root),
            "remote": self._remote.name,
            "relation": self.relation.value,
            "adopted": asdict(self._info()) if is_taken else None,
            "made": None if self.made is None else asdict(self.made),
            "kept": [asdict(info) for info in self.kept],
            "has_new_header": self._adopting.has_new_header,
            "received_bytes": self._store.counts.received_bytes,
        }

    def _info(self) -> SnapshotInfo:
        return self._adopting.content.info(self._head.hash)

    def show(self) -> None:
        """The outcome, for people."""
        name = self._remote.name
        what = f"snapshot {self._head.seq} ({self._head.hash[:_SHOWN_ID]})"
        if self._adopting.has_new_header:
            say(f"{name}: took over its vault.json: passwords and keys are those of the other device.")
        if self.relation is Relation.OURS:
            say(f"{name}: {what} is in the history of this vault; there is nothing to take over.")
            return
        if self.made is not None:
            say(f"Made snapshot {self.made.seq} ({self.made.id[:_SHOWN_ID]}) of what was in none.")
        info = self._info()
        say(f"{name}: took over {what}: {info.files} files, {format_size(info.bytes)}.")
        if self.kept:
            numbers = ", ".join(f"{each.seq} ({each.id[:_SHOWN_ID]})" for each in self.kept)
            count = counted(len(self.kept), "snapshot")
            say(f"{count} of before stay here: {numbers}.  'vaultfs snapshot list' shows them.")
