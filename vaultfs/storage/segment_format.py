"""The bytes of a segment file that are not chunks: the public header, and what the sealed index and trailer hold.

    header        64 bytes, public
    sealed chunks nonce 12, ciphertext, tag 16; back to back
    index record  sealed; only in a sealed segment
    trailer       sealed, 60 bytes; only in a sealed segment

Nothing outside the sealed records says where a chunk begins.  Integers are little-endian.  Every decoder takes any
bytes: it returns something within the bounds written here or raises a `vaultfs.errors.VaultError`.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Final, NamedTuple

import msgspec

from vaultfs.errors import FormatTooNewError, IntegrityError
from vaultfs.ids import ChunkId, InodeId, KeyEpoch, VaultId

FORMAT_VERSION: Final = 1
HEADER_BYTES: Final = 64
SALT_BYTES: Final = 32
TRAILER_BYTES: Final = 60
"""The sealed trailer record: 32 bytes and what sealing adds."""
MAX_ENTRIES: Final = 1 << 16
"""Chunks in a segment; a segment's key must not seal more."""
MAX_INDEX_BYTES: Final = 4 << 20
"""Encoded index.  65,536 entries of six numbers with at most 9 bytes each are 3.4 MiB."""

_SEAL_BYTES: Final = 28
_MAGIC: Final = b"VFSSEG\0"
_HEADER: Final = struct.Struct("<7sB16sI4s32s")
_TRAILER: Final = struct.Struct("<4Q")
_VAULT_ID_BYTES: Final = 16
_EPOCH_LIMIT: Final = 1 << 32
_LENGTH_LIMIT: Final = 1 << 32
_NUMBER_LIMIT: Final = 1 << 63


@dataclass(frozen=True)
class SegmentHeader:
    """The first 64 bytes of a segment.

    Attributes:
        vault_id: 16 bytes.
        epoch: the master key's number, below 2**32.
        salt: 32 random bytes, from which the segment's key is derived.

    Raises:
        ValueError: a value of another size.
    """

    vault_id: VaultId
    epoch: KeyEpoch
    salt: bytes

    def __post_init__(self) -> None:
        if len(self.vault_id) != _VAULT_ID_BYTES or len(self.salt) != SALT_BYTES or not 0 <= self.epoch < _EPOCH_LIMIT:
            raise ValueError("a segment header takes 16 bytes of vault id, an epoch below 2**32, 32 bytes of salt")

    def encode(self) -> bytes:
        """The header as `HEADER_BYTES` bytes."""
        return _HEADER.pack(_MAGIC, FORMAT_VERSION, self.vault_id, self.epoch, bytes(4), self.salt)

    @classmethod
    def decode(cls, data: bytes) -> SegmentHeader:
        """The header from `HEADER_BYTES` bytes.  It is public and not authenticated; what it derives is.

        Raises:
            FormatTooNewError: a newer version of vaultfs wrote it.
            IntegrityError: not a segment header.
        """
        if len(data) != HEADER_BYTES:
            raise IntegrityError(f"a segment header has {HEADER_BYTES} bytes, not {len(data)}; the segment is damaged")
        magic, version, vault_id, epoch, zero, salt = _HEADER.unpack(data)
        if magic != _MAGIC:
            raise IntegrityError("not a segment: it does not begin with VFSSEG; restore it from a backup")
        if version > FORMAT_VERSION:
            raise FormatTooNewError(f"the segment has format {version}, newer than this vaultfs knows; update vaultfs")
        if version != FORMAT_VERSION or any(zero):
            raise IntegrityError("the segment's header is damaged; restore it from a backup")
        return cls(VaultId(vault_id), KeyEpoch(epoch), salt)


class Trailer(NamedTuple):
    """Where a sealed segment's index lies.

    Attributes:
        index_offset: bytes from the start of the file to the sealed index record.
        index_length: bytes of the sealed index record.
        entries: chunks in the index.
    """

    index_offset: int
    index_length: int
    entries: int


def encode_trailer(index_offset: int, index_length: int, entries: int) -> bytes:
    """The 32 bytes to seal as the trailer.  All three as in `Trailer`."""
    return _TRAILER.pack(index_offset, index_length, entries, 0)


