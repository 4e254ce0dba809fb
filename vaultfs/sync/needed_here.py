"""What a vault on this machine needs of a remote, whatever lies there besides: prunes leave it alone."""

from __future__ import annotations

from vaultfs.errors import IntegrityError
from vaultfs.ids import SegmentName, VaultId
from vaultfs.storage.kept_manifests import kept_segments
from vaultfs.storage.layout import VaultLayout
from vaultfs.sync.ledger import Holdings
from vaultfs.sync.local_vault import ManifestHold, list_manifests
from vaultfs.sync.plan import is_due


def needed_here(layout: VaultLayout, vault_id: VaultId, holdings: Holdings) -> set[SegmentName]:
    """The segments that snapshots of this vault need there.

    Of a snapshot that is still to be sent these are all: some may be there already.  Of the others, kept ones included,
    those that are not on this disk: the remote's may be the only copy of what a clone has not fetched.

    Args:
        layout: the vault.
        vault_id: its.
        holdings: what is known of the remote.

    Raises:
        IntegrityError: the manifest of a kept snapshot is damaged, so nobody knows what it needs.
        FormatTooNewError: a newer vaultfs wrote a manifest.
        StorageError: the disk failed.
    """
    due: set[SegmentName] = set()
    absent: set[SegmentName] = set(kept_segments(layout))
    manifests = list_manifests(layout)
    for manifest in manifests:
        hold = ManifestHold.take(layout, manifest)
        if hold is None:
            continue
        try:
            names = [name for name, _ in hold.content(vault_id).segments]
        except IntegrityError:  # it cannot be sent, nor looked into
            continue
        finally:
            hold.release()
        is_wanted = is_due(manifest.hash, holdings, is_newest=manifest == manifests[-1])
        (due if is_wanted else absent).update(names)
    absent.difference_update(layout.sealed_names())
    return due | absent
