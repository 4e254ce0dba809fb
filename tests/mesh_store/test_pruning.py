"""Prunes of peers while some are away: what one machine deletes nobody else may rely on, whoever can reach whom."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from mesh_repair.signed_vault import SignedVault

from vaultfs.errors import VaultError
from vaultfs.mesh.client import Signed
from vaultfs.mesh.store import MeshStore
from vaultfs.sync.keep_policy import KeepPolicy
from vaultfs.sync.ledger import Ledger
from vaultfs.sync.prune import PruneReport, prune
from vaultfs.sync.remote_layout import segment_key
from vaultfs.sync.upload import Target, sync

from .peers import RunningPeer

Make = Callable[..., MeshStore]
DAY_NS = 24 * 3600 * 10**9
NOTE = "heads/swept/" + "5" * 64


class Machine:
    """One that has the vault, or prunes its peers.

    Args:
        vault: what it has.
        make: makes its stores.
        directory: of its ledger.
    """

    def __init__(self, vault: SignedVault, make: Make, directory: Path) -> None:
        self.vault = vault
        self.make = make
        self.ledger = Ledger(directory, vault.vault_id)
        self.replicas = 1

    def sign(self, order: bytes) -> Signed:
        return Signed(self.vault.device, self.vault.key.sign(order))

    def sync(self) -> None:
        (outcome,) = sync(self.vault.layout, [Target("mesh", self.make(self.replicas), self.ledger)])
        assert outcome.error is None
        assert outcome.is_up_to_date

    def prune(self, now_ns: int, **options: int) -> PruneReport:
        store = self.make(self.replicas, sign=self.sign)
        with self.ledger.locked(store.name) as ledger:
            return prune(store, ledger, KeepPolicy(last=1), now_ns=now_ns, **options)


@pytest.fixture
def machines(vault: SignedVault, make_store: Make, scratch: Path) -> tuple[Machine, Machine]:
    return Machine(vault, make_store, scratch / "ledger-1"), Machine(vault, make_store, scratch / "ledger-2")


def test_nothing_is_deleted_that_a_sync_with_other_peers_relies_on(
    machines: tuple[Machine, Machine], vault: SignedVault, peers: list[RunningPeer]
) -> None:
    """One machine reaches only the first peer, and another that prunes all but this one, both times."""
    one, other = machines
    one.sync()
    only_first = set(vault.segments) - {name for head in list(vault.manifests)[1:] for name in needs(vault, head.seq)}
    assert only_first, "what the prune gives up"
    peers[0].stop()
    with pytest.raises(VaultError):
        other.prune(0)
    peers[0].start()
    for peer in peers[1:]:
        peer.stop()
    vault.snapshot(*only_first)
    one.sync()
    peers[0].stop()
    for peer in peers[1:]:
        peer.start()
    with pytest.raises(VaultError):
        other.prune(8 * DAY_NS)
    for name in only_first:
        assert any(peer.has(segment_key(name)) for peer in peers), "a snapshot on the first peer needs it"


def needs(vault: SignedVault, seq: int) -> set[str]:
    from vaultfs.storage.manifest_format import Manifest

    (data,) = (data for head, data in vault.manifests.items() if head.seq == seq)
    return {name for name, _ in Manifest.decode(data)[0].segments}
