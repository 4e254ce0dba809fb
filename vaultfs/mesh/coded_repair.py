"""Makes lost shares again, for vaults that have shares instead of copies: as `vaultfs.mesh.repairing` does for copies.

The shares that are lacking are made of the segment if it lies on this disk and is right, else of k other shares, else
of a whole copy from before the vault had shares.  Peers that are not believed are neither read nor given anything.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import trio

from vaultfs.errors import IntegrityError, NoSpaceError, ObjectMissingError, ReadOnlyError, StorageError, VaultError
from vaultfs.ids import SegmentName
from vaultfs.mesh.book import VaultPeers
from vaultfs.mesh.claims import Claims
from vaultfs.mesh.client import MeshClient
from vaultfs.mesh.coded import CodedSegments
from vaultfs.mesh.held_shares import shares_of
from vaultfs.mesh.placement import Placement
from vaultfs.mesh.reading import Reader
from vaultfs.mesh.repairing import AT_ONCE, Planned, Repaired, Report
from vaultfs.mesh.share_format import CodedSegment, Coding
from vaultfs.mesh.survey import Survey
from vaultfs.storage.layout import VaultLayout
from vaultfs.sync.remote_layout import LARGEST_SEGMENT_BYTES, segment_key
from vaultfs.sync.sealed_source import open_source, source_of

log = logging.getLogger(__name__)


class CodedRepair:
    """One run.

    Args:
        client: to work with.
        page: the peers of the vault.
        coding: how its segments are cut.
        survey: what the peers said; kept up to date.
        claims: what of it counts.
        placement: of the peers that are believed.
        needed: segments and their sizes in bytes.
        layout: the vault on this machine; None: there is none.
        local: the segments that lie there.
        scratch: a directory for files without a name.
        report: is told how far it is.
        at_once: so many segments.
    """

    def __init__(
        self,
        client: MeshClient,
        page: VaultPeers,
        coding: Coding,
        survey: Survey,
        claims: Claims,
        placement: Placement,
        needed: Mapping[SegmentName, int],
        *,
        layout: VaultLayout | None = None,
        local: frozenset[SegmentName] = frozenset(),
        scratch: Path | None = None,
        report: Report = lambda _done, _total: None,
        at_once: int = AT_ONCE,
    ) -> None:
        self._client: Final = client
        self._coding: Final = coding
        self._views: Final = {peer: view for peer, view in survey.views.items() if peer in claims.present}
        self._away: Final = claims.away_shares
        self._placement: Final = placement
        self._needed: Final = needed
        self._layout: Final = layout
        self._local: Final = local if layout is not None else frozenset()
        self._report: Final = report
        self._at_once: Final = at_once
        self._shares: Final = CodedSegments(page.vault_id, tuple(self._views), scratch)
        self._reader: Final = Reader(page.vault_id, scratch)
        self._done: Final = Repaired()
        self._done_bytes = 0

    def planned(self) -> Planned:
        """What there is to do."""
        missing = self._missing()
        return Planned(len(missing), sum(count * coded.share_bytes for coded, count in missing), {})

    async def run(self) -> Repaired:
        """Do it.

        Raises:
            ReadOnlyError, StorageError: this machine's disk cannot take what has to pass through it.
        """
        missing = self._missing()
        total_bytes = sum(count * coded.share_bytes for coded, count in missing)
        waiting = iter(missing)
        failures: list[VaultError] = []

        async def work(scope: trio.CancelScope) -> None:
            for coded, count in waiting:
                try:
                    now = await self._mend(coded)
                except (StorageError, ReadOnlyError) as error:
                    failures.append(error)
                    scope.cancel()
                    return
                made = max(0, now - (self._coding.total - count))
                self._done.copies += made
                self._done.bytes += made * coded.share_bytes
                self._done_bytes += count * coded.share_bytes
                self._report(self._done_bytes, total_bytes)

        async with trio.open_nursery() as nursery:
            for _ in range(min(self._at_once, len(missing))):
                nursery.start_soon(work, nursery.cancel_scope)
        if failures:
            raise failures[0]
        return self._done

    def _missing(self) -> list[tuple[CodedSegment, int]]:
        """Segments with too few shares, those with the fewest first, and how many are missing."""
        found = []
        for name, size in self._needed.items():
            coded = CodedSegment(name, size, self._coding)
            count = self._coding.total - len(self._there(coded))
            if count:
                found.append((coded, count))
        return sorted(found, key=lambda each: (-each[1], each[0].name))

    def _there(self, coded: CodedSegment) -> set[int]:
        """The shares of a segment that count."""
        return shares_of(coded, self._views.values()).keys() | self._expected(coded)

    def _expected(self, coded: CodedSegment) -> set[int]:
        """Those on peers that are away for a short time: nothing is read from there, and nobody makes them anew."""
        return {key.index for shares in self._away for key in shares.get(coded.name, ()) if key.coded == coded}

    async def _mend(self, coded: CodedSegment) -> int:
        """Make and store what one segment lacks; how many shares there are then."""
        before = len(self._there(coded))
        if coded.name in self._local:
            try:
                return await self._from_disk(coded)
            except IntegrityError as error:
                log.info("%s", error)
                self._done.damaged_here.add(coded.name)
            except VaultError as error:
                return self._failed(error, before)
        try:
            if len(shares_of(coded, self._views.values())) >= self._coding.needed:
                return await self._shares.repair(
                    self._client, coded, self._views, self._placement, self._expected(coded)
                )
            return await self._from_copy(coded)
        except ObjectMissingError:  # the look afterwards tells
            return before
        except (StorageError, ReadOnlyError):
            raise
        except VaultError as error:
            return self._failed(error, before)

    def _failed(self, error: VaultError, before: int) -> int:
        log.info("%s", error)
        if isinstance(error, NoSpaceError) or not self._done.failures:
            self._done.failures.append(error)
        return before

    async def _from_disk(self, coded: CodedSegment) -> int:
        assert self._layout is not None, "else nothing is local"
        opened = open_source(self._layout, coded.name, coded.size_bytes)
        source = await trio.to_thread.run_sync(opened.__enter__)
        try:
            return await self._shares.store(
                self._client, self._coding, coded.name, source, self._views, self._placement, self._expected(coded)
            )
        finally:
            opened.__exit__(None, None, None)  # closes a descriptor

    async def _from_copy(self, coded: CodedSegment) -> int:
        name, size = coded.name, coded.size_bytes
        holders = [peer for peer, view in self._views.items() if view.segments.get(name) == size]
        if not holders:
            raise ObjectMissingError(f"no peer has the segment {name}")
        # As large as any, so that it comes into a file, however small it is.
        with await self._reader.whole(self._client, holders, segment_key(name), name, LARGEST_SEGMENT_BYTES) as file:
            source = source_of(file.fileno(), name, size, lambda: None)
            return await self._shares.store(
                self._client, self._coding, coded.name, source, self._views, self._placement, self._expected(coded)
            )
