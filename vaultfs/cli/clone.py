"""``vaultfs clone``: a vault that can be used at once, and fetches from its remote what is read."""

from __future__ import annotations

from pathlib import Path

from vaultfs.cli.opened import show_warnings
from vaultfs.cli.output import emit_json, say
from vaultfs.cli.progress import progress
from vaultfs.cli.remote_vault import as_json, checked, require_place, warn_if_known
from vaultfs.cli.secret_sources import SecretOption
from vaultfs.cli.sizes import format_size
from vaultfs.cli.targets import OptionWords, Stores, check_connections, parse_options, parse_rate
from vaultfs.ids import SnapshotSeq
from vaultfs.remotes.configured import Remote, save_remotes
from vaultfs.remotes.urls import redacted
from vaultfs.storage.layout import VaultLayout
from vaultfs.sync.download import choose_head, fetch, heads
from vaultfs.sync.download import fill as fetch_rest
from vaultfs.sync.remote_segments import RemoteSegments
from vaultfs.vault.restoring import complete

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

    Args:
        url: Of the remote, as 'vaultfs remote list' shows it.
        vault: A directory that does not exist or is empty.
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
    require_place(vault, layout)
    with Stores(rate) as stores:
        store = stores.open(url, options)
        head = choose_head(heads(store), snapshot)
        unlocking, info, is_known = checked(store, head, secret, redacted(url))
        warn_if_known(is_known=is_known)
        fetch(store, layout, head, with_segments=False)
        save_remotes(layout, [Remote(ORIGIN, url, options)])
        complete(layout, unlocking, SnapshotSeq(head.seq), head.hash, source=RemoteSegments([lambda: store]))
        if not json:
            say(
                f"Cloned snapshot {info.seq} ({info.id[:12]}) to {vault}: {info.files} files, "
                f"{format_size(info.bytes)}; "
                f"{format_size(store.counts.received_bytes)} were fetched.  "
                f"Mount it with: vaultfs mount {vault} DIR"
            )
        if fill:
            bar = progress(f"fill {vault}", "none" if quiet else "json" if json else "auto", resumable=True)
            with bar, stores.interruptible() as is_stopped:
                fetch_rest(
                    store,
                    layout,
                    connections=connections,
                    progress=lambda state: bar(state.done_bytes, state.total_bytes),
                    is_stopped=is_stopped,
                )
        if json:
            emit_json(as_json(layout, info, store.counts.received_bytes))
    return 0
