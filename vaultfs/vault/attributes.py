"""Extended attributes of inodes, access control lists included."""

from __future__ import annotations

import errno
import time
from typing import Final

from vaultfs.errors import FileSystemError
from vaultfs.metadata.tree_rows import TreeRows
from vaultfs.vault import acl
from vaultfs.vault.inodes import Inode, InodeTable

XATTR_NAME_MAX_BYTES: Final = 255
XATTR_VALUE_MAX_BYTES: Final = 65536
XATTR_LIST_MAX_BYTES: Final = 65536

_NAMESPACES: Final = (b"user.", b"trusted.", b"security.")
_SYSTEM: Final = (acl.ACCESS, acl.DEFAULT)

XATTR_CREATE: Final = 1
XATTR_REPLACE: Final = 2


class ExtendedAttributes:
    """The attributes of all inodes.

    Args:
        rows: the tables.
        inodes: all inodes.
    """

    def __init__(self, rows: TreeRows, inodes: InodeTable) -> None:
        self._rows = rows
        self._inodes = inodes
        self._any = rows.any_xattr()
        """False: no inode has any, and nobody needs to look (chown and chmod of every untarred file ask)."""

    def get(self, inode: Inode, name: bytes) -> bytes:
        """The value of an attribute.

        Raises:
            FileSystemError: ENODATA.
        """
        value = self._rows.xattr(inode.id, name) if self._any else None
        if value is None:
            raise FileSystemError(errno.ENODATA)
        return value

    def names(self, inode: Inode) -> list[bytes]:
        """The names of an inode's attributes."""
        return self._rows.xattr_names(inode.id) if self._any else []

    def set(self, inode: Inode, name: bytes, value: bytes, flags: int = 0) -> None:
        """Set an attribute; setting an access list also sets the mode.

        Raises:
            FileSystemError: EEXIST or ENODATA as ``flags`` demand, ERANGE, E2BIG, ENOSPC, EINVAL.
        """
        if not 0 < len(name) <= XATTR_NAME_MAX_BYTES:
            raise FileSystemError(errno.ERANGE)
        if len(value) > XATTR_VALUE_MAX_BYTES:
            raise FileSystemError(errno.E2BIG)
        if name not in _SYSTEM and not name.startswith(_NAMESPACES):
            raise FileSystemError(
                errno.EOPNOTSUPP, f"{name!r}: extended attributes begin with user., trusted. or security."
            )
        if name in _NAMESPACES:
            raise FileSystemError(errno.EINVAL)
        known = self.names(inode)
        if flags & XATTR_CREATE and name in known:
            raise FileSystemError(errno.EEXIST)
        if flags & XATTR_REPLACE and name not in known:
            raise FileSystemError(errno.ENODATA)
        if name not in known and sum(map(len, known)) + len(known) + len(name) >= XATTR_LIST_MAX_BYTES:
            raise FileSystemError(errno.ENOSPC, "the names of the extended attributes are too long together")
        if name == acl.ACCESS:
            entries = acl.decode(value)
            inode.mode = acl.mode_of(entries, inode.mode)
            if acl.is_minimal(entries):
                self._rows.delete_xattr(inode.id, name)
                self._touched(inode)
                return
        elif name == acl.DEFAULT:
            if not inode.is_directory:
                raise FileSystemError(errno.EACCES, "only directories have default access control lists")
            acl.decode(value)
        self._any = True
        self._rows.put_xattr(inode.id, name, value)
        self._touched(inode)

    def remove(self, inode: Inode, name: bytes) -> None:
        """Remove an attribute.

        Raises:
            FileSystemError: ENODATA.
        """
        self.get(inode, name)
        self._rows.delete_xattr(inode.id, name)
        self._touched(inode)

    def _touched(self, inode: Inode) -> None:
        inode.ctime_ns = time.time_ns()
        self._inodes.changed(inode)

    # --- access control lists

    def follow_chmod(self, inode: Inode) -> None:
        """Bring the access list in line with a mode that has just been changed."""
        value = self._rows.xattr(inode.id, acl.ACCESS) if self._any else None
        if value is not None:
            self._rows.put_xattr(inode.id, acl.ACCESS, acl.encode(acl.with_mode(acl.decode(value), inode.mode)))

    def has_default(self, directory: Inode) -> bool:
        """Whether new files in a directory inherit a list, so that the umask does not apply."""
        return self._any and self._rows.xattr(directory.id, acl.DEFAULT) is not None

    def inherit(self, directory: Inode, inode: Inode) -> None:
        """Give a new inode the lists that its directory hands down."""
        value = self._rows.xattr(directory.id, acl.DEFAULT) if self._any else None
        if value is None:
            return
        entries, inode.mode = acl.inherited(acl.decode(value), inode.mode)
        if not acl.is_minimal(entries):
            self._rows.put_xattr(inode.id, acl.ACCESS, acl.encode(entries))
        if inode.is_directory:
            self._rows.put_xattr(inode.id, acl.DEFAULT, value)
