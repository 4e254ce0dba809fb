"""One segment on its way into a vault's directory: under a temporary name until its hash is right.

What has come stays when a fetch ends early, so that the next one asks for the rest only.  The temporary name,
``.<hash>.part`` beside the final one, is one that nothing else reads.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
from pathlib import Path
from typing import Final

import blake3

from vaultfs.errors import IntegrityError, VaultLockedError
from vaultfs.ids import SegmentName
from vaultfs.remotes.store import Store
from vaultfs.storage.durable import storage_errors, write_all
from vaultfs.storage.layout import VaultLayout
from vaultfs.storage.segment_file import SEALED_MODE, hash_descriptor, open_segment
from vaultfs.sync.remote_layout import segment_key
from vaultfs.sync.remote_objects import body
from vaultfs.sync.workers import Crew

_FLAGS: Final = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_BLOCK_BYTES: Final = 1 << 20


class SegmentFetch:
    """The fetching of one segment.

    Args:
        store: the remote.
        layout: the vault that it shall lie in; the directory for it exists.
        name: the segment's.
        size: its bytes; no more are taken from the remote.
        crew: is told what came, and may end this.
    """

    def __init__(self, store: Store, layout: VaultLayout, name: SegmentName, size: int, crew: Crew) -> None:
        self._store: Final = store
        self._name: Final = name
        self._size: Final = size
        self._crew: Final = crew
        self._path: Final = layout.sealed_path(name)
        self._part: Final = part_path(layout, name)

    def run(self) -> None:
        """Have the segment under its name, with its data on the disk; the name is not synced.

        Raises:
            StoppedError: the crew ends; what came is kept.
            VaultLockedError: another process fetches the same one.
            IntegrityError: the remote has something else.
            NoSpaceError, StorageError: the disk is full, or failed; what came is kept.
            RemoteError: as `Store.get`.
        """
        self._crew.check()
        if self._is_there():
            self._crew.advance(self._size)
            return
        with storage_errors(f"cannot write {self._part}"):
            descriptor = os.open(self._part, _FLAGS, 0o600)
            try:
                self._lock(descriptor)
                status = os.fstat(descriptor)
                if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1:
                    raise IntegrityError(f"{self._part} is not a file of vaultfs; remove it")
                self._fill(descriptor, min(status.st_size, self._size))
                os.fdatasync(descriptor)
                os.rename(self._part, self._path)  # noqa: PTH104  # os.rename says which call it is
                os.fchmod(descriptor, SEALED_MODE)  # not before: a part has to be opened for writing again
            finally:
                os.close(descriptor)

    def _lock(self, descriptor: int) -> None:
        """Be the only one who writes the file: a clone may be filled by its daemon and by a command.

        Raises:
            VaultLockedError: somebody else does, or just did: then the file may be the segment already.
        """
        with contextlib.suppress(BlockingIOError, FileNotFoundError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(descriptor), self._part.lstat()):
                return
        raise VaultLockedError(f"another process is fetching the segment {self._name}; wait until it is done")

    def _is_there(self) -> bool:
        """Whether the segment is complete; a file that is not it stays until the right one takes its place."""
        with storage_errors(f"cannot look at {self._path}"):
            try:
                size = self._path.lstat().st_size
            except FileNotFoundError:
                return False
        descriptor = open_segment(self._path, segment=self._name)
        try:
            with storage_errors(f"cannot read {self._path}"):
                if size == self._size and hash_descriptor(descriptor) == self._name:
                    if stat.S_IMODE(os.fstat(descriptor).st_mode) != SEALED_MODE:  # it ended just before that
                        os.fchmod(descriptor, SEALED_MODE)
                    return True
        finally:
            os.close(descriptor)
        return False

    def _fill(self, descriptor: int, start: int) -> None:
        """Get what lies after ``start``; if the whole turns out wrong, get everything once more."""
        if start:
            if self._receive(descriptor, start):
                return
            self._crew.advance(-self._size)  # what was kept was damaged, maybe by a power cut
        if not self._receive(descriptor, 0):
            os.ftruncate(descriptor, 0)
            raise IntegrityError(
                f"{segment_key(self._name)} on {self._store.name} is damaged or was replaced: its content is not that "
                "of its name; fetch from another remote"
            )

    def _receive(self, descriptor: int, start: int) -> bool:
        """Append what lies after ``start``; whether the whole has the right hash then."""
        os.ftruncate(descriptor, start)
        hasher = blake3.blake3()
        position = 0
        while position < start:
            block = os.pread(descriptor, min(_BLOCK_BYTES, start - position), position)
            if not block:
                raise IntegrityError(f"{self._part} was cut while it was read; is another fetch running?")
            hasher.update(block)
            position += len(block)
        self._crew.advance(start)
        os.lseek(descriptor, start, os.SEEK_SET)
        if start < self._size:
            # A whole object is asked for as such: not every store can send a part.
            key, length = segment_key(self._name), self._size - start if start else None
            with body(self._store, key, offset=start, length=length) as pieces:
                for piece in pieces:
                    self._crew.check()
                    position += len(piece)
                    if position > self._size:
                        os.ftruncate(descriptor, 0)
                        raise IntegrityError(f"{key} on {self._store.name} is longer than its {self._size} bytes")
                    write_all(descriptor, piece)
                    hasher.update(piece)
                    self._crew.advance(len(piece))
        if position < self._size:
            raise IntegrityError(
                f"{segment_key(self._name)} on {self._store.name} ended after {position} of {self._size} bytes"
            )
        return hasher.hexdigest() == self._name


def part_path(layout: VaultLayout, name: SegmentName) -> Path:
    """Where a segment lies while it is fetched."""
    return layout.sealed_path(name).with_name(f".{name}.part")
