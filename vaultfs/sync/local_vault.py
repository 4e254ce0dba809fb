"""The vault on this machine as the sidecar sees it: its manifests, held while they are needed.

Whoever deletes a snapshot takes an exclusive ``flock`` on its manifest first.  So a shared one, `ManifestHold`, keeps
the snapshot and all its segments as they are.  `vaultfs.vault.snapshot_manifest` follows the same protocol with keys.
"""

from __future__ import annotations

import fcntl
import os
import re
import stat
from typing import Final, NamedTuple, Self

from vaultfs.errors import IntegrityError, StorageError
from vaultfs.ids import SnapshotSeq, VaultId
from vaultfs.storage.durable import storage_errors
from vaultfs.storage.layout import VaultLayout
from vaultfs.storage.manifest_format import MAX_MANIFEST_BYTES, Manifest, manifest_hash
from vaultfs.storage.segment_file import read_up_to

_FILE: Final = re.compile(r"([0-9]{10,19})-([0-9a-f]{64})\.manifest")
_FLAGS: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class LocalManifest(NamedTuple):
    """A manifest by the name of its file."""

    seq: SnapshotSeq
    hash: str


def list_manifests(layout: VaultLayout) -> list[LocalManifest]:
    """The manifests in a vault, oldest first.

    Raises:
        StorageError: the directory cannot be read.
    """
    found = []
    with storage_errors(f"cannot list {layout.heads}"):
        try:
            entries = os.scandir(layout.heads)
        except FileNotFoundError:
            return []
        with entries:
            for entry in entries:
                match = _FILE.fullmatch(entry.name)
                if match is None or not entry.is_file(follow_symlinks=False):
                    continue
                manifest = LocalManifest(SnapshotSeq(int(match[1])), match[2])
                if layout.manifest_path(*manifest).name == entry.name:
                    found.append(manifest)
    return sorted(found)


class ManifestHold:
    """A shared lock on a manifest, until `release`: its snapshot is not deleted meanwhile."""

    def __init__(self, descriptor: int, manifest: LocalManifest) -> None:
        self._descriptor = descriptor
        self._manifest = manifest

    @classmethod
    def take(cls, layout: VaultLayout, manifest: LocalManifest) -> Self | None:
        """Lock a manifest; None if its snapshot was deleted, or is being deleted.

        Raises:
            StorageError: it cannot be opened.
        """
        path = layout.manifest_path(*manifest)
        with storage_errors(f"cannot open {path}"):
            try:
                descriptor = os.open(path, _FLAGS)
            except FileNotFoundError:
                return None
        hold = cls(descriptor, manifest)
        try:
            with storage_errors(f"cannot lock {path}"):
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
                except BlockingIOError:
                    hold.release()
                    return None
                status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise StorageError(f"{path} is not a regular file: something took its place; remove it")
        except BaseException:
            hold.release()
            raise
        if not status.st_nlink:
            hold.release()
            return None
        return hold

    def is_deleted(self) -> bool:
        """Whether the file has lost its name all the same, as one of an unfinished snapshot does."""
        with storage_errors(f"cannot look at the manifest of snapshot {self._manifest.seq}"):
            return os.fstat(self._descriptor).st_nlink == 0

    def size_bytes(self) -> int:
        """Bytes in the file."""
        with storage_errors(f"cannot look at the manifest of snapshot {self._manifest.seq}"):
            return os.fstat(self._descriptor).st_size

    def read(self) -> bytes:
        """The manifest's bytes, which are those of its name.

        Raises:
            IntegrityError: it is damaged.
            StorageError: the disk failed.
        """
        seq, name = self._manifest
        with storage_errors(f"cannot read the manifest of snapshot {seq}"):
            data = read_up_to(self._descriptor, 0, min(self.size_bytes(), MAX_MANIFEST_BYTES) + 1)
        if manifest_hash(data) != name:
            raise IntegrityError(
                f"the manifest of snapshot {seq} is not the one that was written: restore it, or delete the snapshot"
            )
        return data

    def content(self, vault_id: VaultId) -> Manifest:
        """The manifest's public part.

        Args:
            vault_id: of the vault it must belong to.

        Raises:
            IntegrityError: it is damaged or another one.
            FormatTooNewError: a newer vaultfs wrote it.
            StorageError: the disk failed.
        """
        manifest, _ = Manifest.decode(self.read())
        if (manifest.vault_id, manifest.seq) != (vault_id, self._manifest.seq):
            raise IntegrityError(f"the manifest of snapshot {self._manifest.seq} is that of another one; remove it")
        return manifest

    def release(self) -> None:
        """Give the lock up.  Doing it twice is harmless."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)
