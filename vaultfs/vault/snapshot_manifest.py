"""A snapshot's manifest as holders of the key see it: written, found, held, verified, opened.

The public part (`vaultfs.storage.manifest_format`) names the segments that the snapshot needs; the private part, sealed
with the manifest key and bound to vault and number, says where the pieces of the database's image lie, so that a
snapshot opens without the present database:

    msgpack array, sealed as a record with the manifest key of the signing epoch for the purpose
    "manifest" | vault id 16 | seq u64 LE:
    version 1, seq, created_ns, label, files, bytes of plaintext, chunk size, bytes of the image,
    segments: array of [name 32, epoch, salt 32, size]; then five arrays, with one element for each piece of the image:
    index of its segment, offset, bytes stored, bytes of the piece, chunk id

The pieces are sealed as chunks are, and put together they are ``metadata.db``, encrypted as it is.

Whoever reads a snapshot holds a shared ``flock`` on its manifest, and a snapshot is deleted only under an exclusive
one: so a mounted snapshot stays, and so does one that is being uploaded.
"""

from __future__ import annotations

import fcntl
import os
import re
from dataclasses import dataclass
from itertools import starmap
from pathlib import Path
from typing import Annotated, Final, NamedTuple, Self

import msgspec

from vaultfs.crypto.aead import OVERHEAD_BYTES, open_record, seal_record
from vaultfs.crypto.device import DeviceKey, verify
from vaultfs.crypto.keys import Keyring
from vaultfs.errors import IntegrityError, UsageError, VaultLockedError
from vaultfs.ids import ChunkId, KeyEpoch, SegmentName, SnapshotSeq
from vaultfs.storage.durable import atomic_replace, storage_errors
from vaultfs.storage.layout import VaultLayout
from vaultfs.storage.manifest_format import MAX_MANIFEST_BYTES, Manifest, manifest_hash
from vaultfs.storage.segment_format import HEADER_BYTES
from vaultfs.storage.snapshot_history import add_to_history

SHORTEST_ID: Final = 4
"""Digits of a snapshot's id that must be given at least."""

_LEFTOVER: Final = re.compile(r"\.[0-9]{10,19}-[0-9a-f]{64}\.manifest\.[0-9a-f]{16}\.tmp")
_PRIVATE_VERSION: Final = 1

_Count = Annotated[int, msgspec.Meta(ge=0, lt=1 << 62)]


class SegmentFacts(NamedTuple):
    """A segment that a snapshot needs; ``size`` in bytes."""

    name: SegmentName
    epoch: KeyEpoch
    salt: bytes
    size: int


class Piece(NamedTuple):
    """Where a piece of a database image lies; ``segment`` is an index into the table, lengths are in bytes."""

    segment: int
    offset: int
    stored: int
    length: int
    chunk: ChunkId


class _Private(msgspec.Struct, array_like=True, frozen=True):
    """The private part; columns of pieces, because that is a third of the size of rows."""

    version: _Count
    seq: _Count
    created_ns: int
    label: str
    files: _Count
    plaintext_bytes: _Count
    chunk_size: _Count
    database_bytes: _Count
    segments: list[tuple[bytes, _Count, bytes, _Count]]
    piece_segments: list[_Count]
    piece_offsets: list[_Count]
    piece_stored: list[_Count]
    piece_lengths: list[_Count]
    piece_chunks: list[_Count]


@dataclass(frozen=True)
class SnapshotInfo:
    """What one wants to know of a snapshot.

    Attributes:
        seq: its number, from 1.
        id: BLAKE3 of its manifest, hexadecimal.
        label: what the person called it; may be empty.
        created_ns: nanoseconds since 1970.
        files: inodes in it.
        bytes: of plaintext, the sum of the sizes of its files.
        is_kept: it is of a history that the vault has left, see `vaultfs.vault.kept_snapshots`.
    """

    seq: SnapshotSeq
    id: str
    label: str
    created_ns: int
    files: int
    bytes: int
    is_kept: bool = False


@dataclass(frozen=True)
class SnapshotContent:
    """What stands in a manifest's private part.

    Attributes:
        seq: the snapshot's number.
        created_ns: nanoseconds since 1970.
        label: what the person called it.
        files: inodes in it.
        bytes: of plaintext, the sum of the sizes of its files.
        chunk_size: bytes of plaintext in a full chunk.
        database_bytes: length of the database's image.
        segments: every segment that the snapshot needs, those of its image included.
        pieces: of the image, in order.
    """

    seq: SnapshotSeq
    created_ns: int
    label: str
    files: int
    bytes: int
    chunk_size: int
    database_bytes: int
    segments: tuple[SegmentFacts, ...]
    pieces: tuple[Piece, ...]

    def info(self, snapshot_id: str) -> SnapshotInfo:
        """The same for people."""
        return SnapshotInfo(self.seq, snapshot_id, self.label, self.created_ns, self.files, self.bytes)


