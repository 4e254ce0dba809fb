"""Which vaults this machine has mounted (proc_pid_mountinfo(5)), and whether a path is a vault or a mounted one."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from vaultfs.errors import NotAVaultError, UsageError
from vaultfs.storage.layout import VaultLayout

FILESYSTEM_TYPE: Final = "fuse.vaultfs"
MOUNT_TABLE: Final = Path("/proc/self/mountinfo")
HEADER_NAME: Final = "vault.json"


@dataclass(frozen=True)
class LiveMount:
    """A mounted vault.

    Attributes:
        mountpoint: where.
        source: what ``mount`` shows; the VAULT argument, unless ``-o fsname=`` hid it.
        options: the kernel's words, as ``ro``.
    """

    mountpoint: Path
    source: str
    options: tuple[str, ...]


def live_mounts(table: Path = MOUNT_TABLE) -> Iterator[LiveMount]:
    """Every mounted vault, in the order of mounting.

    Args:
        table: the kernel's table.
    """
    for line in table.read_bytes().splitlines():
        left, _, right = line.partition(b" - ")
        kind, source, _ = right.split(b" ", 2)
        if kind.decode() == FILESYSTEM_TYPE:
            _, _, _, _, mountpoint, options, *_ = left.split(b" ")
            yield LiveMount(
                mountpoint=Path(os.fsdecode(_unescaped(mountpoint))),
                source=os.fsdecode(_unescaped(source)),
                options=tuple(options.decode().split(",")),
            )


def _unescaped(field: bytes) -> bytes:
    r"""Undo the kernel's ``\040`` for blanks, tabs, newlines and backslashes."""
    return re.sub(rb"\\([0-7]{3})", lambda match: bytes([int(match[1], 8)]), field)


def mount_at(path: Path) -> LiveMount | None:
    """The mounted vault whose mount point is this path, or None.  Works for a mount whose daemon is gone.

    Args:
        path: a path that may be relative.
    """
    wanted = Path(os.path.realpath(path.parent)) / path.name if path.name not in {"", ".."} else path.resolve()
    found = [mount for mount in live_mounts() if mount.mountpoint in {wanted, Path(os.path.realpath(path))}]
    return found[-1] if found else None


def vault_at(path: Path) -> Path:
    """The absolute path of a vault's directory.

    Args:
        path: as the person wrote it.

    Raises:
        NotAVaultError: there is no such directory, or it holds no vault, or one that is not complete yet.
    """
    if not path.exists():
        raise NotAVaultError(f"{path}: no such vault")
    if not path.is_dir():
        raise NotAVaultError(f"{path}: a vault is a directory")
    if not (path / HEADER_NAME).exists():
        raise NotAVaultError(f"{path}: not a vault (it has no {HEADER_NAME})")
    layout = VaultLayout(path)
    if layout.restoring.exists() and not layout.head.exists():
        raise NotAVaultError(
            f"{path}: not a vault yet: a restore or clone was interrupted; give the same command again, and it goes on"
        )
    return path.resolve()


def require_unmounted_vault(path: Path, verb: str) -> Path:
    """As :func:`vault_at`, for commands that work on a vault that is not mounted.

    Args:
        path: as the person wrote it.
        verb: the command, for the message.

    Raises:
        UsageError: the path is a mounted folder.
        NotAVaultError: it is no vault either.
    """
    if mount_at(path) is not None:
        raise UsageError(f"{path}: this is a mounted folder; 'vaultfs {verb}' wants the vault's directory, unmounted")
    return vault_at(path)
