"""A small vault, a remote in memory, and a ledger between them."""

from __future__ import annotations

from pathlib import Path

import pytest
from remotes.memory_store import MemoryStore

from sync.fabricated import Fabricated, small_vault, target
from vaultfs.sync.upload import Target


@pytest.fixture
def vault(scratch: Path) -> Fabricated:
    return small_vault(scratch / "vault")


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore("memory:one")


@pytest.fixture
def away(vault: Fabricated, store: MemoryStore, scratch: Path) -> Target:
    return target(vault, store, scratch / "state")
