"""One process at a time works on a vault: an exclusive ``flock`` on the file ``lock``, which also names its holder.

The lock belongs to the open file, not to the process.  So it survives ``fork``: a daemon keeps what its parent took,
and the parent's `VaultLock.release` only closes the parent's descriptor.  It does not survive ``exec``: programs that
the holder starts do not hold it.  The system drops it when the last holder ends, however that ends, so there are no
stale locks.  The file is never deleted, or two processes could each hold a lock on a file of that name.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self

from vaultfs.errors import VaultLockedError
from vaultfs.storage.durable import storage_errors
from vaultfs.storage.layout import VaultLayout

_POLL_S: Final = 0.05
_PROBE_PATIENCE_S: Final = 1.0
"""How long `VaultLock.acquire` bears with `read_holder`, which holds a shared lock for some 20 µs."""
_PURPOSE_CHARACTERS: Final = 1000


@dataclass(frozen=True)
class Holder:
    """Who holds a vault.

    Attributes:
        pid: the process that took the lock, in its own PID namespace; 0 if it has not written that yet.
        purpose: what it does, for a person.
    """

    pid: int
    purpose: str

    def __str__(self) -> str:
        if not self.pid:
            return "another process"
        return f"process {self.pid} ({self.purpose})" if self.purpose else f"process {self.pid}"


class VaultLock:
    """The right to work on a vault, until `release`.  A context manager.

    Args:
        descriptor: the locked file.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    @classmethod
    def acquire(cls, layout: VaultLayout, *, purpose: str, wait_s: float = 0.0) -> Self:
        """Take the lock.

        Args:
            layout: the vault.
            purpose: what for, shown to whoever wants it meanwhile; one line.
            wait_s: how long to wait for another holder, in seconds.

        Raises:
            VaultLockedError: another process still holds it.
            NoSpaceError, ReadOnlyError, StorageError: the file cannot be created, locked or written.
        """
        with storage_errors(f"cannot lock {layout.lock}"):
            started_s = time.monotonic()
            while True:
                descriptor = _open_lock(layout)
                try:
                    state = _try_lock(descriptor, layout)
                    if state == "taken":
                        _write_holder(descriptor, purpose)
                        lock = cls(descriptor)
                        descriptor = -1
                        return lock
                    if time.monotonic() - started_s >= max(wait_s, _PROBE_PATIENCE_S if state == "probed" else 0.0):
                        holder = _parse_holder(descriptor)
                        message = f"the vault {layout.root} is in use by {holder}; unmount it or wait until it is done"
                        raise VaultLockedError(message)
                finally:
                    if descriptor >= 0:
                        os.close(descriptor)
                time.sleep(_POLL_S)

    def share(self) -> VaultLock:
        """The same lock for a part of the work: it is given up when this one and that were released."""
        return VaultLock(os.dup(self._descriptor))

    def release(self) -> None:
        """Give the lock up, unless a child process holds it too.  Doing it twice is harmless."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)  # not LOCK_UN, which would take it from a daemon forked meanwhile as well

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.release()


def read_holder(layout: VaultLayout) -> Holder | None:
    """Who works on the vault; None if nobody does.

    Raises:
        StorageError: the lock file cannot be looked at.
    """
    with storage_errors(f"cannot look at {layout.lock}"):
        try:
            descriptor = os.open(layout.lock, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        try:
            # Closing the descriptor gives the shared lock back.
            return None if _flock(descriptor, fcntl.LOCK_SH) else _parse_holder(descriptor)
        finally:
            os.close(descriptor)


def _open_lock(layout: VaultLayout) -> int:
    return os.open(layout.lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)


def _flock(descriptor: int, operation: int) -> bool:
    """Whether the lock could be had without waiting."""
    try:
        fcntl.flock(descriptor, operation | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _try_lock(descriptor: int, layout: VaultLayout) -> str:
    """``taken``; ``held`` by another; or ``probed``: free, but `read_holder` was looking, or the file was replaced."""
    if not _flock(descriptor, fcntl.LOCK_EX):
        # A shared lock can be had beside another shared one only, so it tells a holder from somebody looking.
        return "probed" if _flock(descriptor, fcntl.LOCK_SH) else "held"
    try:
        named = layout.lock.lstat()
    except FileNotFoundError:
        return "probed"
    return "taken" if os.path.samestat(named, os.fstat(descriptor)) else "probed"


def _write_holder(descriptor: int, purpose: str) -> None:
    text = f"{os.getpid()}\n{' '.join(purpose.split())[:_PURPOSE_CHARACTERS]}\n"
    os.ftruncate(descriptor, 0)
    try:
        os.pwrite(descriptor, text.encode(errors="backslashreplace"), 0)
    except OSError as error:
        # The text only helps a person.  On a full disk the vault must open all the same, so that files can be deleted.
        if error.errno not in {errno.ENOSPC, errno.EDQUOT}:
            raise


def _parse_holder(descriptor: int) -> Holder:
    """What the holder wrote about itself, as far as it makes sense: anybody may have written it."""
    text = os.pread(descriptor, 4 * _PURPOSE_CHARACTERS + 32, 0).decode(errors="replace")
    pid, _, purpose = text.partition("\n")
    purpose = "".join(
        character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in purpose.strip()
    )
    return Holder(int(pid) if pid.isascii() and pid.isdigit() and len(pid) < 20 else 0, purpose)
