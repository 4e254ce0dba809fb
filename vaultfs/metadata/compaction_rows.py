"""Queries for compaction: which segments to rewrite, and what in them.

Thin on purpose: one function, one statement, no rules.
"""

from __future__ import annotations

from typing import Final, NamedTuple, cast

from vaultfs.ids import ChunkId, InodeId, SegmentId
from vaultfs.metadata.chunk_rows import ChunkRow
from vaultfs.metadata.database import MetadataDatabase

_CHUNK: Final = "id, segment, offset, stored, length, refs, born, died, fingerprint"
_NEVER: Final = (1 << 63) - 1


class Policy(NamedTuple):
    """When a segment is worth rewriting; sizes in bytes, shares in percent of the segment's size."""

    least_gain: int
    live_percent: int
    waste_percent: int
    small: int
    most_small: int


class OldData(NamedTuple):
    """What is still encrypted with keys of older epochs."""

    segments: int
    live_bytes: int


class DeadChunk(NamedTuple):
    """A chunk that only snapshots need; ``stored`` in bytes."""

    died: int
    id: ChunkId
    segment: SegmentId
    stored: int


class SegmentSize(NamedTuple):
    """A sealed segment; ``size`` and ``live`` in bytes."""

    id: SegmentId
    size: int
    live: int


