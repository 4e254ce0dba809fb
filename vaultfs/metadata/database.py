"""The encrypted SQLite file: opening, the standing write transaction, durability.

One connection writes, inside a transaction that is always open; :meth:`MetadataDatabase.commit` ends it and begins the
next.  So whatever the tree and the files do between two commits becomes visible on disk as a whole or not at all.
``synchronous=NORMAL`` leaves the WAL unsynced at COMMIT; :meth:`MetadataDatabase.sync_wal` syncs it, and may run in
another thread, because it touches a file descriptor only.

Not thread-safe but for ``sync_wal``.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, cast

import apsw

from vaultfs.errors import FormatTooNewError, IntegrityError, NoSpaceError, StorageError
from vaultfs.metadata.schema import SCHEMA, SCHEMA_VERSION

WAL_HEADER_BYTES: Final = 32
WAL_FRAME_BYTES: Final = 24 + 4096
WAL_RESERVE_BYTES: Final = 4 << 20

CACHE_KIB: Final = 64 * 1024
"""SQLite's page cache: a third of a database of a million files.  The daemon then takes about 140 of its 200 MiB."""


def database_failures() -> type[Exception]:
    """What statements outside of this module raise when the database fails; callers need not know SQLite."""
    return cast("type[Exception]", apsw.Error)


@contextmanager
def metadata_errors(what: str) -> Iterator[None]:
    """Turn SQLite's errors into ours.

    Args:
        what: the action, for the message.

    Raises:
        NoSpaceError, IntegrityError, StorageError: as SQLite's code says.
    """
    try:
        yield
    except apsw.FullError as error:
        raise NoSpaceError(f"no space for the metadata: {what}; free space on the disk below the vault") from error
    except (apsw.NotADBError, apsw.CorruptError) as error:
        raise IntegrityError(f"metadata.db is damaged or not of this vault: {what}; run vaultfs fsck") from error
    except apsw.Error as error:
        raise StorageError(f"metadata.db: {what}: {error}") from error


def _connect(path: Path, key: bytes, *, flags: int, immutable: bool) -> apsw.Connection:
    uri = f"file:{_uri_quote(path)}" + ("?immutable=1" if immutable else "")
    connection = apsw.Connection(uri, flags=flags | apsw.SQLITE_OPEN_URI, statementcachesize=256)
    connection.execute("PRAGMA cipher='aegis'")
    connection.execute(f"PRAGMA key='raw:{key.hex()}'")
    connection.execute("PRAGMA temp_store=MEMORY")
    connection.execute(f"PRAGMA cache_size=-{CACHE_KIB}")
    return connection


def _uri_quote(path: Path) -> str:
    from urllib.parse import quote  # noqa: PLC0415  # 8 ms of imports that only this call needs

    return quote(os.fsencode(path.absolute()))


