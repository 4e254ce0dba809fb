"""Gives, replaces and removes the names of a peer's objects, one at a time, and has them counted.

One server works in a peer's directory, so a look and a change under the lock are one step.  An object counts from the
instant that it has its name, whatever fails after that.
"""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from vaultfs.errors import ObjectExistsError, RemoteError
from vaultfs.ids import VaultId
from vaultfs.mesh import replica_files
from vaultfs.mesh.partial_uploads import Upload
from vaultfs.mesh.replica_keys import ObjectKey
from vaultfs.mesh.replica_ledger import Ledger
from vaultfs.mesh.replica_vault import HeldVault
from vaultfs.storage.anchored_paths import is_regular

FileMark = tuple[int, int]
"""Which file lies at a name: its file system and number."""

_MOST_DURABLE: Final = 10_000
"""Directories known to be durable; beyond, all are forgotten and synced again, which costs little."""


def mark_of(status: os.stat_result) -> FileMark:
    """Which file this is."""
    return (status.st_dev, status.st_ino)


class ObjectNames:
    """Thread-safe.

    Args:
        root: the peer's directory, open; stays its owner's.
        ledger: counts.
    """

    def __init__(self, root: int, ledger: Ledger) -> None:
        self._root: Final = root
        self._ledger: Final = ledger
        self._lock: Final = threading.Lock()

    @contextmanager
    def changing(self) -> Iterator[None]:
        """No name changes meanwhile but by `give`."""
        with self._lock:
            yield

    def give(self, held: HeldVault, upload: Upload, *, if_absent: bool, damaged: FileMark | None) -> None:
        """Give an object its name, within `changing`; `sync` it after that.

        Args:
            held: its vault.
            upload: its file, synced.
            if_absent: refuse to replace an object.
            damaged: a file that may be replaced all the same.

        Raises:
            ObjectExistsError: ``if_absent``, and there is one.
            RemoteError: something else lies there.
            OSError: the disk failed.
        """
        path = held.path(upload.wanted)
        self.make_durable(path[:-1])
        before = replica_files.status_of(self._root, path)
        replaced_bytes = None
        if before is not None:
            if stat.S_ISDIR(before.st_mode):
                raise RemoteError(f"the peer cannot store {upload.wanted.key}: a directory lies in its place")
            if is_regular(before):
                if if_absent and mark_of(before) != damaged:
                    raise ObjectExistsError(f"there is {upload.wanted.key} already")
                replaced_bytes = before.st_size
        replica_files.give_name(self._root, held.partial_path(upload.coming.name), path)
        with self._ledger.lock:
            self._ledger.has_come(upload.coming)
            if before is not None and mark_of(before) == damaged:
                held.recount()
            else:
                held.stored(upload.wanted, upload.size_bytes, upload.coming.caller, replaced_bytes)

    def make_durable(self, directories: Sequence[str]) -> None:
        """Make directories that are not there, durably.

        Raises:
            OSError: the disk failed.
        """
        with self._ledger.lock:
            if len(self._ledger.durable) > _MOST_DURABLE:
                self._ledger.durable.clear()
            replica_files.make_directories(self._root, directories, self._ledger.durable)

    def sync(self, held: HeldVault, wanted: ObjectKey) -> None:
        """Make an object's name durable; a damaged one that had it before is not needed any more.

        Raises:
            OSError: the disk failed.
        """
        replica_files.sync_directory(self._root, held.path(wanted)[:-1])
        if wanted.digest is not None:
            replica_files.remove_file(self._root, held.damaged_path(wanted.digest))

    def remove(self, vault: VaultId, objects: Sequence[ObjectKey]) -> int:
        """Remove objects, durably.

        Returns:
            How many were there.

        Raises:
            OSError: the disk failed; some may be gone.
        """
        held = self._ledger.existing(vault) or HeldVault(self._root, vault)
        count = 0
        with self._lock:
            for wanted in objects:
                size_bytes = replica_files.remove_file(self._root, held.path(wanted))
                if size_bytes is not None:
                    count += 1
                    with self._ledger.lock:
                        held.removed(wanted, size_bytes)
                if wanted.digest is not None:
                    replica_files.remove_file(self._root, held.damaged_path(wanted.digest))
            # also where nothing was: an earlier order may have failed here
            for directory in sorted({tuple(held.path(wanted)[:-1]) for wanted in objects}):
                replica_files.sync_directory(self._root, directory)
            for wanted in objects:
                self._remove_empty(held, wanted)
        return count

    def _remove_empty(self, held: HeldVault, wanted: ObjectKey) -> None:
        """Remove the directories that were made for one object only: nobody pays for them."""
        for count in range(len(wanted.parts) - 1, wanted.lasting_parts, -1):
            directory = (held.directory, *wanted.parts[:count])
            with self._ledger.lock:  # nobody finds it to be durable when it is gone
                if not replica_files.remove_empty_directory(self._root, directory):
                    return
                self._ledger.durable.discard(directory)

    def set_aside(self, vault: VaultId, wanted: ObjectKey, damaged: FileMark) -> bool:
        """Take the name from a damaged object, durably, unless another file has come in its place.

        Returns:
            Whether that was done.

        Raises:
            OSError: the disk failed.
        """
        held = self._ledger.existing(vault)
        if held is None or wanted.digest is None:
            return False
        path, aside = held.path(wanted), held.damaged_path(wanted.digest)
        with self._lock:
            before = replica_files.status_of(self._root, path)
            if before is None or mark_of(before) != damaged:
                return False
            self.make_durable(aside[:-1])
            replica_files.give_name(self._root, path, aside)
            with self._ledger.lock:
                held.recount()
            replica_files.sync_directory(self._root, aside[:-1])
            replica_files.sync_directory(self._root, path[:-1])
        return True
