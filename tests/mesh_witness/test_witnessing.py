"""Asking witnesses, and proofs of what they say, in virtual time: nobody is waited for, and nobody hinders others."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import BinaryIO

import pytest
import trio
from blake3 import blake3
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from trio.testing import MockClock

from vaultfs.errors import IntegrityError, ObjectMissingError, RemoteUnreachableError, VaultError
from vaultfs.ids import PeerId, SnapshotSeq, VaultId
from vaultfs.mesh.addresses import Address
from vaultfs.mesh.book import KnownPeer, VaultPeers
from vaultfs.mesh.client import MeshClient
from vaultfs.mesh.replica_keys import LARGEST_MANIFEST_BYTES
from vaultfs.mesh.standing import PeerStanding, Standing
from vaultfs.mesh.witness import Head, WitnessStatement
from vaultfs.mesh.witnessing import (
    ASK_S,
    MOST_WALKED,
    PROVE_S,
    Evidence,
    FallenBack,
    Heard,
    ask_witnesses,
    prove_claims,
    remember,
)
from vaultfs.remotes.store import ObjectInfo
from vaultfs.storage.manifest_format import Manifest
from vaultfs.sync.remote_layout import RemoteHead, head_key

VAULT = VaultId(bytes(range(16)))
NOTE = "heads/branches/" + "ab" * 32
KEY = Ed25519PrivateKey.from_private_bytes(bytes(32))
NEW_KEY = Ed25519PrivateKey.from_private_bytes(bytes([1]) * 32)


def public(key: Ed25519PrivateKey) -> bytes:
    return key.public_key().public_bytes_raw()


@dataclass
class Snapshot:
    """One that a device has signed."""

    head: Head
    data: bytes

    @property
    def key(self) -> str:
        return head_key(RemoteHead(self.head.device.hex(), self.head.seq, self.head.hash.hex()))


def snapshot(seq: int, previous: Snapshot | None = None, key: Ed25519PrivateKey = KEY, text: bytes = b"") -> Snapshot:
    before = None if previous is None else previous.head.hash
    manifest = Manifest(VAULT, public(key), SnapshotSeq(seq), seq * 10**9, before, (), b"private" + text)
    data = manifest.encode(key.sign(manifest.signed_bytes()))
    return Snapshot(Head(seq, blake3(data).digest(), public(key)), data)


@dataclass
class Peer:
    """One peer.

    Attributes:
        heads: that it says it has seen.
        objects: that it has.
        delay_s: before each answer.
        error: in place of each answer.
    """

    heads: list[Head] = field(default_factory=list)
    objects: dict[str, bytes] = field(default_factory=dict)
    delay_s: float = 0.0
    error: VaultError | None = None
    fetched: list[str] = field(default_factory=list)

    def saw(self, *snapshots: Snapshot) -> Peer:
        self.heads = sorted((*self.heads, *(each.head for each in snapshots)), reverse=True)
        self.objects |= {each.key: each.data for each in snapshots}
        return self


class Peers(MeshClient):
    """A client of some."""

    def __init__(self, *peers: Peer) -> None:
        self.peers = {PeerId(bytes([number]) * 32): peer for number, peer in enumerate(peers)}

    @property
    def page(self) -> VaultPeers:
        known = (KnownPeer(peer, Address("127.0.0.1", 1)) for peer in self.peers)
        return VaultPeers(VAULT, peers=tuple(known))

    def name(self, peer: PeerId) -> str:
        return f"peer {peer[0]}"

    async def statement(self, peer: PeerId, vault: VaultId) -> WitnessStatement:
        return WitnessStatement(vault, peer, bytes(32), 1, tuple((await self._asked(peer)).heads))

    async def listing(self, peer: PeerId, vault: VaultId, prefix: str) -> list[ObjectInfo]:
        objects = (await self._asked(peer)).objects
        return [ObjectInfo(key, len(objects[key])) for key in sorted(objects) if key.startswith(prefix)]

    async def fetch(
        self, peer: PeerId, vault: VaultId, key: str, sink: BinaryIO, *, offset: int = 0, length: int | None = None
    ) -> int:
        found = await self._asked(peer)
        found.fetched.append(key)
        if key not in found.objects:
            raise ObjectMissingError("missing")
        sink.writelines([found.objects[key]])
        return len(found.objects[key])

    async def _asked(self, peer: PeerId) -> Peer:
        found = self.peers[peer]
        await trio.sleep(found.delay_s)
        if found.error is not None:
            raise found.error
        return found


class Keys:
    """The vault's; a header is the seed of the device that it teaches."""

    def __init__(self) -> None:
        self.known = {public(KEY)}
        self.learned: list[bytes] = []

    def devices(self) -> frozenset[bytes]:
        return frozenset(self.known)

    def learn(self, header: bytes) -> None:
        self.learned.append(header)
        if len(header) != 32:
            raise IntegrityError("no header")
        self.known.add(public(Ed25519PrivateKey.from_private_bytes(header)))

    def check(self, head: Head, manifest: bytes) -> None:
        decoded, signature = Manifest.decode(manifest)
        if decoded.device not in self.known or decoded.seq != head.seq:
            raise IntegrityError("not the vault's")
        key = next(each for each in (KEY, NEW_KEY) if public(each) == decoded.device)
        key.public_key().verify(signature, decoded.signed_bytes())


