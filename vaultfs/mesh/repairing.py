"""Carries out a `vaultfs.mesh.repair_plan`: brings copies of segments to the peers that are to have them.

A copy comes from this machine's disk if the segment lies there and is right, else from a peer, through a file without
a name.  What is sent was hashed before its last piece goes out, and the peer hashes it again, so no wrong byte gets a
name anywhere.  A few copies are made at once, each with some MiB of memory and at most one segment on the disk.

What fails is planned again without what failed: a peer that is full gets less, one that fails or refuses is left out,
a source that was wrong is not read again.  Each round excludes something or ends it, so this ends.  Cancelled or
killed, it leaves nothing half-done but what peers keep of a transfer; planning again does the rest.
"""

from __future__ import annotations

import logging
import tempfile
import threading
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Final, NamedTuple, cast

import trio

from vaultfs.errors import (
    IntegrityError,
    NoSpaceError,
    ObjectMissingError,
    RemoteRefusedError,
    StorageError,
    VaultError,
)
from vaultfs.ids import PeerId, SegmentName, VaultId
from vaultfs.mesh.asking import worst_of
from vaultfs.mesh.book import VaultPeers
from vaultfs.mesh.claims import Claims
from vaultfs.mesh.client import MeshClient
from vaultfs.mesh.placement import Placement
from vaultfs.mesh.reading import HashingFile
from vaultfs.mesh.repair_plan import Copy, RepairPlan, plan_repair
from vaultfs.mesh.survey import Survey
from vaultfs.remotes.bodies import MeteredSource
from vaultfs.storage.durable import storage_errors
from vaultfs.storage.layout import VaultLayout
from vaultfs.sync.remote_layout import segment_key
from vaultfs.sync.sealed_source import SegmentSource, open_source, source_of

log = logging.getLogger(__name__)

AT_ONCE: Final = 4
MOST_FAILURES: Final = 3
"""A peer that could not be reached so often is left out for the rest."""

_STEP_BYTES: Final = 1 << 16

Report = Callable[[int, int], None]
"""Is given bytes done and bytes in all, in whatever thread."""


class Planned(NamedTuple):
    """What there is to do, in numbers.

    Attributes:
        segments: so many copies, or so many segments that lack shares.
        bytes: of what would be sent.
        bytes_to: by peer, of copies; shares are given out as there is room.
    """

    segments: int
    bytes: int
    bytes_to: Mapping[PeerId, int]


@dataclass
class Repaired:
    """What became of it.

    Attributes:
        copies: how many were made; or shares.
        bytes: of these.
        errors: of peers that failed or refused, the first of each.
        damaged_here: segments on this machine that are not what their names say.
        wrong: by peer, segments that it said it has, and has not, or has other bytes of.
        failures: why shares could not be stored; a few of the reasons.
    """

    copies: int = 0
    bytes: int = 0
    errors: dict[PeerId, VaultError] = field(default_factory=dict)
    damaged_here: set[SegmentName] = field(default_factory=set)
    wrong: dict[PeerId, set[SegmentName]] = field(default_factory=dict)
    failures: list[VaultError] = field(default_factory=list)


