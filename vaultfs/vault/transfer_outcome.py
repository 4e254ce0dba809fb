"""What all transfers share: the progress callback, the outcome, and what a path in the vault means."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

from vaultfs.errors import ExitCode, FileSystemError, UsageError
from vaultfs.ids import InodeId
from vaultfs.vault.api import Vault
from vaultfs.vault.tree import check_name


class Progress(Protocol):
    """Called between two pieces of work, where stopping is safe: an exception from it ends the transfer cleanly."""

    def __call__(self, done_bytes: int, total_bytes: int | None, files: int) -> None:
        """So much is done.

        Args:
            done_bytes: so far, holes included.
            total_bytes: in all; None where nobody knows.
            files: finished so far, directories included.
        """


def no_progress(done_bytes: int, total_bytes: int | None, files: int) -> None:
    """Tells nobody."""


@dataclass(frozen=True)
class Problem:
    """Something that was left out, or could not be kept.

    Attributes:
        path: of the file, as a person would name it.
        reason: what was wrong.
        exit_code: INTEGRITY for damage in the vault, else PARTIAL.
    """

    path: bytes
    reason: str
    exit_code: ExitCode = ExitCode.PARTIAL


@dataclass
class Outcome:
    """What a transfer did.

    Attributes:
        files: entries that were copied or removed.
        done_bytes: their sizes together.
        problems: what is missing.
    """

    files: int = 0
    done_bytes: int = 0
    problems: list[Problem] = field(default_factory=list)

    @property
    def exit_code(self) -> ExitCode:
        """0, or 15 if anything was damaged, or 3 if anything else is missing."""
        return max((problem.exit_code for problem in self.problems), default=ExitCode.OK)


@contextmanager
def naming(path: bytes) -> Iterator[None]:
    """Let errors of the file system name the path they are about."""
    try:
        yield
    except FileSystemError as error:
        shown = os.fsdecode(path)
        if str(error).startswith(shown):
            raise
        reason = os.strerror(error.errno) if str(error) == errno.errorcode.get(error.errno) else str(error)
        raise FileSystemError(error.errno, f"{shown}: {reason}") from None


def split_target(target: bytes) -> tuple[bytes, bytes]:
    """Directory and last name of a path in the vault.

    Raises:
        UsageError: it ends in ``.``, ``..`` or nothing.
    """
    directory, _, name = target.rstrip(b"/").rpartition(b"/")
    if name in {b"", b".", b".."}:
        raise UsageError(f"{os.fsdecode(target)!r} names no entry of a directory in the vault")
    return directory or b"/", name


def resolve_target(vault: Vault, target: bytes, name: bytes | None, *, replace: bool) -> tuple[InodeId, bytes]:
    """Where a put goes: the directory and the name; into ``target`` under ``name`` if that is a directory.

    Raises:
        UsageError: there is something already that may not be replaced.
        FileSystemError: the directory does not exist.
    """
    final = target
    if _is_directory(vault, target):
        if name is None:
            raise UsageError(f"{os.fsdecode(target)} is a directory in the vault; add a name for the file")
        final = target.rstrip(b"/") + b"/" + name
    elif target.endswith(b"/"):
        raise _missing(target)
    directory, last = split_target(final)
    if not _is_directory(vault, directory):
        raise _missing(directory)
    with naming(final):
        check_name(last)
    if vault.exists(final):
        if stat.S_ISDIR(vault.stat(final, follow=False).st_mode):
            raise UsageError(f"{os.fsdecode(final)} exists in the vault, and is a directory; choose another name")
        if not replace:
            raise UsageError(f"{os.fsdecode(final)} exists in the vault; --force replaces it")
    return InodeId(vault.stat(directory).st_ino), last


def _missing(path: bytes) -> FileSystemError:
    return FileSystemError(errno.ENOENT, f"{os.fsdecode(path)}: there is no such directory in the vault")


def _is_directory(vault: Vault, path: bytes) -> bool:
    try:
        return stat.S_ISDIR(vault.stat(path).st_mode)
    except FileSystemError as error:
        if error.errno in {errno.ENOENT, errno.ENOTDIR, errno.ELOOP}:
            return False
        raise
