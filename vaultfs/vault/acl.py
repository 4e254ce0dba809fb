"""POSIX access control lists as the kernel encodes them in extended attributes.

Format: version 2 as u32, then (tag u16, permissions u16, id u32) each, little-endian (<linux/posix_acl_xattr.h>).
The kernel checks permissions; the filesystem keeps the mode and the list in step (acl(5), IEEE 1003.1e draft 17).
"""

from __future__ import annotations

import errno
import struct
from typing import Final, NamedTuple

from vaultfs.errors import FileSystemError

ACCESS: Final = b"system.posix_acl_access"
DEFAULT: Final = b"system.posix_acl_default"

_VERSION: Final = 2
_USER_OBJ, _USER, _GROUP_OBJ, _GROUP, _MASK, _OTHER = 0x01, 0x02, 0x04, 0x08, 0x10, 0x20
_ENTRY: Final = struct.Struct("<HHI")


class AclEntry(NamedTuple):
    """One line of a list."""

    tag: int
    permissions: int
    id: int


def decode(value: bytes) -> list[AclEntry]:
    """Parse an attribute's value.

    Raises:
        FileSystemError: EINVAL or EOPNOTSUPP.
    """
    if len(value) < 4 or (len(value) - 4) % _ENTRY.size:
        raise FileSystemError(errno.EINVAL, "an access control list has another length")
    if int.from_bytes(value[:4], "little") != _VERSION:
        raise FileSystemError(errno.EOPNOTSUPP, "an access control list of another version")
    entries = [AclEntry(*fields) for fields in _ENTRY.iter_unpack(value[4:])]
    tags = [entry.tag for entry in entries]
    needs_mask = _USER in tags or _GROUP in tags
    if any(entry.permissions > 7 for entry in entries) or any(
        tags.count(tag) != 1 for tag in (_USER_OBJ, _GROUP_OBJ, _OTHER)
    ):
        raise FileSystemError(errno.EINVAL, "an access control list is not complete")
    if tags.count(_MASK) > 1 or (needs_mask and _MASK not in tags):
        raise FileSystemError(errno.EINVAL, "an access control list has no mask")
    return entries


def encode(entries: list[AclEntry]) -> bytes:
    """The attribute's value."""
    return _VERSION.to_bytes(4, "little") + b"".join(_ENTRY.pack(*entry) for entry in entries)


def is_minimal(entries: list[AclEntry]) -> bool:
    """Whether the list says no more than a mode can."""
    return len(entries) == 3


def mode_of(entries: list[AclEntry], mode: int) -> int:
    """``mode`` with the permissions that the list implies."""
    shown = {entry.tag: entry.permissions for entry in entries if entry.tag not in {_USER, _GROUP}}
    group = shown.get(_MASK, shown[_GROUP_OBJ])
    return (mode & ~0o777) | shown[_USER_OBJ] << 6 | group << 3 | shown[_OTHER]


def with_mode(entries: list[AclEntry], mode: int) -> list[AclEntry]:
    """The list after a chmod to ``mode``."""
    group_tag = _MASK if any(entry.tag == _MASK for entry in entries) else _GROUP_OBJ
    bits = {_USER_OBJ: mode >> 6 & 7, group_tag: mode >> 3 & 7, _OTHER: mode & 7}
    return [entry._replace(permissions=bits.get(entry.tag, entry.permissions)) for entry in entries]


def inherited(default: list[AclEntry], mode: int) -> tuple[list[AclEntry], int]:
    """The access list and the mode of a new file below a directory with a default list.

    Args:
        default: of the parent.
        mode: as the program asked for, without the umask.
    """
    group_tag = _MASK if any(entry.tag == _MASK for entry in default) else _GROUP_OBJ
    allowed = {_USER_OBJ: mode >> 6 & 7, group_tag: mode >> 3 & 7, _OTHER: mode & 7}
    entries = [entry._replace(permissions=entry.permissions & allowed.get(entry.tag, 7)) for entry in default]
    return entries, mode_of(entries, mode)
