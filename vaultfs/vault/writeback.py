"""Dirty chunks in memory, and their way into segments: handed to the sealing thread, given rows when they have landed.

Invariants: an index is in at most one of ``dirty`` and ``pending``; a row in ``extent`` counts only while the index is
in neither; what did not fit on the disk is dirty again.  All-zero chunks become holes.
"""

from __future__ import annotations

from typing import Final

from vaultfs.crypto.keys import fingerprint
from vaultfs.errors import NoSpaceError
from vaultfs.ids import ChunkId, InodeId
from vaultfs.metadata.chunk_rows import ChunkRows
from vaultfs.vault.chunk_table import ChunkTable
from vaultfs.vault.inodes import Inode, InodeTable
from vaultfs.vault.pipeline import SealingPipeline
from vaultfs.vault.sealing_jobs import ChunkMoved, SealJob, SegmentSealed
from vaultfs.vault.segments import SegmentAccess

DIRTY_LIMIT_BYTES: Final = 24 << 20
DIRTY_LIMIT_CHUNKS: Final = 8192
"""So many tiny ones take 8 MiB with what belongs to them."""
DEDUP_MIN_BYTES: Final = 32 << 10
"""Smaller chunks are not worth an index entry (about 50 bytes) and a look into it."""


class Writeback:
    """The chunks of all files that are in memory only.

    Args:
        rows: the tables.
        inodes: all inodes.
        chunks: the life of chunks.
        segments: for reading; forgets what was moved.
        pipeline: seals and appends.
        chunk_size: bytes of plaintext in a full chunk.
        fingerprint_key: of the current epoch.
    """

    def __init__(
        self,
        rows: ChunkRows,
        inodes: InodeTable,
        chunks: ChunkTable,
        segments: SegmentAccess,
        pipeline: SealingPipeline,
        *,
        chunk_size: int,
        fingerprint_key: bytes,
    ) -> None:
        self._rows = rows
        self._inodes = inodes
        self._chunks = chunks
        self._segments = segments
        self._pipeline = pipeline
        self._fingerprint_key = fingerprint_key
        self._zeros = bytes(chunk_size)
        self._order: dict[tuple[InodeId, int], Inode] = {}
        """Of the dirty chunks, the oldest first."""
        self._pending_count = 0
        self.dirty_bytes = 0
        """In dirty chunks; whoever changes the length of a buffer counts it here."""
        self.stays_in_memory = False
        """Nothing is sealed: what the intent log adds to a vault that is open read-only."""

    @property
    def is_settled(self) -> bool:
        """Whether no data is in memory only, but for what the log holds."""
        return not self._pending_count and not self._order

    @property
    def has_pending(self) -> bool:
        """Whether chunks are on their way to a segment."""
        return self._pending_count > 0

    def add_dirty(self, inode: Inode, index: int, buffer: bytearray) -> None:
        """Take a buffer as what is in a chunk now, the newest of the dirty ones."""
        inode.own_dirty()[index] = buffer
        self.dirty_bytes += len(buffer)
        self._order[inode.id, index] = inode

    def forget_dirty(self, inode: Inode, index: int) -> None:
        """Let what is in memory of a chunk go, because it is handed over, or nobody needs it any more."""
        buffer = inode.dirty.pop(index, None)
        if buffer is not None:
            self.dirty_bytes -= len(buffer)
            del self._order[inode.id, index]

    def forget_pending(self, inode: Inode, index: int) -> None:
        """Let a job come to nothing: its bytes will be reclaimed when it reports."""
        if inode.pending.pop(index, None) is not None:
            self._pending_count -= 1

    def bound(self) -> None:
        """Hand the oldest dirty chunks over if there are too many."""
        if self.dirty_bytes > DIRTY_LIMIT_BYTES or len(self._order) > DIRTY_LIMIT_CHUNKS:
            self.stage(DIRTY_LIMIT_BYTES // 2, DIRTY_LIMIT_CHUNKS // 2)

    def stage(self, keep_bytes: int = 0, keep_chunks: int = 0) -> None:
        """Hand dirty chunks over, the oldest first, until at most ``keep_bytes`` in ``keep_chunks`` are left."""
        order = self._order
        if self.stays_in_memory:
            return
        while order and (self.dirty_bytes > keep_bytes or len(order) > keep_chunks):
            number, index = next(iter(order))
            inode = order[number, index]
            buffer = inode.dirty[index]
            self.forget_dirty(inode, index)
            self.seal(inode, index, buffer)

    def seal(self, inode: Inode, index: int, data: bytes | bytearray | memoryview) -> None:
        """Hand a chunk over, unless another holds the same bytes already, or it is a hole.

        Args:
            inode: the file.
            index: of the chunk, which is not dirty.
            data: all of it; must not change any more.

        Raises:
            NoSpaceError, StorageError: as `SealingPipeline.submit` and `collect`; the data is dirty again.
        """
        self.forget_pending(inode, index)
        length = len(data)
        if not length or (data[0] == 0 and data == self._zeros[:length]):
            self._drop_extent(inode, index)
            return
        if self.stays_in_memory:
            self.add_dirty(inode, index, bytearray(data))
            return
        known: bytes | None = None
        if length >= DEDUP_MIN_BYTES:
            known = fingerprint(self._fingerprint_key, data)
            twin = self._rows.by_fingerprint(known[:16], length)
            if twin is not None:
                self._chunks.retain(twin)
                self._point(inode, index, twin)
                return
        job = SealJob(self._chunks.new_id(), data, known, inode=inode, index=index)
        inode.own_pending()[index] = job
        self._pending_count += 1
        try:
            self._pipeline.submit(job)
        except BaseException:
            self._take_back(job)
            raise
        self.collect()

    def _drop_extent(self, inode: Inode, index: int) -> None:
        """Make an extent a hole."""
        if inode.chunks:
            chunk = self._rows.take_extent(inode.id, index)
            if chunk is not None:
                inode.chunks -= 1
                self._chunks.release([chunk])
                self._inodes.changed(inode)

    def _point(self, inode: Inode, index: int, chunk: ChunkId) -> None:
        """Point an extent at a chunk that has a row."""
        old = self._rows.extent(inode.id, index) if inode.chunks else None
        self._rows.put_extent(inode.id, index, chunk)
        self._inodes.changed(inode)
        if old is None:
            inode.chunks += 1
        else:
            self._chunks.release([old])

    def collect(self) -> None:
        """Write rows for what the thread has done.

        Raises:
            NoSpaceError: the disk was full; the data is dirty again, and the next commit tries once more.
        """
        full: NoSpaceError | None = None
        landed: list[SealJob] = []
        for event in self._pipeline.collect():
            if isinstance(event, SealJob):
                inode = event.inode
                if inode is None and event.chunk in self._chunks.moves:
                    self._land(landed)
                    self._chunks.took_move(event)
                elif event.error is not None:
                    full = event.error
                    self._take_back(event)
                elif inode is None and self._chunks.took_piece(event):
                    continue
                elif inode is None or inode.pending.get(event.index) is not event:
                    self._chunks.garbage(event)
                else:
                    landed.append(event)
            elif isinstance(event, SegmentSealed):
                self._chunks.sealed(event)
            elif isinstance(event, ChunkMoved):
                self._land(landed)
                self._chunks.moved(event)
                self._segments.forget(self._chunks.segment_id(event.old))
        self._land(landed)
        if full is not None:
            raise full

    def _land(self, jobs: list[SealJob]) -> None:
        """Give chunks that were appended their rows, all at once, point the extents at them, and empty the list."""
        if not jobs:
            return
        self._chunks.add([self._chunks.row_for(job, is_shared=job.length >= DEDUP_MIN_BYTES) for job in jobs])
        replaced: list[ChunkId] = []
        for job in jobs:
            inode = job.inode
            assert inode is not None
            del inode.pending[job.index]
            self._pending_count -= 1
            old = self._rows.extent(inode.id, job.index) if inode.chunks else None
            if old is None:
                inode.chunks += 1
            else:
                replaced.append(old)
            self._inodes.changed(inode)
        self._rows.put_extents((job.owner, job.index, job.chunk) for job in jobs)
        self._chunks.release(replaced)
        jobs.clear()

    def _take_back(self, job: SealJob) -> None:
        """Make a chunk dirty again that did not fit on the disk."""
        inode = job.inode
        if inode is None or inode.pending.get(job.index) is not job:
            return
        self.forget_pending(inode, job.index)
        self.add_dirty(inode, job.index, bytearray(job.data))
