"""The encrypted index at the end of a sealed segment: which chunks are in it, and for which file each was written.

Everyday work does not need it, as the metadata says the same.  It serves to find chunks again when the metadata is
lost, or when a segment that was missing is put back.
"""

from __future__ import annotations

from dataclasses import dataclass

from vaultfs.crypto.aead import SegmentCipher
from vaultfs.crypto.keys import Keyring
from vaultfs.errors import IntegrityError, VaultError
from vaultfs.ids import SegmentName
from vaultfs.metadata.chunk_rows import ChunkPlace
from vaultfs.storage.layout import VaultLayout
from vaultfs.storage.segment_format import (
    HEADER_BYTES,
    TRAILER_BYTES,
    IndexEntry,
    SegmentHeader,
    decode_index,
    decode_trailer,
)
from vaultfs.storage.segment_reader import SegmentReader
from vaultfs.vault.reading import open_sealed
from vaultfs.vault.segments import ReadableSegment


@dataclass(frozen=True)
class IndexedSegment:
    """A sealed segment as it describes itself.

    Attributes:
        name: of its file.
        header: public, but what follows opens only with it.
        size: of the file, in bytes.
        entries: in order of offset.
    """

    name: SegmentName
    header: SegmentHeader
    size: int
    entries: list[IndexEntry]


def open_by_header(layout: VaultLayout, name: SegmentName, keyring: Keyring) -> tuple[SegmentHeader, ReadableSegment]:
    """A sealed segment for reading by what its own header says; close its reader.

    Raises:
        IntegrityError: it is no segment of this vault.
        FormatTooNewError: a newer vaultfs wrote it.
        StorageError: the disk failed.
    """
    reader = SegmentReader.open(layout.sealed_path(name), segment=name)
    try:
        header = SegmentHeader.decode(reader.read(0, HEADER_BYTES))
        if header.vault_id != keyring.vault_id:
            raise IntegrityError(f"the segment {name} is of another vault")
        cipher = SegmentCipher(keyring.subkeys(header.epoch).chunk, keyring.vault_id, header.salt)
    except BaseException:
        reader.close()
        raise
    return header, ReadableSegment(reader, cipher, name)


def read_index(layout: VaultLayout, name: SegmentName, keyring: Keyring) -> IndexedSegment:
    """The index of a sealed segment, authenticated.

    Raises:
        IntegrityError: it is no segment of this vault, has no index (a crash left it open), or is damaged.
        FormatTooNewError: a newer vaultfs wrote it.
        StorageError: the disk failed.
    """
    header, segment = open_by_header(layout, name, keyring)
    try:
        return IndexedSegment(name, header, segment.reader.size_bytes(), index_entries(segment))
    finally:
        segment.reader.close()


def index_entries(segment: ReadableSegment) -> list[IndexEntry]:
    """What the index of an open segment says, in order of offset, authenticated.

    Raises:
        IntegrityError: it has no index, or is damaged.
        StorageError: the disk failed.
        VaultError: it lies elsewhere, and cannot be had.
    """
    size = segment.reader.size_bytes()
    if size < HEADER_BYTES + TRAILER_BYTES:
        raise IntegrityError(f"the segment {segment.label} has no index")
    sealed = segment.reader.read(size - TRAILER_BYTES, TRAILER_BYTES)
    trailer = decode_trailer(segment.cipher.open_record(b"trailer", sealed), size)
    index = segment.reader.read(trailer.index_offset, trailer.index_length)
    entries = decode_index(segment.cipher.open_record(b"index", index))
    if len(entries) != trailer.entries:
        raise IntegrityError(
            f"the segment {segment.label}: its index has {len(entries)} entries instead of {trailer.entries}"
        )
    return entries


def chunk_opens(entry: IndexEntry, segment: ReadableSegment) -> bool:
    """Whether the chunk of an index entry can be read, and is whole."""
    place = ChunkPlace(0, entry.chunk_id, 0, entry.offset, entry.stored, entry.length)  # type: ignore[arg-type]
    try:
        open_sealed(place, segment, segment.reader.read(entry.offset, entry.stored))
    except VaultError:
        return False
    return True
