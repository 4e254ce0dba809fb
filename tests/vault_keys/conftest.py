"""A vault that costs one weak key derivation per test module, copied for each test."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import vaultfs
from vault_keys.sample import FILES, KEY, OTHER, WEAK, secret
from vaultfs.crypto.kdf import KdfParameters
from vaultfs.vault.keyslots import add_slot


@pytest.fixture
def tmp_path(scratch: Path) -> Path:
    """In memory: vaults are synced all the time."""
    return scratch


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


@pytest.fixture(scope="session")
def fast_copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A vault with the slots ``paper`` and ``second``, both recovery keys."""
    path = tmp_path_factory.mktemp("rotation") / "vault"
    vaultfs.create_vault(path, KEY, kdf=WEAK, label="paper")
    with vaultfs.open_vault(path, KEY) as vault:
        vault.mkdir("/dir")
        for name, content in FILES.items():
            with vault.open(name, "wb") as file:
                file.write(content)
            vault.commit()  # or the twin's chunks are sealed before those that they equal have rows
    add_slot(path, KEY, OTHER, label="second", kdf=WEAK)
    return path


@pytest.fixture
def path(fast_copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return Path(shutil.copytree(fast_copy, tmp_path / "vault"))
