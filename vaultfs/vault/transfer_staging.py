"""The hidden directory of a vault in which a put builds its copy, and through which trees are removed at one stroke.

What a process that was killed left in it is no part of the vault: `sweep_unfinished` removes it when the vault is
opened for writing next.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Final

from vaultfs.errors import NoSpaceError, UsageError, VaultError
from vaultfs.ids import ROOT_INODE, InodeId
from vaultfs.vault.api import Vault
from vaultfs.vault.filesystem import FileSystem
from vaultfs.vault.inodes import Inode
from vaultfs.vault.transfer_outcome import Outcome, Progress, naming, no_progress, split_target
from vaultfs.vault.tree import RENAME_NOREPLACE

STAGING_NAME: Final = b".vaultfs-put"
"""In the root directory, while a put runs."""
STAGING_MARK: Final = b"trusted.vaultfs.put"
"""Extended attribute that tells our directory from one that a person gave the same name; only root can set it there."""

COMMIT_INODES: Final = 4_000
"""A commit after so many changed names bounds what is kept in memory."""


def sweep_unfinished(filesystem: FileSystem, progress: Progress = no_progress) -> int:
    """Remove what a killed put or removal left behind, durably; return how many names that were.

    Args:
        filesystem: open for writing.
        progress: told the number of files; may raise to stop, and the next sweep goes on.

    Raises:
        NoSpaceError, StorageError: as a commit.
    """
    directory = _staging(filesystem)
    if directory is None:
        return 0
    removed = _remove_below(filesystem, directory.id, progress)
    with filesystem.changing():
        filesystem.rmdir(ROOT_INODE, STAGING_NAME)
    commit(filesystem)
    return removed


def is_unfinished(filesystem: FileSystem, directory: InodeId, name: bytes) -> bool:
    """Whether this name is the hidden directory, which a vault that is open read-only still shows."""
    return directory == ROOT_INODE and name == STAGING_NAME and _staging(filesystem) is not None


def _staging(fs: FileSystem) -> Inode | None:
    """The hidden directory, if there is one that is ours."""
    found = fs.tree.lookup(ROOT_INODE, STAGING_NAME)
    if found is None or not found.is_directory or STAGING_MARK not in fs.xattrs.names(found):
        return None
    return found


@contextmanager
def staged(fs: FileSystem, progress: Progress = no_progress) -> Iterator[InodeId]:
    """The hidden directory while the body works in it; removed with all that is left in it, however the body ends.

    Raises:
        UsageError: a person's file has its name.
    """
    sweep_unfinished(fs)
    if fs.tree.lookup(ROOT_INODE, STAGING_NAME) is not None:
        raise UsageError(f"/{STAGING_NAME.decode()} in the vault is in the way; rename it")
    with fs.changing():
        directory = fs.make(ROOT_INODE, STAGING_NAME, stat.S_IFDIR | 0o700, os.geteuid(), os.getegid())
        fs.xattrs.set(directory, STAGING_MARK, b"1")
    try:
        yield directory.id
    except BaseException:
        # If the disk fails here as well, the next open sweeps; what went wrong first matters more.
        with suppress(VaultError):
            sweep_unfinished(fs)
        raise
    sweep_unfinished(fs, progress)


def commit(fs: FileSystem) -> None:
    """Make everything durable, and give back what ended files held.

    Args:
        fs: open for writing.

    Raises:
        NoSpaceError, StorageError: as the committer.
    """
    with fs.changing():
        while fs.files.sweep():
            pass
        fs.committer.commit()


def _remove_below(fs: FileSystem, top: InodeId, progress: Progress) -> int:
    """Remove everything in a directory, with a commit now and then; return how many names that were."""
    stack: list[tuple[InodeId, InodeId | None, bytes]] = [(top, None, b"")]
    removed = uncommitted = 0
    while stack:
        directory, parent, name = stack[-1]
        batch = fs.tree.batch(directory, 0)
        with fs.changing():
            if not batch:
                stack.pop()
                if parent is not None:
                    fs.rmdir(parent, name)
                    uncommitted += 1
            for entry in batch:
                if entry.inode.is_directory:
                    stack.append((entry.inode.id, directory, entry.name))
                else:
                    fs.unlink(directory, entry.name)
                    uncommitted += 1
        if uncommitted >= COMMIT_INODES or not stack:
            commit(fs)
            removed, uncommitted = removed + uncommitted, 0
        progress(0, None, removed + uncommitted)
    return removed


def remove(
    vault: Vault, paths: Iterable[bytes], *, recursive: bool = False, progress: Progress = no_progress
) -> Outcome:
    """Remove files, and trees at one stroke each; all paths are looked at before anything is removed.

    Args:
        vault: open for writing.
        paths: absolute paths in the vault; symlinks are removed, not followed.
        recursive: directories too, with everything in them.
        progress: told the number of files; if it raises, the trees are gone all the same.

    Raises:
        UsageError: a directory, without ``recursive``; the root.
        FileSystemError: there is no such file.
        NoSpaceError, StorageError: as a commit.
    """
    fs = vault.filesystem
    files: dict[tuple[InodeId, bytes], None] = {}
    trees: dict[tuple[InodeId, bytes], None] = {}
    for path in paths:
        directory, name = split_target(path)
        with naming(path):
            is_tree = stat.S_ISDIR(vault.stat(path, follow=False).st_mode)
            parent = InodeId(vault.stat(directory).st_ino)
        if is_tree and not recursive:
            raise UsageError(f"{os.fsdecode(path)}: is a directory; -r removes it with everything in it")
        (trees if is_tree else files)[parent, name] = None
    outcome = Outcome()
    with fs.changing():
        for parent, name in files:
            fs.unlink(parent, name)
            outcome.files += 1
    if trees:
        try:
            outcome.files += _remove_trees(fs, list(trees), progress)
        except NoSpaceError:
            # No room for the hidden directory.  Removing one by one needs none.
            for parent, name in trees:
                found = fs.tree.lookup(parent, name)
                if found is not None:
                    outcome.files += _remove_below(fs, found.id, progress) + 1
                    with fs.changing():
                        fs.rmdir(parent, name)
    commit(fs)
    return outcome


def _remove_trees(fs: FileSystem, trees: list[tuple[InodeId, bytes]], progress: Progress) -> int:
    removed = 0

    def counting(done_bytes: int, total_bytes: int | None, files: int) -> None:
        nonlocal removed
        removed = files
        progress(done_bytes, total_bytes, files)

    with staged(fs, counting) as staging:
        with fs.changing():
            for number, (parent, name) in enumerate(trees):
                fs.rename(parent, name, staging, b"%d" % number, RENAME_NOREPLACE)
        commit(fs)
    return removed
