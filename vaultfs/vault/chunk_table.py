"""The life of chunks: born when sealed, shared by deduplication, kept for snapshots, and reclaimed.

A chunk is needed while an extent refers to it, or a snapshot s exists with born <= s < died.  What is not needed any
more is remembered as a range to reclaim; the hole is punched only after the transaction that said so is durable.
The chunks of a snapshot's database image are no file's: they are needed while a row in ``snapshot_piece`` names them.

The image says where each chunk lay at the snapshot's moment, and stays as it is.  So a durable chunk that a snapshot
needs never moves (`is_kept`): whoever wants its data elsewhere (compaction, a rotated key) seals it as a new chunk,
points the extents at that one and releases the old one, which then dies as if it had been overwritten.  `moved` is for
chunks whose commit has not happened yet; no image names them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from vaultfs.errors import IntegrityError
from vaultfs.ids import ChunkId, SegmentId, SnapshotSeq
from vaultfs.metadata.chunk_rows import ChunkRow, ChunkRows
from vaultfs.metadata.snapshot_rows import SnapshotRows
from vaultfs.vault.sealing_jobs import ChunkMoved, SealJob, SegmentBeingWritten, SegmentSealed


class ChunkTable:
    """All chunks of a vault.

    Args:
        rows: the tables.
        snapshots: the table of snapshots.
        epoch: of the current master key, recorded with new segments.
        next_chunk: the first number that was never used.
        snapshot_seq: the newest snapshot's number ever.
    """

    def __init__(
        self, rows: ChunkRows, snapshots: SnapshotRows, *, epoch: int, next_chunk: int, snapshot_seq: int
    ) -> None:
        self._rows = rows
        self._epoch = epoch
        self.next_chunk = next_chunk
        self.snapshot_seq = snapshot_seq
        self._snapshots = snapshots
        self._existing = [row.seq for row in snapshots.all()]
        self.pieces: dict[ChunkId, SnapshotSeq] = {}
        """Pieces of a snapshot's image on their way to a segment."""
        self.moves: dict[ChunkId, Callable[[SealJob], None]] = {}
        """What to do once a chunk that compaction seals again has been appended, or could not be."""
        self.to_discard: list[SegmentBeingWritten] = []
        """Sealed segments whose open name goes once this transaction is durable."""

    def new_id(self) -> ChunkId:
        """A number that was never used."""
        number = ChunkId(self.next_chunk)
        self.next_chunk += 1
        return number

    def segment_id(self, segment: SegmentBeingWritten) -> SegmentId:
        """The row of the segment being written; made at first use."""
        if segment.id is None:
            segment.id = self._rows.insert_segment(segment.token, self._epoch, segment.salt)
        return segment.id

    def row_for(self, job: SealJob, *, is_shared: bool) -> ChunkRow:
        """The row of a chunk that was appended; ``is_shared``: let deduplication find it."""
        if job.segment is None or job.fingerprint is None:
            raise IntegrityError(f"chunk {job.chunk} was not appended")
        return ChunkRow(
            job.chunk,
            self.segment_id(job.segment),
            job.offset,
            job.stored,
            job.length,
            1,
            self.snapshot_seq + 1,
            None,
            job.fingerprint[:16] if is_shared else None,
        )

    def add(self, rows: list[ChunkRow]) -> None:
        """Insert chunks that were appended."""
        self._rows.insert_chunks(rows)
        live: dict[SegmentId, int] = {}
        for row in rows:
            live[row.segment] = live.get(row.segment, 0) + row.stored
        for segment, stored in live.items():
            self._rows.add_live(segment, stored)

    def garbage(self, job: SealJob) -> None:
        """An appended chunk that nothing wants any more: its bytes are to be reclaimed."""
        if job.segment is not None:
            self._rows.put_reclaim(self.segment_id(job.segment), job.offset, job.stored)

    def took_piece(self, job: SealJob) -> bool:
        """Give an appended piece of a snapshot's image its rows; False if the job is none, or not wanted any more."""
        seq = self.pieces.pop(job.chunk, None)
        if seq is None:
            return False
        self.add([self.row_for(job, is_shared=True)])
        self._snapshots.put_piece(seq, job.index, job.chunk)
        return True

    def took_move(self, job: SealJob) -> bool:
        """Tell compaction that a chunk was sealed again; False if the job is nothing of compaction's."""
        arrived = self.moves.pop(job.chunk, None)
        if arrived is None:
            return False
        arrived(job)
        return True

    def moved(self, event: ChunkMoved) -> None:
        """Follow a chunk that was sealed again elsewhere, if it is in use."""
        row = self._rows.chunk(event.chunk)
        new = self.segment_id(event.segment)
        old = self.segment_id(event.old)
        self._rows.put_reclaim(old, event.old_offset, event.stored)
        if row is None or (row.segment, row.offset) != (old, event.old_offset):
            # Nobody's any more; or compaction's copy of a chunk that had to stay where it was.
            self._rows.put_reclaim(new, event.offset, event.stored)
            return
        self._rows.move_chunk(event.chunk, new, event.offset, event.stored)
        self._rows.add_live(row.segment, -row.stored)
        self._rows.add_live(new, event.stored)

    def sealed(self, event: SegmentSealed) -> None:
        """Record a segment's final name."""
        self._rows.seal_segment(self.segment_id(event.segment), event.name, event.size)
        self.to_discard.append(event.segment)

    def retain(self, chunk: ChunkId) -> None:
        """Count one more reference."""
        row = self._rows.chunk(chunk)
        if row is None:
            raise IntegrityError(f"metadata.db has no chunk {chunk}; run vaultfs fsck")
        self._rows.set_refs(chunk, row.refs + 1, None)

    def release(self, chunks: Iterable[ChunkId]) -> None:
        """Count one reference less for each; the last one ends a chunk."""
        freed: dict[SegmentId, int] = {}
        newest = max(self._existing, default=0)
        for chunk in chunks:
            place = self._rows.delete_last_reference(chunk, newest)
            if place is not None:
                self._reclaim(place, freed)
                continue
            row = self._rows.chunk(chunk)
            if row is None:
                raise IntegrityError(f"metadata.db has no chunk {chunk}; run vaultfs fsck")
            if row.refs > 1:
                self._rows.set_refs(chunk, row.refs - 1, None)
            elif self._is_in_snapshot(row.born, self.snapshot_seq + 1):
                self._rows.set_refs(chunk, 0, self.snapshot_seq + 1)
            else:
                self._forget(row, freed)
        for segment, stored in freed.items():
            self._rows.add_live(segment, -stored)

    def release_pieces(self, chunks: Iterable[ChunkId]) -> None:
        """As `release`, for pieces of images: snapshots taken later contain their rows, but do not need them."""
        freed: dict[SegmentId, int] = {}
        for chunk in chunks:
            row = self._rows.chunk(chunk)
            if row is None:
                raise IntegrityError(f"metadata.db has no chunk {chunk}; run vaultfs fsck")
            if row.refs > 1:
                self._rows.set_refs(chunk, row.refs - 1, None)
            else:
                self._forget(row, freed)
        for segment, stored in freed.items():
            self._rows.add_live(segment, -stored)

    def is_kept(self, row: ChunkRow) -> bool:
        """Whether a snapshot needs a file's chunk where it lies; pieces of images stay too, but are not told here."""
        return self._is_in_snapshot(row.born, self.snapshot_seq + 1 if row.died is None else row.died)

    def _is_in_snapshot(self, born: int, died: int) -> bool:
        return any(born <= seq < died for seq in self._existing)

    def _forget(self, row: ChunkRow, freed: dict[SegmentId, int]) -> None:
        self._rows.delete_chunk(row.id)
        self._reclaim((row.segment, row.offset, row.stored), freed)

    def _reclaim(self, place: tuple[SegmentId, int, int], freed: dict[SegmentId, int]) -> None:
        """Remember a range (segment, offset, bytes) that nothing needs any more."""
        self._rows.put_reclaim(*place)
        segment, _, stored = place
        freed[segment] = freed.get(segment, 0) + stored

    # --- snapshots

    def snapshot_taken(self, seq: SnapshotSeq) -> None:
        """From now on chunks are born after this snapshot, and those born before are kept for it."""
        self._existing.append(seq)
        self.snapshot_seq = max(self.snapshot_seq, seq)

    def snapshot_ended(self, seq: SnapshotSeq) -> None:
        """A snapshot does not exist any more; `sweep_dead` ends the chunks that it alone needed."""
        self._existing.remove(seq)

    def sweep_dead(self, after: tuple[int, ChunkId], limit: int) -> tuple[int, ChunkId] | None:
        """Look at no more than ``limit`` chunks that no file needs, and end those that no snapshot needs either.

        Args:
            after: where the last call stopped; begin with (0, 0).
            limit: bounds how long it takes; 1,000 take some 20 ms.

        Returns:
            Where to go on; None if that was all.
        """
        freed: dict[SegmentId, int] = {}
        rows = self._rows.dead_chunks(*after, limit)
        for row in rows:
            assert row.died is not None
            if not self._is_in_snapshot(row.born, row.died):
                self._forget(row, freed)
        for segment, stored in freed.items():
            self._rows.add_live(segment, -stored)
        if len(rows) < limit:
            return None
        assert rows[-1].died is not None
        return rows[-1].died, rows[-1].id
