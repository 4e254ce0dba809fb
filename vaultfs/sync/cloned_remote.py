"""What a clone knows of the remote it comes from, written into its ledger, as a sync would learn it.

Nothing is written to the remote, which may be for reading only.  That the remote lists a snapshot says that all its
segments were there once; whether they are is looked up, so the ledger says no more than what is true.
"""

from __future__ import annotations

from vaultfs.ids import SegmentName
from vaultfs.remotes.store import Store
from vaultfs.storage.layout import VaultLayout
from vaultfs.storage.manifest_format import Manifest
from vaultfs.sync.ledger import Ledger
from vaultfs.sync.plan import lacking
from vaultfs.sync.remote_layout import RemoteHead
from vaultfs.sync.remote_run import LocalVault, RemoteRun


def _go_on() -> None:
    """A clone waits for this."""


def note_cloned(
    name: str, store: Store, ledger: Ledger, layout: VaultLayout, head: RemoteHead, manifest: Manifest
) -> dict[SegmentName, int]:
    """Look at a remote as a sync does, and write down what it has.

    Args:
        name: what the person calls it.
        store: the remote.
        ledger: of it.
        layout: the clone.
        head: the snapshot that was cloned.
        manifest: what it needs.

    Returns:
        Segments of the snapshot that the remote lacks, and their sizes.

    Raises:
        ForkedError: it has snapshots that go on from there, so that nothing can be sent; nothing was written down.
        VaultLockedError: a sync is running.
        VaultError: the remote or the ledger failed.
    """
    with ledger.locked(store.name) as opened:
        run = RemoteRun(name, store, opened)
        # An earlier clone of the vault may have left a ledger, which knows nothing of what others have sent since.
        run.look(LocalVault(layout), _go_on, check=True)
        lack = lacking(manifest.segments, run.holdings)
        if not any(lack):
            opened.whole(head)
    return lack.unsent
