"""Compaction of a mounted vault: a step at a time while nobody wants anything, and slowly when somebody always does.

The steps are those of :mod:`vaultfs.vault.compaction`.  Reading runs in a thread, under a lease of the segments; each
step is followed by a commit, so that what it made free is given back at once.
"""

from __future__ import annotations

import logging
from typing import Final

import trio

from vaultfs.errors import NoSpaceError, VaultError
from vaultfs.fuse.durability import SWEEP_PAUSE_S, CountsRequests, Durability
from vaultfs.metadata.compaction_rows import Policy
from vaultfs.metadata.database import database_failures
from vaultfs.vault.compaction import POLICY, STEP_BYTES, Compactor
from vaultfs.vault.filesystem import FileSystem

log = logging.getLogger(__name__)

IDLE_S: Final = 1.0
"""Nobody has asked for anything for so long: the vault is idle."""
BUSY_PAUSE_S: Final = 10.0
"""A vault that is never idle gets a step so often: 0.4 MiB/s, which nobody notices."""
FULL_PAUSE_S: Final = 60.0
_Database: Final = database_failures()


class BackgroundCompaction:
    """Compacts one mounted vault.

    Args:
        fs: open for writing.
        durability: commits it.
        counter: tells whether there were requests.
        policy: what is worth it.
    """

    def __init__(
        self, fs: FileSystem, durability: Durability, counter: CountsRequests, policy: Policy = POLICY
    ) -> None:
        self._fs = fs
        self._durability = durability
        self._counter = counter
        self._compactor = Compactor(fs, policy)

    async def run(self) -> None:
        """Go on until cancelled, or until the vault fails; that is told by whoever wants it next."""
        busy_since = trio.current_time()
        while self._fs.committer.failure is None and self._fs.pipeline.failure is None:
            before = self._counter.requests
            await trio.sleep(IDLE_S)
            is_idle = self._counter.requests == before
            if not is_idle and trio.current_time() - busy_since < BUSY_PAUSE_S:
                continue
            try:
                while await self.step() and self._counter.requests == before:
                    pass
            except NoSpaceError as error:
                log.debug("compaction waits: %s", error)
                await trio.sleep(FULL_PAUSE_S)
            except VaultError as error:
                log.warning("compaction stops until the next mount: %s", error)
                return
            busy_since = trio.current_time()

    async def step(self) -> bool:
        """Do one step; False if there is nothing more to do now.

        Raises:
            NoSpaceError: there is no room to write anything again.
            VaultError: the vault failed, or cannot be written.
        """
        fs, compactor = self._fs, self._compactor
        try:
            fs.check_writable()
            fs.check_room(STEP_BYTES)
            step = compactor.plan()
            if step is None:
                if compactor.has_more and not fs.is_snapshot_busy:
                    await trio.sleep(SWEEP_PAUSE_S)
                    return True
                await self._retire()
                return False
            fs.segments.lease()
            try:
                await trio.to_thread.run_sync(step.read)
            finally:
                fs.segments.end_lease()
            await self._durability.room_to_write()
            compactor.submit(step)
            await self._durability.commit()
            if compactor.full is not None:
                raise compactor.full
        except _Database as error:
            raise fs.committer.fail(error) from error
        return True

    async def _retire(self) -> None:
        """Throw away older keys that nothing needs any more."""
        epochs = self._compactor.unneeded_epochs()
        if epochs:
            await self._durability.commit()
            self._compactor.retire(epochs)  # a few hundred bytes
