"""Queries for checking and repairing the tree: inodes, names, link counts, sizes, orphans, counters.

Thin on purpose: one function, one statement, no rules.  Each looks at a whole table, so none is for everyday use.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final, NamedTuple, cast

from vaultfs.ids import InodeId
from vaultfs.metadata.database import MetadataDatabase

_TYPE: Final = "& 61440"  # S_IFMT
_IS_DIRECTORY: Final = f"mode {_TYPE} = 16384"
_IS_FILE: Final = f"mode {_TYPE} = 32768"
_IS_SYMLINK: Final = f"mode {_TYPE} = 40960"
_INTEGERS: Final = (
    "mode",
    "uid",
    "gid",
    "nlink",
    "size",
    "rdev",
    "atime_ns",
    "mtime_ns",
    "ctime_ns",
    "chunks",
    "parent",
)
_NO_INTEGERS: Final = " OR ".join(f"typeof({column}) <> 'integer'" for column in _INTEGERS)
_AS_INTEGERS: Final = ", ".join(f"{column}=CAST({column} AS INTEGER)" for column in _INTEGERS)


class EntryRow(NamedTuple):
    """A row of ``entry``."""

    parent: InodeId
    name: bytes
    inode: InodeId
    cookie: int


class Count(NamedTuple):
    """A number that is stored, and what it ought to be."""

    id: int
    stored: int
    right: int


class Used(NamedTuple):
    """An extent that names a chunk, and the length of the chunk in bytes (None: there is no such chunk)."""

    chunk: int
    inode: InodeId
    idx: int
    length: int | None


class CheckRows:
    """What fsck asks of the tree's tables."""

    def __init__(self, database: MetadataDatabase) -> None:
        self._database = database
        self._execute = database.execute
        self._rows = database.rows
        self._has_names = False

    # --- paths, for messages

    def index_names(self) -> None:
        """Remember who has which name now, for `names_of`; in memory, and gone with the connection."""
        self._execute("DROP TABLE IF EXISTS temp.fsck_name")
        self._execute("CREATE TEMP TABLE fsck_name AS SELECT inode, parent, name FROM entry")
        self._execute("CREATE INDEX temp.fsck_name_inode ON fsck_name (inode)")
        self._has_names = True

    def names_of(self, inode: InodeId) -> list[tuple[InodeId, bytes]]:
        """At most 16 of the (parent, name) of an inode at the time of `index_names`, which is called if it was not."""
        if not self._has_names:
            self.index_names()
        return cast(
            "list[tuple[InodeId, bytes]]",
            self._rows("SELECT parent, CAST(name AS BLOB) FROM temp.fsck_name WHERE inode=? LIMIT 16", (inode,)),
        )

    def users_of_chunks(self, chunks: Iterable[int]) -> list[Used]:
        """The extents that name any of these chunks, in order of inode and index; one walk over all extents."""
        self._execute("CREATE TEMP TABLE IF NOT EXISTS fsck_wanted (chunk INTEGER PRIMARY KEY)")
        self._execute("DELETE FROM temp.fsck_wanted")
        self._database.many("INSERT OR IGNORE INTO temp.fsck_wanted VALUES (?)", ((chunk,) for chunk in chunks))
        if self._database.scalar("SELECT 1 FROM temp.fsck_wanted") is None:
            return []
        return list(
            map(
                Used._make,
                self._rows(
                    "SELECT e.chunk, e.inode, e.idx, c.length FROM extent e "
                    "CROSS JOIN temp.fsck_wanted w ON w.chunk=e.chunk LEFT JOIN chunk c ON c.id=e.chunk "
                    "ORDER BY e.inode, e.idx"
                ),
            )
        )

    # --- inodes

    def inodes_of_wrong_type(self) -> list[InodeId]:
        """Inodes with a column that holds something else than it is declared to."""
        return self._ids(
            f"SELECT id FROM inode WHERE {_NO_INTEGERS} OR (target IS NOT NULL AND typeof(target) <> 'blob')"  # noqa: S608
        )

    def cast_inode(self, inode: InodeId) -> None:
        """Make a row's columns what they are declared to be."""
        self._execute(f"UPDATE inode SET {_AS_INTEGERS}, target=CAST(target AS BLOB) WHERE id=?", (inode,))  # noqa: S608

    def inodes_of_no_kind(self) -> list[tuple[InodeId, int, int]]:
        """(inode, mode, 1 if it has names in it) where the mode names no type of file."""
        return cast(
            "list[tuple[InodeId, int, int]]",
            self._rows(
                "SELECT id, mode, EXISTS(SELECT 1 FROM entry WHERE parent=inode.id) FROM inode "  # noqa: S608
                f"WHERE (mode {_TYPE}) NOT IN (4096, 8192, 16384, 24576, 32768, 40960, 49152) "
                "OR mode NOT BETWEEN 0 AND 65535"
            ),
        )

    def set_mode(self, inode: InodeId, mode: int) -> None:
        """Set type and permissions."""
        self._execute("UPDATE inode SET mode=? WHERE id=?", (mode, inode))

    def bad_sizes(self, largest: int) -> list[tuple[InodeId, int, int, int | None]]:
        """(inode, mode, size, length of the target) where the size cannot be; ``largest``: bytes of a file."""
        return cast(
            "list[tuple[InodeId, int, int, int | None]]",
            self._rows(
                "SELECT id, mode, size, length(target) FROM inode WHERE size<0 "  # noqa: S608
                f"OR ({_IS_FILE} AND size>?) OR ({_IS_DIRECTORY} AND size<>0) "
                f"OR ({_IS_SYMLINK} AND (target IS NULL OR size<>length(target) "
                "OR length(target) NOT BETWEEN 1 AND 4095)) "
                f"OR (NOT ({_IS_SYMLINK}) AND target IS NOT NULL)",
                (largest,),
            ),
        )

    def set_size(self, inode: InodeId, size: int) -> None:
        """Set a size in bytes."""
        self._execute("UPDATE inode SET size=? WHERE id=?", (size, inode))

    def set_target(self, inode: InodeId, target: bytes | None) -> None:
        """Set what a symlink leads to, and with it its size."""
        self._execute("UPDATE inode SET target=?1, size=coalesce(length(?1), size) WHERE id=?2", (target, inode))

    def chunk_counts(self) -> list[Count]:
        """Inodes whose number of extents is not what their row says."""
        return self._counts(
            "SELECT i.id, i.chunks, coalesce(n, 0) FROM inode i "
            "LEFT JOIN (SELECT inode, count(*) AS n FROM extent GROUP BY inode) u ON u.inode=i.id "
            "WHERE i.chunks <> coalesce(n, 0)"
        )

    def set_chunk_count(self, inode: int, chunks: int) -> None:
        """Set the number of extents."""
        self._execute("UPDATE inode SET chunks=? WHERE id=?", (chunks, inode))

    def copy_inode(self, inode: InodeId, new: InodeId, size: int) -> None:
        """Add a regular file with the attributes of another inode, one name, another size, and no extents yet."""
        self._execute(
            "INSERT INTO inode (id, mode, uid, gid, nlink, size, rdev, atime_ns, mtime_ns, ctime_ns, chunks, target, "
            "parent) SELECT ?2, 32768 | (mode & 511), uid, gid, 1, ?3, 0, atime_ns, mtime_ns, ctime_ns, 0, NULL, 0 "
            "FROM inode WHERE id=?1",
            (inode, new, size),
        )

    def extents_of_non_files(self) -> list[tuple[InodeId, int]]:
        """(inode, extents) of what has data but is no regular file."""
        return cast(
            "list[tuple[InodeId, int]]",
            self._rows(
                "SELECT e.inode, count(*) FROM extent e JOIN inode i ON i.id=e.inode "  # noqa: S608
                f"WHERE NOT ({_IS_FILE}) GROUP BY e.inode"
            ),
        )

    def extents_without_inode(self) -> list[tuple[InodeId, int]]:
        """(inode, extents) where data belongs to an inode that is not there."""
        return cast(
            "list[tuple[InodeId, int]]",
            self._rows(
                "SELECT e.inode, count(*) FROM extent e LEFT JOIN inode i ON i.id=e.inode WHERE i.id IS NULL "
                "GROUP BY e.inode"
            ),
        )

    # --- names

    def root_kind(self) -> int | None:
        """The mode of the root; None if there is no root."""
        return cast("int | None", self._database.scalar("SELECT mode FROM inode WHERE id=1"))

    def bad_names(self) -> list[EntryRow]:
        """Names that no file may have; the name as bytes."""
        return self._entries(
            "SELECT parent, CAST(name AS BLOB), inode, cookie FROM entry WHERE typeof(name) <> 'blob' "
            "OR length(name) NOT BETWEEN 1 AND 255 OR name IN (x'2e', x'2e2e') "
            "OR instr(name, x'2f') OR instr(name, x'00')"
        )

    def rename(self, parent: InodeId, cookie: int, name: bytes) -> None:
        """Give the entry with this cookie another name."""
        self._execute("UPDATE entry SET name=? WHERE parent=? AND cookie=?", (name, parent, cookie))

    def child(self, parent: InodeId, name: bytes) -> tuple[InodeId, int] | None:
        """(inode, mode) behind a name; None if there is nothing."""
        rows = self._rows(
            "SELECT i.id, i.mode FROM entry e JOIN inode i ON i.id=e.inode WHERE e.parent=? AND e.name=?",
            (parent, name),
        )
        return cast("tuple[InodeId, int]", rows[0]) if rows else None

    def has_name(self, parent: InodeId, name: bytes) -> bool:
        """Whether the name is taken."""
        return self._database.scalar("SELECT 1 FROM entry WHERE parent=? AND name=?", (parent, name)) is not None

    def names_without_inode(self) -> list[EntryRow]:
        """Names that lead nowhere."""
        return self._entries(
            "SELECT e.parent, e.name, e.inode, e.cookie FROM entry e LEFT JOIN inode i ON i.id=e.inode "
            "WHERE i.id IS NULL"
        )

    def no_directories(self) -> list[tuple[InodeId, int | None]]:
        """(parent, its mode or None) of what has names in it but is no directory, or not there."""
        return cast(
            "list[tuple[InodeId, int | None]]",
            self._rows(
                "SELECT p.parent, i.mode FROM (SELECT DISTINCT parent FROM entry) p "  # noqa: S608
                f"LEFT JOIN inode i ON i.id=p.parent WHERE i.id IS NULL OR NOT ({_IS_DIRECTORY})"
            ),
        )

    def move_names(self, old_parent: InodeId, new_parent: InodeId) -> None:
        """Move all names of one directory into another, which is empty."""
        self._execute("UPDATE entry SET parent=? WHERE parent=?", (new_parent, old_parent))

    def directories_with_names(self) -> list[InodeId]:
        """Directories with more than one name."""
        return self._ids(
            "SELECT e.inode FROM entry e JOIN inode i ON i.id=e.inode "  # noqa: S608
            f"WHERE {_IS_DIRECTORY} GROUP BY e.inode HAVING count(*) > 1"
        )

    def entries_of(self, inode: InodeId) -> list[EntryRow]:
        """All names of an inode, the oldest first."""
        return self._entries("SELECT parent, name, inode, cookie FROM entry WHERE inode=? ORDER BY cookie", (inode,))

    def entries_in(self, parent: InodeId) -> list[EntryRow]:
        """All names in a directory."""
        return self._entries("SELECT parent, name, inode, cookie FROM entry WHERE parent=?", (parent,))

    def delete_entry(self, parent: InodeId, cookie: int) -> None:
        """Remove a name."""
        self._execute("DELETE FROM entry WHERE parent=? AND cookie=?", (parent, cookie))

    def unreachable_directories(self) -> list[tuple[InodeId, InodeId | None]]:
        """(directory, its parent or None) of directories to which no path leads from the root, but for orphans."""
        return cast(
            "list[tuple[InodeId, InodeId | None]]",
            self._rows(
                "WITH RECURSIVE reached(id) AS (VALUES(1) UNION SELECT i.id FROM reached r "  # noqa: S608
                f"CROSS JOIN entry e ON e.parent=r.id CROSS JOIN inode i ON i.id=e.inode WHERE i.{_IS_DIRECTORY}) "
                "SELECT i.id, min(e.parent) FROM inode i LEFT JOIN entry e ON e.inode=i.id "
                f"WHERE i.{_IS_DIRECTORY} AND i.id NOT IN reached AND i.id NOT IN (SELECT inode FROM orphan) "
                "GROUP BY i.id ORDER BY i.id"
            ),
        )

    def nameless(self) -> list[tuple[InodeId, int]]:
        """(inode, size) of what is no directory, has no name, and is no orphan."""
        return cast(
            "list[tuple[InodeId, int]]",
            self._rows(
                f"SELECT id, size FROM inode WHERE NOT ({_IS_DIRECTORY}) "  # noqa: S608
                "AND id NOT IN (SELECT inode FROM entry) AND id NOT IN (SELECT inode FROM orphan)"
            ),
        )

    def orphans_with_names(self) -> list[InodeId]:
        """Inodes remembered as having no name that have one."""
        return self._ids("SELECT inode FROM orphan WHERE inode IN (SELECT inode FROM entry)")

    def orphans_alive(self) -> int:
        """Deleted files whose data is still to be given back."""
        return cast("int", self._database.scalar("SELECT count(*) FROM orphan WHERE inode IN (SELECT id FROM inode)"))

    def link_counts(self) -> list[Count]:
        """Inodes with a wrong link count, but for those without a name."""
        return self._counts(
            "SELECT i.id, i.nlink, n.n FROM inode i JOIN (SELECT inode, count(*) AS n FROM entry GROUP BY inode) n "  # noqa: S608
            f"ON n.inode=i.id WHERE NOT (i.{_IS_DIRECTORY}) AND i.nlink <> n.n "
            "UNION ALL SELECT i.id, i.nlink, 2 + coalesce(s.n, 0) FROM inode i "
            "LEFT JOIN (SELECT e.parent, count(*) AS n "
            f"FROM entry e JOIN inode c ON c.id=e.inode WHERE c.{_IS_DIRECTORY} GROUP BY e.parent) s ON s.parent=i.id "
            f"WHERE i.{_IS_DIRECTORY} AND i.nlink <> 2 + coalesce(s.n, 0) AND i.id NOT IN (SELECT inode FROM orphan)"
        )

    def set_link_count(self, inode: int, nlink: int) -> None:
        """Set a link count."""
        self._execute("UPDATE inode SET nlink=? WHERE id=?", (nlink, inode))

    def parents(self) -> list[Count]:
        """Inodes that name a wrong directory as the one that holds them; the root holds itself."""
        return self._counts(
            f"SELECT i.id, i.parent, e.parent FROM inode i JOIN entry e ON e.inode=i.id WHERE i.{_IS_DIRECTORY} "  # noqa: S608
            "AND i.id<>1 AND i.parent<>e.parent UNION ALL SELECT id, parent, 1 FROM inode WHERE id=1 AND parent<>1 "
            f"UNION ALL SELECT id, parent, 0 FROM inode WHERE parent<>0 AND NOT ({_IS_DIRECTORY})"
        )

    def set_parent(self, inode: int, parent: int) -> None:
        """Say which directory holds a directory."""
        self._execute("UPDATE inode SET parent=? WHERE id=?", (parent, inode))

    # --- the rest

    def xattrs_without_inode(self) -> int:
        """Extended attributes of nothing."""
        return cast(
            "int", self._database.scalar("SELECT count(*) FROM xattr WHERE inode NOT IN (SELECT id FROM inode)")
        )

    def delete_xattrs_without_inode(self) -> None:
        """Remove them."""
        self._execute("DELETE FROM xattr WHERE inode NOT IN (SELECT id FROM inode)")

    def largest_inode(self) -> int:
        """The largest inode number that anything uses."""
        return cast(
            "int",
            self._database.scalar(
                "SELECT max(coalesce((SELECT max(id) FROM inode), 0), coalesce((SELECT max(inode) FROM entry), 0), "
                "coalesce((SELECT max(parent) FROM entry), 0), coalesce((SELECT max(inode) FROM extent), 0), "
                "coalesce((SELECT max(inode) FROM orphan), 0), coalesce((SELECT max(inode) FROM xattr), 0))"
            ),
        )

    def largest_cookie(self) -> int:
        """The largest cookie of a name."""
        return cast("int", self._database.scalar("SELECT coalesce(max(cookie), 0) FROM entry"))

    def setting(self, name: str) -> Any:
        """A setting, whatever it is; None if there is none."""
        return self._database.scalar("SELECT value FROM setting WHERE name=?", (name,))

    def counts(self) -> tuple[int, int, int]:
        """Inodes, chunks, segments."""
        row = self._rows(
            "SELECT (SELECT count(*) FROM inode), (SELECT count(*) FROM chunk), (SELECT count(*) FROM segment)"
        )
        return cast("tuple[int, int, int]", row[0])

    def _ids(self, sql: str) -> list[InodeId]:
        return [cast("InodeId", row[0]) for row in self._rows(sql)]

    def _entries(self, sql: str, bindings: tuple[Any, ...] = ()) -> list[EntryRow]:
        return list(map(EntryRow._make, self._rows(sql, bindings)))

    def _counts(self, sql: str) -> list[Count]:
        return list(map(Count._make, self._rows(sql)))
