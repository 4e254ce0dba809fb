"""The snapshots of a remote for people: also those that are given up and not deleted yet."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from vaultfs.errors import UsageError
from vaultfs.ids import SegmentName
from vaultfs.remotes.store import Store
from vaultfs.storage.layout import VaultLayout
from vaultfs.sync.ledger import Holdings
from vaultfs.sync.remote_layout import RemoteHead
from vaultfs.sync.remote_objects import read_remote_header
from vaultfs.sync.remote_snapshots import RemoteHistory
from vaultfs.sync.workers import Crew

CONNECTIONS = 4


@dataclass
class ListedSnapshot:
    """A snapshot on a remote.

    Attributes:
        head: its name there.
        created_ns: nanoseconds since 1970, by the clock of the machine that made it.
        previous: hash of the manifest before it; None for the first.
        segments: how many it needs.
        size_bytes: of these.
        new_bytes: of those that none before it in the list needs.
        given_up_ns: when a prune gave it up; None if none did.
        is_in_branch: two histories stand side by side on the remote.
    """

    head: RemoteHead
    created_ns: int
    previous: str | None
    segments: int
    size_bytes: int
    new_bytes: int
    given_up_ns: int | None
    is_in_branch: bool


def list_snapshots(
    store: Store,
    holdings: Holdings,
    *,
    layout: VaultLayout | None = None,
    is_stopped: Callable[[], bool] = lambda: False,
) -> list[ListedSnapshot]:
    """The snapshots of a remote, oldest first.

    Args:
        store: the remote.
        holdings: what this machine knows to be there; empty if it knows nothing.
        layout: the vault on this machine; None if there is none.
        is_stopped: asked in this thread, ten times a second; may raise.

    Raises:
        UsageError: the remote holds no vault.
        IntegrityError, ObjectMissingError: a manifest is not what its name says, or is listed and not there.
        FormatTooNewError: a newer vaultfs wrote there.
        StoppedError: the caller asked for it.
        RemoteError: the remote failed.
    """
    crew = Crew(CONNECTIONS, None, is_stopped)
    crew.tick()
    header = read_remote_header(store)
    if header is None:
        raise UsageError(f"{store.name} has no vault.json: it holds no vault")
    history = RemoteHistory(store, header.vault_id, crew, holdings, layout)
    history.read()
    history.read_given_up()
    given_up = history.given_up
    seen: set[SegmentName] = set()
    found = []
    for each in sorted(history.snapshots.values(), key=lambda each: (each.head.seq, each.created_ns, each.head.hash)):
        names = {name for name, _ in each.segments}
        record = given_up.get(each.head)
        found.append(
            ListedSnapshot(
                head=each.head,
                created_ns=each.created_ns,
                previous=each.previous,
                segments=len(names),
                size_bytes=each.size_bytes,
                new_bytes=sum(size for name, size in each.segments if name not in seen),
                given_up_ns=None if record is None else record.created_ns,
                is_in_branch=bool(history.listing.branches),
            )
        )
        seen |= names
    return found
