"""Who gets which connection, what is dialled, pinged and closed: all decisions of the pool, and no I/O.

`PoolPolicy` is told what happened and answers with what to do.  It never waits, and time is passed in.  After every
event it goes through those who wait, in the order in which they came, and each

 1. gets a connection to its peer that is free,
 2. or counts on one that is being dialled or pinged and on which no earlier one counts,
 3. or has one pinged, if nobody used it for long, or another of its peer was lost in use since,
 4. or has one dialled, if the limits and the peer's breaker allow,
 5. or has the least recently used idle connection of another peer closed, and counts on its place,
 6. or waits with nothing to count on.  Then so do all behind it that want the same peer, but nobody else.

**Sharing.**  A shared lease first joins a connection in shared use with less than a quarter of the allowed leases,
then takes an idle one (the most recently used: it is the likeliest to be alive, and the others grow old and are
closed), then joins any with room.  So a few small requests keep to one connection, and leave the idle ones to bodies,
which need one each; and a burst spreads before the last request on a connection waits long for the first.

**Fairness.**  Nobody joins a connection past somebody who waits for the same peer with nothing to count on.  Those who
wait for a place in the total are different: they need any one connection of any peer to end.  Bodies do, so sharing
goes on while there is a body for each of them; if not, nobody joins a shared connection until one has ended.

**What was dialled belongs to nobody.**  If the one who wanted it has gone, the next takes it, or it becomes idle.  It
is given up only when somebody else waits for its place.

**Failures.**  When a dial fails, those who wait for that peer fail with it, unless the peer has a connection that works
or may yet: then they wait for that, and a new dial is tried after the pause (`backoff`).
"""

from __future__ import annotations

import dataclasses
import heapq
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from vaultfs.ids import PeerId
from vaultfs.mesh.backoff import Breakers, BreakerState, Failure
from vaultfs.mesh.pool_actions import Abort, Action, Assign, Check, Fail, GiveUp, Open, Reason, SayGoodbye
from vaultfs.mesh.pool_queue import Waiter, WaiterQueue
from vaultfs.mesh.pool_records import (
    ConnectionId,
    LeaseId,
    PoolCounters,
    PoolLimits,
    PoolTotals,
    Record,
    Records,
    State,
)

_ENDING: Final = frozenset({State.DRAINING, State.CLOSING})
"""Nobody who waits gets such a connection."""


@dataclass(slots=True)
class _Prospects:
    """What those who wait for a peer may count on, in one round.

    Attributes:
        pending: connections being dialled or pinged on which nobody counts yet.
        room: so many shared leases may join those who count on something.
        places: connections that will be dialled when something else has ended.
    """

    pending: int
    room: int = 0
    places: int = 0


@dataclass(slots=True)
class _Round:
    """One pass through those who wait.

    Attributes:
        prospects: by peer.
        leaving: connections being closed on whose places nobody counts yet.
        placeless: how many want a place in the total, and have none to count on.
        gone: who was served or failed.
    """

    prospects: dict[PeerId, _Prospects]
    leaving: int
    placeless: int
    gone: list[LeaseId]


