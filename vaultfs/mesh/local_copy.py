"""The vault on this machine, as far as looking after its peers goes: its snapshots, and which segments lie here.

What belongs to its history is told by its own snapshots and by the ledger of the last syncs.  That decides whose
manifests are believed to be the vault's, as signatures take a key to verify.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Final

from vaultfs.errors import IntegrityError
from vaultfs.ids import SegmentName
from vaultfs.storage.layout import VaultLayout
from vaultfs.storage.manifest_format import Manifest
from vaultfs.sync.ledger import Holdings
from vaultfs.sync.local_vault import LocalManifest, ManifestHold, list_manifests
from vaultfs.sync.public_header import read_header


class LocalCopy:
    """A vault's directory; it may be mounted.  Methods block.

    Args:
        layout: where it is.
        holdings: the ledger of the remote that is its peers.

    Raises:
        NotAVaultError, FormatTooNewError, StorageError: it cannot be read.

    Attributes:
        layout: where it is.
        header: its ``vault.json``.
        manifests: its snapshots, oldest first.
        dropped: hashes of manifests that were given up by a prune.
        devices: whose manifests are known to be of this vault, 64 hexadecimal digits each.
        segments: the names of those that lie here.
    """

    def __init__(self, layout: VaultLayout, holdings: Holdings | None = None) -> None:
        known = holdings or Holdings()
        self.layout: Final = layout
        self.header: Final = read_header(layout)
        self.manifests: Final = list_manifests(layout)
        self.dropped: Final = frozenset(known.dropped)
        self.devices: Final = {head.device for head in known.heads.values()}
        self.segments: Final[set[SegmentName]] = set(layout.sealed_names())

    def content(self, manifest: LocalManifest) -> tuple[bytes, Manifest] | None:
        """A manifest's bytes, and what it says; None if its snapshot was deleted, or it is damaged.

        Raises:
            FormatTooNewError, StorageError: it cannot be read.
        """
        hold = ManifestHold.take(self.layout, manifest)
        if hold is None:
            return None
        try:
            with suppress(IntegrityError):
                return hold.read(), hold.content(self.header.vault_id)
        finally:
            hold.release()
        return None
