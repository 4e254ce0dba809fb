"""Copying files and trees out of a vault: each file whole and verified, or not at all.

The copy is made under a hidden name beside its destination and renamed when it is complete.  A file of a tree that is
damaged is left out and named in the outcome; the others are copied.

Kept are: type, permissions, times, symlinks, extended attributes with access lists, hard links and holes; owners too if
root copies.
"""

from __future__ import annotations

import ctypes
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from vaultfs.errors import ExitCode, IntegrityError, UsageError
from vaultfs.ids import InodeId
from vaultfs.vault.api import Vault
from vaultfs.vault.filesystem import FileSystem
from vaultfs.vault.inodes import Inode
from vaultfs.vault.reading import ChunkDamageError
from vaultfs.vault.transfer_outcome import Outcome, Problem, Progress, naming, no_progress
from vaultfs.vault.transfer_staging import is_unfinished

PIECE_BYTES: Final = 1 << 20
_WINDOW_CHUNKS: Final = 1024
"""Extents asked for at once."""

_libc = ctypes.CDLL(None, use_errno=True)


def get(
    vault: Vault, path: bytes, destination: str, *, replace: bool = False, progress: Progress = no_progress
) -> Outcome:
    """Copy a file or tree out of a vault; on the disk on return.

    Args:
        vault: open, read-only if you like.
        path: in the vault; a symlink is copied as such.
        destination: local: a directory to copy into, or the new name.
        replace: put a file in the place of another.
        progress: told about it; may raise to stop.

    Raises:
        UsageError: the destination exists.
        FileSystemError: there is no such file in the vault.
        IntegrityError: the file is damaged.  Damage within a tree is in the outcome instead.
        OSError: the local disk refused.
    """
    fs = vault.filesystem
    with naming(path):
        inode = fs.inodes.get(InodeId(vault.stat(path, follow=False).st_ino))
    final = _final_path(path, destination, is_tree=inode.is_directory, replace=replace)
    temporary = final.with_name(f".{final.name[:100]}.vaultfs-{secrets.token_hex(6)}")
    getter = _Getter(fs, progress)
    try:
        getter.copy(inode, path, temporary)
        if os.path.lexists(final) and not replace:
            raise UsageError(f"{final} was made by another program meanwhile; --force replaces it")
        temporary.rename(final)
    except BaseException:
        _remove(temporary)
        raise
    _fsync_directory(final.parent)
    return getter.outcome


def total_bytes(fs: FileSystem, top: Inode) -> int:
    """The sizes of all files of a tree, or of one file, together; one with several names counts once."""
    if not top.is_directory:
        return top.size if top.is_regular else 0
    total, stack, seen = 0, [top.id], set()
    while stack:
        for entry in fs.tree.entries(stack.pop()):
            if entry.inode.is_directory:
                stack.append(entry.inode.id)
            elif entry.inode.is_regular and entry.inode.id not in seen:
                total += entry.inode.size
                if entry.inode.nlink > 1:
                    seen.add(entry.inode.id)
    return total


def _final_path(path: bytes, destination: str, *, is_tree: bool, replace: bool) -> Path:
    """Where the copy shall be in the end.

    Raises:
        UsageError: something is there already, or it cannot have a name.
    """
    final = Path(destination)
    if final.is_dir():
        name = os.fsdecode(path.rstrip(b"/").rpartition(b"/")[2])
        if name in {"", ".", ".."}:
            raise UsageError(f"{destination} exists; give the copy a name of its own")
        final /= name
    elif destination.endswith("/") and not is_tree:
        raise UsageError(f"{destination}: there is no such directory")
    if not final.parent.is_dir():
        raise UsageError(f"{final.parent}: there is no such directory")
    if os.path.lexists(final):
        if is_tree or (final.is_dir() and not final.is_symlink()):
            raise UsageError(f"{final} exists; choose another name")
        if not replace:
            raise UsageError(f"{final} exists; --force replaces it")
    return final


def _remove(path: Path) -> None:
    """Remove an unfinished copy, as far as the disk lets us."""
    if path.is_dir() and not path.is_symlink():
        for directory, names, _ in os.walk(path):
            for name in names:
                inner = Path(directory, name)
                if not inner.is_symlink():
                    inner.chmod(0o700)  # a finished one may be read-only
        shutil.rmtree(path, ignore_errors=True)
    elif os.path.lexists(path):
        path.unlink()


