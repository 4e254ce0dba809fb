"""Deleting much costs few questions: one order names many objects."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import pytest
from mesh_repair.signed_vault import SignedVault

from vaultfs.errors import RemoteRefusedError, RemoteUnreachableError
from vaultfs.ids import PeerId, SegmentName, VaultId
from vaultfs.mesh.asking import NotAllPeersError
from vaultfs.mesh.client import MeshClient, Signed, Signer
from vaultfs.mesh.deleting import Deletions
from vaultfs.mesh.messages import MOST_KEYS
from vaultfs.mesh.share_format import CodedSegment, Coding
from vaultfs.mesh.share_keys import ShareKey
from vaultfs.mesh.store import MeshStore
from vaultfs.remotes.store import BytesSource, ObjectInfo
from vaultfs.sync.remote_layout import segment_key

from .peers import RunningPeer

VAULT = VaultId(bytes(16))
PEERS = [PeerId(bytes([number]) * 32) for number in range(3)]


def name(number: int) -> SegmentName:
    return SegmentName(f"{number:064x}")


def share(number: int, index: int) -> str:
    return str(ShareKey(CodedSegment(name(number), 100, Coding(2, 3)), index, f"{index:064x}"))


def sign(order: bytes) -> Sequence[Signed]:
    return [Signed(b"d" * 32, b"s" * 64)]


class Counted(MeshClient):
    """Peers that carry out what they are told, and how often they were asked."""

    def __init__(self, shares: dict[PeerId, list[str]] | None = None) -> None:
        self.shares = shares or {}
        self.orders: dict[PeerId, list[tuple[str, ...]]] = {peer: [] for peer in PEERS}
        self.listings: Counter[PeerId] = Counter()
        self.failing: dict[PeerId, RemoteRefusedError | RemoteUnreachableError] = {}
        self.silent: set[PeerId] = set()

    async def listing(self, peer: PeerId, vault: VaultId, prefix: str) -> list[ObjectInfo]:
        self.listings[peer] += 1
        if peer in self.silent:
            raise RemoteUnreachableError("it is away")
        return [ObjectInfo(key, 1) for key in self.shares.get(peer, []) if key.startswith(prefix)]

    async def delete(self, peer: PeerId, vault: VaultId, keys: tuple[str, ...], sign: Signer) -> int:
        if peer in self.failing:
            raise self.failing[peer]
        self.orders[peer].append(keys)
        return len(keys)


async def test_ten_thousand_segments() -> None:
    client = Counted()
    keys = [segment_key(name(number)) for number in range(10_000)]
    assert await Deletions(VAULT, PEERS).order(client, keys, sign) == PEERS
    assert client.listings == dict.fromkeys(PEERS, 1)
    for orders in client.orders.values():
        assert len(orders) == 40
        assert max(map(len, orders)) == MOST_KEYS
        assert [key for order in orders for key in order] == keys


async def test_shares_go_with_their_segments() -> None:
    client = Counted({PEERS[0]: [share(1, 0), share(2, 0), share(3, 0)], PEERS[1]: [share(1, 1)]})
    await Deletions(VAULT, PEERS).order(client, [segment_key(name(number)) for number in (1, 2)], sign)
    one, two = (segment_key(name(number)) for number in (1, 2))
    assert client.orders == {
        PEERS[0]: [(one, share(1, 0), two, share(2, 0))],
        PEERS[1]: [(one, share(1, 1), two)],
        PEERS[2]: [(one, two)],
    }


async def test_for_a_single_segment_only_its_shares_are_listed() -> None:
    client = Counted({PEERS[0]: [share(1, 0), share(2, 0)]})
    asked: list[str] = []
    listing = client.listing

    async def listed(peer: PeerId, vault: VaultId, prefix: str) -> list[ObjectInfo]:
        asked.append(prefix)
        return await listing(peer, vault, prefix)

    client.listing = listed  # type: ignore[method-assign]
    await Deletions(VAULT, PEERS).order(client, [segment_key(name(1))], sign)
    assert set(asked) == {f"shares/{name(1)}/"}
    assert client.orders[PEERS[0]] == [(segment_key(name(1)), share(1, 0))]


async def test_manifests_have_no_shares() -> None:
    client = Counted()
    await Deletions(VAULT, PEERS).order(client, ["heads/x", "heads/y"], sign)
    assert client.listings == {}
    assert client.orders[PEERS[0]] == [("heads/x", "heads/y")]


async def test_nothing_is_deleted_if_one_does_not_say_what_it_has() -> None:
    client = Counted()
    client.silent = {PEERS[2]}
    with pytest.raises(NotAllPeersError):
        await Deletions(VAULT, PEERS).order(client, [segment_key(name(1))], sign)
    assert not any(client.orders.values())


async def test_who_fails_is_remembered_with_the_first_reason() -> None:
    client, deletions = Counted(), Deletions(VAULT, PEERS)
    for text in ("first", "second"):
        client.failing = {PEERS[1]: RemoteRefusedError(text)}
        assert await deletions.order(client, ["heads/x"], sign) == [PEERS[0], PEERS[2]]
    assert {peer: str(error) for peer, error in deletions.undeleted.items()} == {PEERS[1]: "first"}
    client.failing = {peer: RemoteRefusedError("no") for peer in PEERS}
    with pytest.raises(RemoteRefusedError, match="no; 2 more failed"):
        await deletions.order(client, ["heads/x"], sign)


def test_real_peers(make_store: Callable[..., MeshStore], vault: SignedVault, peers: list[RunningPeer]) -> None:
    """Each of three peers is given one order for many segments, which is signed once."""
    orders = []

    def signed(order: bytes) -> Sequence[Signed]:
        orders.append(order)
        return [Signed(vault.device, vault.key.sign(order))]

    store = make_store(3, signed)
    for head, data in vault.manifests.items():
        store.put(f"heads/{head.device}/{head.seq:010d}-{head.hash}", BytesSource(data))
    for each, data in vault.segments.items():
        store.put(segment_key(each), BytesSource(data))
    keys = [segment_key(each) for each in vault.segments]
    assert len(list(store.list("segments/"))) == len(keys) == 3
    store.delete_all(keys)
    assert list(store.list("segments/")) == []
    assert len(orders) == len(peers)
    assert not any(peer.has(each) for peer in peers for each in vault.segments)
    assert not store.undeleted


def test_without_somebody_who_signs(store: MeshStore) -> None:
    with pytest.raises(RemoteRefusedError, match="asks for the password"):
        store.delete_all([segment_key(name(1))])
