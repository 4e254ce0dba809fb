"""A small file of this user in JSON: read strictly and within bounds, replaced as a whole, one writer at a time.

A reader needs no lock: it finds the file as it was before a change or after it.
"""

from __future__ import annotations

import fcntl
import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Generic, TypeVar

import msgspec

from vaultfs.errors import FormatTooNewError, IntegrityError, VaultLockedError
from vaultfs.storage.durable import atomic_replace, fsync_directory, storage_errors

FORMAT_VERSION: Final = 1

_LOCK_PATIENCE_S: Final = 10.0
"""A change takes some milliseconds; ten seconds are a disk that hardly answers."""
_LOCK_PAUSE_S: Final = 0.02

_Content = TypeVar("_Content", bound=msgspec.Struct)


class _AnyFile(msgspec.Struct, frozen=True):
    format: int


class KeptFile(Generic[_Content]):
    """One such file; making this object touches no disk.

    Args:
        path: of the file; beside it there will be one that ends with ``.lock``.
        kind: its content, which forbids unknown fields and has a field ``format``.
        largest_bytes: of the file.
        title: what it is, for messages, as in "the list of peers".
        advice: what to do if it is damaged, for messages.
    """

    def __init__(self, path: Path, kind: type[_Content], largest_bytes: int, *, title: str, advice: str) -> None:
        self.path: Final = path
        self._kind: Final = kind
        self._largest_bytes: Final = largest_bytes
        self._title: Final = title
        self._advice: Final = advice

    def load(self) -> _Content | None:
        """What it says; None if there is none.

        Raises:
            FormatTooNewError: a newer vaultfs wrote it.
            IntegrityError: it is damaged.
            StorageError: it cannot be read.
        """
        data = self._read()
        if data is None:
            return None
        try:
            version = msgspec.json.decode(data, type=_AnyFile).format
            if version > FORMAT_VERSION:
                raise FormatTooNewError(f"{self.path} was written by a newer version of vaultfs; update vaultfs")
            if version != FORMAT_VERSION:
                raise self.damaged(f"no vaultfs ever wrote the format {version}")
            return msgspec.json.decode(data, type=self._kind)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise self.damaged(str(error)) from error

    def save(self, content: _Content) -> None:
        """Replace it; it is on the disk when this returns.  The caller has it `locked`.

        Raises:
            IntegrityError: it would be larger than it may be.
            NoSpaceError, ReadOnlyError, StorageError: the old file is still there.
        """
        data = msgspec.json.format(msgspec.json.encode(content), indent=2) + b"\n"
        if len(data) > self._largest_bytes:
            raise IntegrityError(f"{self._title} would have {len(data)} bytes; it may have {self._largest_bytes}")
        atomic_replace(self.path, data)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes, and other threads, from changing it.

        Raises:
            VaultLockedError: somebody else takes too long.
            NoSpaceError, ReadOnlyError, StorageError: there can be no lock.
        """
        lock = self.path.with_name(f"{self.path.name}.lock")
        make_private_directory(lock.parent)
        with storage_errors(f"cannot lock {lock}"):
            descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            deadline_s = time.monotonic() + _LOCK_PATIENCE_S
            while not _try_lock(descriptor):
                if time.monotonic() > deadline_s:
                    raise VaultLockedError(f"another process has been changing {self.path} for too long; try again")
                time.sleep(_LOCK_PAUSE_S)
            yield
        finally:
            os.close(descriptor)

    def damaged(self, why: str) -> IntegrityError:
        """The error for content that makes no sense; the caller raises it.

        Args:
            why: may hold what stands in the file.
        """
        shown = "".join(character if character.isprintable() else "?" for character in why[:200])
        return IntegrityError(f"{self._title} {self.path} is damaged: {shown}. {self._advice}")

    def _read(self) -> bytes | None:
        with storage_errors(f"cannot read {self.path}"):
            try:
                mode = self.path.lstat().st_mode
            except FileNotFoundError:
                return None
            if not stat.S_ISREG(mode):
                raise self.damaged("it is not a regular file")
            descriptor = os.open(self.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            with open(descriptor, "rb") as file:  # noqa: PTH123  # a descriptor
                data: bytes = file.read(self._largest_bytes + 1)
        if len(data) > self._largest_bytes:
            raise self.damaged(f"it has more than {self._largest_bytes} bytes")
        return data


def make_private_directory(path: Path) -> None:
    """Make a directory that only this user may look into, durably, unless it is there.

    Raises:
        NoSpaceError, ReadOnlyError, StorageError: it cannot be made.
    """
    with storage_errors(f"cannot create {path}"):
        if not path.is_dir():
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            fsync_directory(path.parent)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
