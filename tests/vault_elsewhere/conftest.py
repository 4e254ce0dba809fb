"""The vault of the tests of compaction, and a clone of it."""

from __future__ import annotations

from pathlib import Path

import pytest
from vault_compaction.conftest import data, empty_copy, path, vault
from vault_compaction.vaults import KEY, write

import vaultfs
from vault_elsewhere.sources import Elsewhere
from vaultfs.storage.layout import VaultLayout
from vaultfs.storage.manifest_format import Manifest
from vaultfs.vault.opening import load_header
from vaultfs.vault.restoring import complete
from vaultfs.vault.shipping import prepare

__all__ = ["data", "empty_copy", "path", "vault"]


@pytest.fixture
def tmp_path(scratch: Path) -> Path:
    """In memory: vaults are synced all the time."""
    return scratch


@pytest.fixture
def clone(path: Path, data: bytes, tmp_path: Path) -> tuple[Path, Elsewhere]:
    target = VaultLayout(tmp_path / "clone")
    with vaultfs.open_vault(path, KEY) as vault:
        layout = vault.filesystem.layout
        layout.remotes.write_text("[]")
        write(vault, "/file", data)
        for number in range(300):
            write(vault, f"/{number}", b"small %d" % number)
        info, _ = prepare(vault.filesystem)
        target.create_directories()
        target.header.write_bytes(layout.header.read_bytes())
        manifest = layout.manifest_path(info.seq, info.id).read_bytes()
        target.manifest_path(info.seq, info.id).write_bytes(manifest)
        source = Elsewhere.of(path)
    assert len(Manifest.decode(manifest)[0].segments) > 2
    header = load_header(target)
    complete(target, header, header.unlock(KEY), info.seq, info.id, source=source)
    return target.root, source
