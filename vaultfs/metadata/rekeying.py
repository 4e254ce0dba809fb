"""Copying ``metadata.db`` into a file under another key."""

from __future__ import annotations

from pathlib import Path

import apsw

from vaultfs.metadata.database import (
    MetadataDatabase,
    _connect,
    metadata_errors,
)

_COPIED_PAGES = 4096
"""At once; 16 MiB."""


def copy_database(source: Path, source_key: bytes, target: Path, target_key: bytes) -> None:
    """Copy a database page by page, encrypting it anew.  Not durable on return.

    Args:
        source: the file; nobody has it open, and it has no WAL.
        source_key: 32 bytes.
        target: must not exist.
        target_key: 32 bytes.

    Raises:
        IntegrityError: a page of the source is damaged; the target is no use.
        NoSpaceError, StorageError: likewise.
    """
    with metadata_errors(f"copy it to {target.name}"):
        # Immutable: it makes neither a WAL nor a lock beside the source.
        reader = _connect(source, source_key, flags=apsw.SQLITE_OPEN_READONLY, immutable=True)
        try:
            flags = apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_CREATE
            writer = _connect(target, target_key, flags=flags, immutable=False)
            try:
                target.chmod(0o600)
                writer.execute("PRAGMA page_size=4096")
                # A crash leaves a file that is thrown away, so no journal has to undo anything.
                writer.execute("PRAGMA journal_mode=OFF")
                writer.execute("PRAGMA synchronous=OFF")
                with writer.backup("main", reader, "main") as backup:
                    while not backup.done:
                        backup.step(_COPIED_PAGES)
            finally:
                writer.close()
        finally:
            reader.close()


def key_epoch(database: MetadataDatabase) -> int:
    """The epoch of the key that a database is encrypted with; the setting ``key_epoch``, 1 where there is none."""
    value = database.scalar("SELECT value FROM setting WHERE name='key_epoch'")
    return value if isinstance(value, int) else 1