FIRST = snapshot(1)
SHOWN = snapshot(2, FIRST)
NEWER = snapshot(3, SHOWN)
OTHER = snapshot(2, FIRST, text=b"other")


async def proved(*peers: Peer, keys: Keys | None = None, shown: Snapshot = SHOWN) -> Evidence:
    mesh = Peers(*peers)
    heard = await ask_witnesses(mesh, mesh.page)
    return await prove_claims(mesh, VAULT, heard.statements.values(), shown.head, keys or Keys())


def numbers(evidence: Evidence) -> list[tuple[int, list[int]]]:
    return [(each.head.seq, [peer[0] for peer in each.peers]) for each in evidence.proved]


# --- asking


async def test_all_are_asked_at_once(autojump_clock: MockClock) -> None:
    mesh = Peers(*(Peer(delay_s=4.0).saw(SHOWN) for _ in range(50)))
    began_s = trio.current_time()
    heard = await ask_witnesses(mesh, mesh.page)
    assert len(heard.statements) == 50
    assert trio.current_time() - began_s == pytest.approx(4.0)


async def test_nobody_is_waited_for(autojump_clock: MockClock) -> None:
    away = Peer(error=RemoteUnreachableError("away"))
    mesh = Peers(Peer().saw(SHOWN), Peer(delay_s=math.inf), Peer(delay_s=ASK_S + 1), away)
    began_s = trio.current_time()
    heard = await ask_witnesses(mesh, mesh.page)
    assert trio.current_time() - began_s == pytest.approx(ASK_S)
    assert [peer[0] for peer in heard.statements] == [0]
    assert {peer[0]: str(error) for peer, error in heard.failures.items()} == {
        1: "peer 1 does not answer within 5 s",
        2: "peer 2 does not answer within 5 s",
        3: "away",
    }


# --- what is remembered


def test_the_highest_number_ever_is_remembered() -> None:
    first, second = PeerId(bytes(32)), PeerId(bytes([1]) * 32)
    standing = Standing({first: PeerStanding(1, 2, 7, 3, 4)})

    def heard(peer: PeerId, *snapshots: Snapshot) -> Heard:
        heads = tuple(each.head for each in snapshots)
        return Heard({peer: WitnessStatement(VAULT, peer, bytes(32), 1, heads)})

    assert remember(standing, heard(first, NEWER, SHOWN), 9) == [FallenBack(first, 7, 3)]
    assert standing.of(first) == PeerStanding(9, 2, 7, 3, 4)
    assert remember(standing, heard(first, snapshot(7)), 10) == []
    assert remember(standing, heard(first, snapshot(8)), 10) == []
    assert standing.of(first).newest_seq == 8
    assert remember(standing, heard(second), 10) == []
    assert standing.of(second) == PeerStanding(10)
    assert FallenBack(first, 7, 3).text.startswith(
        "has seen snapshot 7 once, and now says that it has seen only snapshot 3"
    )
    assert remember(standing, heard(first), 11) == [FallenBack(first, 8, 0)]


