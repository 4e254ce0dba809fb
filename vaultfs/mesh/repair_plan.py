"""What to copy where, so that every needed segment is held by enough peers again.

A copy counts if a site of the placement holds it, with the right size, and is not distrusted with it.  Peers that hold
something and are no sites any more (removed, but still answering) are sources, and count for nothing.  Copies on peers
that are away for a short time count too, for nobody wants to send a terabyte because a laptop is closed; nothing is
read from such a peer, or sent to it.

- A segment with enough copies is left where it is, even if the placement now names other sites: moving it would cost
  traffic and gain nothing.  One exception: if its copies are all in one zone, it gets one more in another.
- A missing copy goes to the nearest site that lacks it and has room, in a zone of its own if there is one.  A peer
  whose copy is distrusted may be sent a good one: what it stores is compared with its hash as it arrives.
- What is rarest goes first: every segment gets its second copy before any gets its third, and room is given away in
  that order.  The vault's own copy counts here, because what it and one peer hold is safer than what one peer holds.

The first replication of a vault is the same plan, with holdings that are empty.  Nothing here deletes: `surplus` only
says what could be, by whoever may order it.

Pure, and deterministic: the same arguments give the same plan, in whatever order mappings and sets yield their items.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Container, Iterable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import Final

from vaultfs.ids import PeerId, SegmentName
from vaultfs.mesh.placement import Placement

Holding = Mapping[SegmentName, int] | AbstractSet[SegmentName]
"""What a peer says it holds: sizes in bytes by name, or names alone if the sizes are known to be right."""


@dataclass(frozen=True)
class Copy:
    """One copy to be made.

    Attributes:
        name: the segment.
        size_bytes: its size.
        sources: peers that hold it and can be read, the nearest to the segment first; if empty, only this machine can
            send it.
        dest: the peer that is to hold it.
    """

    name: SegmentName
    size_bytes: int
    sources: tuple[PeerId, ...]
    dest: PeerId


@dataclass
class RepairPlan:
    """What to do.

    Attributes:
        copies: the most urgent first.
        short: segments that will have too few copies even then, and how many are missing: there are too few peers, or
            they have no room, or who holds it is away.
        lost: segments that no peer holds, nor this machine; by name.
        surplus: by peer, copies of needed segments that could be deleted: enough others were there before the plan, on
            sites that are not away and are nearer, or in more zones.
    """

    copies: list[Copy] = field(default_factory=list)
    short: dict[SegmentName, int] = field(default_factory=dict)
    lost: list[SegmentName] = field(default_factory=list)
    surplus: dict[PeerId, set[SegmentName]] = field(default_factory=dict)

    @property
    def total_bytes(self) -> int:
        """What all copies amount to."""
        return sum(copy.size_bytes for copy in self.copies)

    @property
    def bytes_to(self) -> dict[PeerId, int]:
        """What each peer is sent; peers that are sent nothing are left out."""
        sent: defaultdict[PeerId, int] = defaultdict(int)
        for copy in self.copies:
            sent[copy.dest] += copy.size_bytes
        return dict(sent)


def plan_repair(
    needed: Mapping[SegmentName, int],
    holdings: Mapping[PeerId, Holding],
    placement: Placement,
    replicas: int,
    room_bytes: Mapping[PeerId, int],
    local: Container[SegmentName],
    distrusted: Mapping[PeerId, Collection[SegmentName]],
    away: Collection[PeerId] = (),
) -> RepairPlan:
    """Decide what to copy.

    Args:
        needed: the segments of the vault, and their sizes in bytes.
        holdings: by peer, what it said it holds.  A peer that does not answer is left out, and so is one that lies as
            a whole: it is then neither counted, nor read, nor sent anything.
        placement: the sites.
        replicas: how many copies a segment is to have; at least 1.
        room_bytes: by peer, how much more it takes; a peer that is not named takes nothing.
        local: the segments that this machine can read.
        distrusted: by peer, segments whose copies there count for nothing, such as those that failed an audit.
        away: peers whose holdings are what they last said; they are expected back.

    Raises:
        ValueError: ``replicas`` is less than 1.
    """
    if replicas < 1:
        raise ValueError(f"a segment has at least one replica, not {replicas}")
    return _Planner(needed, holdings, placement, replicas, room_bytes, local, distrusted, away).plan()


class _Segment:
    """A segment that gets copies, while they are being planned.

    Attributes:
        copies: how many there are, on whatever machine; planned ones included.
        holders: sites whose copies count, planned ones included.
        candidates: all other sites, the nearest first.
        is_readable: a peer that is not away has it, or this machine.
    """

    __slots__ = ("candidates", "copies", "holders", "is_readable", "name", "size_bytes", "sources")

    def __init__(
        self,
        name: SegmentName,
        size_bytes: int,
        copies: int,
        holders: list[int],
        candidates: list[int],
        sources: tuple[PeerId, ...],
        *,
        is_local: bool,
    ) -> None:
        self.name: Final = name
        self.size_bytes: Final = size_bytes
        self.copies = copies
        self.holders: Final = holders
        self.candidates: Final = candidates
        self.sources: Final = sources
        self.is_readable: Final = bool(sources) or is_local


class _Planner:
    def __init__(
        self,
        needed: Mapping[SegmentName, int],
        holdings: Mapping[PeerId, Holding],
        placement: Placement,
        replicas: int,
        room_bytes: Mapping[PeerId, int],
        local: Container[SegmentName],
        distrusted: Mapping[PeerId, Collection[SegmentName]],
        away: Collection[PeerId],
    ) -> None:
        self._needed: Final = needed
        self._placement: Final = placement
        self._replicas: Final = replicas
        self._local: Final = local
        self._away: Final = frozenset(placement.indexes[peer] for peer in away if peer in placement.indexes)
        self._room_bytes: Final = [
            room_bytes.get(site.peer, -1) if site.peer in holdings and index not in self._away else -1
            for index, site in enumerate(placement.sites)
        ]
        self._held: Final[defaultdict[SegmentName, list[int]]] = defaultdict(list)
        self._elsewhere: Final[defaultdict[SegmentName, list[PeerId]]] = defaultdict(list)
        for peer in sorted(holdings):
            good = _good_copies(needed, holdings[peer], frozenset(distrusted.get(peer, ())))
            index = placement.indexes.get(peer)
            if index is not None:
                for name in good:
                    self._held[name].append(index)
            elif peer not in away:
                for name in good:
                    self._elsewhere[name].append(peer)
        self._made: Final = RepairPlan()

    def plan(self) -> RepairPlan:
        wanting: list[_Segment] = []
        one_zone: list[_Segment] = []
        for name in sorted(self._needed):
            holders = self._held.get(name, [])
            if len(holders) < self._replicas:
                self._sort_out(name, holders, wanting)
            else:
                if self._replicas > 1 and self._is_one_zone(holders):
                    one_zone.append(self._segment(name, holders))
                self._note_surplus(name, holders)
        self._plan_missing(wanting)
        for segment in one_zone:
            if segment.is_readable:
                self._plan_copy(segment, other_zone_only=True)
        return self._made

    def _sort_out(self, name: SegmentName, holders: list[int], wanting: list[_Segment]) -> None:
        segment = self._segment(name, holders)
        if segment.is_readable:
            wanting.append(segment)
        elif holders:
            self._made.short[name] = self._replicas - len(holders)
        else:
            self._made.lost.append(name)

    def _segment(self, name: SegmentName, holders: list[int]) -> _Segment:
        sites = self._placement.sites
        elsewhere = self._elsewhere.get(name, [])
        ranked = self._placement.ranked_indexes(name)
        near = [sites[index].peer for index in ranked if index in holders and index not in self._away]
        is_local = name in self._local
        return _Segment(
            name,
            self._needed[name],
            len(holders) + len(elsewhere) + is_local,
            list(holders),
            [index for index in ranked if index not in holders],
            (*near, *elsewhere),
            is_local=is_local,
        )

    def _plan_missing(self, wanting: list[_Segment]) -> None:
        rarest = defaultdict(list)
        for segment in wanting:
            rarest[segment.copies].append(segment)
        while rarest:
            for segment in rarest.pop(min(rarest)):
                missing = self._replicas - len(segment.holders)
                if not self._plan_copy(segment):
                    self._made.short[segment.name] = missing
                elif missing > 1:
                    rarest[segment.copies].append(segment)

    def _plan_copy(self, segment: _Segment, *, other_zone_only: bool = False) -> bool:
        """Plan one more copy, if a site can take it.  Return whether one is planned."""
        dest = self._destination(segment, other_zone_only=other_zone_only)
        if dest is None:
            return False
        self._room_bytes[dest] -= segment.size_bytes
        segment.copies += 1
        segment.holders.append(dest)
        segment.candidates.remove(dest)
        peer = self._placement.sites[dest].peer
        self._made.copies.append(Copy(segment.name, segment.size_bytes, segment.sources, peer))
        return True

    def _destination(self, segment: _Segment, *, other_zone_only: bool) -> int | None:
        zones = self._placement.zones
        taken = {zones[index] for index in segment.holders}
        nearest = None
        for index in segment.candidates:
            if self._room_bytes[index] < segment.size_bytes:
                continue
            if zones[index] not in taken:
                return index
            if nearest is None and not other_zone_only:
                nearest = index
        return nearest

    def _is_one_zone(self, holders: list[int]) -> bool:
        zones = self._placement.zones
        return self._placement.zone_count > 1 and all(zones[index] == zones[holders[0]] for index in holders)

    def _note_surplus(self, name: SegmentName, holders: list[int]) -> None:
        """Write down which copies could go.  A copy whose peer is away stands in for none of them."""
        present = [index for index in holders if index not in self._away]
        if len(present) < self._replicas:
            return
        surplus = list(self._elsewhere.get(name, []))
        if len(present) > self._replicas:
            ranked = [index for index in self._placement.ranked_indexes(name) if index in present]
            kept = self._placement.spread(ranked, self._replicas)
            surplus += [self._placement.sites[index].peer for index in present if index not in kept]
        for peer in surplus:
            self._made.surplus.setdefault(peer, set()).add(name)


def _good_copies(
    needed: Mapping[SegmentName, int], holding: Holding, distrusted: frozenset[SegmentName]
) -> Iterable[SegmentName]:
    """What a peer holds and is believed; perhaps also what is not needed."""
    if isinstance(holding, Mapping):
        return [
            name for name, size_bytes in holding.items() if needed.get(name) == size_bytes and name not in distrusted
        ]
    return holding - distrusted
