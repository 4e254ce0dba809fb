"""Directories into which nothing is fetched, and those in which it is gone on with."""

from __future__ import annotations

from pathlib import Path

import pytest
from remotes.memory_store import MemoryStore

from sync.fabricated import Fabricated
from vaultfs.errors import (
    UsageError,
    VaultLockedError,
)
from vaultfs.storage.layout import VaultLayout
from vaultfs.storage.lock import VaultLock
from vaultfs.sync.download import RemoteHead, fetch, fill

from .fetched import require_fetched


@pytest.mark.parametrize("name", ["metadata.db", "something", "heads/HEAD", ".hidden", "segments.bak"])
def test_a_directory_that_holds_something(filled: MemoryStore, head: RemoteHead, into: VaultLayout, name: str) -> None:
    path = into.root / name
    path.parent.mkdir(parents=True)
    path.write_bytes(b"precious")
    before = sorted(into.root.rglob("*"))
    with pytest.raises(UsageError):
        fetch(filled, into, head)
    assert sorted(into.root.rglob("*")) == before
    assert path.read_bytes() == b"precious"


def test_what_an_interrupted_restore_has_left_is_gone_on_with(
    vault: Fabricated, filled: MemoryStore, head: RemoteHead, into: VaultLayout
) -> None:
    fetch(filled, into, head)
    for name in ("metadata.db", "metadata.db-wal", ".metadata.db.restored"):
        (into.root / name).write_bytes(b"half")
    fetch(filled, into, head)  # `restoring.complete` makes them anew
    into.restoring.unlink()
    with pytest.raises(UsageError, match="holds a vault already"):
        fetch(filled, into, head)


def test_metadata_only_and_the_rest_later(
    vault: Fabricated, filled: MemoryStore, head: RemoteHead, into: VaultLayout
) -> None:
    fetch(filled, into, head, with_segments=False)
    assert not list(into.segments.glob("??/*"))
    fill(filled, into)
    require_fetched(vault, head, into)
    before = sorted(into.root.rglob("*"))
    fill(filled, into)
    assert sorted(into.root.rglob("*")) == before


def test_there_is_nothing_to_fill_without_a_snapshot(filled: MemoryStore, into: VaultLayout) -> None:
    into.create_directories()
    with pytest.raises(UsageError, match="no snapshot"):
        fill(filled, into)


def test_a_file_in_its_place(filled: MemoryStore, head: RemoteHead, into: VaultLayout) -> None:
    into.root.write_bytes(b"precious")
    with pytest.raises(UsageError):
        fetch(filled, into, head)


@pytest.mark.parametrize("seed", [2, None])
def test_another_vaults_directory(
    filled: MemoryStore, head: RemoteHead, into: VaultLayout, scratch: Path, seed: int | None
) -> None:
    if seed is None:
        into.root.mkdir()
        into.header.write_bytes(b"{}")
    else:
        Fabricated(into.root, seed)
    with pytest.raises(UsageError, match="another vault"):
        fetch(filled, into, head)


def test_two_fetches_at_once(filled: MemoryStore, head: RemoteHead, into: VaultLayout) -> None:
    into.create_directories()
    with VaultLock.acquire(into, purpose="test"), pytest.raises(VaultLockedError):
        fetch(filled, into, head)


def test_a_remote_without_a_vault(head: RemoteHead, into: VaultLayout) -> None:
    with pytest.raises(UsageError, match="holds no vault"):
        fetch(MemoryStore("memory:empty"), into, head)
    assert not into.root.exists()
