"""Vaults with small segments, so that little data fills many; they open with a recovery key, which is fast."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

import vaultfs
from vault_compaction.vaults import KEY
from vaultfs.crypto.kdf import KdfParameters
from vaultfs.vault.api import Vault


@pytest.fixture
def tmp_path(scratch: Path) -> Path:
    """In memory: vaults are synced all the time."""
    return scratch


@pytest.fixture(scope="session")
def empty_copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("compaction") / "vault"
    vaultfs.create_vault(path, KEY, kdf=KdfParameters.weakest(), chunk_size_bytes=16 << 10)
    return path


@pytest.fixture
def path(empty_copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setattr("vaultfs.vault.pipeline.SEGMENT_TARGET_BYTES", 1 << 20)
    monkeypatch.setattr("vaultfs.vault.commit.CHECKPOINT_BYTES", 1 << 20)
    return Path(shutil.copytree(empty_copy, tmp_path / "vault"))


@pytest.fixture
def vault(path: Path) -> Iterator[Vault]:
    with vaultfs.open_vault(path, KEY) as opened:
        yield opened


@pytest.fixture
def data() -> bytes:
    return os.urandom(3 << 20)
