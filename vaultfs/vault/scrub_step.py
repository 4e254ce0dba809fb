"""Scrubbing an open vault, a few chunks at a time, so that whoever uses it goes on meanwhile.

The core plans a step (`plan`), a thread carries it out (`ScrubStep.read`) under a lease of the segments, and the core
judges what it found (`judge`).  Where to go on is a pair of numbers that the caller keeps, so nothing has to be kept
here, and a scrub that is given up costs nothing.
"""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING, Final, NamedTuple

from vaultfs.errors import IntegrityError, VaultError
from vaultfs.ids import ChunkId, SegmentId, SegmentName
from vaultfs.metadata.check_chunk_rows import CheckChunkRows
from vaultfs.metadata.check_rows import CheckRows
from vaultfs.metadata.chunk_rows import ChunkPlace, ChunkRow
from vaultfs.metadata.compaction_rows import CompactionRows
from vaultfs.vault.reading import ChunkDamageError, open_sealed
from vaultfs.vault.scrub import BadChunk, DamagedRange, bad_places, describe_other, open_leniently, place_of
from vaultfs.vault.segments import SealedSegment

if TYPE_CHECKING:
    from vaultfs.vault.filesystem import FileSystem
    from vaultfs.vault.segments import ReadableSegment

log = logging.getLogger(__name__)

STEP_CHUNKS: Final = 256
STEP_BYTES: Final = 4 << 20
LAST_CHUNK: Final = (1 << 63) - 1
LOGGED_PER_STEP: Final = 16
"""Damaged ranges that are logged with all names; finding the names reads the whole table of names."""


class Position(NamedTuple):
    """What was scrubbed last: a segment's number, and a chunk's in it.  Zeros: nothing yet."""

    segment: int
    chunk: int


class ScrubStep:
    """A few chunks of one segment.

    Args:
        segment: open; None if it cannot be opened.
        chunks: in it.
        reason: why it cannot be opened.
        elsewhere: the segment, if it is not on this disk; then nothing is read.
    """

    def __init__(
        self,
        segment: ReadableSegment | None,
        chunks: list[ChunkRow],
        reason: str = "",
        elsewhere: SealedSegment | None = None,
    ) -> None:
        self._segment = segment
        self.elsewhere = elsewhere
        self.chunks = chunks
        self.bad = [BadChunk(row.id, row.segment, reason) for row in chunks] if segment is None else []

    def read(self) -> None:
        """Open the chunks, and mend what somebody else has whole.  Any thread, under a lease of the segments."""
        if self._segment is None:
            return
        places = sorted(map(place_of, self.chunks), key=lambda place: place.offset)
        by_chunk = {place.chunk: place for place in places}
        self.bad = [
            each
            for each in bad_places(places, self._segment)
            if not _is_mended(each, by_chunk[each.chunk], self._segment)
        ]

    @property
    def position(self) -> Position:
        """Where the next step goes on."""
        if self.elsewhere is not None:
            return Position(self.elsewhere.number, LAST_CHUNK)
        return Position(self.chunks[-1].segment, self.chunks[-1].id)

    @property
    def stored_bytes(self) -> int:
        """What is read."""
        return sum(row.stored for row in self.chunks)


def _is_mended(bad: BadChunk, place: ChunkPlace, segment: ReadableSegment) -> bool:
    """Whether a chunk that does not open was fetched from elsewhere, has opened, and is in its place again."""
    if segment.spare is None:
        return False
    try:
        sealed = segment.spare.fetch(place.offset, place.stored)
        open_sealed(place, segment, sealed)
        is_mended = segment.spare.mend(place.offset, sealed)
    except VaultError as error:
        log.warning("segment %s, chunk %d: %s; and elsewhere: %s", segment.label, place.chunk, bad.reason, error)
        return False
    if is_mended:
        log.warning("segment %s, chunk %d: was damaged, and is mended", segment.label, place.chunk)
    return is_mended


def plan(fs: FileSystem, after: Position) -> ScrubStep | None:
    """The next step; None at the end.  A lease must be taken before anything else happens.

    Chunks that are written while the vault is scrubbed are in segments with higher numbers, so they are scrubbed too.
    """
    rows, checks = CompactionRows(fs.database), CheckChunkRows(fs.database)
    number, chunk = fs.chunk_rows.segment(after.segment), after.chunk  # type: ignore[arg-type]
    segment = None if number is None else number.id
    while True:
        if segment is not None:
            chunks: list[ChunkRow] = []
            size = 0
            for row in rows.chunks_after(segment, chunk, STEP_CHUNKS):
                size += row.stored
                if chunks and size > STEP_BYTES:
                    break
                chunks.append(row)
            if chunks:
                return _step(fs, segment, chunks)
        segment, chunk = checks.next_segment(after.segment if segment is None else segment), 0
        if segment is None:
            return None


def _step(fs: FileSystem, number: SegmentId, chunks: list[ChunkRow]) -> ScrubStep:
    try:
        segment = fs.segments.get(number)
        if segment.is_here:
            return ScrubStep(segment, chunks)
        row = fs.chunk_rows.segment(number)
        assert row is not None, "it was just found by its row"
        assert row.name is not None, "only what has its name lies on remotes"
        if not os.path.lexists(fs.layout.sealed_path(SegmentName(row.name))):
            return ScrubStep(None, [], elsewhere=SealedSegment(number, SegmentName(row.name), row.size))
        return ScrubStep(open_leniently(row, fs.layout, fs.keyring), chunks)  # damaged, though it is read elsewhere
    except IntegrityError as error:
        return ScrubStep(None, chunks, str(error))


def judge(fs: FileSystem, step: ScrubStep) -> tuple[list[DamagedRange], list[str]]:
    """What the damage means: parts of files, and sentences on what only snapshots need.  It is logged, too.

    A chunk that has ended or moved since the step was planned is not damaged but gone.
    """
    places = {row.id: (row.segment, row.offset) for row in step.chunks}
    bad: dict[ChunkId, BadChunk] = {}
    for each in step.bad:
        row = fs.chunk_rows.chunk(each.chunk)
        if row is not None and (row.segment, row.offset) == places[each.chunk]:
            bad[each.chunk] = each
    return ranges_in(fs, list(bad.values()))


def ranges_in(fs: FileSystem, bad: list[BadChunk]) -> tuple[list[DamagedRange], list[str]]:
    """As `judge`, for chunks that are known to be damaged."""
    if not bad:
        return [], []
    reasons = {each.chunk: each for each in bad}
    ranges: list[DamagedRange] = []
    used: set[int] = set()
    for use in CheckRows(fs.database).users_of_chunks(reasons):
        each = reasons[ChunkId(use.chunk)]
        offset = use.idx * fs.chunk_size
        paths: tuple[str, ...] = ()
        if len(ranges) < LOGGED_PER_STEP:
            paths = tuple(map(os.fsdecode, fs.paths_of(use.inode)))
            fs.report_damage(ChunkDamageError(use.inode, offset, each.chunk, each.reason))
        length = min(use.length or fs.chunk_size, fs.chunk_size)
        ranges.append(
            DamagedRange(paths or (f"inode {use.inode}",), use.inode, offset, length, each.chunk, each.reason)
        )
        used.add(use.chunk)
    checks = CheckChunkRows(fs.database)
    return ranges, [describe_other(each, checks) for chunk, each in reasons.items() if chunk not in used]
