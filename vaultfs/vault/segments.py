"""Segments for reading: the row, the open file and the cipher of each, by number.

Readers and ciphers are kept for some segments.  A file is closed with the last reference to its reader, so whoever has
planned to read from it still can, however many others are opened meanwhile.  A thread that reads holds a lease
(`SegmentAccess.lease`); meanwhile no room is given back.

If there is a source of segments elsewhere, one that is missing here is read from there through a cache, and a chunk
that does not open is fetched, checked, and written in the place of the damaged one (`Spare`).
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Final, NamedTuple, Protocol

from vaultfs.crypto.aead import SegmentCipher
from vaultfs.crypto.keys import Keyring
from vaultfs.errors import IntegrityError, VaultError
from vaultfs.ids import KeyEpoch, SegmentId, SegmentName
from vaultfs.metadata.chunk_rows import ChunkRows, SegmentRow
from vaultfs.storage.durable import storage_errors
from vaultfs.storage.layout import VaultLayout
from vaultfs.storage.segment_cache import SegmentCache
from vaultfs.storage.segment_file import open_for_change
from vaultfs.storage.segment_format import HEADER_BYTES, SegmentHeader
from vaultfs.storage.segment_reader import SegmentReader
from vaultfs.storage.segment_source import SegmentSource

log = logging.getLogger(__name__)

OPEN_SEGMENTS: Final = 256
"""Of the 1,024 descriptors that a process may have by default."""


class SealedSegment(NamedTuple):
    """A sealed segment by its row; the size is in bytes."""

    number: SegmentId
    name: SegmentName
    size: int


class ChunkReader(Protocol):
    """Reads bytes of one segment, wherever they are."""

    def read(self, offset: int, length: int) -> bytes:
        """As `SegmentReader.read`."""

    def read_nowait(self, offset: int, into: memoryview) -> bool:
        """As `SegmentReader.read_nowait`."""

    def size_bytes(self) -> int:
        """As `SegmentReader.size_bytes`."""

    def close(self) -> None:
        """As `SegmentReader.close`."""


class ReaderElsewhere:
    """Reads a segment that is not on this disk.

    Args:
        cache: fetches what it lacks.
        name: the segment's.
        size: its bytes.
        path: where it will lie if somebody fetches all of it; None: nobody looks.
    """

    def __init__(self, cache: SegmentCache, name: SegmentName, size: int, path: Path | None = None) -> None:
        self._cache = cache
        self._name = name
        self._size = size
        self._path = path

    def has_arrived(self) -> bool:
        """Whether the segment is on this disk now; then it is to be opened there."""
        return self._path is not None and self._path.exists()

    def forget(self, offset: int, length: int) -> None:
        """What was read of a range does not open: fetch it anew the next time."""
        self._cache.forget(self._name, offset, length)

    def read(self, offset: int, length: int) -> bytes:
        """Read, and wait for the network if need be."""
        return self._cache.read(self._name, self._size, offset, length)

    def read_nowait(self, offset: int, into: memoryview) -> bool:  # noqa: ARG002
        """Never: nobody knows how long it takes."""
        return False

    def size_bytes(self) -> int:
        """Bytes in the segment, as the metadata has it."""
        return self._size

    def close(self) -> None:
        """Nothing is open."""


class ReadableSegment:
    """A segment that can be read.

    Attributes:
        reader: of its bytes.
        cipher: opens its chunks.
        label: what to call it in messages.
        spare: brings bytes once more from elsewhere, and may put them right here; None if there is no elsewhere.
    """

    __slots__ = ("cipher", "label", "reader", "spare")

    def __init__(self, reader: ChunkReader, cipher: SegmentCipher, label: str, spare: Spare | None = None) -> None:
        self.reader = reader
        self.cipher = cipher
        self.label = label
        self.spare = spare

    @property
    def is_here(self) -> bool:
        """Whether its file is on this disk."""
        return not isinstance(self.reader, ReaderElsewhere)


class Spare:
    """The same segment elsewhere, for one whose bytes here are damaged, cut or gone.  Any thread.

    Args:
        source: has it.
        cache: what was fetched of it before, if it is not on this disk.
        path: where it lies on this disk; None if it does not.
        name: the segment's.
    """

    def __init__(self, source: SegmentSource, cache: SegmentCache | None, path: Path | None, name: SegmentName) -> None:
        self._source = source
        self._cache = cache
        self._path = path
        self._name = name

    def fetch(self, offset: int, length: int) -> bytes:
        """Bytes of the segment.

        Raises:
            VaultError: nobody has them, or can be reached.
        """
        if self._cache is not None:
            self._cache.forget(self._name, offset, length)
        return self._source.fetch(self._name, offset, length)

    def mend(self, offset: int, data: bytes) -> bool:
        """Write what has turned out right in the place of what was damaged, durably.

        Returns:
            Whether there was such a place; a segment that is not on this disk has none.

        Raises:
            VaultError: this disk does not take it; the damage stays, and does no harm while the source is there.
        """
        if self._path is None:
            return False
        descriptor = open_for_change(self._path, segment=self._name)
        try:
            with storage_errors(f"cannot mend the segment {self._name}"):
                position = offset
                while position < offset + len(data):
                    position += os.pwrite(descriptor, data[position - offset :], position)
                os.fsync(descriptor)
        finally:
            os.close(descriptor)
        return True


class SegmentAccess:
    """All segments of a vault.

    Args:
        rows: the tables.
        layout: where the files are.
        keyring: has the key of each epoch.
        source: has segments that are missing or damaged here; None if nobody has.
    """

    def __init__(
        self, rows: ChunkRows, layout: VaultLayout, keyring: Keyring, source: SegmentSource | None = None
    ) -> None:
        self._source = source
        self._cache = None if source is None else SegmentCache(layout.cache, source)
        self._rows = rows
        self._layout = layout
        self._keyring = keyring
        self._open: dict[SegmentId, ReadableSegment] = {}
        self._leases = 0

    def get(self, segment: SegmentId) -> ReadableSegment:
        """A segment by number.

        Raises:
            IntegrityError: its file is missing, no regular file, or of another vault.
        """
        found = self._open.get(segment)
        if found is not None and isinstance(found.reader, ReaderElsewhere) and found.reader.has_arrived():
            self.arrived(SegmentName(found.label))
            found = None
        if found is None:
            found = self._load(segment)
            if len(self._open) >= OPEN_SEGMENTS and not self._leases:
                for number in list(self._open)[: OPEN_SEGMENTS // 4]:
                    del self._open[number]
            self._open[segment] = found
        return found

    def _load(self, segment: SegmentId) -> ReadableSegment:
        row = self._rows.segment(segment)
        if not segment:
            raise IntegrityError("its bytes are lost, as fsck found")
        if row is None:
            raise IntegrityError(f"metadata.db has no segment {segment}; run vaultfs fsck")
        chunk_key = self._keyring.subkeys(KeyEpoch(row.epoch)).chunk
        cipher = SegmentCipher(chunk_key, self._keyring.vault_id, row.salt)
        if row.name is None:
            label = f"open/{row.token}"
            return ReadableSegment(self._open_file(self._layout.open_path(row.token), label, row), cipher, label)
        name = SegmentName(row.name)
        path = self._layout.sealed_path(name)
        if self._source is None:
            return ReadableSegment(self._open_file(path, name, row), cipher, name)
        try:
            found = ReadableSegment(
                self._open_file(path, name, row), cipher, name, Spare(self._source, None, path, name)
            )
            self.arrived(name)
            return found  # noqa: TRY300
        except IntegrityError as error:
            is_damaged = os.path.lexists(path)
            if is_damaged:
                log.error("%s; it is read from elsewhere", error)  # noqa: TRY400
        assert self._cache is not None
        spare = Spare(self._source, self._cache, None, name)
        reader = ReaderElsewhere(self._cache, name, row.size, None if is_damaged else path)
        return ReadableSegment(reader, cipher, name, spare)

    def _open_file(self, path: Path, label: str, row: SegmentRow) -> SegmentReader:
        reader = SegmentReader.open(path, segment=label)
        try:
            header = SegmentHeader.decode(reader.read(0, HEADER_BYTES))
            if (header.vault_id, header.epoch, header.salt) != (self._keyring.vault_id, row.epoch, row.salt):
                raise IntegrityError(f"segment {label}: its header is not the one that was written; run vaultfs fsck")
        except BaseException:
            reader.close()
            raise
        return reader

    @property
    def has_elsewhere(self) -> bool:
        """Whether segments that are not on this disk can be read at all."""
        return self._source is not None

    def sealed(self) -> list[SealedSegment]:
        """The sealed segments that something is in, wherever they lie."""
        return [
            SealedSegment(row.id, SegmentName(row.name), row.size)
            for row in self._rows.segments()
            if row.name is not None and row.live
        ]

    def is_needed(self, segment: SealedSegment) -> bool:
        """Whether there is still something in it."""
        row = self._rows.segment(segment.number)
        return row is not None and row.name == segment.name and row.live > 0

    def arrived(self, name: SegmentName) -> None:
        """All of a segment is on this disk now, and is read from there: give back what the cache has of it."""
        assert self._cache is not None, "what is elsewhere is read through it"
        try:
            self._cache.drop(name)
        except VaultError as error:  # room that is given back later
            log.warning("what was fetched of segment %s before stays: %s", name, error)

    def forget(self, segment: SegmentId) -> None:
        """Drop a segment, for example because its file is gone."""
        self._open.pop(segment, None)

    def lease(self) -> None:
        """Keep all bytes of all segments where they are, for a thread that reads."""
        self._leases += 1

    def end_lease(self) -> None:
        """End one lease."""
        self._leases -= 1

    @property
    def is_leased(self) -> bool:
        """Whether a thread reads; then nothing may be punched or deleted."""
        return self._leases > 0

    def close(self) -> None:
        """Close all files."""
        for found in self._open.values():
            found.reader.close()
        self._open.clear()
