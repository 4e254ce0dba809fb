"""Making changes durable, and turning the operating system's errors into vaultfs's own.

A name survives a power cut only once the directory that holds it has been synced; syncing the file is not enough.
"""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from vaultfs.errors import NoSpaceError, ReadOnlyError, StorageError

_CREATE_FLAGS: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


def storage_error(what: str, error: OSError) -> StorageError | NoSpaceError | ReadOnlyError:
    """The error of vaultfs for an error of the operating system; the caller raises it.

    Args:
        what: the action and its object, for the message.
        error: what the system said.
    """
    message = f"{what}: {error.strerror or error}"
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return NoSpaceError(message)
    if error.errno == errno.EROFS:
        return ReadOnlyError(message)
    return StorageError(message)


@contextmanager
def storage_errors(what: str) -> Iterator[None]:
    """Turn every ``OSError`` of the block into an error of vaultfs.

    Args:
        what: the action and its object, for the message.

    Raises:
        NoSpaceError: the disk or the quota is full.
        ReadOnlyError: the file system is mounted read-only.
        StorageError: anything else.
    """
    try:
        yield
    except OSError as error:
        raise storage_error(what, error) from error


def write_all(descriptor: int, data: bytes | memoryview) -> None:
    """Write all of ``data`` at the descriptor's position, in as many calls as it takes.

    Raises:
        OSError: as the system says; EIO if a call writes nothing, which would otherwise go on for ever.
    """
    rest = memoryview(data)
    while rest:
        written = os.write(descriptor, rest)
        if written == 0:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        rest = rest[written:]


def fsync_directory(path: Path) -> None:
    """Make the names in a directory durable.

    Raises:
        StorageError: it cannot be opened or synced.
    """
    with storage_errors(f"cannot sync the directory {path}"):
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def atomic_replace(path: Path, data: bytes, mode: int = 0o600) -> None:
    """Write a file so that a crash at any instant leaves the complete old or the complete new one; wait for the disk.

    The temporary file beside it has a random name, so that two processes cannot write into each other's.  A crash may
    leave one behind; nothing reads it.  A symlink at ``path`` is replaced, not followed.

    Args:
        path: the file; it need not exist, its directory must.
        data: the whole new content.
        mode: permission bits, whatever the umask says.

    Raises:
        NoSpaceError, ReadOnlyError, StorageError: the old file is untouched, unless only the last step, syncing the
            directory, failed: then either may be found after a power cut.
    """
    with storage_errors(f"cannot write {path}"):
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
        descriptor = os.open(temporary, _CREATE_FLAGS, mode)
        try:
            try:
                os.fchmod(descriptor, mode)
                write_all(descriptor, data)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            os.rename(temporary, path)  # noqa: PTH104  # os.rename says which call it is
        except BaseException:
            with suppress(OSError):  # the first error is the one to report; a leftover does no harm
                os.unlink(temporary)  # noqa: PTH108
            raise
        fsync_directory(path.parent)
