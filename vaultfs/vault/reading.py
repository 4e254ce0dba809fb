"""Reading: a plan of which bytes come from where, made by the core, and carried out by it or by a thread.

Making the plan needs the database and the dirty chunks, so only the core does it.  What is left then are reads of
immutable segments: :meth:`ReadPlan.fill_nowait` serves them if the disk's pages are in memory, and
:meth:`ReadPlan.fill` may block, in any thread, under a lease of the segments.
"""

from __future__ import annotations

import logging
from typing import Final

from vaultfs.crypto.aead import OVERHEAD_BYTES
from vaultfs.crypto.compression import decompress
from vaultfs.errors import ChunkIntegrityError, IntegrityError, VaultError
from vaultfs.ids import ChunkId
from vaultfs.metadata.chunk_rows import ChunkPlace
from vaultfs.vault.inodes import Inode
from vaultfs.vault.open_chunks import OpenChunks
from vaultfs.vault.segments import ReadableSegment

log = logging.getLogger(__name__)

_LARGEST_RUN_BYTES: Final = 4 << 20
KEPT_SCRATCH_BYTES: Final = 5 << 18
"""A read of 1 MiB, and the ends of the chunks around it."""


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


def read_sealed(place: ChunkPlace, segment: ReadableSegment) -> bytes:
    """The plaintext of a whole chunk; fetched from elsewhere if what is here does not open.  May block.

    Raises:
        IntegrityError: it does not open, or its segment ends before it.
        VaultError: it cannot be read, or had.
    """
    try:
        return open_sealed(place, segment, segment.reader.read(place.offset, place.stored))
    except IntegrityError:
        if segment.spare is None:
            raise
    return open_sealed(place, segment, segment.spare.fetch(place.offset, place.stored))


class Scratch:
    """A buffer for sealed bytes that is used again and again; for one thread, and until the next call.

    A new one for each read would have to be cleared first, which takes half as long as reading into it.
    """

    def __init__(self) -> None:
        self._buffer = bytearray(KEPT_SCRATCH_BYTES)

    def of(self, length: int) -> memoryview:
        """A buffer of so many bytes, with anything in it."""
        return memoryview(self._buffer if length <= KEPT_SCRATCH_BYTES else bytearray(length))[:length]


class ReadPlan:
    """What is missing in ``result`` until `fill` or `fill_nowait` succeeds.

    Args:
        inode: the file.
        chunk_size: in bytes.
        result: zeros where holes are, and bytes of dirty chunks in place already.
        wanted: what else belongs there, in order.
        cache: takes chunks of which only a part was wanted.
        scratch: of the core, for `fill_nowait`.
    """

    __slots__ = ("_cache", "_chunk_size", "_inode", "_scratch", "opened", "result", "wanted")

    def __init__(
        self,
        inode: Inode,
        chunk_size: int,
        result: bytearray,
        wanted: list[Wanted],
        cache: OpenChunks,
        scratch: Scratch,
    ) -> None:
        self._scratch = scratch
        self._inode = inode
        self._chunk_size = chunk_size
        self.result = result
        self.wanted = wanted
        self._cache = cache
        self.opened: list[tuple[ChunkPlace, bytes]] = []
        """Chunks of which a part was wanted."""

    @property
    def is_here(self) -> bool:
        """Whether all that is missing lies on this disk."""
        return all(each.segment.is_here for each in self.wanted)

    def fill_nowait(self) -> bool:
        """Complete the result without waiting for the disk; False if that cannot be done (then call `fill`).

        In the core only.

        Raises:
            ChunkDamageError: a chunk does not open.
        """
        while self.wanted:
            run = self._next_run()
            first, last = run[0].place, run[-1].place
            sealed = self._scratch.of(last.offset + last.stored - first.offset)
            if not run[0].segment.reader.read_nowait(first.offset, sealed):
                return False
            try:
                self._place(run, sealed)
            except ChunkDamageError:
                if run[0].segment.spare is None:
                    raise
                return False  # somebody else may have it, which takes waiting
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
                self._place(run, sealed)
            except IntegrityError as error:
                if run[0].segment.spare is None:
                    raise error if isinstance(error, ChunkDamageError) else self._damage(first, str(error)) from error
                self._place_from_elsewhere(run)

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

    def _place(self, run: list[Wanted], sealed: bytes | memoryview) -> None:
        """Open the chunks of a run and put their bytes into the result."""
        view = memoryview(sealed)
        base = run[0].place.offset
        result = memoryview(self.result)
        for each in run:
            place = each.place
            start = place.offset - base
            part = view[start : start + place.stored]
            target = result[each.target : each.target + each.end - each.start]
            try:
                if len(target) == place.length and place.stored == place.length + OVERHEAD_BYTES:
                    each.segment.cipher.open_into(target, place.chunk, part)
                    continue
                data = open_sealed(place, each.segment, part)
            except ChunkIntegrityError as error:
                raise self._damage(place, f"segment {each.segment.label}, {error}") from error
            target[:] = data[each.start : each.end]
            if len(target) < len(data):
                self.opened.append((place, data))
        del self.wanted[: len(run)]

    def _place_from_elsewhere(self, run: list[Wanted]) -> None:
        """Fetch those chunks of a run that cannot be had here, and mend what was damaged."""
        for each in list(run):
            spare, place = each.segment.spare, each.place
            assert spare is not None
            try:
                self._place([each], each.segment.reader.read(place.offset, place.stored))
            except IntegrityError as error:
                log.warning("segment %s, chunk %d: %s; it is fetched", each.segment.label, place.chunk, error)
            else:
                continue
            try:
                sealed = spare.fetch(place.offset, place.stored)
            except VaultError as error:
                raise self._damage(place, f"segment {each.segment.label}; and elsewhere: {error}") from error
            self._place([each], sealed)
            try:
                is_mended = spare.mend(place.offset, sealed)
            except VaultError as error:
                log.warning("a damaged chunk was fetched, but not mended: %s", error)
            else:
                if is_mended:
                    log.warning("segment %s, chunk %d: was damaged, and is mended", each.segment.label, place.chunk)

    def _damage(self, place: ChunkPlace, reason: str) -> ChunkDamageError:
        return ChunkDamageError(self._inode.id, place.idx * self._chunk_size, place.chunk, reason)
