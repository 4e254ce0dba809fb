"""The mesh for those who block: an event loop with a client, in a thread that begins when it is first needed.

Any number of threads may call at once.  Nothing is started before the first call.  If the loop has ended, by a fault or
because the process has forked since, the next call begins another.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Awaitable, Callable, Iterable
from typing import Final, TypeVar

import trio

from vaultfs.errors import RemoteUnreachableError
from vaultfs.ids import VaultId
from vaultfs.mesh.arrivals import Arrivals
from vaultfs.mesh.client import Contact, MeshClient, open_client
from vaultfs.mesh.identity import Identity
from vaultfs.mesh.pool import PoolLimits

log = logging.getLogger(__name__)

CLOSE_S: Final = 5.0
"""How long `close` waits for polite ends; the thread is a daemon, so a process never hangs on it."""

_T = TypeVar("_T")


class MeshThread:
    """A client in a thread.

    Args:
        identity: gives that of this machine; called in the caller's thread, with the first call.
        contacts: the peers.
        limits: of the pool.
        arrivals: is told what comes of objects.
        vault: that it is about, if it is one.
    """

    def __init__(
        self,
        identity: Callable[[], Identity],
        contacts: Iterable[Contact],
        limits: PoolLimits | None = None,
        arrivals: Arrivals | None = None,
        vault: VaultId | None = None,
    ) -> None:
        self._vault: Final = vault
        self._identity: Final = identity
        self._contacts: Final = tuple(contacts)
        self._limits: Final = limits
        self._arrivals: Final = arrivals
        self._lock: Final = threading.Lock()
        self._loop: _Loop | None = None
        self._is_closed = False

    def call(self, function: Callable[[MeshClient], Awaitable[_T]]) -> _T:
        """Run a coroutine in the loop, and wait for it.

        Args:
            function: is given the client.

        Raises:
            RemoteUnreachableError: it was closed meanwhile.
            VaultError: what the function raises.
        """
        return self._running().call(function)

    def _running(self) -> _Loop:
        with self._lock:
            if self._is_closed:
                raise _closed()
            if self._loop is None or not self._loop.is_running:
                self._loop = _Loop(self._identity(), self._contacts, self._limits, self._arrivals, self._vault)
            return self._loop

    def close(self) -> None:
        """End all calls and all connections.  Doing it twice is harmless."""
        with self._lock:
            self._is_closed = True
            loop, self._loop = self._loop, None
        if loop is not None:
            loop.close()


class _Loop:
    def __init__(
        self,
        identity: Identity,
        contacts: tuple[Contact, ...],
        limits: PoolLimits | None,
        arrivals: Arrivals | None,
        vault: VaultId | None,
    ) -> None:
        self._arrivals: Final = arrivals
        self._vault: Final = vault
        self._identity: Final = identity
        self._contacts: Final = contacts
        self._limits: Final = limits
        self._is_ready: Final = threading.Event()
        self._calls: Final[set[trio.CancelScope]] = set()
        self._failure: BaseException | None = None
        self._thread: Final = threading.Thread(target=self._run, name="vaultfs-mesh", daemon=True)
        self._thread.start()
        self._is_ready.wait()
        if self._failure is not None:
            raise self._failure

    def _run(self) -> None:
        try:
            trio.run(self._main)
        except BaseException as error:
            if self._is_ready.is_set():
                log.exception("what talks to peers has failed; it begins anew")  # who waits hears that it was closed
            self._failure = error  # the caller's thread raises it
        finally:
            self._is_ready.set()

    @property
    def is_running(self) -> bool:
        """Whether calls can be made; not so in a child of the process that began it."""
        return self._thread.is_alive()

    async def _main(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        self._end = trio.Event()
        async with open_client(self._identity, self._contacts, self._limits, self._arrivals, self._vault) as client:
            self._client = client
            self._is_ready.set()
            await self._end.wait()
            for scope in self._calls:
                scope.cancel()

    def call(self, function: Callable[[MeshClient], Awaitable[_T]]) -> _T:
        try:
            result: list[_T] = trio.from_thread.run(self._call, function, trio_token=self._token)
        except (trio.RunFinishedError, trio.Cancelled):  # it ended before the call began
            raise _closed() from None
        if not result:
            raise _closed()
        return result[0]

    async def _call(self, function: Callable[[MeshClient], Awaitable[_T]]) -> list[_T]:
        if self._end.is_set():
            return []
        with trio.CancelScope() as scope:
            self._calls.add(scope)
            try:
                return [await function(self._client)]
            finally:
                self._calls.discard(scope)
        return []

    def close(self) -> None:
        try:
            self._token.run_sync_soon(self._end.set)
        except trio.RunFinishedError:
            return
        self._thread.join(CLOSE_S)


def _closed() -> RemoteUnreachableError:
    return RemoteUnreachableError("the connections to peers were closed")
