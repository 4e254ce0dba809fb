"""Giving space back: holes in segments, whole segments, and segments too empty to keep.

What nothing needs stands in the table ``reclaim`` since the transaction that dropped it.  A range may be punched only
when that transaction is durable, no thread reads, and the segment is sealed (the hash of an open one is being made).
The rows go with the next commit; a crash in between punches the same holes again, which does no harm.

Segments that kept snapshots need are neither deleted nor punched: such a one only loses its row.

In a vault that has remotes no holes are punched: a segment is known to them by the hash of all its bytes, and one with
holes could not be copied any more.  What a segment there has to spare comes back when it is deleted or compacted.
"""

from __future__ import annotations

import contextlib
import logging
from typing import Final

from vaultfs.errors import VaultError
from vaultfs.ids import SegmentId, SegmentName
from vaultfs.metadata.chunk_rows import ChunkRows, Reclaimable, SegmentRow
from vaultfs.storage.durable import storage_errors
from vaultfs.storage.layout import VaultLayout
from vaultfs.storage.segment_reader import punch
from vaultfs.vault.kept_snapshots import KeptSnapshots
from vaultfs.vault.segments import SegmentAccess

log = logging.getLogger(__name__)

BLOCK_BYTES: Final = 4096
RANGES_AT_ONCE: Final = 4096
RANGES_IN_A_STEP: Final = 128
"""About 5 ms."""


class Reclaimer:
    """Frees what the committed state does not need.

    Args:
        rows: the tables.
        layout: where the files are.
        segments: to close what is deleted.
        kept: what kept snapshots need.
    """

    def __init__(self, rows: ChunkRows, layout: VaultLayout, segments: SegmentAccess, kept: KeptSnapshots) -> None:
        self._rows = rows
        self._layout = layout
        self._segments = segments
        self._kept = kept
        self._has_warned = False
        self._noted: list[Reclaimable] = []
        self._free_now: list[Reclaimable] = []
        self.is_behind = False
        """A commit has made more free while some was still waiting; nobody has noted it."""

    @property
    def keeps_whole(self) -> bool:
        """Whether sealed segments keep all their bytes; looked up anew, as a remote may be added at any time."""
        return self._layout.remotes.exists()

    def note(self) -> None:
        """Note, right before a COMMIT, which ranges it will make free, unless enough are known."""
        if self._noted or self._free_now:
            self.is_behind = True
        else:
            self._noted = self._rows.reclaimable(RANGES_AT_ONCE)

    def made_durable(self) -> None:
        """The COMMIT after `note` is durable: what was noted is free for good, whatever happens next."""
        self._free_now += self._noted
        self._noted.clear()

    @property
    def has_work(self) -> bool:
        """Whether `step` would do something; not while a thread reads, as it may be reading just there."""
        return bool(self._free_now) and not self._segments.is_leased

    @property
    def waiting_bytes(self) -> int:
        """How much room `step` could give back by now."""
        return sum(each.length for each in self._free_now)

    def step(self, ranges: int = RANGES_IN_A_STEP) -> None:
        """Give the room of some free ranges back; the rows go with the next commit."""
        by_segment: dict[SegmentId, list[Reclaimable]] = {}
        for each in self._free_now[:ranges]:
            by_segment.setdefault(each.segment, []).append(each)
        del self._free_now[:ranges]
        self.is_behind &= bool(self._free_now)
        try:
            kept = self._kept.names()
        except VaultError as error:
            # The rows stay, so it is tried again when the kept snapshot is mended or deleted.
            if not self._has_warned:
                log.warning("no space is given back: %s", error)
            self._has_warned = True
            return
        for number, parts in by_segment.items():
            row = self._rows.segment(number)
            if row is None or row.name is None:
                continue
            try:
                self._free(row, parts, is_kept=row.name in kept)
            except VaultError as error:
                # The rows stay, so it is tried again; no data depends on it.
                log.warning("cannot give back space in segment %s: %s", row.name, error)

    def _free(self, row: SegmentRow, parts: list[Reclaimable], *, is_kept: bool) -> None:
        assert row.name is not None
        path = self._layout.sealed_path(SegmentName(row.name))
        # As it was at the commit: nothing is added to a sealed segment, so what was empty then stays empty.
        if parts[0].live == 0:
            self._segments.forget(row.id)
            with storage_errors(f"cannot delete {path}"), contextlib.suppress(FileNotFoundError):
                if not is_kept:
                    path.unlink()
            self._rows.delete_segment(row.id)
            self._free_now = [each for each in self._free_now if each.segment != row.id]
            self._noted = [each for each in self._noted if each.segment != row.id]
            return
        for offset, length in () if is_kept or self.keeps_whole else _merged(parts):
            start = -(-offset // BLOCK_BYTES) * BLOCK_BYTES
            end = (offset + length) // BLOCK_BYTES * BLOCK_BYTES
            # Where no hole can be punched, the room comes back when the segment is compacted or deleted.
            if end > start and punch(path, start, end - start):
                self._rows.add_holes(row.id, end - start)
        for part in parts:
            self._rows.delete_reclaim(part.segment, part.offset)


def _merged(parts: list[Reclaimable]) -> list[tuple[int, int]]:
    """Ranges (offset, length) with those joined that touch."""
    merged: list[tuple[int, int]] = []
    for part in sorted(parts, key=lambda each: each.offset):
        if merged and merged[-1][0] + merged[-1][1] == part.offset:
            merged[-1] = (merged[-1][0], merged[-1][1] + part.length)
        else:
            merged.append((part.offset, part.length))
    return merged
