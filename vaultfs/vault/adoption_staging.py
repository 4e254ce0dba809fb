"""``.adopting``, the directory of what is fetched and made on the way to another history.

All that is in it is deleted at the end.  So it must be a directory of the vault's own: whoever can write to the vault's
could else have files deleted that lie elsewhere.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
from typing import Final

from vaultfs.errors import IntegrityError
from vaultfs.ids import SegmentName
from vaultfs.storage.durable import fsync_directory, storage_errors
from vaultfs.storage.layout import VaultLayout

RECORD_NAME: Final = "record"
"""Of the file that tells what is being done, see `vaultfs.vault.adoption_record`."""


def require_own_staging(layout: VaultLayout) -> None:
    """Refuse an ``.adopting`` that leads elsewhere: all that is in it is going to be deleted.

    Raises:
        IntegrityError: it does.
    """
    if layout.adopting.is_symlink():
        raise IntegrityError(f"{layout.adopting} is a symlink, which vaultfs has not made; remove it, and adopt again")


def prepare_staging(layout: VaultLayout) -> VaultLayout:
    """Make ``.adopting`` durably, unless it is there, and return its layout.

    Raises:
        IntegrityError: as `require_own_staging`.
        NoSpaceError, StorageError: the disk failed.
    """
    require_own_staging(layout)
    staging = VaultLayout(layout.adopting)
    staging.create_directories()
    fsync_directory(layout.root)  # whoever created it may have died before
    return staging


def remove_staging(layout: VaultLayout) -> None:
    """Remove ``.adopting``, the record last, so that whatever interrupts this is seen; no symlink is followed.

    Raises:
        StorageError: the disk failed.
    """
    with storage_errors(f"cannot remove {layout.adopting}"):
        try:
            directory = os.open(layout.adopting, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            return
        try:
            with os.scandir(directory) as entries:
                others = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
            for name, is_directory in others:
                if is_directory:
                    shutil.rmtree(name, dir_fd=directory)
                elif name != RECORD_NAME:
                    os.unlink(name, dir_fd=directory)
            with contextlib.suppress(FileNotFoundError):
                os.unlink(RECORD_NAME, dir_fd=directory)
        finally:
            os.close(directory)
        layout.adopting.rmdir()
    fsync_directory(layout.root)


def sealed_size(layout: VaultLayout, name: str) -> int:
    """Bytes in a sealed segment; 0 if it is not there."""
    path = layout.sealed_path(SegmentName(name))
    with storage_errors(f"cannot look at {path}"):
        try:
            status = path.lstat()
        except FileNotFoundError:
            return 0
    return status.st_size if stat.S_ISREG(status.st_mode) else 0
