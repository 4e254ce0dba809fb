"""Connections to peers, kept and shared: `open_pool`, and `Pool.lease` in it.

`PoolPolicy` decides; here its decisions are carried out, at once and without awaiting, so that between an event and
what follows from it nothing else can happen.  Every connection has a task of the pool, which dials it, lets it read
its answers and notices its end; pings and polite ends are tasks as well.  So a lease only ever waits to be served, and
when it is cancelled nothing is left half done.

The tasks are shielded: when the pool's surroundings are cancelled, connections go on until the block is left, so that
those who hold them can say what they must, and each end is polite.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from typing import Final, Generic, Protocol, TypeVar

import trio

from vaultfs.errors import RemoteError, RemoteUnreachableError, UsageError, VaultError
from vaultfs.ids import PeerId
from vaultfs.mesh.backoff import Breakers, BreakerState, Failure
from vaultfs.mesh.pool_actions import Abort, Action, Assign, Check, Fail, GiveUp, Open, Reason, SayGoodbye
from vaultfs.mesh.pool_policy import PoolPolicy
from vaultfs.mesh.pool_records import ConnectionId, LeaseId, PoolCounters, PoolLimits
from vaultfs.mesh.waiting import Waits, waiting_text

log = logging.getLogger(__name__)

__all__ = [
    "BreakerState",
    "Connection",
    "Connector",
    "Pool",
    "PoolCounters",
    "PoolLimits",
    "PoolSnapshot",
    "open_pool",
]


class Connection(Protocol):
    """An open connection to a peer.  The pool runs it; those who lease it make requests on it."""

    @property
    def is_closed(self) -> bool:
        """Whether it is of no more use: broken, closed by either end, or the peer has said goodbye.

        A connection whose last request was cut off, so that nobody knows what comes next on it, must say so here by the
        time the lease ends: the pool asks nobody else, whatever exception ends a lease.  Others who share it may go on
        until they are through; it is aborted then.
        """

    async def run(self) -> None:
        """Read answers until it is closed, and return.  Requests may be made a moment before this has begun.

        Nothing is raised when the network fails.  Cancelling it closes the connection.
        """

    async def ping(self) -> None:
        """Ask for a sign of life.

        Raises:
            RemoteError: there was none.
        """

    def abort(self) -> None:
        """Close it at once; `run` returns soon.  May be called again, and when it is closed."""

    async def aclose(self) -> None:
        """Say goodbye and close it.  Cancelling it leaves the connection for `abort`.

        Raises:
            RemoteError: the peer could not be told.
        """


_C = TypeVar("_C", bound=Connection)

Connector = Callable[[PeerId], Awaitable[_C]]
"""Dials a peer, and leaves nothing open if it fails or is cancelled.

Raises:
    VaultError: it cannot be reached, does not trust this machine, or makes no sense; a class of one argument, the text.
"""


@dataclass(frozen=True)
class PoolSnapshot:
    """What a pool is doing.

    Attributes:
        breakers: peers that fail; those that are not named do not.
    """

    counters: PoolCounters
    breakers: Mapping[PeerId, BreakerState]


@dataclass(eq=False, slots=True)
class _Claim(Generic[_C]):
    """Somebody's lease, and what came of it: a connection, or why there is none."""

    peer: PeerId
    wait_s: float
    connection: _C | None = None
    error: VaultError | None = None
    settled: trio.Event | None = None

    def settle(self, connection: _C | None, error: VaultError | None) -> None:
        self.connection, self.error = connection, error
        if self.settled is not None:
            self.settled.set()