def _purpose(keyring: Keyring, seq: int) -> bytes:
    return b"manifest" + keyring.vault_id + seq.to_bytes(8, "little")


def write_manifest(layout: VaultLayout, keyring: Keyring, content: SnapshotContent, previous: bytes | None) -> str:
    """Seal, sign and store a manifest durably; return its hash, which is the snapshot's id.

    Args:
        layout: where the vault is.
        keyring: its current epoch seals and signs.
        content: of the private part.
        previous: the hash of the manifest made before this one, deleted or not.

    Raises:
        StorageError, NoSpaceError: it could not be written.
        UsageError: the vault is too large for one manifest.
    """
    keys = keyring.current
    columns = [list(column) for column in zip(*content.pieces, strict=True)]
    private = _Private(
        _PRIVATE_VERSION,
        content.seq,
        content.created_ns,
        content.label,
        content.files,
        content.bytes,
        content.chunk_size,
        content.database_bytes,
        [(bytes.fromhex(each.name), each.epoch, each.salt, each.size) for each in content.segments],
        *columns,
    )
    device = DeviceKey(keys.device)
    try:
        manifest = Manifest(
            keyring.vault_id,
            device.public,
            content.seq,
            content.created_ns,
            previous,
            tuple((each.name, each.size) for each in content.segments),
            seal_record(keys.manifest, _purpose(keyring, content.seq), msgspec.msgpack.encode(private)),
        )
        data = manifest.encode(device.sign(manifest.signed_bytes()))
    except ValueError as error:
        raise UsageError(f"no snapshot can be made of this vault: {error}") from error
    name = manifest_hash(data)
    add_to_history(layout, content.seq, name)
    atomic_replace(layout.manifest_path(content.seq, name), data)
    return name


def open_manifest(keyring: Keyring, data: bytes, seq: int, snapshot_id: str) -> tuple[Manifest, SnapshotContent]:
    """Verify a manifest in every respect, and open its private part.

    Args:
        keyring: one of its epochs must have signed it.
        data: the file.
        seq: the number that it must have.
        snapshot_id: the hash that it must have.

    Raises:
        IntegrityError: it is damaged, replaced, of another vault or snapshot, or not signed by this vault's key.
        FormatTooNewError: a newer vaultfs wrote it.
    """
    what = f"the manifest of snapshot {seq}"
    if manifest_hash(data) != snapshot_id:
        raise IntegrityError(f"{what} is not the one that was written: it was changed or replaced; restore it")
    manifest, signature = Manifest.decode(data)
    if manifest.vault_id != keyring.vault_id:
        raise IntegrityError(f"{what} is of another vault; restore it")
    if manifest.seq != seq:
        raise IntegrityError(f"{what} is that of snapshot {manifest.seq}; restore it")
    for epoch in keyring.epochs:
        keys = keyring.subkeys(epoch)
        if DeviceKey(keys.device).public == manifest.device:
            verify(manifest.device, manifest.signed_bytes(), signature)
            private = open_record(keys.manifest, _purpose(keyring, seq), manifest.private)
            return manifest, _decode_private(private, manifest, what)
    raise IntegrityError(f"{what} is signed with a key that this vault does not have; restore it")


def _decode_private(data: bytes, manifest: Manifest, what: str) -> SnapshotContent:
    """The private part; who wrote it had the key, but a damaged one must not do harm either."""
    try:
        private = msgspec.msgpack.decode(data, type=_Private)
        segments = tuple(
            SegmentFacts(SegmentName(name.hex()), KeyEpoch(epoch), salt, size)
            for name, epoch, salt, size in private.segments
        )
        columns = (
            private.piece_segments,
            private.piece_offsets,
            private.piece_stored,
            private.piece_lengths,
            map(ChunkId, private.piece_chunks),
        )
        pieces = tuple(starmap(Piece, zip(*columns, strict=True)))
    except (ValueError, RecursionError) as error:  # msgspec's DecodeError is a ValueError
        raise IntegrityError(f"{what} holds something else than vaultfs writes: {error}") from error
    is_consistent = (
        private.version == _PRIVATE_VERSION
        and (private.seq, private.created_ns) == (manifest.seq, manifest.created_ns)
        and tuple(sorted((each.name, each.size) for each in segments)) == manifest.segments
        and sum(piece.length for piece in pieces) == private.database_bytes
        and all(_is_within(piece, segments) for piece in pieces)
    )
    if not is_consistent:
        raise IntegrityError(f"{what} contradicts itself; restore it")
    return SnapshotContent(
        SnapshotSeq(private.seq),
        private.created_ns,
        private.label,
        private.files,
        private.plaintext_bytes,
        private.chunk_size,
        private.database_bytes,
        segments,
        pieces,
    )


