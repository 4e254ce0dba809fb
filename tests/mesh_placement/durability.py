"""How often segments are lost: a mesh in virtual time, with the real placement and the real repair plan, and formulas.

Peers die for good (their disks with them), go away and come back, and whole zones burn, all from one seed.  A repair
runs at fixed intervals.  It cannot tell a dead peer from an absent one: who is away counts as there until the grace
period is over, then its copies are made anew elsewhere.  A peer that has died is replaced by an empty one at that
moment, so that there are always as many.  What a peer can take in an hour is limited.

Nobody but the peers has the segments (the machine that wrote them is gone), which is the case that matters.  A segment
is lost when fewer than ``enough`` of its copies are left: 1 of R whole copies, or 4 of 7 shares.  The planner treats
shares as copies; to rebuild one, ``enough`` others have to be read, which together are as large as the segment.  So a
copy and a share take equally long.  A lost segment is replaced by a new one at once, so that there are always as many.
"""

from __future__ import annotations

import heapq
import itertools
import math
import random
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Final

from vaultfs.ids import PeerId, SegmentName
from vaultfs.mesh.placement import Placement, Site
from vaultfs.mesh.repair_plan import Copy, RepairPlan, plan_repair

from .fabricated import peer, segment

YEAR_H: Final = 8766.0


@dataclass(frozen=True)
class Mesh:
    """What is simulated.

    Attributes:
        peers: how many there are.
        segments: how many there are.
        shares: copies wanted of each.
        enough: copies that give a segment back.
        mttf_h: a peer's mean life.
        repair_every_h: from one repair to the next.
        grace_h: so long a peer that is away is expected back.
        shape: of the Weibull distribution of lives; 1 is the exponential one, less means that many die young.
        present_h, absent_h: mean times between and of absences; no absences if ``absent_h`` is 0.
        copies_per_h: how many segments a peer can take.
        zones: peers are spread evenly over so many; 0 if each is one of its own.
        zone_mttf_h: mean time from one loss of a zone, with all its peers, to the next; 0 if none is.
        are_zones_known: whether the placement is told of them.
    """

    peers: int
    segments: int
    shares: int
    enough: int
    mttf_h: float
    repair_every_h: float
    grace_h: float = 0.0
    shape: float = 1.0
    present_h: float = 0.0
    absent_h: float = 0.0
    copies_per_h: float = math.inf
    zones: int = 0
    zone_mttf_h: float = 0.0
    are_zones_known: bool = True


@dataclass
class Outcome:
    """What happened.

    Attributes:
        hours: simulated.
        segments: how many there were at each moment.
        losses: how many segments were lost, at each moment at which some were.
        deaths: peers that died.
        copies: made by repairs.
        plans: how often there was something to plan.
    """

    hours: float
    segments: int
    losses: list[int] = field(default_factory=list)
    deaths: int = 0
    copies: int = 0
    plans: int = 0

    @property
    def lost(self) -> int:
        return sum(self.losses)

    @property
    def lost_per_segment_year(self) -> float:
        """The share of all segments that is lost in a year."""
        return self.lost / self.segments / self.hours * YEAR_H

    @property
    def deviation(self) -> float:
        """The standard deviation of `lost`: losses come in independent groups, each of one moment."""
        return math.sqrt(sum(count**2 for count in self.losses))

    @property
    def vault_losses_per_year(self) -> float:
        """How often a year something is lost, if it is made good each time."""
        return len(self.losses) / self.hours * YEAR_H

    @property
    def copies_per_segment_year(self) -> float:
        """What repairs send, in copies."""
        return self.copies / self.segments / self.hours * YEAR_H


@dataclass(eq=False)
class Peer:
    id: PeerId
    zone: int
    held: set[SegmentName] = field(default_factory=set)
    is_alive: bool = True
    absent_since_h: float | None = None