class Pool(Generic[_C]):
    """Connections to peers.  `open_pool` makes it, begins it and ends it."""

    def __init__(
        self,
        connector: Connector[_C],
        limits: PoolLimits,
        breakers: Breakers,
        describe: Callable[[PeerId], str],
        nursery: trio.Nursery,
    ) -> None:
        self._connector: Final = connector
        self._limits: Final = limits
        self._describe: Final = describe
        self._nursery: Final = nursery
        self._connections: Final[dict[ConnectionId, _C]] = {}
        self._policy: Final = PoolPolicy(limits, breakers, lambda connection: self._connections[connection].is_closed)
        self._dials: Final[dict[ConnectionId, trio.CancelScope]] = {}
        self._claims: Final[dict[LeaseId, _Claim[_C]]] = {}
        self._scopes: Final[set[trio.CancelScope]] = set()
        self._ends: Final = trio.lowlevel.ParkingLot()
        self._waits: Final = Waits()
        self._alarm = trio.CancelScope()
        self._wait_alarm = trio.CancelScope()

    @asynccontextmanager
    async def lease(
        self, peer: PeerId, *, is_shared: bool = False, deadline_s: float | None = None
    ) -> AsyncIterator[_C]:
        """A connection to a peer, for the time of the block.

        Giving it back never awaits.  Whether it is used again is its own decision (`Connection.is_closed`), however the
        block ends, by an exception or cancellation too; to have it thrown away, call its ``abort``.  Do not ask for a
        second lease within the block: under load it may wait for the first.

        Args:
            peer: whose.
            is_shared: others may use it at the same time; for small requests.  A body has a connection alone.
            deadline_s: so many seconds it may take to get one, dialling included; `PoolLimits.wait_s` if None.

        Raises:
            RemoteUnreachableError: there was none in time, the peer cannot be reached, or the pool is closed.
            RemoteRefusedError: the peer does not trust this machine.
            VaultError: what dialling it last raised.
            UsageError: the deadline makes no sense.

        On cancellation while waiting, the place in the queue is given up; what was dialled for it goes to others.
        """
        wait_s = self._limits.wait_s if deadline_s is None else deadline_s
        if not wait_s >= 0:
            raise UsageError(f"nobody can wait {wait_s} seconds for a connection; wait for 0 seconds or more")
        await trio.lowlevel.checkpoint()  # now, while there is nothing to lose
        now_s = trio.current_time()
        lease, actions = self._policy.request(peer, is_shared=is_shared, now_s=now_s, deadline_s=now_s + wait_s)
        claim = self._claims[lease] = _Claim[_C](peer, wait_s)
        try:
            self._carry_out(actions)
            if claim.connection is None and claim.error is None:
                claim.settled = trio.Event()
                await claim.settled.wait()
            if claim.connection is None:
                raise claim.error or AssertionError("a lease was settled with nothing")
            yield claim.connection
        finally:
            del self._claims[lease]
            self._give_back(lease)

    @contextmanager
    def waiting(self, peer: PeerId) -> Iterator[None]:
        """Something is wanted of a peer in this block; if that takes long, it is told, once for each peer."""
        wait = self._waits.begin(peer, trio.current_time())
        self._wait_alarm.deadline = min(self._wait_alarm.deadline, self._waits.due_s())
        try:
            yield
        finally:
            self._waits.end(wait)

    def snapshot(self) -> PoolSnapshot:
        """What the pool holds and did, and which peers fail; also after its end."""
        return PoolSnapshot(self._policy.counters(), self._policy.breakers(trio.current_time()))

    def audit(self) -> list[str]:
        """What is wrong with the books; nothing if all is well.  For tests."""
        wrong = self._policy.audit()
        if len(self._connections) + len(self._dials) > len(self._scopes):
            wrong.append("a connection has no task")
        if len(self._connections) > self._policy.counters().open:
            wrong.append("connections that the policy does not know")
        return wrong

    def begin(self) -> None:
        """Begin to watch the time."""
        self._start(self._keep_time)
        self._start(self._tell_waits)

    async def end(self) -> None:
        """Fail those who wait, close everything, politely if that can be done in time, and end all tasks.

        Is shielded: cancellation does not shorten it.
        """
        self._carry_out(self._policy.close())
        with trio.CancelScope(deadline=trio.current_time() + self._limits.close_timeout_s, shield=True):
            while not self._policy.is_empty():
                await self._ends.park()
        for scope in self._scopes:
            scope.cancel()  # a task that ends aborts its connection

    # Decisions, carried out without awaiting

    def _give_back(self, lease: LeaseId) -> None:
        if self._policy.is_waiting(lease):
            self._carry_out(self._policy.cancelled(lease, trio.current_time()))
        elif self._policy.is_leased(lease):
            self._carry_out(self._policy.released(lease, trio.current_time()))

    def _gone(self, connection: ConnectionId) -> None:
        """A connection, or the attempt to make one, has ended."""
        self._dials.pop(connection, None)
        ended = self._connections.pop(connection, None)
        if ended is not None:
            ended.abort()
        self._carry_out(self._policy.closed(connection, trio.current_time()))
        self._ends.unpark_all()

    def _carry_out(self, actions: Iterable[Action]) -> None:
        for action in actions:
            match action:
                case Assign(lease, connection):
                    self._claims[lease].settle(self._connections[connection], None)
                case Open(connection, peer):
                    dial = trio.CancelScope(deadline=trio.current_time() + self._limits.connect_timeout_s)
                    self._dials[connection] = dial
                    self._start(self._attend, connection, peer, dial)
                case Check(connection):
                    self._start(self._check, connection, self._connections[connection])
                case GiveUp(connection):
                    self._dials.pop(connection).cancel()
                case SayGoodbye(connection):
                    self._start(self._say_goodbye, connection, self._connections[connection])
                case Abort(connection):
                    self._connections.pop(connection).abort()
                case Fail(lease):
                    self._claims[lease].settle(None, self._error(self._claims[lease], action))
        due_s = self._policy.due_s()
        self._alarm.deadline = min(self._alarm.deadline, due_s)

    def _error(self, claim: _Claim[_C], fail: Fail) -> VaultError:
        peer = self._describe(claim.peer)
        if fail.failure is not None:
            # A program that ends with this error tries nothing again; one that goes on has failed several times.
            is_long = fail.retry_in_s - fail.failure.took_s >= 1
            again = f"; it is tried again in {fail.retry_in_s:.0f} s" if is_long else ""
            return fail.failure.kind(f"{fail.failure.text}{again}")
        if fail.reason is Reason.TOO_LATE:
            return RemoteUnreachableError(
                f"no connection to {peer} was free within {claim.wait_s:g} s; try again later, or do less at once"
            )
        return RemoteUnreachableError(f"there is no connection to {peer}: this program is closing its connections")

    # Tasks

    def _start(self, work: Callable[..., Awaitable[None]], *args: object) -> None:
        scope = trio.CancelScope(shield=True)
        self._scopes.add(scope)
        self._nursery.start_soon(self._work, scope, work, args, name=work)

    async def _work(
        self, scope: trio.CancelScope, work: Callable[..., Awaitable[None]], args: tuple[object, ...]
    ) -> None:
        try:
            with scope:
                await work(*args)
        finally:
            self._scopes.remove(scope)

    async def _keep_time(self) -> None:
        while True:
            with trio.CancelScope(deadline=self._policy.due_s()) as self._alarm:
                await trio.sleep_forever()
            self._carry_out(self._policy.tick(trio.current_time()))

    async def _tell_waits(self) -> None:
        while True:
            with trio.CancelScope(deadline=self._waits.due_s()) as self._wait_alarm:
                await trio.sleep_forever()
            slow = self._waits.take_due(trio.current_time())
            if slow:
                log.warning("%s", waiting_text(slow, self._describe))

    async def _attend(self, connection: ConnectionId, peer: PeerId, dial: trio.CancelScope) -> None:
        """Dial, and then let the connection run until it is closed."""
        try:
            opened = await self._dial(connection, peer, dial)
            if opened is not None:
                await opened.run()
        finally:
            self._gone(connection)

    async def _dial(self, connection: ConnectionId, peer: PeerId, dial: trio.CancelScope) -> _C | None:
        opened = None
        failure = None
        began_s = trio.current_time()
        try:
            with dial, self.waiting(peer):
                opened = await self._connector(peer)
        except VaultError as error:
            failure = Failure(type(error), str(error), trio.current_time() - began_s)
        is_given_up = self._dials.pop(connection, None) is None
        if opened is not None and opened.is_closed:
            # As a success it would be dropped and dialled again at once, and so on without a pause.
            opened.abort()
            opened = None
            failure = Failure(
                RemoteUnreachableError, f"{self._describe(peer)} closed the connection as soon as it began"
            )
        if opened is not None:
            self._connections[connection] = opened
            self._carry_out(self._policy.opened(connection, trio.current_time()))
            return opened
        if failure is None and not is_given_up:
            text = f"{self._describe(peer)} did not answer within {self._limits.connect_timeout_s:g} s"
            failure = Failure(RemoteUnreachableError, text, trio.current_time() - began_s)
        if failure is not None:
            self._carry_out(self._policy.open_failed(connection, failure, trio.current_time()))
        return None

    async def _check(self, connection: ConnectionId, checked: _C) -> None:
        is_alive = False
        with suppress(RemoteError), trio.move_on_after(self._limits.ping_timeout_s):
            await checked.ping()
            is_alive = True
        self._carry_out(self._policy.checked(connection, trio.current_time(), is_alive=is_alive))

    async def _say_goodbye(self, connection: ConnectionId, leaving: _C) -> None:
        try:
            with suppress(RemoteError), trio.move_on_after(self._limits.close_timeout_s):
                await leaving.aclose()
        finally:
            self._gone(connection)


@asynccontextmanager
async def open_pool(
    connector: Connector[_C],
    limits: PoolLimits | None = None,
    *,
    describe: Callable[[PeerId], str],
    breakers: Breakers | None = None,
) -> AsyncIterator[Pool[_C]]:
    """A pool for the time of the block.

    When the block is left, however that is, those who wait for a connection get RemoteUnreachableError, connections are
    closed, in use or not, and no task is left.  That takes at most `PoolLimits.close_timeout_s`, cancelled or not.

    Args:
        connector: dials a peer.
        limits: how much it may hold, and how long; the defaults if None.
        describe: a peer's name for messages.
        breakers: what is known of peers that fail, if it shall outlive the pool.

    Raises:
        BaseExceptionGroup: the connector or a connection raised what it must not, and the block failed too.  One
            exception alone is raised as it is.
    """
    sole: BaseException | None = None
    try:
        async with trio.open_nursery() as nursery:
            pool = Pool(connector, limits or PoolLimits(), breakers or Breakers(), describe, nursery)
            pool.begin()
            try:
                yield pool
            finally:
                await pool.end()
    except BaseExceptionGroup as group:
        if len(group.exceptions) > 1:
            raise
        sole = group.exceptions[0]
    if sole is not None:
        raise sole
