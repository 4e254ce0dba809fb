"""Three real peers, and the store that they are together."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from mesh_repair.signed_vault import SignedVault

from vaultfs.mesh.client import Signer
from vaultfs.mesh.identity import Identity
from vaultfs.mesh.standing import StandingFile
from vaultfs.mesh.store import MeshStore

from .peers import RunningPeer, page_of, running

CALLER = Identity.of_seed(b"c" * 32)

MakeStore = Callable[..., MeshStore]


@pytest.fixture
def vault(scratch: Path) -> SignedVault:
    vault = SignedVault(scratch / "vault")
    first, second, third = (vault.segment(size) for size in (10, 3000, 100_000))
    vault.snapshot(first, second)
    vault.snapshot(second, third)
    return vault


@pytest.fixture
def peers(scratch: Path) -> Iterator[list[RunningPeer]]:
    with running(scratch, 3, CALLER.peer_id) as found:
        yield found


@pytest.fixture
def make_store(vault: SignedVault, peers: list[RunningPeer], scratch: Path) -> Iterator[MakeStore]:
    """Makes stores over the peers; each closes when the test ends."""
    made: list[MeshStore] = []

    def make(replicas: int = 2, sign: Signer | None = None, *, is_reversed: bool = False) -> MeshStore:
        standing = StandingFile(scratch / "state" / "mesh.json")
        page = page_of(vault.vault_id, peers[::-1] if is_reversed else peers, replicas)
        made.append(MeshStore(page, lambda: CALLER, standing, scratch=scratch, sign=sign))
        return made[-1]

    yield make
    for store in made:
        store.close()
        store.close()


@pytest.fixture
def store(make_store: MakeStore) -> MeshStore:
    return make_store()