class CompactionRows:
    """The tables ``segment``, ``chunk`` and ``snapshot``, as compaction asks them."""

    def __init__(self, database: MetadataDatabase) -> None:
        self._execute = database.execute

    def worth_rewriting(self, epoch: int, policy: Policy, *, keeps_whole: bool = False) -> list[SegmentId]:
        """Sealed segments that the policy names, and those of older epochs; those with the least to copy first.

        Args:
            epoch: the current one.
            policy: what is worth it.
            keeps_whole: segments with holes, too.
        """
        return [
            cast("SegmentId", row[0])
            for row in self._execute(
                "SELECT id FROM segment WHERE name IS NOT NULL AND live>0 AND (epoch<:epoch OR (holes>0 AND :whole) "
                "OR (size-live>:gain AND live*100<size*:live) "
                "OR (size-holes-live>:gain AND (size-holes-live)*100>size*:waste) "
                "OR (size<:small AND (SELECT count(*) FROM segment WHERE name IS NOT NULL AND size<:small)>:most)) "
                "ORDER BY live",
                {
                    "epoch": epoch,
                    "whole": keeps_whole,
                    "gain": policy.least_gain,
                    "live": policy.live_percent,
                    "waste": policy.waste_percent,
                    "small": policy.small,
                    "most": policy.most_small,
                },
            )
        ]

    def holed_segments(self) -> list[SegmentId]:
        """Sealed segments that have holes, and something in them besides."""
        return [
            cast("SegmentId", row[0])
            for row in self._execute("SELECT id FROM segment WHERE name IS NOT NULL AND live>0 AND holes>0")
        ]

    def dead_after(self, place: tuple[int, int], limit: int) -> list[DeadChunk]:
        """Chunks that only snapshots need, at most ``limit``, after one of them, in order of death and number.

        Args:
            place: when the last one died, and its number.
            limit: at most so many.
        """
        died, number = place
        found = self._execute(
            "SELECT died, id, segment, stored FROM chunk INDEXED BY chunk_died WHERE died=? AND id>? "
            "ORDER BY id LIMIT ?",
            (died, number, limit),
        ).fetchall()
        if len(found) < limit:
            found += self._execute(
                "SELECT died, id, segment, stored FROM chunk INDEXED BY chunk_died WHERE died>? "
                "ORDER BY died, id LIMIT ?",
                (died, limit - len(found)),
            ).fetchall()
        return list(map(DeadChunk._make, found))

    def sizes_after(self, after: int, limit: int) -> list[SegmentSize]:
        """Size and live bytes of sealed segments with numbers above ``after``, at most ``limit``, in order."""
        rows = self._execute(
            "SELECT id, size, live FROM segment WHERE id>? AND name IS NOT NULL ORDER BY id LIMIT ?", (after, limit)
        )
        return list(map(SegmentSize._make, rows))

    def has_others(self, label: str) -> bool:
        """Whether there are snapshots with another label."""
        return self._execute("SELECT 1 FROM snapshot WHERE label<>? LIMIT 1", (label,)).fetchone() is not None

    def is_needed_by_others(self, segment: SegmentId, label: str) -> bool:
        """Whether a snapshot with another label needs a chunk of the segment."""
        found = self._execute(
            "SELECT 1 FROM chunk c WHERE c.segment=? AND EXISTS (SELECT 1 FROM snapshot n WHERE n.seq>=c.born "
            "AND n.seq<coalesce(c.died, ?) AND n.label<>?) LIMIT 1",
            (segment, _NEVER, label),
        )
        return found.fetchone() is not None

    def chunks_of_files(self, segment: SegmentId) -> list[ChunkId]:
        """The chunks of a segment that files need now; those of snapshots' images are not among them."""
        return [
            cast("ChunkId", row[0])
            for row in self._execute(
                "SELECT id FROM chunk WHERE segment=? AND died IS NULL "
                "AND id NOT IN (SELECT chunk FROM snapshot_piece)",
                (segment,),
            )
        ]

    def extents_after(self, after: tuple[int, int], limit: int) -> list[tuple[InodeId, int, ChunkId]]:
        """At most ``limit`` extents (inode, index, chunk) after (inode, index), in order."""
        return cast(
            "list[tuple[InodeId, int, ChunkId]]",
            self._execute(
                "SELECT inode, idx, chunk FROM extent WHERE (inode, idx) > (?, ?) ORDER BY inode, idx LIMIT ?",
                (*after, limit),
            ).fetchall(),
        )

    def extents_beside_holes(self, after: tuple[int, int], limit: int) -> list[tuple[InodeId, int, ChunkId]]:
        """Extents (inode, index, chunk) after (inode, index) whose chunks lie in sealed segments with holes.

        Looks at all extents; only for who has found such a segment.
        """
        return cast(
            "list[tuple[InodeId, int, ChunkId]]",
            self._execute(
                "SELECT e.inode, e.idx, e.chunk FROM extent e JOIN chunk c ON c.id=e.chunk "
                "JOIN segment s ON s.id=c.segment WHERE (e.inode, e.idx) > (?, ?) AND s.holes>0 AND s.name IS NOT NULL "
                "ORDER BY e.inode, e.idx LIMIT ?",
                (*after, limit),
            ).fetchall(),
        )

    def chunks_after(self, segment: SegmentId, after: int, limit: int) -> list[ChunkRow]:
        """At most ``limit`` chunks of a segment with numbers above ``after``, in order of their numbers."""
        return list(
            map(
                ChunkRow._make,
                self._execute(
                    f"SELECT {_CHUNK} FROM chunk WHERE segment=? AND id>? ORDER BY id LIMIT ?",  # noqa: S608
                    (segment, after, limit),
                ),
            )
        )

    def is_needed_by_snapshots(self, segment: SegmentId) -> bool:
        """Whether a snapshot's image names a chunk of the segment, or is made of one."""
        found = self._execute(
            "SELECT 1 FROM chunk c WHERE c.segment=? AND (EXISTS (SELECT 1 FROM snapshot s WHERE s.seq>=c.born "
            "AND (c.died IS NULL OR s.seq<c.died)) OR c.id IN (SELECT chunk FROM snapshot_piece)) LIMIT 1",
            (segment,),
        )
        return found.fetchone() is not None

    def put_fingerprint(self, chunk: ChunkId, fingerprint: bytes) -> None:
        """Let deduplication find a chunk."""
        self._execute("UPDATE chunk SET fingerprint=? WHERE id=?", (fingerprint, chunk))

    def epochs(self) -> set[int]:
        """The epochs of all segments."""
        return {cast("int", row[0]) for row in self._execute("SELECT DISTINCT epoch FROM segment")}

    def old_data(self, epoch: int) -> OldData:
        """What lies in segments of epochs before ``epoch``."""
        row = self._execute("SELECT count(*), coalesce(sum(live), 0) FROM segment WHERE epoch<?", (epoch,)).fetchone()
        return OldData(*cast("tuple[int, int]", row))