class MetadataDatabase:
    """An open ``metadata.db``.  Made by :meth:`create` and :meth:`open`."""

    def __init__(self, connection: apsw.Connection, path: Path, *, writable: bool) -> None:
        self._connection = connection
        self._path = path
        self._writable = writable
        self._wal_fd = -1
        self._wal_end = 0
        self._wal_reserved = 0
        connection.set_wal_hook(self._note_wal)
        self._image_fd = -1
        self._is_closed = False
        self.execute = connection.execute
        self.executemany = connection.executemany

    @classmethod
    def create(cls, path: Path, key: bytes, settings: dict[str, int | bytes]) -> None:
        """Make a new database with ``settings`` and nothing else, durable in one file.

        Args:
            path: must not exist.
            key: 32 bytes.
            settings: rows for the table ``setting``.

        Raises:
            StorageError: the file cannot be written.
        """
        with metadata_errors(f"create {path.name}"):
            flags = apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_CREATE
            connection = _connect(path, key, flags=flags, immutable=False)
            try:
                os.chmod(path, 0o600)  # noqa: PTH101
                connection.execute("PRAGMA page_size=4096")
                connection.execute("PRAGMA locking_mode=EXCLUSIVE")
                connection.execute("PRAGMA journal_mode=WAL")
                connection.execute("BEGIN IMMEDIATE")
                connection.execute(SCHEMA)
                connection.execute(f"PRAGMA user_version={SCHEMA_VERSION}")
                connection.executemany("INSERT INTO setting VALUES (?, ?)", settings.items())
                connection.execute("COMMIT")
                connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            finally:
                connection.close()

    @classmethod
    def open(cls, path: Path, key: bytes, *, immutable: bool = False) -> MetadataDatabase:
        """Open an existing database and begin the standing transaction.

        Args:
            path: the file.
            key: 32 bytes.
            immutable: never write, not even a lock; for images of snapshots.

        Raises:
            IntegrityError: the key does not open it, or it is damaged.
            FormatTooNewError: a newer vaultfs wrote it.
        """
        if not path.is_file() or path.is_symlink():
            raise IntegrityError(f"{path} is missing or not a regular file; restore it, or run vaultfs fsck --repair")
        flags = apsw.SQLITE_OPEN_READONLY if immutable else apsw.SQLITE_OPEN_READWRITE
        with metadata_errors("open"):
            connection = _connect(path, key, flags=flags, immutable=immutable)
        try:
            with metadata_errors("open"):
                version = cast("int", connection.pragma("user_version"))
                if version > SCHEMA_VERSION:
                    raise FormatTooNewError(f"metadata.db has schema {version}; this vaultfs knows {SCHEMA_VERSION}")
                if version != SCHEMA_VERSION:
                    raise IntegrityError(f"metadata.db has schema {version}, which no vaultfs wrote")
                if not immutable:
                    # The vault's own lock excludes others, so the WAL's index need not be a shared file.
                    connection.execute("PRAGMA locking_mode=EXCLUSIVE")
                    connection.execute("PRAGMA synchronous=NORMAL")
                    connection.execute("PRAGMA wal_autocheckpoint=0")
                database = cls(connection, path, writable=not immutable)
                database.begin()
        except BaseException:
            connection.close()
            raise
        return database

    # --- transactions

    def begin(self) -> None:
        """Begin the standing transaction."""
        self.execute("BEGIN IMMEDIATE" if self._writable else "BEGIN")

    def commit(self) -> None:
        """Write the transaction to the WAL and begin the next one.  Not durable before :meth:`sync_wal`.

        Raises:
            NoSpaceError, StorageError: nothing was committed.
        """
        with metadata_errors("commit"):
            self.execute("COMMIT")
            self.begin()

    def rollback(self) -> None:
        """Forget everything since the last commit, and begin anew."""
        with metadata_errors("rollback"):
            if self._connection.in_transaction:
                self.execute("ROLLBACK")
            self.begin()

    def sync_wal(self) -> None:
        """Make all commits so far durable.  May run in any thread.

        Raises:
            StorageError: the disk failed; what was committed since the last success may be lost.
        """
        try:
            if self._wal_fd < 0:
                self._wal_fd = os.open(f"{self._path}-wal", os.O_RDONLY | os.O_CLOEXEC)
                # The WAL's name in its directory is as new as the mount.
                directory = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                try:
                    os.fsync(directory)
                finally:
                    os.close(directory)
            os.fdatasync(self._wal_fd)
        except OSError as error:
            raise StorageError(f"cannot sync {self._path.name}-wal: {error.strerror}") from error

    def _note_wal(self, _connection: apsw.Connection, _name: str, frames: int) -> int:
        """SQLite tells, after each commit, how many frames the WAL holds."""
        self._wal_end = WAL_HEADER_BYTES + frames * WAL_FRAME_BYTES
        return apsw.SQLITE_OK

    def wal_bytes(self) -> int:
        """Bytes of the WAL that hold commits."""
        return self._wal_end

    def reserve_wal(self) -> None:
        """Lengthen the WAL by zeros, right after a commit, so that the commits to come do not change its size.

        Then a sync of the WAL need not commit the file system's own journal: 4 KiB and fsync took 0.58 ms on ext4
        before.  SQLite takes zeros for frames of another WAL and ignores them.

        Raises:
            NoSpaceError, StorageError: the disk is full or failed; the commit stands.
        """
        if self._wal_end + WAL_RESERVE_BYTES // 4 <= self._wal_reserved:
            return
        try:
            descriptor = os.open(f"{self._path}-wal", os.O_WRONLY | os.O_CLOEXEC)
            try:
                size = os.fstat(descriptor).st_size
                self._wal_reserved = max(size, self._wal_end + WAL_RESERVE_BYTES)
                while size < self._wal_reserved:
                    size += os.pwrite(descriptor, bytes(self._wal_reserved - size), size)
            finally:
                os.close(descriptor)
        except OSError as error:
            self._wal_reserved = 0
            kind = NoSpaceError if error.errno in {errno.ENOSPC, errno.EDQUOT} else StorageError
            raise kind(f"cannot lengthen {self._path.name}-wal: {error.strerror}") from error

    def checkpoint(self, *, truncate: bool = True) -> None:
        """Move the WAL's pages into the file, durably, and begin the WAL anew.  Call right after a commit.

        Args:
            truncate: give the WAL's room back; otherwise it is written over.

        Raises:
            StorageError: the disk failed.
        """
        with metadata_errors("checkpoint"):
            self.execute("COMMIT")
            try:
                mode = "TRUNCATE" if truncate else "RESTART"
                busy, _, _ = cast("tuple[int, int, int]", self.execute(f"PRAGMA wal_checkpoint({mode})").fetchone())
                self._wal_end = 0
                if truncate:
                    self._wal_reserved = 0
            finally:
                self.begin()
            if busy:
                raise StorageError("metadata.db: another process reads the vault's metadata; the WAL was not emptied")

    # --- the file as of the last checkpoint

    def image_bytes(self) -> int:
        """The size of the database file.  Any thread, while nobody checkpoints.

        Raises:
            StorageError: the disk failed.
        """
        try:
            if self._image_fd < 0:
                # Kept until the database is closed: closing any descriptor of a file drops SQLite's locks on it.
                self._image_fd = os.open(self._path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            return os.fstat(self._image_fd).st_size
        except OSError as error:
            raise StorageError(f"cannot read {self._path.name}: {error.strerror}") from error

    def read_image(self, offset: int, length: int) -> bytes:
        """Bytes of the database file, encrypted as they are; all of them are there.  Any thread, after `image_bytes`.

        Raises:
            StorageError: the disk failed.
        """
        data = b""
        try:
            while len(data) < length:
                piece = os.pread(self._image_fd, length - len(data), offset + len(data))
                if not piece:
                    raise StorageError(f"{self._path.name} ends before byte {offset + length}: something cut it")
                data += piece
        except OSError as error:
            raise StorageError(f"cannot read {self._path.name}: {error.strerror}") from error
        return data

    def close(self) -> None:
        """Forget what was not committed and close the file.  Doing it twice is harmless."""
        if self._is_closed:
            return
        self._is_closed = True
        with metadata_errors("close"):
            if self._connection.in_transaction:
                self.execute("ROLLBACK")
            self._connection.close()
        if self._wal_fd >= 0:
            os.close(self._wal_fd)
            self._wal_fd = -1
        if self._image_fd >= 0:
            os.close(self._image_fd)
            self._image_fd = -1

    def keep_log(self) -> None:
        """Leave the file and its WAL as they are at `close`: for those who only read.

        SQLite would move the WAL into the file, if there is one.
        """
        self._connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)

    @property
    def is_intact(self) -> bool:
        """Whether the standing transaction is still there; some failures make SQLite roll it back."""
        return self._connection.in_transaction

    def changes(self) -> int:
        """Rows changed so far in the life of this connection."""
        return self._connection.total_changes()

    # --- settings and checks

    def setting(self, name: str) -> int:
        """The integer setting ``name``.

        Raises:
            IntegrityError: there is none.
        """
        value = self.scalar("SELECT value FROM setting WHERE name=?", (name,))
        if not isinstance(value, int):
            raise IntegrityError(f"metadata.db has no setting {name}; run vaultfs fsck")
        return value

    def set_setting(self, name: str, value: int) -> None:
        """Store an integer setting."""
        self.execute("INSERT OR REPLACE INTO setting VALUES (?, ?)", (name, value))

    def scalar(self, sql: str, bindings: tuple[Any, ...] = ()) -> Any:
        """The first column of the first row, or None."""
        row = self.execute(sql, bindings).fetchone()
        return None if row is None else row[0]

    def rows(self, sql: str, bindings: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
        """All rows."""
        return self.execute(sql, bindings).fetchall()

    def integrity_problems(self) -> list[str]:
        """What SQLite's own check of pages and indexes finds."""
        try:
            found = [str(row[0]) for row in self.rows("PRAGMA integrity_check(100)")]
        except apsw.Error as error:
            return [f"a page cannot be read: {error}"]
        return [line for line in found if line != "ok"]

    def many(self, sql: str, rows: Iterable[tuple[Any, ...]]) -> None:
        """Execute ``sql`` for each row."""
        self.executemany(sql, rows)

    @property
    def path(self) -> Path:
        """The database's file."""
        return self._path
