"""Queries on snapshots and the pieces of their database images.

Thin on purpose: one function, one statement, no rules.
"""

from __future__ import annotations

from collections.abc import Iterable
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


class SnapshotRows:
    """The tables ``snapshot`` and ``snapshot_piece``."""

    def __init__(self, database: MetadataDatabase) -> None:
        self._execute = database.execute
        self._many = database.executemany

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
        """Remove a snapshot and its pieces."""
        self._execute("DELETE FROM snapshot WHERE seq=?", (seq,))
        self._execute("DELETE FROM snapshot_piece WHERE seq=?", (seq,))

    def pieces(self, seq: SnapshotSeq) -> list[ChunkId]:
        """The chunks that hold a snapshot's database image, in order."""
        return [
            cast("ChunkId", row[0])
            for row in self._execute("SELECT chunk FROM snapshot_piece WHERE seq=? ORDER BY idx", (seq,))
        ]

    def put_pieces(self, seq: SnapshotSeq, chunks: Iterable[ChunkId]) -> None:
        """Store the chunks of a snapshot's image."""
        self._many("INSERT INTO snapshot_piece VALUES (?,?,?)", ((seq, idx, chunk) for idx, chunk in enumerate(chunks)))
