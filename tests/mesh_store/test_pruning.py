"""Prunes of peers while some are away: what one machine deletes nobody else may rely on, whoever can reach whom."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from mesh_repair.signed_vault import SignedVault

from vaultfs.errors import RemoteRefusedError, RemoteUnreachableError
from vaultfs.ids import PeerId, SegmentName, VaultId
from vaultfs.mesh.asking import NotAllPeersError
from vaultfs.mesh.client import MeshClient, Signed
from vaultfs.mesh.grants import Grant
from vaultfs.mesh.standing import Standing, StandingFile
from vaultfs.mesh.store import MeshStore
from vaultfs.remotes.store import BytesSource, ObjectInfo
from vaultfs.storage.manifest_format import Manifest
from vaultfs.sync.keep_policy import KeepPolicy
from vaultfs.sync.ledger import Ledger
from vaultfs.sync.prune import PruneReport, prune
from vaultfs.sync.remote_layout import RemoteHead, head_key, segment_key
from vaultfs.sync.upload import Target, sync

from .conftest import CALLER
from .peers import RunningPeer

Make = Callable[..., MeshStore]
DAY_NS = 24 * 3600 * 10**9
NOTE = "heads/swept/" + "5" * 64
OTHER_NOTE = "heads/swept/" + "6" * 64


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

    def sign(self, order: bytes) -> list[Signed]:
        return [Signed(self.vault.device, self.vault.key.sign(order))]

    def sync(self) -> None:
        (outcome,) = sync(self.vault.layout, [Target("mesh", self.make(self.replicas), self.ledger)])
        assert outcome.error is None
        assert outcome.is_up_to_date

    def prune(self, now_ns: int) -> PruneReport:
        store = self.make(self.replicas, sign=self.sign)
        with self.ledger.locked(store.name) as ledger:
            return prune(store, ledger, KeepPolicy(last=1), now_ns=now_ns, delete_all=store.delete_all)


@pytest.fixture
def machines(vault: SignedVault, make_store: Make, scratch: Path) -> tuple[Machine, Machine]:
    return Machine(vault, make_store, scratch / "ledger-1"), Machine(vault, make_store, scratch / "ledger-2")


def needs(vault: SignedVault, seq: int) -> set[SegmentName]:
    (data,) = (data for head, data in vault.manifests.items() if head.seq == seq)
    return {name for name, _ in Manifest.decode(data)[0].segments}


def test_nothing_is_deleted_that_a_sync_with_other_peers_relies_on(
    machines: tuple[Machine, Machine], vault: SignedVault, peers: list[RunningPeer]
) -> None:
    """One machine reaches only the first peer, and another, which prunes, only the others, both times."""
    one, other = machines
    one.sync()
    given_up = needs(vault, 1) - needs(vault, 2)
    assert given_up
    peers[0].stop()
    with pytest.raises(NotAllPeersError, match="a prune takes all peers"):
        other.prune(0)
    peers[0].start()
    for peer in peers[1:]:
        peer.stop()
    vault.snapshot(*given_up)
    one.sync()
    peers[0].stop()
    for peer in peers[1:]:
        peer.start()
    with pytest.raises(NotAllPeersError):
        other.prune(8 * DAY_NS)
    for name in given_up:
        assert any(peer.has(segment_key(name)) for peer in peers), "a snapshot on the first peer needs it"


def test_with_all_peers_a_prune_sees_what_one_alone_has(
    machines: tuple[Machine, Machine], vault: SignedVault, peers: list[RunningPeer]
) -> None:
    one, other = machines
    one.sync()
    given_up = needs(vault, 1) - needs(vault, 2)
    assert other.prune(0).condemned_segments == len(given_up)
    for peer in peers[1:]:
        peer.stop()
    vault.snapshot(*given_up)
    one.sync()
    for peer in peers[1:]:
        peer.start()
    other.prune(8 * DAY_NS)
    for name in given_up:
        assert any(peer.has(segment_key(name)) for peer in peers)


def test_a_peer_that_goes_away_meanwhile_ends_a_prune(
    machines: tuple[Machine, Machine], vault: SignedVault, peers: list[RunningPeer]
) -> None:
    """Also where it was asked before: what it does not say or take, nobody can rely on."""
    one, other = machines
    one.sync()
    store = one.make(1, sign=other.sign)
    store.put(NOTE, BytesSource(b"{}"))
    peers[1].stop()
    head = next(iter(vault.manifests))
    requests: list[Callable[[], object]] = [
        lambda: list(store.list("heads/")),
        lambda: list(store.list("segments/")),
        lambda: store.size_bytes(head_key(RemoteHead(head.device, 9, "9" * 64))),
        lambda: store.size_bytes(segment_key(SegmentName("9" * 64))),
        lambda: store.put(OTHER_NOTE, BytesSource(b"{}")),
    ]
    for request in requests:
        with pytest.raises(NotAllPeersError):
            request()
    assert not isinstance(NotAllPeersError(""), RemoteUnreachableError), "or it would be tried for minutes"
    other_store = one.make(1)
    assert head_key(head) in {info.key for info in other_store.list("heads/")}
    other_store.put(OTHER_NOTE, BytesSource(b"{}"))


def test_a_segment_is_not_deleted_unless_all_its_shares_are_found(
    machines: tuple[Machine, Machine], vault: SignedVault, peers: list[RunningPeer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shares that stay behind when the segment is gone are listed as nothing, and nobody would ever delete them."""
    one, _ = machines
    one.sync()
    store = one.make(1, sign=one.sign)
    real = MeshClient.listing

    async def listing(client: MeshClient, peer: PeerId, vault_id: VaultId, prefix: str) -> list[ObjectInfo]:
        if peer == peers[0].id and prefix.startswith("shares/"):
            raise RemoteUnreachableError("it is away for a moment")
        return await real(client, peer, vault_id, prefix)

    monkeypatch.setattr(MeshClient, "listing", listing)
    key = segment_key(min(vault.segments))
    with pytest.raises(NotAllPeersError):
        store.delete(key)
    assert any(peer.has(key) for peer in peers)


def test_a_peer_that_takes_nothing_keeps_a_prune_from_its_notes(
    machines: tuple[Machine, Machine], peers: list[RunningPeer]
) -> None:
    one, _ = machines
    one.sync()
    peers[2].grants.add(Grant(CALLER.peer_id, None, "read", None, "", 2))
    with pytest.raises(RemoteRefusedError, match="only read"):
        one.make(1, sign=one.sign).put(NOTE, BytesSource(b"{}"))


def test_what_is_deleted_does_not_lack_copies_any_more(
    make_store: Make, machines: tuple[Machine, Machine], vault: SignedVault, scratch: Path
) -> None:
    store = make_store(5, sign=machines[0].sign)
    for key, data in vault.objects().items():
        store.put(key, BytesSource(data))
    first = min(vault.segments)
    store.delete(segment_key(first))
    store.close()
    assert StandingFile(scratch / "state" / "mesh.json").load().short == vault.segments.keys() - {first}


def test_what_others_found_out_meanwhile_stays(scratch: Path, make_store: Make, vault: SignedVault) -> None:
    """Of what has too few copies, a store changes only what it has stored itself."""
    first, second, third = vault.segments
    file = StandingFile(scratch / "state" / "mesh.json")
    file.save(Standing(short={second}))
    store = make_store(5)
    store.put(segment_key(first), BytesSource(vault.segments[first]))
    file.save(Standing(short={third}))  # a repair has mended one, and found another
    store.close()
    assert file.load().short == {first, third}
