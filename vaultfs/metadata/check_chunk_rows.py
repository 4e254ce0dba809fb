"""Queries for checking and repairing extents, chunks, segments and ranges to reclaim.

Thin on purpose: one function, one statement, no rules.  Each looks at a whole table, so none is for everyday use.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final, NamedTuple, cast

from vaultfs.ids import ChunkId, InodeId, SegmentId
from vaultfs.metadata.check_rows import Count
from vaultfs.metadata.chunk_rows import ChunkRow
from vaultfs.metadata.database import MetadataDatabase

LOST_SEGMENT: Final = SegmentId(0)
"""In ``chunk.segment``: fsck found the chunk's bytes to be lost.  No segment has this number, so that reading fails."""

_CHUNK: Final = "id, segment, offset, stored, length, refs, born, died, fingerprint"
_JOINED: Final = ", ".join(f"c.{column.strip()}" for column in _CHUNK.split(","))
_NAMED: Final = "SELECT chunk FROM extent UNION ALL SELECT chunk FROM snapshot_piece"
_USES: Final = f"SELECT chunk, count(*) AS n FROM ({_NAMED}) GROUP BY chunk"  # noqa: S608
_SNAPSHOT_NEEDS: Final = "EXISTS (SELECT 1 FROM snapshot s WHERE c.born <= s.seq AND s.seq < c.died)"
_LARGEST_CHUNK_BYTES: Final = 4 << 20


class Overlap(NamedTuple):
    """Two chunks that share bytes of a segment."""

    segment: SegmentId
    first: ChunkId
    second: ChunkId


class UnneededRange(NamedTuple):
    """A row of ``reclaim``; offset and length in bytes."""

    segment: SegmentId
    offset: int
    length: int