class Repair:
    """One run.

    Args:
        client: to work with.
        page: the peers of the vault, and how many copies there are to be.
        survey: what they said; kept up to date.
        claims: what of it counts; its mappings are those of the survey.
        placement: of the peers that are believed.
        needed: segments and their sizes in bytes.
        layout: the vault on this machine; None: there is none.
        local: the segments that lie there.
        scratch: a directory for files without a name.
        take: is told of bytes before they are sent or kept, in a thread, and may make them wait.
        report: is told how far it is.
        at_once: so many copies.
    """

    def __init__(
        self,
        client: MeshClient,
        page: VaultPeers,
        survey: Survey,
        claims: Claims,
        placement: Placement,
        needed: Mapping[SegmentName, int],
        *,
        layout: VaultLayout | None = None,
        local: frozenset[SegmentName] = frozenset(),
        scratch: Path | None = None,
        take: Callable[[int], None] = lambda _: None,
        report: Report = lambda _done, _total: None,
        at_once: int = AT_ONCE,
    ) -> None:
        self._client: Final = client
        self._page: Final = page
        self._vault: Final[VaultId] = page.vault_id
        self._survey: Final = survey
        self._claims: Final = claims
        self._placement: Final = placement
        self._needed: Final = needed
        self._layout: Final = layout
        self._local: Final = set(local) if layout is not None else set()
        self._scratch: Final = scratch
        self._at_once: Final = at_once
        self._meter: Final = _Meter(take, report)
        self._outcome: Final = Repaired()
        self._failures: Final[dict[PeerId, int]] = {}
        self._distrusted: Final[dict[PeerId, set[SegmentName]]] = {}

    def plan(self) -> RepairPlan:
        """What there is to do, as things are now."""
        views = self._survey.views
        holdings = {**self._claims.counted, **self._claims.distrusted}
        return plan_repair(
            self._needed,
            holdings,
            self._placement,
            self._page.replicas,
            {peer: view.room_bytes for peer, view in views.items() if view.takes and self._is_usable(peer)},
            self._local,
            self._distrusted,
            self._claims.away.keys() | {peer for peer in holdings if not self._is_usable(peer)},
        )

    def planned(self) -> Planned:
        """The same in numbers."""
        plan = self.plan()
        return Planned(len(plan.copies), plan.total_bytes, plan.bytes_to)

    async def run(self) -> Repaired:
        """Do it.

        Raises:
            NoSpaceError, ReadOnlyError, StorageError: this machine's disk cannot take what has to pass through it.
        """
        while (plan := self.plan()).copies:
            self._meter.more(plan.total_bytes)
            await self._carry_out(plan.copies)
        return self._outcome

    def _is_usable(self, peer: PeerId) -> bool:
        return self._failures.get(peer, 0) < MOST_FAILURES

    async def _carry_out(self, copies: Sequence[Copy]) -> None:
        waiting = iter(copies)

        async def work() -> None:
            for copy in waiting:
                await self._make(copy)

        failures: list[VaultError] = []

        async def guarded(scope: trio.CancelScope) -> None:
            try:
                await work()
            except VaultError as error:  # of this machine: nothing further makes sense
                failures.append(error)
                scope.cancel()

        async with trio.open_nursery() as nursery:
            for _ in range(min(self._at_once, len(copies))):
                nursery.start_soon(guarded, nursery.cancel_scope)
        if failures:
            raise failures[0]

    async def _make(self, copy: Copy) -> None:
        """Make one copy, or exclude what was in its way."""
        if not self._is_usable(copy.dest):
            self._meter.more(-copy.size_bytes)
            return
        name, size = copy.name, copy.size_bytes
        counted = self._meter.counted(size)
        try:
            async with self._source(copy) as (source, is_local):
                await self._send(copy, source, counted, is_local=is_local)
        except _NoSourceError:
            counted.drop()
        except _DestinationError:
            counted.drop()
        else:
            counted.finish()
            self._outcome.copies += 1
            self._outcome.bytes += size
            view = self._survey.views[copy.dest]
            view.segments[name] = size
            view.room_bytes -= size
            # Whatever it had before: this was compared with its hash as it arrived.
            self._distrusted.get(copy.dest, set()).discard(name)

    async def _send(self, copy: Copy, source: SegmentSource, counted: _Counted, *, is_local: bool) -> None:
        key, digest = segment_key(copy.name), bytes.fromhex(copy.name)
        try:
            await self._client.store(copy.dest, self._vault, key, MeteredSource(source, counted.sent), digest)
        except VaultError as error:
            if source.failure is not None and not is_local:
                raise source.failure from error  # what had come right is not any more: the disk here fails
            if source.failure is not None:
                self._is_damaged(copy.name, source.failure)
                raise _NoSourceError from error
            self._refused(copy, error)
            raise _DestinationError from error

    def _refused(self, copy: Copy, error: VaultError) -> None:
        """Exclude a peer that did not take something, or what was in the way."""
        log.info("%s", error)
        if isinstance(error, NoSpaceError):
            view = self._survey.views[copy.dest]
            view.room_bytes = min(view.room_bytes, copy.size_bytes - 1)
            self._outcome.errors.setdefault(copy.dest, error)
        else:
            self._has_failed(copy.dest, error)

    def _has_failed(self, peer: PeerId, error: VaultError) -> None:
        is_final = isinstance(error, RemoteRefusedError | IntegrityError)
        self._failures[peer] = MOST_FAILURES if is_final else self._failures.get(peer, 0) + 1
        if not self._is_usable(peer):
            self._outcome.errors.setdefault(peer, error)

    def _is_damaged(self, name: SegmentName, error: VaultError) -> None:
        log.info("%s", error)
        self._local.discard(name)
        if isinstance(error, IntegrityError | StorageError):
            self._outcome.damaged_here.add(name)

    def _is_wrong(self, peer: PeerId, name: SegmentName) -> None:
        """A peer has not what it said it has.  It may be sent a good copy."""
        self._outcome.wrong.setdefault(peer, set()).add(name)
        self._distrusted.setdefault(peer, set()).add(name)

    # --- sources

    @asynccontextmanager
    async def _source(self, copy: Copy) -> AsyncIterator[tuple[SegmentSource, bool]]:
        """The segment, from here or from a peer; and whether it lies here.

        Raises:
            _NoSourceError: nobody has it; what was wrong is excluded.
            NoSpaceError, StorageError: this machine's disk cannot take it.
        """
        if copy.name in self._local:
            assert self._layout is not None, "else nothing is local"
            opened = open_source(self._layout, copy.name, copy.size_bytes)
            try:
                source = await trio.to_thread.run_sync(opened.__enter__)
            except VaultError as error:
                self._is_damaged(copy.name, error)
            else:
                try:
                    yield source, True
                finally:
                    opened.__exit__(None, None, None)  # closes a descriptor
                return
        with storage_errors(f"cannot make a file in {self._scratch or tempfile.gettempdir()}"):
            file = cast("BinaryIO", tempfile.TemporaryFile(dir=self._scratch, buffering=0))  # noqa: SIM115  # closed below
        try:
            await self._fetch(copy, file)
            yield source_of(file.fileno(), copy.name, copy.size_bytes, lambda: None), False
        finally:
            file.close()

    async def _fetch(self, copy: Copy, file: BinaryIO) -> None:
        """Have a segment in a file, from the first peer that has it right."""
        failures: list[VaultError] = []
        for peer in copy.sources:
            if not self._is_usable(peer):
                continue
            file.seek(0)
            file.truncate()
            sink = HashingFile(file, copy.size_bytes, self._meter.take)
            try:
                await self._client.fetch(peer, self._vault, segment_key(copy.name), cast("BinaryIO", sink))
                if sink.count != copy.size_bytes or sink.hexdigest() != copy.name:
                    raise IntegrityError(f"{self._client.name(peer)} sent other bytes than those of {copy.name}")
            except VaultError as error:
                if sink.failure is not None:
                    raise sink.failure from error
                failures.append(error)
                log.info("%s", error)
                if isinstance(error, IntegrityError | ObjectMissingError):
                    self._is_wrong(peer, copy.name)
                else:
                    self._has_failed(peer, error)
            else:
                return
        log.info("%s", worst_of(failures, copy.name))
        raise _NoSourceError


