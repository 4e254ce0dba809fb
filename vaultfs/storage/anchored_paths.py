"""Paths below an open directory, walked part by part: whatever somebody lays there, nothing leads out of it.

Symlinks are never followed.  What is not a regular file is not opened, because opening a FIFO or a device may do
things.  A directory that stays open stays the same one, whatever takes its name meanwhile.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Final

_OPEN_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_OPEN_FILE: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC

_NOT_THERE: Final = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENXIO})
"""What opening says where nothing of the kind that is asked for is; ENXIO for a socket."""


@contextmanager
def directory_below(root: int, parts: Sequence[str]) -> Iterator[int | None]:
    """A directory below another, open; None if it is not there, or something else is.

    Args:
        root: where the parts begin; open, and left so.
        parts: of the path; none is empty or goes up.

    Raises:
        OSError: it cannot be opened.
    """
    descriptor = root
    try:
        for part in parts:
            try:
                below = os.open(part, _OPEN_DIRECTORY, dir_fd=descriptor)
            except OSError as error:
                if error.errno not in _NOT_THERE:
                    raise
                yield None
                return
            if descriptor != root:
                os.close(descriptor)
            descriptor = below
        yield descriptor
    finally:
        if descriptor != root:
            os.close(descriptor)


@contextmanager
def made_directory(
    root: int,
    parts: Sequence[str],
    durable: set[tuple[str, ...]],
    on_first: Callable[[int], None] | None = None,
) -> Iterator[int]:
    """A directory below another, open, made for this user alone if it is not there; its name is durable then.

    Names that another run made are synced too: it may have died before it did that.

    Args:
        root: where the parts begin; open, and left so.
        parts: of the path; none is empty or goes up.
        durable: the paths of directories whose names are known to be durable; is added to.
        on_first: called with each directory that is not among these.

    Raises:
        OSError: something else is in the place of one, or the disk failed.
    """
    descriptor = root
    try:
        for count, part in enumerate(parts, 1):
            path = tuple(parts[:count])
            is_new = False
            try:
                below = os.open(part, _OPEN_DIRECTORY, dir_fd=descriptor)
            except FileNotFoundError:
                with suppress(FileExistsError):
                    os.mkdir(part, 0o700, dir_fd=descriptor)
                is_new = True
                below = os.open(part, _OPEN_DIRECTORY, dir_fd=descriptor)
            try:
                if is_new or path not in durable:
                    sync_names(descriptor)
                    if on_first is not None:
                        on_first(below)
                    durable.add(path)
            except BaseException:
                os.close(below)
                raise
            if descriptor != root:
                os.close(descriptor)
            descriptor = below
        yield descriptor
    finally:
        if descriptor != root:
            os.close(descriptor)


def status_of(directory: int, name: str) -> os.stat_result | None:
    """What a name in an open directory stands for; None if it is not there.

    Raises:
        OSError: it cannot be looked at.
    """
    try:
        return os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return None


def is_regular(status: os.stat_result | None) -> bool:
    """Whether something is there, and a regular file."""
    return status is not None and stat.S_ISREG(status.st_mode)


def size_bytes(directory: int, name: str) -> int | None:
    """The length of a regular file in an open directory; None if there is none.

    Raises:
        OSError: it cannot be looked at.
    """
    status = status_of(directory, name)
    return status.st_size if status is not None and stat.S_ISREG(status.st_mode) else None


def open_regular(directory: int, name: str) -> int:
    """Open a regular file in an open directory for reading; -1 if there is none, or something else is.

    Raises:
        OSError: it cannot be opened.
    """
    if not is_regular(status_of(directory, name)):
        return -1
    try:
        descriptor = os.open(name, _OPEN_FILE, dir_fd=directory)
    except OSError as error:
        if error.errno not in _NOT_THERE:
            raise
        return -1
    if not is_regular(os.fstat(descriptor)):  # it was replaced meanwhile
        os.close(descriptor)
        return -1
    return descriptor


def sync_names(directory: int) -> None:
    """Make the names in an open directory durable, as far as its file system can.

    Raises:
        OSError: the disk failed.
    """
    try:
        os.fsync(directory)
    except OSError as error:
        if error.errno != errno.EINVAL:  # what file systems say that cannot sync directories
            raise
