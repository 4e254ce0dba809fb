"""``vaultfs remote``: manage where a vault is copied to."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Final

from vaultfs.cli.output import counted, emit_json, fields, printable, say, table
from vaultfs.cli.remote_login import login, logout
from vaultfs.cli.targets import OptionWords, Stores, chosen_remotes, parse_options, vault_of
from vaultfs.errors import UsageError
from vaultfs.remotes.configured import Remote, load_remotes, require_name, save_remotes
from vaultfs.remotes.probing import probe
from vaultfs.remotes.store import Features, Store
from vaultfs.remotes.urls import directory_of, redacted
from vaultfs.storage.durable import fsync_directory, storage_errors
from vaultfs.storage.layout import VaultLayout
from vaultfs.sync.download import heads
from vaultfs.sync.ledger import Ledger
from vaultfs.sync.public_header import read_header
from vaultfs.sync.remote_objects import read_remote_header

_FEATURES: Final[Mapping[str, str]] = {
    "conditional_create": "creates without replacing",
    "range_reads": "reads parts of objects",
    "lists_at_once": "lists at once what was stored",
}


def add(vault: Path, name: str, url: str, /, *, option: OptionWords = None, json: bool = False) -> int:
    """Add a remote: a place that 'vaultfs sync' copies the vault to.

    The place is tried out first: something is stored, read, listed and deleted there. A URL and its options never hold
    a secret; docs/cli/remote.md tells for each kind of store where its secrets come from. No password is needed.

    Args:
        vault: The vault's directory, or a folder where it is mounted.
        name: What to call the remote: lower-case letters, digits, '-' and '_'.
        url: Where it is, as in file:///mnt/disk/my.vault or s3://bucket/prefix.
        option: A setting of the store, as KEY=VALUE; may be given several times.
        json: Print JSON.
    """
    require_name(name)
    layout, mount = vault_of(vault)
    new = Remote(name, url, parse_options(option))
    _require_elsewhere(new.url, layout.root, None if mount is None else mount.mountpoint)
    before = load_remotes(layout)
    if any(remote.name == name for remote in before):
        raise UsageError(f"there is a remote {name!r} already; remove it first, or choose another name")
    tried, snapshots = _try_out(layout, new)
    save_remotes(layout, [*before, tried])
    _forget(layout, name)  # what is known of another remote that had this name
    if json:
        emit_json(_as_json(tried) | {"snapshots": snapshots})
        return 0
    say(f"Added the remote {name!r}: {printable(redacted(url))}.  {_contents(snapshots)}")
    _show_features(tried.features)
    say(f"Copy the vault there with: vaultfs sync {vault} {name}")
    return 0


def list_(vault: Path, /, *, json: bool = False) -> int:
    """List the remotes of a vault. 'vaultfs status VAULT' tells what each lacks.

    Args:
        vault: The vault's directory, or a folder where it is mounted.
        json: Print JSON.
    """
    layout, _ = vault_of(vault)
    remotes = load_remotes(layout)
    if json:
        emit_json({"remotes": [_as_json(remote) for remote in remotes]})
    elif not remotes:
        say("There are no remotes.")
    else:
        table(("NAME", "URL", "OPTIONS"), [_row(remote) for remote in remotes])
    return 0


def remove(vault: Path, name: str, /, *, json: bool = False) -> int:
    """Forget a remote. What is stored there stays.

    Args:
        vault: The vault's directory, or a folder where it is mounted.
        name: The remote.
        json: Print JSON.
    """
    layout, _ = vault_of(vault)
    (gone,) = chosen_remotes(layout, [name])
    _forget(layout, name)
    _save(layout, [remote for remote in load_remotes(layout) if remote.name != name])
    if json:
        emit_json(_as_json(gone))
    else:
        say(f"Removed the remote {name!r}.  What is stored there stays: {printable(redacted(gone.url))}")
    return 0


def check(vault: Path, name: str, /, *, json: bool = False) -> int:
    """Try a remote out as 'add' does, and remember what it can do.

    Args:
        vault: The vault's directory, or a folder where it is mounted.
        name: The remote.
        json: Print JSON.
    """
    layout, _ = vault_of(vault)
    (known,) = chosen_remotes(layout, [name])
    tried, snapshots = _try_out(layout, known)
    if tried != known:
        save_remotes(layout, [tried if remote.name == name else remote for remote in load_remotes(layout)])
    if json:
        emit_json(_as_json(tried) | {"snapshots": snapshots})
        return 0
    say(f"The remote {name!r} works: {printable(redacted(tried.url))}.  {_contents(snapshots)}")
    _show_features(tried.features)
    return 0


def _try_out(layout: VaultLayout, remote: Remote) -> tuple[Remote, int]:
    """The remote with what it can do, and how many snapshots of this vault it has.

    Raises:
        UsageError: it holds another vault; nothing was written there.
        RemoteError: it cannot be used.
        KeyboardInterrupt, Terminated: a signal came.
    """
    with Stores() as stores:
        store = stores.open(remote.url, remote.options)
        snapshots = _require_place(layout, store)
        with stores.interruptible():  # what was stored to try it out is removed again
            features = probe(store)
        return replace(remote, features=features), snapshots


def _require_elsewhere(url: str, vault: Path, folder: Path | None) -> None:
    """A copy in the vault's own directory is lost with it; one in its folder would be copied again by each sync."""
    directory = directory_of(url)
    if directory is None:
        return
    for own in (vault, folder):
        if own is not None and Path(os.path.realpath(directory)).is_relative_to(os.path.realpath(own)):
            raise UsageError(f"{printable(redacted(url))} is in {own}, so it is no copy of that; choose another place")


def _require_place(layout: VaultLayout, store: Store) -> int:
    header = read_remote_header(store)
    if header is not None and header.vault_id != read_header(layout).vault_id:
        raise UsageError(f"{store.name} holds another vault; choose an empty directory or prefix")
    return len(heads(store))


def _save(layout: VaultLayout, remotes: list[Remote]) -> None:
    """As `save_remotes`; without a remote there is no list, which tells the vault that nothing leaves the machine."""
    if remotes:
        save_remotes(layout, remotes)
        return
    with storage_errors(f"cannot remove {layout.remotes}"):
        layout.remotes.unlink(missing_ok=True)
    fsync_directory(layout.root)


def _forget(layout: VaultLayout, name: str) -> None:
    """Forget what was known to be there, which costs the next sync no more than a listing.

    Raises:
        VaultLockedError: a sync is running.
    """
    ledger = Ledger.of(read_header(layout).vault_id, name)
    if ledger.path.exists():
        with ledger.locked(f"the remote {name!r}"):
            ledger.path.unlink()


def _as_json(remote: Remote) -> dict[str, Any]:
    return {
        "name": remote.name,
        "url": redacted(remote.url),
        "options": remote.options,
        "features": asdict(remote.features),
    }


def _contents(snapshots: int) -> str:
    if not snapshots:
        return "There is no snapshot on it yet."
    return f"It has {counted(snapshots, 'snapshot')} of this vault."


def _row(remote: Remote) -> tuple[str, str, str]:
    options = " ".join(f"{key}={value}" for key, value in sorted(remote.options.items()))
    return remote.name, printable(redacted(remote.url)), printable(options)


def _show_features(features: Features) -> None:
    can = asdict(features)
    fields([(text, "yes" if can[name] else "no") for name, text in _FEATURES.items()])


SUBVERBS: Mapping[str, Callable[..., int]] = {
    "add": add,
    "list": list_,
    "remove": remove,
    "test": check,
    "login": login,
    "logout": logout,
}
