"""Vaults that the program itself makes: synced without a key, fetched, and opened again with it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from remotes.memory_store import MemoryStore
from vault_snapshots.sample import Sample, contents, fill, write

import vaultfs
from vaultfs.crypto import header as crypto_header
from vaultfs.errors import VaultLockedError
from vaultfs.storage.layout import VaultLayout
from vaultfs.sync import public_header
from vaultfs.sync.download import fetch, heads
from vaultfs.sync.ledger import Ledger
from vaultfs.sync.local_vault import ManifestHold, list_manifests
from vaultfs.sync.public_header import read_header
from vaultfs.sync.upload import Target, sync
from vaultfs.sync.verify import verify
from vaultfs.vault.snapshot_manifest import SnapshotHold, manifest_files


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Sample:
    return Sample.create(tmp_path_factory.mktemp("sync") / "vault", 16 << 10, "none")


@pytest.fixture
def sample(empty: Sample, scratch: Path, monkeypatch: pytest.MonkeyPatch) -> Sample:
    monkeypatch.setenv("XDG_STATE_HOME", str(scratch / "state"))
    monkeypatch.setattr("vaultfs.vault.pipeline.SEGMENT_TARGET_BYTES", 1 << 18)
    return empty.copy(scratch / "vault")


def test_what_both_sides_say_of_the_header_is_the_same(sample: Sample) -> None:
    assert public_header.NEWEST_FORMAT == crypto_header.FORMAT
    assert public_header.LARGEST_HEADER_BYTES == crypto_header.LARGEST_HEADER_BYTES
    found = read_header(sample.layout)
    assert found.vault_id == sample.keyring.vault_id
    assert found.epoch == sample.keyring.epoch
    assert found.data == sample.layout.header.read_bytes()


def test_there_and_back_again(sample: Sample, scratch: Path) -> None:
    expected = []
    with sample.open() as vault:
        fill(vault)
        for number in range(3):
            write(vault, b"/new", os.urandom(200_000 + number))
            vault.create_snapshot(f"number {number}")
            expected.append(contents(vault))
    store = MemoryStore("memory:one")
    away = Target("away", store, Ledger.of(sample.keyring.vault_id, "away"))
    with sample.open():  # it may be open meanwhile
        [outcome] = sync(sample.layout, [away])
    assert outcome.error is None
    assert outcome.manifests == 3
    assert verify(store, read_share=1.0).problems == []
    assert [each.hash for each in heads(store)] == [digest for _, digest in manifest_files(sample.layout)]
    for head, content in zip(heads(store), expected, strict=True):
        root = scratch / f"restored{head.seq}"
        fetch(store, VaultLayout(root), head)
        restored = Sample(root, sample.keyring)
        assert restored.snapshot_contents(head.seq) == content


def test_both_sides_hold_in_the_same_way(sample: Sample) -> None:
    with sample.open() as vault:
        vault.create_snapshot()
        [manifest] = list_manifests(sample.layout)
        hold = ManifestHold.take(sample.layout, manifest)
        assert hold is not None
        with pytest.raises(VaultLockedError):
            vault.delete_snapshot(1)
        reading = SnapshotHold.take(sample.layout, *manifest, is_exclusive=False)
        reading.release()
        hold.release()
        deleting = SnapshotHold.take(sample.layout, *manifest, is_exclusive=True)
        assert ManifestHold.take(sample.layout, manifest) is None
        deleting.release()
        vault.delete_snapshot(1)
        assert list_manifests(sample.layout) == []


def test_a_password_change_reaches_the_remote(sample: Sample) -> None:
    store = MemoryStore("memory:one")
    away = Target("away", store, Ledger.of(sample.keyring.vault_id, "away"))
    assert sync(sample.layout, [away])[0].is_up_to_date
    with sample.open() as vault:
        vault.create_snapshot()
    header = sample.layout.header.read_bytes()
    changed = header.replace(b'"epoch": 1', b'"epoch": 2')
    assert changed != header
    sample.layout.header.write_bytes(changed)
    assert sync(sample.layout, [away])[0].is_up_to_date
    assert store.objects["vault.json"] == changed


def test_snapshots_that_come_and_go(sample: Sample, scratch: Path) -> None:
    store = MemoryStore("memory:one")
    away = Target("away", store, Ledger.of(sample.keyring.vault_id, "away"))
    for number in range(4):
        with vaultfs.open_vault(sample.path, sample.secret) as vault:
            write(vault, b"/file", os.urandom(50_000))
            vault.create_snapshot()
            expected = contents(vault)
            if number > 1:
                vault.delete_snapshot(number)
        [outcome] = sync(sample.layout, [away])
        assert outcome.error is None
    shutil.rmtree(Path(os.environ["XDG_STATE_HOME"]) / "vaultfs" / "sync")
    again = Target("away", store, Ledger.of(sample.keyring.vault_id, "away"))
    [outcome] = sync(sample.layout, [again])
    assert (outcome.error, outcome.segments) == (None, 0)
    fetch(store, VaultLayout(scratch / "restored"), heads(store)[-1])
    assert Sample(scratch / "restored", sample.keyring).snapshot_contents(4) == expected
