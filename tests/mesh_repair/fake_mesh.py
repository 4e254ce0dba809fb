"""Peers in memory, and a client that asks them: what repairs and looks do, without connections."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import BinaryIO

import trio
from blake3 import blake3

from vaultfs.errors import (
    IntegrityError,
    NoSpaceError,
    ObjectMissingError,
    RemoteRefusedError,
    RemoteUnreachableError,
    VaultError,
)
from vaultfs.ids import PeerId, SegmentName, VaultId
from vaultfs.mesh.addresses import Address
from vaultfs.mesh.book import KnownPeer, VaultPeers
from vaultfs.mesh.client import MeshClient, Signer, proof_of
from vaultfs.mesh.messages import MOST_KEYS, Range, Size, State
from vaultfs.remotes.bodies import opened, source_pieces
from vaultfs.remotes.store import ObjectInfo, Source
from vaultfs.sync.remote_layout import segment_key

QUOTA_BYTES = 1 << 30


def peer_id(number: int) -> PeerId:
    return PeerId(hashlib.sha256(b"peer %d" % number).digest())


@dataclass
class FakePeer:
    """One peer.

    Attributes:
        objects: what it has.
        revision: of its vault.json.
        quota_bytes: of all objects.
        is_away: it does not answer.
        may_write: it takes something.
        lies: keys that it lists and has other bytes of.
        invents: keys and sizes that it lists and has not.
        before_store: called before it takes an object; may raise.
        stores: keys that were stored here, in order.
        fetches: keys that were fetched from here.
        deletes: keys that were deleted here, in order.
    """

    objects: dict[str, bytes] = field(default_factory=dict)
    revision: int = 0
    quota_bytes: int = QUOTA_BYTES
    is_away: bool = False
    may_write: bool = True
    lies: set[str] = field(default_factory=set)
    invents: dict[str, int] = field(default_factory=dict)
    before_store: Callable[[str], None] = lambda _: None
    stores: list[str] = field(default_factory=list)
    fetches: list[str] = field(default_factory=list)
    deletes: list[str] = field(default_factory=list)

    @property
    def used_bytes(self) -> int:
        return sum(map(len, self.objects.values()))

    def proof(self, key: bytes, part: Range) -> bytes:
        name = SegmentName(part.name.hex())
        of = f"shares/{name}/{part.share}" if part.share else segment_key(name)
        data = self.objects.get(of, b"")[part.offset : part.offset + part.length]
        if len(data) < part.length:
            return bytes(32)
        honest = proof_of(key, part.share[-64:] or name, part.offset, data)
        return honest[::-1] if of in self.lies else honest


class FakeMesh(MeshClient):
    """Some peers.

    Args:
        count: how many.
        vault_id: of the one vault that they hold.

    Attributes:
        peers: by id, in the order of the book.
        busiest: the most bodies that were under way at once.
        meeting: so many wait for each other, once.
        answered: called after a peer has answered, with its id and what it was asked for.
    """

    def __init__(self, count: int, vault_id: VaultId) -> None:
        self.peers = {peer_id(number): FakePeer() for number in range(count)}
        self.vault_id = vault_id
        self.busiest = 0
        self.meeting = 0
        self.answered: Callable[[PeerId, str], None] = lambda _peer, _what: None
        self._bodies = 0
        self._met = trio.Event()

    def page(self, replicas: int = 2, zones: tuple[str, ...] = ()) -> VaultPeers:
        known = [
            KnownPeer(peer, Address("127.0.0.1", 1000 + number), zones[number] if zones else "")
            for number, peer in enumerate(self.peers)
        ]
        return VaultPeers(self.vault_id, replicas, None, tuple(known))

    def at(self, number: int) -> FakePeer:
        return list(self.peers.values())[number]

    def name(self, peer: PeerId) -> str:
        return f"peer {list(self.peers).index(peer)}"

    async def status(self, peer: PeerId, vault: VaultId) -> State:
        found = await self._answering(peer, vault)
        free = max(0, found.quota_bytes - found.used_bytes)
        used = found.used_bytes
        self.answered(peer, "status")
        return State(1, found.quota_bytes, used, free, len(found.objects), used, found.may_write)

    async def listing(self, peer: PeerId, vault: VaultId, prefix: str) -> list[ObjectInfo]:
        found = await self._answering(peer, vault)
        sizes = {key: len(data) for key, data in found.objects.items()} | found.invents
        return [ObjectInfo(key, sizes[key]) for key in sorted(sizes) if key.startswith(prefix)]

    async def have(self, peer: PeerId, vault: VaultId, names: Sequence[SegmentName]) -> dict[SegmentName, int]:
        found = await self._answering(peer, vault)
        keys = {name: segment_key(name) for name in names}
        return {name: len(found.objects[key]) for name, key in keys.items() if key in found.objects}

    async def audit(self, peer: PeerId, vault: VaultId, key: bytes, ranges: Sequence[Range]) -> list[bytes]:
        found = await self._answering(peer, vault)
        proofs = [found.proof(key, part) for part in ranges]
        self.answered(peer, "audit")
        return proofs

    async def delete(self, peer: PeerId, vault: VaultId, keys: tuple[str, ...], sign: Signer) -> int:
        found = await self._answering(peer, vault)
        assert len(keys) <= MOST_KEYS
        if not sign(b"order"):
            raise RemoteRefusedError(f"{self.name(peer)}: nobody has signed that")
        there = [key for key in keys if found.objects.pop(key, None) is not None]
        found.deletes += keys
        self.answered(peer, "delete")
        return len(there)

    async def stat(self, peer: PeerId, vault: VaultId, key: str) -> Size:
        found = await self._answering(peer, vault)
        data = found.objects.get(key)
        return Size(1, None if data is None else len(data), found.revision if key == "vault.json" else 0)

    async def fetch(
        self, peer: PeerId, vault: VaultId, key: str, sink: BinaryIO, *, offset: int = 0, length: int | None = None
    ) -> int:
        found = await self._answering(peer, vault)
        found.fetches.append(key)
        if key not in found.objects:
            raise ObjectMissingError(f"{self.name(peer)} has no {key}")
        data = found.objects[key]
        if key in found.lies:
            data = bytes([data[0] ^ 1]) + data[1:]
        async with self._body():
            await trio.to_thread.run_sync(sink.writelines, [data[offset : None if length is None else offset + length]])
        return len(data)

    async def store(
        self,
        peer: PeerId,
        vault: VaultId,
        key: str,
        source: Source,
        digest: bytes,
        *,
        if_absent: bool = False,
        revision: int = 0,
    ) -> int:
        found = await self._answering(peer, vault)
        if not found.may_write:
            raise RemoteRefusedError(f"{self.name(peer)} lets nobody write")
        found.before_store(key)
        if blake3(found.objects.get(key, b"")).digest() == digest and key not in found.lies:
            return 0
        if found.used_bytes + source.size_bytes > found.quota_bytes:
            raise NoSpaceError(f"{self.name(peer)} is full")
        async with self._body():
            data = await trio.to_thread.run_sync(_read, key, source)
        await self._answering(peer, vault)
        if blake3(data).digest() != digest:
            raise IntegrityError(f"{self.name(peer)}: other bytes came than were announced")
        if key == "vault.json":
            if revision <= found.revision:
                raise IntegrityError(f"{self.name(peer)} has a newer vault.json")
            found.revision = revision
        found.objects[key] = data
        found.lies.discard(key)
        found.stores.append(key)
        return len(data)

    async def _answering(self, peer: PeerId, vault: VaultId) -> FakePeer:
        await trio.lowlevel.checkpoint()
        assert vault == self.vault_id
        found = self.peers[peer]
        if found.is_away:
            raise RemoteUnreachableError(f"{self.name(peer)} cannot be reached")
        return found

    def _body(self) -> _Body:
        return _Body(self)


class _Body:
    def __init__(self, mesh: FakeMesh) -> None:
        self._mesh = mesh

    async def __aenter__(self) -> None:
        self._mesh._bodies += 1
        self._mesh.busiest = max(self._mesh.busiest, self._mesh._bodies)
        if self._mesh._bodies >= self._mesh.meeting:
            self._mesh._met.set()
        await self._mesh._met.wait()

    async def __aexit__(self, *_: object) -> None:
        self._mesh._bodies -= 1


def _read(key: str, source: Source) -> bytes:
    with opened(key, source) as reader:
        return b"".join(source_pieces(reader))


def failing(error: Callable[[], VaultError], times: int = 1 << 30) -> Callable[[str], None]:
    """Fails so often, and then takes everything."""
    left = [times]

    def fail(_key: str) -> None:
        if left[0]:
            left[0] -= 1
            raise error()

    return fail
