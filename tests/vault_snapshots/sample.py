"""A vault that opens without the cost of a password, and what its folder holds, as a dict."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

from vaultfs.crypto.kdf import KdfParameters
from vaultfs.crypto.keys import Keyring
from vaultfs.crypto.slots import Secret
from vaultfs.storage.layout import VaultLayout
from vaultfs.storage.lock import VaultLock
from vaultfs.vault import snapshot_image
from vaultfs.vault.api import Vault
from vaultfs.vault.filesystem import FileSystem
from vaultfs.vault.opening import create_vault, load_header, open_unlocked
from vaultfs.vault.steps import Step, Steps, Want

PASSWORD = b"correct horse battery staple"

Contents = dict[bytes, bytes | None]
"""Path to bytes; None for a directory."""


class Sample:
    """One vault, and its keys.

    Args:
        path: its directory.
        keyring: unlocked once.
    """

    def __init__(self, path: Path, keyring: Keyring) -> None:
        self.path = path
        self.keyring = keyring
        self.layout = VaultLayout(path)
        self.secret = Secret.password(PASSWORD)

    @classmethod
    def create(cls, path: Path, chunk_size_bytes: int, compression: Literal["none", "zstd"]) -> Sample:
        secret = Secret.password(PASSWORD)
        create_vault(
            path,
            secret,
            chunk_size_bytes=chunk_size_bytes,
            compression=compression,
            kdf=KdfParameters.weakest(),
        )
        return cls(path, load_header(VaultLayout(path)).unlock(secret))

    def copy(self, path: Path) -> Sample:
        shutil.copytree(self.path, path)
        return Sample(path, self.keyring)

    def open(self, *, read_only: bool = False) -> Vault:
        lock = VaultLock.acquire(self.layout, purpose="test")
        try:
            return Vault(open_unlocked(self.layout, self.keyring, lock, read_only=read_only))
        except BaseException:
            lock.release()
            raise

    def open_snapshot(self, which: str | int) -> Vault:
        return Vault(snapshot_image.open_with_keys(self.layout, self.keyring, which))

    def snapshot_contents(self, which: str | int) -> Contents:
        with contextlib.closing(self.open_snapshot(which)) as vault:
            return contents(vault)

    def stored_bytes(self) -> int:
        """Room that the segments take on the disk."""
        return sum(file.stat().st_blocks * 512 for file in self.layout.segments.rglob("*.seg"))


def contents(vault: Vault, directory: bytes = b"") -> Contents:
    """Everything in a vault."""
    found: Contents = {}
    for name, status in vault.scan(directory or b"/"):
        path = directory + b"/" + name
        if stat.S_ISDIR(status.st_mode):
            found[path] = None
            found |= contents(vault, path)
        else:
            with vault.open(path) as file:
                found[path] = file.read(-1)
    return found


def write(vault: Vault, path: bytes, data: bytes) -> None:
    with vault.open(path, "wb") as file:
        file.write(data)


def fill(vault: Vault) -> None:
    """Files with chunks of their own, shared ones, holes, and none."""
    shared = os.urandom(100_000)
    vault.mkdir(b"/d")
    write(vault, b"/d/own", os.urandom(300_000))
    write(vault, b"/d/shared", shared)
    write(vault, b"/twin", shared)
    write(vault, b"/small", b"a few bytes")
    write(vault, b"/empty", b"")
    write(vault, b"/zeros", bytes(50_000))


class Stepper:
    """Carries out the steps of a snapshot one by one, so that something can happen between them.

    Args:
        fs: the vault.
        steps: of making or deleting.
    """

    def __init__(self, fs: FileSystem, steps: Steps[object]) -> None:
        self._fs = fs
        self._steps = steps
        self.wanted: Want | None = None
        self.is_held = False
        self.is_over = False

    def run_core(self) -> bool:
        """Run in the core up to the next thing that is wanted; False at the end."""
        try:
            self.wanted = next(self._steps)
        except StopIteration:
            self.is_over = True
            return False
        return True

    def carry_out(self) -> None:
        """Do what is wanted."""
        want, self.wanted = self.wanted, None
        if want is Step.COMMIT:
            self._fs.committer.commit()
        elif want is Step.HOLD:
            self.is_held = True
        elif want is Step.LET_GO:
            self.is_held = False
        elif callable(want):
            want()

    def half_steps(self) -> Iterator[None]:
        """Yield before and after each thing that is wanted."""
        while self.run_core():
            yield
            self.carry_out()
            yield

    def fail(self, error: BaseException) -> None:
        """Let what is wanted fail; raises what comes of it once all that cleans up has been carried out."""
        self.wanted = self._steps.throw(error)
        self.carry_out()
        while self.run_core():
            self.carry_out()


def crash_after(sample: Sample, half_steps: int, begin: Callable[[Vault], Steps[object]]) -> bool:
    """Open the vault, begin, and crash after so many half steps; whether it was over before."""
    vault = sample.open()
    stepper = Stepper(vault.filesystem, begin(vault))
    for _, _ in zip(range(half_steps), stepper.half_steps(), strict=False):
        pass
    vault.filesystem.abandon()
    return stepper.is_over
