"""A remote that has all of a vault, one that fails, and a place to fetch into."""

from __future__ import annotations

from pathlib import Path

import pytest
from remotes.faults import FaultyStore
from remotes.memory_store import MemoryStore

from sync.fabricated import Fabricated
from vaultfs.storage.layout import VaultLayout
from vaultfs.sync.download import RemoteHead, choose_head, heads
from vaultfs.sync.upload import Target, sync


@pytest.fixture
def filled(vault: Fabricated, away: Target, store: MemoryStore) -> MemoryStore:
    [outcome] = sync(vault.layout, [away])
    assert outcome.is_up_to_date
    store.requests.clear()
    return store


@pytest.fixture
def faulty(filled: MemoryStore) -> FaultyStore:
    return FaultyStore(filled)


@pytest.fixture
def head(filled: MemoryStore) -> RemoteHead:
    return choose_head(heads(filled), None)


@pytest.fixture
def into(scratch: Path) -> VaultLayout:
    return VaultLayout(scratch / "restored")
