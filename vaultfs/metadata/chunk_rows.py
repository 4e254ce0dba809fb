"""Queries on extents, chunks, segments, ranges to reclaim, and the intent log.

Thin on purpose: one function, one statement, no rules.  What the rows mean is decided in ``vaultfs.vault``.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, NamedTuple, cast

from vaultfs.ids import ChunkId, InodeId, SegmentId
from vaultfs.metadata.database import MetadataDatabase

# A chunk without a row must not read as a hole: it lies in segment 0, which does not exist, and has 4 MiB.
_EXTENTS: Final = (
    "SELECT e.idx, e.chunk, coalesce(c.segment, 0), coalesce(c.offset, 0), coalesce(c.stored, 0), "
    "coalesce(c.length, 4194304) FROM extent e LEFT JOIN chunk c ON c.id=e.chunk "
    "WHERE e.inode=? AND e.idx BETWEEN ? AND ?"
)
_SEGMENT: Final = "id, token, name, epoch, salt, size, live, holes"


class ChunkPlace(NamedTuple):
    """Where the chunk of one extent lies; all lengths in bytes."""

    idx: int
    chunk: ChunkId
    segment: SegmentId
    offset: int
    stored: int
    length: int


class ChunkRow(NamedTuple):
    """A row of ``chunk``."""

    id: ChunkId
    segment: SegmentId
    offset: int
    stored: int
    length: int
    refs: int
    born: int
    died: int | None
    fingerprint: bytes | None


class SegmentRow(NamedTuple):
    """A row of ``segment``."""

    id: SegmentId
    token: str
    name: str | None
    epoch: int
    salt: bytes
    size: int
    live: int
    holes: int


class Reclaimable(NamedTuple):
    """A range of a segment that nothing needs any more."""

    segment: SegmentId
    offset: int
    length: int
    live: int
    """Bytes in use in the whole segment."""


class ChunkRows:
    """The tables ``extent``, ``chunk``, ``segment``, ``reclaim`` and ``intent``."""

    def __init__(self, database: MetadataDatabase) -> None:
        self._execute = database.execute
        self._many = database.executemany
        self._newest_segment = 0

    # --- extents

    def places(self, inode: InodeId, first: int, last: int) -> list[ChunkPlace]:
        """Chunks of a file's extents ``first`` to ``last``, both included; holes are left out."""
        return list(map(ChunkPlace._make, self._execute(_EXTENTS, (inode, first, last))))

    def extent(self, inode: InodeId, index: int) -> ChunkId | None:
        """The chunk of one extent."""
        row = self._execute("SELECT chunk FROM extent WHERE inode=? AND idx=?", (inode, index)).fetchone()
        return None if row is None else cast("ChunkId", row[0])

    def next_extent(self, inode: InodeId, first: int) -> int | None:
        """The index of a file's first extent from ``first`` on."""
        row = self._execute("SELECT min(idx) FROM extent WHERE inode=? AND idx>=?", (inode, first)).fetchall()[0]
        return cast("int | None", row[0])

    def put_extent(self, inode: InodeId, index: int, chunk: ChunkId) -> None:
        """Point an extent at a chunk."""
        self._execute("INSERT OR REPLACE INTO extent VALUES (?,?,?)", (inode, index, chunk))

    def put_extents(self, extents: Iterable[tuple[InodeId, int, ChunkId]]) -> None:
        """Point extents (inode, index) at chunks."""
        self._many("INSERT OR REPLACE INTO extent VALUES (?,?,?)", extents)

    def take_extents(self, inode: InodeId, first: int, limit: int) -> list[ChunkId]:
        """Delete at most ``limit`` extents from ``first`` on, and return their chunks."""
        return [
            cast("ChunkId", row[0])
            for row in self._execute(
                "DELETE FROM extent WHERE inode=?1 AND idx IN "
                "(SELECT idx FROM extent WHERE inode=?1 AND idx>=?2 ORDER BY idx LIMIT ?3) RETURNING chunk",
                (inode, first, limit),
            ).fetchall()
        ]

    def take_extent(self, inode: InodeId, index: int) -> ChunkId | None:
        """Delete one extent and return its chunk."""
        row = self._execute("DELETE FROM extent WHERE inode=? AND idx=? RETURNING chunk", (inode, index)).fetchall()
        return cast("ChunkId", row[0][0]) if row else None

    # --- chunks

    def chunk(self, chunk: ChunkId) -> ChunkRow | None:
        """The row of a chunk."""
        row = self._execute(
            "SELECT id, segment, offset, stored, length, refs, born, died, fingerprint FROM chunk WHERE id=?", (chunk,)
        ).fetchone()
        return None if row is None else ChunkRow._make(row)

    def insert_chunk(self, row: ChunkRow) -> None:
        """Add a chunk."""
        self._execute("INSERT INTO chunk VALUES (?,?,?,?,?,?,?,?,?)", row)

    def insert_chunks(self, rows: Iterable[ChunkRow]) -> None:
        """Add chunks."""
        self._many("INSERT INTO chunk VALUES (?,?,?,?,?,?,?,?,?)", rows)

    def delete_chunk(self, chunk: ChunkId) -> None:
        """Remove a chunk."""
        self._execute("DELETE FROM chunk WHERE id=?", (chunk,))

    def delete_last_reference(self, chunk: ChunkId, newest_snapshot: int) -> tuple[SegmentId, int, int] | None:
        """Remove a chunk with one reference at most that was born after the newest snapshot.

        Returns:
            Segment, offset and stored bytes; None if there is no such chunk.
        """
        row = self._execute(
            "DELETE FROM chunk WHERE id=? AND refs<=1 AND born>? RETURNING segment, offset, stored",
            (chunk, newest_snapshot),
        ).fetchall()
        return cast("tuple[SegmentId, int, int]", row[0]) if row else None

    def set_refs(self, chunk: ChunkId, refs: int, died: int | None) -> None:
        """Set the reference count, and since which snapshot number nothing living refers to the chunk."""
        self._execute("UPDATE chunk SET refs=?, died=? WHERE id=?", (refs, died, chunk))

    def move_chunk(self, chunk: ChunkId, segment: SegmentId, offset: int, stored: int) -> None:
        """Say that a chunk now lies elsewhere."""
        self._execute("UPDATE chunk SET segment=?, offset=?, stored=? WHERE id=?", (segment, offset, stored, chunk))

    def by_fingerprint(self, fingerprint: bytes, length: int) -> ChunkId | None:
        """A living chunk with this fingerprint and length."""
        row = self._execute(
            "SELECT id FROM chunk WHERE fingerprint=? AND length=? AND died IS NULL LIMIT 1", (fingerprint, length)
        ).fetchone()
        return None if row is None else cast("ChunkId", row[0])

    def lies_beside_holes(self, chunk: ChunkId) -> bool:
        """Whether a chunk's segment has holes."""
        found = self._execute(
            "SELECT 1 FROM chunk c JOIN segment s ON s.id=c.segment WHERE c.id=? AND s.holes>0", (chunk,)
        )
        return found.fetchone() is not None

    def chunks_of_segment(self, segment: SegmentId) -> list[ChunkRow]:
        """The chunks that lie in a segment, in order of offset."""
        return list(
            map(
                ChunkRow._make,
                self._execute(
                    "SELECT id, segment, offset, stored, length, refs, born, died, fingerprint FROM chunk "
                    "WHERE segment=? ORDER BY offset",
                    (segment,),
                ),
            )
        )

    def dead_chunks(self, died: int, chunk: ChunkId, limit: int) -> list[ChunkRow]:
        """Chunks that at most snapshots need, after (died, chunk) in that order."""
        return list(
            map(
                ChunkRow._make,
                self._execute(
                    "SELECT id, segment, offset, stored, length, refs, born, died, fingerprint FROM chunk "
                    "WHERE died IS NOT NULL AND (died, id) > (?, ?) ORDER BY died, id LIMIT ?",
                    (died, chunk, limit),
                ),
            )
        )

    def forget_fingerprint(self, chunk: ChunkId) -> None:
        """Take one chunk out of deduplication."""
        self._execute("UPDATE chunk SET fingerprint=NULL WHERE id=?", (chunk,))

    def forget_fingerprints(self) -> None:
        """Take all chunks out of deduplication (after the fingerprint key changed)."""
        self._execute("UPDATE chunk SET fingerprint=NULL WHERE fingerprint IS NOT NULL")

    # --- segments

    def segments(self) -> list[SegmentRow]:
        """All segments, oldest first."""
        return list(map(SegmentRow._make, self._execute(f"SELECT {_SEGMENT} FROM segment ORDER BY id")))  # noqa: S608

    def segment(self, segment: SegmentId) -> SegmentRow | None:
        """One segment."""
        row = self._execute(f"SELECT {_SEGMENT} FROM segment WHERE id=?", (segment,)).fetchone()  # noqa: S608
        return None if row is None else SegmentRow._make(row)

    def unsealed_tokens(self) -> list[str]:
        """The open segments that hold chunks."""
        return [row[0] for row in self._execute("SELECT token FROM segment WHERE name IS NULL AND live>0")]

    def segments_of_files(self) -> list[SegmentRow]:
        """The segments in which a chunk of a file lies; pieces of snapshots do not count."""
        return list(
            map(
                SegmentRow._make,
                self._execute(
                    f"SELECT {_SEGMENT} FROM segment s WHERE EXISTS (SELECT 1 FROM chunk c WHERE c.segment=s.id "  # noqa: S608
                    "AND c.died IS NULL AND c.id NOT IN (SELECT chunk FROM snapshot_piece)) ORDER BY id"
                ),
            )
        )

    def insert_segment(self, token: str, epoch: int, salt: bytes) -> SegmentId:
        """Add a segment that is being written, and return its number, which no segment had while this was open."""
        newest = self._execute("SELECT coalesce(max(id), 0) FROM segment").fetchall()[0][0]
        self._newest_segment = max(self._newest_segment, cast("int", newest)) + 1
        self._execute(
            "INSERT INTO segment (id, token, name, epoch, salt, size, live, holes) VALUES (?, ?, NULL, ?, ?, 0, 0, 0)",
            (self._newest_segment, token, epoch, salt),
        )
        return SegmentId(self._newest_segment)

    def seal_segment(self, segment: SegmentId, name: str, size: int) -> None:
        """Say that a segment is sealed."""
        self._execute("UPDATE segment SET name=?, size=? WHERE id=?", (name, size, segment))

    def add_live(self, segment: SegmentId, change: int) -> None:
        """Change the count of bytes in use."""
        self._execute("UPDATE segment SET live=live+? WHERE id=?", (change, segment))

    def add_holes(self, segment: SegmentId, length: int) -> None:
        """Count bytes that were punched out."""
        self._execute("UPDATE segment SET holes=holes+? WHERE id=?", (length, segment))

    def delete_segment(self, segment: SegmentId) -> None:
        """Remove a segment's row and what was to be reclaimed in it."""
        self._execute("DELETE FROM segment WHERE id=?", (segment,))
        self._execute("DELETE FROM reclaim WHERE segment=?", (segment,))

    def referenced_end(self, segment: SegmentId) -> int:
        """Where the last chunk of a segment ends, in bytes; 0 if it has none."""
        row = self._execute("SELECT max(offset+stored) FROM chunk WHERE segment=?", (segment,)).fetchone()
        return cast("int", row[0]) if row is not None and row[0] is not None else 0

    # --- reclaim

    def put_reclaim(self, segment: SegmentId, offset: int, length: int) -> None:
        """Remember a range that nothing needs once this transaction is durable."""
        self._execute("INSERT OR REPLACE INTO reclaim VALUES (?,?,?)", (segment, offset, length))

    def reclaimable(self, limit: int) -> list[Reclaimable]:
        """At most ``limit`` of the remembered ranges in sealed segments."""
        return list(
            map(
                Reclaimable._make,
                self._execute(
                    "SELECT r.segment, r.offset, r.length, s.live FROM reclaim r JOIN segment s ON s.id=r.segment "
                    "WHERE s.name IS NOT NULL LIMIT ?",
                    (limit,),
                ),
            )
        )

    def delete_reclaim(self, segment: SegmentId, offset: int) -> None:
        """Forget a range."""
        self._execute("DELETE FROM reclaim WHERE segment=? AND offset=?", (segment, offset))

    # --- intents

    def put_intents(self, intents: Iterable[tuple[InodeId, int, bytes]]) -> None:
        """Append (inode, offset, data) to the log; empty data says that the file was cut at offset."""
        self._many("INSERT INTO intent (inode, offset, data) VALUES (?,?,?)", intents)

    def intents(self) -> Iterable[tuple[InodeId, int, bytes]]:
        """The log in order."""
        return cast(
            "Iterable[tuple[InodeId, int, bytes]]",
            self._execute("SELECT inode, offset, data FROM intent ORDER BY id"),
        )

    def clear_intents(self) -> None:
        """Empty the log."""
        self._execute("DELETE FROM intent")
