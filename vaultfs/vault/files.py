"""What is in regular files: dirty chunks in memory, chunks on their way to a segment, chunks in segments.

A read looks in this order.  A write lands in dirty chunks; one that covers a chunk, or completes it, hands it to the
sealing thread at once, and so does growth over the limit.  All-zero chunks become holes.

Invariants: a chunk shorter than its range is followed by zeros; nothing but zeros is kept past a file's size; an index
is in at most one of ``dirty`` and ``pending``; a row in ``extent`` counts only while the index is in neither.
"""

from __future__ import annotations

import errno
import logging
from typing import Final, NamedTuple

from vaultfs.crypto.aead import OVERHEAD_BYTES
from vaultfs.crypto.keys import fingerprint
from vaultfs.errors import FileSystemError, IntegrityError, NoSpaceError, VaultError
from vaultfs.ids import ChunkId, InodeId
from vaultfs.metadata.chunk_rows import ChunkPlace, ChunkRows
from vaultfs.metadata.tree_rows import TreeRows
from vaultfs.vault.chunk_table import ChunkTable
from vaultfs.vault.inodes import Inode, InodeTable
from vaultfs.vault.open_chunks import OpenChunks
from vaultfs.vault.pipeline import SealingPipeline
from vaultfs.vault.reading import ChunkDamageError, ReadPlan, Scratch, Wanted
from vaultfs.vault.sealing_jobs import ChunkMoved, SealJob, SegmentSealed
from vaultfs.vault.segments import ReadableSegment, SegmentAccess
from vaultfs.vault.write_log import WriteLog

log = logging.getLogger(__name__)

DIRTY_LIMIT_BYTES: Final = 24 << 20
DIRTY_LIMIT_CHUNKS: Final = 8192
"""So many tiny ones take 8 MiB with what belongs to them."""
DEDUP_MIN_BYTES: Final = 32 << 10
"""Smaller chunks are not worth an index entry (about 50 bytes) and a look into it."""
MAX_FILE_BYTES: Final = (1 << 63) - 1
"""What the kernel allows; with less, a write past the limit would succeed in its cache and fail at fsync."""
SWEEP_EXTENTS: Final = 512
_LARGEST_CHUNK_BYTES: Final = 4 << 20


class Rewrite(NamedTuple):
    """A chunk that is to be written in part.

    Attributes:
        place: where it lies.
        plan: reads all of it.
    """

    place: ChunkPlace
    plan: ReadPlan


