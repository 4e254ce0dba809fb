"""What the pool knows of its connections: who they lead to, what they do, and how many of each kind there are.

    opening    being dialled
    idle       open, and nobody's
    checking   open, and being pinged before it is used again
    shared     used by some who do not mind each other
    exclusive  used by one
    draining   closed for new requests while some still wait for answers on it; it is closed when they are through
    closing    told to close; it counts until it is gone

Counts, the lists by peer and the order of the idle ones change in one place, `Records.enter`; `Records.audit` counts
again.  Pure: no time, no I/O.
"""

from __future__ import annotations

import enum
from collections import OrderedDict
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import Final, NewType

from vaultfs.errors import UsageError
from vaultfs.ids import PeerId

ConnectionId = NewType("ConnectionId", int)
"""Counts up; never used twice by a pool."""

LeaseId = NewType("LeaseId", int)
"""Counts up in the order of the requests; the name of a wish for a connection, and then of its use."""


@dataclass(frozen=True)
class PoolLimits:
    """How much a pool may hold, and how long.

    Attributes:
        max_per_peer: connections to one peer, those that are being dialled or closed included.
        max_total: connections in all, counted in the same way.
        max_idle: of these, so many may be nobody's; more are closed, the least recently used first.
        pipeline_depth: so many may share one connection.
        idle_timeout_s: a connection nobody used for so long is closed.
        health_check_after_s: a connection nobody used for so long is pinged before it is used again.
        ping_timeout_s: a ping has to be answered within this.
        connect_timeout_s: a dial has to succeed within this.
        close_timeout_s: a polite end has to be done within this.
        wait_s: a lease waits so long at most if it does not say otherwise.

    Raises:
        UsageError: they make no sense.
    """

    max_per_peer: int = 4
    max_total: int = 64
    max_idle: int = 16
    pipeline_depth: int = 32
    idle_timeout_s: float = 300.0
    health_check_after_s: float = 30.0
    ping_timeout_s: float = 2.0
    connect_timeout_s: float = 10.0
    close_timeout_s: float = 3.0
    wait_s: float = 60.0

    def __post_init__(self) -> None:
        times_s = (self.idle_timeout_s, self.ping_timeout_s, self.connect_timeout_s, self.close_timeout_s, self.wait_s)
        if (
            not 1 <= self.max_per_peer <= self.max_total
            or not 0 <= self.max_idle <= self.max_total
            or self.pipeline_depth < 1
            or self.health_check_after_s < 0
            or not all(time_s > 0 for time_s in times_s)
        ):
            raise UsageError(f"these limits for connections to peers make no sense: {self}")


@dataclass(frozen=True)
class PoolCounters:
    """What a pool holds now, and did since it began.

    Attributes:
        open: connections, those being pinged or closed included, those being dialled not.
        idle: of these, nobody's.
        leases: connections handed out; several may be one shared connection.
        waiting: leases that were asked for and have no connection yet.
        opened: dials that succeeded.
        reused: leases of a connection that was idle, after somebody else.
        shared: leases that joined others.
        closed_idle: connections closed because nobody used them, or because there were too many of those.
        closed_stale: idle connections that proved to be closed or dead.
        evicted: connections given up for another peer's place.
        timeouts: leases that waited too long.
        waited: leases that were not served at once.
    """

    open: int = 0
    opening: int = 0
    idle: int = 0
    leases: int = 0
    waiting: int = 0
    opened: int = 0
    open_failures: int = 0
    reused: int = 0
    shared: int = 0
    pings: int = 0
    ping_failures: int = 0
    closed_idle: int = 0
    closed_stale: int = 0
    evicted: int = 0
    timeouts: int = 0
    waited: int = 0


@dataclass(slots=True)
class PoolTotals:
    """What a pool did since it began, as in `PoolCounters`."""

    opened: int = 0
    open_failures: int = 0
    reused: int = 0
    shared: int = 0
    pings: int = 0
    ping_failures: int = 0
    closed_idle: int = 0
    closed_stale: int = 0
    evicted: int = 0
    timeouts: int = 0
    waited: int = 0


class State(enum.Enum):
    """What a connection does."""

    OPENING = enum.auto()
    IDLE = enum.auto()
    CHECKING = enum.auto()
    SHARED = enum.auto()
    EXCLUSIVE = enum.auto()
    DRAINING = enum.auto()
    CLOSING = enum.auto()


@dataclass(eq=False, slots=True)
class Record:
    """A connection.

    Attributes:
        is_trial: it is being dialled, and nobody else may dial this peer until that is decided.
        was_used: somebody had it before.
        is_doubted: it is idle, and another one of its peer was lost in use since; it is pinged before it is used.
        idle_since_s: when it was used last, or answered a ping.
        leases: whose it is.
    """

    id: ConnectionId
    peer: PeerId
    state: State
    is_trial: bool = False
    was_used: bool = False
    is_doubted: bool = False
    idle_since_s: float = 0.0
    leases: set[LeaseId] = field(default_factory=set)


