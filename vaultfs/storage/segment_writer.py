"""Writing a segment: append sealed chunks, make them durable, seal the file under its hash.

Bytes below `SegmentWriter.size_bytes` are never written again.  Crash safety rests on the order of system calls:

    sync   fdatasync the file; the first time, then fsync ``open/``, which holds its name
    seal   fdatasync the file; fsync ``segments/``; link it to its sealed name; fsync the directory of that name

Both names exist until the caller, having committed the sealed one, drops the open one.  So at every instant the
metadata, whichever commit is found, names a file that is there.

After a failed sync Linux marks the pages clean, so a second one would report success for data that is lost.  Therefore
a segment whose sync failed refuses everything but reading: write the data again to another one.
"""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, Self, TypeAlias

import blake3

from vaultfs.errors import IntegrityError, StorageError
from vaultfs.ids import SegmentName
from vaultfs.storage.durable import fsync_directory, storage_error, storage_errors, write_all
from vaultfs.storage.layout import VaultLayout
from vaultfs.storage.segment_file import (
    OPEN_MODE,
    SEALED_MODE,
    hash_descriptor,
    open_for_change,
    open_segment,
    read_up_to,
)
from vaultfs.storage.segment_format import HEADER_BYTES, SegmentHeader

Buffer: TypeAlias = bytes | bytearray | memoryview

