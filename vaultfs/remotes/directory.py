"""A directory as a remote: ``file:///dir``, on another disk, a stick, or a mounted share.

- The directory itself must exist.  It is never created: while its disk is not plugged in, a new tree on the disk below
  would look like a remote, and be full soon.  Name a directory *on* that disk, not the place where it is mounted.
- Nothing is stored any more when another directory has come in its place, as when a disk is unplugged meanwhile.
- An object appears with one rename or link of a temporary file beside it, after its bytes are on the disk; the names of
  directories that were made for it are synced before, its own name after.
- Every part of a path below the directory is opened from the one above, and symlinks are never followed, so nothing
  that somebody lays there leads out.  What is not a regular file is not an object.
- A crash leaves a temporary file.  Its name is not a key; it is removed by the next run that stores something beside
  it, once it is a day old.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import secrets
import stat
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from vaultfs.errors import (
    NoSpaceError,
    ObjectExistsError,
    ObjectMissingError,
    RemoteError,
    RemoteRefusedError,
    RemoteUnreachableError,
)
from vaultfs.remotes.bodies import PIECE_BYTES, exact, opened, require_range, source_pieces, wanted_bytes
from vaultfs.remotes.keys import is_key, is_listed, require_key, require_prefix
from vaultfs.remotes.store import ObjectInfo, Source
from vaultfs.storage.durable import write_all

_OPEN_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_OPEN_FILE: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_CREATE_FILE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_TEMPORARY: Final = re.compile(r"\.vaultfs-[0-9a-f]{32}\.tmp")
_OLD_S: Final = 24 * 3600.0

_NOT_THERE: Final = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EISDIR, errno.ENXIO})
"""What opening says where no regular file is; ENXIO for a socket."""
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_REFUSED: Final = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})
_UNREACHABLE: Final = frozenset(
    {
        errno.ENODEV,
        errno.ESTALE,
        errno.ENOTCONN,
        errno.ESHUTDOWN,
        errno.EHOSTDOWN,
        errno.EHOSTUNREACH,
        errno.ENETUNREACH,
        errno.ETIMEDOUT,
        errno.ECONNABORTED,
        errno.ECONNREFUSED,
        errno.ECONNRESET,
    }
)
_NO_LINKS: Final = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK})


class DirectoryStore:
    """A directory that exists.

    Args:
        root: the directory; absolute.
    """

    def __init__(self, root: Path) -> None:
        self.name = root.as_uri()
        self._root = root
        self._synced: set[str] = set()
        """Directories whose names are known to be durable."""
        self._first_seen: tuple[int, int] | None = None
        """The root, by its file system and number, at the first request."""
        self._lock = threading.Lock()

    def put(self, key: str, source: Source, *, if_absent: bool = False) -> None:
        """Store an object, as `Store.put`; it is on the disk when this returns."""
        *parents, name = require_key(key).split("/")
        what = f"store {key}"
        with self._errors(what), self._made_directory(parents) as directory:
            if if_absent and _is_taken(directory, name):
                raise ObjectExistsError(f"{self.name} has {key} already")
            temporary = f".vaultfs-{secrets.token_hex(16)}.tmp"
            with opened(key, source) as reader:
                descriptor = os.open(temporary, _CREATE_FILE, 0o600, dir_fd=directory)
                try:
                    try:
                        for piece in source_pieces(reader):
                            write_all(descriptor, piece)
                        os.fsync(descriptor)
                    finally:
                        os.close(descriptor)
                    if if_absent:
                        self._create(directory, temporary, name, key)
                    else:
                        os.rename(temporary, name, src_dir_fd=directory, dst_dir_fd=directory)
                except BaseException:
                    with suppress(OSError):  # the first error is the one to report
                        os.unlink(temporary, dir_fd=directory)
                    raise
            _sync(directory)

    def get(self, key: str, *, offset: int = 0, length: int | None = None) -> Iterator[bytes]:
        """Read an object, as `Store.get`."""
        *parents, name = require_key(key).split("/")
        require_range(offset, length)
        what = f"{key} in {self.name}"
        with self._errors(f"read {key}"):
            descriptor = -1
            with self._directory(parents) as directory:
                if directory is not None:
                    descriptor = _open_regular(directory, name)
            if descriptor < 0:
                raise ObjectMissingError(f"{self.name} has no {key}")
            try:
                wanted = wanted_bytes(what, os.fstat(descriptor).st_size, offset, length)
                yield from exact(what, _read(descriptor, offset, wanted), wanted)
            finally:
                os.close(descriptor)

    def size_bytes(self, key: str) -> int | None:
        """The length of an object, as `Store.size_bytes`."""
        *parents, name = require_key(key).split("/")
        with self._errors(f"look for {key}"), self._directory(parents) as directory:
            if directory is None:
                return None
            try:
                found = os.stat(name, dir_fd=directory, follow_symlinks=False)
            except FileNotFoundError:
                return None
            return found.st_size if stat.S_ISREG(found.st_mode) else None

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """The objects whose keys begin so, as `Store.list`; what comes or goes meanwhile may be in it or not."""
        waiting = [require_prefix(prefix)]
        while waiting:
            above = waiting.pop()
            infos = []
            with self._errors(f"list {above or 'all objects'}"), self._directory(above.split("/")[:-1]) as directory:
                if directory is None:
                    continue
                with os.scandir(directory) as entries:
                    for entry in entries:
                        key = above + entry.name
                        if entry.is_dir(follow_symlinks=False):
                            if is_key(key):
                                waiting.append(f"{key}/")
                        elif is_listed(key, prefix) and entry.is_file(follow_symlinks=False):
                            with suppress(FileNotFoundError):  # it went meanwhile
                                infos.append(ObjectInfo(key, entry.stat(follow_symlinks=False).st_size))
            yield from infos

    def delete(self, key: str) -> None:
        """Remove an object, as `Store.delete`; the directories above it stay."""
        *parents, name = require_key(key).split("/")
        with self._errors(f"remove {key}"), self._directory(parents) as directory:
            if directory is not None and _is_regular(directory, name):
                with suppress(FileNotFoundError):
                    os.unlink(name, dir_fd=directory)
                _sync(directory)

    def close(self) -> None:
        """Nothing stays open."""

    @contextmanager
    def _root_directory(self, *, is_written: bool = False) -> Iterator[int]:
        try:
            descriptor = os.open(self._root, _OPEN_DIRECTORY)
        except (FileNotFoundError, NotADirectoryError) as error:
            message = f"there is no directory {self._root}: is its disk plugged in and mounted? If it is new, create it"
            raise RemoteUnreachableError(message) from error
        try:
            status = os.fstat(descriptor)
            place = (status.st_dev, status.st_ino)
            with self._lock:
                self._first_seen = first = self._first_seen or place
            if is_written and place != first:  # who only reads has hashes, and a disk may be plugged in again
                raise RemoteUnreachableError(
                    f"{self._root} is not the directory any more that it was: was its disk unplugged meanwhile?"
                )
            yield descriptor
        finally:
            os.close(descriptor)

    @contextmanager
    def _directory(self, parts: Sequence[str]) -> Iterator[int | None]:
        """A directory below the root, open; None if it is not there, or something else is."""
        with self._root_directory() as root:
            descriptor = root
            try:
                for part in parts:
                    try:
                        below = os.open(part, _OPEN_DIRECTORY | os.O_NOFOLLOW, dir_fd=descriptor)
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
    def _made_directory(self, parts: Sequence[str]) -> Iterator[int]:
        """A directory below the root, open, durable, and made if it is not there.

        Names that another run made are synced once too: it may have died before it did that.
        """
        with self._root_directory(is_written=True) as root:
            descriptor = root
            path = ""
            if path not in self._synced:
                _remove_old_temporaries(root)
                with self._lock:
                    self._synced.add(path)
            try:
                for part in parts:
                    path += f"{part}/"
                    is_new = False
                    try:
                        os.mkdir(part, 0o700, dir_fd=descriptor)
                        is_new = True
                    except FileExistsError:
                        pass
                    below = os.open(part, _OPEN_DIRECTORY | os.O_NOFOLLOW, dir_fd=descriptor)
                    try:
                        if is_new or path not in self._synced:
                            _sync(descriptor)
                            _remove_old_temporaries(below)
                            with self._lock:
                                self._synced.add(path)
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

    def _create(self, directory: int, temporary: str, name: str, key: str) -> None:
        """Give a temporary file its name, unless that is taken.

        Raises:
            ObjectExistsError: it is.
        """
        try:
            os.link(temporary, name, src_dir_fd=directory, dst_dir_fd=directory, follow_symlinks=False)
        except FileExistsError as error:
            raise ObjectExistsError(f"{self.name} has {key} already") from error
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            # FAT and some shares have no links.  There a lock keeps the others of this machine out meanwhile.
            fcntl.flock(directory, fcntl.LOCK_EX)  # ends with the descriptor
            if _is_taken(directory, name):
                raise ObjectExistsError(f"{self.name} has {key} already") from error
            os.rename(temporary, name, src_dir_fd=directory, dst_dir_fd=directory)
        else:
            os.unlink(temporary, dir_fd=directory)

    @contextmanager
    def _errors(self, what: str) -> Iterator[None]:
        """Turn every ``OSError`` of the block into an error of vaultfs."""
        try:
            yield
        except OSError as error:
            message = f"cannot {what} in {self.name}: {error.strerror or error}"
            if error.errno in _FULL:
                raise NoSpaceError(f"{message}; make room there") from error
            if error.errno in _REFUSED:
                raise RemoteRefusedError(f"{message}; check owner, permissions and mount options") from error
            if error.errno in _UNREACHABLE:
                raise RemoteUnreachableError(f"{message}; is its disk or share still connected?") from error
            raise RemoteError(message) from error


def _is_taken(directory: int, name: str) -> bool:
    try:
        os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def _is_regular(directory: int, name: str) -> bool:
    try:
        return stat.S_ISREG(os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode)
    except FileNotFoundError:
        return False


def _open_regular(directory: int, name: str) -> int:
    """Open a file for reading; -1 if there is none, or something else is."""
    if not _is_regular(directory, name):  # opening a FIFO or a device may do things
        return -1
    try:
        descriptor = os.open(name, _OPEN_FILE, dir_fd=directory)
    except OSError as error:
        if error.errno not in _NOT_THERE:
            raise
        return -1
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        return -1
    return descriptor


def _read(descriptor: int, offset: int, length: int) -> Iterator[bytes]:
    end = offset + length
    while offset < end and (piece := os.pread(descriptor, min(PIECE_BYTES, end - offset), offset)):
        yield piece
        offset += len(piece)


def _sync(directory: int) -> None:
    """Make the names in a directory durable, as far as its file system can."""
    try:
        os.fsync(directory)
    except OSError as error:
        if error.errno != errno.EINVAL:  # what file systems say that cannot sync directories
            raise


def _remove_old_temporaries(directory: int) -> None:
    oldest_s = time.time() - _OLD_S
    with os.scandir(directory) as entries:
        for entry in entries:
            if _TEMPORARY.fullmatch(entry.name):
                with suppress(OSError):  # another run removes it too, or it is somebody else's
                    if entry.stat(follow_symlinks=False).st_mtime < oldest_s:
                        os.unlink(entry.name, dir_fd=directory)
