"""Progress of reading from peers that counts bytes as they arrive, not when a whole segment was checked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol

from vaultfs.cli.progress import Progress
from vaultfs.sync.workers import SyncProgress


class Arriving(Protocol):
    """A store that keeps what comes until it was checked."""

    @property
    def pending_bytes(self) -> int:
        """Bytes that have come, and were not given out."""


class ArrivingProgress:
    """Moves a bar.

    Args:
        bar: what is shown.
        store: what is read from; None: only what it gives out counts, as where that is slowed down by a limit.
    """

    def __init__(self, bar: Progress, store: Arriving | None) -> None:
        self._bar: Final = bar
        self._store: Final = store
        self._state: SyncProgress | None = None
        self._shown = (-1, -1)

    def __call__(self, state: SyncProgress) -> None:
        """What is complete has changed."""
        self._state = state
        self._show()

    def looking(self, is_stopped: Callable[[], bool]) -> Callable[[], bool]:
        """What says whether to end, and moves the bar whenever it is asked, ten times a second.

        Args:
            is_stopped: says it.
        """

        def look() -> bool:
            self._show()
            return is_stopped()

        return look

    def _show(self) -> None:
        if self._state is None:
            return
        pending_bytes = 0 if self._store is None else self._store.pending_bytes
        shown = (min(self._state.done_bytes + pending_bytes, self._state.total_bytes), self._state.total_bytes)
        if shown != self._shown:
            self._shown = shown
            self._bar(*shown)