def _fsync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def data_ranges(fs: FileSystem, inode: Inode) -> Iterator[tuple[int, int]]:
    """The parts of a file that are not holes, as offsets of first and after-last byte, each at most a window long."""
    chunk_size = fs.chunk_size
    in_memory = set(inode.dirty) | set(inode.pending)
    last = -1
    while True:
        ahead = [index for index in in_memory if index > last]
        stored = fs.chunk_rows.next_extent(inode.id, last + 1)
        if stored is not None:
            ahead.append(stored)
        if not ahead:
            return
        first = min(ahead)
        last = first + _WINDOW_CHUNKS - 1
        indices = {place.idx for place in fs.chunk_rows.places(inode.id, first, last)}
        indices.update(index for index in in_memory if first <= index <= last)
        start = end = -1
        for index in sorted(indices):
            if index != end:
                if start >= 0:
                    yield start * chunk_size, end * chunk_size
                start = index
            end = index + 1
        if start >= 0:
            yield start * chunk_size, min(end * chunk_size, inode.size)


def read_pieces(fs: FileSystem, inode: Inode, start: int, stop: int, path: bytes) -> Iterator[tuple[int, bytearray]]:
    """A range of a file, piece by piece: offset and bytes, all authenticated.

    Raises:
        IntegrityError: something is damaged; the message names the file and the place.
    """
    position = start
    while position < stop:
        try:
            with fs.database_safe():
                # Not ``fs.read``, which would log what is reported here.
                data = fs.files.read(inode, position, min(PIECE_BYTES, stop - position))
        except ChunkDamageError as damage:
            raise IntegrityError(
                f"{os.fsdecode(path)}: damaged from byte {damage.file_offset} on (chunk {damage.chunk})"
            ) from damage
        except IntegrityError as error:
            raise IntegrityError(f"{os.fsdecode(path)}: damaged from byte {position} on ({error})") from error
        yield position, data
        position += len(data)


class _Level:
    """A directory that is being copied: its inode, and the local one that is open."""

    def __init__(self, fs: FileSystem, inode: Inode, path: bytes, descriptor: int) -> None:
        self.inode = inode
        self.path = path
        self.descriptor = descriptor
        self.entries = fs.tree.entries(inode.id)
        fs.open(inode)

    def close(self, fs: FileSystem) -> None:
        """Give everything back."""
        fs.release(self.inode)
        os.close(self.descriptor)


