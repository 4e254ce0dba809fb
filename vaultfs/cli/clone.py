"""``vaultfs clone``: a vault that can be used at once, and fetches from its remote what is read."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from vaultfs.cli.arriving import ArrivingProgress
from vaultfs.cli.core_warnings import show_warnings
from vaultfs.cli.offered_headers import OpenedPeers
from vaultfs.cli.output import counted, emit_json, note, printable, say
from vaultfs.cli.progress import progress
from vaultfs.cli.remote_vault import as_json, checked, require_place, warn_if_known
from vaultfs.cli.secret_sources import SecretOption
from vaultfs.cli.seen_snapshots import require_newest
from vaultfs.cli.sizes import format_size
from vaultfs.cli.targets import OptionWords, Stores, check_connections, parse_options, parse_rate
from vaultfs.errors import ForkedError, IntegrityError, RollbackError, UsageError, VaultError
from vaultfs.ids import SnapshotSeq
from vaultfs.remotes.configured import Remote, load_remotes, save_remotes
from vaultfs.remotes.store import Features, Store
from vaultfs.remotes.urls import redacted
from vaultfs.storage.layout import VaultLayout
from vaultfs.storage.manifest_format import Manifest
from vaultfs.sync.cloned_remote import note_cloned
from vaultfs.sync.download import fetch, find_head, heads
from vaultfs.sync.download import fill as fetch_rest
from vaultfs.sync.ledger import Ledger
from vaultfs.sync.local_vault import list_manifests
from vaultfs.sync.remote_layout import RemoteHead
from vaultfs.sync.remote_segments import LONG_PATIENCE_S, RemoteSegments
from vaultfs.vault.restoring import complete

if TYPE_CHECKING:
    from vaultfs.mesh.store import MeshStore

ORIGIN = "origin"


def run(
    url: str,
    vault: Path,
    /,
    *,
    snapshot: str | None = None,
    fill: bool = False,
    option: OptionWords = None,
    bwlimit: str | None = None,
    connections: int = 4,
    quiet: bool = False,
    json: bool = False,
    secret: SecretOption | None = None,
) -> int:
    """Make a vault of what is on a remote that can be mounted at once, and fetches what is read.

    Only the metadata is fetched. What programs read later comes from the remote piece by piece, and stays in a cache of
    2 GiB in the vault's directory. New data is on this machine until 'vaultfs sync' sends it.

    An interrupted --fill is gone on with by the same command, which asks for no password then.

    Args:
        url: Of the remote, as 'vaultfs remote list' shows it.
        vault: A directory that does not exist or is empty; with --fill also a clone of that remote.
        snapshot: Its number, or at least the first 4 digits of its id; the newest if not given.
        fill: Go on and fetch all the rest; the vault can be mounted meanwhile.
        option: A setting of the store, as KEY=VALUE; may be given several times.
        bwlimit: Bytes per second at most, as in 500K or 10M.
        connections: So many objects at once with --fill.
        quiet: Show no progress.
        json: Show progress as JSON lines on standard error, and print the outcome as JSON.
        secret: Where the password comes from.
    """
    show_warnings()
    check_connections(connections)
    rate = parse_rate(bwlimit)
    options = parse_options(option)
    layout = VaultLayout(vault.absolute())
    half_filled = _clone_of(layout, url) if fill else None
    if half_filled is not None:
        if snapshot is not None:
            raise UsageError(f"{vault} is a clone already; --fill fetches its newest snapshot, so leave out --snapshot")
        with Stores(rate) as stores:
            peers = OpenedPeers()
            store = stores.open(url, options or half_filled.options, {"mesh": peers.open})
            _require_sent(store, layout)
            _fill(stores, store, None if rate else peers.only, layout, vault, connections, quiet=quiet, json=json)
            if json:
                emit_json({"vault": str(layout.root), "snapshot": None, "received_bytes": store.counts.received_bytes})
        return 0
    require_place(vault, layout)
    with Stores(rate) as stores:
        peers = OpenedPeers()
        store = stores.open(url, options, {"mesh": peers.open})
        head = find_head(store, snapshot)
        require_newest(store, head, snapshot)
        header, keyring, info, is_known = checked(store, head, secret, redacted(url), snapshot, peers.only)
        warn_if_known(is_known=is_known)
        manifest = fetch(store, layout, head, with_segments=False)
        # What else it can do is found out by writing, which is not everybody's right: 'remote test' does that.
        save_remotes(layout, [Remote(ORIGIN, url, options, Features(range_reads=True))])
        source = RemoteSegments([lambda: store], patience_s=LONG_PATIENCE_S)
        try:
            complete(layout, header, keyring, SnapshotSeq(head.seq), head.hash, source=source)
        except RollbackError:  # that is of this machine's memory
            raise
        except IntegrityError as error:
            raise IntegrityError(_damaged_there(str(error), store.name, redacted(url), layout)) from error
        _note(store, layout, head, manifest)
        if not json:
            say(
                f"Cloned snapshot {info.seq} ({info.id[:12]}) to {vault}: {info.files} files, "
                f"{format_size(info.bytes)}; "
                f"{format_size(store.counts.received_bytes)} were fetched.  "
                f"Mount it with: vaultfs mount {vault} DIR"
            )
        if fill:
            _fill(stores, store, None if rate else peers.only, layout, vault, connections, quiet=quiet, json=json)
        if json:
            emit_json(as_json(layout, info, store.counts.received_bytes))
    return 0


def _note(store: Store, layout: VaultLayout, head: RemoteHead, manifest: Manifest) -> None:
    """Remember what the remote has, so that `status` knows; and tell if it has not all that the clone needs."""
    try:
        lacking = note_cloned(ORIGIN, store, Ledger.of(manifest.vault_id, ORIGIN), layout, head, manifest)
    except ForkedError:
        note(
            f"{ORIGIN} has snapshots that do not come from this one, so a sync to it is refused until you choose "
            "'vaultfs sync --adopt' or 'vaultfs sync --fork'"
        )
        return
    except VaultError as error:
        note(f"'vaultfs status' does not know what is on {ORIGIN} until the next sync: {printable(str(error))}")
        return
    if lacking:
        note(
            f"warning: {printable(store.name)} lacks {counted(len(lacking), 'segment')}, "
            f"{format_size(sum(lacking.values()))}, of this snapshot; what is in them cannot be read"
        )


def _damaged_there(text: str, name: str, url: str, layout: VaultLayout) -> str:
    """What to say of damage on the remote; there is no vault here yet that could be checked.

    Args:
        text: what was found.
        name: of the remote.
        url: likewise, as it was given.
        layout: where the clone was to be.
    """
    found = f"{text.replace('; run vaultfs fsck', '')}; {name} has nothing better"
    if url.startswith("mesh:"):
        vault = url.removeprefix("mesh://")
        return (
            f"{found}: add another peer that holds the vault, 'vaultfs peer add {vault} ID@HOST', and clone again; "
            f"'vaultfs mesh audit {vault} --all' tells which peers have lost what they claim"
        )
    return f"{found}: clone from another remote, or an older snapshot with --snapshot; {layout.root} can be removed"


def _clone_of(layout: VaultLayout, url: str) -> Remote | None:
    """The remote with this URL of the vault that is there already; None if there is no vault, or none that has it."""
    if not layout.head.exists():
        return None
    return next((remote for remote in load_remotes(layout) if remote.url == url), None)


def _require_sent(store: Store, layout: VaultLayout) -> None:
    """Refuse to fill what the remote does not have.

    Raises:
        UsageError: the newest snapshot was made here, and is not there yet.
    """
    there = {(head.seq, head.hash) for head in heads(store)}
    newest = list_manifests(layout)[-1:]
    if newest and tuple(newest[0]) not in there:
        raise UsageError(f"{store.name} lacks the newest snapshot of {layout.root}; send it with 'vaultfs sync' first")


def _fill(
    stores: Stores,
    store: Store,
    peers: MeshStore | None,
    layout: VaultLayout,
    vault: Path,
    connections: int,
    *,
    quiet: bool,
    json: bool,
) -> None:
    bar = progress(f"fill {vault}", "none" if quiet else "json" if json else "auto", resumable=True)
    arriving = ArrivingProgress(bar, peers)
    with bar, stores.interruptible() as is_stopped:
        fetch_rest(
            store,
            layout,
            connections=connections,
            progress=arriving,
            is_stopped=arriving.looking(is_stopped),
        )
    if not json:
        say(f"All of {printable(str(vault))} is on this machine now.")
