"""What is in regular files: read, written, cut.

A read looks into dirty chunks in memory, then into chunks on their way to a segment, then into segments.  A write lands
in dirty chunks; one that covers a chunk, or completes it, hands it to the sealing thread at once, and so does growth
over the limit (`vaultfs.vault.writeback`).

Invariants: a chunk shorter than its range is followed by zeros; nothing but zeros is kept past a file's size.
"""

from __future__ import annotations

import errno
import logging
from typing import Final, NamedTuple

from vaultfs.crypto.aead import OVERHEAD_BYTES
from vaultfs.errors import FileSystemError, IntegrityError, VaultError
from vaultfs.ids import ChunkId, InodeId
from vaultfs.metadata.chunk_rows import ChunkPlace, ChunkRows
from vaultfs.metadata.tree_rows import TreeRows
from vaultfs.vault.chunk_table import ChunkTable
from vaultfs.vault.inodes import Inode, InodeTable
from vaultfs.vault.open_chunks import OpenChunks
from vaultfs.vault.reading import ChunkDamageError, ReadPlan, Scratch, Wanted
from vaultfs.vault.segments import ReadableSegment, SegmentAccess
from vaultfs.vault.write_log import WriteLog
from vaultfs.vault.writeback import Writeback

log = logging.getLogger(__name__)

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
        writeback: takes what is written.
        chunk_size: bytes of plaintext in a full chunk.
    """

    def __init__(
        self,
        rows: ChunkRows,
        inodes: InodeTable,
        chunks: ChunkTable,
        segments: SegmentAccess,
        writeback: Writeback,
        *,
        chunk_size: int,
    ) -> None:
        self._rows = rows
        self._inodes = inodes
        self._chunks = chunks
        self._segments = segments
        self._writeback = writeback
        self._chunk_size = chunk_size
        self._zeros = bytes(chunk_size)
        self._open_chunks = OpenChunks()
        self._scratch = Scratch()
        self.write_log = WriteLog()
        self.ended: dict[InodeId, Inode] = {}
        """Inodes without name and handle whose extents are still to be released (`sweep`)."""
        self.nameless: dict[InodeId, Inode] = {}
        """Inodes without name that are open."""
        self._stored_orphans: set[InodeId] = set()

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
        self._writeback.bound()
        self._writeback.add_dirty(inode, index, rewrite.plan.result)

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
        self._writeback.seal(inode, index, data)
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
        writeback = self._writeback
        view = memoryview(data)
        position = offset
        while position < end:
            index, start = divmod(position, chunk_size)
            stop = min(chunk_size, start + end - position)
            piece = view[position - offset : position - offset + stop - start]
            try:
                if stop - start == chunk_size:
                    writeback.forget_dirty(inode, index)
                    writeback.seal(inode, index, piece)
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
        writeback.bound()

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
        writeback = self._writeback
        writeback.dirty_bytes += len(buffer) - before
        if stop == self._chunk_size and before < stop:
            # Appended to the full: it will hardly be written again soon.
            writeback.forget_dirty(inode, index)
            writeback.seal(inode, index, buffer)

    def _make_dirty(self, inode: Inode, index: int) -> bytearray:
        """The chunk as a buffer that may be changed, holding what is there now, up to the file's size."""
        buffer = inode.dirty.get(index)
        if buffer is not None:
            return buffer
        job = inode.pending.get(index)
        if job is not None:
            buffer = bytearray(job.data)
            self._writeback.forget_pending(inode, index)
        else:
            buffer = self._stored(inode, index)
        self._writeback.add_dirty(inode, index, buffer)
        return buffer

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
            self._writeback.forget_dirty(inode, gone)
        for gone in [each for each in inode.pending if each >= first_gone]:
            self._writeback.forget_pending(inode, gone)
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
            self._writeback.dirty_bytes -= len(buffer) - keep
            del buffer[keep:]

    def end(self, inode: Inode) -> None:
        """Give up an inode that has neither name nor handle; large files are swept later."""
        self.nameless.pop(inode.id, None)
        for index in list(inode.dirty):
            self._writeback.forget_dirty(inode, index)
        for index in list(inode.pending):
            self._writeback.forget_pending(inode, index)
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