class Simulation:
    """One mesh with one seed.

    Args:
        mesh: what is simulated.
        seed: of all chance in it.
    """

    def __init__(self, mesh: Mesh, seed: int) -> None:
        self._mesh: Final = mesh
        self._chance: Final = random.Random(seed)
        self._now_h = 0.0
        self._order: Final = itertools.count()
        self._events: list[tuple[float, int, str, Peer | None, Copy | None]] = []
        self._peer_numbers: Final = itertools.count()
        self._segment_numbers: Final = itertools.count()
        self._needed: Final[dict[SegmentName, int]] = {}
        self._copies: Final[Counter[SegmentName]] = Counter()
        self._outcome = Outcome(0.0, mesh.segments)
        self._room: Final = 3 * -(-mesh.segments * mesh.shares // mesh.peers)
        self._seen: list[int] = []
        self._is_unfinished = False

        self._peers = [self._new_peer(number % mesh.zones if mesh.zones else number) for number in range(mesh.peers)]
        for each in self._peers:
            self._schedule(self._residual_life_h(), "death", each)
        self._placement = self._place()
        self._by_id = {each.id: each for each in self._peers}
        self._add_segments(mesh.segments)
        self._schedule(mesh.repair_every_h, "repair")
        if mesh.zone_mttf_h:
            self._schedule(self._chance.expovariate(1 / mesh.zone_mttf_h), "disaster")

    def run(self, hours: float) -> Outcome:
        """Let so much time pass; return what happened meanwhile."""
        self._outcome = Outcome(hours, self._mesh.segments)
        end_h = self._now_h + hours
        while self._events[0][0] <= end_h:
            self._now_h, _, kind, subject, copy = heapq.heappop(self._events)
            if kind == "repair":
                self._repair()
            elif kind == "disaster":
                self._burn()
            elif subject is not None and subject.is_alive:
                if kind == "death":
                    self._die([subject])
                elif kind == "leaving":
                    self._leave(subject)
                elif kind == "return":
                    self._come_back(subject)
                elif copy is not None:  # an arrival
                    self._arrive(subject, copy)
        self._now_h = end_h
        return self._outcome

    def check(self) -> None:
        """Count everything again: no copy is on a dead peer only, and no segment is there with too few."""
        counted = Counter(name for each in self._peers if each.is_alive for name in each.held)
        assert len(self._needed) == self._mesh.segments
        for name in self._needed:
            assert self._mesh.enough <= counted[name] == self._copies[name]
        assert counted.keys() == self._needed.keys()

    def _schedule(self, after_h: float, kind: str, subject: Peer | None = None, copy: Copy | None = None) -> None:
        heapq.heappush(self._events, (self._now_h + after_h, next(self._order), kind, subject, copy))

    def _life_h(self) -> float:
        scale = self._mesh.mttf_h / math.gamma(1 + 1 / self._mesh.shape)
        return self._chance.weibullvariate(scale, self._mesh.shape)

    def _residual_life_h(self) -> float:
        """Of a peer that has been replaced again and again for long: the first ones are not all new."""
        left_h = -10 * self._mesh.mttf_h
        while left_h <= 0:
            left_h += self._life_h()
        return left_h

    def _new_peer(self, zone: int) -> Peer:
        new = Peer(peer(next(self._peer_numbers)), zone)
        if self._mesh.absent_h:
            self._schedule(self._chance.expovariate(1 / self._mesh.present_h), "leaving", new)
        return new

    def _place(self) -> Placement:
        are_known = self._mesh.zones and self._mesh.are_zones_known
        return Placement(Site(each.id, 1 << 40, f"zone {each.zone}" if are_known else "") for each in self._peers)

    def _add_segments(self, count: int) -> None:
        """Put new segments where they belong, at once, from a machine that has them."""
        new = {segment(next(self._segment_numbers)): 1 for _ in range(count)}
        self._needed.update(new)
        for copy in self._plan(new, new).copies:
            self._put(self._by_id[copy.dest], copy.name)

    def _plan(self, needed: dict[SegmentName, int], local: dict[SegmentName, int]) -> RepairPlan:
        holdings = {}
        away = []
        for each in self._peers:
            if self._is_expected(each):
                holdings[each.id] = each.held
                if each.absent_since_h is not None:
                    away.append(each.id)
        room = {each.id: self._room - len(each.held) for each in self._peers}
        return plan_repair(needed, holdings, self._placement, self._mesh.shares, room, local, {}, away)

    def _is_expected(self, each: Peer) -> bool:
        return each.absent_since_h is None or self._now_h - each.absent_since_h < self._mesh.grace_h

    def _put(self, dest: Peer, name: SegmentName) -> None:
        if name not in dest.held:
            dest.held.add(name)
            self._copies[name] += 1

    def _die(self, dying: list[Peer]) -> None:
        """All of these, together."""
        hurt: set[SegmentName] = set()
        for each in dying:
            each.is_alive = False
            each.absent_since_h = self._now_h if each.absent_since_h is None else each.absent_since_h
            self._copies.subtract(each.held)
            hurt |= each.held
        self._outcome.deaths += len(dying)
        lost = {name for name in hurt if name in self._needed and self._copies[name] < self._mesh.enough}
        if not lost:
            return
        self._outcome.losses.append(len(lost))
        for name in lost:
            del self._needed[name]
            del self._copies[name]
        for each in self._peers:
            each.held -= lost
        self._add_segments(len(lost))

    def _leave(self, leaving: Peer) -> None:
        leaving.absent_since_h = self._now_h
        self._schedule(self._chance.expovariate(1 / self._mesh.absent_h), "return", leaving)

    def _come_back(self, coming: Peer) -> None:
        coming.absent_since_h = None
        self._schedule(self._chance.expovariate(1 / self._mesh.present_h), "leaving", coming)

    def _burn(self) -> None:
        burning = self._chance.randrange(self._mesh.zones)
        self._die([each for each in self._peers if each.zone == burning and each.is_alive])
        self._schedule(self._chance.expovariate(1 / self._mesh.zone_mttf_h), "disaster")

    def _repair(self) -> None:
        self._replace_the_dead()
        seen = [0 if each.absent_since_h is None else 1 + self._is_expected(each) for each in self._peers]
        if self._is_unfinished or seen != self._seen:
            self._seen = seen
            self._outcome.plans += 1
            made = self._plan(self._needed, {})
            self._send(made)
            for holder, names in made.surplus.items():
                self._copies.subtract(names)
                self._by_id[holder].held -= names
        self._schedule(self._mesh.repair_every_h, "repair")

    def _replace_the_dead(self) -> None:
        gone = [each for each in self._peers if not each.is_alive and not self._is_expected(each)]
        if not gone:
            return
        for each in gone:
            new = self._new_peer(each.zone)
            self._schedule(self._life_h(), "death", new)
            self._peers[self._peers.index(each)] = new
        self._by_id = {each.id: each for each in self._peers}
        self._placement = self._place()
        self._is_unfinished = True

    def _send(self, made: RepairPlan) -> None:
        """Send as much as there is time for until the next repair, the most urgent first."""
        self._is_unfinished = bool(made.short or made.surplus)
        sent: defaultdict[PeerId, int] = defaultdict(int)
        for copy in made.copies:
            after_h = (sent[copy.dest] + 1) / self._mesh.copies_per_h
            if after_h > self._mesh.repair_every_h:
                self._is_unfinished = True
                continue
            sent[copy.dest] += 1
            dest = self._by_id[copy.dest]
            if after_h:
                self._is_unfinished = True  # it may fail on the way
                self._schedule(after_h, "arrival", dest, copy)
            else:
                self._arrive(dest, copy)

    def _arrive(self, dest: Peer, copy: Copy) -> None:
        readable = [self._by_id.get(source) for source in copy.sources]
        present = sum(each is not None and each.absent_since_h is None for each in readable)
        if dest.absent_since_h is None and present >= self._mesh.enough and copy.name in self._needed:
            self._put(dest, copy.name)
            self._outcome.copies += 1


def markov_loss_per_year(shares: int, enough: int, mttf_h: float, replaced_after_h: float) -> float:
    """The closed form: how often a year a segment is lost, if ``replaced_after_h`` is short against ``mttf_h``.

    A Markov chain of the number of copies: each dies at the rate 1/MTTF, each missing one is replaced at the rate 1/D::

        k C(n, k) (1/MTTF) (D/MTTF)^(n - k)

    It is the chance that exactly k are left, times the rate at which one of these dies.
    """
    ways = enough * math.comb(shares, enough)
    return ways * (replaced_after_h / mttf_h) ** (shares - enough) * YEAR_H / mttf_h


def expected_loss_per_year(mesh: Mesh) -> float:
    """The same for repairs at fixed intervals: they mend what died more than the grace period before, all at once.

    A copy is missing at a time f after the last repair if it died within the last g + f hours.  Each dies once in
    MTTF + g + T/2 hours, for so long takes a life and its replacement.  What the closed form raises to a power is
    averaged afterwards, over f; and nothing is assumed to be short.
    """
    steps = 1000
    cycle_h = mesh.mttf_h + mesh.grace_h + mesh.repair_every_h / 2
    total = 0.0
    for step in range(steps):
        missing = (mesh.grace_h + mesh.repair_every_h * (step + 0.5) / steps) / cycle_h
        total += (1 - missing) ** mesh.enough * missing ** (mesh.shares - mesh.enough)
    ways = mesh.enough * math.comb(mesh.shares, mesh.enough)
    return ways * total / steps * YEAR_H / mesh.mttf_h


def expected_vault_losses_per_year(mesh: Mesh) -> float:
    """How often a year something of a vault is lost, if it is made good each time.

    What is deadly is a set of n - k + 1 peers that die together and hold copies of one segment.  A segment has
    C(n, n - k + 1) of these, of C(N, n - k + 1) that there are; with few peers, many segments have the same.
    """
    deadly = mesh.shares - mesh.enough + 1
    of_segment = math.comb(mesh.shares, deadly)
    of_mesh = math.comb(mesh.peers, deadly)
    unhurt = (1 - of_segment / of_mesh) ** mesh.segments
    return expected_loss_per_year(mesh) / of_segment * of_mesh * (1 - unhurt)
