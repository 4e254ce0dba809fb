"""Creating a vault's directory, and opening a vault: lock, keys, HEAD, database, recovery."""

from __future__ import annotations

import contextlib
import logging
import os
import stat
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from vaultfs.crypto.header import LARGEST_HEADER_BYTES, VaultHeader
from vaultfs.crypto.kdf import KdfParameters
from vaultfs.crypto.keys import Keyring
from vaultfs.crypto.slots import Secret
from vaultfs.errors import IntegrityError, NoSpaceError, NotAVaultError, UsageError
from vaultfs.ids import ROOT_INODE, KeyEpoch
from vaultfs.metadata.database import MetadataDatabase
from vaultfs.metadata.rekeying import key_epoch
from vaultfs.storage.durable import atomic_replace, storage_errors
from vaultfs.storage.layout import VaultLayout
from vaultfs.storage.lock import VaultLock
from vaultfs.vault.adoption_record import load_adoption
from vaultfs.vault.database_key import change_key
from vaultfs.vault.filesystem import FileSystem
from vaultfs.vault.head import Head
from vaultfs.vault.tree import FIRST_COOKIE

if TYPE_CHECKING:
    from collections.abc import Callable

    from vaultfs.storage.segment_source import SegmentSource

log = logging.getLogger(__name__)

DEFAULT_CHUNK_BYTES: Final = 128 << 10
SMALLEST_CHUNK_BYTES: Final = 4 << 10
LARGEST_CHUNK_BYTES: Final = 4 << 20


