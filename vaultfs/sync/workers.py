"""Doing many things in a few threads, with progress, so that it can be stopped at any time.

The caller's functions, which tell whether to stop and are told how far it is, run in the caller's thread only, at least
ten times a second.  They may raise: then everything ends as if it was stopped, and the exception goes on.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import BinaryIO, ClassVar, Final

from vaultfs.errors import ExitCode, UsageError, VaultError
from vaultfs.remotes.bodies import MeteredSource
from vaultfs.remotes.store import Source

POLL_S: Final = 0.1
MOST_CONNECTIONS: Final = 64


class StoppedError(VaultError):
    """The caller asked for an end; what was done is kept, and the same call goes on with the rest."""

    exit_code: ClassVar[ExitCode] = ExitCode.SIGINT


@dataclass
class SyncProgress:
    """How far it is, in bytes of objects."""

    done_bytes: int
    total_bytes: int


ProgressFunction = Callable[[SyncProgress], None]


class Crew:
    """The threads of one command, its progress and its end.

    Args:
        connections: how many things are done at once.
        progress: called when bytes were done since the last call.
        is_stopped: whether to end.

    Raises:
        UsageError: the number of connections makes no sense.
    """

    def __init__(
        self, connections: int, progress: ProgressFunction | None = None, is_stopped: Callable[[], bool] | None = None
    ) -> None:
        if not 0 < connections <= MOST_CONNECTIONS:
            raise UsageError(f"there can be 1 to {MOST_CONNECTIONS} connections, not {connections}")
        self.total_bytes = 0
        self._connections: Final = connections
        self._progress: Final = progress
        self._is_stopped: Final = is_stopped
        self._ending: Final = threading.Event()
        self._lock: Final = threading.Lock()
        self._done_bytes = 0
        self._told: SyncProgress | None = None

    def advance(self, count: int) -> None:
        """So many bytes more are done; may be called from any thread."""
        with self._lock:
            self._done_bytes += count

    def check(self) -> None:
        """Called from any thread, between two things.

        Raises:
            StoppedError: it shall end.
        """
        if self._ending.is_set():
            raise StoppedError("stopped; the same command goes on where it ended")

    def tick(self) -> None:
        """Ask the caller whether to stop, and tell it how far it is; for the caller's thread.

        Raises:
            StoppedError: it shall end.
        """
        if self._is_stopped is not None and self._is_stopped():
            self._ending.set()
        self.check()
        with self._lock:
            now = SyncProgress(self._done_bytes, max(self.total_bytes, self._done_bytes))
        if self._progress is not None and now != self._told:
            self._told = now
            self._progress(SyncProgress(now.done_bytes, now.total_bytes))

    def work(self, jobs: Iterable[Callable[[], None]]) -> None:
        """Do everything; a job is taken only when a thread is free for it.

        Args:
            jobs: independent of each other; taken in order.

        Raises:
            StoppedError: the caller asked for it.
            BaseException: the first one that a job raised; no further job is begun.
        """
        self.tick()
        waiting = iter(jobs)
        running: set[Future[None]] = set()
        # Leaving the pool waits for its threads.  They ask `check` between pieces, so that is soon.
        with ThreadPoolExecutor(self._connections, thread_name_prefix="vaultfs-sync") as pool:
            try:
                while True:
                    while len(running) < self._connections and (job := next(waiting, None)) is not None:
                        running.add(pool.submit(job))
                    if not running:
                        break
                    finished, running = wait(running, POLL_S, FIRST_COMPLETED)
                    for future in finished:
                        future.result()
                    self.tick()
            except BaseException:
                self._ending.set()
                raise
        self.tick()


class CountedSource(MeteredSource):
    """Bytes to be stored, which advance a crew's progress as they are sent, once, and end when the crew does.

    Where several copies are sent at the same time, the one that is farthest counts.

    Args:
        inner: the bytes.
        crew: whose progress it is.
    """

    def __init__(self, inner: Source, crew: Crew) -> None:
        super().__init__(inner, crew.advance)
        self._crew = crew
        self._lock = threading.Lock()
        self._counted = 0

    def open(self) -> AbstractContextManager[BinaryIO]:
        """Open them for reading, from the start; what was sent before is sent again."""
        self._crew.check()
        return super().open()

    def new_meter(self) -> Callable[[int], None]:
        """Counts what one receiver is sent, as far as no other has been sent it before."""
        tried = 0

        def sent(count: int) -> None:
            nonlocal tried
            self._crew.check()
            with self._lock:
                tried += count
                more = max(0, min(tried, self.size_bytes) - self._counted)
                self._counted += more
            self._crew.advance(more)

        return sent

    def is_stored(self) -> None:
        """Whatever was not seen to be sent counts too."""
        with self._lock:
            more, self._counted = self.size_bytes - self._counted, self.size_bytes
        self._crew.advance(more)
