"""Every error vaultfs raises on purpose: one root, and for each class what a program and a person see of it.

``errno`` is what a program that works in a mounted folder receives; ``exit_code`` is what a command returns.  The
message says what happened, to what, and what to do; it never holds a secret.
"""

from __future__ import annotations

import enum
import errno as _errno
from typing import ClassVar


class ExitCode(enum.IntEnum):
    """The documented exit codes of the command line (docs/cli/README.md)."""

    OK = 0
    ERROR = 1
    USAGE = 2
    PARTIAL = 3
    NOT_A_VAULT = 10
    LOCKED = 11
    WRONG_PASSWORD = 12
    FORMAT_TOO_NEW = 13
    MOUNT_FAILED = 14
    INTEGRITY = 15
    REMOTE_REFUSED = 16
    REMOTE_UNREACHABLE = 17
    SIGINT = 130
    SIGTERM = 143


class VaultError(Exception):
    """Root of all errors of vaultfs."""

    errno: ClassVar[int] = _errno.EIO
    exit_code: ClassVar[ExitCode] = ExitCode.ERROR


class UsageError(VaultError):
    """The command or call was given arguments that make no sense."""

    errno = _errno.EINVAL
    exit_code = ExitCode.USAGE


class NotAVaultError(VaultError):
    """The directory holds no vault, or its public header cannot be read."""

    errno = _errno.ENOENT
    exit_code = ExitCode.NOT_A_VAULT


class VaultLockedError(VaultError):
    """Another process works on the vault."""

    errno = _errno.EBUSY
    exit_code = ExitCode.LOCKED


class WrongPasswordError(VaultError):
    """No key slot opens with the secret that was given.  The message is constant: it tells nothing about slots."""

    errno = _errno.EACCES
    exit_code = ExitCode.WRONG_PASSWORD


class FormatTooNewError(VaultError):
    """The vault was written by a newer version of vaultfs."""

    errno = _errno.EPROTONOSUPPORT
    exit_code = ExitCode.FORMAT_TOO_NEW


class MountError(VaultError):
    """The kernel or fusermount3 refused to mount."""

    exit_code = ExitCode.MOUNT_FAILED


class IntegrityError(VaultError):
    """Stored bytes are not what vaultfs wrote: damaged, swapped, cut, forged, or older than what was seen before."""

    exit_code = ExitCode.INTEGRITY


class ChunkIntegrityError(IntegrityError):
    """A sealed chunk does not open."""


class RollbackError(IntegrityError):
    """The whole vault, or its metadata, is an older copy of itself."""


class StorageError(VaultError):
    """The disk below the vault failed; the vault is read-only until it is mounted again."""


class NoSpaceError(VaultError):
    """The disk below the vault is full."""

    errno = _errno.ENOSPC


class ReadOnlyError(VaultError):
    """The vault, or this mount of it, cannot be written."""

    errno = _errno.EROFS


class RemoteError(VaultError):
    """A remote failed, or answered something that makes no sense."""


class RemoteRefusedError(RemoteError):
    """A remote does not accept the credentials, or they may not do this."""

    errno = _errno.EACCES
    exit_code = ExitCode.REMOTE_REFUSED


class RemoteUnreachableError(RemoteError):
    """A remote cannot be reached, or is too busy; the same request may succeed later."""

    errno = _errno.EHOSTUNREACH
    exit_code = ExitCode.REMOTE_UNREACHABLE


class NobodyAnswersError(RemoteUnreachableError):
    """Of the machines that are one remote none could be reached, from the first on: trying again at once is vain."""


class ObjectMissingError(RemoteError):
    """A remote has no object with this key."""

    errno = _errno.ENOENT


class ObjectExistsError(RemoteError):
    """An object that was to be created is there already."""

    errno = _errno.EEXIST


class ForkedError(RemoteError):
    """A remote holds a state of the vault that this machine does not know: another device has moved it forward."""

    errno = _errno.EEXIST


class FileSystemError(VaultError):
    """A file operation failed as POSIX says it must; ``errno`` is the instance's own.

    Args:
        code: the errno value.
        message: what happened; the name of the errno where there is nothing to add.
    """

    def __init__(self, code: int, message: str = "") -> None:
        super().__init__(message or _errno.errorcode.get(code, str(code)))
        self.errno = code  # type: ignore[misc]  # the class's value is only a default
