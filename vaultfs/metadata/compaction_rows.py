"""Queries for compaction: which segments to rewrite, and what in them.

Thin on purpose: one function, one statement, no rules.
"""

from __future__ import annotations

from typing import Final, NamedTuple, cast

from vaultfs.ids import ChunkId, InodeId, SegmentId
from vaultfs.metadata.chunk_rows import ChunkRow
from vaultfs.metadata.database import MetadataDatabase

_CHUNK: Final = "id, segment, offset, stored, length, refs, born, died, fingerprint"


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

    def worn_segments(self, label: str, percent: int, least_gain: int) -> list[SegmentId]:
        """Sealed segments of which files need less than a share, and all snapshots that need them have a label.

        Costs a look at each chunk that only snapshots need.

        Args:
            label: of snapshots that will be gone soon.
            percent: the share of the segment's size.
            least_gain: bytes that files do not need, at least.
        """
        return [
            cast("SegmentId", row[0])
            for row in self._execute(
                "SELECT s.id FROM segment s LEFT JOIN (SELECT segment, sum(stored) AS bytes FROM chunk "
                "WHERE died IS NOT NULL GROUP BY segment) gone ON gone.segment=s.id "
                "WHERE s.name IS NOT NULL AND s.live>coalesce(gone.bytes,0) "
                "AND (s.live-coalesce(gone.bytes,0))*100<s.size*:percent "
                "AND s.size-s.live+coalesce(gone.bytes,0)>:gain "
                "AND NOT EXISTS (SELECT 1 FROM snapshot n JOIN chunk c ON n.seq>=c.born "
                "AND (c.died IS NULL OR n.seq<c.died) WHERE n.label<>:label AND c.segment=s.id)",
                {"label": label, "percent": percent, "gain": least_gain},
            )
        ]

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