def load_header(layout: VaultLayout) -> VaultHeader:
    """Read ``vault.json``.

    Raises:
        NotAVaultError, FormatTooNewError, IntegrityError, StorageError: it is missing or cannot be used.
    """
    layout.require_vault()
    with storage_errors(f"cannot read {layout.header}"):
        descriptor = os.open(layout.header, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise NotAVaultError(f"{layout.header} is not a regular file")
            data = b""
            while len(data) <= LARGEST_HEADER_BYTES and (piece := os.read(descriptor, 65536)):
                data += piece
        finally:
            os.close(descriptor)
    return VaultHeader.decode(data)


def create_vault(
    path: str | os.PathLike[str],
    secret: Secret,
    *,
    chunk_size_bytes: int = DEFAULT_CHUNK_BYTES,
    compression: Literal["none", "zstd"] = "none",
    kdf_memory_kib: int | None = None,
    kdf: KdfParameters | None = None,
    label: str = "password",
) -> None:
    """Create a vault in a directory that is new or empty; durable on return, or not there.

    Args:
        path: the directory.
        secret: opens it.
        chunk_size_bytes: a power of two from 4 KiB to 4 MiB.
        compression: of chunks.
        kdf_memory_kib: memory of the key derivation; calibrated to about a second if None.
        kdf: all parameters of the key derivation, instead.
        label: of the first key slot.

    Raises:
        UsageError: arguments are out of bounds, or the directory is not empty.
        NoSpaceError, StorageError: the disk refused; what was made so far is removed.
    """
    size = chunk_size_bytes
    if not SMALLEST_CHUNK_BYTES <= size <= LARGEST_CHUNK_BYTES or size & (size - 1):
        raise UsageError(f"a chunk size of {size} bytes: it must be a power of two from 4 KiB to 4 MiB")
    if compression not in {"none", "zstd"}:
        raise UsageError(f"compression {compression!r}: it is none or zstd")
    layout = VaultLayout(Path(path))
    if layout.root.exists() and (not layout.root.is_dir() or any(layout.root.iterdir())):
        raise UsageError(f"{layout.root} is not an empty directory; a vault needs one of its own")
    header, keyring = VaultHeader.create(
        secret, label=label, kdf=KdfParameters.calibrate(kdf_memory_kib) if kdf is None else kdf
    )
    is_new = not layout.root.exists()
    try:
        layout.create_directories()
        _create_database(layout, keyring, chunk_size=size, is_compressing=compression == "zstd")
        Head(layout, keyring).write_clean(1, manifest_hash=None)
        # Last, because this file makes the directory a vault.
        atomic_replace(layout.header, header.encode())
    except BaseException:
        _remove_unfinished(layout, is_new=is_new)
        raise


def _create_database(layout: VaultLayout, keyring: Keyring, *, chunk_size: int, is_compressing: bool) -> None:
    settings: dict[str, int | bytes] = {
        "generation": 1,
        "next_inode": ROOT_INODE + 1,
        "next_chunk": 1,
        "next_cookie": FIRST_COOKIE,
        "chunk_size": chunk_size,
        "is_compressing": int(is_compressing),
        "snapshot_seq": 0,
    }
    MetadataDatabase.create(layout.database, keyring.current.metadata, settings)
    database = MetadataDatabase.open(layout.database, keyring.current.metadata)
    try:
        now_ns = time.time_ns()
        database.execute(
            "INSERT INTO inode VALUES (?,?,?,?,2,0,0,?,?,?,0,NULL,?)",
            (ROOT_INODE, stat.S_IFDIR | 0o755, os.getuid(), os.getgid(), now_ns, now_ns, now_ns, ROOT_INODE),
        )
        database.commit()
        database.sync_wal()
        database.checkpoint(truncate=True)
    finally:
        database.close()


def _remove_unfinished(layout: VaultLayout, *, is_new: bool) -> None:
    for path in (layout.header, layout.head, layout.database, Path(f"{layout.database}-wal")):
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
    for directory in (layout.open_segments, layout.segments, layout.heads, *([layout.root] if is_new else [])):
        with contextlib.suppress(OSError):
            directory.rmdir()


def open_database(layout: VaultLayout, keyring: Keyring, *, immutable: bool = False) -> MetadataDatabase:
    """Open the database with the newest key that fits: a rotation may have stopped before it got there.

    Raises:
        IntegrityError: no key opens it.
    """
    return _open_with_epoch(layout, keyring, immutable=immutable)[0]


def _open_with_epoch(
    layout: VaultLayout, keyring: Keyring, *, immutable: bool = False
) -> tuple[MetadataDatabase, KeyEpoch]:
    """As `open_database`; with the epoch whose key fits."""
    oldest, *newer = keyring.epochs
    for epoch in reversed(newer):
        with contextlib.suppress(IntegrityError):
            return MetadataDatabase.open(layout.database, keyring.subkeys(epoch).metadata, immutable=immutable), epoch
    return MetadataDatabase.open(layout.database, keyring.subkeys(oldest).metadata, immutable=immutable), oldest


def open_filesystem(
    path: str | os.PathLike[str],
    secret: Secret,
    *,
    read_only: bool = False,
    lock_wait_s: float = 0.0,
    purpose: str = "",
    on_unlocked: Callable[[], None] | None = None,
    source: SegmentSource | None = None,
) -> FileSystem:
    """Open a vault, recovering from a crash if need be.

    Args:
        path: the vault's directory.
        secret: opens a key slot.
        read_only: change nothing on disk but the lock.
        lock_wait_s: how long to wait for another process to finish.
        purpose: shown to others that want the vault.
        on_unlocked: called once the key derivation is done.
        source: has segments that are missing or damaged here.

    Raises:
        NotAVaultError, FormatTooNewError, WrongPasswordError, VaultLockedError: as their names say.
        IntegrityError, RollbackError: what lies there is not what was written last.
        NoSpaceError, StorageError: the disk failed.
    """
    layout = VaultLayout(Path(path))
    header = load_header(layout)
    lock = VaultLock.acquire(layout, purpose=purpose, wait_s=lock_wait_s)
    try:
        # Read again: who held the lock may have changed a slot.
        header = load_header(layout)
        keyring = header.unlock(secret)
        if on_unlocked is not None:
            on_unlocked()
        return open_unlocked(layout, keyring, lock, read_only=read_only, source=source)
    except BaseException:
        lock.release()
        raise


def open_unlocked(
    layout: VaultLayout,
    keyring: Keyring,
    lock: VaultLock,
    *,
    read_only: bool,
    source: SegmentSource | None = None,
) -> FileSystem:
    """Open a vault whose header was unlocked.

    Args:
        layout: where the vault is.
        keyring: its keys.
        lock: held; the filesystem gives it up, unless this raises.
        read_only: change nothing on disk.
        source: has segments that are missing or damaged here.

    Raises:
        VaultError: as :func:`open_filesystem`.
    """
    head = Head(layout, keyring)
    record = head.load()
    head.verify_database()
    database, epoch = _open_with_epoch(layout, keyring)
    try:
        if read_only and record.state != "clean":
            database.keep_log()
        found = database.setting("generation")
        head.verify_generation(found)
        adoption = load_adoption(layout, keyring)
        if adoption is not None and adoption.is_carried_out(database):
            head.record = record = replace(record, manifest_hash=bytes.fromhex(adoption.snapshot_id))
        if not read_only:
            generation = record.generation + 1
            # Before any byte of the database changes, HEAD must say that it will.
            head.write_open(generation, found, manifest_hash=record.manifest_hash)
            if epoch != keyring.epoch:
                database = _under_current_key(layout, keyring, database, epoch)
            elif key_epoch(database) != epoch:
                database.set_setting("key_epoch", epoch)  # it was rebuilt without
            database.set_setting("generation", generation)
            if adoption is not None:
                adoption.settle(layout, keyring, database)
        return FileSystem(layout, keyring, lock, head, database, read_only=read_only, source=source)
    except BaseException:
        database.close()
        raise


def _under_current_key(
    layout: VaultLayout, keyring: Keyring, database: MetadataDatabase, epoch: KeyEpoch
) -> MetadataDatabase:
    """Go on with a rotation: the database gets the current key, if there is room for it; else at a later mount."""
    try:
        change_key(layout, keyring, database, epoch)
    except NoSpaceError as error:
        log.warning("the metadata keeps an older key until there is room to copy it: %s", error)
        database.close()
    return open_database(layout, keyring)
