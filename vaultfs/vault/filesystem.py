"""An open vault: the operations on inodes that FUSE and the Python API share.

Synchronous, and for one thread, except where a part says that a step may run elsewhere.  No operation is interrupted
between two changes, so each is in a commit as a whole or not at all.  Permissions are the caller's business.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from vaultfs.errors import FileSystemError, IntegrityError, ReadOnlyError
from vaultfs.ids import InodeId, SnapshotSeq
from vaultfs.metadata.chunk_rows import ChunkRows
from vaultfs.metadata.database import MetadataDatabase, database_failures
from vaultfs.metadata.snapshot_rows import SnapshotRows
from vaultfs.metadata.tree_rows import TreeRows
from vaultfs.storage.durable import fsync_directory
from vaultfs.storage.kept_manifests import kept_files
from vaultfs.vault import recovery, snapshot_recovery
from vaultfs.vault.attributes import ExtendedAttributes
from vaultfs.vault.chunk_table import ChunkTable
from vaultfs.vault.commit import Committer
from vaultfs.vault.files import Files
from vaultfs.vault.inodes import Inode, InodeTable
from vaultfs.vault.kept_snapshots import KeptSnapshots, settle_kept
from vaultfs.vault.pipeline import SealingPipeline
from vaultfs.vault.reading import ChunkDamageError, ReadPlan
from vaultfs.vault.reclaim import Reclaimer
from vaultfs.vault.segments import SegmentAccess
from vaultfs.vault.space import FreeSpace
from vaultfs.vault.tree import Tree
from vaultfs.vault.writeback import Writeback

if TYPE_CHECKING:
    from vaultfs.crypto.keys import Keyring
    from vaultfs.storage.layout import VaultLayout
    from vaultfs.storage.lock import VaultLock
    from vaultfs.storage.segment_source import SegmentSource
    from vaultfs.vault.head import Head
    from vaultfs.vault.snapshot_manifest import SnapshotHold

log = logging.getLogger(__name__)

_CAPABILITY: Final = b"security.capability"


class FileSystem:
    """One vault, open.  Made by :func:`vaultfs.vault.opening.open_filesystem`; takes over what it is given.

    Args:
        layout: where the vault is.
        keyring: its keys.
        lock: held until :meth:`close`.
        head: has been verified.
        database: open, of the state that ``head`` describes.
        read_only: change nothing on disk.
        source: has segments that are missing or damaged here.
    """

    def __init__(
        self,
        layout: VaultLayout,
        keyring: Keyring,
        lock: VaultLock | SnapshotHold,
        head: Head,
        database: MetadataDatabase,
        *,
        read_only: bool,
        source: SegmentSource | None = None,
    ) -> None:
        self.layout = layout
        self.keyring = keyring
        self.head = head
        self.database = database
        self.is_read_only = read_only
        self._lock = lock
        self.is_snapshot_busy = False
        self.newest_snapshot: tuple[SnapshotSeq, int] | None = None
        """The snapshot made last since this was opened, and the version of the inodes at its moment."""
        self.tree_rows = TreeRows(database)
        self.chunk_rows = ChunkRows(database)
        self.snapshot_rows = SnapshotRows(database)
        self.chunk_size = database.setting("chunk_size")
        self.inodes = InodeTable(self.tree_rows, database.setting("next_inode"))
        self.tree = Tree(self.tree_rows, self.inodes, database.setting("next_cookie"))
        self.xattrs = ExtendedAttributes(self.tree_rows, self.inodes)
        self.segments = SegmentAccess(self.chunk_rows, layout, keyring, source)
        self.pipeline = SealingPipeline(layout, keyring, is_compressing=bool(database.setting("is_compressing")))
        self.chunks = ChunkTable(
            self.chunk_rows,
            self.snapshot_rows,
            epoch=keyring.epoch,
            next_chunk=database.setting("next_chunk"),
            snapshot_seq=database.setting("snapshot_seq"),
        )
        self.writeback = Writeback(
            self.chunk_rows,
            self.inodes,
            self.chunks,
            self.segments,
            self.pipeline,
            chunk_size=self.chunk_size,
            fingerprint_key=keyring.current.fingerprint,
        )
        self.files = Files(
            self.chunk_rows, self.inodes, self.chunks, self.segments, self.writeback, chunk_size=self.chunk_size
        )
        self.kept = KeptSnapshots(layout)
        self.reclaimer = Reclaimer(self.chunk_rows, layout, self.segments, self.kept)
        self.committer = Committer(
            database,
            self.tree_rows,
            self.chunk_rows,
            self.tree,
            self.inodes,
            self.chunks,
            self.files,
            self.writeback,
            self.pipeline,
            self.reclaimer,
            layout,
        )
        self.space = FreeSpace(layout.root)
        self._recover()

    def _recover(self) -> None:
        snapshot_recovery.check_newest(self)
        if self.is_read_only:
            self.writeback.stays_in_memory = True
            recovery.apply_intents(self.chunk_rows, self.inodes, self.files)
            return
        snapshot_recovery.finish_interrupted(self)
        recovery.end_orphans(self.tree_rows, self.inodes, self.files)
        self.committer.leftover_tokens = recovery.seal_leftovers(self.chunk_rows, self.layout)
        if recovery.apply_intents(self.chunk_rows, self.inodes, self.files):
            self.files.write_log.has_stored = True
        # The new generation becomes durable here at the latest.
        self.committer.commit()
        snapshot_recovery.clean_up(self)
        settle_kept(self)

    # --- guards

    @contextmanager
    def changing(self) -> Iterator[None]:
        """Around every change: refuse it where it cannot be, and stop for good where it broke in the middle.

        Raises:
            ReadOnlyError, StorageError, NoSpaceError, and what the change raises.
        """
        self.check_writable()
        with self.database_safe():
            yield

    @contextmanager
    def database_safe(self) -> Iterator[None]:
        """Stop for good if the database fails in the middle of a change; also around reading, for the error's sake."""
        try:
            yield
        except database_failures() as error:
            raise self.committer.fail(error) from error

    def check_writable(self) -> None:
        """Refuse changes.

        Raises:
            ReadOnlyError: opened so.
            StorageError: something failed before.
        """
        if self.is_read_only:
            raise ReadOnlyError("the vault is open read-only")
        if self.committer.failure is not None:
            raise self.committer.failure
        if self.pipeline.failure is not None:
            raise self.committer.fail(self.pipeline.failure)

    def check_room(self, size: int) -> None:
        """Refuse to add data that might not find room.

        Raises:
            NoSpaceError: the disk is nearly full.
        """
        self.space.check(size + self.writeback.dirty_bytes)

    # --- names

    def make(
        self,
        parent: InodeId,
        name: bytes,
        mode: int,
        uid: int,
        gid: int,
        *,
        umask: int = 0,
        rdev: int = 0,
        target: bytes | None = None,
    ) -> Inode:
        """Make a file, directory, symlink or special file.

        Args:
            parent: the directory.
            name: in it.
            mode: type and permissions.
            uid: owner.
            gid: group, unless the directory's set-gid bit hands down its own.
            umask: applied unless the directory hands down an access control list.
            rdev: of a device node.
            target: of a symlink.

        Raises:
            FileSystemError: as :meth:`Tree.add`.
        """
        self.check_room(0)
        directory = self.inodes.get(parent)
        inherits = target is None and self.xattrs.has_default(directory)
        if umask and not inherits:
            mode &= ~umask
        inode = self.tree.add(parent, name, mode, uid, gid, rdev=rdev, target=target)
        if inherits:
            self.xattrs.inherit(directory, inode)
        return inode

    def unlink(self, parent: InodeId, name: bytes) -> None:
        """Remove a name of something that is no directory."""
        self._end_if_unused(self.tree.unlink(parent, name))

    def rmdir(self, parent: InodeId, name: bytes) -> None:
        """Remove an empty directory."""
        self._end_if_unused(self.tree.rmdir(parent, name))

    def rename(self, old_parent: InodeId, old_name: bytes, new_parent: InodeId, new_name: bytes, flags: int) -> None:
        """Move a name; see :meth:`Tree.rename`."""
        replaced = self.tree.rename(old_parent, old_name, new_parent, new_name, flags)
        if replaced is not None:
            self._end_if_unused(replaced)

    def open(self, inode: Inode) -> None:
        """Count a handle."""
        inode.opens += 1

    def release(self, inode: Inode) -> None:
        """Count a handle less; the last one of an inode without a name ends it."""
        inode.opens -= 1
        self._end_if_unused(inode)

    def _end_if_unused(self, inode: Inode) -> None:
        if inode.nlink == 0 and not self.is_read_only:
            if inode.opens:
                self.files.nameless[inode.id] = inode
            else:
                self.files.end(inode)

    # --- attributes

    def set_attributes(
        self,
        inode: Inode,
        *,
        mode: int | None = None,
        uid: int | None = None,
        gid: int | None = None,
        size: int | None = None,
        atime_ns: int | None = None,
        mtime_ns: int | None = None,
        ctime_ns: int | None = None,
        is_privileged: bool = False,
    ) -> None:
        """Change what is given; ctime becomes now unless given.

        A change of owner takes the set-id bits, and one of size too unless ``is_privileged``.

        Raises:
            FileSystemError: EINVAL, EFBIG.
            ChunkDamageError: the file is cut within a damaged chunk.
        """
        now_ns = time.time_ns()
        if size is not None:
            if not inode.is_regular:
                raise FileSystemError(errno.EISDIR if inode.is_directory else errno.EINVAL)
            if size > inode.size:
                self.check_room(0)
            self.files.truncate(inode, size)
            inode.mtime_ns = now_ns
            if not is_privileged:
                self.drop_set_id(inode)
        if mode is not None:
            inode.mode = stat.S_IFMT(inode.mode) | (mode & 0o7777)
            self.xattrs.follow_chmod(inode)
        if uid is not None or gid is not None:
            if uid is not None:
                inode.uid = uid
            if gid is not None:
                inode.gid = gid
            if mode is None:
                self.drop_set_id(inode)
        if atime_ns is not None:
            inode.atime_ns = _storable_ns(atime_ns)
        if mtime_ns is not None:
            inode.mtime_ns = _storable_ns(mtime_ns)
        inode.ctime_ns = now_ns if ctime_ns is None else _storable_ns(ctime_ns)
        self.inodes.changed(inode)

    def drop_set_id(self, inode: Inode) -> None:
        """What a write by an ordinary user does to a file: set-id bits and capabilities go, but for directories."""
        if inode.is_directory:
            return
        mode = inode.mode & ~stat.S_ISUID
        if mode & stat.S_IXGRP:
            mode &= ~stat.S_ISGID
        if mode != inode.mode:
            inode.mode = mode
            self.inodes.changed(inode)
        if _CAPABILITY in self.xattrs.names(inode):
            self.xattrs.remove(inode, _CAPABILITY)

    # --- data

    def plan_read(self, inode: Inode, offset: int, size: int) -> ReadPlan:
        """See :meth:`Files.plan_read`."""
        with self.database_safe():
            return self.files.plan_read(inode, offset, size)

    def read(self, inode: Inode, offset: int, size: int) -> bytearray:
        """Read, waiting for the disk if need be."""
        try:
            with self.database_safe():
                return self.files.read(inode, offset, size)
        except ChunkDamageError as damage:
            self.report_damage(damage)
            raise

    def write(self, inode: Inode, offset: int, data: bytes | memoryview, *, updates_times: bool = True) -> None:
        """Write, waiting for the disk and for the sealing thread if need be."""
        self.pipeline.wait_for_room()
        with self.changing():
            self.check_room(len(data))
            self.files.write(inode, offset, data)
            if updates_times:
                inode.mtime_ns = inode.ctime_ns = time.time_ns()

    def report_damage(self, damage: ChunkDamageError) -> None:
        """Log a damaged chunk with the paths of the file, and keep others from sharing it."""
        names = ", ".join(os.fsdecode(path) for path in self.paths_of(InodeId(damage.inode))) or "a file without a name"
        log.error("%s: %s", names, damage)
        if not self.is_read_only and self.committer.failure is None:
            with self.database_safe():
                self.files.damaged(damage)

    def paths_of(self, number: InodeId) -> list[bytes]:
        """The paths of an inode; slow, for reports."""
        paths: list[bytes] = []
        for parent, name in self.tree_rows.names_of(number):
            parts = [name]
            directory = parent
            for _ in range(10_000):
                above = self.tree_rows.names_of(directory)
                if not above:
                    break
                directory, part = above[0]
                parts.append(part)
            paths.append(b"/" + b"/".join(reversed(parts)))
        return paths

    # --- the whole

    def status(self) -> dict[str, Any]:
        """Numbers about the vault, for people and programs."""
        files, size = self.tree_rows.totals()
        segments = self.chunk_rows.segments()
        failure = self.committer.failure or self.pipeline.failure
        return {
            "vault": str(self.layout.root),
            "vault_id": self.keyring.vault_id.hex(),
            "generation": self.database.setting("generation"),
            "read_only": self.is_read_only,
            "failure": None if failure is None else str(failure),
            "chunk_size_bytes": self.chunk_size,
            "files": files,
            "plaintext_bytes": size,
            "segments": len(segments),
            "live_bytes": sum(row.live for row in segments),
            "dirty_bytes": self.writeback.dirty_bytes,
            "is_durable": self.committer.is_clean,
            "key_epoch": self.keyring.epoch,
            "old_key_bytes": sum(row.live for row in segments if row.epoch < self.keyring.epoch),
            "snapshots": len(self.snapshot_rows.all()),
            "kept_snapshots": len(kept_files(self.layout)),
        }

    def close(self) -> None:
        """Commit everything, seal the segment, write HEAD, and give up the lock.

        Raises:
            NoSpaceError, StorageError: something could not be made durable; the lock is given up all the same, and the
                next mount finds the state of the last commit.
        """
        try:
            if not self.is_read_only:
                self._settle()
        finally:
            self.pipeline.close()
            self.segments.close()
            self.database.close()
            self._lock.release()

    def abandon(self) -> None:
        """Stop at once, as a crash would, but for the lock."""
        self.pipeline.close()
        self.segments.close()
        self.database.close()
        self._lock.release()

    def _settle(self) -> None:
        if self.committer.failure is not None:
            raise self.committer.failure
        with self.database_safe():
            for inode in list(self.files.nameless.values()):
                self.files.end(inode)
            while self.files.sweep():
                pass
            self.committer.commit()
            self.pipeline.seal()
            self.committer.commit()
            self.committer.commit()  # the rows of what the one before gave back
            self.database.checkpoint(truncate=True)
        record = self.head.record
        if record is None:
            raise IntegrityError("HEAD was never read")
        self.segments.close()
        self.database.close()
        # SQLite has deleted the WAL, but not durably; a HEAD that says clean must not meet it again.
        fsync_directory(self.layout.root)
        self.head.write_clean(record.generation + 1, manifest_hash=record.manifest_hash)


def _storable_ns(time_ns: int) -> int:
    """The nearest time that 64 bits hold (the years 1677 to 2262); ext4 and XFS do likewise with theirs."""
    return max(-(1 << 63), min(time_ns, (1 << 63) - 1))