_TOKEN_BYTES: Final = 16
_IOV_MAX: Final = 1024
"""UIO_MAXIOV of Linux: pwritev refuses more pieces."""
_CREATE_FLAGS: Final = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class SegmentWriter:
    """One open segment.  One thread at a time may append, sync and seal; any may read.

    Attributes:
        token: 32 random hexadecimal digits, its name while open.
        header: as written.
    """

    def __init__(self, layout: VaultLayout, token: str, header: SegmentHeader, descriptor: int) -> None:
        self.token: Final = token
        self.header: Final = header
        self._layout: Final = layout
        self._path: Final = layout.open_path(token)
        self._descriptor = descriptor
        self._hasher = blake3.blake3(header.encode())
        self._size_bytes = HEADER_BYTES
        self._name_is_durable = False
        self._sealed_as: SegmentName | None = None
        self._failure: str | None = None

    @classmethod
    def create(cls, layout: VaultLayout, header: SegmentHeader) -> Self:
        """Begin a segment.  It is not durable before the first `sync`.

        Raises:
            NoSpaceError, ReadOnlyError, StorageError: nothing is left behind.
        """
        token = secrets.token_hex(_TOKEN_BYTES)
        path = layout.open_path(token)
        with storage_errors(f"cannot create the segment {path}"):
            descriptor = os.open(path, _CREATE_FLAGS, OPEN_MODE)
            try:
                write_all(descriptor, header.encode())
            except BaseException:
                os.close(descriptor)
                with suppress(OSError):  # the first error is the one to report; a leftover is found at mount
                    os.unlink(path)  # noqa: PTH108  # named as the system call, like all others here
                raise
        return cls(layout, token, header, descriptor)

    @property
    def size_bytes(self) -> int:
        """Bytes in the file, the header included."""
        return self._size_bytes

    def append(self, pieces: Sequence[Buffer]) -> int:
        """Write pieces one after the other at the end; either all of them count or none does.

        Args:
            pieces: contiguous buffers; they are not kept.

        Returns:
            The offset of the first one in the file, in bytes.

        Raises:
            NoSpaceError, StorageError: the segment is as before and may be used again, unless `sync` or the truncation
                that undoes the append failed.
        """
        self._require_usable()
        views = [memoryview(piece).cast("B") for piece in pieces]
        offset = self._size_bytes
        try:
            end = self._write(views, offset)
        except BaseException as error:
            self._undo_append()
            if isinstance(error, OSError):
                raise storage_error(f"cannot write to the segment {self._path}", error) from error
            raise
        for view in views:
            self._hasher.update(view)
        self._size_bytes = end
        return offset

    def _write(self, views: list[memoryview], offset: int) -> int:
        """Write everything at ``offset``, however short the writes turn out; the offset behind it."""
        rest = [view for view in views if view.nbytes]
        while rest:
            written = os.pwritev(self._descriptor, rest[:_IOV_MAX], offset)
            if written == 0:
                raise OSError(errno.EIO, "the system wrote nothing")
            offset += written
            done = 0
            while done < len(rest) and written >= rest[done].nbytes:
                written -= rest[done].nbytes
                done += 1
            del rest[:done]
            if written:
                rest[0] = rest[0][written:]
        return offset

    def _undo_append(self) -> None:
        try:
            os.ftruncate(self._descriptor, self._size_bytes)
        except OSError as error:
            self._failure = f"an append could not be undone ({error.strerror})"

    def sync(self) -> None:
        """Make everything appended so far durable.

        Raises:
            NoSpaceError, StorageError: nothing since the last successful sync is; the segment can only be read now.
        """
        self._require_usable()
        self._sync_data()
        if not self._name_is_durable:
            self._sync_directory(self._layout.open_segments)
            self._name_is_durable = True

    def _sync_data(self) -> None:
        try:
            os.fdatasync(self._descriptor)
        except OSError as error:
            self._failure = f"its sync failed ({error.strerror})"
            raise storage_error(f"cannot sync the segment {self._path}", error) from error

    def _sync_directory(self, directory: Path) -> None:
        try:
            fsync_directory(directory)
        except Exception:
            self._failure = f"the sync of {directory} failed"
            raise

    def read(self, offset: int, length: int) -> bytes:
        """Read what was appended, durable or not.

        Args:
            offset: bytes from the start of the file.
            length: bytes.

        Raises:
            IntegrityError: the range does not lie within what was appended.
            StorageError: the disk failed.
        """
        if offset < 0 or length < 0 or offset + length > self._size_bytes:
            raise IntegrityError(f"the segment {self.token} holds no {length} bytes at {offset}; run vaultfs fsck")
        with storage_errors(f"cannot read the segment {self._path}"):
            data = read_up_to(self._descriptor, offset, length)
        if len(data) != length:
            raise IntegrityError(f"the segment {self.token} was cut while it was written; run vaultfs fsck")
        return data

    def seal(self) -> SegmentName:
        """Give the file its final name, durably; nothing can be appended afterwards.  The open name stays as well.

        Sealing again returns the same name.

        Raises:
            NoSpaceError: the segment is still open, and sealing may be tried again.
            StorageError: likewise, unless a sync failed.
            IntegrityError: another file has the name, or the open name leads to another file.
        """
        if self._sealed_as is None:
            self._require_usable()
            name = SegmentName(self._hasher.hexdigest())
            with storage_errors(f"cannot seal the segment {self._path}"):
                os.fchmod(self._descriptor, SEALED_MODE)
            self._sync_data()
            shard = _make_shard(self._layout, name)
            self._sync_directory(self._layout.segments)
            _link(self._layout, self.token, name, self._descriptor)
            self._sync_directory(shard)
            self._sealed_as = name
        return self._sealed_as

    def discard_open_name(self) -> None:
        """Drop the name that the segment had while it was written.  Doing it twice is harmless.

        Raises:
            StorageError: the disk failed.
        """
        discard_open_name(self._layout, self.token)

    def close(self) -> None:
        """Close the file, whatever its state.  Doing it twice is harmless."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            with storage_errors(f"cannot close the segment {self._path}"):
                os.close(descriptor)

    def _require_usable(self) -> None:
        if self._sealed_as is not None:
            raise StorageError(f"the segment {self.token} is sealed already; write to another one")
        if self._failure is not None:
            raise StorageError(
                f"the segment {self._path} cannot be used: {self._failure}; write the data to another one"
            )


def discard_open_name(layout: VaultLayout, token: str) -> None:
    """Delete ``open/<token>.seg`` if it exists: what is sealed keeps its other name, what is not is gone.

    It is not synced: after a power cut the name may be back, and is then dropped again at mount.

    Raises:
        StorageError, ReadOnlyError: the system refused.
    """
    path = layout.open_path(token)
    with storage_errors(f"cannot delete {path}"), suppress(FileNotFoundError):
        os.unlink(path)  # noqa: PTH108


def discard_sealed_name(layout: VaultLayout, token: str) -> None:
    """Delete the sealed name of a leftover in open/ to which nothing refers: a crash came right after its sealing.

    Raises:
        StorageError, ReadOnlyError: the system refused.
    """
    path = layout.open_path(token)
    with storage_errors(f"cannot delete {path}"), suppress(FileNotFoundError):
        if path.lstat().st_nlink < 2:
            return
        descriptor = open_segment(path, segment=token)
        try:
            sealed = layout.sealed_path(hash_descriptor(descriptor))
            if _leads_to(sealed, os.fstat(descriptor)):
                os.unlink(sealed)  # noqa: PTH108
        finally:
            os.close(descriptor)


def seal_leftover(layout: VaultLayout, token: str, keep_bytes: int) -> tuple[SegmentName, int]:
    """Seal a segment that a crash left open; repeatable, so that a crash in here does no harm.

    What lies behind ``keep_bytes`` belongs to no commit and is cut off, unless the crash came between the link and the
    commit of a complete seal: then the file already is what its sealed name says and stays whole.  The open name stays
    until `discard_open_name`.

    Args:
        layout: the vault.
        token: the open segment's.
        keep_bytes: how much the metadata refers to, the header included.

    Returns:
        The name, and the size of the file in bytes, which is ``keep_bytes`` or more.

    Raises:
        IntegrityError: the file is missing, shorter than ``keep_bytes``, or not a segment.
        NoSpaceError, ReadOnlyError, StorageError: the system refused.
    """
    path = layout.open_path(token)
    descriptor = open_for_change(path, segment=token)
    try:
        with storage_errors(f"cannot seal the segment {path}"):
            status = os.fstat(descriptor)
            if status.st_size < max(keep_bytes, HEADER_BYTES):
                message = f"the segment {token} has {status.st_size} bytes where {keep_bytes} were durable; restore it"
                raise IntegrityError(message)
            SegmentHeader.decode(os.pread(descriptor, HEADER_BYTES, 0))
            size = status.st_size
            # Only a sealed segment has two names; hashing every leftover twice would be in vain.
            if status.st_nlink == 1 or not _leads_to(layout.sealed_path(hash_descriptor(descriptor)), status):
                size = max(keep_bytes, HEADER_BYTES)
                os.ftruncate(descriptor, size)
            os.fchmod(descriptor, SEALED_MODE)
            os.fdatasync(descriptor)
            name = hash_descriptor(descriptor)
        shard = _make_shard(layout, name)
        fsync_directory(layout.segments)
        _link(layout, token, name, descriptor)
        fsync_directory(shard)
    finally:
        os.close(descriptor)
    return name, size


def _make_shard(layout: VaultLayout, name: SegmentName) -> Path:
    """The directory of a sealed name, created if need be.

    The caller must sync ``segments/`` even if the directory existed: an earlier process may have died in between.
    """
    shard = layout.sealed_path(name).parent
    with storage_errors(f"cannot create the directory {shard}"):
        shard.mkdir(mode=0o700, exist_ok=True)
    return shard


def _link(layout: VaultLayout, token: str, name: SegmentName, descriptor: int) -> None:
    """Give an open segment its sealed name as well, not durably yet.

    Raises:
        IntegrityError: the name leads to another file with other content.
        NoSpaceError, ReadOnlyError, StorageError: the system refused.
    """
    sealed = layout.sealed_path(name)
    with storage_errors(f"cannot seal the segment {layout.open_path(token)} as {sealed}"):
        with suppress(FileExistsError):  # checked next
            os.link(layout.open_path(token), sealed, follow_symlinks=False)
        if not _leads_to(sealed, os.fstat(descriptor)):
            _require_same_content(sealed, name)


def _leads_to(path: Path, status: os.stat_result) -> bool:
    """Whether a path, without following symlinks, names the file with this status."""
    try:
        return os.path.samestat(path.lstat(), status)
    except FileNotFoundError:
        return False


def _require_same_content(sealed: Path, name: SegmentName) -> None:
    """Accept a separate file with the same content, as copying a vault without regard to hard links makes."""
    descriptor = open_segment(sealed, segment=name)
    try:
        if hash_descriptor(descriptor) != name:
            raise IntegrityError(f"{sealed} holds something else than its name says; move it away")
        os.fdatasync(descriptor)
    finally:
        os.close(descriptor)
