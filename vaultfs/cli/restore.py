"""``vaultfs restore``: bring a whole vault back from a remote, or chosen files (`vaultfs.cli.restore_files`).

What comes from the remote is believed step by step: the password is checked against its ``vault.json`` and the key that
this gives against the signature of the snapshot's manifest, before any gigabyte is fetched; each segment by its hash.
"""

from __future__ import annotations

from pathlib import Path

from vaultfs.cli.arriving import ArrivingProgress
from vaultfs.cli.core_warnings import show_warnings
from vaultfs.cli.offered_headers import OpenedPeers
from vaultfs.cli.output import emit_json, say
from vaultfs.cli.progress import ProgressStyle, progress
from vaultfs.cli.remote_vault import as_json, checked, require_place, warn_if_known
from vaultfs.cli.restore_files import chosen_paths, restore_files
from vaultfs.cli.secret_sources import SecretOption
from vaultfs.cli.seen_snapshots import require_newest
from vaultfs.cli.sizes import format_size
from vaultfs.cli.targets import OptionWords, Stores, check_connections, parse_options, parse_rate
from vaultfs.errors import UsageError
from vaultfs.ids import SnapshotSeq
from vaultfs.remotes.urls import redacted
from vaultfs.storage.layout import VaultLayout
from vaultfs.sync.download import fetch, find_head
from vaultfs.vault.restoring import complete


def run(
    url: str,
    dest: Path,
    /,
    *paths: str,
    snapshot: str | None = None,
    force: bool = False,
    option: OptionWords = None,
    bwlimit: str | None = None,
    connections: int = 4,
    quiet: bool = False,
    json: bool = False,
    secret: SecretOption | None = None,
) -> int:
    """Bring a whole vault back from a remote, as it was at a snapshot; or chosen files of it, as plaintext.

    The password is checked before the data is fetched. Every byte is checked by its hash or seal. What an interrupted
    run has fetched stays in DEST; the same command goes on with it.

    With a PATH, no vault is made: that file or tree is decrypted into the directory DEST, and only what it needs is
    fetched. Each file or tree gets its name there when it is complete, and nothing is replaced without --force.

    Args:
        url: Of the remote, as 'vaultfs remote list' shows it.
        dest: A directory that does not exist, is empty, or is what an interrupted restore has left. With a PATH: any
            directory but a vault's; a new one is made if its parent exists.
        paths: Files and directories in the vault.
        snapshot: Its number, or at least the first 4 digits of its id; the newest if not given.
        force: With a PATH: replace a file that has the name already. Directories are never replaced or merged.
        option: A setting of the store, as KEY=VALUE; may be given several times.
        bwlimit: Bytes per second at most, as in 500K or 10M.
        connections: So many objects at once.
        quiet: Show no progress.
        json: Show progress as JSON lines on standard error, and print the outcome as JSON.
        secret: Where the password comes from.
    """
    show_warnings()
    check_connections(connections)
    rate = parse_rate(bwlimit)
    if force and not paths:
        raise UsageError("--force goes with a PATH; a whole vault never replaces anything")
    layout = VaultLayout(dest.absolute())
    chosen = chosen_paths(paths, dest) if paths else []
    if not paths:
        require_place(dest, layout)
    style: ProgressStyle = "none" if quiet else "json" if json else "auto"
    with Stores(rate) as stores:
        peers = OpenedPeers()
        store = stores.open(url, parse_options(option), {"mesh": peers.open})
        head = find_head(store, snapshot)
        require_newest(store, head, snapshot)
        if paths:
            return restore_files(
                store,
                head,
                dest,
                chosen,
                replace=force,
                style=style,
                secret=secret,
                name=redacted(url),
                peers=peers.only,
                wanted=snapshot,
                connections=connections,
                hurry=stores.hurry,
                json=json,
            )
        header, keyring, info, is_known = checked(store, head, secret, redacted(url), snapshot, peers.only)
        warn_if_known(is_known=is_known)
        bar = progress(f"restore {dest}", style, resumable=True)
        arriving = ArrivingProgress(bar, peers.only if rate is None else None)
        with bar, stores.interruptible() as is_stopped:
            fetch(
                store,
                layout,
                head,
                connections=connections,
                progress=arriving,
                is_stopped=arriving.looking(is_stopped),
            )
        received = store.counts.received_bytes
    complete(layout, header, keyring, SnapshotSeq(head.seq), head.hash)
    if json:
        emit_json(as_json(layout, info, received))
    else:
        say(
            f"Restored snapshot {info.seq} ({info.id[:12]}) in {dest}: {info.files} files, {format_size(info.bytes)}.  "
            f"Mount it with: vaultfs mount {dest} DIR"
        )
    return 0
