"""A desk at which the policy's orders are carried out on paper, and each is checked against what a pool may do.

It keeps books of its own, from the orders alone, and after every event it looks for a lost wake-up: somebody who waits
although something could be done for him.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from vaultfs.errors import RemoteUnreachableError
from vaultfs.ids import PeerId
from vaultfs.mesh.backoff import Breakers, Failure, Gate
from vaultfs.mesh.pool_actions import Abort, Action, Assign, Check, Fail, GiveUp, Open, Reason, SayGoodbye
from vaultfs.mesh.pool_policy import PoolPolicy
from vaultfs.mesh.pool_records import ConnectionId, LeaseId, PoolLimits

A, B, C, D = (PeerId(bytes([letter]) * 32) for letter in b"ABCD")
DEAD = Failure(RemoteUnreachableError, "nobody is there")


class Doing(enum.Enum):
    DIALLED = enum.auto()
    OPEN = enum.auto()
    PINGED = enum.auto()
    LEAVING = enum.auto()


@dataclass
class Line:
    """A connection, on paper."""

    peer: PeerId
    doing: Doing = Doing.DIALLED
    leases: set[LeaseId] = field(default_factory=set)
    is_closed: bool = False
    free_since_s: float = 0.0
    is_doubted: bool = False


@dataclass
class Wish:
    peer: PeerId
    is_shared: bool
    deadline_s: float


class Desk:
    """Passes events to a policy, and carries out what it orders."""

    def __init__(self, limits: PoolLimits | None = None) -> None:
        self.limits = limits or PoolLimits()
        self.now_s = 1000.0
        self.lines: dict[ConnectionId, Line] = {}
        self.waiting: dict[LeaseId, Wish] = {}
        self.held: dict[LeaseId, ConnectionId] = {}
        self.wishes: dict[LeaseId, Wish] = {}
        self.failed: dict[LeaseId, Fail] = {}
        self.log: list[Action] = []
        self.policy = PoolPolicy(
            self.limits, Breakers(draw=lambda _, bound: bound), lambda connection: self.lines[connection].is_closed
        )

    # Events

    def ask(self, peer: PeerId, *, shared: bool = False, wait_s: float = 60.0) -> LeaseId:
        wish = Wish(peer, shared, self.now_s + wait_s)
        lease, actions = self.policy.request(peer, is_shared=shared, now_s=self.now_s, deadline_s=wish.deadline_s)
        self.wishes[lease] = self.waiting[lease] = wish
        self.do(actions)
        return lease

    def cancel(self, lease: LeaseId) -> None:
        del self.waiting[lease]
        self.do(self.policy.cancelled(lease, self.now_s))

    def release(self, lease: LeaseId) -> None:
        line = self.lines.get(self.held.pop(lease))
        if line is not None:
            line.leases.discard(lease)
            if line.is_closed:
                self._doubt_idle(line.peer)
            self._is_free(line)
        self.do(self.policy.released(lease, self.now_s))

    def open(self, connection: ConnectionId) -> None:
        line = self.lines[connection]
        if line.doing is Doing.DIALLED:
            line.doing = Doing.OPEN
        self._is_free(line)
        self.do(self.policy.opened(connection, self.now_s))

    def fail(self, connection: ConnectionId, failure: Failure = DEAD) -> None:
        del self.lines[connection]
        self.do(self.policy.open_failed(connection, failure, self.now_s))

    def answer(self, connection: ConnectionId, *, is_alive: bool) -> None:
        line = self.lines[connection]
        if is_alive:
            line.doing = Doing.OPEN
            self._is_free(line)
        self.do(self.policy.checked(connection, self.now_s, is_alive=is_alive))

    def end(self, connection: ConnectionId) -> None:
        line = self.lines.pop(connection)
        if line.leases:
            self._doubt_idle(line.peer)
        self.do(self.policy.closed(connection, self.now_s))

    def pass_time(self, for_s: float) -> None:
        """Ring whenever the policy asked for it."""
        end_s = self.now_s + for_s
        rings = 0
        while (due_s := self.policy.due_s()) <= end_s:
            rings += 1
            assert rings < 1000, "the policy asks again and again for the same time"
            self.now_s = max(due_s, self.now_s)
            self.do(self.policy.tick(self.now_s))
            assert self.policy.due_s() > self.now_s, "what was due was not done"
        self.now_s = end_s

    def close(self) -> None:
        self.held.clear()
        for line in self.lines.values():
            line.leases.clear()
        self.do(self.policy.close())

    # Shorthand

    def dialled(self, peer: PeerId | None = None) -> list[ConnectionId]:
        return self._that_are(Doing.DIALLED, peer)

    def pinged(self, peer: PeerId | None = None) -> list[ConnectionId]:
        return self._that_are(Doing.PINGED, peer)

    def leaving(self, peer: PeerId | None = None) -> list[ConnectionId]:
        return self._that_are(Doing.LEAVING, peer)

    def idle(self, peer: PeerId | None = None) -> list[ConnectionId]:
        return [connection for connection in self._that_are(Doing.OPEN, peer) if not self.lines[connection].leases]

    def have(self, peer: PeerId, *, shared: bool = False) -> LeaseId:
        """Ask, and dial if need be; the lease is held afterwards."""
        lease = self.ask(peer, shared=shared)
        while lease in self.waiting:
            for connection in self.leaving():
                self.end(connection)
            self.open(self.dialled(peer)[0])
        assert lease in self.held
        return lease

    def _that_are(self, doing: Doing, peer: PeerId | None) -> list[ConnectionId]:
        return [key for key, line in self.lines.items() if line.doing is doing and peer in {None, line.peer}]

    # Orders

    def do(self, actions: list[Action]) -> None:
        for action in actions:
            self.log.append(action)
            match action:
                case Assign(lease, connection):
                    self._assign(lease, connection)
                case Open(connection, peer):
                    assert connection not in self.lines
                    self._require_somebody_for_one_more(peer)
                    self.lines[connection] = Line(peer)
                case Check(connection):
                    line = self.lines[connection]
                    assert line.doing is Doing.OPEN
                    assert not line.leases
                    self._require_somebody_for_one_more(line.peer)
                    line.doing = Doing.PINGED
                case GiveUp(connection):
                    assert self.lines[connection].doing is Doing.DIALLED
                    self.lines[connection].doing = Doing.LEAVING
                case SayGoodbye(connection):
                    assert self.lines[connection].doing in {Doing.OPEN, Doing.PINGED, Doing.LEAVING}
                    assert not self.lines[connection].leases
                    self.lines[connection].doing = Doing.LEAVING
                case Abort(connection):
                    assert not self.lines.pop(connection).leases
                case Fail(lease, reason):
                    wish = self.waiting.pop(lease)
                    assert reason is not Reason.TOO_LATE or wish.deadline_s <= self.now_s
                    self.failed[lease] = action
        self.check()

    def _require_somebody_for_one_more(self, peer: PeerId) -> None:
        waiting = sum(wish.peer == peer for wish in self.waiting.values())
        assert waiting > len(self.dialled(peer)) + len(self.pinged(peer)), "nobody needs it"

    def _assign(self, lease: LeaseId, connection: ConnectionId) -> None:
        wish = self.waiting.pop(lease)
        line = self.lines[connection]
        assert line.peer == wish.peer
        assert line.doing is Doing.OPEN
        assert not line.is_closed
        assert lease not in self.held
        earlier = [before for key, before in self.waiting.items() if key < lease and before.peer == wish.peer]
        if line.leases:
            assert wish.is_shared
            assert all(self.wishes[other].is_shared for other in line.leases)
            assert len(line.leases) < self.limits.pipeline_depth
            coming = sum(
                of.peer == wish.peer and of.doing in {Doing.DIALLED, Doing.PINGED} for of in self.lines.values()
            )
            assert sum(not before.is_shared for before in earlier) <= coming + len(self.leaving()), (
                "it jumped the queue"
            )
        else:
            assert not self._needs_ping(line)
            assert not earlier, "it jumped the queue"
        line.leases.add(lease)
        self.held[lease] = connection

    # Books

    def _is_free(self, line: Line) -> None:
        line.free_since_s = self.now_s
        line.is_doubted = False

    def _doubt_idle(self, peer: PeerId) -> None:
        """One was lost in use, so the others of that peer may be too."""
        for connection in self.idle(peer):
            self.lines[connection].is_doubted = True

    def _needs_ping(self, line: Line) -> bool:
        return line.is_doubted or self.now_s - line.free_since_s > self.limits.health_check_after_s

    def check(self) -> None:
        assert self.policy.audit() == []
        limits = self.limits
        counters = self.policy.counters()
        assert counters.open + counters.opening == len(self.lines) <= limits.max_total
        assert counters.idle == len(self.idle()) <= limits.max_idle
        assert counters.leases == len(self.held)
        assert counters.waiting == len(self.waiting)
        for line in self.lines.values():
            assert sum(other.peer == line.peer for other in self.lines.values()) <= limits.max_per_peer
            if line.leases and not all(self.wishes[lease].is_shared for lease in line.leases):
                assert len(line.leases) == 1
        for peer in {wish.peer for wish in self.waiting.values()}:
            self._check_nobody_is_forgotten(peer)

    def _check_nobody_is_forgotten(self, peer: PeerId) -> None:
        waiting = [(lease, wish) for lease, wish in self.waiting.items() if wish.peer == peer]
        of_peer = [line for line in self.lines.values() if line.peer == peer]
        idle = [self.lines[connection] for connection in self.idle(peer)]
        assert all(self._needs_ping(line) for line in idle), "one was free"
        coming = len(self.dialled(peer)) + len(self.pinged(peer))
        bodies = sum(not wish.is_shared for _, wish in waiting)
        is_covered = coming > 0 and bodies <= coming
        is_full = len(self.lines) >= self.limits.max_total
        if waiting[0][1].is_shared and any(self._has_room(line) for line in of_peer):
            others = [lease for lease, wish in self.waiting.items() if wish.peer != peer and lease < waiting[0][0]]
            bodies_in_use = sum(not self.wishes[lease].is_shared for of in self.lines.values() for lease in of.leases)
            assert is_full, "it could join"
            assert len(others) > bodies_in_use, "it could join"
        if is_covered:
            return
        assert not idle, "one could be pinged"
        breaker = self.policy.breakers(self.now_s).get(peer)
        if breaker is not None and (breaker.state is Gate.OPEN or self.dialled(peer)):
            hopes = [line for line in of_peer if line.doing is not Doing.LEAVING]
            assert hopes, "it waits for nothing"
            return
        if breaker is not None and (coming or self.leaving()):
            return
        if len(of_peer) < self.limits.max_per_peer and not self.leaving():
            assert is_full, "one could be dialled"
            assert not self.idle(), "one could be closed for it"
            surplus = [
                key for key in self.dialled() if not any(w.peer == self.lines[key].peer for w in self.waiting.values())
            ]
            assert not surplus, "one could be given up for it"

    def _has_room(self, line: Line) -> bool:
        return (
            line.doing is Doing.OPEN
            and not line.is_closed
            and 0 < len(line.leases) < self.limits.pipeline_depth
            and all(self.wishes[lease].is_shared for lease in line.leases)
        )
