"""A vault with three snapshots and five segments, and four peers that hold nothing yet."""

from __future__ import annotations

from pathlib import Path

import pytest

from .fake_mesh import FakeMesh
from .scene import Scene
from .signed_vault import SignedVault


@pytest.fixture
def scene(scratch: Path) -> Scene:
    vault = SignedVault(scratch / "vault")
    first, second, third, fourth, fifth = (vault.segment() for _ in range(5))
    vault.snapshot(first, second)
    vault.snapshot(first, second, third)
    vault.snapshot(second, fourth, fifth)
    return Scene(vault, FakeMesh(4, vault.vault_id), scratch)
