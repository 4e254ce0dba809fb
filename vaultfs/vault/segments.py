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
from typing import Final, Protocol

from vaultfs.crypto.aead import SegmentCipher
from vaultfs.crypto.keys import Keyring
from vaultfs.errors import IntegrityError
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
    """

    def __init__(self, cache: SegmentCache, name: SegmentName, size: int) -> None:
        self._cache = cache
        self._name = name
        self._size = size

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
            return ReadableSegment(
                self._open_file(path, name, row), cipher, name, Spare(self._source, None, path, name)
            )
        except IntegrityError as error:
            if path.exists():
                log.error("%s; it is read from elsewhere", error)  # noqa: TRY400
        assert self._cache is not None
        spare = Spare(self._source, self._cache, None, name)
        return ReadableSegment(ReaderElsewhere(self._cache, name, row.size), cipher, name, spare)

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
