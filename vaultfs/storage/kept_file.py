"""A small file in JSON: read strictly and within bounds, replaced as a whole, one writer at a time.

A reader needs no lock: it finds the file as it was before a change or after it.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Generic, TypeVar

import msgspec

from vaultfs.errors import FormatTooNewError, IntegrityError, VaultLockedError
from vaultfs.storage.durable import atomic_replace, storage_errors
from vaultfs.storage.private_files import exclusive_lock

FORMAT_VERSION: Final = 1

_LOCK_PATIENCE_S: Final = 10.0
"""A change takes some milliseconds; ten seconds are a disk that hardly answers."""

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

    def encode(self, content: _Content) -> bytes:
        """What `save` would write.

        Raises:
            IntegrityError: it would be larger than it may be.
        """
        data = msgspec.json.format(msgspec.json.encode(content), indent=2) + b"\n"
        if len(data) > self._largest_bytes:
            raise IntegrityError(f"{self._title} would have {len(data)} bytes; it may have {self._largest_bytes}")
        return data

    def save(self, content: _Content) -> None:
        """Replace it; it is on the disk when this returns.  The caller has it `locked`.

        Raises:
            IntegrityError: it would be larger than it may be.
            NoSpaceError, ReadOnlyError, StorageError: the old file is still there.
        """
        atomic_replace(self.path, self.encode(content))

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes, and other threads, from changing it.

        Raises:
            VaultLockedError: somebody else takes too long.
            NoSpaceError, ReadOnlyError, StorageError: there can be no lock.
        """
        lock = self.path.with_name(f"{self.path.name}.lock")
        too_long = VaultLockedError(f"another process has been changing {self.path} for too long; try again")
        with exclusive_lock(lock, _LOCK_PATIENCE_S, too_long):
            yield

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
