from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from mesh_replicas.peer_objects import Clock
from vaultfs.mesh.replicas import ReplicaStore

MEMORY = Path("/dev/shm")


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    """In memory if that can be: syncing takes most of the time otherwise, and these tests look at its order only."""
    if not os.access(MEMORY, os.W_OK):
        yield tmp_path / "replicas"
        return
    with tempfile.TemporaryDirectory(dir=MEMORY) as directory:
        yield Path(directory) / "replicas"


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(root: Path, clock: Clock) -> Iterator[ReplicaStore]:
    opened = ReplicaStore.open(root, None, clock, reserve_bytes=0)
    yield opened
    opened.close()