def decode_trailer(data: bytes, file_size: int) -> Trailer:
    """What an opened trailer says.

    Args:
        data: the 32 bytes.
        file_size: bytes of the whole segment file.

    Raises:
        IntegrityError: not a trailer, or not of a file of that size.
    """
    if len(data) != _TRAILER.size:
        raise IntegrityError(f"a segment's trailer has {_TRAILER.size} bytes, not {len(data)}; the segment is damaged")
    offset, length, entries, zero = _TRAILER.unpack(data)
    fits = offset >= HEADER_BYTES and length >= _SEAL_BYTES and offset + length == file_size - TRAILER_BYTES
    if zero or not fits or entries > MAX_ENTRIES:
        raise IntegrityError("the segment's trailer does not fit the file: it was cut or extended; restore it")
    return Trailer(offset, length, entries)


class IndexEntry(NamedTuple):
    """A chunk in a segment, with what is needed to rebuild lost metadata.

    Attributes:
        chunk_id: from 1.
        offset: bytes from the start of the file.
        stored: bytes in the file, nonce and tag included.
        length: bytes of plaintext, uncompressed; from 1, below 2**32.
        inode: the file that it was written for; 0 if none.
        index: which chunk of that file.
    """

    chunk_id: ChunkId
    offset: int
    stored: int
    length: int
    inode: InodeId
    index: int  # type: ignore[assignment]  # hides tuple.index, which nothing needs


_Column = Annotated[list[int], msgspec.Meta(max_length=MAX_ENTRIES)]
_INDEX: Final = msgspec.msgpack.Decoder(tuple[_Column, _Column, _Column, _Column, _Column, _Column])


def encode_index(entries: Iterable[IndexEntry]) -> bytes:
    """The index to seal: a msgpack array of six columns of equal length, ordered by offset.

    Columns that mostly rise are stored as differences from the row before (chunk ids, inodes, indexes), offsets as the
    gap after the chunk before: most of these take one byte.

    Raises:
        ValueError: an entry that `decode_index` would refuse, or too many.
    """
    ordered = sorted(entries, key=lambda entry: entry.offset)
    if len(ordered) > MAX_ENTRIES:
        raise ValueError(f"a segment holds at most {MAX_ENTRIES} chunks, not {len(ordered)}")
    ids: list[int] = []
    gaps: list[int] = []
    stored: list[int] = []
    lengths: list[int] = []
    inodes: list[int] = []
    indexes: list[int] = []
    last, end = IndexEntry(ChunkId(0), 0, 0, 0, InodeId(0), 0), HEADER_BYTES
    for entry in ordered:
        if not _is_valid(entry, end):
            raise ValueError(f"not an entry of a segment's index, or it overlaps the one before: {entry}")
        ids.append(entry.chunk_id - last.chunk_id)
        gaps.append(entry.offset - end)
        stored.append(entry.stored)
        lengths.append(entry.length)
        inodes.append(entry.inode - last.inode)
        indexes.append(entry.index - last.index)
        last, end = entry, entry.offset + entry.stored
    return msgspec.msgpack.encode((ids, gaps, stored, lengths, inodes, indexes))


def decode_index(data: bytes) -> list[IndexEntry]:
    """The entries of an opened index, ordered by offset, none overlapping another.

    Raises:
        IntegrityError: not an index.
    """
    if len(data) > MAX_INDEX_BYTES:
        raise IntegrityError(f"a segment's index has at most {MAX_INDEX_BYTES} bytes, not {len(data)}")
    try:
        columns = _INDEX.decode(data)
    except msgspec.DecodeError as error:
        raise IntegrityError(f"the segment's index is damaged: {error}") from error
    if len({len(column) for column in columns}) != 1:
        raise IntegrityError("the segment's index is damaged: its columns differ in length")
    entries: list[IndexEntry] = []
    chunk_id, end, inode, index = 0, HEADER_BYTES, 0, 0
    for chunk_step, gap, stored, length, inode_step, index_step in zip(*columns, strict=True):
        chunk_id += chunk_step
        inode += inode_step
        index += index_step
        entry = IndexEntry(ChunkId(chunk_id), end + gap, stored, length, InodeId(inode), index)
        if not _is_valid(entry, end):
            raise IntegrityError(f"the segment's index is damaged: entry {len(entries)} is out of bounds")
        entries.append(entry)
        end = entry.offset + stored
    return entries


def _is_valid(entry: IndexEntry, end: int) -> bool:
    """Whether every number is in its bounds and the chunk begins at or after ``end``, where the one before ended."""
    return (
        0 < entry.chunk_id < _NUMBER_LIMIT
        and end <= entry.offset
        and 0 < entry.length < _LENGTH_LIMIT
        and _SEAL_BYTES < entry.stored <= entry.length + _SEAL_BYTES
        and entry.offset + entry.stored < _NUMBER_LIMIT
        and 0 <= entry.inode < _NUMBER_LIMIT
        and 0 <= entry.index < _NUMBER_LIMIT
    )