class Files:
    """The contents of all regular files of a vault.

    Args:
        rows: the tables.
        inodes: all inodes.
        chunks: the life of chunks.
        segments: for reading.
        pipeline: for writing.
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
        self._chunk_size = chunk_size
        self._fingerprint_key = fingerprint_key
        self._zeros = bytes(chunk_size)
        self._open_chunks = OpenChunks()
        self._scratch = Scratch()
        self._dirty_bytes = 0
        self._dirty_order: dict[tuple[InodeId, int], Inode] = {}
        self._pending_count = 0
        self.write_log = WriteLog()
        self.ended: dict[InodeId, Inode] = {}
        """Inodes without name and handle whose extents are still to be released (`sweep`)."""
        self.nameless: dict[InodeId, Inode] = {}
        """Inodes without name that are open."""
        self._stored_orphans: set[InodeId] = set()
        self.stays_in_memory = False
        """Nothing is sealed: what the intent log adds to a vault that is open read-only."""

    # --- reading

    def plan_read(self, inode: Inode, offset: int, size: int) -> ReadPlan:
        """Plan to read at most ``size`` bytes from ``offset``; the result ends at the file's end.

        Raises:
            IntegrityError: a segment is missing or not of this vault.
        """
        end = min(offset + size, inode.size)
        result = bytearray(max(end - offset, 0))
        wanted: list[Wanted] = []
        plan = ReadPlan(inode, self._chunk_size, result, wanted, self._open_chunks, self._scratch)
        if end <= offset:
            return plan
        chunk_size = self._chunk_size
        first, last = offset // chunk_size, (end - 1) // chunk_size
        in_memory = inode.dirty or inode.pending
        if in_memory:
            for index in range(first, last + 1):
                data = self._in_memory(inode, index)
                if data is not None:
                    base = index * chunk_size
                    start, stop = max(offset - base, 0), min(end - base, len(data))
                    if start < stop:
                        result[base + start - offset : base + stop - offset] = data[start:stop]
        for place in self._rows.places(inode.id, first, last) if inode.chunks else ():
            index = place.idx
            if in_memory and (index in inode.dirty or index in inode.pending):
                continue
            base = index * chunk_size
            start, stop = max(offset - base, 0), min(end - base, place.length)
            if start >= stop:
                if place.length < 1:
                    self._segment_of(inode, place)
                continue
            target = base + start - offset
            if stop - start < place.length:
                cached = self._open_chunks.get(place.chunk)
                if cached is not None:
                    result[target : target + stop - start] = cached[start:stop]
                    continue
            wanted.append(Wanted(place, self._segment_of(inode, place), start, stop, target))
        return plan

    def _segment_of(self, inode: Inode, place: ChunkPlace) -> ReadableSegment:
        """The segment with a chunk of a file; that it cannot be had, or the row makes no sense, is damage."""
        try:
            if not 0 < place.stored - OVERHEAD_BYTES <= place.length <= _LARGEST_CHUNK_BYTES and place.segment:
                raise IntegrityError("its row in metadata.db makes no sense")
            return self._segments.get(place.segment)
        except IntegrityError as error:
            raise ChunkDamageError(inode.id, place.idx * self._chunk_size, place.chunk, str(error)) from error

    def _in_memory(self, inode: Inode, index: int) -> bytes | bytearray | memoryview | None:
        data = inode.dirty.get(index)
        if data is not None:
            return data
        job = inode.pending.get(index)
        return None if job is None else job.data

    def read(self, inode: Inode, offset: int, size: int) -> bytearray:
        """Read, and wait for the disk where needed.

        Raises:
            ChunkDamageError, IntegrityError, StorageError: as :meth:`ReadPlan.fill`.
        """
        plan = self.plan_read(inode, offset, size)
        if not plan.fill_nowait():
            plan.fill()
        plan.keep_opened()
        return plan.result

    def damaged(self, damage: ChunkDamageError) -> None:
        """Take a damaged chunk out of deduplication, so that writing the same bytes again heals the file."""
        self._rows.forget_fingerprint(damage.chunk)

    # --- writing

    def plan_write(self, inode: Inode, offset: int, size: int) -> list[Rewrite]:
        """What must be read before a write at this place need not wait for the disk: at most the two outer chunks.

        Fill the plan of each, in a thread if need be, and `adopt` it; then :meth:`write` finds it in memory.
        """
        chunk_size = self._chunk_size
        end = offset + size
        first, last = offset // chunk_size, (end - 1) // chunk_size
        if not inode.chunks or (first == last and first in inode.dirty):
            return []
        found: list[Rewrite] = []
        for index in (first,) if first == last else (first, last):
            base = index * chunk_size
            if offset <= base and end >= min(base + chunk_size, inode.size):
                continue
            if index in inode.dirty or index in inode.pending:
                continue
            found += [
                Rewrite(place, self._plan_whole(inode, place))
                for place in self._rows.places(inode.id, index, index)
                if self._open_chunks.get(place.chunk) is None
            ]
        return found

    def _plan_whole(self, inode: Inode, place: ChunkPlace) -> ReadPlan:
        wanted = [Wanted(place, self._segment_of(inode, place), 0, place.length, 0)]
        return ReadPlan(inode, self._chunk_size, bytearray(place.length), wanted, self._open_chunks, self._scratch)

    def adopt(self, inode: Inode, rewrite: Rewrite, *, has_waited: bool) -> None:
        """Make what was read of a chunk its dirty buffer, unless the chunk was changed meanwhile.

        Args:
            inode: the file.
            rewrite: of `plan_write`, filled.
            has_waited: other requests were served since it was planned.

        Raises:
            NoSpaceError: there is too much dirty data, and no room for it; nothing was adopted.
        """
        index = rewrite.place.idx
        if has_waited and (
            index in inode.dirty or index in inode.pending or self._rows.extent(inode.id, index) != rewrite.place.chunk
        ):
            return
        self._bound_dirty()
        self._add_dirty(inode, index, rewrite.plan.result)

    def copy_out(self, inode: Inode, index: int, chunk: ChunkId) -> int:
        """Have a chunk of a file sealed anew, as if it had been written again; the old one stays for who else needs it.

        Args:
            inode: the file.
            index: of the extent.
            chunk: what it points at; if that is not so any more, nothing happens.

        Returns:
            Bytes that were copied.

        Raises:
            ChunkDamageError: it does not open; nothing was changed.
            NoSpaceError: the disk is full.
        """
        if index in inode.dirty or index in inode.pending or self._rows.extent(inode.id, index) != chunk:
            return 0
        data = self._stored(inode, index)
        self._rows.forget_fingerprint(chunk)  # or deduplication would find the old one
        self._seal(inode, index, data)
        return len(data)

    def write(self, inode: Inode, offset: int, data: bytes | memoryview) -> None:
        """Write ``data`` at ``offset``, growing the file as needed.  Times are the caller's business.

        Raises:
            FileSystemError: EFBIG.
            ChunkDamageError: a chunk that is written in part does not open; nothing was written to it.
        """
        end = offset + len(data)
        if end > MAX_FILE_BYTES:
            raise FileSystemError(errno.EFBIG, "a file holds at most 8 EiB")
        if not data:
            return
        chunk_size = self._chunk_size
        index, start = divmod(offset, chunk_size)
        buffer = inode.dirty.get(index)
        if buffer is not None and start + len(data) <= len(buffer):
            # A page of a chunk that is dirty already: nine of ten random writes that the kernel hands over.
            buffer[start : start + len(data)] = data
            self._wrote(inode, offset, data)
            return
        view = memoryview(data)
        position = offset
        while position < end:
            index, start = divmod(position, chunk_size)
            stop = min(chunk_size, start + end - position)
            piece = view[position - offset : position - offset + stop - start]
            try:
                if stop - start == chunk_size:
                    self._forget_dirty(inode, index)
                    self._seal(inode, index, piece)
                else:
                    self._write_part(inode, index, start, piece)
            except VaultError:
                # Even if the disk is full the piece was taken, but not if its chunk is damaged; what was taken counts.
                if index in inode.dirty or index in inode.pending:
                    position += stop - start
                self._wrote(inode, offset, view[: position - offset])
                raise
            position += stop - start
        self._wrote(inode, offset, data)
        self._bound_dirty()

    def _bound_dirty(self) -> None:
        """Hand the oldest dirty chunks over if there are too many."""
        if self._dirty_bytes > DIRTY_LIMIT_BYTES or len(self._dirty_order) > DIRTY_LIMIT_CHUNKS:
            self.stage(DIRTY_LIMIT_BYTES // 2, DIRTY_LIMIT_CHUNKS // 2)

    def _wrote(self, inode: Inode, offset: int, data: bytes | memoryview) -> None:
        if data:
            inode.size = max(inode.size, offset + len(data))
            self._inodes.changed(inode)
            self.write_log.wrote(inode.id, offset, data)

    def _write_part(self, inode: Inode, index: int, start: int, piece: memoryview) -> None:
        """Write into one chunk but not all of it."""
        buffer = self._make_dirty(inode, index)
        before, stop = len(buffer), start + len(piece)
        if start > before:
            buffer.extend(self._zeros[: start - before])
        buffer[start:stop] = piece
        self._dirty_bytes += len(buffer) - before
        if stop == self._chunk_size and before < stop:
            # Appended to the full: it will hardly be written again soon.
            self._forget_dirty(inode, index)
            self._seal(inode, index, buffer)

    def _make_dirty(self, inode: Inode, index: int) -> bytearray:
        """The chunk as a buffer that may be changed, holding what is there now, up to the file's size."""
        buffer = inode.dirty.get(index)
        if buffer is not None:
            return buffer
        job = inode.pending.get(index)
        if job is not None:
            buffer = bytearray(job.data)
            self._forget_pending(inode, index)
        else:
            buffer = self._stored(inode, index)
        self._add_dirty(inode, index, buffer)
        return buffer

    def _add_dirty(self, inode: Inode, index: int, buffer: bytearray) -> None:
        """Take a buffer as what is in a chunk now, the newest of the dirty ones."""
        inode.own_dirty()[index] = buffer
        self._dirty_bytes += len(buffer)
        self._dirty_order[inode.id, index] = inode

    def _stored(self, inode: Inode, index: int) -> bytearray:
        """A chunk's bytes as they lie in a segment, in a buffer of their own; empty for a hole."""
        if not inode.chunks:
            return bytearray()
        for place in self._rows.places(inode.id, index, index):
            cached = self._open_chunks.get(place.chunk)
            if cached is not None:
                return bytearray(cached)
            plan = self._plan_whole(inode, place)
            if not plan.fill_nowait():
                plan.fill()
            return plan.result
        return bytearray()

    def _forget_dirty(self, inode: Inode, index: int) -> None:
        buffer = inode.dirty.pop(index, None)
        if buffer is not None:
            self._dirty_bytes -= len(buffer)
            del self._dirty_order[inode.id, index]

    def _forget_pending(self, inode: Inode, index: int) -> None:
        """Let a job come to nothing: its bytes will be reclaimed when it reports."""
        if inode.pending.pop(index, None) is not None:
            self._pending_count -= 1

    # --- sealing

    def _seal(self, inode: Inode, index: int, data: bytes | bytearray | memoryview) -> None:
        """Hand a chunk over; ``data`` must not change any more."""
        self._forget_pending(inode, index)
        length = len(data)
        if not length or (data[0] == 0 and data == self._zeros[:length]):
            self._drop_extent(inode, index)
            return
        if self.stays_in_memory:
            self._add_dirty(inode, index, bytearray(data))
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

    def stage(self, keep_bytes: int = 0, keep_chunks: int = 0) -> None:
        """Hand dirty chunks over, the oldest first, until at most ``keep_bytes`` in ``keep_chunks`` are left."""
        order = self._dirty_order
        if self.stays_in_memory:
            return
        while order and (self._dirty_bytes > keep_bytes or len(order) > keep_chunks):
            number, index = next(iter(order))
            inode = order[number, index]
            buffer = inode.dirty[index]
            self._forget_dirty(inode, index)
            self._seal(inode, index, buffer)

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
        self._forget_pending(inode, job.index)
        self._add_dirty(inode, job.index, bytearray(job.data))

    @property
    def is_settled(self) -> bool:
        """Whether no data is in memory only, but for what the log holds."""
        return not self._pending_count and not self._dirty_order

    @property
    def has_pending(self) -> bool:
        """Whether chunks are on their way to a segment."""
        return self._pending_count > 0

    @property
    def dirty_bytes(self) -> int:
        """Bytes in dirty chunks."""
        return self._dirty_bytes

    # --- size, and the end of files

    def truncate(self, inode: Inode, size: int) -> None:
        """Set a file's size.

        Raises:
            FileSystemError: EFBIG.
            ChunkDamageError: the chunk that is cut does not open; nothing was changed.
        """
        if size > MAX_FILE_BYTES:
            raise FileSystemError(errno.EFBIG, "a file holds at most 8 EiB")
        if size < inode.size:
            self._cut(inode, size)
            self.write_log.cut(inode.id, size)
        inode.size = size
        self._inodes.changed(inode)

    def _cut(self, inode: Inode, size: int) -> None:
        """Drop everything from ``size`` on."""
        index, keep = divmod(size, self._chunk_size)
        first_gone = index + 1 if keep else index
        if keep:
            self._shorten(inode, index, keep)
        for gone in [each for each in inode.dirty if each >= first_gone]:
            self._forget_dirty(inode, gone)
        for gone in [each for each in inode.pending if each >= first_gone]:
            self._forget_pending(inode, gone)
        while inode.chunks:
            taken = self._rows.take_extents(inode.id, first_gone, SWEEP_EXTENTS)
            inode.chunks -= len(taken)
            self._chunks.release(taken)
            if len(taken) < SWEEP_EXTENTS:
                return

    def _shorten(self, inode: Inode, index: int, keep: int) -> None:
        """Cut one chunk to ``keep`` bytes, if it is longer."""
        data = self._in_memory(inode, index)
        if data is None:
            places = self._rows.places(inode.id, index, index) if inode.chunks else []
            length = places[0].length if places else 0
        else:
            length = len(data)
        if length > keep:
            buffer = self._make_dirty(inode, index)
            self._dirty_bytes -= len(buffer) - keep
            del buffer[keep:]

    def end(self, inode: Inode) -> None:
        """Give up an inode that has neither name nor handle; large files are swept later."""
        self.nameless.pop(inode.id, None)
        for index in list(inode.dirty):
            self._forget_dirty(inode, index)
        for index in list(inode.pending):
            self._forget_pending(inode, index)
        if inode.chunks:
            self.ended[inode.id] = inode
        else:
            self._inodes.delete(inode)

    def store_orphans(self, rows: TreeRows) -> None:
        """Bring the table of orphans in line with the inodes that have no name, for the transaction at hand."""
        gone = self._stored_orphans - self.ended.keys() - self.nameless.keys()
        for number in gone:
            rows.delete_orphan(number)
        new = (self.ended.keys() | self.nameless.keys()) - self._stored_orphans
        rows.put_orphans(new)
        self._stored_orphans = self._stored_orphans - gone | new

    def sweep(self, extents: int = SWEEP_EXTENTS) -> bool:
        """Release at most ``extents`` extents of files that ended; return whether more is left."""
        while self.ended and extents > 0:
            number, inode = next(iter(self.ended.items()))
            taken = self._rows.take_extents(number, 0, extents)
            self._chunks.release(taken)
            inode.chunks -= len(taken)
            if len(taken) < extents:
                del self.ended[number]
                self._inodes.delete(inode)
            extents -= max(len(taken), 1)
        return bool(self.ended)

    def data_on_disk_bytes(self, inode: Inode) -> int:
        """About how many bytes of a file are not holes, for ``st_blocks``."""
        chunks = inode.chunks + len(inode.dirty) + len(inode.pending)
        return min(chunks * self._chunk_size, inode.size)
