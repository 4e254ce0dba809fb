"""Directories and locks that are this user's alone."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from vaultfs.errors import VaultError
from vaultfs.storage.durable import fsync_directory, storage_errors

_LOCK_PAUSE_S: Final = 0.02


def make_private_directory(path: Path) -> None:
    """Make a directory that only this user may look into, durably, unless it is there.

    Raises:
        NoSpaceError, ReadOnlyError, StorageError: it cannot be made.
    """
    with storage_errors(f"cannot create {path}"):
        if not path.is_dir():
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            fsync_directory(path.parent)


@contextmanager
def exclusive_lock(path: Path, patience_s: float, too_long: VaultError) -> Iterator[None]:
    """Keep other processes, and other threads, out of what a file stands for.

    Args:
        path: of the file, which is made if it is not there, with the directories above it; it stays.
        patience_s: how long to wait for whoever has the lock.
        too_long: raised after that.

    Raises:
        NoSpaceError, ReadOnlyError, StorageError: there can be no lock.
    """
    make_private_directory(path.parent)
    with storage_errors(f"cannot lock {path}"):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        deadline_s = time.monotonic() + patience_s
        while not _try_lock(descriptor):
            if time.monotonic() > deadline_s:
                raise too_long
            time.sleep(_LOCK_PAUSE_S)
        yield
    finally:
        os.close(descriptor)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
