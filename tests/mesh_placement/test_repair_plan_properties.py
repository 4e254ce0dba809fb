"""Small worlds of every kind: what is true of each plan, and of the world once it is carried out."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, replace

from hypothesis import given
from hypothesis import strategies as st

from vaultfs.ids import PeerId, SegmentName
from vaultfs.mesh.placement import Placement, Site
from vaultfs.mesh.repair_plan import RepairPlan, plan_repair

from .fabricated import peer, segment

SITES = 6
STRANGERS = 2
PEERS = [peer(number) for number in range(SITES + STRANGERS)]
SEGMENTS = [segment(number) for number in range(8)]


@dataclass(frozen=True)
class World:
    placement: Placement
    needed: dict[SegmentName, int]
    held: dict[PeerId, dict[SegmentName, int]]
    replicas: int
    room_bytes: dict[PeerId, int]
    local: frozenset[SegmentName]
    distrusted: dict[PeerId, frozenset[SegmentName]]
    away: frozenset[PeerId]

    def plan(self) -> RepairPlan:
        return plan_repair(
            self.needed,
            self.held,
            self.placement,
            self.replicas,
            self.room_bytes,
            self.local,
            self.distrusted,
            self.away,
        )

    def is_good(self, holder: PeerId, name: SegmentName) -> bool:
        return self.held.get(holder, {}).get(name) == self.needed[name] and name not in self.distrusted.get(holder, ())

    def holders(self, name: SegmentName) -> set[PeerId]:
        """Sites whose copies count."""
        return {site.peer for site in self.placement.sites if self.is_good(site.peer, name)}

    def readable(self, name: SegmentName) -> set[PeerId]:
        return {holder for holder in self.held if self.is_good(holder, name)} - self.away

    def copies(self, name: SegmentName) -> int:
        return len(self.holders(name) | self.readable(name)) + (name in self.local)

    def takers(self, name: SegmentName) -> set[PeerId]:
        """Sites that could be sent a copy."""
        return {
            site.peer
            for site in self.placement.sites
            if site.peer in self.held
            and site.peer not in self.away
            and self.room_bytes.get(site.peer, -1) >= self.needed[name]
            and not self.is_good(site.peer, name)
        }

    def zone(self, holder: PeerId) -> int:
        return self.placement.zones[self.placement.indexes[holder]]

    def zones(self, holders: set[PeerId]) -> set[int]:
        return {self.zone(holder) for holder in holders}

    def sent(self, name: SegmentName, dest: PeerId) -> World:
        """The world in which one copy has arrived."""
        return replace(
            self,
            held={**self.held, dest: {**self.held[dest], name: self.needed[name]}},
            room_bytes={**self.room_bytes, dest: self.room_bytes[dest] - self.needed[name]},
            distrusted={**self.distrusted, dest: self.distrusted.get(dest, frozenset()) - {name}},
        )


def subsets(of: list[PeerId]) -> st.SearchStrategy[frozenset[PeerId]]:
    return st.frozensets(st.sampled_from(of), max_size=2)


names = st.sampled_from(SEGMENTS)


@st.composite
def worlds(draw: st.DrawFn) -> World:
    zones = draw(st.lists(st.sampled_from(["", "a", "b", "c"]), min_size=SITES, max_size=SITES))
    needed = draw(st.dictionaries(names, st.integers(1, 4), max_size=8))
    here = {name: draw(st.sampled_from(["right", "right", "right", "wrong"])) for name in needed}
    held: dict[PeerId, dict[SegmentName, int]] = {}
    for answering in sorted(set(PEERS) - draw(subsets(PEERS))):
        of_peer = draw(st.frozensets(names, max_size=6))
        held[answering] = {
            name: needed.get(name, 3) + (here.get(name) == "wrong" and draw(st.booleans())) for name in of_peer
        }
    return World(
        Placement(Site(peer(number), 1 + number, zones[number]) for number in range(SITES)),
        needed,
        held,
        draw(st.integers(1, 4)),
        draw(st.dictionaries(st.sampled_from(PEERS), st.integers(0, 12))),
        draw(st.frozensets(names)),
        draw(st.dictionaries(st.sampled_from(PEERS), st.frozensets(names, max_size=3), max_size=3)),
        draw(subsets(PEERS)),
    )


@given(worlds())
def test_after_the_plan_nothing_more_can_be_done(world: World) -> None:
    made = world.plan()
    after = world
    for copy in made.copies:
        assert copy.size_bytes == world.needed[copy.name]
        assert copy.dest in after.takers(copy.name)
        assert set(copy.sources) == world.readable(copy.name)
        assert copy.sources or copy.name in world.local
        after = after.sent(copy.name, copy.dest)
        assert after.room_bytes[copy.dest] >= 0
    for name in world.needed:
        count = len(after.holders(name))
        is_readable = bool(world.readable(name)) or name in world.local
        assert (name in made.lost) == (count == 0 and not is_readable)
        assert made.short.get(name, 0) == (0 if name in made.lost else max(0, world.replicas - count))
        if is_readable and count < world.replicas:
            assert not after.takers(name)
        if is_readable and world.replicas > 1 and len(after.zones(after.holders(name))) == 1:
            assert after.zones(after.takers(name)) <= after.zones(after.holders(name))
    again = after.plan()
    assert again.copies == []
    assert (again.short, again.lost) == (made.short, made.lost)


@given(worlds())
def test_no_copy_without_a_reason_and_the_rarest_first(world: World) -> None:
    made = world.plan()
    after = world
    ranks: list[tuple[bool, int]] = []
    for copy in made.copies:
        holders = after.holders(copy.name)
        is_enough = len(holders) >= world.replicas
        if is_enough:
            assert len(after.zones(holders)) == 1
            assert world.holders(copy.name) == holders
        takers = after.takers(copy.name)
        elsewhere = {taker for taker in takers if after.zone(taker) not in after.zones(holders)}
        assert not is_enough or elsewhere
        nearest = next(site.peer for site in world.placement.ranking(copy.name) if site.peer in (elsewhere or takers))
        assert copy.dest == nearest
        ranks.append((is_enough, 0 if is_enough else after.copies(copy.name)))
        after = after.sent(copy.name, copy.dest)
    assert ranks == sorted(ranks)
    assert max(Counter((copy.name, copy.dest) for copy in made.copies).values(), default=1) == 1


@given(worlds())
def test_surplus_can_go_without_harm(world: World) -> None:
    surplus = world.plan().surplus
    assert all(surplus.values())
    fewer = replace(
        world,
        held={
            holder: {name: size for name, size in held.items() if name not in surplus.get(holder, ())}
            for holder, held in world.held.items()
        },
    )
    for name in world.needed:
        before = world.holders(name) - world.away
        going = {holder for holder, names_ in surplus.items() if name in names_}
        staying = before - going
        assert going <= world.readable(name)
        assert bool(going) == (len(before) >= world.replicas and len(world.readable(name)) > world.replicas)
        if going:
            assert len(staying) == world.replicas
            assert len(world.zones(staying)) == min(world.replicas, len(world.zones(before)))
            assert going.isdisjoint(site.peer for site in world.placement.chosen(name, world.replicas))
    assert fewer.plan().surplus == {}
    assert {copy.name for copy in fewer.plan().copies} <= {copy.name for copy in world.plan().copies}


@given(worlds(), st.randoms(use_true_random=False))
def test_the_order_of_what_is_given_says_nothing(world: World, chance: random.Random) -> None:
    def shuffled(mapping: dict[PeerId, int]) -> dict[PeerId, int]:
        items = list(mapping.items())
        chance.shuffle(items)
        return dict(items)

    peers = list(world.held)
    wanted = list(world.needed)
    chance.shuffle(peers)
    chance.shuffle(wanted)
    other = plan_repair(
        {name: world.needed[name] for name in wanted},
        {holder: dict(reversed(world.held[holder].items())) for holder in peers},
        world.placement,
        world.replicas,
        shuffled(world.room_bytes),
        sorted(world.local),
        {holder: sorted(bad, reverse=True) for holder, bad in world.distrusted.items()},
        sorted(world.away),
    )
    assert other == world.plan()
