"""The Python API: a vault as paths and file objects, without FUSE.

Paths are absolute within the vault, ``/`` between names, ``str`` (file system encoding) or ``bytes``; symlinks are
followed as the kernel would, but for the last part where a method says so.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, Final, Self

from vaultfs.crypto.slots import Secret
from vaultfs.errors import FileSystemError, UsageError
from vaultfs.storage.segment_source import SegmentSource
from vaultfs.vault.filesystem import FileSystem
from vaultfs.vault.inodes import Inode
from vaultfs.vault.opening import open_filesystem
from vaultfs.vault.snapshot_deleting import delete_snapshot
from vaultfs.vault.snapshot_image import open_snapshot
from vaultfs.vault.snapshot_listing import all_snapshots
from vaultfs.vault.snapshot_making import create_snapshot
from vaultfs.vault.snapshot_manifest import SnapshotInfo
from vaultfs.vault.tree import RENAME_EXCHANGE
from vaultfs.vault.vault_file import VaultFile

MAX_SYMLINKS: Final = 40

VaultPath = str | bytes | os.PathLike[str]


def open_vault(
    path: str | os.PathLike[str],
    secret: Secret,
    *,
    read_only: bool = False,
    lock_wait_s: float = 0.0,
    purpose: str = "python",
    on_unlocked: Callable[[], None] | None = None,
    snapshot: str | int | None = None,
    source: SegmentSource | None = None,
) -> Vault:
    """Open a vault that is not mounted; use it as a context manager.

    Args:
        path: the vault's directory.
        secret: opens a key slot.
        read_only: change nothing.
        lock_wait_s: how long to wait for another process to finish.
        purpose: shown to others that want the vault.
        on_unlocked: called once the key derivation is done.
        snapshot: open this one instead of the present, read-only; the vault may be mounted meanwhile.
        source: has segments that are missing or damaged here.

    Raises:
        VaultError: as :func:`vaultfs.vault.opening.open_filesystem`, or
            :func:`vaultfs.vault.snapshot_image.open_snapshot`.
    """
    if snapshot is not None:
        return Vault(open_snapshot(path, secret, snapshot, on_unlocked=on_unlocked, source=source))
    return Vault(
        open_filesystem(
            path,
            secret,
            read_only=read_only,
            lock_wait_s=lock_wait_s,
            purpose=purpose,
            on_unlocked=on_unlocked,
            source=source,
        )
    )


class Vault:
    """An open vault.  Not thread-safe.

    Args:
        filesystem: open; closed with the vault.
    """

    def __init__(self, filesystem: FileSystem) -> None:
        self.filesystem = filesystem
        self._uid = os.getuid()
        self._gid = os.getgid()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Make everything durable and give the vault up."""
        self.filesystem.close()

    def commit(self) -> None:
        """Make everything durable now."""
        with self.filesystem.changing():
            self.filesystem.committer.commit()

    # --- snapshots

    def create_snapshot(self, label: str = "") -> SnapshotInfo:
        """Keep the state of the whole vault as it is now; durable on return."""
        return create_snapshot(self.filesystem, label)

    def snapshots(self) -> list[SnapshotInfo]:
        """All snapshots, oldest first; those included that `SnapshotInfo.is_kept` says are of another history."""
        return all_snapshots(self.filesystem)

    def delete_snapshot(self, which: str | int) -> SnapshotInfo:
        """Delete a snapshot, given by its number or the beginning of its id, and give back its space.

        Raises:
            UsageError: there is no such snapshot.
            VaultLockedError: it is mounted, or being read.
        """
        return delete_snapshot(self.filesystem, which)

    # --- paths

    def _resolve(self, path: VaultPath, *, follow: bool = True) -> Inode:
        return self._walk(self._parts(path), follow=follow)[-1]

    @staticmethod
    def _parts(path: VaultPath) -> list[bytes]:
        return [part for part in os.fsencode(path).split(b"/") if part not in {b"", b"."}]

    def _walk(self, parts: list[bytes], *, follow: bool) -> list[Inode]:
        """The inodes from the root to the end of a path."""
        fs = self.filesystem
        chain = [fs.tree.root()]
        todo = list(reversed(parts))
        links = 0
        while todo:
            part = todo.pop()
            if part == b"..":
                if len(chain) > 1:
                    chain.pop()
                continue
            if not chain[-1].is_directory:
                raise FileSystemError(errno.ENOTDIR)
            inode = fs.tree.child(chain[-1].id, part)
            if stat.S_ISLNK(inode.mode) and (todo or follow):
                links += 1
                if links > MAX_SYMLINKS:
                    raise FileSystemError(errno.ELOOP)
                target = inode.target or b""
                if target.startswith(b"/"):
                    del chain[1:]
                todo.extend(reversed([piece for piece in target.split(b"/") if piece not in {b"", b"."}]))
                continue
            chain.append(inode)
        return chain

    def _place(self, path: VaultPath) -> tuple[list[Inode], bytes]:
        """The chain to the parent directory, and the last name."""
        parts = self._parts(path)
        if not parts or parts[-1] == b"..":
            raise FileSystemError(errno.EINVAL, f"{os.fsdecode(path)!r} names no entry of a directory")
        chain = self._walk(parts[:-1], follow=True)
        if not chain[-1].is_directory:
            raise FileSystemError(errno.ENOTDIR)
        return chain, parts[-1]

    def exists(self, path: VaultPath) -> bool:
        """Whether something is there; symlinks are not followed at the end."""
        try:
            self._resolve(path, follow=False)
        except FileSystemError as error:
            if error.errno in {errno.ENOENT, errno.ENOTDIR}:
                return False
            raise
        return True

    def stat(self, path: VaultPath, *, follow: bool = True) -> os.stat_result:
        """Attributes as ``os.stat`` gives them; times are in whole seconds and in ``st_*time_ns``.

        Raises:
            FileSystemError: ENOENT, ENOTDIR, ELOOP.
        """
        return _stat_result(self.filesystem, self._resolve(path, follow=follow))

    def listdir(self, path: VaultPath = b"/") -> list[bytes]:
        """The names in a directory."""
        return [name for name, _ in self.scan(path)]

    def scan(self, path: VaultPath = b"/") -> Iterator[tuple[bytes, os.stat_result]]:
        """The names in a directory with their attributes."""
        directory = self._resolve(path)
        if not directory.is_directory:
            raise FileSystemError(errno.ENOTDIR)
        for entry in self.filesystem.tree.entries(directory.id):
            yield entry.name, _stat_result(self.filesystem, entry.inode)

    def mkdir(self, path: VaultPath, mode: int = 0o755) -> None:
        """Make a directory."""
        chain, name = self._place(path)
        with self.filesystem.changing():
            self.filesystem.make(chain[-1].id, name, stat.S_IFDIR | mode, self._uid, self._gid)

    def makedirs(self, path: VaultPath, mode: int = 0o755) -> None:
        """Make a directory and those above it that are missing; an existing one is fine."""
        parts = self._parts(path)
        for count in range(1, len(parts) + 1):
            try:
                self.mkdir(b"/".join(parts[:count]), mode)
            except FileSystemError as error:
                if error.errno != errno.EEXIST:
                    raise

    def mknod(self, path: VaultPath, mode: int, rdev: int = 0) -> None:
        """Make a FIFO, socket or device node (or an empty file), as the type in ``mode`` says."""
        chain, name = self._place(path)
        with self.filesystem.changing():
            self.filesystem.make(chain[-1].id, name, mode, self._uid, self._gid, rdev=rdev)

    def symlink(self, target: VaultPath, path: VaultPath) -> None:
        """Make a symlink at ``path``."""
        chain, name = self._place(path)
        with self.filesystem.changing():
            self.filesystem.make(
                chain[-1].id, name, stat.S_IFLNK | 0o777, self._uid, self._gid, target=os.fsencode(target)
            )

    def readlink(self, path: VaultPath) -> bytes:
        """The target of a symlink."""
        inode = self._resolve(path, follow=False)
        if inode.target is None:
            raise FileSystemError(errno.EINVAL)
        return inode.target

    def link(self, path: VaultPath, new_path: VaultPath) -> None:
        """Give a file one more name."""
        inode = self._resolve(path, follow=False)
        chain, name = self._place(new_path)
        with self.filesystem.changing():
            self.filesystem.tree.link(inode, chain[-1].id, name)

    def remove(self, path: VaultPath) -> None:
        """Remove a name of something that is no directory."""
        chain, name = self._place(path)
        with self.filesystem.changing():
            self.filesystem.unlink(chain[-1].id, name)

    def rmdir(self, path: VaultPath) -> None:
        """Remove an empty directory."""
        chain, name = self._place(path)
        with self.filesystem.changing():
            self.filesystem.rmdir(chain[-1].id, name)

    def rename(self, old: VaultPath, new: VaultPath, flags: int = 0) -> None:
        """Move a name over whatever has the new one; ``flags`` as in renameat2(2)."""
        old_chain, old_name = self._place(old)
        new_chain, new_name = self._place(new)
        moved = self.filesystem.tree.child(old_chain[-1].id, old_name)
        there = self.filesystem.tree.lookup(new_chain[-1].id, new_name)
        if any(inode.id == moved.id for inode in new_chain) or (
            flags & RENAME_EXCHANGE and there is not None and any(inode.id == there.id for inode in old_chain)
        ):
            raise FileSystemError(errno.EINVAL, "a directory cannot be moved into itself")
        with self.filesystem.changing():
            self.filesystem.rename(old_chain[-1].id, old_name, new_chain[-1].id, new_name, flags)

    def chmod(self, path: VaultPath, mode: int) -> None:
        """Set permissions."""
        inode = self._resolve(path)
        with self.filesystem.changing():
            self.filesystem.set_attributes(inode, mode=mode)

    def chown(self, path: VaultPath, uid: int, gid: int) -> None:
        """Set owner and group; symlinks are not followed."""
        inode = self._resolve(path, follow=False)
        with self.filesystem.changing():
            self.filesystem.set_attributes(inode, uid=uid, gid=gid)

    def utime(self, path: VaultPath, atime_ns: int, mtime_ns: int) -> None:
        """Set times in nanoseconds since 1970; symlinks are not followed."""
        inode = self._resolve(path, follow=False)
        with self.filesystem.changing():
            self.filesystem.set_attributes(inode, atime_ns=atime_ns, mtime_ns=mtime_ns)

    def truncate(self, path: VaultPath, size: int) -> None:
        """Set a file's size."""
        inode = self._resolve(path)
        with self.filesystem.changing():
            self.filesystem.set_attributes(inode, size=size)

    def getxattr(self, path: VaultPath, name: bytes) -> bytes:
        """The value of an extended attribute; symlinks are not followed."""
        return self.filesystem.xattrs.get(self._resolve(path, follow=False), name)

    def setxattr(self, path: VaultPath, name: bytes, value: bytes, flags: int = 0) -> None:
        """Set an extended attribute; symlinks are not followed."""
        inode = self._resolve(path, follow=False)
        with self.filesystem.changing():
            self.filesystem.xattrs.set(inode, name, value, flags)

    def listxattr(self, path: VaultPath) -> list[bytes]:
        """The names of the extended attributes; symlinks are not followed."""
        return self.filesystem.xattrs.names(self._resolve(path, follow=False))

    def removexattr(self, path: VaultPath, name: bytes) -> None:
        """Remove an extended attribute; symlinks are not followed."""
        inode = self._resolve(path, follow=False)
        with self.filesystem.changing():
            self.filesystem.xattrs.remove(inode, name)

    # --- files

    def open(self, path: VaultPath, mode: str = "rb", *, permissions: int = 0o644) -> VaultFile:
        """Open a file.

        Args:
            path: in the vault.
            mode: ``rb``, ``r+b``, ``wb``, ``w+b``, ``ab``, ``a+b``, ``xb``, ``x+b``, as in :func:`open`.
            permissions: of a file that is made.

        Raises:
            FileSystemError: ENOENT, EISDIR, EEXIST and the like.
            UsageError: the mode makes no sense.
        """
        kind = mode.replace("b", "").replace("+", "")
        if kind not in {"r", "w", "a", "x"} or "b" not in mode or len(mode) > 3:
            raise UsageError(f"mode {mode!r}: a vault's files are opened in binary mode, as in 'rb' or 'w+b'")
        fs = self.filesystem
        writable = kind != "r" or "+" in mode
        try:
            inode = self._resolve(path)
            if kind == "x":
                raise FileSystemError(errno.EEXIST)
        except FileSystemError as error:
            if error.errno != errno.ENOENT or kind == "r":
                raise
            chain, name = self._place(path)
            with fs.changing():
                inode = fs.make(chain[-1].id, name, stat.S_IFREG | permissions, self._uid, self._gid)
        if inode.is_directory:
            raise FileSystemError(errno.EISDIR)
        if not inode.is_regular:
            raise FileSystemError(errno.EINVAL, "not a regular file")
        if writable:
            fs.check_writable()
        if kind == "w" and inode.size:
            with fs.changing():
                fs.set_attributes(inode, size=0)
        return VaultFile(
            fs, inode, is_readable=kind == "r" or "+" in mode, is_writable=writable, is_appending=kind == "a"
        )

    # --- the whole

    def status(self) -> dict[str, Any]:
        """Numbers about the vault."""
        return self.filesystem.status()


def _stat_result(fs: FileSystem, inode: Inode) -> os.stat_result:
    blocks = -(-fs.files.data_on_disk_bytes(inode) // 512)
    seconds = (inode.atime_ns // 10**9, inode.mtime_ns // 10**9, inode.ctime_ns // 10**9)
    return os.stat_result(
        (inode.mode, inode.id, 0, inode.nlink, inode.uid, inode.gid, inode.size, *seconds),
        {
            "st_atime": inode.atime_ns / 1e9,
            "st_mtime": inode.mtime_ns / 1e9,
            "st_ctime": inode.ctime_ns / 1e9,
            "st_atime_ns": inode.atime_ns,
            "st_mtime_ns": inode.mtime_ns,
            "st_ctime_ns": inode.ctime_ns,
            "st_blksize": fs.chunk_size,
            "st_blocks": blocks,
            "st_rdev": inode.rdev,
        },
    )
