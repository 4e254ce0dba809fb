"""A directory for what a command fetches and needs no longer than it runs.  It holds ciphertext only.

It lies in the user's cache directory, open to the user alone, and is removed at the end, however that comes.  What
a killed process has left is removed by the next one: whoever works holds a lock on his directory.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from vaultfs.cli.directories import cache_directory
from vaultfs.cli.interrupts import Interrupts
from vaultfs.cli.output import error_line
from vaultfs.storage.durable import storage_errors

_PREFIX: Final = "scratch-"
_FLAGS: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@contextmanager
def scratch_directory() -> Iterator[Path]:
    """An empty directory, until the end of the block.

    Raises:
        NoSpaceError, ReadOnlyError, StorageError: there can be none.
    """
    base = cache_directory()
    with storage_errors(f"cannot make a directory for what is fetched in {base}"):
        base.mkdir(mode=0o700, parents=True, exist_ok=True)
        path, descriptor = _make(base)
    try:
        yield path
    finally:
        with Interrupts():  # a second Ctrl-C must not leave half of it
            _remove(path)
            os.close(descriptor)


def _make(base: Path) -> tuple[Path, int]:
    """A new directory, and the lock on it; under a lock on ``base``, so that nobody takes it for one that was left."""
    above = os.open(base, _FLAGS & ~os.O_NOFOLLOW)
    try:
        fcntl.flock(above, fcntl.LOCK_EX)
        _sweep(base)
        path = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=base))
        descriptor = os.open(path, _FLAGS)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        return path, descriptor
    finally:
        os.close(above)


def _sweep(base: Path) -> None:
    """Remove the directories of processes that are no more."""
    for path in base.glob(f"{_PREFIX}*"):
        with suppress(OSError):  # somebody works there, or it is not ours: then it stays
            descriptor = os.open(path, _FLAGS)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _remove(path)
            finally:
                os.close(descriptor)


def _remove(path: Path) -> None:
    shutil.rmtree(path, ignore_errors=True)
    if path.exists():
        error_line(f"warning: {path} cannot be removed; it holds nothing but ciphertext, delete it")
