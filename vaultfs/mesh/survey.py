"""Asking all peers of a vault at once: who is there, how much room they have, what they say they hold.

What a peer says is a claim.  Sizes are compared with manifests; whether the bytes are right, hashes and audits tell.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

import trio

from vaultfs.errors import IntegrityError, VaultError
from vaultfs.ids import PeerId, SegmentName, VaultId
from vaultfs.mesh.asking import ask_all, worst_of
from vaultfs.mesh.book import KnownPeer, VaultPeers
from vaultfs.mesh.client import MeshClient
from vaultfs.mesh.messages import State
from vaultfs.mesh.placement import Placement, Site
from vaultfs.mesh.share_keys import SHARES_PREFIX, ShareKey, parse_share_key
from vaultfs.mesh.standing import Standing
from vaultfs.remotes.store import ObjectInfo
from vaultfs.sync.remote_layout import HEADER_KEY, HEADS_PREFIX, SEGMENTS_PREFIX, parse_segment

DEFAULT_CAPACITY_BYTES: Final = 1 << 40
"""Of a peer that was never there: placement needs a weight, and knows nothing better."""


@dataclass
class PeerView:
    """One peer.

    Attributes:
        known: as the book has it.
        state: what it said of its room; None if it did not answer.
        error: why it did not.
        segments: what it says it holds, and the sizes in bytes.
        heads: likewise the keys of manifests.
        shares: likewise the shares of each segment.
        header_revision: of its ``vault.json``; 0: it has none.
        room_bytes: what it can still take; changes while things are stored.
    """

    known: KnownPeer
    state: State | None = None
    error: VaultError | None = None
    segments: dict[SegmentName, int] = field(default_factory=dict)
    heads: dict[str, int] = field(default_factory=dict)
    shares: dict[SegmentName, list[ShareKey]] = field(default_factory=dict)
    header_revision: int = 0
    room_bytes: int = 0

    @property
    def is_present(self) -> bool:
        """Whether it answers."""
        return self.state is not None

    @property
    def takes(self) -> bool:
        """Whether it may be sent something."""
        return self.state is not None and self.state.may_write


@dataclass
class Survey:
    """All of them.

    Attributes:
        views: by peer, in the order of the book.
        made_s: when, by the loop's clock.
    """

    views: dict[PeerId, PeerView]
    made_s: float = 0.0

    @property
    def present(self) -> list[PeerView]:
        """Those that answer."""
        return [view for view in self.views.values() if view.is_present]

    def holders(self, name: SegmentName, size_bytes: int) -> list[PeerId]:
        """Peers that answer, and say that they hold a segment with the right size."""
        return [view.known.id for view in self.present if view.segments.get(name) == size_bytes]

    def require_any(self) -> None:
        """See that somebody answers.

        Raises:
            VaultError: what the first one's error was.
        """
        if not self.present:
            raise worst_of([view.error for view in self.views.values() if view.error is not None], "anything")


def placement_of(page: VaultPeers, standing: Standing, views: Mapping[PeerId, PeerView] | None = None) -> Placement:
    """Where segments belong: every peer of the book is a site, weighted by what it offers, or did when it was there.

    Args:
        page: the peers.
        standing: what is remembered of them.
        views: what they say now.
    """
    sites = []
    for peer in page.peers:
        view = None if views is None else views.get(peer.id)
        offered = 0 if view is None or view.state is None else offered_bytes(view.state)
        capacity = offered or standing.of(peer.id).capacity_bytes or DEFAULT_CAPACITY_BYTES
        sites.append(Site(peer.id, capacity, peer.zone))
    return Placement(sites)


def offered_bytes(state: State) -> int:
    """What a peer can hold of this machine's in all: its quota, or what its disk has, where that is less.

    A peer without a quota says 2⁶³ - 1, and would be the nearest to every segment.
    """
    return min(state.quota_bytes, state.used_bytes + state.free_bytes)


async def survey(
    client: MeshClient,
    page: VaultPeers,
    standing: Standing,
    *,
    only: Iterable[PeerId] | None = None,
    clock_ns: Callable[[], int] = time.time_ns,
) -> Survey:
    """Ask the peers.

    Args:
        client: to ask with.
        page: whom to ask.
        standing: is told who was there, and what they offered.
        only: ask these only.
        clock_ns: nanoseconds since the epoch.
    """
    wanted = None if only is None else frozenset(only)
    found = Survey({peer.id: PeerView(peer) for peer in page.peers if wanted is None or peer.id in wanted})

    async def look(peer: PeerId) -> None:
        view = found.views[peer]
        await _look(client, page.vault_id, view)
        assert view.state is not None, "it has answered"
        standing.note(peer, seen_ns=clock_ns(), capacity_bytes=offered_bytes(view.state))

    answers = await ask_all(found.views, look)
    for peer, error in answers.failures.items():
        found.views[peer].error = error
    found.made_s = trio.current_time()
    return found


async def _look(client: MeshClient, vault: VaultId, view: PeerView) -> None:
    peer = view.known.id
    state = await client.status(peer, vault)
    view.segments = dict(segment_sizes(await client.listing(peer, vault, SEGMENTS_PREFIX)))
    view.heads = {info.key: info.size_bytes for info in await client.listing(peer, vault, HEADS_PREFIX)}
    view.shares = {}
    for info in await client.listing(peer, vault, SHARES_PREFIX):
        share = parse_share_key(info.key)
        if share is not None:
            view.shares.setdefault(share.coded.name, []).append(share)
    view.header_revision = (await client.stat(peer, vault, HEADER_KEY)).revision
    view.room_bytes = state.free_bytes
    view.state = state


def segment_sizes(infos: Iterable[ObjectInfo]) -> Iterable[tuple[SegmentName, int]]:
    """The segments in a listing.

    Raises:
        IntegrityError: it holds something else, which no peer of ours stores there.
    """
    for info in infos:
        name = parse_segment(info.key)
        if name is None:
            raise IntegrityError(f"a peer lists {info.key!r} among segments; it is no peer of vaultfs")
        yield name, info.size_bytes
