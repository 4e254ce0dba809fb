"""Sends again what a verification has found to be missing or damaged on a remote, from the vault on this machine.

It is no more than a sync that is told what it must not believe of the remote; bad manifests are deleted before, where
the same one is here.  What this machine does not have any more cannot be sent; it stays
bad, and is found by the next verification.
"""

from __future__ import annotations

from collections.abc import Callable

from vaultfs.errors import RemoteRefusedError
from vaultfs.remotes.store import BytesSource, Store
from vaultfs.storage.layout import VaultLayout
from vaultfs.sync.local_vault import LocalManifest, ManifestHold, list_manifests
from vaultfs.sync.remote_layout import RemoteHead, head_key
from vaultfs.sync.upload import Target, TargetOutcome, sync
from vaultfs.sync.verify import VerifyReport
from vaultfs.sync.workers import ProgressFunction


def send_again(
    layout: VaultLayout,
    target: Target,
    report: VerifyReport,
    *,
    connections: int = 4,
    progress: ProgressFunction | None = None,
    is_stopped: Callable[[], bool] = lambda: False,
) -> TargetOutcome:
    """Bring the remote up to date, with what is bad on it sent again.

    Args:
        layout: the vault; may be mounted.
        target: the remote.
        report: what was found there.
        connections: how many segments are sent at once.
        progress: called in this thread.
        is_stopped: asked in this thread, ten times a second; may raise.

    Raises:
        VaultLockedError: a sync with this remote is running.
        VaultError: as `sync`, or a manifest cannot be deleted.
    """
    store = target.store
    here = {each.hash: each for each in list_manifests(layout)}
    undeletable = []
    with target.ledger.locked(store.name):
        for head in report.bad_heads:
            if head.hash in here:
                try:
                    store.delete(head_key(head))
                except RemoteRefusedError:  # as peers do; they replace what is damaged, which others may not
                    undeletable.append(head)
    [outcome] = sync(
        layout,
        [target],
        distrusted=report.bad_segments,
        connections=connections,
        progress=progress,
        is_stopped=is_stopped,
    )
    if outcome.error is None:
        for head in undeletable:  # last, as always: what they need is there now
            outcome.manifests += _put_again(store, layout, head, here[head.hash])
    return outcome


def _put_again(store: Store, layout: VaultLayout, head: RemoteHead, manifest: LocalManifest) -> bool:
    """Put a manifest in the place of what is there; whether it is here still."""
    hold = ManifestHold.take(layout, manifest)
    if hold is None:
        return False
    try:
        store.put(head_key(head), BytesSource(hold.read()))
    finally:
        hold.release()
    return True
