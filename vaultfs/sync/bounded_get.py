"""A part of an object, or an error in bounded time, whatever the store's client does with a line that is dead.

The request runs in a thread of its own, which is left alone when the time is up: clients of clouds have timeouts of
their own, which are longer than anybody who reads a file likes to wait.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Final

from vaultfs.errors import RemoteError, RemoteUnreachableError, VaultError
from vaultfs.remotes.store import Store
from vaultfs.sync.remote_objects import body

log = logging.getLogger(__name__)

MOST_PATIENCES: Final = 9
"""A request takes no longer than so many times what one silence may last, however steadily a remote trickles."""


class BoundedGet:
    """One request.

    Args:
        opener: gives the store; called in the thread.
        key: the object.
        offset: bytes from its start.
        length: bytes.
    """

    def __init__(self, opener: Callable[[], Store], key: str, offset: int, length: int) -> None:
        self._name = "a remote that is being opened"
        self._opener: Final = opener
        self._key: Final = key
        self._offset: Final = offset
        self._length: Final = length
        self._changed: Final = threading.Condition()
        self._pieces: list[bytes] = []
        self._error: VaultError | None = None
        self._is_over = False
        self._is_given_up = False

    def result(self, patience_s: float) -> bytes:
        """Make the request, and wait for it.

        Args:
            patience_s: without a byte.

        Raises:
            RemoteUnreachableError: it took too long, or was given up.
            VaultError: as `Store.get`.
        """
        threading.Thread(target=self._run, name="vaultfs-read", daemon=True).start()
        try:
            return self._wait(patience_s)
        finally:
            self.give_up()

    def _wait(self, patience_s: float) -> bytes:
        ends_at_s = time.monotonic() + MOST_PATIENCES * patience_s
        with self._changed:
            while not self._is_over and not self._is_given_up:
                came = len(self._pieces)
                has_moved = self._changed.wait_for(
                    lambda came=came: self._is_over or self._is_given_up or len(self._pieces) > came,  # type: ignore[misc]
                    min(patience_s, ends_at_s - time.monotonic()),
                )
                if not has_moved:
                    break
            if self._is_over:
                if self._error is not None:
                    raise self._error
                return b"".join(self._pieces)
            if self._is_given_up:
                raise RemoteUnreachableError(f"{self._name} is not waited for any more: the vault is being closed")
        raise RemoteUnreachableError(f"{self._name} does not answer: nothing came for {patience_s:.0f} s")

    def give_up(self) -> None:
        """Let whoever waits wait no more."""
        with self._changed:
            self._is_given_up = True
            self._changed.notify_all()

    def _run(self) -> None:
        error: VaultError | None = None
        try:
            store = self._opener()
            self._name = store.name
            with body(store, self._key, offset=self._offset, length=self._length) as pieces:
                for piece in pieces:
                    with self._changed:
                        if self._is_given_up:
                            return
                        self._pieces.append(piece)
                        self._changed.notify_all()
        except VaultError as caught:
            error = caught
        except Exception as caught:
            log.exception("reading %s failed", self._key)  # a fault of ours, or of a client
            error = RemoteError(f"{self._name} failed: {type(caught).__name__}; the log says more")
        finally:
            with self._changed:
                self._error = error
                self._is_over = True
                self._changed.notify_all()