class CheckChunkRows:
    """What fsck asks of the tables of data."""

    def __init__(self, database: MetadataDatabase) -> None:
        self._database = database
        self._execute = database.execute
        self._many = database.executemany
        self._rows = database.rows

    # --- extents

    def extents_without_chunk(self) -> list[tuple[InodeId, int, ChunkId]]:
        """(inode, index, chunk) where there is no such chunk."""
        return cast(
            "list[tuple[InodeId, int, ChunkId]]",
            self._rows(
                "SELECT e.inode, e.idx, e.chunk FROM extent e LEFT JOIN chunk c ON c.id=e.chunk WHERE c.id IS NULL "
                "ORDER BY e.inode, e.idx"
            ),
        )

    def extents_past_the_end(self, chunk_size: int) -> list[tuple[InodeId, int, int]]:
        """(inode, its size, end of its data in bytes) of regular files with chunks wholly past their end."""
        return cast(
            "list[tuple[InodeId, int, int]]",
            self._rows(
                "SELECT e.inode, i.size, max(e.idx * ?1 + coalesce(c.length, ?1)) FROM extent e "
                "JOIN inode i ON i.id=e.inode LEFT JOIN chunk c ON c.id=e.chunk "
                "WHERE e.idx * ?1 >= i.size AND i.mode & 61440 = 32768 GROUP BY e.inode",
                (chunk_size,),
            ),
        )

    def chunks_over_the_end(self, chunk_size: int) -> list[tuple[InodeId, int, int]]:
        """(inode, its size, end of the chunk in bytes) where the last chunk is longer than a file that has a name."""
        return cast(
            "list[tuple[InodeId, int, int]]",
            self._rows(
                "SELECT e.inode, i.size, e.idx * ?1 + c.length FROM extent e JOIN inode i ON i.id=e.inode "
                "JOIN chunk c ON c.id=e.chunk WHERE e.idx = i.size / ?1 AND e.idx * ?1 < i.size "
                "AND e.idx * ?1 + c.length > i.size AND c.segment <> ?2 AND e.inode NOT IN (SELECT inode FROM orphan)",
                (chunk_size, LOST_SEGMENT),
            ),
        )

    def end_of_data(self, inode: InodeId, chunk_size: int) -> int:
        """Where the last chunk of a file ends, in bytes."""
        return cast(
            "int",
            self._database.scalar(
                "SELECT coalesce(max(e.idx * ?2 + coalesce(c.length, ?2)), 0) FROM extent e "
                "LEFT JOIN chunk c ON c.id=e.chunk WHERE e.inode=?1",
                (inode, chunk_size),
            ),
        )

    def move_extents(self, inode: InodeId, new: InodeId) -> None:
        """Give all data of one inode to another that has none."""
        self._execute("UPDATE extent SET inode=? WHERE inode=?", (new, inode))

    def copy_extents(self, inode: InodeId, new: InodeId) -> int:
        """Let another inode share the data that is not lost; return the number of extents."""
        self._execute(
            "INSERT INTO extent SELECT ?2, e.idx, e.chunk FROM extent e JOIN chunk c ON c.id=e.chunk "
            "WHERE e.inode=?1 AND c.segment <> ?3",
            (inode, new, LOST_SEGMENT),
        )
        return cast("int", self._database.scalar("SELECT count(*) FROM extent WHERE inode=?", (new,)))

    def drop_lost_extents(self, inode: InodeId) -> None:
        """Make holes of what is lost of a file."""
        self._execute(
            "DELETE FROM extent WHERE inode=? AND chunk IN (SELECT id FROM chunk WHERE segment=?)",
            (inode, LOST_SEGMENT),
        )

    def delete_extents_from(self, inode: InodeId, first: int) -> None:
        """Remove the extents from an index on."""
        self._execute("DELETE FROM extent WHERE inode=? AND idx>=?", (inode, first))

    def negative_extents(self) -> list[tuple[InodeId, int]]:
        """(inode, extents) where an index is below 0, or no number."""
        return cast(
            "list[tuple[InodeId, int]]",
            self._rows("SELECT inode, count(*) FROM extent WHERE idx<0 OR typeof(idx)<>'integer' GROUP BY inode"),
        )

    def delete_negative_extents(self) -> None:
        """Remove them."""
        self._execute("DELETE FROM extent WHERE idx<0 OR typeof(idx)<>'integer'")

    # --- chunks

    def reference_counts(self) -> list[Count]:
        """Chunks whose count of references is wrong."""
        return self._counts(
            f"SELECT c.id, c.refs, coalesce(n, 0) FROM chunk c LEFT JOIN ({_USES}) u ON u.chunk=c.id "  # noqa: S608
            "WHERE c.refs <> coalesce(n, 0)"
        )

    def count_references(self) -> None:
        """Set all counts of references right, and revive what is referred to."""
        self._execute(
            "UPDATE chunk SET refs=u.n FROM (SELECT c.id, coalesce(n, 0) AS n FROM chunk c "  # noqa: S608
            f"LEFT JOIN ({_USES}) x ON x.chunk=c.id) u WHERE u.id=chunk.id AND chunk.refs <> u.n"
        )
        self._execute("UPDATE chunk SET died=NULL WHERE refs>0 AND died IS NOT NULL")

    def wrongly_dead(self) -> int:
        """Chunks that are said to have ended although something refers to them."""
        return cast("int", self._database.scalar("SELECT count(*) FROM chunk WHERE refs>0 AND died IS NOT NULL"))

    def unneeded(self) -> list[ChunkRow]:
        """Chunks that no file and no snapshot needs."""
        return self._chunks(
            f"SELECT {_JOINED} FROM chunk c WHERE c.refs=0 AND NOT {_SNAPSHOT_NEEDS} "  # noqa: S608
            f"AND c.id NOT IN ({_NAMED})"
        )

    def unended(self) -> list[ChunkId]:
        """Chunks without references that a snapshot may need, but that are not said to have ended."""
        return [
            cast("ChunkId", row[0])
            for row in self._rows(
                "SELECT c.id FROM chunk c WHERE c.refs=0 AND c.died IS NULL "
                "AND EXISTS (SELECT 1 FROM snapshot s WHERE c.born <= s.seq)"
            )
        ]

    def bad_places(self) -> list[ChunkRow]:
        """Chunks whose numbers cannot be, or that lie outside of their segment."""
        return self._chunks(
            f"SELECT {_JOINED} FROM chunk c JOIN segment s ON s.id=c.segment WHERE c.offset<64 OR c.stored<=28 "  # noqa: S608
            f"OR c.length<1 OR c.stored>c.length+28 OR c.length>{_LARGEST_CHUNK_BYTES} "
            "OR (s.size>0 AND c.offset+c.stored>s.size) OR typeof(c.offset)<>'integer' OR typeof(c.stored)<>'integer' "
            "OR typeof(c.length)<>'integer'"
        )

    def without_segment(self) -> list[ChunkRow]:
        """Chunks in segments that have no row, but for those known to be lost."""
        return self._chunks(
            f"SELECT {_JOINED} FROM chunk c LEFT JOIN segment s ON s.id=c.segment WHERE s.id IS NULL AND c.segment<>?",  # noqa: S608
            (LOST_SEGMENT,),
        )

    def overlaps(self) -> list[Overlap]:
        """Neighbours in a segment that share bytes."""
        return list(
            map(
                Overlap._make,
                self._rows(
                    "SELECT segment, id, next_id FROM (SELECT segment, id, offset + stored AS end, "
                    "lead(offset) OVER w AS next, lead(id) OVER w AS next_id FROM chunk WHERE segment<>? "
                    "WINDOW w AS (PARTITION BY segment ORDER BY offset, id)) WHERE end > next",
                    (LOST_SEGMENT,),
                ),
            )
        )

    def lost(self) -> list[ChunkRow]:
        """Chunks whose bytes an earlier fsck found to be lost."""
        return self._chunks(f"SELECT {_JOINED} FROM chunk c WHERE c.segment=?", (LOST_SEGMENT,))  # noqa: S608

    def lose(self, chunks: Iterable[int]) -> None:
        """Say of chunks that their bytes are lost: reading them fails, and nothing shares them any more."""
        self._many(
            f"UPDATE chunk SET segment={LOST_SEGMENT}, offset=0, fingerprint=NULL WHERE id=?",  # noqa: S608
            ((chunk,) for chunk in chunks),
        )

    def insert_lost(self, chunk: ChunkId, length: int, born: int) -> None:
        """Add a row for a chunk that has none and whose bytes are lost; ``length`` in bytes."""
        self._execute(
            "INSERT INTO chunk VALUES (?,?,0,?,?,0,?,NULL,NULL)", (chunk, LOST_SEGMENT, length + 28, length, born)
        )

    def place(self, chunk: int, segment: SegmentId, offset: int, stored: int, length: int) -> None:
        """Say where a chunk was found; offset and lengths in bytes."""
        self._execute(
            "UPDATE chunk SET segment=?, offset=?, stored=?, length=? WHERE id=?",
            (segment, offset, stored, length, chunk),
        )

    def largest_chunk(self) -> int:
        """The largest chunk number that anything uses."""
        return cast(
            "int",
            self._database.scalar(
                "SELECT max(coalesce((SELECT max(id) FROM chunk), 0), coalesce((SELECT max(chunk) FROM extent), 0), "
                "coalesce((SELECT max(chunk) FROM snapshot_piece), 0))"
            ),
        )

    def births_in_the_future(self, snapshot_seq: int) -> int:
        """Chunks born after the present."""
        return cast(
            "int", self._database.scalar("SELECT count(*) FROM chunk WHERE born>? OR born<1", (snapshot_seq + 1,))
        )

    def clamp_births(self, snapshot_seq: int) -> None:
        """Let them be born now."""
        self._execute("UPDATE chunk SET born=max(1, min(born, ?1))  WHERE born>?1 OR born<1", (snapshot_seq + 1,))

    # --- segments

    def live_bytes(self) -> list[Count]:
        """Segments whose count of bytes in use is wrong."""
        return self._counts(
            "SELECT s.id, s.live, coalesce(n, 0) FROM segment s "
            "LEFT JOIN (SELECT segment, sum(stored) AS n FROM chunk GROUP BY segment) u ON u.segment=s.id "
            "WHERE s.live <> coalesce(n, 0)"
        )

    def count_live_bytes(self) -> None:
        """Set all counts of bytes in use right."""
        self._execute(
            "UPDATE segment SET live=coalesce((SELECT sum(stored) FROM chunk WHERE chunk.segment=segment.id), 0) "
            "WHERE live<>coalesce((SELECT sum(stored) FROM chunk WHERE chunk.segment=segment.id), 0)"
        )

    def total_live_bytes(self) -> int:
        """Bytes in all chunks that are not lost."""
        return cast(
            "int", self._database.scalar("SELECT coalesce(sum(stored), 0) FROM chunk WHERE segment<>?", (LOST_SEGMENT,))
        )

    def next_segment(self, after: int) -> SegmentId | None:
        """The segment with the next higher number."""
        return cast("SegmentId | None", self._database.scalar("SELECT min(id) FROM segment WHERE id>?", (after,)))

    def add_segment(self, token: str, name: str, epoch: int, salt: bytes, size: int) -> SegmentId:
        """Add a sealed segment, and return its number; ``size`` in bytes."""
        return cast(
            "SegmentId",
            self._execute(
                "INSERT INTO segment (token, name, epoch, salt, size, live, holes) VALUES (?,?,?,?,?,0,0) RETURNING id",
                (token, name, epoch, salt, size),
            ).fetchall()[0][0],
        )

    def accept_segment(self, segment: SegmentId, size: int) -> None:
        """Say that a segment has this size in bytes, and that its hash does not match its name any more."""
        self._execute("UPDATE segment SET size=?, holes=max(holes, 1) WHERE id=?", (size, segment))

    # --- reclaim, intents, snapshots

    def reclaims(self) -> list[UnneededRange]:
        """All ranges to be punched, in order."""
        return list(
            map(UnneededRange._make, self._rows("SELECT segment, offset, length FROM reclaim ORDER BY segment, offset"))
        )

    def intent_count(self) -> int:
        """Records of the intent log."""
        return cast("int", self._database.scalar("SELECT count(*) FROM intent"))

    def largest_snapshot(self) -> int:
        """The largest number of a snapshot that anything uses."""
        return cast(
            "int",
            self._database.scalar(
                "SELECT max(coalesce((SELECT max(seq) FROM snapshot), 0), "
                "coalesce((SELECT max(seq) FROM snapshot_piece), 0))"
            ),
        )

    def pieces_without_chunk(self) -> list[tuple[int, ChunkId]]:
        """(snapshot, chunk) where there is no such chunk."""
        return cast(
            "list[tuple[int, ChunkId]]",
            self._rows(
                "SELECT p.seq, p.chunk FROM snapshot_piece p LEFT JOIN chunk c ON c.id=p.chunk WHERE c.id IS NULL"
            ),
        )

    def snapshots_of_chunk(self, chunk: int) -> list[int]:
        """The snapshots that need a chunk as a piece or as data."""
        return [
            cast("int", row[0])
            for row in self._rows(
                "SELECT seq FROM snapshot_piece WHERE chunk=?1 UNION "
                "SELECT s.seq FROM snapshot s JOIN chunk c ON c.id=?1 "
                "WHERE c.born <= s.seq AND (c.died IS NULL OR s.seq < c.died)",
                (chunk,),
            )
        ]

    def _chunks(self, sql: str, bindings: tuple[Any, ...] = ()) -> list[ChunkRow]:
        return list(map(ChunkRow._make, self._rows(sql, bindings)))

    def _counts(self, sql: str) -> list[Count]:
        return list(map(Count._make, self._rows(sql)))
