"""Queries for rebuilding lost metadata: chunks as segments describe them, beside the tables that are made again.

Thin on purpose: one function, one statement, no rules.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple, cast

from vaultfs.ids import ChunkId, InodeId
from vaultfs.metadata.database import MetadataDatabase


class Described(NamedTuple):
    """A chunk of a file as an index describes it; ``segment`` is a number of the caller's, lengths are in bytes."""

    chunk: ChunkId
    segment: int
    offset: int
    stored: int
    length: int
    inode: InodeId
    idx: int


class RebuildRows:
    """A temporary table of chunks.  Gone with the connection."""

    def __init__(self, database: MetadataDatabase) -> None:
        self._database = database
        self._many = database.executemany
        database.execute(
            "CREATE TEMP TABLE described (chunk INTEGER, segment INTEGER, offset INTEGER, stored INTEGER, "
            "length INTEGER, inode INTEGER, idx INTEGER)"
        )

    def add(self, rows: Iterable[Described]) -> None:
        """Remember chunks."""
        self._many("INSERT INTO temp.described VALUES (?,?,?,?,?,?,?)", rows)

    def index(self) -> None:
        """Make the queries below fast; once all is added."""
        self._database.execute("CREATE INDEX temp.described_place ON described (inode, idx, chunk)")

    def longest(self) -> int:
        """The longest chunk in bytes; 0 if there is none."""
        return cast("int", self._database.scalar("SELECT coalesce(max(length), 0) FROM temp.described"))

    def any_compressed(self) -> bool:
        """Whether a chunk is stored in fewer bytes than it has."""
        return self._database.scalar("SELECT 1 FROM temp.described WHERE stored < length + 28 LIMIT 1") is not None

    def largest_chunk(self) -> int:
        """The largest number of a chunk."""
        return cast("int", self._database.scalar("SELECT coalesce(max(chunk), 0) FROM temp.described"))

    def largest_inode(self) -> int:
        """The largest number of an inode that a chunk was written for."""
        return cast("int", self._database.scalar("SELECT coalesce(max(inode), 0) FROM temp.described"))

    def newest(self, first_chunk: int) -> Iterator[Described]:
        """For each index of each file the chunk written last, if its number is at least ``first_chunk``.

        One that was written again elsewhere, with the same number, comes once for each place.
        """
        return map(
            Described._make,
            self._database.rows(
                "SELECT d.chunk, d.segment, d.offset, d.stored, d.length, d.inode, d.idx FROM "
                "(SELECT inode, idx, max(chunk) AS chunk FROM temp.described WHERE inode>0 "
                "GROUP BY inode, idx HAVING max(chunk)>=?) n "
                "CROSS JOIN temp.described d ON d.inode=n.inode AND d.idx=n.idx AND d.chunk=n.chunk "
                "ORDER BY d.inode, d.idx, d.segment",
                (first_chunk,),
            ),
        )

    def incomplete_inodes(self) -> set[InodeId]:
        """Inodes that say they have more extents than there are."""
        return {
            cast("InodeId", row[0])
            for row in self._database.rows(
                "SELECT i.id FROM inode i LEFT JOIN (SELECT inode, count(*) AS n FROM extent GROUP BY inode) u "
                "ON u.inode=i.id WHERE i.chunks > coalesce(n, 0)"
            )
        }
