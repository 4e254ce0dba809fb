"""Copying local files and trees into a vault: whole or not at all.

A put writes below a hidden directory of the vault (:mod:`vaultfs.vault.transfer_staging`), commits now and then so that
its memory stays bounded, and moves the result to its place with one rename at the end.  If it fails or is interrupted,
it removes what it wrote; if it is killed, the next open does.

Kept are: type, permissions, times, symlinks, extended attributes with access lists, hard links among what is copied,
and holes; owners too if root copies.  :mod:`vaultfs.vault.transfer_out` is the way out.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

from vaultfs.errors import UsageError
from vaultfs.ids import InodeId
from vaultfs.vault.api import Vault
from vaultfs.vault.filesystem import FileSystem
from vaultfs.vault.inodes import Inode
from vaultfs.vault.transfer_outcome import Outcome, Problem, Progress, no_progress, resolve_target
from vaultfs.vault.transfer_staging import COMMIT_INODES, commit, staged
from vaultfs.vault.tree import RENAME_NOREPLACE

PIECE_BYTES: Final = 1 << 20
COMMIT_BYTES: Final = 128 << 20
"""A commit after so much bounds what is kept in memory: rows, and sealed segments waiting for theirs."""

_READ_FLAGS: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_KEPT_XATTRS: Final = (b"user.", b"trusted.", b"security.capability", b"system.posix_acl_")


def put(
    vault: Vault,
    source: Path,
    target: bytes,
    *,
    replace: bool = False,
    keep_going: bool = False,
    progress: Progress = no_progress,
) -> Outcome:
    """Copy a local file or tree into a vault; durable on return, invisible until then.

    Args:
        vault: open for writing.
        source: local; a symlink is copied as such.
        target: absolute path in the vault: a directory to copy into, or the new name.
        replace: put a file in the place of another.
        keep_going: leave out what cannot be read, and say so in the outcome.
        progress: told about it; may raise to stop.

    Raises:
        UsageError: the target exists, or the vault lies in the source.
        FileSystemError: the target's directory does not exist.
        OSError: the source cannot be read.
        NoSpaceError, StorageError: the vault's disk is full or fails.
    """
    fs = vault.filesystem
    name = os.fsencode(source.resolve().name if source.name in {"", ".."} else source.name)
    directory, last = resolve_target(vault, target, name, replace=replace)
    real, inner = os.path.realpath(source), os.path.realpath(fs.layout.root)
    if not source.is_symlink() and f"{inner}/".startswith(f"{real.rstrip('/')}/"):
        raise UsageError(f"{source}: the vault lies in it, and cannot be copied into itself")
    with staged(fs) as staging:
        putter = _Putter(fs, keep_going=keep_going, progress=progress)
        putter.measure(source)
        putter.copy(source, staging)
        _publish(fs, staging, directory, last, replace=replace)
    return putter.outcome


def put_stream(
    vault: Vault,
    read: Callable[[int], bytes],
    target: bytes,
    *,
    replace: bool = False,
    mode: int = 0o644,
    progress: Progress = no_progress,
) -> Outcome:
    """Copy a stream, as of a pipe, into a file of a vault; as :func:`put`.

    Args:
        vault: open for writing.
        read: returns at most so many bytes; none at the end.
        target: absolute path of the file.
        replace: put it in the place of another file.
        mode: permissions.
        progress: told about it; may raise to stop.

    Raises:
        UsageError, FileSystemError, OSError, NoSpaceError, StorageError: as :func:`put`.
    """
    fs = vault.filesystem
    directory, last = resolve_target(vault, target, None, replace=replace)
    with staged(fs) as staging:
        putter = _Putter(fs, keep_going=False, progress=progress)
        putter.copy_stream(read, staging, mode)
        _publish(fs, staging, directory, last, replace=replace)
    return putter.outcome


_NEW: Final = b"new"


def _publish(fs: FileSystem, staging: InodeId, directory: InodeId, name: bytes, *, replace: bool) -> None:
    """Move the finished copy to its place, visible from the next commit on; its data is durable before."""
    if fs.tree.lookup(staging, _NEW) is None:
        return  # left out, as the outcome says
    commit(fs)
    with fs.changing():
        fs.rename(staging, _NEW, directory, name, 0 if replace else RENAME_NOREPLACE)


class _Level:
    """A local directory that is being copied.

    Args:
        descriptor: of it; closed by `close`.
        directory: in the vault.
        shown: its path, for messages.
        inode: in the vault, opened; None for the directory that holds the source, which is not listed.
        status: of the local directory when it was opened.
    """

    def __init__(
        self,
        descriptor: int,
        directory: InodeId,
        shown: bytes,
        inode: Inode | None = None,
        status: os.stat_result | None = None,
    ) -> None:
        self.descriptor = descriptor
        self.directory = directory
        self.shown = shown
        self.inode = inode
        self.status = status
        self._listing = None if inode is None else os.scandir(descriptor)
        self.names: Iterator[bytes] = iter(()) if self._listing is None else map(_name, self._listing)

    def close(self, fs: FileSystem) -> None:
        """Give everything back."""
        if self._listing is not None:
            self._listing.close()
        if self.inode is not None:
            fs.release(self.inode)
        os.close(self.descriptor)


def _name(entry: os.DirEntry[str]) -> bytes:
    return os.fsencode(entry.name)


def _data_ranges(descriptor: int, status: os.stat_result) -> Iterator[tuple[int, int | None]]:
    """The parts of a file that are not holes; an end of None is the end of the file, wherever that is by then."""
    if status.st_blocks * 512 >= status.st_size:
        yield 0, None
        return
    position = 0
    while position < status.st_size:
        try:
            start = os.lseek(descriptor, position, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return  # a hole up to the end
            yield position, None
            return
        position = os.lseek(descriptor, start, os.SEEK_HOLE)
        yield start, position


class _Putter:
    """One put.

    Args:
        fs: the vault.
        keep_going: note what cannot be read, instead of giving up.
        progress: told after each piece.
    """

    def __init__(self, fs: FileSystem, *, keep_going: bool, progress: Progress) -> None:
        self._fs = fs
        self._keep_going = keep_going
        self._progress = progress
        self._total_bytes: int | None = None
        self._links: dict[tuple[int, int], InodeId] = {}
        self._uncommitted_bytes = 0
        self._uncommitted_inodes = 0
        self._is_root = os.geteuid() == 0
        self.outcome = Outcome()

    def measure(self, source: Path) -> None:
        """Add up the sizes of all files, so that progress can tell how much is left."""
        status = source.lstat()
        total = status.st_size if stat.S_ISREG(status.st_mode) else 0
        if stat.S_ISDIR(status.st_mode):
            seen: set[tuple[int, int]] = set()
            # What cannot be listed is reported when it is copied.
            for _, _, names, descriptor in os.fwalk(source):
                for name in names:
                    with suppress(OSError):
                        status = os.stat(name, dir_fd=descriptor, follow_symlinks=False)
                        if stat.S_ISREG(status.st_mode) and (status.st_dev, status.st_ino) not in seen:
                            total += status.st_size
                            if status.st_nlink > 1:
                                seen.add((status.st_dev, status.st_ino))
                self._progress(0, None, 0)
        self._total_bytes = total
        self._progress(0, total, 0)

    def copy(self, source: Path, staging: InodeId) -> None:
        """Copy a file or a whole tree to the name `_NEW` in the hidden directory."""
        parent = os.open(source.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        stack = [_Level(parent, staging, os.fsencode(source.parent))]
        try:
            # ``.`` and ``/`` have no last name to be opened by; they are directories.
            self._try(stack, os.fsencode(source.name) or b".", _NEW, os.fsencode(source))
            while len(stack) > 1:
                level = stack[-1]
                name = next(level.names, None)
                if name is None:
                    self._leave(level)
                    stack.pop().close(self._fs)
                else:
                    self._try(stack, name, name, level.shown.rstrip(b"/") + b"/" + name)
        finally:
            for level in stack:
                level.close(self._fs)

    def _try(self, stack: list[_Level], name: bytes, new_name: bytes, path: bytes) -> None:
        """Copy one entry of the uppermost level; a directory becomes a level itself."""
        level = stack[-1]
        try:
            deeper = self._one(level, name, new_name, path)
        except OSError as error:
            if not self._keep_going:
                raise OSError(error.errno, error.strerror, os.fsdecode(path)) from None
            self.outcome.problems.append(Problem(path, f"left out: {error.strerror}"))
            with self._fs.changing():
                if self._fs.tree.lookup(level.directory, new_name) is not None:
                    self._fs.unlink(level.directory, new_name)
        else:
            if deeper is not None:
                stack.append(deeper)

    def _one(self, level: _Level, name: bytes, new_name: bytes, path: bytes) -> _Level | None:
        """Copy one entry; of a directory, return the level that it is."""
        status = os.stat(name, dir_fd=level.descriptor, follow_symlinks=False)
        kind = stat.S_IFMT(status.st_mode)
        key = (status.st_dev, status.st_ino)
        linked = self._links.get(key) if status.st_nlink > 1 else None
        if linked is not None:
            with self._fs.changing():
                self._fs.tree.link(self._fs.inodes.get(linked), level.directory, new_name)
            self._finished()
            return None
        if kind == stat.S_IFDIR:
            return self._enter(_open(name, level.descriptor, status), status, level.directory, new_name, path)
        if kind == stat.S_IFREG:
            descriptor = _open(name, level.descriptor, status)
            try:
                inode = self._regular(descriptor, level.directory, new_name, path)
            finally:
                os.close(descriptor)
        else:
            target = os.fsencode(os.readlink(name, dir_fd=level.descriptor)) if kind == stat.S_IFLNK else None
            inode = self._make(level.directory, new_name, status, target=target)
            self._attributes(inode, status)
            self._fs.release(inode)
        if status.st_nlink > 1:
            self._links[key] = inode.id
        self._finished()
        return None

    def _make(self, directory: InodeId, name: bytes, status: os.stat_result, *, target: bytes | None = None) -> Inode:
        """Make the inode, opened, with the local one's owner if that is ours to say."""
        uid, gid = (status.st_uid, status.st_gid) if self._is_root else (os.geteuid(), os.getegid())
        mode = stat.S_IFMT(status.st_mode) | 0o700
        with self._fs.changing():
            inode = self._fs.make(directory, name, mode, uid, gid, rdev=status.st_rdev, target=target)
            self._fs.open(inode)
        return inode

    def _enter(
        self, descriptor: int, status: os.stat_result, directory: InodeId, new_name: bytes, path: bytes
    ) -> _Level:
        """Begin with a directory."""
        try:
            inode = self._make(directory, new_name, status)
            return _Level(descriptor, inode.id, path, inode, status)
        except BaseException:
            os.close(descriptor)
            raise

    def _leave(self, level: _Level) -> None:
        """A directory is complete: give it the attributes that its entries would have changed."""
        assert level.inode is not None
        assert level.status is not None
        self._xattrs(level.descriptor, level.inode, level.shown)
        self._attributes(level.inode, level.status)
        self._finished()

    def _attributes(self, inode: Inode, status: os.stat_result) -> None:
        mode = stat.S_IMODE(status.st_mode)
        if (status.st_uid, status.st_gid) != (inode.uid, inode.gid) and not inode.is_directory:
            mode &= ~(stat.S_ISUID | stat.S_ISGID)  # they would lend another's rights
        with self._fs.changing():
            self._fs.set_attributes(inode, mode=mode, atime_ns=status.st_atime_ns, mtime_ns=status.st_mtime_ns)

    def _xattrs(self, descriptor: int, inode: Inode, path: bytes) -> None:
        try:
            names = [os.fsencode(name) for name in os.listxattr(descriptor)]
        except OSError as error:
            if error.errno != errno.ENOTSUP:
                self.outcome.problems.append(Problem(path, f"attributes not kept: {error.strerror}"))
            return
        for name in names:
            if not name.startswith(_KEPT_XATTRS):
                continue
            try:
                value = os.getxattr(descriptor, name)
            except OSError as error:
                reason = f"attribute {os.fsdecode(name)} not kept: {error.strerror}"
                self.outcome.problems.append(Problem(path, reason))
                continue
            with self._fs.changing():
                self._fs.xattrs.set(inode, name, value)

    def _regular(self, descriptor: int, directory: InodeId, new_name: bytes, path: bytes) -> Inode:
        """Copy a regular file."""
        status = os.fstat(descriptor)
        inode = self._make(directory, new_name, status)
        before = self.outcome.done_bytes
        try:
            for start, stop in _data_ranges(descriptor, status):
                self._range(descriptor, inode, start, stop)
            if status.st_size > inode.size:
                with self._fs.changing():
                    self._fs.set_attributes(inode, size=status.st_size)
            self._xattrs(descriptor, inode, path)
            self._attributes(inode, status)
            self.outcome.done_bytes = before + inode.size
        finally:
            self._fs.release(inode)
        now = os.fstat(descriptor)
        if (now.st_mtime_ns, now.st_size) != (status.st_mtime_ns, status.st_size):
            self.outcome.problems.append(Problem(path, "changed while it was read: the copy may be mixed"))
        return inode

    def _range(self, descriptor: int, inode: Inode, start: int, stop: int | None) -> None:
        """Copy a range, or everything up to the end of the file."""
        position = start
        while stop is None or position < stop:
            wanted = PIECE_BYTES - position % PIECE_BYTES
            data = os.pread(descriptor, wanted if stop is None else min(wanted, stop - position), position)
            if not data:
                return
            self._write(inode, position, data)
            position += len(data)

    def _write(self, inode: Inode, position: int, data: bytes) -> None:
        self._fs.write(inode, position, data, updates_times=False)
        self.outcome.done_bytes += len(data)
        self._uncommitted_bytes += len(data)
        self._breathe()

    def copy_stream(self, read: Callable[[int], bytes], staging: InodeId, mode: int) -> None:
        """Copy a stream to the name `_NEW` in the hidden directory."""
        with self._fs.changing():
            inode = self._fs.make(staging, _NEW, stat.S_IFREG | mode, os.geteuid(), os.getegid())
            self._fs.open(inode)
        try:
            position = 0
            while data := read(PIECE_BYTES):
                self._write(inode, position, data)
                position += len(data)
        finally:
            self._fs.release(inode)
        self._finished()

    def _finished(self) -> None:
        self.outcome.files += 1
        self._uncommitted_inodes += 1
        self._breathe()

    def _breathe(self) -> None:
        """Between two steps: bound the memory, tell the progress, let it stop us."""
        if self._uncommitted_bytes >= COMMIT_BYTES or self._uncommitted_inodes >= COMMIT_INODES:
            commit(self._fs)
            self._uncommitted_bytes = self._uncommitted_inodes = 0
        self._progress(self.outcome.done_bytes, self._total_bytes, self.outcome.files)


def _open(name: bytes, directory: int, status: os.stat_result) -> int:
    """Open a file or directory that has just been looked at, if it is still the same."""
    flags = _READ_FLAGS | (os.O_DIRECTORY if stat.S_ISDIR(status.st_mode) else 0)
    descriptor = os.open(name, flags, dir_fd=directory)
    if not os.path.samestat(os.fstat(descriptor), status):
        os.close(descriptor)
        raise OSError(errno.ESTALE, "it was replaced by another file meanwhile")
    return descriptor
