"""``vaultfs cat``: write files of a vault that is not mounted to standard output."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path

from vaultfs.cli.opened import reading, vault_path
from vaultfs.cli.output import write_all
from vaultfs.cli.secret_sources import SecretOption
from vaultfs.errors import FileSystemError, UsageError
from vaultfs.ids import InodeId
from vaultfs.vault.api import Vault
from vaultfs.vault.inodes import Inode
from vaultfs.vault.transfer_out import read_pieces
from vaultfs.vault.transfer_outcome import naming


def run(vault: Path, /, *paths: str, secret: SecretOption | None = None) -> int:
    """Write files of a vault that is not mounted to standard output, one after the other.

    Every byte is verified before it is written. At damage the output ends, and the exit code is 15.

    Args:
        vault: The vault's directory.
        paths: Files in the vault; symlinks are followed.
        secret: Where the password comes from.
    """
    if not paths:
        raise UsageError("at least one PATH in the vault must follow; see 'vaultfs cat --help'")
    wanted = [vault_path(path) for path in paths]
    output = sys.stdout.buffer
    with reading(vault, secret, "cat") as opened:
        for path, inode in [(path, _file(opened, path)) for path in wanted]:
            for _, data in read_pieces(opened.filesystem, inode, 0, inode.size, path):
                write_all(output, data)
    output.flush()
    return 0


def _file(vault: Vault, path: bytes) -> Inode:
    """The file, which stays in memory although others are looked up meanwhile."""
    with naming(path):
        inode = vault.filesystem.inodes.get(InodeId(vault.stat(path).st_ino))
        if inode.is_directory:
            raise FileSystemError(errno.EISDIR, os.strerror(errno.EISDIR))
        if not inode.is_regular:
            raise FileSystemError(errno.EINVAL, "not a regular file")
    vault.filesystem.open(inode)
    return inode