def _is_within(piece: Piece, segments: tuple[SegmentFacts, ...]) -> bool:
    return (
        piece.segment < len(segments)
        and HEADER_BYTES <= piece.offset <= segments[piece.segment].size - piece.stored
        and OVERHEAD_BYTES < piece.stored <= piece.length + OVERHEAD_BYTES
    )


# --- files in heads/


def manifest_files(layout: VaultLayout) -> list[tuple[SnapshotSeq, str]]:
    """Number and id of every manifest on disk but those of kept snapshots, by their names, in order.

    Raises:
        StorageError: the directory cannot be read.
    """
    return layout.manifests_in(layout.heads)


def find_manifest(layout: VaultLayout, seq: SnapshotSeq, snapshot_id: str) -> Path:
    """The file of a manifest: an ordinary one, a kept one, or one on its way in an adoption.

    Raises:
        IntegrityError: the id is none.
    """
    ordinary = layout.manifest_path(seq, snapshot_id)
    others = (layout.kept_path(seq, snapshot_id), VaultLayout(layout.adopting).manifest_path(seq, snapshot_id))
    return next((path for path in (ordinary, *others) if os.path.lexists(path)), ordinary)


def remove_leftovers(layout: VaultLayout) -> None:
    """Remove what a crash left of writing a manifest.

    Raises:
        StorageError: a file cannot be removed.
    """
    with storage_errors(f"cannot clean up {layout.heads}"), os.scandir(layout.heads) as entries:
        for entry in entries:
            if _LEFTOVER.fullmatch(entry.name):
                os.unlink(entry.path)  # noqa: PTH108


def choose(which: str | int, known: list[tuple[SnapshotSeq, str]]) -> tuple[SnapshotSeq, str]:
    """The snapshot that a person means.

    Args:
        which: its number, or at least `SHORTEST_ID` first digits of its id.
        known: number and id of each.

    Raises:
        UsageError: none is meant, or more than one.
    """
    text = str(which).strip().lower()
    found = [each for each in known if text == str(each[0])]
    if not found and len(text) >= SHORTEST_ID:
        found = [each for each in known if each[1].startswith(text)]
    if not found:
        raise UsageError(f"there is no snapshot {str(which)!r}; 'vaultfs snapshot list' shows which there are")
    if len(found) > 1 and text == str(found[0][0]):
        ids = " and ".join(snapshot_id[:12] for _, snapshot_id in found)
        raise UsageError(f"{len(found)} snapshots have the number {text}; say which by its id, {ids}")
    if len(found) > 1:
        raise UsageError(f"{str(which)!r} begins the ids of {len(found)} snapshots; give more of it, or the number")
    return found[0]


class SnapshotHold:
    """A lock on a snapshot's manifest, until `release`.

    Attributes:
        data: the manifest's bytes, as they were when the lock was taken.
    """

    def __init__(self, descriptor: int, data: bytes) -> None:
        self._descriptor = descriptor
        self.data = data

    @classmethod
    def take(cls, layout: VaultLayout, seq: SnapshotSeq, snapshot_id: str, *, is_exclusive: bool) -> Self:
        """Lock a manifest: shared to read the snapshot, exclusively to delete it.

        Raises:
            VaultLockedError: another process reads the snapshot, or deletes it.
            IntegrityError: the manifest is missing or no regular file.
        """
        path = find_manifest(layout, seq, snapshot_id)
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise IntegrityError(f"the manifest of snapshot {seq}, {path}: {error.strerror}; restore it") from error
        try:
            with storage_errors(f"cannot read {path}"):
                try:
                    fcntl.flock(descriptor, (fcntl.LOCK_EX if is_exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
                except BlockingIOError:
                    doing = "is mounted or being read" if is_exclusive else "is being deleted"
                    raise VaultLockedError(f"snapshot {seq} {doing}; unmount it or wait, then try again") from None
                if os.fstat(descriptor).st_nlink == 0:
                    raise IntegrityError(f"snapshot {seq} was deleted just now")
                with os.fdopen(os.dup(descriptor), "rb") as file:
                    return cls(descriptor, file.read(MAX_MANIFEST_BYTES + 1))
        except BaseException:
            os.close(descriptor)
            raise

    def release(self) -> None:
        """Give the lock up.  Doing it twice is harmless."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)
