"""Has a remote had a newer snapshot than the newest it shows?  This machine knows what it has put there itself.

A remote that hides the newest snapshot, or has lost it, is not seen by hashes and signatures: the older one is as good.
The ledger of a vault that is backed up from here is the witness.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from platformdirs import user_state_path

from vaultfs.errors import RollbackError, UsageError
from vaultfs.ids import VaultId
from vaultfs.remotes.store import Store
from vaultfs.storage.durable import storage_errors
from vaultfs.sync.ledger import Holdings, Ledger
from vaultfs.sync.remote_layout import RemoteHead, head_key

_VAULT_ID: Final = re.compile(r"[0-9a-f]{32}")


def require_newest(store: Store, head: RemoteHead, wanted: str | None) -> None:
    """Check that a snapshot, which is the newest that a remote shows, is not older than one that was put there.

    Args:
        store: the remote.
        head: the snapshot.
        wanted: how the person named it; whoever names one means it, however old.

    Raises:
        RollbackError: this machine has put a newer one there.
        StorageError: a ledger cannot be read.
        RemoteError: the remote failed.
    """
    if wanted is not None:
        return
    newer = [
        each
        for holdings in _ledgers(store)
        if head.hash in holdings.heads
        for each in holdings.heads.values()
        if each.hash in holdings.whole and each.seq > head.seq
    ]
    if not newer:
        return
    newest = max(newer, key=lambda each: each.seq)
    is_there = store.size_bytes(head_key(newest)) is not None
    what = "it is there, but not listed; try again later" if is_there else "it is gone, or held back"
    raise RollbackError(
        f"{store.name} shows snapshot {head.seq} as the newest, but this machine has put snapshot {newest.seq} "
        f"({newest.hash[:12]}) there: {what}.  If the older one is good enough, ask for it: --snapshot {head.hash[:12]}"
    )


def _ledgers(store: Store) -> Iterator[Holdings]:
    """What this machine knows of a remote, for each vault that it has backed up there."""
    root = user_state_path("vaultfs", appauthor=False) / "sync"
    with storage_errors(f"cannot list {root}"):
        vaults = [path for path in root.iterdir() if _VAULT_ID.fullmatch(path.name)] if root.is_dir() else []
        places = [(vault, place.name) for vault in vaults if vault.is_dir() for place in vault.iterdir()]
    for vault, name in places:
        try:
            ledger = Ledger.of(VaultId(bytes.fromhex(vault.name)), name)
        except UsageError:  # no remote has such a name, so nobody made it here
            continue
        yield ledger.read(store.name)
