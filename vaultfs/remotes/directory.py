"""A directory as a remote: ``file:///dir``, on another disk, a stick, or a mounted share.

- The directory itself must exist.  It is never created: while its disk is not plugged in, a new tree on the disk below
  would look like a remote, and be full soon.  Name a directory *on* that disk, not the place where it is mounted.
- Nothing is stored any more when another directory has come in its place, as when a disk is unplugged meanwhile.
- An object appears with one rename or link of a temporary file beside it, after its bytes are on the disk; the names of
  directories that were made for it are synced before, its own name after.
- Every part of a path below the directory is opened from the one above (`vaultfs.storage.anchored_paths`), so nothing
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
from vaultfs.storage.anchored_paths import (
    directory_below,
    made_directory,
    open_regular,
    size_bytes,
    status_of,
    sync_names,
)
from vaultfs.storage.durable import write_all

_OPEN_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_CREATE_FILE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_TEMPORARY: Final = re.compile(r"\.vaultfs-[0-9a-f]{32}\.tmp")
_OLD_S: Final = 24 * 3600.0

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
        self._synced: set[tuple[str, ...]] = set()
        """Directories whose names are known to be durable."""
        self._first_seen: tuple[int, int] | None = None
        """The root, by its file system and number, at the first request."""
        self._lock = threading.Lock()

    def put(self, key: str, source: Source, *, if_absent: bool = False) -> None:
        """Store an object, as `Store.put`; it is on the disk when this returns."""
        *parents, name = require_key(key).split("/")
        what = f"store {key}"
        with self._errors(what), self._made_directory(parents) as directory:
            if if_absent and status_of(directory, name) is not None:
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
            sync_names(directory)

    def get(self, key: str, *, offset: int = 0, length: int | None = None) -> Iterator[bytes]:
        """Read an object, as `Store.get`."""
        *parents, name = require_key(key).split("/")
        require_range(offset, length)
        what = f"{key} in {self.name}"
        with self._errors(f"read {key}"):
            descriptor = -1
            with self._directory(parents) as directory:
                if directory is not None:
                    descriptor = open_regular(directory, name)
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
            return None if directory is None else size_bytes(directory, name)

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
            if directory is not None and size_bytes(directory, name) is not None:
                with suppress(FileNotFoundError):
                    os.unlink(name, dir_fd=directory)
                sync_names(directory)

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
        with self._root_directory() as root, directory_below(root, parts) as found:
            yield found

    @contextmanager
    def _made_directory(self, parts: Sequence[str]) -> Iterator[int]:
        """A directory below the root, open, durable, and made if it is not there."""
        with self._root_directory(is_written=True) as root:
            if () not in self._synced:
                _remove_old_temporaries(root)
                self._synced.add(())
            with made_directory(root, parts, self._synced, _remove_old_temporaries) as found:
                yield found

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
            if status_of(directory, name) is not None:
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


def _read(descriptor: int, offset: int, length: int) -> Iterator[bytes]:
    end = offset + length
    while offset < end and (piece := os.pread(descriptor, min(PIECE_BYTES, end - offset), offset)):
        yield piece
        offset += len(piece)


def _remove_old_temporaries(directory: int) -> None:
    oldest_s = time.time() - _OLD_S
    with os.scandir(directory) as entries:
        for entry in entries:
            if _TEMPORARY.fullmatch(entry.name):
                with suppress(OSError):  # another run removes it too, or it is somebody else's
                    if entry.stat(follow_symlinks=False).st_mtime < oldest_s:
                        os.unlink(entry.name, dir_fd=directory)
