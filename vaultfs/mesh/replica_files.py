"""Files below the directory of a peer's replicas, reached from one open directory (`vaultfs.storage.anchored_paths`).

What is not a regular file is no object, and is not opened.  Names are durable when a function says so.  Messages name
no path of this machine: they are told to callers.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Final

from vaultfs.errors import NoSpaceError, RemoteError
from vaultfs.storage import anchored_paths
from vaultfs.storage.anchored_paths import directory_below, made_directory, open_regular, sync_names
from vaultfs.storage.durable import write_all

_CREATE_FILE: Final = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_APPEND: Final = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EMLINK})


MOST_NAMES: Final = 16384
"""Of one directory, in memory at once.  Who may store can make a million of empty notes with 4 GB of quota, and sixteen
threads may list them at the same time."""


@contextmanager
def disk_errors(what: str) -> Iterator[None]:
    """Turn every ``OSError`` of the block into an error of vaultfs.

    Args:
        what: was done, for the message, as in "store vault.json".

    Raises:
        NoSpaceError: the disk is full.
        RemoteError: anything else.
    """
    try:
        yield
    except OSError as error:
        message = f"the peer cannot {what}: {error.strerror or 'its disk failed'}"
        if error.errno in _FULL:
            raise NoSpaceError(message) from error
        raise RemoteError(message) from error


def make_directories(root: int, parts: Sequence[str], durable: set[tuple[str, ...]]) -> None:
    """Make the directories that are not there; their names are durable when this returns.

    Args:
        root: where they begin.
        parts: from there.
        durable: those that are known to be durable; is added to.

    Raises:
        OSError: something else is in the place of one, or the disk failed.
    """
    with made_directory(root, parts, durable):
        pass


def status_of(root: int, parts: Sequence[str]) -> os.stat_result | None:
    """What lies at a path; None if nothing does.

    Raises:
        OSError: it cannot be looked at.
    """
    with directory_below(root, parts[:-1]) as above:
        return None if above is None else anchored_paths.status_of(above, parts[-1])


def size_bytes(root: int, parts: Sequence[str]) -> int | None:
    """The length of a regular file; None if there is none.

    Raises:
        OSError: it cannot be looked at.
    """
    with directory_below(root, parts[:-1]) as above:
        return None if above is None else anchored_paths.size_bytes(above, parts[-1])


def open_file(root: int, parts: Sequence[str]) -> int:
    """Open a regular file for reading; -1 if there is none.

    Raises:
        OSError: it cannot be opened.
    """
    with directory_below(root, parts[:-1]) as above:
        return -1 if above is None else open_regular(above, parts[-1])


def create_file(root: int, parts: Sequence[str]) -> int:
    """Make a file of this user alone, for reading and writing.

    Raises:
        OSError: something is there, or the disk failed.
    """
    with directory_below(root, parts[:-1]) as above:
        if above is None:
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        return os.open(parts[-1], _CREATE_FILE, 0o600, dir_fd=above)


def resume_file(root: int, parts: Sequence[str]) -> int:
    """Open a regular file for reading and writing; -1 if there is none.

    Raises:
        OSError: it cannot be opened.
    """
    if size_bytes(root, parts) is None:
        return -1
    with directory_below(root, parts[:-1]) as above:
        if above is None:
            return -1
        flags = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        return os.open(parts[-1], flags, dir_fd=above)


def read_file(root: int, parts: Sequence[str], most_bytes: int) -> bytes | None:
    """The bytes of a regular file, at most ``most_bytes`` + 1 of them; None if there is none.

    Raises:
        OSError: it cannot be read.
    """
    descriptor = open_file(root, parts)
    if descriptor < 0:
        return None
    with os.fdopen(descriptor, "rb") as file:
        return file.read(most_bytes + 1)


def replace_file(root: int, parts: Sequence[str], data: bytes) -> None:
    """Write a small file so that a crash leaves the old or the new one; durable when this returns.

    The directory above is there.  One writer at a time: a temporary file of a writer that died is overwritten.

    Raises:
        OSError: the disk failed.
    """
    with directory_below(root, parts[:-1]) as above:
        if above is None:
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        temporary = f".{parts[-1]}.new"
        with suppress(FileNotFoundError):
            os.unlink(temporary, dir_fd=above)
        descriptor = os.open(temporary, _CREATE_FILE, 0o600, dir_fd=above)
        try:
            write_all(descriptor, data)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.rename(temporary, parts[-1], src_dir_fd=above, dst_dir_fd=above)
        sync_names(above)


def append_file(root: int, parts: Sequence[str], data: bytes) -> None:
    """Add to the end of a file, which is made if it is not there; nothing is synced.

    Raises:
        OSError: the disk failed.
    """
    with directory_below(root, parts[:-1]) as above:
        if above is None:
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        descriptor = os.open(parts[-1], _APPEND, 0o600, dir_fd=above)
    try:
        write_all(descriptor, data)
    finally:
        os.close(descriptor)


def give_name(root: int, source: Sequence[str], target: Sequence[str]) -> None:
    """Give a file another name, in place of what lies there.  Call `sync_directory` to make it durable.

    Args:
        root: where both paths begin.
        source: the file.
        target: its new name; the directory is there.

    Raises:
        OSError: the disk failed.
    """
    with directory_below(root, source[:-1]) as here, directory_below(root, target[:-1]) as there:
        if here is None or there is None:
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        os.rename(source[-1], target[-1], src_dir_fd=here, dst_dir_fd=there)


def remove_file(root: int, parts: Sequence[str]) -> int | None:
    """Remove a regular file.  Call `sync_directory` to make it durable.

    Returns:
        Its length; None if there was none.

    Raises:
        OSError: the disk failed.
    """
    size = size_bytes(root, parts)
    if size is None:
        return None
    with directory_below(root, parts[:-1]) as above:
        if above is None:
            return None
        try:
            os.unlink(parts[-1], dir_fd=above)
        except FileNotFoundError:
            return None
    return size


def remove_empty_directory(root: int, parts: Sequence[str]) -> bool:
    """Remove a directory unless something is in it; whether it was removed.

    Raises:
        OSError: the disk failed.
    """
    with directory_below(root, parts[:-1]) as above:
        if above is None:
            return False
        try:
            os.rmdir(parts[-1], dir_fd=above)
        except OSError as error:
            if error.errno in {errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT, errno.ENOTDIR}:
                return False
            raise
    return True


def sync_file(root: int, parts: Sequence[str]) -> None:
    """Make a file and its name durable, if it is there.

    Raises:
        OSError: the disk failed.
    """
    descriptor = open_file(root, parts)
    if descriptor >= 0:
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        sync_directory(root, parts[:-1])


def sync_directory(root: int, parts: Sequence[str]) -> None:
    """Make the names in a directory durable, if it is there.

    Raises:
        OSError: the disk failed.
    """
    with directory_below(root, parts) as found:
        if found is not None:
            sync_names(found)


def walk(root: int, parts: Sequence[str], after: str = "", prefix: str = "") -> Generator[tuple[str, int], None, None]:
    """Paths and lengths of regular files below a directory, in ascending order of bytes.

    What has a dot first is left out.  At most twice `MOST_NAMES` are held for each level, however many there are: a
    directory with more is read several times.

    Args:
        root: where ``parts`` begin.
        parts: the directory.
        after: only paths after this one.
        prefix: what every path begins with in the result; empty, or ending with ``/``.

    Raises:
        OSError: the disk failed.
    """
    with directory_below(root, parts) as above:
        if above is None:
            return
        begin: str | None = ""
        while begin is not None:
            names, begin = _names(above, begin, after, prefix)
            for name in names:
                path = prefix + name
                if name.endswith("/"):
                    yield from walk(above, [name[:-1]], after, path)
                elif (size := size_bytes(above, [name])) is not None:
                    yield path, size


def _names(above: int, begin: str, after: str, prefix: str) -> tuple[list[str], str | None]:
    """The next names in a directory, in order, of which `walk` wants something; and from where on more are, or None."""
    names: list[str] = []
    end: str | None = None
    with os.scandir(above) as entries:
        for entry in entries:
            if entry.name.startswith(".") or not entry.name.isascii():
                continue
            # "a/" stands for everything in "a", and sorts after "a-b" as its paths do
            name = f"{entry.name}/" if entry.is_dir(follow_symlinks=False) else entry.name
            path = prefix + name
            if name < begin or (end is not None and name >= end):
                continue
            if path > after or (name.endswith("/") and after.startswith(path)):
                names.append(name)
                if len(names) > 2 * MOST_NAMES:
                    names.sort()
                    end = names[MOST_NAMES]
                    del names[MOST_NAMES:]
    names.sort()
    if len(names) > MOST_NAMES:
        end = names[MOST_NAMES]
        del names[MOST_NAMES:]
    return names, end


def take_lock(root: int, name: str) -> int:
    """Lock a file in a directory, as long as what is returned stays open; -1 if somebody else has it.

    Raises:
        OSError: the disk failed.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    descriptor = os.open(name, flags, 0o600, dir_fd=root)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return -1
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor
