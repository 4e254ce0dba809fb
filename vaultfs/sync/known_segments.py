"""Which segments of a vault may lie on its remotes, as far as this machine knows without asking any.

A ledger that has seen a listing knows all segments of its remote.  Of a remote without one nothing is known, so any
segment that a snapshot of the vault names may be there.
"""

from __future__ import annotations

import contextlib
import logging

from vaultfs.errors import FormatTooNewError, IntegrityError, VaultError
from vaultfs.ids import SegmentName, VaultId
from vaultfs.remotes.configured import Remote, load_remotes
from vaultfs.remotes.urls import open_store
from vaultfs.storage.layout import VaultLayout
from vaultfs.storage.segment_source import KnownElsewhere
from vaultfs.sync.ledger import Holdings, Ledger
from vaultfs.sync.local_vault import ManifestHold, list_manifests
from vaultfs.sync.public_header import read_header

log = logging.getLogger(__name__)


def known_segments(layout: VaultLayout) -> KnownElsewhere:
    """What is known of the remotes' segments.

    Args:
        layout: the vault.

    Raises:
        IntegrityError, FormatTooNewError: the list of remotes is damaged or newer.
        NotAVaultError, StorageError: the vault cannot be read.
    """
    vault_id = read_header(layout).vault_id
    holdings = [_holdings(remote, vault_id) for remote in load_remotes(layout)]
    names = {name for each in holdings for known in (each.there, each.put) for name in known}
    is_complete = all(each.is_listed for each in holdings)
    for manifest in () if is_complete else list_manifests(layout):
        hold = ManifestHold.take(layout, manifest)
        if hold is None:
            continue
        try:
            with contextlib.suppress(IntegrityError, FormatTooNewError):  # what it names nobody can tell
                names.update(SegmentName(name) for name, _ in hold.content(vault_id).segments)
        finally:
            hold.release()
    return KnownElsewhere(names, is_complete)


def _holdings(remote: Remote, vault_id: VaultId) -> Holdings:
    """What a ledger says; nothing if it cannot be read, or the remote not be opened."""
    try:
        store = open_store(remote.url, remote.options)
        try:
            return Ledger.of(vault_id, remote.name).read(store.name)
        finally:
            store.close()
    except VaultError as error:
        log.warning("nothing is known of what is on %s: %s", remote.name, error)
        return Holdings()
