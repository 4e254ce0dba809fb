"""A vault with a past, and a copy of it: the two have gone different ways since."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

import vaultfs
from vault_adopting.copies import KEY, Copies, remove, write
from vaultfs.crypto.kdf import KdfParameters


@pytest.fixture
def tmp_path(scratch: Path) -> Path:
    """In memory: vaults are synced all the time."""
    return scratch


@pytest.fixture(scope="session")
def master_copies(tmp_path_factory: pytest.TempPathFactory) -> Copies:
    """Both make snapshots 2 and 3 by themselves, with chunks and inodes of the same numbers."""
    base = tmp_path_factory.mktemp("adopting")
    copies = Copies(base / "ours", base / "theirs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(base / "state"))
        patch.setattr("vaultfs.vault.pipeline.SEGMENT_TARGET_BYTES", 128 << 10)
        vaultfs.create_vault(copies.ours, KEY, kdf=KdfParameters.weakest(), chunk_size_bytes=16 << 10)
        with vaultfs.open_vault(copies.ours, KEY) as vault:
            write(vault, "/common", os.urandom(200_000))
            write(vault, "/changed", os.urandom(100_000))
            write(vault, "/gone", os.urandom(100_000))
            vault.create_snapshot("common")
        shutil.copytree(copies.ours, copies.theirs)
        for path in copies:
            patch.setenv("XDG_STATE_HOME", str(base / path.name / "state"))
            with vaultfs.open_vault(path, KEY) as vault:
                for number in (2, 3):
                    write(vault, "/changed", os.urandom(20_000), 30_000 * (number - 2))
                    write(vault, f"/{path.name} {number}", os.urandom(100_000))
                    vault.create_snapshot("by hand")
                remove(vault, "/gone")
                write(vault, "/unsaved", path.name.encode())
                if path == copies.theirs:
                    vault.create_snapshot("newest")
            shutil.rmtree(base / path.name / "state")
    return copies


@pytest.fixture
def copies(master_copies: Copies, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Copies:
    """Ours is on this machine, which has never seen theirs."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    for path in master_copies:
        shutil.copytree(path, tmp_path / path.name)
    return Copies(tmp_path / "ours", tmp_path / "theirs")
