"""``vaultfs ls``: list a directory of a vault that is not mounted."""

from __future__ import annotations

import os
import stat
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from vaultfs.cli.opened import reading, vault_path
from vaultfs.cli.output import emit_json, name_text, say, table
from vaultfs.cli.secret_sources import SecretOption
from vaultfs.ids import InodeId
from vaultfs.vault.api import Vault
from vaultfs.vault.transfer_outcome import naming
from vaultfs.vault.transfer_staging import is_unfinished

_TYPES = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "directory",
    stat.S_IFLNK: "symlink",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
    stat.S_IFCHR: "character device",
    stat.S_IFBLK: "block device",
}


def run(
    vault: Path,
    path: str = "/",
    /,
    *,
    long: Annotated[bool, Parameter(name=("--long", "-l"))] = False,
    json: bool = False,
    secret: SecretOption | None = None,
) -> int:
    """List a directory of a vault that is not mounted, sorted by name; names with a leading dot too.

    Args:
        vault: The vault's directory.
        path: A directory or file in the vault.
        long: Show mode, links, owner, group, size in bytes, and time of change too.
        json: Print JSON; undecodable bytes in names are lone surrogates (U+DC80 to U+DCFF).
        secret: Where the password comes from.
    """
    wanted = vault_path(path)
    with reading(vault, secret, "ls") as opened:
        entries = _entries(opened, wanted)
        if json:
            emit_json([_described(opened, name, full, status) for name, full, status in entries])
        elif long:
            table(
                ("mode", "links", "owner", "group", "size", "changed", "name"),
                [_row(opened, name, full, status) for name, full, status in entries],
                right=(1, 2, 3, 4),
            )
        else:
            for name, _, _ in entries:
                say(name_text(name))
    return 0


def _entries(vault: Vault, path: bytes) -> list[tuple[bytes, bytes, os.stat_result]]:
    """Name, path and attributes of what is to be listed."""
    with naming(path):
        status = vault.stat(path, follow=False)
        if stat.S_ISLNK(status.st_mode) and path.endswith(b"/"):
            status = vault.stat(path)
        if not stat.S_ISDIR(status.st_mode):
            return [(path.rpartition(b"/")[2], path, status)]
        number = InodeId(status.st_ino)
        return sorted(
            (name, path.rstrip(b"/") + b"/" + name, below)
            for name, below in vault.scan(path)
            if not is_unfinished(vault.filesystem, number, name)
        )


def _changed(status: os.stat_result) -> str:
    return datetime.fromtimestamp(status.st_mtime, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _target(vault: Vault, full: bytes, status: os.stat_result) -> bytes | None:
    return vault.readlink(full) if stat.S_ISLNK(status.st_mode) else None


def _row(vault: Vault, name: bytes, full: bytes, status: os.stat_result) -> tuple[str, ...]:
    target = _target(vault, full, status)
    shown = name_text(name) if target is None else f"{name_text(name)} -> {name_text(target)}"
    numbers = (status.st_nlink, status.st_uid, status.st_gid, status.st_size)
    return (stat.filemode(status.st_mode), *map(str, numbers), _changed(status), shown)


def _described(vault: Vault, name: bytes, full: bytes, status: os.stat_result) -> dict[str, Any]:
    target = _target(vault, full, status)
    return {
        "name": os.fsdecode(name),
        "type": _TYPES[stat.S_IFMT(status.st_mode)],
        "mode": f"{stat.S_IMODE(status.st_mode):04o}",
        "inode": status.st_ino,
        "links": status.st_nlink,
        "uid": status.st_uid,
        "gid": status.st_gid,
        "size_bytes": status.st_size,
        "mtime_ns": status.st_mtime_ns,
        "target": None if target is None else os.fsdecode(target),
    }