class _Getter:
    """One get.

    Args:
        fs: the vault.
        progress: told after each piece.
    """

    def __init__(self, fs: FileSystem, progress: Progress) -> None:
        self._fs = fs
        self._progress = progress
        self._total_bytes = 0
        self._passed_bytes = 0
        """Of the total, with what was left out."""
        self._links: dict[InodeId, bytes] = {}
        self._uid = os.geteuid()
        self.outcome = Outcome()

    def copy(self, inode: Inode, path: bytes, temporary: Path) -> None:
        """Copy a file or a tree to a name that is not there yet, and bring it to the disk."""
        self._total_bytes = total_bytes(self._fs, inode)
        parent = os.open(temporary.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        name = os.fsencode(temporary.name)
        try:
            if inode.is_directory:
                self._tree(inode, path, parent, name)
                if _libc.syncfs(parent):
                    raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(temporary.parent))
            else:
                self._file(inode, path, parent, name, is_durable=True)
        finally:
            os.close(parent)

    def _tree(self, top: Inode, path: bytes, parent: int, name: bytes) -> None:
        stack = [self._enter(top, path, parent, name)]
        try:
            while stack:
                level = stack[-1]
                entry = next(level.entries, None)
                if entry is None:
                    self._attributes(level.descriptor, level.inode, level.path)
                    stack.pop().close(self._fs)
                    self._finished()
                    continue
                below = level.path.rstrip(b"/") + b"/" + entry.name
                if is_unfinished(self._fs, level.inode.id, entry.name):
                    continue
                if entry.name in {b"", b".", b".."} or b"/" in entry.name or b"\0" in entry.name:
                    self._problem(below, "left out: no name that a file may have", ExitCode.INTEGRITY)
                elif entry.inode.is_directory:
                    stack.append(self._enter(entry.inode, below, level.descriptor, entry.name))
                else:
                    self._try(entry.inode, below, level.descriptor, entry.name)
        finally:
            for level in stack:
                level.close(self._fs)

    def _enter(self, inode: Inode, path: bytes, parent: int, name: bytes) -> _Level:
        with _explained(path):
            os.mkdir(name, 0o700, dir_fd=parent)
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
            return _Level(self._fs, inode, path, os.open(name, flags, dir_fd=parent))

    def _try(self, inode: Inode, path: bytes, parent: int, name: bytes) -> None:
        """Copy one file of a tree; damage, and what only root may make, are noted."""
        try:
            self._file(inode, path, parent, name, is_durable=False)
        except IntegrityError as error:
            os.unlink(name, dir_fd=parent)
            self._problem(path, f"left out: {str(error).removeprefix(os.fsdecode(path) + ': ')}", ExitCode.INTEGRITY)
        except PermissionError as error:
            if inode.is_regular:
                raise
            self._problem(path, f"left out: {error.strerror}")

    def _file(self, inode: Inode, path: bytes, parent: int, name: bytes, *, is_durable: bool) -> None:
        """Copy anything but a directory."""
        first = self._links.get(inode.id)
        kind = stat.S_IFMT(inode.mode)
        with _explained(path):
            if first is not None:
                os.link(first, name, dst_dir_fd=parent, follow_symlinks=False)
            elif kind == stat.S_IFREG:
                self._regular(inode, path, parent, name, is_durable=is_durable)
            elif kind == stat.S_IFLNK:
                os.symlink(inode.target or b"", name, dir_fd=parent)
            else:
                os.mknod(name, kind | 0o600, inode.rdev, dir_fd=parent)
            if first is None and kind != stat.S_IFREG:
                self._plain_attributes(inode, parent, name)
        if first is None and inode.nlink > 1:
            self._links[inode.id] = bytes(Path(f"/proc/self/fd/{parent}").readlink()) + b"/" + name
        self._finished()

    def _regular(self, inode: Inode, path: bytes, parent: int, name: bytes, *, is_durable: bool) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(name, flags, 0o600, dir_fd=parent)
        self._fs.open(inode)
        before = self._passed_bytes
        try:
            for start, stop in data_ranges(self._fs, inode):
                self._tell(before + start)
                for position, data in read_pieces(self._fs, inode, start, stop, path):
                    _write_all(descriptor, data, position)
                    self._tell(before + position + len(data))
            os.ftruncate(descriptor, inode.size)
            self._attributes(descriptor, inode, path)
            if is_durable:
                os.fsync(descriptor)
        finally:
            self._fs.release(inode)
            os.close(descriptor)
            self._tell(before + inode.size)
        self.outcome.done_bytes += inode.size

    def _attributes(self, descriptor: int, inode: Inode, path: bytes) -> None:
        """Of a regular file or a directory."""
        is_owner = self._uid in {0, inode.uid}
        if self._uid == 0:
            os.fchown(descriptor, inode.uid, inode.gid)
        os.fchmod(descriptor, stat.S_IMODE(inode.mode) & (0o7777 if is_owner else 0o1777))
        for name in self._fs.xattrs.names(inode):
            if self._uid and name.startswith((b"trusted.", b"security.")):
                continue  # root's, like owners
            try:
                os.setxattr(descriptor, name, self._fs.xattrs.get(inode, name))
            except OSError as error:
                self._problem(path, f"attribute {os.fsdecode(name)} not kept: {error.strerror}")
        os.utime(descriptor, ns=(inode.atime_ns, inode.mtime_ns))

    def _plain_attributes(self, inode: Inode, parent: int, name: bytes) -> None:
        """Of a symlink or special file."""
        if self._uid == 0:
            os.chown(name, inode.uid, inode.gid, dir_fd=parent, follow_symlinks=False)
        if not stat.S_ISLNK(inode.mode):
            os.chmod(name, stat.S_IMODE(inode.mode), dir_fd=parent)
        os.utime(name, ns=(inode.atime_ns, inode.mtime_ns), dir_fd=parent, follow_symlinks=False)

    def _problem(self, path: bytes, reason: str, exit_code: ExitCode = ExitCode.PARTIAL) -> None:
        self.outcome.problems.append(Problem(path, reason, exit_code))

    def _tell(self, done_bytes: int) -> None:
        self._passed_bytes = done_bytes
        self._progress(done_bytes, self._total_bytes, self.outcome.files)

    def _finished(self) -> None:
        self.outcome.files += 1
        self._tell(self._passed_bytes)


@contextmanager
def _explained(path: bytes) -> Iterator[None]:
    """Let errors of the local disk name the file that was copied."""
    try:
        yield
    except OSError as error:
        raise type(error)(error.errno, error.strerror, f"copy of {os.fsdecode(path)}") from error


def _write_all(descriptor: int, data: bytearray, position: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(descriptor, view, position)
        position += written
        view = view[written:]
