"""Whether two databases of one history show the same files.

Chunks have the same numbers exactly if they have the same content, as long as neither history has left the other.  Not
compared: when files were read last, where chunks lie, and what has no name.
"""

from __future__ import annotations

from itertools import zip_longest
from typing import Final

from vaultfs.metadata.database import MetadataDatabase

_NAMED: Final = "SELECT id FROM inode WHERE nlink>0"
_TABLES: Final = (
    "SELECT parent, name, inode FROM entry ORDER BY parent, name",
    "SELECT id, mode, uid, gid, nlink, size, rdev, mtime_ns, ctime_ns, target FROM inode WHERE nlink>0 ORDER BY id",
    f"SELECT inode, name, value FROM xattr WHERE inode IN ({_NAMED}) ORDER BY inode, name",  # noqa: S608
    f"SELECT inode, idx, chunk FROM extent WHERE inode IN ({_NAMED}) ORDER BY inode, idx",  # noqa: S608
)


def shows_the_same(one: MetadataDatabase, other: MetadataDatabase) -> bool:
    """Compare all names, attributes and contents.

    Args:
        one: a database.
        other: of the same vault and history.
    """
    return all(
        left == right for query in _TABLES for left, right in zip_longest(one.execute(query), other.execute(query))
    )
