"""What counts of what peers say they hold: who is believed, and who is only away for a short time.  Pure."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field

from vaultfs.ids import PeerId, SegmentName
from vaultfs.mesh.share_format import CodedSegment, Coding
from vaultfs.mesh.standing import Standing
from vaultfs.mesh.survey import PeerView, Survey

Held = Mapping[SegmentName, int]
"""Segments that a peer says it holds, and their sizes in bytes."""


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
    """

    present: dict[PeerId, Held] = field(default_factory=dict)
    away: dict[PeerId, Held] = field(default_factory=dict)
    distrusted: dict[PeerId, Held] = field(default_factory=dict)
    gone: dict[PeerId, Held] = field(default_factory=dict)
    unknown: set[PeerId] = field(default_factory=set)

    @property
    def counted(self) -> dict[PeerId, Held]:
        """All that count."""
        return {**self.present, **self.away}


def claims_of(
    survey: Survey, standing: Standing, load_held: Callable[[PeerId], Held], *, grace_ns: int, now_ns: int
) -> Claims:
    """Sort out what the peers said.

    Args:
        survey: what they said now.
        standing: what is remembered of them.
        load_held: what a peer said the last time.
        grace_ns: who was there so lately counts as if it was.
        now_ns: since the epoch.
    """
    claims = Claims()
    for peer, view in survey.views.items():
        remembered = standing.of(peer)
        is_liar = remembered.failed_audit_ns != 0
        if view.is_present:
            (claims.distrusted if is_liar else claims.present)[peer] = view.segments
            continue
        if not remembered.seen_ns:
            claims.unknown.add(peer)
            continue
        is_expected = not is_liar and 0 <= now_ns - remembered.seen_ns < grace_ns
        (claims.away if is_expected else claims.gone)[peer] = load_held(peer)
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
    needed: Mapping[SegmentName, int], coding: Coding, views: Iterable[PeerView]
) -> dict[SegmentName, int]:
    """How many different shares of each needed segment some peers list; segments without any are left out."""
    found: dict[SegmentName, set[int]] = {}
    for view in views:
        for name, keys in view.shares.items():
            for key in keys:
                if key.coded.coding == coding and key.coded.size_bytes == needed.get(name):
                    found.setdefault(name, set()).add(key.index)
    return {name: len(indexes) for name, indexes in found.items()}


def readable(views: Iterable[PeerView]) -> set[SegmentName]:
    """The segments that some peers have as a whole, or enough shares of."""
    views = list(views)
    names: set[SegmentName] = set(from_shares(views))
    for view in views:
        names.update(view.segments)
    return names


def from_shares(views: Iterable[PeerView]) -> dict[SegmentName, int]:
    """The segments that shares of some peers give back, and their sizes in bytes."""
    shares: dict[CodedSegment, set[int]] = {}
    for view in views:
        for keys in view.shares.values():
            for key in keys:
                shares.setdefault(key.coded, set()).add(key.index)
    return {coded.name: coded.size_bytes for coded, found in shares.items() if len(found) >= coded.coding.needed}
