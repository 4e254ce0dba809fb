"""Polls the FUSE device for some microseconds before the event loop sleeps, and makes a hot request cost no loop pass.

A program that works on small files sends its next request microseconds after it got the last answer.  To sleep in
between costs both sides a wake-up, several times the work itself.  pyfuse3 looks the name ``trio`` up in its own module
(its asyncio backend relies on that), so `installed` puts an object there that differs from trio in three things:

- ``lowlevel.wait_readable`` looks at the descriptor, for a bounded time that follows what paid off lately, before it
  delegates to trio.  It does not poll while another worker is in the middle of a request, because that one needs the
  loop (or the interpreter) to go on, and a daemon without requests never polls at all.
- ``Lock`` lets the worker that comes back take it again at once, without a pass of the scheduler.
- ``open_nursery`` keeps a worker that found no request, although the descriptor was readable (`_Workers`).

It also decides how many requests are under way at once (:mod:`vaultfs.fuse.admission`); pyfuse3 itself may have as many
workers as there are.

Under an endless stream of requests the loop still gets its turn every millisecond, so timers and other tasks run.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Generator, Iterator
from dataclasses import dataclass
from typing import Any, Final

import pyfuse3
import trio

from vaultfs.fuse.admission import Admission
from vaultfs.fuse.handshake import Relay

log = logging.getLogger(__name__)

TURN_NS: Final = 1_000_000
"""Longest time in nanoseconds for which requests are served without a pass of the event loop."""

LONGEST_POLL_NS: Final = 50_000
"""Longest time in nanoseconds for which one wait polls."""

NO_LIMIT: Final = 1 << 30
"""More workers than there will ever be."""

SHORTEST_POLL_NS: Final = 3_000
"""A budget below this is rounded down to one look."""


def _nothing() -> Generator[None, None, None]:
    yield from ()


class _Done:
    """Something to await that is done already; one object serves all, because an exhausted generator stays so."""

    __slots__ = ("_exhausted",)

    def __init__(self) -> None:
        self._exhausted = _nothing()
        next(self._exhausted, None)

    def __await__(self) -> Generator[None, None, None]:
        return self._exhausted


_DONE: Final = _Done()


class BargingLock:
    """A lock for tasks in which he who comes first takes it, even if others have been parked for longer.

    That is unfair, and right for workers that are all alike: the one that is awake goes on.  A release wakes one
    parked task at most, which parks again if it finds the lock taken; the next release then wakes one again, so no
    wake-up is lost.  Taking a free lock is no checkpoint.

    Args:
        on_wait: called when a task begins to wait for the lock.
    """

    __slots__ = ("_is_locked", "_is_waking", "_lot", "_on_wait")

    def __init__(self, on_wait: Callable[[], None] | None = None) -> None:
        self._on_wait = on_wait
        self._is_locked = False
        self._is_waking = False
        self._lot = trio.lowlevel.ParkingLot()

    def __aenter__(self) -> _Done | Coroutine[Any, Any, None]:
        if self._is_locked:
            return self._take_later()
        self._is_locked = True
        return _DONE

    def __aexit__(self, *_: object) -> _Done:
        self._is_locked = False
        if self._lot and not self._is_waking:
            self._is_waking = True
            self._lot.unpark()
        return _DONE

    @property
    def waiting(self) -> int:
        """Tasks that wait for the lock, the one that a release has chosen included."""
        return len(self._lot) + self._is_waking

    async def _take_later(self) -> None:
        while self._is_locked:
            if self._on_wait is not None:
                self._on_wait()
            await self._lot.park()  # whoever was chosen by a release comes out here even if cancelled meanwhile
            self._is_waking = False
        self._is_locked = True


@dataclass(slots=True)
class PollCounts:
    """What the poller did; for tests and for ``status``.

    Attributes:
        hits: waits that looking at the descriptor served.
        sleeps: waits that went to trio.
        turns: passes given to the event loop because a millisecond was over.
    """

    hits: int = 0
    sleeps: int = 0
    turns: int = 0


async def _sleep_until_readable(descriptor: int, poller: select.poll) -> None:
    """Wait until a descriptor is readable, and still is when the task runs, which may be much later."""
    while True:
        await trio.lowlevel.wait_readable(descriptor)
        if poller.poll(0):
            return


async def _wait_readable(descriptor: int) -> None:
    poller = select.poll()
    poller.register(descriptor, select.POLLIN)
    await _sleep_until_readable(descriptor, poller)


class PollingWaiter:
    """``wait_readable`` with polling in front of it.

    Args:
        longest_poll_ns: bound of the time one wait polls; 0 looks once and then sleeps.
        note_request: told the monotonic time in nanoseconds of each wait, that is, of each request.
    """

    def __init__(
        self, longest_poll_ns: int = LONGEST_POLL_NS, note_request: Callable[[int], None] | None = None
    ) -> None:
        self._note_request = note_request
        self.counts = PollCounts()
        self._longest_ns = longest_poll_ns
        self._budget_ns = longest_poll_ns
        self._last_turn_ns = 0
        self._descriptor = -1
        self._poller = select.poll()
        self._lock = BargingLock()

    def new_lock(self, on_wait: Callable[[], None] | None = None) -> BargingLock:
        """Return the lock under which the workers will call this object; it tells how many of them are idle."""
        self._lock = BargingLock(on_wait)
        return self._lock

    def __call__(self, descriptor: int) -> _Done | Coroutine[Any, Any, None]:
        """Return something to await until the descriptor is readable; done already if a request came while polling."""
        if descriptor != self._descriptor:
            self._poller = select.poll()
            self._poller.register(descriptor, select.POLLIN)
            self._descriptor = descriptor
        poll = self._poller.poll
        clock = time.perf_counter_ns
        now = clock()
        if self._note_request is not None:
            self._note_request(now)
        if now - self._last_turn_ns > TURN_NS:
            return self._take_turn(descriptor)
        if poll(0):
            self.counts.hits += 1
            return _DONE
        if self._budget_ns and not self._is_other_worker_busy():
            deadline = now + self._budget_ns
            while clock() < deadline:
                if poll(0):
                    self.counts.hits += 1
                    return _DONE
        return self._sleep(descriptor)

    def _is_other_worker_busy(self) -> bool:
        nursery = trio.lowlevel.current_task().parent_nursery
        return nursery is not None and len(nursery.child_tasks) > 1 + self._lock.waiting

    async def _take_turn(self, descriptor: int) -> None:
        self.counts.turns += 1
        await trio.lowlevel.checkpoint()
        self._last_turn_ns = time.perf_counter_ns()
        await self(descriptor)

    async def _sleep(self, descriptor: int) -> None:
        self.counts.sleeps += 1
        began = time.perf_counter_ns()
        await _sleep_until_readable(descriptor, self._poller)
        self._last_turn_ns = woke = time.perf_counter_ns()
        if woke - began < 2 * self._longest_ns:
            self._budget_ns = self._longest_ns
        else:
            self._budget_ns = self._budget_ns // 2 if self._budget_ns > SHORTEST_POLL_NS else 0


class _Workers:
    """The nursery of pyfuse3's workers, in which one goes on that was called for nothing.

    The kernel takes a request back if its program is killed before the daemon has read it.  A descriptor that was
    readable then holds up whoever reads it, and with him the event loop, until somebody else wants something: commits
    stop, and ``umount`` waits for ever.  So the descriptor is made non-blocking, as poll(2) and select(2) advise
    (BUGS).  pyfuse3 3.5 ends a worker, and with it all, at the EAGAIN that comes instead; here it begins again.  Its
    buffer is lost, up to 1 MiB if it has taken large writes; so the descriptor is looked at right before it is read.

    Attributes:
        count: how many there are.

    Args:
        nursery: where they run; None as long as there can be none.
        on_end: called when one ends.
    """

    def __init__(self, nursery: trio.Nursery | None, on_end: Callable[[], None]) -> None:
        self._nursery = nursery
        self._on_end = on_end
        self.count = 0

    def start_soon(self, worker: Callable[..., Awaitable[None]], *args: object, name: str) -> None:
        """Start a worker, and again whenever a request was taken back."""

        async def work() -> None:
            try:
                while True:
                    try:
                        return await worker(*args)
                    except BlockingIOError as error:
                        if "fuse_session_receive_buf" not in str(error):  # a handler's, which is a fault
                            raise
                        log.debug("%s: a request was taken back before it was read", name)
            finally:
                self.count -= 1
                self._on_end()

        assert self._nursery is not None, "pyfuse3 opens it first"
        self._nursery.start_soon(work, name=name)
        self.count += 1


class _Lowlevel:
    """What pyfuse3 uses of ``trio.lowlevel``."""

    current_task = staticmethod(trio.lowlevel.current_task)
    current_trio_token = staticmethod(trio.lowlevel.current_trio_token)
    notify_closing = staticmethod(trio.lowlevel.notify_closing)

    def __init__(self, wait_readable: Callable[[int], Awaitable[None]]) -> None:
        self.wait_readable = wait_readable


class PyfuseTrio:
    """What pyfuse3 sees as ``trio`` while a session runs.

    Args:
        waiter: polls before it sleeps; None for trio's own waiting.
        relay: a handshake to take through its steps before the first real wait; None if there is none.
        admission: says when there are too many requests to read another; None: never.
        on_over: called when nobody reads requests any more, though some may still be under way.
    """

    ClosedResourceError = trio.ClosedResourceError
    from_thread = trio.from_thread

    def __init__(
        self,
        waiter: PollingWaiter | None,
        relay: Relay | None,
        admission: Admission | None = None,
        on_over: Callable[[], None] = lambda: None,
    ) -> None:
        self._on_over = on_over
        self._is_over = False
        self._waiter = waiter
        self._wait: Callable[[int], Awaitable[None]] = waiter or _wait_readable
        self._relay = relay
        self._admission = admission or Admission(NO_LIMIT)
        self._lock = BargingLock()
        self._workers = _Workers(None, self._worker_ended)
        self.lowlevel = _Lowlevel(self._shake_hands)

    def Lock(self) -> BargingLock:  # noqa: N802  # trio's name
        """The lock under which workers wait for a request."""
        on_wait = self._admission.reconsider
        self._lock = BargingLock(on_wait) if self._waiter is None else self._waiter.new_lock(on_wait)
        return self._lock

    @contextlib.asynccontextmanager
    async def open_nursery(self) -> AsyncIterator[_Workers]:
        """What the workers run in."""
        async with trio.open_nursery() as nursery:
            self._workers = _Workers(nursery, self._worker_ended)
            yield self._workers

    def _worker_ended(self) -> None:
        self._admission.reconsider()
        # A worker ends because two others are idle, one of whom has the lock, or because the session is over; then all
        # that are idle end, one after the other.
        if not self._lock.waiting and not self._is_over:
            self._is_over = True
            self._on_over()

    def _wait_admitted(self, descriptor: int) -> Awaitable[None]:
        """Wait for a request, by the worker that holds the lock; every other one that does not wait for it has one."""
        # The first half is nearly always enough, and this is done for each request.
        if self._workers.count <= self._admission.most or self._is_admitted():
            return self._wait(descriptor)
        return self._wait_for_room(descriptor)

    def _is_admitted(self) -> bool:
        return self._admission.admits(self._workers.count - 1 - self._lock.waiting)

    async def _wait_for_room(self, descriptor: int) -> None:
        while not self._is_admitted():
            await self._admission.changed()
        await self._wait(descriptor)

    def _shake_hands(self, descriptor: int) -> Awaitable[None]:
        """The first waits: the handshake; then the descriptor is the kernel's, and need not be looked after again."""
        if self._relay is not None and not self._relay.is_done():
            return _DONE
        os.set_blocking(descriptor, False)
        self.lowlevel.wait_readable = self._wait_admitted
        return self._wait_admitted(descriptor)


@contextlib.contextmanager
def installed(substitute: PyfuseTrio) -> Iterator[None]:
    """Let pyfuse3 use ``substitute`` for as long as the block runs (one session at a time; pyfuse3 has one only)."""
    names = vars(pyfuse3)
    before = names["trio"]
    names["trio"] = substitute
    try:
        yield
    finally:
        names["trio"] = before
