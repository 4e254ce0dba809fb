"""Reading: a plan of which bytes come from where, made by the core, and carried out by it or by a thread.

Making the plan needs the database and the dirty chunks, so only the core does it.  What is left then are reads of
immutable segments: :meth:`ReadPlan.fill_nowait` serves them if the disk's pages are in memory, and
:meth:`ReadPlan.fill` may block, in any thread, under a lease of the segments.
"""

from __future__ import annotations

from typing import Final

from vaultfs.crypto.aead import OVERHEAD_BYTES
from vaultfs.crypto.compression import decompress
from vaultfs.errors import ChunkIntegrityError, IntegrityError
from vaultfs.ids import ChunkId
from vaultfs.metadata.chunk_rows import ChunkPlace
from vaultfs.vault.inodes import Inode
from vaultfs.vault.open_chunks import OpenChunks
from vaultfs.vault.segments import ReadableSegment

_LARGEST_RUN_BYTES: Final = 4 << 20


class ChunkDamageError(ChunkIntegrityError):
    """A chunk of a file does not open.

    Attributes:
        inode: the file's number.
        file_offset: where in the file the chunk's bytes begin.
        chunk: its number.
    """

    def __init__(self, inode: int, file_offset: int, chunk: ChunkId, reason: str) -> None:
        super().__init__(f"inode {inode}: bytes from {file_offset} on are damaged (chunk {chunk}: {reason})")
        self.inode = inode
        self.file_offset = file_offset
        self.chunk = chunk


class Wanted:
    """A part of one chunk that belongs into the result."""

    __slots__ = ("end", "place", "segment", "start", "target")

    def __init__(self, place: ChunkPlace, segment: ReadableSegment, start: int, end: int, target: int) -> None:
        self.place = place
        self.segment = segment
        self.start = start
        self.end = end
        self.target = target


def open_sealed(place: ChunkPlace, segment: ReadableSegment, sealed: bytes | memoryview) -> bytes:
    """The plaintext of a sealed chunk.

    Raises:
        ChunkIntegrityError: it does not open.
    """
    data = segment.cipher.open(place.chunk, sealed, length=place.length)
    if place.stored < place.length + OVERHEAD_BYTES:
        return decompress(data, place.length)
    return data


class ReadPlan:
    """What is missing in ``result`` until `fill` or `fill_nowait` succeeds.

    Args:
        inode: the file.
        chunk_size: in bytes.
        result: zeros where holes are, and bytes of dirty chunks in place already.
        wanted: what else belongs there, in order.
        cache: takes chunks of which only a part was wanted.
    """

    __slots__ = ("_cache", "_chunk_size", "_inode", "opened", "result", "wanted")

    def __init__(
        self, inode: Inode, chunk_size: int, result: bytearray, wanted: list[Wanted], cache: OpenChunks
    ) -> None:
        self._inode = inode
        self._chunk_size = chunk_size
        self.result = result
        self.wanted = wanted
        self._cache = cache
        self.opened: list[tuple[ChunkPlace, bytes]] = []
        """Chunks of which a part was wanted."""

    def fill_nowait(self) -> bool:
        """Complete the result without waiting for the disk; False if that cannot be done (then call `fill`).

        Raises:
            ChunkDamageError: a chunk does not open.
        """
        while self.wanted:
            run = self._next_run()
            first, last = run[0].place, run[-1].place
            sealed = run[0].segment.reader.read_nowait(first.offset, last.offset + last.stored - first.offset)
            if sealed is None:
                return False
            self._place(run, sealed)
        return True

    def fill(self) -> None:
        """Complete the result.  Any thread, under a lease; then `keep_opened` in the core.

        Raises:
            ChunkDamageError: a chunk does not open or is not there.
            StorageError: the disk failed.
        """
        while self.wanted:
            run = self._next_run()
            first, last = run[0].place, run[-1].place
            try:
                sealed = run[0].segment.reader.read(first.offset, last.offset + last.stored - first.offset)
            except IntegrityError as error:
                raise self._damage(first, str(error)) from error
            self._place(run, sealed)

    def keep_opened(self) -> None:
        """Put chunks of which a part was wanted into the cache; in the core only."""
        for place, data in self.opened:
            self._cache.put(place.chunk, data)

    def _next_run(self) -> list[Wanted]:
        """The first wanted chunks that lie side by side in one segment: one read serves them."""
        wanted = self.wanted
        run = [wanted[0]]
        end = wanted[0].place.offset + wanted[0].place.stored
        for each in wanted[1:]:
            place = each.place
            if each.segment is not run[0].segment or place.offset != end:
                break
            if end - run[0].place.offset > _LARGEST_RUN_BYTES:
                break
            run.append(each)
            end += place.stored
        return run

    def _place(self, run: list[Wanted], sealed: bytes | bytearray) -> None:
        """Open the chunks of a run and put their bytes into the result."""
        view = memoryview(sealed)
        base = run[0].place.offset
        result = self.result
        for each in run:
            place = each.place
            start = place.offset - base
            try:
                data = open_sealed(place, each.segment, view[start : start + place.stored])
            except ChunkIntegrityError as error:
                raise self._damage(place, f"segment {each.segment.label}, {error}") from error
            length = each.end - each.start
            if length == len(data):
                result[each.target : each.target + length] = data
            else:
                result[each.target : each.target + length] = data[each.start : each.end]
                self.opened.append((place, data))
        del self.wanted[: len(run)]

    def _damage(self, place: ChunkPlace, reason: str) -> ChunkDamageError:
        return ChunkDamageError(self._inode.id, place.idx * self._chunk_size, place.chunk, reason)