class Records:
    """All connections of a pool."""

    def __init__(self) -> None:
        self._all: Final[dict[ConnectionId, Record]] = {}
        self._by_peer: Final[dict[PeerId, dict[ConnectionId, Record]]] = {}
        self._idle: Final[OrderedDict[ConnectionId, Record]] = OrderedDict()
        self._counts: Final = [0] * (len(State) + 1)
        self._last_id = 0

    def __len__(self) -> int:
        return len(self._all)

    def __iter__(self) -> Iterator[Record]:
        return iter(tuple(self._all.values()))

    def get(self, connection: ConnectionId) -> Record | None:
        """A connection; None if it is gone."""
        return self._all.get(connection)

    def count(self, state: State) -> int:
        """How many connections do this."""
        return self._counts[state.value]

    def of(self, peer: PeerId) -> Collection[Record]:
        """A peer's connections, in the order in which they were dialled."""
        return self._by_peer.get(peer, {}).values()

    def longest_idle(self) -> Record | None:
        """The connection that nobody used for the longest time."""
        return next(iter(self._idle.values()), None)

    def best(self, peer: PeerId, depth: int) -> tuple[Record | None, Record | None]:
        """The peer's idle connection that was used last, and its least shared one, if fewer than ``depth`` share it."""
        idle = None
        shared = None
        for record in self.of(peer):  # a few; one loop, because every decision begins here
            if record.state is State.IDLE:
                if idle is None or record.idle_since_s >= idle.idle_since_s:
                    idle = record
            elif record.state is State.SHARED:
                users = len(record.leases)
                if users < depth and (shared is None or users < len(shared.leases)):
                    shared = record
        return idle, shared

    def coming(self, peer: PeerId) -> int:
        """How many of the peer's connections are being dialled or pinged."""
        return sum(record.state is State.OPENING or record.state is State.CHECKING for record in self.of(peer))

    def add(self, peer: PeerId, *, is_trial: bool) -> Record:
        """A new connection, which is being dialled."""
        self._last_id += 1
        record = Record(ConnectionId(self._last_id), peer, State.OPENING, is_trial)
        self._all[record.id] = record
        self._by_peer.setdefault(peer, {})[record.id] = record
        self._counts[State.OPENING.value] += 1
        return record

    def enter(self, record: Record, state: State) -> None:
        """It does something else now."""
        self._counts[record.state.value] -= 1
        self._counts[state.value] += 1
        record.state = state
        self._idle.pop(record.id, None)
        if state is State.IDLE:
            self._idle[record.id] = record

    def remove(self, record: Record) -> None:
        """It is gone."""
        del self._all[record.id]
        self._counts[record.state.value] -= 1
        self._idle.pop(record.id, None)
        siblings = self._by_peer[record.peer]
        del siblings[record.id]
        if not siblings:
            del self._by_peer[record.peer]

    def audit(self, limits: PoolLimits) -> list[str]:
        """What is wrong, by counting all again; nothing if all is well."""
        states = [record.state for record in self._all.values()]
        wrong = [
            f"{states.count(state)} connections are {state.name}, not {self._counts[state.value]}"
            for state in State
            if states.count(state) != self._counts[state.value]
        ]
        if {id(record) for of in self._by_peer.values() for record in of.values()} != {
            id(record) for record in self._all.values()
        }:
            wrong.append("the lists by peer hold other connections than the list of all")
        idle = list(self._idle.values())
        if {record.id for record in idle} != {key for key, record in self._all.items() if record.state is State.IDLE}:
            wrong.append("the list of idle connections holds others")
        if idle != sorted(idle, key=lambda record: record.idle_since_s):
            wrong.append("the list of idle connections is out of order")
        if len(self._all) > limits.max_total:
            wrong.append(f"{len(self._all)} connections, more than {limits.max_total}")
        if len(idle) > limits.max_idle:
            wrong.append(f"{len(idle)} idle connections, more than {limits.max_idle}")
        wrong += [
            f"{len(of)} connections to one peer, with a limit of {limits.max_per_peer}"
            for of in self._by_peer.values()
            if not 0 < len(of) <= limits.max_per_peer
        ]
        depth = limits.pipeline_depth
        most_leases = {State.SHARED: depth, State.DRAINING: depth, State.EXCLUSIVE: 1}
        for record in self._all.values():
            most = most_leases.get(record.state, 0)
            if not min(most, 1) <= len(record.leases) <= most:
                wrong.append(f"{len(record.leases)} leases of a connection that is {record.state.name}")
        return wrong
