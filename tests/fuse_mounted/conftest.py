"""One mounted vault for each test that asks for it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from vaultfs.crypto.kdf import KdfParameters
from vaultfs.crypto.slots import Secret
from vaultfs.fuse import control
from vaultfs.vault.opening import create_vault

PASSWORD = "correct horse battery staple"


class Mounted:
    """A vault and the folder where it is mounted."""

    def __init__(self, base: Path) -> None:
        self.vault = base / "vault"
        self.folder = base / "folder"
        self.password = base / "password"
        self.folder.mkdir()
        self.password.write_text(f"{PASSWORD}\n", encoding="ascii")
        self.password.chmod(0o600)

    def run(self, *words: str | Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "vaultfs.cli", *words],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )

    def must(self, *words: str | Path) -> None:
        done = self.run(*words)
        assert done.returncode == 0, done.stderr

    def mount(self, *more: str) -> None:
        self.must("mount", self.vault, self.folder, "--passfile", self.password, *more)

    def unmount(self) -> None:
        self.must("umount", self.folder)

    def status(self) -> dict[str, Any]:
        return control.request(self.folder.resolve(), "status")


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Mounted]:
    base = tmp_path / "mounted"
    base.mkdir()
    mounted = Mounted(base)
    create_vault(mounted.vault, Secret.password(PASSWORD), kdf=KdfParameters.weakest())
    mounted.mount()
    try:
        yield mounted
    finally:
        if mounted.folder.is_mount():
            mounted.unmount()
        shutil.rmtree(base)
