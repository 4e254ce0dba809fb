"""Sends again what a verification has found to be missing or damaged on a remote, from the vault on this machine.

It is no more than a sync that is told what it must not believe of the remote; bad manifests are deleted before, where
the same one is here.  What this machine does not have any more cannot be sent; it stays
bad, and is found by the next verification.
"""

from __future__ import annotations

from collections.abc import Callable

from vaultfs.storage.layout import VaultLayout
from vaultfs.sync.local_vault import LocalManifest, list_manifests
from vaultfs.sync.remote_layout import head_key
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
    here = set(list_manifests(layout))
    with target.ledger.locked(store.name):
        for head in report.bad_heads:
            if LocalManifest(head.seq, head.hash) in here:  # type: ignore[arg-type]
                store.delete(head_key(head))
    [outcome] = sync(
        layout,
        [target],
        distrusted=report.bad_segments,
        connections=connections,
        progress=progress,
        is_stopped=is_stopped,
    )
    return outcome
