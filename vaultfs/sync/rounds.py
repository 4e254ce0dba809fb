"""Rounds: some manifests are held, the segments that remotes lack for them are sent, and then they are put.

    1. each lacking segment is read once, hashed, and put to every remote that lacks it
    2. each remote is asked for the size of what was put there
    3. each remote gets the manifests, oldest first, whose segments are all there

So a remote never shows a snapshot that is not all there, wherever this ends.  In memory is one segment for each thread.
A remote that fails drops out; a snapshot that cannot be sent is left out for all, and the others go on.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from vaultfs.errors import VaultError
from vaultfs.ids import SegmentName
from vaultfs.sync.local_vault import LocalManifest, ManifestHold, read_segment
from vaultfs.sync.plan import RoundSize, lacking
from vaultfs.sync.remote_layout import RemoteHead, segment_key
from vaultfs.sync.remote_run import LocalVault, RemoteRun
from vaultfs.sync.workers import CountedSource, Crew


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
    """

    def __init__(self, local: LocalVault, crew: Crew) -> None:
        self._local: Final = local
        self._crew: Final = crew
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
        data: bytes | None = None
        for run in segment.wanting():
            if run.holdings.put.get(segment.name) == segment.size and self._is_there(run, segment):
                continue
            if run.error is not None:
                continue
            if data is None:
                data = self._read(segment)
            if data is None:
                return
            run.guarded(partial(self._put_segment, run, segment, data))

    def _is_there(self, run: RemoteRun, segment: _Segment) -> bool:
        """Whether what an earlier run has put is there."""
        found = False

        def ask() -> None:
            nonlocal found
            self._crew.check()
            if run.store.size_bytes(segment_key(segment.name)) == segment.size:
                run.ledger.there(segment.name, segment.size)
                found = True

        run.guarded(ask)
        return found

    def _read(self, segment: _Segment) -> bytes | None:
        """The segment's bytes; if they cannot be had, the snapshots that need it cannot be sent."""
        try:
            return read_segment(self._local.layout, segment.name, segment.size)
        except VaultError as error:
            for _, user in segment.lackers:
                if user.hold.is_deleted():
                    user.is_deleted = True
                else:
                    user.failure = user.failure or error
            return None

    def _put_segment(self, run: RemoteRun, segment: _Segment, data: bytes) -> None:
        source = CountedSource(data, self._crew)
        run.put_segment(segment.name, source)
        source.is_stored()
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
                source = CountedSource(snapshot.hold.read(), self._crew)
                run.put_head(snapshot.head, source)
                source.is_stored()