class _NoSourceError(Exception):
    """Nobody has a segment, as it turned out."""


class _DestinationError(Exception):
    """A peer did not take a segment."""


class _Meter:
    """How far it is, over all copies.  Safe in threads."""

    def __init__(self, take: Callable[[int], None], report: Report) -> None:
        self.take: Final = take
        self._report: Final = report
        self._lock: Final = threading.Lock()
        self._done_bytes = 0
        self._total_bytes = 0

    def more(self, count: int) -> None:
        """So many bytes are to be done, besides."""
        self.add(0, count)

    def add(self, done: int, total: int = 0) -> None:
        """Something has changed."""
        with self._lock:
            self._done_bytes += done
            self._total_bytes += total
            self._report(self._done_bytes, self._total_bytes)

    def counted(self, size: int) -> _Counted:
        """The count of one copy."""
        return _Counted(self, size)


class _Counted:
    """The bytes of one copy; never more than it has, however often it is sent."""

    def __init__(self, meter: _Meter, size: int) -> None:
        self._meter: Final = meter
        self._size: Final = size
        self._sent = 0

    def sent(self, count: int) -> None:
        """So many go out now; with a limit, in small steps, so that people see that it goes on."""
        while count > 0:
            step = min(count, _STEP_BYTES)
            count -= step
            self._meter.take(step)
            step = min(step, self._size - self._sent)
            self._sent += step
            self._meter.add(step)

    def finish(self) -> None:
        """It is there, however much had to be sent."""
        self._meter.add(self._size - self._sent)

    def drop(self) -> None:
        """It is not made; if it is planned again, it counts again."""
        self._meter.add(-self._sent, -self._size)
