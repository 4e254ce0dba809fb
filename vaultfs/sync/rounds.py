"""Rounds: some manifests are held, the segments that remotes lack for them are sent, and then they are put.

    1. each lacking segment is opened once, and put to every remote that lacks it; it is hashed while it is read
    2. each remote is asked for the size of what was put there
    3. each remote gets the manifests, oldest first, whose segments are all there

So a remote never shows a snapshot that is not all there, wherever this ends.  In memory are some MiB for each thread.
A remote that fails drops out; a snapshot that cannot be sent is left out for all, and the others go on.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from vaultfs.errors import VaultError
from vaultfs.ids import SegmentName
from vaultfs.remotes.bodies import PIECE_BYTES
from vaultfs.remotes.store import BytesSource, Store
from vaultfs.sync.courtesy import Courtesy
from vaultfs.sync.local_vault import LocalManifest, ManifestHold
from vaultfs.sync.plan import RoundSize, lacking
from vaultfs.sync.relayed_segment import relayed_source
from vaultfs.sync.remote_layout import RemoteHead, segment_key
from vaultfs.sync.remote_run import LocalVault, RemoteRun
from vaultfs.sync.sealed_source import SegmentSource, open_source
from vaultfs.sync.workers import CountedSource, Crew, StoppedError


@dataclass(eq=False)
class _Snapshot:
    """A manifest of this round.

    Attributes:
        segments: those that at least one remote lacks.
        runs: remotes that lack the manifest.
        failure: why it cannot be sent.
        is_deleted: it is gone, so nobody needs it any more.
    """

    manifest: LocalManifest
    hold: ManifestHold
    head: RemoteHead
    runs: list[RemoteRun]
    segments: list[_Segment] = field(default_factory=list)
    failure: VaultError | None = None
    is_deleted: bool = False

    @property
    def is_wanted(self) -> bool:
        return self.failure is None and not self.is_deleted


@dataclass(eq=False, slots=True)
class _Segment:
    """A segment that remotes lack.  There may be a million of them.

    Attributes:
        lackers: each of these remotes, with each snapshot that needs it there.
    """

    name: SegmentName
    size: int
    lackers: list[tuple[RemoteRun, _Snapshot]] = field(default_factory=list)

    def wanting(self) -> list[RemoteRun]:
        """The remotes that shall still get it."""
        return list(dict.fromkeys(run for run, user in self.lackers if run.error is None and user.is_wanted))


class Round:
    """One round; `close` it.

    Args:
        local: the vault.
        crew: does the work.
        courtesy: leaves the machine to the vault's daemon.
        spares: remotes that may have segments which are not on this disk.
    """

    def __init__(self, local: LocalVault, crew: Crew, courtesy: Courtesy, spares: Sequence[Store] = ()) -> None:
        self._local: Final = local
        self._crew: Final = crew
        self._courtesy: Final = courtesy
        self._spares: Final = spares
        self._size: Final = RoundSize()
        self._snapshots: Final[list[_Snapshot]] = []
        self._segments: Final[dict[tuple[SegmentName, int], _Segment]] = {}
        self._put: Final[list[tuple[RemoteRun, _Segment]]] = []

    @property
    def is_full(self) -> bool:
        """Whether it is time to carry it out."""
        return self._size.is_full

    def add(self, manifest: LocalManifest, runs: Iterable[RemoteRun]) -> None:
        """Take on a manifest.

        Args:
            manifest: on this machine.
            runs: the remotes that lack it.
        """
        lackers = [run for run in runs if run.error is None]
        if not lackers:
            return
        try:
            hold = ManifestHold.take(self._local.layout, manifest)
            if hold is None:
                for run in lackers:
                    run.unfinished.discard(manifest.hash)
                return
            try:
                self._add(manifest, hold, lackers)
            except BaseException:
                hold.release()
                raise
        except VaultError as error:
            for run in lackers:
                run.skip(error)

    def _add(self, manifest: LocalManifest, hold: ManifestHold, runs: list[RemoteRun]) -> None:
        content = hold.content(self._local.header.vault_id)
        snapshot = _Snapshot(manifest, hold, RemoteHead(content.device.hex(), content.seq, manifest.hash), runs)
        needed: dict[_Segment, None] = {}
        unsent_bytes = 0
        for run in runs:
            lack = lacking(content.segments, run.holdings)
            for name, size in (lack.unsent | lack.unconfirmed).items():
                segment = self._segments.setdefault((name, size), _Segment(name, size))
                segment.lackers.append((run, snapshot))
                needed[segment] = None
            unsent_bytes = max(unsent_bytes, sum(lack.unsent.values()))
        snapshot.segments = list(needed)
        self._snapshots.append(snapshot)
        self._size.add(unsent_bytes, len(needed))

    def carry_out(self) -> None:
        """Send everything.

        Raises:
            StoppedError: the caller asked for it.
        """
        self._crew.work(partial(self._send, segment) for segment in self._segments.values())
        self._crew.work(partial(run.guarded, partial(self._confirm, run, segment)) for run, segment in self._put)
        runs = dict.fromkeys(run for snapshot in self._snapshots for run in snapshot.runs)
        self._crew.work(partial(run.guarded, partial(self._put_manifests, run)) for run in runs)

    def close(self) -> None:
        """Let go of the manifests."""
        for snapshot in self._snapshots:
            snapshot.hold.release()

    def _send(self, segment: _Segment) -> None:
        with ExitStack() as stack:
            source: SegmentSource | None = None
            for run in segment.wanting():
                if run.holdings.put.get(segment.name) == segment.size and self._is_there(run, segment):
                    continue
                if run.error is not None:
                    continue
                if source is None:
                    source = self._open(segment, stack)
                if source is None or source.failure is not None:
                    return
                run.guarded(partial(self._put_segment, run, segment, source))

    def _open(self, segment: _Segment, stack: ExitStack) -> SegmentSource | None:
        """The segment, to be sent to as many remotes as there are; None if it cannot be had."""
        layout, name, size, check = self._local.layout, segment.name, segment.size, self._before_piece
        holders = () if os.path.lexists(layout.sealed_path(name)) else self._holders(segment)
        try:
            if holders:
                return stack.enter_context(relayed_source(layout, holders, name, size, check))
            return stack.enter_context(open_source(layout, name, size, check))
        except StoppedError:
            raise
        except VaultError as error:
            _leave_out(segment, error)
            return None

    def _before_piece(self) -> None:
        self._crew.check()
        self._courtesy.wait(PIECE_BYTES)

    def _holders(self, segment: _Segment) -> list[Store]:
        """Remotes that may have a segment which is not on this disk, those that are known to have it first."""
        runs = dict.fromkeys(run for snapshot in self._snapshots for run in snapshot.runs)
        known = [run.store for run in runs if run.holdings.there.get(segment.name) == segment.size]
        return [*known, *self._spares]

    def _is_there(self, run: RemoteRun, segment: _Segment) -> bool:
        """Whether what an earlier run has put is there."""
        found = False

        def ask() -> None:
            nonlocal found
            self._crew.check()
            size_bytes = run.store.size_bytes(segment_key(segment.name))
            if size_bytes == segment.size:
                run.ledger.there(segment.name, segment.size)
                found = True
            elif size_bytes is None:
                run.ledger.gone(segment.name)

        run.guarded(ask)
        return found

    def _put_segment(self, run: RemoteRun, segment: _Segment, source: SegmentSource) -> None:
        counted = CountedSource(source, self._crew)
        try:
            run.put_segment(segment.name, counted)
        except VaultError:
            if source.failure is None:
                raise
            _leave_out(segment, source.failure)  # the fault is here, whatever the remote says
        else:
            counted.is_stored()
            self._put.append((run, segment))

    def _confirm(self, run: RemoteRun, segment: _Segment) -> None:
        self._crew.check()
        run.require_stored(segment_key(segment.name), segment.size)
        run.ledger.there(segment.name, segment.size)

    def _put_manifests(self, run: RemoteRun) -> None:
        for snapshot in self._snapshots:
            self._crew.check()
            if run not in snapshot.runs:
                continue
            if snapshot.is_deleted:
                run.unfinished.discard(snapshot.manifest.hash)
            elif snapshot.failure is not None:
                run.skip(type(snapshot.failure)(f"snapshot {snapshot.manifest.seq} was not sent: {snapshot.failure}"))
            elif all(run.holdings.there.get(each.name) == each.size for each in snapshot.segments):
                source = CountedSource(BytesSource(snapshot.hold.read()), self._crew)
                run.put_head(snapshot.head, source)
                source.is_stored()


def _leave_out(segment: _Segment, error: VaultError) -> None:
    """The bytes of a segment cannot be had, so the snapshots that need it cannot be sent; or nobody needs them now."""
    for _, user in segment.lackers:
        if user.hold.is_deleted():
            user.is_deleted = True
        else:
            user.failure = user.failure or error
