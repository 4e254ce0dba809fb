"""A ``vault.json`` that nobody vouches for spoils nothing of what a peer remembers."""

from __future__ import annotations

from pathlib import Path

import pytest

from mesh_replicas.peer_objects import DEVICE, VAULT, header, put, put_head
from vaultfs.errors import VaultError
from vaultfs.mesh.replicas import ReplicaStore
from vaultfs.sync.remote_layout import HEADER_KEY


@pytest.mark.parametrize("epoch", [1 << 32, (1 << 63) - 1, 1 << 63, (1 << 64) - 1, 1 << 64, 1 << 100])
def test_an_epoch_that_cannot_be(store: ReplicaStore, root: Path, epoch: int) -> None:
    put_head(store)
    put(store, HEADER_KEY, header(epoch=7), revision=1)
    with pytest.raises(VaultError):
        put(store, HEADER_KEY, header(epoch=epoch), revision=2)
    put(store, HEADER_KEY, header(epoch=8), revision=2)
    store.close()
    again = ReplicaStore.open(root, None, reserve_bytes=0)
    assert again.warnings == []
    assert again.may_delete(VAULT, DEVICE.public_key)
    assert again.stat(VAULT, HEADER_KEY)[1] == 2
    again.close()
