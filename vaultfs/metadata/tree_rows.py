"""Queries on inodes, names, extended attributes and orphans.

Thin on purpose: one function, one statement, no rules.  What the rows mean is decided in ``vaultfs.vault``.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, NamedTuple, cast

from vaultfs.ids import InodeId
from vaultfs.metadata.database import MetadataDatabase

_COLUMNS: Final = "id, mode, uid, gid, nlink, size, rdev, atime_ns, mtime_ns, ctime_ns, chunks, target, parent"

_SELECT_INODE: Final = f"SELECT {_COLUMNS} FROM inode WHERE id=?"  # noqa: S608  # constants only
_UPSERT_INODE: Final = f"INSERT OR REPLACE INTO inode ({_COLUMNS}) VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?)"  # noqa: S608
_LISTING: Final = "SELECT cookie, name, inode FROM entry WHERE parent=? AND cookie>? ORDER BY cookie LIMIT ?"


class InodeRow(NamedTuple):
    """A row of ``inode``; the schema says what the columns mean."""

    id: InodeId
    mode: int
    uid: int
    gid: int
    nlink: int
    size: int
    rdev: int
    atime_ns: int
    mtime_ns: int
    ctime_ns: int
    chunks: int
    target: bytes | None
    parent: InodeId


class TreeRows:
    """The tables ``inode``, ``entry``, ``xattr`` and ``orphan``."""

    def __init__(self, database: MetadataDatabase) -> None:
        self._execute = database.execute
        self._many = database.executemany

    # --- inodes

    def inode(self, number: InodeId) -> InodeRow | None:
        """The row of an inode."""
        row = self._execute(_SELECT_INODE, (number,)).fetchone()
        return None if row is None else InodeRow._make(row)

    def put_inodes(self, rows: Iterable[InodeRow]) -> None:
        """Insert or replace rows."""
        self._many(_UPSERT_INODE, rows)

    def delete_inode(self, number: InodeId) -> None:
        """Delete an inode and its extended attributes."""
        self._execute("DELETE FROM inode WHERE id=?", (number,))
        self._execute("DELETE FROM xattr WHERE inode=?", (number,))

    def totals(self) -> tuple[int, int]:
        """Number of inodes that have a name, and the sum of the sizes of regular files in bytes."""
        row = self._execute(
            "SELECT coalesce(sum(size), 0) FROM inode WHERE mode & 61440 = 32768 AND nlink>0"
        ).fetchall()[0]
        count = self._execute("SELECT count(*) FROM inode WHERE nlink>0").fetchall()[0]
        return cast("int", count[0]), cast("int", row[0])

    # --- names

    def entry(self, parent: InodeId, name: bytes) -> InodeId | None:
        """The inode behind a name, without its row."""
        row = self._execute("SELECT inode FROM entry WHERE parent=? AND name=?", (parent, name)).fetchone()
        return None if row is None else row[0]

    def insert_entry(self, parent: InodeId, name: bytes, inode: InodeId, cookie: int) -> None:
        """Add a name, which must not exist."""
        self._execute("INSERT INTO entry VALUES (?,?,?,?)", (parent, name, inode, cookie))

    def delete_entry(self, parent: InodeId, name: bytes) -> None:
        """Remove a name."""
        self._execute("DELETE FROM entry WHERE parent=? AND name=?", (parent, name))

    def point_entry(self, parent: InodeId, name: bytes, inode: InodeId) -> None:
        """Let an existing name refer to another inode."""
        self._execute("UPDATE entry SET inode=? WHERE parent=? AND name=?", (inode, parent, name))

    def has_entries(self, parent: InodeId) -> bool:
        """Whether a directory has a name in it."""
        return self._execute("SELECT 1 FROM entry WHERE parent=? LIMIT 1", (parent,)).fetchone() is not None

    def listing(self, parent: InodeId, after_cookie: int, limit: int) -> list[tuple[int, bytes, InodeId]]:
        """At most ``limit`` (cookie, name, inode) in order of cookie, after ``after_cookie``."""
        return cast(
            "list[tuple[int, bytes, InodeId]]", self._execute(_LISTING, (parent, after_cookie, limit)).fetchall()
        )

    def names_of(self, inode: InodeId) -> list[tuple[InodeId, bytes]]:
        """Every (parent, name) of an inode; reads the whole table."""
        return cast(
            "list[tuple[InodeId, bytes]]",
            self._execute("SELECT parent, name FROM entry WHERE inode=?", (inode,)).fetchall(),
        )

    # --- extended attributes

    def xattr(self, inode: InodeId, name: bytes) -> bytes | None:
        """The value of an attribute."""
        row = self._execute("SELECT value FROM xattr WHERE inode=? AND name=?", (inode, name)).fetchone()
        return None if row is None else cast("bytes", row[0])

    def xattr_names(self, inode: InodeId) -> list[bytes]:
        """The names of an inode's attributes."""
        return [row[0] for row in self._execute("SELECT name FROM xattr WHERE inode=?", (inode,))]

    def put_xattr(self, inode: InodeId, name: bytes, value: bytes) -> None:
        """Set an attribute."""
        self._execute("INSERT OR REPLACE INTO xattr VALUES (?,?,?)", (inode, name, value))

    def delete_xattr(self, inode: InodeId, name: bytes) -> None:
        """Remove an attribute."""
        self._execute("DELETE FROM xattr WHERE inode=? AND name=?", (inode, name))

    def any_xattr(self) -> bool:
        """Whether any inode has an attribute."""
        return self._execute("SELECT 1 FROM xattr LIMIT 1").fetchone() is not None

    # --- orphans

    def put_orphans(self, inodes: Iterable[InodeId]) -> None:
        """Remember inodes that have no name but are not gone yet."""
        self._many("INSERT OR IGNORE INTO orphan VALUES (?)", ((inode,) for inode in inodes))

    def orphans(self) -> list[InodeId]:
        """The remembered ones."""
        return [row[0] for row in self._execute("SELECT inode FROM orphan")]

    def delete_orphan(self, inode: InodeId) -> None:
        """Forget one."""
        self._execute("DELETE FROM orphan WHERE inode=?", (inode,))
