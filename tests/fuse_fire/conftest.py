from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from vaultfs.crypto.kdf import KdfParameters
from vaultfs.crypto.slots import Secret
from vaultfs.vault.api import Vault
from vaultfs.vault.filesystem import FileSystem
from vaultfs.vault.opening import create_vault, open_filesystem

FILE_BYTES = 512 << 10


@pytest.fixture
def fs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FileSystem]:
    """A vault with a file of four chunks."""
    secret, _ = Secret.generate_recovery()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    create_vault(tmp_path / "vault", secret, kdf=KdfParameters.weakest())
    fs = open_filesystem(tmp_path / "vault", secret)
    try:
        vault = Vault(fs)
        with vault.open("/file", "wb") as file:
            file.write(os.urandom(FILE_BYTES))
        vault.commit()
        yield fs
    finally:
        fs.abandon()
