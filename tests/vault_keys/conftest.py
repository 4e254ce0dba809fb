"""A vault that costs one weak key derivation per test module, copied for each test."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import vaultfs
from vault_keys.sample import FILES, secret
from vaultfs.crypto.kdf import KdfParameters


@pytest.fixture(scope="session")
def master_copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("keys") / "vault"
    vaultfs.create_vault(path, secret(), kdf=KdfParameters.weakest())
    with vaultfs.open_vault(path, secret()) as vault:
        vault.mkdir("/dir")
        for name, content in FILES.items():
            with vault.open(name, "wb") as file:
                file.write(content)
    return path


@pytest.fixture
def vault_path(master_copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    # Each copy is a fork of the same vault: a witness of its own keeps them apart.
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return Path(shutil.copytree(master_copy, tmp_path / "vault"))
