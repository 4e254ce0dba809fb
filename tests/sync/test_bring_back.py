"""Segments that are missing or damaged here come back, and what the remote has not keeps nothing else back."""

from __future__ import annotations

from pathlib import Path

import pytest
from remotes.memory_store import MemoryStore

from sync.fabricated import Fabricated
from vaultfs.errors import IntegrityError, ObjectMissingError
from vaultfs.sync.bring_back import bring_back, needed_by_snapshots
from vaultfs.sync.remote_layout import segment_key
from vaultfs.sync.workers import StoppedError, SyncProgress


def fill(vault: Fabricated, store: MemoryStore) -> None:
    for name, data in vault.segments.items():
        store.objects[segment_key(name)] = data


def sizes(vault: Fabricated) -> dict[str, int]:
    return {name: len(data) for name, data in vault.segments.items()}


def test_what_snapshots_need_kept_ones_too(vault: Fabricated) -> None:
    assert needed_by_snapshots(vault.layout, vault.vault_id) == sizes(vault)
    extra = vault.segment()
    kept = vault.snapshot(extra)
    damaged = vault.snapshot(vault.segment())
    vault.layout.kept.mkdir()
    vault.path_of(kept).rename(vault.layout.kept_path(*kept))
    vault.path_of(damaged).rename(vault.layout.kept_path(*damaged))
    vault.layout.kept_path(*damaged).write_bytes(b"damaged")
    needed = needed_by_snapshots(vault.layout, vault.vault_id)
    assert needed[extra] == len(vault.segments[extra])
    assert len(needed) == 6
    newest = max(vault.layout.heads.glob("*.manifest"))
    newest.write_bytes(b"damaged")
    assert len(needed_by_snapshots(vault.layout, vault.vault_id)) == 4


def test_missing_and_damaged_ones_come_back(vault: Fabricated, store: MemoryStore) -> None:
    fill(vault, store)
    first, second, third, *_ = vault.segments
    vault.layout.sealed_path(first).unlink()
    vault.spoil(second, b"damaged")
    vault.spoil(third, bytes(len(vault.segments[third])))
    states: list[SyncProgress] = []
    done = bring_back(store, vault.layout, needed_by_snapshots(vault.layout, vault.vault_id), progress=states.append)
    assert done.segments == 3
    assert done.bytes == sum(len(vault.segments[name]) for name in (first, second, third))
    assert done.missing == {}
    for name, data in vault.segments.items():
        assert vault.layout.sealed_path(name).read_bytes() == data
    assert states[-1].done_bytes == states[-1].total_bytes == sum(sizes(vault).values())
    assert bring_back(store, vault.layout, needed_by_snapshots(vault.layout, vault.vault_id)).segments == 0


def test_what_the_remote_has_not_keeps_nothing_else_back(vault: Fabricated, store: MemoryStore) -> None:
    fill(vault, store)
    first, second, third, *_ = vault.segments
    for name in (first, second, third):
        vault.layout.sealed_path(name).unlink()
    del store.objects[segment_key(first)]
    store.objects[segment_key(second)] = bytes(len(vault.segments[second]))
    done = bring_back(store, vault.layout, needed_by_snapshots(vault.layout, vault.vault_id), connections=1)
    assert done.segments == 1
    assert isinstance(done.missing[first], ObjectMissingError)
    assert isinstance(done.missing[second], IntegrityError)
    assert vault.layout.sealed_path(third).exists()
    assert not vault.layout.sealed_path(second).exists()


def test_it_can_be_stopped(vault: Fabricated, store: MemoryStore, scratch: Path) -> None:
    fill(vault, store)
    for name in vault.segments:
        vault.layout.sealed_path(name).unlink()
    with pytest.raises(StoppedError):
        bring_back(store, vault.layout, needed_by_snapshots(vault.layout, vault.vault_id), is_stopped=lambda: True)
    assert not list(vault.layout.sealed_names())
