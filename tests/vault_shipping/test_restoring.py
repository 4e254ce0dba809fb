"""A vault again from header, manifest and segments alone, as a remote has them."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from vault_compaction.vaults import KEY, read, require_exact_counts, write

import vaultfs
from vaultfs.crypto.kdf import KdfParameters
from vaultfs.crypto.slots import Secret
from vaultfs.errors import IntegrityError, RollbackError, UsageError
from vaultfs.storage.layout import VaultLayout
from vaultfs.storage.manifest_format import Manifest
from vaultfs.vault import restoring
from vaultfs.vault.api import Vault
from vaultfs.vault.fsck import check
from vaultfs.vault.opening import load_header
from vaultfs.vault.shipping import prepare
from vaultfs.vault.snapshot_image import open_snapshot
from vaultfs.vault.snapshot_manifest import SnapshotInfo


def shipped(vault: Vault, to: Path) -> SnapshotInfo:
    """Copy what a remote would have."""
    source, target = vault.filesystem.layout, VaultLayout(to)
    source.remotes.write_text("[]")
    info, _ = prepare(vault.filesystem)
    target.create_directories()
    target.restoring.touch()
    shutil.copy(source.header, target.header)
    path = target.manifest_path(info.seq, info.id)
    shutil.copy(source.manifest_path(info.seq, info.id), path)
    manifest, _ = Manifest.decode(path.read_bytes())
    for name, _ in manifest.segments:
        target.sealed_path(name).parent.mkdir(exist_ok=True)
        shutil.copy(source.sealed_path(name), target.sealed_path(name))
    return info


def finish(layout: VaultLayout, info: SnapshotInfo) -> None:
    header = load_header(layout)
    restoring.complete(layout, header, header.unlock(KEY), info.seq, info.id)


@pytest.fixture
def files(vault: Vault, data: bytes) -> dict[str, bytes]:
    """A vault with a past: snapshots, of which one is deleted, overwritten and removed files."""
    contents = {"/large": data, "/small": b"text", "/empty": b""}
    for name, content in contents.items():
        write(vault, name, content)
    write(vault, "/gone", os.urandom(200_000))
    vault.create_snapshot("first")
    vault.create_snapshot("second")
    vault.remove("/gone")
    write(vault, "/large", b"changed", 70_000)
    contents["/large"] = data[:70_000] + b"changed" + data[70_007:]
    vault.delete_snapshot(2)
    vault.mkdir("/folder")
    vault.symlink(b"../small", b"/folder/link")
    vault.setxattr("/small", b"user.colour", b"blue")
    return contents


@pytest.fixture
def remote(tmp_path: Path) -> Path:
    return tmp_path / "restored"


def require_same(path: Path, files: dict[str, bytes]) -> None:
    report = check(path, KEY)
    assert report.is_clean, [(each.code, each.message) for each in report.findings]
    with vaultfs.open_vault(path, KEY) as vault:
        for name, content in files.items():
            assert read(vault, name) == content
        assert vault.readlink("/folder/link") == b"../small"
        assert vault.getxattr("/small", b"user.colour") == b"blue"
        assert not vault.exists("/gone")
        require_exact_counts(vault.filesystem)


def test_a_vault_is_restored_and_goes_on(vault: Vault, files: dict[str, bytes], remote: Path) -> None:
    info = shipped(vault, remote)
    finish(VaultLayout(remote), info)
    require_same(remote, files)
    with vaultfs.open_vault(remote, KEY) as restored:
        assert restored.snapshots() == [info]
        write(restored, "/new", os.urandom(300_000))
        newer = restored.create_snapshot("newer")
        assert newer.seq == info.seq + 1
        manifest, _ = Manifest.decode(VaultLayout(remote).manifest_path(newer.seq, newer.id).read_bytes())
        assert manifest.previous == bytes.fromhex(info.id)
        restored.delete_snapshot(info.seq)
    require_same(remote, files)


def test_a_snapshot_of_it_opens(vault: Vault, files: dict[str, bytes], remote: Path) -> None:
    info = shipped(vault, remote)
    finish(VaultLayout(remote), info)
    with vaultfs.open_vault(remote, KEY) as restored:
        write(restored, "/small", b"other")
    snapshot = open_snapshot(remote, KEY, info.seq)
    try:
        assert read(Vault(snapshot), "/small") == b"text"
    finally:
        snapshot.close()


def test_a_header_that_was_changed_meanwhile(vault: Vault, files: dict[str, bytes], remote: Path) -> None:
    info = shipped(vault, remote)
    layout = VaultLayout(remote)
    header = load_header(layout)
    keyring = header.unlock(KEY)
    other = header.add_slot(keyring, Secret.generate_recovery()[0], label="other", kdf=KdfParameters.weakest())
    layout.header.write_bytes(other.encode())
    with pytest.raises(IntegrityError, match="changed meanwhile"):
        restoring.complete(layout, header, keyring, info.seq, info.id)
    assert not layout.database.exists()
    finish(layout, info)
    require_same(remote, files)


@pytest.mark.parametrize("place", ["_write_image", "_add_snapshot", "fsync_directory", "open_unlocked"])
def test_what_was_interrupted_is_done_again(
    vault: Vault, files: dict[str, bytes], remote: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    info = shipped(vault, remote)

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(restoring, place, interrupt)
        with pytest.raises(KeyboardInterrupt):
            finish(VaultLayout(remote), info)
    if place == "open_unlocked":
        # HEAD is there, and with it a vault that opens; that does the rest.
        vaultfs.open_vault(remote, KEY).close()
    else:
        finish(VaultLayout(remote), info)
    require_same(remote, files)


def test_a_vault_that_is_there_is_not_written_over(vault: Vault, files: dict[str, bytes], remote: Path) -> None:
    info = shipped(vault, remote)
    finish(VaultLayout(remote), info)
    with pytest.raises(UsageError, match="holds a vault already"):
        finish(VaultLayout(remote), info)
    require_same(remote, files)


def test_a_damaged_vault_is_not_taken_for_a_half_restored_one(
    vault: Vault, files: dict[str, bytes], remote: Path
) -> None:
    info = shipped(vault, remote)
    layout = VaultLayout(remote)
    layout.restoring.unlink()
    layout.database.write_bytes(b"somebody's only copy")
    with pytest.raises(UsageError, match="holds a vault already"):
        finish(layout, info)
    assert layout.database.read_bytes() == b"somebody's only copy"


@pytest.mark.parametrize("what", ["manifest", "segment"])
def test_damage_is_told(vault: Vault, files: dict[str, bytes], remote: Path, what: str) -> None:
    info = shipped(vault, remote)
    layout = VaultLayout(remote)
    damaged = [layout.manifest_path(info.seq, info.id)] if what == "manifest" else list(layout.segments.glob("??/*"))
    for path in damaged:
        path.chmod(0o600)
        content = bytearray(path.read_bytes())
        for at in range(100, len(content), 1000):
            content[at] ^= 1
        path.write_bytes(content)
    with pytest.raises(IntegrityError):
        finish(layout, info)
    assert not layout.head.exists()


def test_an_older_copy_is_refused_after_a_restore(
    vault: Vault, path: Path, files: dict[str, bytes], remote: Path, tmp_path: Path
) -> None:
    info = shipped(vault, remote)
    older = Path(shutil.copytree(path, tmp_path / "older"))
    finish(VaultLayout(remote), info)
    with pytest.raises(RollbackError):
        vaultfs.open_vault(older, KEY)
    require_same(remote, files)
