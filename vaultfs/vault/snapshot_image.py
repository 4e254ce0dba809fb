"""Open a snapshot: its database image put together again, and the vault as it was then, read-only.

This needs the header, the manifest and segments, but neither the vault's lock nor its present database: a snapshot can
be mounted beside the vault.  Every piece of the image is authenticated by its chunk's key, number and length, which the
signed manifest gives; every chunk of a file then as always.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from vaultfs.crypto.aead import OVERHEAD_BYTES, SegmentCipher
from vaultfs.crypto.compression import decompress
from vaultfs.crypto.keys import Keyring
from vaultfs.crypto.slots import Secret
from vaultfs.errors import IntegrityError
from vaultfs.metadata.database import MetadataDatabase
from vaultfs.storage.durable import storage_errors
from vaultfs.storage.layout import VaultLayout
from vaultfs.storage.segment_cache import SegmentCache
from vaultfs.storage.segment_format import HEADER_BYTES, SegmentHeader
from vaultfs.storage.segment_reader import SegmentReader
from vaultfs.storage.segment_source import SegmentSource
from vaultfs.vault.filesystem import FileSystem
from vaultfs.vault.head import Head
from vaultfs.vault.opening import load_header
from vaultfs.vault.segments import ChunkReader, ReaderElsewhere
from vaultfs.vault.snapshot_manifest import (
    SegmentFacts,
    SnapshotContent,
    SnapshotHold,
    choose,
    manifest_files,
    open_manifest,
)
from vaultfs.vault.snapshots import open_image


def open_snapshot(
    path: str | os.PathLike[str], secret: Secret, which: str | int, *, on_unlocked: Callable[[], None] | None = None
) -> FileSystem:
    """Open a snapshot of a vault, read-only; the vault may be mounted meanwhile.

    The snapshot cannot be deleted before the result is closed.

    Args:
        path: the vault's directory.
        secret: opens a key slot.
        which: the snapshot's number, or the beginning of its id.
        on_unlocked: called once the key derivation is done.

    Raises:
        NotAVaultError, FormatTooNewError, WrongPasswordError: as their names say.
        UsageError: there is no such snapshot.
        VaultLockedError: it is being deleted.
        IntegrityError: its manifest, or a piece of its image, is not what was written.
        NoSpaceError, StorageError: the disk failed, or has no room for the image.
    """
    layout = VaultLayout(Path(path))
    header = load_header(layout)
    choose(which, manifest_files(layout))  # before a second is spent on the password
    keyring = header.unlock(secret)
    if on_unlocked is not None:
        on_unlocked()
    return open_with_keys(layout, keyring, which)


def open_with_keys(layout: VaultLayout, keyring: Keyring, which: str | int) -> FileSystem:
    """As `open_snapshot`, for who has the keys already."""
    seq, snapshot_id = choose(which, manifest_files(layout))
    hold = SnapshotHold.take(layout, seq, snapshot_id, is_exclusive=False)
    try:
        _, content = open_manifest(keyring, hold.data, seq, snapshot_id)
        database = _open_database(layout, keyring, content)
        try:
            return FileSystem(layout, keyring, hold, Head(layout, keyring), database, read_only=True)
        except BaseException:
            database.close()
            raise
    except BaseException:
        hold.release()
        raise


def _open_database(layout: VaultLayout, keyring: Keyring, content: SnapshotContent) -> MetadataDatabase:
    """The image in a file that has no name any more when this returns, so that nothing is left behind."""
    with storage_errors("cannot make a temporary file for the snapshot's metadata"):
        directory = Path(tempfile.mkdtemp(prefix="vaultfs-snapshot-"))
    path = directory / "image.db"
    try:
        with storage_errors(f"cannot write the snapshot's metadata to {path}"), path.open("xb") as file:
            for piece in image_pieces(layout, keyring, content):
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
                sealed = reader.read(piece.offset, piece.stored)
                data = cipher.open(piece.chunk, sealed, length=piece.length)
                yield decompress(data, piece.length) if piece.stored < piece.length + OVERHEAD_BYTES else data
            except IntegrityError as error:
                raise IntegrityError(f"snapshot {content.seq}: piece {index} of its metadata: {error}") from error
    finally:
        if reader is not None:
            reader.close()


def _cipher(reader: ChunkReader, keyring: Keyring, facts: SegmentFacts) -> SegmentCipher:
    header = SegmentHeader.decode(reader.read(0, HEADER_BYTES))
    if (header.vault_id, header.epoch, header.salt) != (keyring.vault_id, facts.epoch, facts.salt):
        raise IntegrityError(f"segment {facts.name}: its header is not the one that was written; restore it")
    return SegmentCipher(keyring.subkeys(facts.epoch).chunk, keyring.vault_id, facts.salt)
