"""Peers in memory that hold segments, or lie about it, and a client that asks them."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import BinaryIO

import trio
from blake3 import blake3

from vaultfs.errors import ObjectMissingError, RemoteUnreachableError
from vaultfs.ids import PeerId, SegmentName, VaultId
from vaultfs.mesh.addresses import Address
from vaultfs.mesh.book import KnownPeer, VaultPeers
from vaultfs.mesh.client import MeshClient, proof_of
from vaultfs.mesh.messages import MOST_RANGES, Range
from vaultfs.mesh.share_keys import SHARES_PREFIX
from vaultfs.remotes.store import ObjectInfo
from vaultfs.sync.remote_layout import segment_key

VAULT = VaultId(bytes(range(16)))
ABSENT = bytes(32)


def peer_id(number: int) -> PeerId:
    return PeerId(hashlib.sha256(b"peer %d" % number).digest())


def made_up(draw: random.Random, size: int) -> tuple[SegmentName, bytes]:
    data = draw.randbytes(size)
    return SegmentName(blake3(data).hexdigest()), data


@dataclass
class Peer:
    """One peer.

    Attributes:
        segments: what it has.
        shares: likewise, by key.
        listed: what it says of other segments, in its listing and when it is asked.
        unlisted: segments that it has and does not list.
        strange: keys that it lists besides.
        proves: makes its answer to a range; None: honestly.
        sends: what it sends of a segment; None: honestly.
        spoils_parts: it sends other bytes when it is asked for a part.
        patience: so many requests are answered; None: all.
        ranges: that it was asked to prove.
        sent_bytes: of segments.
        fetches: of segments, how many.
    """

    segments: dict[SegmentName, bytes] = field(default_factory=dict)
    shares: dict[str, bytes] = field(default_factory=dict)
    listed: dict[SegmentName, int] = field(default_factory=dict)
    unlisted: set[SegmentName] = field(default_factory=set)
    strange: list[str] = field(default_factory=list)
    proves: Callable[[bytes, Range, bytes], bytes] | None = None
    sends: Callable[[SegmentName], bytes] | None = None
    spoils_parts: bool = False
    patience: int | None = None
    ranges: list[Range] = field(default_factory=list)
    sent_bytes: int = 0
    fetches: int = 0

    def sizes(self) -> dict[SegmentName, int]:
        return {name: len(data) for name, data in self.segments.items()} | self.listed

    def honest(self, key: bytes, part: Range) -> bytes:
        name = SegmentName(part.name.hex())
        whole = self.shares.get(f"shares/{name}/{part.share}", b"") if part.share else self.segments.get(name, b"")
        data = whole[part.offset : part.offset + part.length]
        digest = part.share[-64:] or name
        return proof_of(key, digest, part.offset, data) if len(data) == part.length else ABSENT

    def proof(self, key: bytes, part: Range) -> bytes:
        self.ranges.append(part)
        honest = self.honest(key, part)
        return honest if self.proves is None else self.proves(key, part, honest)


class Peers(MeshClient):
    """A client of some of them."""

    def __init__(self, count: int) -> None:
        self.peers = {peer_id(number): Peer() for number in range(count)}

    @property
    def page(self) -> VaultPeers:
        known = (KnownPeer(peer, Address("127.0.0.1", 1 + number)) for number, peer in enumerate(self.peers))
        return VaultPeers(VAULT, peers=tuple(known))

    def at(self, number: int) -> Peer:
        return self.peers[peer_id(number)]

    def give(self, name: SegmentName, data: bytes, *numbers: int) -> None:
        for number in numbers:
            self.at(number).segments[name] = data

    def name(self, peer: PeerId) -> str:
        return f"peer {list(self.peers).index(peer)}"

    async def listing(self, peer: PeerId, vault: VaultId, prefix: str) -> list[ObjectInfo]:
        if prefix == SHARES_PREFIX and not self.peers[peer].shares:
            return []
        found = await self._asked(peer)
        shown = {key: len(data) for key, data in found.shares.items()}
        shown |= {segment_key(name): size for name, size in found.sizes().items() if name not in found.unlisted}
        shown |= dict.fromkeys(found.strange, 1)
        return [ObjectInfo(key, shown[key]) for key in sorted(shown) if key.startswith(prefix)]

    async def have(self, peer: PeerId, vault: VaultId, names: Sequence[SegmentName]) -> dict[SegmentName, int]:
        if not names:
            return {}
        sizes = (await self._asked(peer)).sizes()
        return {name: sizes[name] for name in names if sizes.get(name)}

    async def audit(self, peer: PeerId, vault: VaultId, key: bytes, ranges: Sequence[Range]) -> list[bytes]:
        assert 0 < len(ranges) <= MOST_RANGES
        found = await self._asked(peer)
        return [found.proof(key, part) for part in ranges]

    async def fetch(
        self, peer: PeerId, vault: VaultId, key: str, sink: BinaryIO, *, offset: int = 0, length: int | None = None
    ) -> int:
        found = await self._asked(peer)
        found.fetches += 1
        name = SegmentName(key.rpartition("/")[2])
        honest = found.shares.get(key) if key.startswith(SHARES_PREFIX) else found.segments.get(name)
        data = honest if found.sends is None else found.sends(name)
        if data is None:
            raise ObjectMissingError(f"{self.name(peer)} has no {key}")
        data = data[offset:] if length is None else data[offset : offset + length]
        if length is not None and found.spoils_parts:
            data = bytes(len(data))
        found.sent_bytes += len(data)
        sink.writelines([data])
        return len(data)

    async def _asked(self, peer: PeerId) -> Peer:
        await trio.lowlevel.checkpoint()
        found = self.peers[peer]
        if found.patience is not None:
            found.patience -= 1
            if found.patience < 0:
                raise RemoteUnreachableError(f"{self.name(peer)} cannot be reached")
        return found
