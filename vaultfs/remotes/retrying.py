"""Tries again what failed because the remote could not be reached: no other error is retried, nor that nobody answers.

Before each new try it waits, a time drawn at random below a bound that doubles: many clients that lost one server
together must not come back together.  Tries are bounded, and so is the time from the first failure on; both begin anew
after progress, so a body or a listing that moves forward, however haltingly, goes on.

Repeating is safe for every request but ``put(if_absent=True)``: when the answer to the first try is lost, the second
finds the object that the first has stored.  Then `RetryingStore.put` looks whether it is the same object.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, TypeVar

from vaultfs.errors import NobodyAnswersError, ObjectExistsError, ObjectMissingError, RemoteUnreachableError
from vaultfs.remotes.bodies import PIECE_BYTES, read_all
from vaultfs.remotes.store import ObjectInfo, Source, Store

_T = TypeVar("_T")

_random: Final = random.SystemRandom()


@dataclass(frozen=True)
class RetryPolicy:
    """How patient to be.

    Attributes:
        tries: how often a request is made at most, without progress.
        first_wait_s: bounds the first wait; each later bound is twice the one before.
        longest_wait_s: bounds every wait.
        total_s: no new try is begun this long after the first failure.
    """

    tries: int = 7
    first_wait_s: float = 0.5
    longest_wait_s: float = 30.0
    total_s: float = 180.0


class RetryingStore:
    """A store that does not give up at once.

    `close` also ends all waiting: whoever waits then gets the error it waited for.

    Args:
        inner: the store.
        policy: how patient to be.
        clock: seconds, never going back.
        wait: is given seconds; returns early, and true, when there is no point in trying again.
        draw: a random number between two.
    """

    def __init__(
        self,
        inner: Store,
        policy: RetryPolicy = RetryPolicy(),
        *,
        clock: Callable[[], float] = time.monotonic,
        wait: Callable[[float], bool] | None = None,
        draw: Callable[[float, float], float] = _random.uniform,
    ) -> None:
        self.name = inner.name
        self._inner = inner
        self._policy = policy
        self._clock = clock
        self._closed = threading.Event()
        self._wait = wait or self._closed.wait
        self._draw = draw

    def put(self, key: str, source: Source, *, if_absent: bool = False) -> None:
        """Store an object, as `Store.put`; an object that an earlier try has stored does not count as another's.

        Raises:
            ObjectExistsError: something else is there.
        """
        patience = self._patience()
        while True:
            try:
                self._inner.put(key, source, if_absent=if_absent)
            except RemoteUnreachableError as error:
                patience.bear(error)
            except ObjectExistsError:
                if not patience.failures:
                    raise
                answer = self._is_stored(key, source)
                if answer is None:  # gone again, or still being stored by a try that was given up
                    patience.bear(RemoteUnreachableError(f"{self.name} both has and lacks {key}; try again later"))
                elif answer:
                    return
                else:
                    raise
            else:
                return

    def get(self, key: str, *, offset: int = 0, length: int | None = None) -> Iterator[bytes]:
        """Read an object, as `Store.get`; a new try begins where the last one ended."""
        patience = self._patience()
        came = 0
        while True:
            try:
                rest = None if length is None else length - came
                for piece in self._inner.get(key, offset=offset + came, length=rest):
                    if piece:
                        patience.renew()
                        came += len(piece)
                        yield piece
            except RemoteUnreachableError as error:
                if came and came == length:  # all is there: what failed was only the end
                    return
                patience.bear(error)
            else:
                return

    def size_bytes(self, key: str) -> int | None:
        """The length of an object, as `Store.size_bytes`."""
        return self._repeat(lambda: self._inner.size_bytes(key))

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """The objects whose keys begin so, as `Store.list`; a new try passes over those that came before."""
        patience = self._patience()
        came: set[ObjectInfo] = set()
        while True:
            try:
                for info in self._inner.list(prefix):
                    if info not in came:
                        patience.renew()
                        came.add(info)
                        yield info
            except RemoteUnreachableError as error:
                patience.bear(error)
            else:
                return

    def delete(self, key: str) -> None:
        """Remove an object, as `Store.delete`."""
        self._repeat(lambda: self._inner.delete(key))

    def close(self) -> None:
        """End connections and all waiting."""
        self._closed.set()
        self._inner.close()

    def _patience(self) -> _Patience:
        return _Patience(self._policy, self._clock, self._wait, self._draw)

    def _repeat(self, request: Callable[[], _T]) -> _T:
        patience = self._patience()
        while True:
            try:
                return request()
            except RemoteUnreachableError as error:
                patience.bear(error)

    def _is_stored(self, key: str, source: Source) -> bool | None:
        """Whether an object is the source's; None if it is not there.  One that is not small is told by its length."""
        size_bytes = self.size_bytes(key)
        if size_bytes is None:
            return None
        if size_bytes != source.size_bytes:
            return False
        if size_bytes > PIECE_BYTES:
            return True
        try:
            return b"".join(self.get(key, length=size_bytes)) == read_all(key, source)
        except ObjectMissingError:
            return None


class _Patience:
    """What one request still bears."""

    def __init__(
        self,
        policy: RetryPolicy,
        clock: Callable[[], float],
        wait: Callable[[float], bool],
        draw: Callable[[float, float], float],
    ) -> None:
        self.failures = 0
        """Since the beginning, unlike what is bounded."""
        self._policy = policy
        self._clock = clock
        self._wait = wait
        self._draw = draw
        self._tries = 1
        self._failing_since_s: float | None = None

    def renew(self) -> None:
        """There was progress."""
        self._tries = 1
        self._failing_since_s = None

    def bear(self, error: RemoteUnreachableError) -> None:
        """Wait until the next try.

        Raises:
            RemoteUnreachableError: the given one, if there is to be none.
        """
        if isinstance(error, NobodyAnswersError):
            raise error
        self.failures += 1
        policy = self._policy
        now_s = self._clock()
        if self._failing_since_s is None:
            self._failing_since_s = now_s
        rest_s = policy.total_s - (now_s - self._failing_since_s)
        if self._tries >= policy.tries:
            raise error
        bound_s = min(policy.longest_wait_s, policy.first_wait_s * 2 ** min(self._tries - 1, 30))
        wait_s = self._draw(0.0, bound_s)
        if wait_s >= rest_s or self._wait(wait_s):
            raise error
        self._tries += 1
