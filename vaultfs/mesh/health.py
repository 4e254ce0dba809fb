"""What the peers of a vault lack: copies of segments, manifests, ``vault.json``.  Pure.

What peers say counts as `vaultfs.mesh.claims` has it.  A peer that is away and counts has its segments for the grace
period; manifests are asked of those that answer.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass, field
from itertools import chain

from vaultfs.ids import PeerId, SegmentName
from vaultfs.mesh.claims import Claims, copies_of, from_shares, readable, share_counts
from vaultfs.mesh.needs import Needs
from vaultfs.mesh.share_format import CodedSegment, Coding
from vaultfs.mesh.survey import Survey
from vaultfs.sync.remote_layout import RemoteHead, head_key


@dataclass(frozen=True)
class PeerHealth:
    """One peer.

    Attributes:
        segments: needed ones that it says it holds, or has a share of.
        bytes: of these.
        newest: the number of the newest snapshot that it lists; None: none.
        lacks_newest: it answers, and does not list the newest one of all.
        lacks_heads: so many needed manifests it does not list, the newest included.
        lacks_header: it answers, and has not the ``vault.json`` that it should have.
        is_distrusted: it failed an audit, so its copies do not count.
    """

    segments: int = 0
    bytes: int = 0
    newest: int | None = None
    lacks_newest: bool = False
    lacks_heads: int = 0
    lacks_header: bool = False
    is_distrusted: bool = False


@dataclass
class Health:
    """All of them.

    Attributes:
        replicas: how many copies there are to be.
        coding: these are shares of this coding; or None.
        peers: by peer, in the order of the book.
        copies: by number of copies, from 0 to ``replicas``, how many needed segments have so many; the last: or more.
        short: needed segments with fewer, and how many they have.
        lost: of these, those that no peer holds or held when it answered last, nor this machine; by name.  None as long
            as there is a peer that has never answered.
        as_shares: needed segments that shares on peers which answer give back, where there are to be copies; by name.
        newest: the snapshot with the highest number; None: there is none at all.
        present: how many peers answer.
        needed_segments: how many are needed.
        needed_bytes: of these, each once.
        missing_bytes: of the copies that are missing.
        unsent: snapshots of this machine that no peer has.
        unreadable: snapshots of which nobody can say what they need.
        one_zone: segments with enough copies, all in one zone, where there are several.
        zones: in how many zones there are peers that hold something.
    """

    replicas: int
    coding: Coding | None = None
    peers: dict[PeerId, PeerHealth] = field(default_factory=dict)
    copies: dict[int, int] = field(default_factory=dict)
    short: dict[SegmentName, int] = field(default_factory=dict)
    lost: list[SegmentName] = field(default_factory=list)
    as_shares: list[SegmentName] = field(default_factory=list)
    newest: RemoteHead | None = None
    present: int = 0
    needed_segments: int = 0
    needed_bytes: int = 0
    missing_bytes: int = 0
    one_zone: int = 0
    zones: int = 0
    unsent: int = 0
    unreadable: int = 0

    @property
    def is_whole(self) -> bool:
        """Whether every needed segment has enough copies, and nothing of what is needed is unknown."""
        is_known = self.present > 0 and self.newest is not None and not self.unreadable
        return is_known and not self.short and not self.unsent

    @property
    def is_safe(self) -> bool:
        """Whether, besides, every peer that answers has the newest manifest and ``vault.json``."""
        return self.is_whole and not any(peer.lacks_newest or peer.lacks_header for peer in self.peers.values())


def assess(
    survey: Survey,
    claims: Claims,
    needs: Needs,
    replicas: int,
    *,
    coding: Coding | None = None,
    local: Container[SegmentName] = (),
    headers: Mapping[PeerId, bytes] | None = None,
    header: bytes | None = None,
) -> Health:
    """Find out what is lacking.

    Args:
        survey: what the peers said.
        claims: what of it counts.
        needs: what is needed.
        replicas: how many copies of each segment.
        coding: shares instead of copies; then what is said of copies is meant of shares.
        local: the segments that lie on this machine.
        headers: the ``vault.json`` of the peers that have one.
        header: the one that all should have; None: nobody knows it, and no peer lacks it.
    """
    if coding is not None:
        replicas = coding.total
    health = Health(replicas, coding, unsent=len(needs.unsent), unreadable=len(needs.unreadable), newest=needs.newest)
    health.present = len(survey.present)
    counted = claims.counted
    copies = copies_of(needs.segments, counted.values())
    elsewhere = copies_of(needs.segments, (*claims.distrusted.values(), *claims.gone.values()))
    enough = 1
    if coding is not None:
        enough = coding.needed
        elsewhere |= copies
        copies = share_counts(needs.segments, coding, claims.shares.values())
        elsewhere |= dict.fromkeys(from_shares([*claims.shares.values(), *claims.other_shares.values()]), 1)
    else:
        # Where nobody has said that there are shares, as on a new machine, they are no copies; nor is anything lost.
        whole = from_shares(view.shares for view in survey.present)
        health.as_shares = sorted(name for name, size in needs.segments.items() if whole.get(name) == size)
        elsewhere |= dict.fromkeys(health.as_shares, 1)
    health.needed_segments = len(needs.segments)
    health.needed_bytes = sum(needs.segments.values())
    health.copies = dict.fromkeys(range(replicas + 1), 0)
    for name, size in needs.segments.items():
        count = copies.get(name, 0)
        health.copies[min(count, replicas)] += 1
        if count < replicas:
            health.short[name] = count
            part = size if coding is None else CodedSegment(name, size, coding).share_bytes
            health.missing_bytes += (replicas - count) * part
            if count < enough and name not in elsewhere and name not in local and not _may_return(claims, coding):
                health.lost.append(name)
    health.lost.sort()
    _assess_zones(health, survey, claims, needs, is_coded=coding is not None)
    for peer, view in survey.views.items():
        held = counted.get(peer) or claims.distrusted.get(peer) or claims.gone.get(peer, {})
        sizes = [size for name, size in held.items() if needs.segments.get(name) == size]
        shares = claims.shares.get(peer) or claims.other_shares.get(peer, {})
        sizes += [keys[0].coded.share_bytes for name, keys in shares.items() if keys and name in needs.segments]
        listed = [head for head, size in needs.heads.items() if view.heads.get(head_key(head)) == size]
        health.peers[peer] = PeerHealth(
            segments=len(sizes),
            bytes=sum(sizes),
            newest=max((head.seq for head in listed), default=None),
            lacks_newest=view.is_present and needs.newest is not None and needs.newest not in listed,
            lacks_heads=len(needs.heads) - len(listed) if view.is_present else 0,
            lacks_header=view.is_present and header is not None and (headers or {}).get(peer) != header,
            is_distrusted=peer in claims.distrusted,
        )
    return health


def _may_return(claims: Claims, coding: Coding | None) -> bool:
    """Whether there are peers that do not answer, and may have anything at all."""
    return bool(claims.unknown) or (coding is not None and bool(claims.untold))


def _assess_zones(health: Health, survey: Survey, claims: Claims, needs: Needs, *, is_coded: bool) -> None:
    zone_of = {peer: view.known.zone or peer for peer, view in survey.views.items()}
    zones_of: dict[SegmentName, set[object]] = {}
    for peer, held in claims.counted.items():
        for name, size in held.items():
            if needs.segments.get(name) == size:
                zones_of.setdefault(name, set()).add(zone_of[peer])
    for peer, shares in claims.shares.items() if is_coded else ():
        for name in shares:
            zones_of.setdefault(name, set()).add(zone_of[peer])
    health.zones = len(set(chain.from_iterable(zones_of.values())))
    if len(set(zone_of.values())) > 1 and health.replicas > 1 and not is_coded:
        health.one_zone = sum(len(zones) == 1 and name not in health.short for name, zones in zones_of.items())


def incomplete(needs: Needs, survey: Survey) -> set[RemoteHead]:
    """Snapshots of which no peer that answers has some segments, even now: their manifests stay where they are.

    Args:
        needs: as they were found.
        survey: as it is now.
    """
    held = readable(survey.present)
    return {head for head, names in needs.awaited.items() if not names <= held}