# --- proofs


async def test_what_is_proved_is_told_with_who_and_when() -> None:
    evidence = await proved(Peer().saw(SHOWN, NEWER), Peer().saw(SHOWN), Peer().saw(NEWER))
    assert numbers(evidence) == [(3, [0, 2])]
    assert evidence.proved[0].created_ns == 3 * 10**9
    assert evidence.unproved == {}


async def test_nothing_is_fetched_if_nobody_knows_better() -> None:
    peer = Peer().saw(FIRST, SHOWN)
    assert await proved(peer) == Evidence()
    assert peer.fetched == []


async def test_another_one_of_the_same_number() -> None:
    assert numbers(await proved(Peer().saw(SHOWN, OTHER))) == [(2, [0])]


async def test_the_highest_first() -> None:
    newest = snapshot(4, NEWER)
    assert numbers(await proved(Peer().saw(OTHER), Peer().saw(NEWER), Peer().saw(newest))) == [
        (4, [2]),
        (3, [1]),
        (2, [0]),
    ]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda peer: peer.objects.clear(),
        lambda peer: peer.objects.update({NEWER.key: SHOWN.data}),
        lambda peer: peer.objects.update({NEWER.key: snapshot(3, text=b"another").data}),
        lambda peer: peer.objects.update({NEWER.key: bytes(LARGEST_MANIFEST_BYTES + 1)}),
        lambda peer: peer.objects.update({NEWER.key: b""}),
    ],
    ids=["withheld", "another", "another of this number", "too long", "empty"],
)
async def test_what_is_not_proved_counts_for_nothing(spoil: Callable[[Peer], None]) -> None:
    liar = Peer().saw(NEWER)
    spoil(liar)
    evidence = await proved(liar, Peer().saw(SHOWN))
    assert evidence.proved == []
    assert {peer[0]: head.seq for peer, (head, _) in evidence.unproved.items()} == {0: 3}


async def test_an_invented_snapshot_hides_no_true_one() -> None:
    peer = Peer().saw(NEWER)
    peer.heads = [Head(9, bytes(32), public(KEY)), Head(8, bytes(32), public(NEW_KEY)), *peer.heads]
    evidence = await proved(peer)
    assert numbers(evidence) == [(3, [0])]
    assert evidence.unproved == {}


async def test_a_signature_that_is_wrong() -> None:
    false = snapshot(3, SHOWN)
    manifest, _ = Manifest.decode(false.data)
    data = manifest.encode(NEW_KEY.sign(manifest.signed_bytes()))
    peer = Peer()
    peer.heads = [Head(3, blake3(data).digest(), public(KEY))]
    peer.objects = {Snapshot(peer.heads[0], data).key: data}

    class Strict(Keys):
        def check(self, head: Head, manifest: bytes) -> None:
            raise IntegrityError("the signature is wrong")

    evidence = await proved(peer, keys=Strict())
    assert evidence.proved == []
    assert [why for _, why in evidence.unproved.values()] == ["the signature is wrong"]


async def test_who_gives_nothing_hinders_nobody(autojump_clock: MockClock) -> None:
    class Slow(Peers):
        async def fetch(self, peer: PeerId, *args: object, **kwargs: object) -> int:
            if peer[0] == 0:
                await trio.sleep_forever()
            return await super().fetch(peer, *args, **kwargs)  # type: ignore[arg-type]

    autojump_clock.autojump_threshold = 0.2  # time stands still while a manifest is checked in a thread
    mesh = Slow(Peer().saw(snapshot(9), snapshot(8)), Peer().saw(NEWER))
    heard = await ask_witnesses(mesh, mesh.page)
    began_s = trio.current_time()
    evidence = await prove_claims(mesh, VAULT, heard.statements.values(), SHOWN.head, Keys())
    assert trio.current_time() - began_s == pytest.approx(PROVE_S)
    assert numbers(evidence) == [(3, [1])]
    assert [(peer[0], head.seq) for peer, (head, _) in evidence.unproved.items()] == [(0, 9)]
    assert "does not prove it within 20 s" in next(iter(evidence.unproved.values()))[1]