class PoolPolicy:
    """The decisions of one pool.

    Args:
        limits: how much it may hold, and how long.
        breakers: whom not to dial.
        is_closed: whether an open connection is broken or closed, by either end; asked before it is handed out and when
            it comes back.
    """

    def __init__(self, limits: PoolLimits, breakers: Breakers, is_closed: Callable[[ConnectionId], bool]) -> None:
        self._limits: Final = limits
        self._few: Final = max(1, limits.pipeline_depth // 4)
        self._breakers: Final = breakers
        self._is_closed: Final = is_closed
        self._records: Final = Records()
        self._queue: Final = WaiterQueue()
        self._leases: Final[dict[LeaseId, ConnectionId]] = {}
        self._totals: Final = PoolTotals()
        self._stuck: set[PeerId] = set()
        self._retry_at_s = math.inf
        self._last_lease = 0
        self._is_over = False
        self._actions: list[Action] = []

    # What happened

    def request(
        self, peer: PeerId, *, is_shared: bool, now_s: float, deadline_s: float
    ) -> tuple[LeaseId, list[Action]]:
        """Somebody wants a connection to a peer, until ``deadline_s``."""
        self._last_lease += 1
        lease = LeaseId(self._last_lease)
        if self._is_over:
            return lease, [Fail(lease, Reason.POOL_CLOSED)]
        self._queue.add(Waiter(lease, peer, is_shared, deadline_s))
        # Behind somebody who has nothing to count on there is nothing to decide: ten thousand who come at once must
        # not each go through the line.
        actions = [] if peer in self._stuck else self._settle(now_s)
        self._totals.waited += lease in self._queue
        return lease, actions

    def cancelled(self, lease: LeaseId, now_s: float) -> list[Action]:
        """Somebody who waits does not want it any more."""
        self._queue.remove(lease)
        return self._settle(now_s)

    def released(self, lease: LeaseId, now_s: float) -> list[Action]:
        """A connection is given back; if it is closed, nobody gets it again."""
        record = self._records.get(self._leases.pop(lease))
        if record is None:  # it broke meanwhile
            return []
        record.leases.remove(lease)
        if self._is_closed(record.id):
            self._doubt_idle(record.peer)
            self._retire(record)
        elif not record.leases:
            self._rest(record, now_s)
        return self._settle(now_s)

    def opened(self, connection: ConnectionId, now_s: float) -> list[Action]:
        """A dial succeeded."""
        record = self._known(connection)
        self._totals.opened += 1
        record.is_trial = False
        self._breakers.succeeded(record.peer)
        if record.state is State.CLOSING:  # it was given up, a moment too late
            self._actions.append(SayGoodbye(connection))
        else:
            self._rest(record, now_s)
        return self._settle(now_s)

    def open_failed(self, connection: ConnectionId, failure: Failure, now_s: float) -> list[Action]:
        """A dial failed."""
        record = self._known(connection)
        self._totals.open_failures += 1
        self._breakers.failed(record.peer, failure, now_s, is_trial=record.is_trial)
        self._records.remove(record)
        return self._settle(now_s)

    def checked(self, connection: ConnectionId, now_s: float, *, is_alive: bool) -> list[Action]:
        """A ping was answered, or not.  Nothing, if the connection is gone or told to close meanwhile."""
        record = self._records.get(connection)
        if record is None or record.state is not State.CHECKING:
            return []
        if is_alive:
            self._rest(record, now_s)
            return self._settle(now_s)
        self._totals.ping_failures += 1
        self._totals.closed_stale += 1
        self._drop(record)
        # The others were used even longer ago, or are doubted too: whatever ended this one has ended them, and each
        # would cost a time-out.
        for other in tuple(self._records.of(record.peer)):
            if other.state is State.IDLE and self._is_doubtful(other, now_s):
                self._totals.closed_stale += 1
                self._drop(other)
        return self._settle(now_s)

    def closed(self, connection: ConnectionId, now_s: float) -> list[Action]:
        """A connection is gone, for whatever reason.  Nothing, if that is known."""
        record = self._records.get(connection)
        if record is None:
            return []
        if record.is_trial:
            self._breakers.given_up(record.peer)
        if record.leases:
            self._doubt_idle(record.peer)
        self._totals.closed_stale += record.state in {State.IDLE, State.CHECKING}
        self._records.remove(record)
        return self._settle(now_s)

    def tick(self, now_s: float) -> list[Action]:
        """It is `due_s`, or later."""
        for lease in self._queue.overdue(now_s):
            self._totals.timeouts += 1
            self._actions.append(Fail(lease, Reason.TOO_LATE))
        while (record := self._records.longest_idle()) is not None and self._expires_s(record) <= now_s:
            self._totals.closed_idle += 1
            self._say_goodbye(record)
        return self._settle(now_s)

    def close(self) -> list[Action]:
        """It is over: everybody who waits fails, and every connection is closed, in use or not."""
        self._is_over = True
        for lease in self._queue.leases():
            self._queue.remove(lease)
            self._actions.append(Fail(lease, Reason.POOL_CLOSED))
        self._leases.clear()
        for record in self._records:
            record.leases.clear()
            if record.state is State.OPENING:
                self._give_up(record)
            elif record.state is not State.CLOSING:
                self._say_goodbye(record)
        return self._take_actions()

    # What is asked

    def due_s(self) -> float:
        """When `tick` has something to do; a time, infinite if only other events can change anything."""
        oldest = self._records.longest_idle()
        return min(
            self._queue.next_deadline_s(), self._retry_at_s, math.inf if oldest is None else self._expires_s(oldest)
        )

    def is_waiting(self, lease: LeaseId) -> bool:
        """Whether it has neither a connection nor an error yet."""
        return lease in self._queue

    def is_leased(self, lease: LeaseId) -> bool:
        """Whether it has a connection, be it broken, that was not given back."""
        return lease in self._leases

    def is_empty(self) -> bool:
        """Whether no connection is left."""
        return not self._records

    def counters(self) -> PoolCounters:
        """What there is now, and what was done."""
        opening = self._records.count(State.OPENING)
        return PoolCounters(
            open=len(self._records) - opening,
            opening=opening,
            idle=self._records.count(State.IDLE),
            leases=len(self._leases),
            waiting=len(self._queue),
            **dataclasses.asdict(self._totals),
        )

    def breakers(self, now_s: float) -> dict[PeerId, BreakerState]:
        """The peers that fail."""
        return self._breakers.states(now_s)

    def audit(self) -> list[str]:
        """What is wrong, by counting all again; nothing if all is well.  For tests."""
        wrong = self._records.audit(self._limits) + self._queue.audit()
        held = {lease: record.id for record in self._records for lease in record.leases}
        if not held.items() <= self._leases.items():
            wrong.append("a connection is held by leases that are not")
        if any(lease not in held and self._records.get(of) is not None for lease, of in self._leases.items()):
            wrong.append("a lease has a connection that does not know of it")
        if sum(len(record.leases) for record in self._records) != len(held):
            wrong.append("a lease has two connections")
        if any(lease in self._queue for lease in self._leases):
            wrong.append("a lease has a connection and waits for one")
        trials = [record.peer for record in self._records if record.is_trial]
        if len(trials) != len(set(trials)):
            wrong.append("two trials of one peer")
        if self._actions:
            wrong.append("actions that nobody was told")
        return wrong

    # Decisions

    def _settle(self, now_s: float) -> list[Action]:
        """Serve those who wait, in the order in which they came."""
        self._stuck = set()
        self._retry_at_s = math.inf
        if self._queue:
            self._serve(_Round({}, self._records.count(State.CLOSING), 0, []), now_s)
        while self._records.count(State.IDLE) > self._limits.max_idle:
            self._totals.closed_idle += 1
            self._say_goodbye(self._longest_idle())
        return self._take_actions()

    def _serve(self, this_round: _Round, now_s: float) -> None:
        heads = [(waiter.lease, waiter, line) for line in self._queue.lines() for waiter in (next(line),)]
        heapq.heapify(heads)  # by lease, which is the order of coming; no two are equal
        while heads:
            _, waiter, line = heapq.heappop(heads)
            if not self._place(waiter, this_round, now_s):
                self._stuck.add(waiter.peer)
            elif (behind := next(line, None)) is not None:
                heapq.heappush(heads, (behind.lease, behind, line))
        for lease in this_round.gone:
            self._queue.remove(lease)
        self._give_up_surplus(this_round)

    def _place(self, waiter: Waiter, this_round: _Round, now_s: float) -> bool:
        """Find something for one who waits; return whether it is served, has failed, or can count on something."""
        peer = waiter.peer
        may_join = waiter.is_shared and this_round.placeless <= self._records.count(State.EXCLUSIVE)
        record = self._ready(peer, now_s, may_join=may_join)
        if record is not None:
            self._assign(waiter, record)
            this_round.gone.append(waiter.lease)
            return True
        prospects = this_round.prospects.get(peer)
        if prospects is None:
            prospects = this_round.prospects[peer] = _Prospects(self._records.coming(peer))
        if waiter.is_shared and prospects.room:
            prospects.room -= 1
            return True
        if prospects.pending:
            prospects.pending -= 1
        elif (doubtful := self._records.best(peer, 0)[0]) is not None:
            self._totals.pings += 1
            self._records.enter(doubtful, State.CHECKING)
            self._actions.append(Check(doubtful.id))
        elif not self._breakers.may_dial(peer, now_s) or (prospects.places and not self._breakers.is_closed(peer)):
            return self._bear(waiter, this_round, now_s)
        elif len(self._records.of(peer)) + prospects.places >= self._limits.max_per_peer:
            return False
        elif len(self._records) < self._limits.max_total:
            record = self._records.add(peer, is_trial=self._breakers.dialling(peer))
            self._actions.append(Open(record.id, peer))
        elif not self._has_place(this_round):
            this_round.placeless += 1
            return False
        else:
            prospects.places += 1
        if waiter.is_shared:
            prospects.room += self._limits.pipeline_depth - 1
        return True

    def _ready(self, peer: PeerId, now_s: float, *, may_join: bool) -> Record | None:
        """A connection that can be had at once; those that prove to be closed are let go."""
        while True:
            idle, shared = self._records.best(peer, self._limits.pipeline_depth)
            if not may_join:
                shared = None
            if shared is not None and len(shared.leases) < self._few:
                record = shared
            elif idle is not None and not self._is_doubtful(idle, now_s):
                record = idle
            elif shared is not None:
                record = shared
            else:
                return None
            if not self._is_closed(record.id):
                return record
            self._totals.closed_stale += record is idle
            self._retire(record)

    def _assign(self, waiter: Waiter, record: Record) -> None:
        if record.state is State.SHARED:
            self._totals.shared += 1
        else:
            self._totals.reused += record.was_used
            self._records.enter(record, State.SHARED if waiter.is_shared else State.EXCLUSIVE)
        record.was_used = True
        record.leases.add(waiter.lease)
        self._leases[waiter.lease] = record.id
        self._actions.append(Assign(waiter.lease, record.id))

    def _bear(self, waiter: Waiter, this_round: _Round, now_s: float) -> bool:
        """The peer may not be dialled: fail, unless there is something to wait for."""
        failure, retry_at_s = self._breakers.last_failure(waiter.peer)
        places = this_round.prospects[waiter.peer].places
        if places or any(record.state not in _ENDING for record in self._records.of(waiter.peer)):
            if retry_at_s > now_s:
                self._retry_at_s = min(self._retry_at_s, retry_at_s)
            return False
        this_round.gone.append(waiter.lease)
        self._actions.append(Fail(waiter.lease, Reason.FAILURE, failure, max(0.0, retry_at_s - now_s)))
        return True

    def _has_place(self, this_round: _Round) -> bool:
        """Find a place in the total that will be free soon."""
        if this_round.leaving:
            this_round.leaving -= 1
            return True
        record = self._records.longest_idle()
        if record is None:
            return False
        self._totals.evicted += 1
        self._say_goodbye(record)
        return True

    def _give_up_surplus(self, this_round: _Round) -> None:
        """Some wait for a place in the total: stop dialling what nobody counts on, what was begun last first."""
        for record in reversed(tuple(self._records)):
            if not this_round.placeless:
                return
            if record.state is not State.OPENING:
                continue
            prospects = this_round.prospects.get(record.peer)
            if prospects is None:
                pass
            elif prospects.pending:
                prospects.pending -= 1
            else:
                continue
            this_round.placeless -= 1
            self._totals.evicted += 1
            self._give_up(record)

    # Small steps

    def _known(self, connection: ConnectionId) -> Record:
        record = self._records.get(connection)
        assert record is not None, f"connection {connection} is none of this pool"
        return record

    def _longest_idle(self) -> Record:
        record = self._records.longest_idle()
        assert record is not None, "idle connections were counted, and there is none"
        return record

    def _expires_s(self, idle: Record) -> float:
        return idle.idle_since_s + self._limits.idle_timeout_s

    def _doubt_idle(self, peer: PeerId) -> None:
        """One was lost in use: a peer that has gone silent must cost one time-out, and not one on each connection."""
        for record in self._records.of(peer):
            record.is_doubted |= record.state is State.IDLE

    def _is_doubtful(self, idle: Record, now_s: float) -> bool:
        return idle.is_doubted or now_s - idle.idle_since_s > self._limits.health_check_after_s

    def _rest(self, record: Record, now_s: float) -> None:
        record.idle_since_s = now_s
        record.is_doubted = False
        self._records.enter(record, State.IDLE)

    def _say_goodbye(self, record: Record) -> None:
        self._records.enter(record, State.CLOSING)
        self._actions.append(SayGoodbye(record.id))

    def _give_up(self, record: Record) -> None:
        self._records.enter(record, State.CLOSING)
        self._actions.append(GiveUp(record.id))

    def _retire(self, record: Record) -> None:
        """It is closed.  That may be a goodbye of the peer, which still answers what it was asked before."""
        if record.leases:
            self._records.enter(record, State.DRAINING)
        else:
            self._drop(record)

    def _drop(self, record: Record) -> None:
        self._records.remove(record)
        self._actions.append(Abort(record.id))

    def _take_actions(self) -> list[Action]:
        actions, self._actions = self._actions, []
        return actions
