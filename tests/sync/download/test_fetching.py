"""Fetching a snapshot where nothing goes wrong: what is read, and what is there then."""

from __future__ import annotations

from remotes.memory_store import MemoryStore

from sync.fabricated import Fabricated
from vaultfs.storage.layout import VaultLayout
from vaultfs.sync.download import RemoteHead, SyncProgress, fetch, heads
from vaultfs.sync.remote_layout import HEADER_KEY

from .fetched import REQUESTS, names_of, require_fetched


def test_a_fetch(vault: Fabricated, filled: MemoryStore, head: RemoteHead, into: VaultLayout) -> None:
    filled.requests.clear()
    manifest = fetch(filled, into, head)
    assert (manifest.seq, manifest.vault_id) == (3, vault.vault_id)
    require_fetched(vault, head, into)
    assert len(filled.requests) == REQUESTS
    assert all(operation == "get" for operation, _ in filled.requests)


def test_fetching_again_reads_no_segment(
    vault: Fabricated, filled: MemoryStore, head: RemoteHead, into: VaultLayout
) -> None:
    fetch(filled, into, head)
    filled.requests.clear()
    fetch(filled, into, head)
    assert len(filled.requests) == 2
    require_fetched(vault, head, into)


def test_into_an_empty_directory(vault: Fabricated, filled: MemoryStore, head: RemoteHead, into: VaultLayout) -> None:
    into.root.mkdir(mode=0o700)
    fetch(filled, into, head)
    require_fetched(vault, head, into)


def test_a_second_snapshot_beside_the_first(
    vault: Fabricated, filled: MemoryStore, head: RemoteHead, into: VaultLayout
) -> None:
    fetch(filled, into, head)
    filled.requests.clear()
    fetch(filled, into, heads(filled)[0])
    assert sum(key.startswith("segments/") for operation, key in filled.requests if operation == "get") == 1
    assert len(list(into.heads.glob("*.manifest"))) == 2


def test_a_changed_header_there_replaces_the_old_one(
    vault: Fabricated, filled: MemoryStore, head: RemoteHead, into: VaultLayout
) -> None:
    fetch(filled, into, head)
    vault.write_header(epoch=2)
    filled.objects[HEADER_KEY] = vault.layout.header.read_bytes()
    fetch(filled, into, head)
    require_fetched(vault, head, into)


def test_progress(vault: Fabricated, filled: MemoryStore, head: RemoteHead, into: VaultLayout) -> None:
    seen: list[SyncProgress] = []
    total = sum(len(vault.segments[name]) for name in names_of(vault))
    for _ in range(2):
        seen.clear()
        fetch(filled, into, head, progress=seen.append)
        assert seen[-1] == SyncProgress(total, total)
        into.sealed_path(names_of(vault)[0]).unlink()
