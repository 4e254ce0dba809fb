"""Giving ``metadata.db`` the current epoch's key, after a rotation has begun a new epoch.

The database is copied into a new file under the new key, and that is renamed over the old one.  It happens while HEAD
says ``open``, so that a mount after a crash believes either file; both are of the same generation.  The old file's WAL
is emptied and gone, durably, before the new file takes its name: SQLite would replay it into any file of that name.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from vaultfs.crypto.keys import Keyring
from vaultfs.ids import KeyEpoch
from vaultfs.metadata.chunk_rows import ChunkRows
from vaultfs.metadata.database import MetadataDatabase
from vaultfs.metadata.rekeying import copy_database
from vaultfs.storage.durable import fsync_directory, storage_errors
from vaultfs.storage.layout import VaultLayout

_NEW_NAME: Final = ".metadata.db.new"


def change_key(layout: VaultLayout, keyring: Keyring, database: MetadataDatabase, epoch: KeyEpoch) -> None:
    """Put the database under the current key; it is closed on return, and the caller opens it again.

    Args:
        layout: where the vault is; HEAD says ``open``.
        keyring: its keys.
        database: open, with nothing but what it holds on disk.
        epoch: of the key that it has.

    Raises:
        NoSpaceError, StorageError, IntegrityError: the database is as before.
    """
    database.checkpoint(truncate=True)
    database.close()
    fsync_directory(layout.root)
    new = layout.root / _NEW_NAME
    _remove(new)
    try:
        copy_database(layout.database, keyring.subkeys(epoch).metadata, new, keyring.current.metadata)
        _finish_copy(new, keyring)
        with storage_errors(f"cannot write {new}"):
            _sync(new)
            os.rename(new, layout.database)  # noqa: PTH104  # os.rename says which call it is
    except BaseException:
        _remove(new)
        raise
    fsync_directory(layout.root)


def _finish_copy(path: Path, keyring: Keyring) -> None:
    """Say in the copy whose key it has, and forget what the old fingerprint key made."""
    copy = MetadataDatabase.open(path, keyring.current.metadata)
    try:
        ChunkRows(copy).forget_fingerprints()
        copy.set_setting("key_epoch", keyring.epoch)
        copy.commit()
        copy.checkpoint(truncate=True)
    finally:
        copy.close()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    """Remove what an earlier attempt left."""
    for each in (path, Path(f"{path}-wal"), Path(f"{path}-journal")):
        with storage_errors(f"cannot remove {each}"):
            each.unlink(missing_ok=True)
