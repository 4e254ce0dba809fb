"""Open a snapshot: its database image put together again, and the vault as it was then, read-only.

This needs the header, the manifest and segments, but neither the vault's lock nor its present database: a snapshot can
be mounted beside the vault.  Every piece of the image is authenticated by its chunk's key, number and length, which the
signed manifest gives; every chunk of a file then as always.
"""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from vaultfs.crypto.aead import OVERHEAD_BYTES, SegmentCipher
from vaultfs.crypto.compression import decompress
from vaultfs.crypto.keys import Keyring
from vaultfs.crypto.slots import Secret
from vaultfs.errors import IntegrityError
from vaultfs.ids import SegmentName, SnapshotSeq
from vaultfs.metadata.database import MetadataDatabase
from vaultfs.storage.durable import storage_errors
from vaultfs.storage.kept_manifests import kept_files
from vaultfs.storage.layout import VaultLayout
from vaultfs.storage.segment_cache import SegmentCache
from vaultfs.storage.segment_format import HEADER_BYTES, SegmentHeader
from vaultfs.storage.segment_reader import SegmentReader
from vaultfs.storage.segment_source import SegmentSource
from vaultfs.vault.filesystem import FileSystem
from vaultfs.vault.head import Head
from vaultfs.vault.kept_snapshots import open_any_manifest
from vaultfs.vault.metadata_image import open_image
from vaultfs.vault.opening import load_header
from vaultfs.vault.segments import ChunkReader, ReaderElsewhere
from vaultfs.vault.snapshot_manifest import (
    Piece,
    SegmentFacts,
    SnapshotContent,
    SnapshotHold,
    choose,
    manifest_files,
)

log = logging.getLogger(__name__)


def open_snapshot(
    path: str | os.PathLike[str],
    secret: Secret,
    which: str | int,
    *,
    on_unlocked: Callable[[], None] | None = None,
    source: SegmentSource | None = None,
) -> FileSystem:
    """Open a snapshot of a vault, read-only; the vault may be mounted meanwhile.

    The snapshot cannot be deleted before the result is closed.

    Args:
        path: the vault's directory.
        secret: opens a key slot.
        which: the snapshot's number, or the beginning of its id.
        on_unlocked: called once the key derivation is done.
        source: has segments that are missing or damaged here.

    Raises:
        NotAVaultError, FormatTooNewError, WrongPasswordError: as their names say.
        UsageError: there is no such snapshot.
        VaultLockedError: it is being deleted.
        IntegrityError: its manifest, or a piece of its image, is not what was written.
        NoSpaceError, StorageError: the disk failed, or has no room for the image.
    """
    layout = VaultLayout(Path(path))
    header = load_header(layout)
    choose(which, _openable(layout))  # before a second is spent on the password
    keyring = header.unlock(secret)
    if on_unlocked is not None:
        on_unlocked()
    return open_with_keys(layout, keyring, which, source)


def open_with_keys(
    layout: VaultLayout,
    keyring: Keyring,
    which: str | int,
    source: SegmentSource | None = None,
    temporary: Path | None = None,
) -> FileSystem:
    """As `open_snapshot`, for who has the keys already.

    Args:
        layout: where header and manifest are.
        keyring: of the vault.
        which: the snapshot.
        source: has segments that are missing or damaged there.
        temporary: a directory for the metadata's image; that of all programs if None.

    Raises:
        VaultError: as `open_snapshot`.
    """
    seq, snapshot_id = choose(which, _openable(layout))
    hold = SnapshotHold.take(layout, seq, snapshot_id, is_exclusive=False)
    try:
        keyring, content = open_any_manifest(layout, keyring, hold.data, seq, snapshot_id)
        database = _open_database(layout, keyring, content, source, temporary)
        try:
            return FileSystem(layout, keyring, hold, Head(layout, keyring), database, read_only=True, source=source)
        except BaseException:
            database.close()
            raise
    except BaseException:
        hold.release()
        raise


def _openable(layout: VaultLayout) -> list[tuple[SnapshotSeq, str]]:
    """Number and id of each snapshot, the kept ones included."""
    return sorted({*manifest_files(layout), *kept_files(layout)})


def _open_database(
    layout: VaultLayout,
    keyring: Keyring,
    content: SnapshotContent,
    source: SegmentSource | None,
    temporary: Path | None,
) -> MetadataDatabase:
    """The image in a file that has no name any more when this returns, so that nothing is left behind."""
    with storage_errors("cannot make a temporary file for the snapshot's metadata"):
        directory = Path(tempfile.mkdtemp(prefix="vaultfs-snapshot-", dir=temporary))
    path = directory / "image.db"
    try:
        with storage_errors(f"cannot write the snapshot's metadata to {path}"), path.open("xb") as file:
            for piece in image_pieces(layout, keyring, content, source):
                file.write(piece)
        return open_image(path, keyring)
    finally:
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
        directory.rmdir()


def image_pieces(
    layout: VaultLayout, keyring: Keyring, content: SnapshotContent, source: SegmentSource | None = None
) -> Iterator[bytes]:
    """The database's image, piece by piece, each one verified.

    Args:
        layout: where the segments are.
        keyring: opens the pieces.
        content: of the manifest.
        source: has segments that are missing here.

    Raises:
        IntegrityError: a piece, or its segment, is missing or damaged.
        StorageError: the disk failed.
        VaultError: as the source says.
    """
    number = -1
    reader: ChunkReader | None = None
    cache = None if source is None else SegmentCache(layout.cache, source)
    try:
        for index, piece in enumerate(content.pieces):
            if reader is None or piece.segment != number:
                if reader is not None:
                    reader.close()
                number = piece.segment
                facts = content.segments[number]
                if cache is None or layout.sealed_path(facts.name).exists():
                    reader = SegmentReader.open(layout.sealed_path(facts.name), segment=facts.name)
                else:
                    reader = ReaderElsewhere(cache, facts.name, facts.size)
                cipher = _cipher(reader, keyring, facts)
            try:
                data = _open_piece(reader, cipher, piece, facts.name, source)
                yield decompress(data, piece.length) if piece.stored < piece.length + OVERHEAD_BYTES else data
            except IntegrityError as error:
                raise IntegrityError(f"snapshot {content.seq}: piece {index} of its metadata: {error}") from error
    finally:
        if reader is not None:
            reader.close()


def _open_piece(
    reader: ChunkReader, cipher: SegmentCipher, piece: Piece, name: SegmentName, source: SegmentSource | None
) -> bytes:
    """The piece as it was sealed; if it is damaged here, or what was fetched of it before is torn, it is fetched."""
    try:
        return cipher.open(piece.chunk, reader.read(piece.offset, piece.stored), length=piece.length)
    except IntegrityError as error:
        if source is None:
            raise
        log.warning("segment %s, chunk %d: %s; it is fetched", name, piece.chunk, error)
    if isinstance(reader, ReaderElsewhere):
        reader.forget(piece.offset, piece.stored)
    return cipher.open(piece.chunk, source.fetch(name, piece.offset, piece.stored), length=piece.length)


def _cipher(reader: ChunkReader, keyring: Keyring, facts: SegmentFacts) -> SegmentCipher:
    if isinstance(reader, SegmentReader):
        header = SegmentHeader.decode(reader.read(0, HEADER_BYTES))
        if (header.vault_id, header.epoch, header.salt) != (keyring.vault_id, facts.epoch, facts.salt):
            raise IntegrityError(f"segment {facts.name}: its header is not the one that was written; restore it")
    return SegmentCipher(keyring.subkeys(facts.epoch).chunk, keyring.vault_id, facts.salt)
