"""``sync``: copies what remotes lack of a vault's snapshots, at a cost that follows the change and not the size.

Order, for each remote: ``vault.json`` if it differs, segments, and a manifest only when all its segments are there.
It can be stopped or killed anywhere and run again.  Remotes do not depend on each other, but a segment that several
lack is opened once for all.  What a sync needs in memory is some MiB for each connection, and the names of segments.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

from vaultfs.errors import FormatTooNewError, IntegrityError, VaultError
from vaultfs.ids import SegmentName
from vaultfs.remotes.store import Store
from vaultfs.storage.layout import VaultLayout
from vaultfs.storage.lock import read_holder
from vaultfs.storage.manifest_format import Manifest
from vaultfs.sync.courtesy import Courtesy
from vaultfs.sync.ledger import Holdings, Ledger, OpenLedger
from vaultfs.sync.local_vault import ManifestHold
from vaultfs.sync.plan import is_due, lacking
from vaultfs.sync.remote_layout import RemoteHead
from vaultfs.sync.remote_run import FindLost, LocalVault, RemoteRun
from vaultfs.sync.rounds import Round
from vaultfs.sync.workers import Crew, ProgressFunction, StoppedError, SyncProgress

__all__ = ["Missing", "StoppedError", "SyncProgress", "Target", "TargetOutcome", "missing", "sync"]


@dataclass
class Target:
    """A remote to sync with.

    Attributes:
        name: what the person calls it.
        store: the remote.
        ledger: what is known to be there; `Ledger.of`.
        lost: as for `RemoteRun`.
    """

    name: str
    store: Store
    ledger: Ledger
    lost: FindLost | None = None


@dataclass
class TargetOutcome:
    """What became of it.

    Attributes:
        name: of the target.
        segments: how many were put; in a dry run: would be.
        bytes: of these segments, and of the manifests that were put.
        manifests: how many were put.
        is_up_to_date: the remote has every snapshot of the vault, and its ``vault.json``.
        error: why it is not; also if only some snapshots could not be sent.  `StoppedError` if the caller stopped it.
    """

    name: str
    segments: int
    bytes: int
    manifests: int
    is_up_to_date: bool
    error: VaultError | None


@dataclass
class Missing:
    """What a remote lacks, as far as this machine knows.

    Attributes:
        segments: how many it lacks.
        bytes: of these segments, and of the manifests.
        manifests: how many snapshots are not complete there.
        is_header_current: whether it has the ``vault.json`` of now.
        since_ns: when the oldest of these snapshots was made, in nanoseconds since 1970; None if none is missing.
    """

    segments: int = 0
    bytes: int = 0
    manifests: int = 0
    is_header_current: bool = False
    since_ns: int | None = None

    @property
    def is_nothing(self) -> bool:
        """Whether the remote has everything."""
        return not self.manifests and self.is_header_current


def sync(
    layout: VaultLayout,
    targets: Sequence[Target],
    *,
    check: bool = False,
    dry_run: bool = False,
    fork: bool = False,
    distrusted: Collection[SegmentName] = (),
    connections: int = 4,
    progress: ProgressFunction | None = None,
    is_stopped: Callable[[], bool] = lambda: False,
    spares: Sequence[Store] = (),
) -> list[TargetOutcome]:
    """Bring remotes up to date.

    Args:
        layout: the vault; it may be mounted meanwhile.
        targets: the remotes.
        check: compare the ledgers with listings of all segments, and send what is missing.
        dry_run: find out what would be sent, and change nothing, on the remotes or here.
        fork: where another copy of the vault has moved a remote forward, put this one's history beside the other's.
        distrusted: segments that are sent again, although the remotes say that they are there.
        connections: how many segments are sent at once; each takes a few MiB of memory.
        progress: called in this thread.
        is_stopped: asked in this thread, ten times a second; may raise.
        spares: further remotes, which may have segments that are not on this disk.

    Returns:
        The outcomes, in the order of the targets.

    Raises:
        NotAVaultError, FormatTooNewError, StorageError: the vault cannot be read; no remote was asked for anything.
        UsageError: the number of connections makes no sense.
    """
    crew = Crew(connections, progress, is_stopped)
    local = LocalVault(layout)
    with ExitStack() as stack:
        runs = [_begin(target, stack, dry_run=dry_run) for target in targets]
        try:
            crew.work(
                partial(
                    run.guarded, partial(run.look, local, crew.check, check=check, fork=fork, distrusted=distrusted)
                )
                for run in runs
            )
            plan = _plan(local, runs, crew)
            if dry_run:
                for run, planned in plan.items():
                    run.segments, run.bytes = len(planned.segments), planned.bytes
                    run.manifests = planned.manifests
                    run.unfinished -= planned.complete
            else:
                crew.total_bytes = sum(planned.bytes for planned in plan.values())
                crew.work(
                    partial(run.guarded, partial(_prepare, local, run, planned, crew.check))
                    for run, planned in plan.items()
                )
                _carry_out(local, runs, crew, spares)
                crew.work(partial(run.guarded, run.prunes.unspare) for run in runs)
        except StoppedError as error:
            for run in runs:
                if run.is_header_due or run.unfinished:
                    run.fail(error)
    return [_outcome(run) for run in runs]


def _begin(target: Target, stack: ExitStack, *, dry_run: bool) -> RemoteRun:
    remote = target.store.name
    try:
        ledger = target.ledger.looking(remote) if dry_run else stack.enter_context(target.ledger.locked(remote))
    except VaultError as error:
        run = RemoteRun(target.name, target.store, OpenLedger(Holdings(), None, ""))
        run.fail(error)
        return run
    return RemoteRun(target.name, target.store, ledger, target.lost)


class _Planned:
    """What one remote is going to get.

    Attributes:
        needed: names of all segments that the manifests need, there or not; counted only if a prune may delete some.
        complete: hashes of the manifests that are there with all their segments, as only the ledger did not know.
    """

    def __init__(self, *, needed: set[SegmentName] | None = None) -> None:
        self.needed = needed
        self.complete: set[str] = set()
        self.segments: dict[SegmentName, int] = {}
        self.bytes = 0
        self.manifests = 0

    def add(self, manifest: Manifest, size: int, holdings: Holdings) -> None:
        if self.needed is not None:
            self.needed.update(name for name, _ in manifest.segments)
        for name, length in lacking(manifest.segments, holdings).unsent.items():
            if name not in self.segments:
                self.segments[name] = length
                self.bytes += length
        self.bytes += size
        self.manifests += size > 0


def _plan(local: LocalVault, runs: Sequence[RemoteRun], crew: Crew) -> dict[RemoteRun, _Planned]:
    """Add up what is going to be sent.  Manifests that all remotes have are not even opened."""
    plan = {run: _Planned(needed=set() if run.prunes.has_condemned else None) for run in runs if run.error is None}
    for manifest in local.manifests:
        lackers = [run for run in plan if manifest.hash in run.unfinished]
        if not lackers:
            continue
        crew.tick()
        try:
            hold = ManifestHold.take(local.layout, manifest)
            if hold is None:
                for run in lackers:
                    run.unfinished.discard(manifest.hash)
                continue
            try:
                content, size = hold.content(local.header.vault_id), hold.size_bytes()
            finally:
                hold.release()
        except VaultError as error:
            for run in lackers:
                run.skip(error)
            continue
        for run in lackers:
            head = RemoteHead(content.device.hex(), content.seq, manifest.hash)
            has_head = run.has_head(head, size)
            plan[run].add(content, 0 if has_head else size, run.holdings)
            if has_head and not any(lacking(content.segments, run.holdings)):
                plan[run].complete.add(manifest.hash)
    return plan


def _prepare(local: LocalVault, run: RemoteRun, planned: _Planned, tick: Callable[[], None]) -> None:
    """What has to be there before any segment or manifest is put."""
    run.accept_fork(local.header.vault_id)
    if planned.needed:
        run.prunes.spare(planned.needed, tick)
    run.put_header(local.header)


def _carry_out(local: LocalVault, runs: Sequence[RemoteRun], crew: Crew, spares: Sequence[Store]) -> None:
    """Send everything, in rounds."""
    left = deque(local.manifests)
    holder = read_holder(local.layout)
    courtesy = Courtesy(0 if holder is None else holder.pid)
    while left and any(run.error is None for run in runs):
        current = Round(local, crew, courtesy, spares)
        try:
            while left and not current.is_full:
                crew.tick()
                manifest = left.popleft()
                current.add(manifest, [run for run in runs if manifest.hash in run.unfinished])
            current.carry_out()
        finally:
            current.close()


def _outcome(run: RemoteRun) -> TargetOutcome:
    is_up_to_date = run.error is None and not run.is_header_due and not run.unfinished
    error = None if is_up_to_date else run.error or run.skipped
    return TargetOutcome(run.name, run.segments, run.bytes, run.manifests, is_up_to_date, error)


def missing(layout: VaultLayout, target: Target) -> Missing:
    """What a remote lacks, by its ledger alone: no request is made.

    Args:
        layout: the vault.
        target: the remote.

    Raises:
        NotAVaultError, FormatTooNewError, StorageError: the vault or the ledger cannot be read.
    """
    local = LocalVault(layout)
    holdings = target.ledger.read(target.store.name)
    planned = _Planned()
    found = Missing(is_header_current=holdings.header == local.header.hash)
    for manifest in local.manifests:
        if not is_due(manifest.hash, holdings, is_newest=manifest == local.manifests[-1]):
            continue
        hold = ManifestHold.take(layout, manifest)
        if hold is None:
            continue
        try:
            content = hold.content(local.header.vault_id)
            planned.add(content, hold.size_bytes(), holdings)
        except (IntegrityError, FormatTooNewError):  # it is missing there, and what it needs nobody can tell
            planned.manifests += 1
            continue
        finally:
            hold.release()
        found.since_ns = content.created_ns if found.since_ns is None else min(found.since_ns, content.created_ns)
    found.segments, found.bytes, found.manifests = len(planned.segments), planned.bytes, planned.manifests
    return found
