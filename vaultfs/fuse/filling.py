"""Filling a clone while it is mounted: segments that are not on this disk are brought, and used from then on.

Which ones is read from the tables, so it is all that present and snapshots need; what is deleted meanwhile is not
fetched.  Nothing has to be remembered: after a kill or an unmount the next fill finds what is still missing.  What
waits for the network runs in threads that are left alone when the vault is unmounted.
"""

from __future__ import annotations

import logging
from collections import deque
from typing import Any, Final

import trio

from vaultfs.errors import IntegrityError, ObjectMissingError, VaultError
from vaultfs.storage.durable import storage_errors
from vaultfs.storage.layout import VaultLayout
from vaultfs.storage.segment_source import SegmentFiller
from vaultfs.vault.filesystem import FileSystem
from vaultfs.vault.segments import SealedSegment

log = logging.getLogger(__name__)

CONNECTIONS: Final = 2
FIRST_PAUSE_S: Final = 5.0
LONGEST_PAUSE_S: Final = 300.0
RESERVE_BYTES: Final = 256 << 20
"""Room on the disk that is left to programs."""
_SAMPLE_S: Final = 1.0
_SAMPLES: Final = 30


class BackgroundFill:
    """Fills one mounted vault.

    Args:
        fs: the vault.
        filler: brings segments.
    """

    def __init__(self, fs: FileSystem, filler: SegmentFiller) -> None:
        self._fs: Final = fs
        self._filler: Final = filler
        self._limiter: Final = trio.CapacityLimiter(CONNECTIONS)
        self._todo: deque[SealedSegment] = deque()
        self._again: list[SealedSegment] = []
        self._samples: deque[tuple[float, int]] = deque(maxlen=_SAMPLES)
        self._state = "looking"
        self._error = ""
        self._total_bytes = self._done_bytes = 0
        self._lacking: list[str] = []

    def state(self) -> dict[str, Any]:
        """How far it is.

        Returns:
            ``state``: ``looking`` for what is missing, ``filling``, ``waiting`` after an error, ``done``,
            ``incomplete`` if some segments cannot be had, ``stopped`` if the vault failed; ``done_bytes`` of
            ``total_bytes``, of segments that were missing at the mount; ``rate_bytes`` in a second; ``left_s``, None
            if nobody can tell; ``error``.
        """
        rate = self._rate()
        left_bytes = self._total_bytes - self._done_bytes
        is_moving = self._state == "filling" and rate > 0
        return {
            "state": self._state,
            "done_bytes": self._done_bytes,
            "total_bytes": self._total_bytes,
            "rate_bytes": round(rate),
            "left_s": round(left_bytes / rate) if is_moving else None,
            "error": self._error or None,
        }

    def _rate(self) -> float:
        if len(self._samples) < 2 or self._state in {"done", "incomplete"}:
            return 0.0
        (first_s, first), (last_s, last) = self._samples[0], self._samples[-1]
        return max(0.0, (last - first) / (last_s - first_s))

    async def run(self) -> None:
        """Bring what is missing; returns when nothing is left that can be had.  Closes the filler when cancelled."""
        try:
            # The rows are read here; looking for a hundred thousand files is for a thread.
            with self._fs.database_safe():
                sealed = self._fs.segments.sealed()
            self._todo.extend(await trio.to_thread.run_sync(_not_here, self._fs.layout, sealed))
            self._total_bytes = sum(each.size for each in self._todo)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._sample)
                await self._bring_all()
                nursery.cancel_scope.cancel()
        except* VaultError as group:  # the vault has failed, which is told by whoever wants something of it
            self._state, self._error = "stopped", str(group.exceptions[0])
        finally:
            self._filler.close()
        if self._state == "stopped":
            log.warning("filling ends: %s", self._error)
        elif self._lacking:
            self._state, self._error = "incomplete", self._lacking[-1]
            log.warning("the vault is filled but for %d segments; last: %s", len(self._lacking), self._error)
        else:
            self._state = "done"
            log.info("the vault is filled: %d bytes were fetched", self._done_bytes)

    async def _bring_all(self) -> None:
        pause_s = FIRST_PAUSE_S
        while self._todo:
            self._state = "filling"
            before = self._done_bytes
            async with trio.open_nursery() as nursery:
                for _ in range(CONNECTIONS):
                    nursery.start_soon(self._bring_some)
            if self._again:
                self._todo.extend(self._again)
                self._again.clear()
                self._state = "waiting"
                if self._done_bytes > before:
                    pause_s = FIRST_PAUSE_S
                log.info("filling waits for %g s: %s", pause_s, self._error)
                await trio.sleep(pause_s)
                pause_s = min(pause_s * 2, LONGEST_PAUSE_S)

    async def _bring_some(self) -> None:
        """Bring segments until none is left, or until one cannot be had now: then a pause helps more than the next."""
        while self._todo and not self._again:
            segment = self._todo.popleft()
            if not self._is_needed(segment):
                self._total_bytes -= segment.size
                continue
            try:
                self._fs.check_room(segment.size + RESERVE_BYTES)
                await trio.to_thread.run_sync(
                    self._filler.bring, segment.name, segment.size, abandon_on_cancel=True, limiter=self._limiter
                )
            except (IntegrityError, ObjectMissingError) as error:
                self._lacking.append(str(error))
                log.warning("segment %s cannot be fetched: %s", segment.name, error)
            except VaultError as error:
                self._again.append(segment)
                self._error = str(error)
            else:
                self._arrived(segment)

    def _arrived(self, segment: SealedSegment) -> None:
        self._error = ""
        self._done_bytes += segment.size
        self._fs.segments.arrived(segment.name)
        if self._is_needed(segment):
            return
        path = self._fs.layout.sealed_path(segment.name)  # all in it was deleted while it was on its way
        try:
            if segment.name not in self._fs.kept.names():
                with storage_errors(f"cannot remove {path}"):
                    path.unlink(missing_ok=True)
        except VaultError as error:
            log.warning("a segment that nothing needs any more stays: %s", error)

    def _is_needed(self, segment: SealedSegment) -> bool:
        with self._fs.database_safe():
            return self._fs.segments.is_needed(segment)

    async def _sample(self) -> None:
        while True:
            self._samples.append((trio.current_time(), self._filler.came_bytes))
            await trio.sleep(_SAMPLE_S)


def _not_here(layout: VaultLayout, segments: list[SealedSegment]) -> list[SealedSegment]:
    return [each for each in segments if not layout.sealed_path(each.name).exists()]
