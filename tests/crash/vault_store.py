"""The vault under test as a `Store` for workloads: through the Python API, with chunks so small that they are many."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from vaultfs import KdfParameters, Secret, Vault, VaultFile, create_vault, open_vault
from vaultfs.errors import FileSystemError
from vaultfs.metadata import database
from vaultfs.vault import commit, pipeline

from .stores import Entry, Tree
from .workload import BLOCK

PASSWORD = b"correct horse battery staple"
STATE_VARIABLE = "XDG_STATE_HOME"

SMALL_LIMITS = (
    (commit, "CHECKPOINT_BYTES", 96 << 10),
    (pipeline, "SEGMENT_TARGET_BYTES", 128 << 10),
    (database, "WAL_RESERVE_BYTES", 32 << 10),
)
"""With them a small workload has what a vault has after hundreds of megabytes: checkpoints, sealed segments."""


def use_state_of(root: Path) -> None:
    """Keep the witness below ``root`` too: it is on the disk whose power is cut."""
    os.environ[STATE_VARIABLE] = str(root / "state")


def prepare_vault(root: Path) -> None:
    """Make a vault in ``root/vault`` that was used and closed before."""
    use_state_of(root)
    create_vault(root / "vault", Secret.password(PASSWORD), kdf=KdfParameters.weakest(), chunk_size_bytes=BLOCK)
    store = VaultStore(root)
    store.close()


class VaultStore:
    """A vault in ``root/vault``, opened."""

    def __init__(self, root: Path) -> None:
        use_state_of(root)
        self._root = root
        self.vault: Vault = open_vault(root / "vault", Secret.password(PASSWORD))
        self._held: list[VaultFile] = []

    def mkdir(self, path: str) -> None:
        self.vault.mkdir(path)

    def rmdir(self, path: str) -> None:
        self.vault.rmdir(path)

    def write(self, path: str, offset: int, data: bytes) -> None:
        with self.vault.open(path, "r+b" if self.vault.exists(path) else "xb") as file:
            file.pwrite(data, offset)

    def truncate(self, path: str, size: int) -> None:
        self.vault.truncate(path, size)

    def remove(self, path: str) -> None:
        self.vault.remove(path)

    def rename(self, old: str, new: str) -> None:
        self.vault.rename(old, new)

    def link(self, old: str, new: str) -> None:
        self.vault.link(old, new)

    def symlink(self, target: str, path: str) -> None:
        self.vault.symlink(target, path)

    def chmod(self, path: str, mode: int) -> None:
        self.vault.chmod(path, mode)

    def set_attribute(self, path: str, name: str, value: bytes) -> None:
        self.vault.setxattr(path, name.encode(), value)

    def hold(self, path: str) -> None:
        self._held.append(self.vault.open(path))

    def fsync(self, path: str) -> None:
        with self.vault.open(path, "r+b") as file:
            file.fsync()

    def commit(self) -> None:
        self.vault.commit()

    def snapshot(self, label: str) -> None:
        self.vault.create_snapshot(label)

    def drop_snapshot(self, label: str) -> None:
        self.vault.delete_snapshot(next(each.seq for each in self.vault.snapshots() if each.label == label))

    def close(self) -> None:
        for file in self._held:
            file.close()
        self.vault.close()

    def tree(self) -> Tree:
        found = read_tree(self.vault)
        for each in self.vault.snapshots():
            found[f"@{each.label}"] = Entry("d", b"", 0, None, ())
            with open_vault(self._root / "vault", Secret.password(PASSWORD), snapshot=each.seq) as snapshot:
                tree = read_tree(snapshot)
            found.update({f"@{each.label}/{path}": entry for path, entry in tree.items()})
        return found


def read_tree(vault: Vault) -> Tree:
    """Everything in a vault, or in a snapshot."""
    found: Tree = {}
    _read(vault, "", found)
    return found


def _read(vault: Vault, directory: str, found: Tree) -> None:
    for raw, status in vault.scan(f"/{directory}"):
        path = f"{directory}/{os.fsdecode(raw)}".lstrip("/")
        attributes = tuple((os.fsdecode(name), vault.getxattr(path, name)) for name in sorted(vault.listxattr(path)))
        mode = stat.S_IMODE(status.st_mode)
        if stat.S_ISDIR(status.st_mode):
            found[path] = Entry("d", b"", 0, mode, attributes)
            _read(vault, path, found)
        elif stat.S_ISLNK(status.st_mode):
            found[path] = Entry("l", vault.readlink(path), status.st_nlink, mode, attributes)
        else:
            found[path] = Entry("f", _bytes(vault, path, status.st_size), status.st_nlink, mode, attributes)


def _bytes(vault: Vault, path: str, size: int) -> bytes:
    with vault.open(path) as file:
        content = file.readall()
    if len(content) != size:
        raise FileSystemError(errno.EIO, f"{path} has {len(content)} bytes and says {size}")
    return content
