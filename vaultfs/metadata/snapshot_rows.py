"""Queries on snapshots and the pieces of their database images.

Thin on purpose: one function, one statement, no rules.
"""

from __future__ import annotations

from typing import NamedTuple, cast

from vaultfs.ids import ChunkId, SnapshotSeq
from vaultfs.metadata.database import MetadataDatabase


class SnapshotRow(NamedTuple):
    """A row of ``snapshot``; ``bytes`` is the sum of the sizes of its files."""

    seq: SnapshotSeq
    id: str
    created_ns: int
    label: str
    files: int
    bytes: int


class PiecePlace(NamedTuple):
    """Where a piece of an image lies; ``name`` is None while its segment is open."""

    idx: int
    chunk: ChunkId
    offset: int
    stored: int
    length: int
    name: str | None
    epoch: int
    salt: bytes
    size: int


class SnapshotRows:
    """The tables ``snapshot`` and ``snapshot_piece``."""

    def __init__(self, database: MetadataDatabase) -> None:
        self._execute = database.execute

    def all(self) -> list[SnapshotRow]:
        """All snapshots, oldest first."""
        return list(
            map(
                SnapshotRow._make,
                self._execute("SELECT seq, id, created_ns, label, files, bytes FROM snapshot ORDER BY seq"),
            )
        )

    def insert(self, row: SnapshotRow) -> None:
        """Add a snapshot."""
        self._execute("INSERT INTO snapshot VALUES (?,?,?,?,?,?)", row)

    def delete(self, seq: SnapshotSeq) -> None:
        """Remove a snapshot; its pieces stay."""
        self._execute("DELETE FROM snapshot WHERE seq=?", (seq,))

    # --- pieces

    def pieces(self, seq: SnapshotSeq) -> list[ChunkId]:
        """The chunks that hold a snapshot's database image, in order."""
        return [
            cast("ChunkId", row[0])
            for row in self._execute("SELECT chunk FROM snapshot_piece WHERE seq=? ORDER BY idx", (seq,))
        ]

    def places(self, seq: SnapshotSeq) -> list[PiecePlace]:
        """Where the pieces of a snapshot's image lie, in order."""
        return list(
            map(
                PiecePlace._make,
                self._execute(
                    "SELECT p.idx, c.id, c.offset, c.stored, c.length, s.name, s.epoch, s.salt, s.size "
                    "FROM snapshot_piece p JOIN chunk c ON c.id=p.chunk JOIN segment s ON s.id=c.segment "
                    "WHERE p.seq=? ORDER BY p.idx",
                    (seq,),
                ),
            )
        )

    def put_piece(self, seq: SnapshotSeq, idx: int, chunk: ChunkId) -> None:
        """Store one chunk of a snapshot's image."""
        self._execute("INSERT INTO snapshot_piece VALUES (?,?,?)", (seq, idx, chunk))

    def take_stray_pieces(self, limit: int) -> list[ChunkId]:
        """Delete at most ``limit`` pieces of snapshots that do not exist, and return their chunks."""
        return [
            cast("ChunkId", row[0])
            for row in self._execute(
                "DELETE FROM snapshot_piece WHERE (seq, idx) IN (SELECT seq, idx FROM snapshot_piece "
                "WHERE seq NOT IN (SELECT seq FROM snapshot) LIMIT ?) RETURNING chunk",
                (limit,),
            ).fetchall()
        ]

    # --- work that a crash may interrupt

    def making(self) -> SnapshotSeq | None:
        """The number of the snapshot being made."""
        row = self._execute("SELECT value FROM setting WHERE name='snapshot_making' AND value>0").fetchone()
        return None if row is None else cast("SnapshotSeq", row[0])

    def set_making(self, seq: SnapshotSeq | None) -> None:
        """Say which snapshot is being made."""
        self._execute("INSERT OR REPLACE INTO setting VALUES ('snapshot_making', ?)", (seq or 0,))

    def is_cleaning(self) -> bool:
        """Whether something of ended snapshots may be left."""
        return self._execute("SELECT 1 FROM setting WHERE name='snapshot_cleaning' AND value=1").fetchone() is not None

    def set_cleaning(self, is_cleaning: bool) -> None:
        """Say whether something of ended snapshots may be left."""
        self._execute("INSERT OR REPLACE INTO setting VALUES ('snapshot_cleaning', ?)", (int(is_cleaning),))
