"""Making vaults quickly, and crashing them.

A crash is the vault's directory copied while it is open: `FileSystem.abandon` closes the database, and SQLite tidies up
on the way.  The copy has what a process that was killed leaves: all it wrote, synced or not.
"""

from __future__ import annotations

import itertools
import os
import shutil
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from vaultfs.crypto.kdf import KdfParameters
from vaultfs.crypto.slots import Secret
from vaultfs.storage.layout import VaultLayout
from vaultfs.storage.lock import VaultLock
from vaultfs.vault.api import Vault
from vaultfs.vault.fsck import check
from vaultfs.vault.opening import create_vault, load_header, open_unlocked

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vaultfs.crypto.keys import Keyring
    from vaultfs.vault.filesystem import FileSystem

CHUNK_BYTES = 4096
KEY, _ = Secret.generate_recovery()


class Place:
    """Where a test keeps its vault, and the copies of it that crashes leave."""

    def __init__(self, base: Path, root: Path) -> None:
        self.base = base
        self.root = root
        self._numbers = itertools.count(1)
        self._keyring: Keyring | None = None

    def open(self, *, read_only: bool = False) -> FileSystem:
        layout = VaultLayout(self.root)
        # Copies of one template are forks of one vault; what was seen of one must not count for another.
        os.environ["XDG_STATE_HOME"] = str(self.base / "state")
        if self._keyring is None:
            self._keyring = load_header(layout).unlock(KEY)
        lock = VaultLock.acquire(layout, purpose="test")
        try:
            return open_unlocked(layout, self._keyring, lock, read_only=read_only)
        except BaseException:
            lock.release()
            raise

    def crash(self, fs: FileSystem) -> None:
        """Stop without a word; from now on `root` is what is left."""
        self.leave_copy()
        fs.abandon()

    def leave_copy(self) -> None:
        """Go on with a copy of the vault as it is at this moment."""
        old, self.root = self.root, self.base / f"crash-{next(self._numbers)}"
        shutil.copytree(old, self.root)

    @contextmanager
    def opened(self) -> Iterator[Vault]:
        """The vault, closed cleanly afterwards unless the body fails."""
        fs = self.open()
        try:
            yield Vault(fs)
        except BaseException:
            fs.abandon()
            raise
        fs.close()


class Makers:
    """Templates of vaults, copied for each test."""

    def __init__(self, base: Path) -> None:
        self._base = base

    def template(self, chunk_size: int, compression: Literal["none", "zstd"]) -> Path:
        template = self._base / f"{chunk_size}-{compression}"
        if not template.exists():
            create_vault(
                template, KEY, chunk_size_bytes=chunk_size, compression=compression, kdf=KdfParameters.weakest()
            )
        return template

    def place(self, where: Path, chunk_size: int = CHUNK_BYTES, compression: Literal["none", "zstd"] = "none") -> Place:
        root = where / "vault"
        shutil.copytree(self.template(chunk_size, compression), root)
        return Place(where, root)


def write(vault: Vault, path: str, content: bytes, offset: int = 0) -> None:
    with vault.open(path, "r+b" if vault.exists(path) else "wb") as file:
        file.pwrite(content, offset)


def read(vault: Vault, path: str) -> bytes:
    with vault.open(path) as file:
        content: bytes = file.read()
        return content


def on_disk(root: Path) -> dict[str, bytes | None]:
    """Every file and directory of a vault; the lock's text and SQLite's index of the WAL count for nothing."""
    return {
        str(path.relative_to(root)): path.read_bytes() if path.is_file() else None
        for path in sorted(root.rglob("*"))
        if path.name not in {"lock", "metadata.db-shm"}
    }


def require_consistent(root: Path) -> None:
    """What fsck checks: link counts, reference counts, sizes, every chunk."""
    report = check(root, KEY)
    assert report.is_clean, [finding.message for finding in report.findings]
