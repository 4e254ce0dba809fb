"""What the tests of adopting share."""

from __future__ import annotations

import shutil
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

import vaultfs
from vaultfs.crypto.slots import Secret
from vaultfs.storage.layout import VaultLayout
from vaultfs.vault.adopting import Adopting, Theirs
from vaultfs.vault.api import Vault
from vaultfs.vault.fsck import check
from vaultfs.vault.opening import load_header
from vaultfs.vault.snapshot_manifest import SnapshotInfo, manifest_files

KEY, _ = Secret.generate_recovery()

Contents = dict[str, bytes]


class Copies(NamedTuple):
    """The two copies of one vault."""

    ours: Path
    theirs: Path


def write(vault: Vault, name: str, data: bytes, offset: int = 0) -> None:
    with vault.open(name, "r+b" if vault.exists(name) else "wb") as file:
        file.pwrite(data, offset)


def remove(vault: Vault, name: str) -> None:
    vault.remove(name)


def read_all(vault: Vault) -> Contents:
    """Every file in the root directory."""
    found = {}
    for name in vault.listdir("/"):
        with vault.open(b"/" + name) as file:
            found[name.decode()] = file.read()
    return found


def contents(path: Path, snapshot: str | None = None) -> Contents:
    """Every file of the present, or of a snapshot; nothing is changed."""
    with vaultfs.open_vault(path, KEY, read_only=True, snapshot=snapshot) as vault:
        return read_all(vault)


def snapshots(path: Path) -> dict[str, SnapshotInfo]:
    """All snapshots by their ids."""
    with vaultfs.open_vault(path, KEY, read_only=True) as vault:
        return {info.id: info for info in vault.snapshots()}


def of_all_snapshots(path: Path) -> dict[str, Contents]:
    """What every snapshot shows."""
    return {snapshot: contents(path, snapshot) for snapshot in snapshots(path)}


def offered(theirs: Path) -> Theirs:
    """What a remote to which theirs was synced would offer."""
    layout = VaultLayout(theirs)
    seq, snapshot_id = manifest_files(layout)[-1]
    manifest = layout.manifest_path(seq, snapshot_id).read_bytes()
    return Theirs(load_header(layout), seq, snapshot_id, manifest)


def fetch(adopting: Adopting, theirs: Path) -> int:
    """Copy what is missing; return how many segments were."""
    missing = adopting.missing()
    for name, _ in missing:
        path = adopting.staging.sealed_path(name)
        path.parent.mkdir(exist_ok=True)
        shutil.copy(VaultLayout(theirs).sealed_path(name), path)
    return len(missing)


def adopt(
    ours: Path, theirs: Path, *, secret: Secret = KEY, ancestors: Collection[str] = (), highest_seq: int = 0
) -> list[SnapshotInfo]:
    """All steps; return which snapshots are kept."""
    with Adopting.begin(ours, secret, offered(theirs)) as adopting:
        adopting.keep_present()
        fetch(adopting, theirs)
        return adopting.complete(ancestors, highest_seq)


def require_sound(path: Path) -> None:
    report = check(path, KEY)
    assert report.is_clean, [(each.code, each.message) for each in report.findings]


def segment_names(path: Path) -> set[str]:
    return set(VaultLayout(path).sealed_names())