# --- new devices


async def test_the_peers_header_may_know_a_newer_device() -> None:
    newer = snapshot(3, SHOWN, NEW_KEY)
    keys = Keys()
    peer = Peer().saw(newer)
    peer.objects["vault.json"] = bytes([1]) * 32
    assert numbers(await proved(peer, keys=keys)) == [(3, [0])]
    assert keys.learned == [bytes([1]) * 32]


@pytest.mark.parametrize("header", [b"nonsense", bytes([2]) * 32, None, bytes(2 << 20)])
async def test_a_device_that_stays_unknown(header: bytes | None) -> None:
    keys = Keys()
    peer = Peer().saw(snapshot(3, SHOWN, NEW_KEY), snapshot(4, SHOWN, NEW_KEY))
    if header is not None:
        peer.objects["vault.json"] = header
    evidence = await proved(peer, keys=keys)
    assert evidence.proved == []
    ((head, why),) = evidence.unproved.values()
    assert head.seq == 4
    assert "signed by no device of the vault" in why
    assert len(keys.learned) <= 1
    assert peer.fetched == ["vault.json"]


async def test_no_header_is_asked_for_a_known_device() -> None:
    keys = Keys()
    peer = Peer().saw(NEWER)
    peer.objects["vault.json"] = bytes(32)
    await proved(peer, keys=keys)
    assert "vault.json" not in peer.fetched


# --- histories side by side


def beside(*snapshots: Snapshot) -> Peer:
    peer = Peer().saw(*snapshots)
    peer.objects[NOTE] = b"a person wished it"
    return peer


async def test_what_stands_beside_because_somebody_wished_it_is_no_fork() -> None:
    assert await proved(beside(SHOWN, OTHER)) == Evidence()
    assert await proved(beside(SHOWN, OTHER, snapshot(3, OTHER), snapshot(4, snapshot(3, OTHER)))) == Evidence()


async def test_what_comes_from_the_shown_one_is_newer_all_the_same() -> None:
    other = snapshot(5, OTHER)
    newest = snapshot(4, NEWER)
    assert numbers(await proved(beside(SHOWN, OTHER, other, NEWER, newest))) == [(4, [0])]


async def test_the_note_of_one_peer_says_nothing_of_another() -> None:
    assert numbers(await proved(beside(SHOWN, OTHER), Peer().saw(OTHER))) == [(2, [1])]


async def test_a_chain_that_breaks_off_proves_no_wish() -> None:
    middle = snapshot(3, OTHER)
    peer = beside(OTHER, snapshot(4, middle))
    assert numbers(await proved(peer)) == [(4, [0])]


async def test_a_chain_is_not_followed_for_ever() -> None:
    chain = [OTHER]
    for seq in range(3, MOST_WALKED + 5):
        chain.append(snapshot(seq, chain[-1]))
    peer = beside(*chain)
    assert numbers(await proved(peer)) == [(MOST_WALKED + 4, [0])]
    assert len(peer.fetched) <= 2 * (MOST_WALKED + 2)


async def test_the_first_of_a_vault_comes_from_nothing() -> None:
    assert await proved(beside(snapshot(3))) == Evidence()


async def test_a_peer_that_does_not_list_its_notes() -> None:
    class Silent(Peers):
        async def listing(self, peer: PeerId, vault: VaultId, prefix: str) -> list[ObjectInfo]:
            raise RemoteUnreachableError("it is gone")

    mesh = Silent(Peer().saw(NEWER))
    heard = await ask_witnesses(mesh, mesh.page)
    evidence = await prove_claims(mesh, VAULT, heard.statements.values(), SHOWN.head, Keys())
    assert [why for _, why in evidence.unproved.values()] == ["it is gone"]
