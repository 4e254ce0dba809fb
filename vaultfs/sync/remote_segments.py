"""The vault's remotes as a source of segments that this disk lacks, or has damaged.

Nothing is opened before the first byte is wanted.  The remotes are asked in the order of the list, the one that
answered last first; what comes is believed by nobody before it opens.

Whoever reads a file waits for this, so it ends in bounded time: all remotes together may be silent for `PATIENCE_S`,
and one that has failed is not asked again for a while (`vaultfs.sync.breaker`).  A command that copies has more time,
and a person who can end it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

from vaultfs.errors import ObjectMissingError, RemoteError, RemoteRefusedError, RemoteUnreachableError, VaultError
from vaultfs.ids import SegmentName
from vaultfs.remotes.configured import load_remotes
from vaultfs.remotes.retrying import RetryPolicy
from vaultfs.remotes.store import Store
from vaultfs.remotes.urls import open_store
from vaultfs.storage.layout import VaultLayout
from vaultfs.sync.bounded_get import BoundedGet
from vaultfs.sync.breaker import Breaker
from vaultfs.sync.remote_layout import segment_key

log = logging.getLogger(__name__)

Opener = Callable[[], Store]

PATIENCE_S: Final = 20.0
LONG_PATIENCE_S: Final = 200.0
"""More than a store takes until it gives up by itself."""
QUIET_S: Final = 0.5
"""Who reads on asks again sooner than this."""
_POLICY: Final = RetryPolicy(tries=3, first_wait_s=0.5, longest_wait_s=2.0, total_s=10.0)


class _Remote:
    """One remote, opened when it is needed.

    Args:
        opener: called until it has succeeded once.
        clock: of the breaker.
    """

    def __init__(self, opener: Opener, clock: Callable[[], float]) -> None:
        self.breaker: Final = Breaker(clock)
        self._opener: Final = opener
        self._lock: Final = threading.Lock()
        self._store: Store | None = None
        self._is_closed = False

    @property
    def name(self) -> str:
        """What to call it in messages."""
        return "a remote" if self._store is None else self._store.name

    def store(self) -> Store:
        """The open store.

        Raises:
            RemoteUnreachableError: it was closed.
            VaultError: it cannot be opened.
        """
        with self._lock:
            if self._is_closed:
                raise RemoteUnreachableError("the vault is being closed")
            if self._store is None:
                self._store = self._opener()
            return self._store

    def close(self) -> None:
        """Close the store if it was opened; one that is being opened is left to the end of the process."""
        if self._lock.acquire(timeout=1.0):
            try:
                self._is_closed = True
                store, self._store = self._store, None
                if store is not None:
                    store.close()
            finally:
                self._lock.release()


class RemoteSegments:
    """Some remotes as one `vaultfs.storage.segment_source.SegmentSource`.  Threads may share it.

    Args:
        openers: one for each remote, called once at most unless it fails.
        patience_s: how long all remotes together may be silent.
        clock: seconds, never going back.
    """

    def __init__(
        self, openers: Sequence[Opener], *, patience_s: float = PATIENCE_S, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._remotes: Final = [_Remote(opener, clock) for opener in openers]
        self._order: Final = list(range(len(openers)))
        self._patience_s: Final = patience_s
        self._clock: Final = clock
        self._lock: Final = threading.Lock()
        self._running: Final[set[BoundedGet]] = set()
        self._asked_at_s: float | None = None
        self._is_closed = False

    @classmethod
    def of(cls, layout: VaultLayout, *, is_patient: bool = False) -> RemoteSegments | None:
        """The remotes of a vault; None if it has none.

        Args:
            layout: the vault.
            is_patient: a command waits that would have to be repeated, not a program that knows nothing of remotes.

        Raises:
            IntegrityError: their list is damaged.
            StorageError: it cannot be read.
        """
        remotes = load_remotes(layout)
        if not remotes:
            return None
        policy = None if is_patient else _POLICY
        openers = [partial(open_store, each.url, each.options, policy) for each in remotes]
        return cls(openers, patience_s=LONG_PATIENCE_S if is_patient else PATIENCE_S)

    def fetch(self, name: SegmentName, offset: int, length: int) -> bytes:
        """Bytes of a segment, from the first remote that has them.

        Raises:
            ObjectMissingError: all remotes answered, and none has the segment.
            VaultError: what the first of the others said.
        """
        failure: VaultError | None = None
        with self._lock:
            order = list(self._order)
        patience_s = self._patience_s
        for left, number in zip(range(len(order), 0, -1), order, strict=True):
            began_s = time.monotonic()
            try:
                data = self._ask(self._remotes[number], name, offset, length, patience_s / left)
            except ObjectMissingError as error:
                failure = failure or error
            except VaultError as error:
                if failure is None or isinstance(failure, ObjectMissingError):
                    failure = error
            else:
                with self._lock:
                    self._order.remove(number)
                    self._order.insert(0, number)
                return data
            patience_s = max(patience_s - (time.monotonic() - began_s), patience_s / left)
        assert failure is not None, "there is at least one remote"
        raise failure

    def _ask(self, remote: _Remote, name: SegmentName, offset: int, length: int, patience_s: float) -> bytes:
        refusal = remote.breaker.refusal()
        if refusal is not None:
            raise refusal.with_traceback(None)
        request = BoundedGet(remote.store, segment_key(name), offset, length)
        self._begin(request)
        try:
            data = request.result(patience_s)
        except ObjectMissingError:
            remote.breaker.succeeded()
            raise
        except VaultError as error:
            self._judge(remote, error)
            raise
        except BaseException:  # Ctrl-C: nobody knows how it would have gone
            remote.breaker.failed(RemoteUnreachableError(f"a request to {remote.name} was interrupted"))
            raise
        finally:
            self._end(request)
        if remote.breaker.succeeded():
            log.info("%s answers again", remote.name)
        return data

    @staticmethod
    def _judge(remote: _Remote, error: VaultError) -> None:
        """Whether an error means that asking for something else would fail too."""
        if isinstance(error, RemoteError) and not isinstance(error, RemoteUnreachableError | RemoteRefusedError):
            remote.breaker.succeeded()
            return
        pause_s = remote.breaker.failed(error)
        if pause_s is not None:
            log.info("%s; it is not asked again for %g s", error, pause_s)

    # --- for who wants to let readers go first

    @property
    def is_in_use(self) -> bool:
        """Whether somebody reads, or did a moment ago."""
        with self._lock:
            return bool(self._running) or (self._asked_at_s is not None and self._clock() - self._asked_at_s < QUIET_S)

    def _begin(self, request: BoundedGet) -> None:
        with self._lock:
            if not self._is_closed:
                self._running.add(request)
                return
        raise RemoteUnreachableError("the vault is being closed")

    def _end(self, request: BoundedGet) -> None:
        with self._lock:
            self._running.discard(request)
            self._asked_at_s = self._clock()

    def close(self) -> None:
        """Let go of everybody who waits, and of all connections."""
        with self._lock:
            self._is_closed = True
            running = list(self._running)
        for request in running:
            request.give_up()
        for remote in self._remotes:
            remote.close()
