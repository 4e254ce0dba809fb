"""What counts of what peers say they hold: who is believed, and who is only away for a short time.  Pure."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from vaultfs.ids import PeerId, SegmentName
from vaultfs.mesh.share_format import CodedSegment, Coding
from vaultfs.mesh.share_keys import ShareKey
from vaultfs.mesh.standing import Standing
from vaultfs.mesh.survey import PeerView, Survey

Held = Mapping[SegmentName, int]
"""Segments that a peer says it holds, and their sizes in bytes."""

Shares = Mapping[SegmentName, Sequence[ShareKey]]
"""Shares that a peer says it holds, by segment."""


@dataclass
class Claims:
    """What the peers hold, as far as it counts.

    Attributes:
        present: by peer that answers.
        away: by peer that is expected back, what it said last.
        distrusted: by peer that failed an audit and answers; their copies do not count, but can be fetched, as bytes
            have a hash.
        gone: by other peer that does not answer, what it said last; it counts for nothing, but may come back.
        unknown: peers that have never answered, so that nobody knows what they hold.
        shares: by peer that is present or away, its shares.
        other_shares: by peer that is distrusted or gone, its shares; they count for nothing.
        untold: peers that do not answer and of which nobody remembers whether they have shares.
    """

    present: dict[PeerId, Held] = field(default_factory=dict)
    away: dict[PeerId, Held] = field(default_factory=dict)
    distrusted: dict[PeerId, Held] = field(default_factory=dict)
    gone: dict[PeerId, Held] = field(default_factory=dict)
    unknown: set[PeerId] = field(default_factory=set)
    shares: dict[PeerId, Shares] = field(default_factory=dict)
    other_shares: dict[PeerId, Shares] = field(default_factory=dict)
    untold: set[PeerId] = field(default_factory=set)

    @property
    def counted(self) -> dict[PeerId, Held]:
        """All that count."""
        return {**self.present, **self.away}

    @property
    def away_shares(self) -> list[Shares]:
        """Shares on peers that are expected back."""
        return [shares for peer, shares in self.shares.items() if peer in self.away]


def claims_of(
    survey: Survey,
    standing: Standing,
    load_held: Callable[[PeerId], Held],
    load_shares: Callable[[PeerId], Shares | None],
    *,
    grace_ns: int,
    now_ns: int,
) -> Claims:
    """Sort out what the peers said.

    Args:
        survey: what they said now.
        standing: what is remembered of them.
        load_held: what a peer said the last time.
        load_shares: likewise its shares; None if nobody remembers.
        grace_ns: who was there so lately counts as if it was.
        now_ns: since the epoch.
    """
    claims = Claims()
    for peer, view in survey.views.items():
        remembered = standing.of(peer)
        is_liar = remembered.failed_audit_ns != 0
        if view.is_present:
            (claims.distrusted if is_liar else claims.present)[peer] = view.segments
            (claims.other_shares if is_liar else claims.shares)[peer] = view.shares
            continue
        if not remembered.seen_ns:
            claims.unknown.add(peer)
            continue
        is_expected = not is_liar and 0 <= now_ns - remembered.seen_ns < grace_ns
        (claims.away if is_expected else claims.gone)[peer] = load_held(peer)
        shares = load_shares(peer)
        if shares is None:
            claims.untold.add(peer)
        else:
            (claims.shares if is_expected else claims.other_shares)[peer] = shares
    return claims


def copies_of(needed: Mapping[SegmentName, int], holdings: Collection[Held]) -> dict[SegmentName, int]:
    """How many of some peers hold each needed segment, with the right size; those that none holds are left out."""
    copies: dict[SegmentName, int] = {}
    for held in holdings:
        for name, size_bytes in held.items():
            if needed.get(name) == size_bytes:
                copies[name] = copies.get(name, 0) + 1
    return copies


def share_counts(
    needed: Mapping[SegmentName, int], coding: Coding, holdings: Iterable[Shares]
) -> dict[SegmentName, int]:
    """How many different shares of each needed segment some peers have; segments without any are left out."""
    found: dict[SegmentName, set[int]] = {}
    for shares in holdings:
        for name, keys in shares.items():
            for key in keys:
                if key.coded.coding == coding and key.coded.size_bytes == needed.get(name):
                    found.setdefault(name, set()).add(key.index)
    return {name: len(indexes) for name, indexes in found.items()}


def readable(views: Iterable[PeerView]) -> set[SegmentName]:
    """The segments that some peers have as a whole, or enough shares of."""
    views = list(views)
    names: set[SegmentName] = set(from_shares(view.shares for view in views))
    for view in views:
        names.update(view.segments)
    return names


def from_shares(holdings: Iterable[Shares]) -> dict[SegmentName, int]:
    """The segments that shares of some peers give back, and their sizes in bytes."""
    found: dict[CodedSegment, set[int]] = {}
    for shares in holdings:
        for keys in shares.values():
            for key in keys:
                found.setdefault(key.coded, set()).add(key.index)
    return {coded.name: coded.size_bytes for coded, indexes in found.items() if len(indexes) >= coded.coding.needed}
