"""When a mounted vault becomes durable: at fsync, every few seconds, and at unmount.

The steps are those of :mod:`vaultfs.vault.commit`; those that wait for the disk run in threads, while requests go on.
Before the rows are committed, a gate holds back changes of data for the moment that the last chunks take.  Concurrent
fsyncs share one commit, and one sync of the log.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from functools import partial
from typing import Final, Protocol, TypeVar

import trio

from vaultfs.errors import NoSpaceError, VaultError
from vaultfs.fuse.allocator import give_back_memory
from vaultfs.fuse.handles import Handles
from vaultfs.metadata.database import database_failures
from vaultfs.vault.filesystem import FileSystem
from vaultfs.vault.steps import Step, Steps, Want

log = logging.getLogger(__name__)

_Database: Final = database_failures()
FAST_SYNC_NS: Final = 1_000_000
"""A sync of the log that took less last time is done in the event loop."""
SWEEP_PAUSE_S: Final = 0.001
SWEPT_EXTENTS: Final = 128
"""About 3 ms."""
TIDY_STEPS: Final = 64
IDLE_SWEEP_S: Final = 0.25


T = TypeVar("T")


class CountsRequests(Protocol):
    """Whatever counts requests."""

    requests: int


def _is_idle(counter: CountsRequests, before: int) -> bool:
    return counter.requests == before


class Durability:
    """The commits of a mounted vault.

    Args:
        fs: the vault.

    Attributes:
        gate: while not None, changes of data wait for it (`pass_gate`).
    """

    def __init__(self, fs: FileSystem) -> None:
        self._fs = fs
        self.gate: trio.Event | None = None
        self._wanted = 0
        self._done = 0
        self._is_committing = False
        self._commit_over = trio.Event()
        self._rows_committed = 0
        self._rows_durable = 0
        self._sync_ns = FAST_SYNC_NS
        self._is_syncing = False
        self._sync_over = trio.Event()
        self._is_held = False
        self._is_room_wanted = trio.Event()

    # --- for requests

    async def pass_gate(self) -> None:
        """Wait until changes of data are let in."""
        while self.gate is not None:
            await self.gate.wait()

    async def room_to_write(self) -> None:
        """Wait until the gate is open and the sealing thread has caught up."""
        while self.gate is not None or self._fs.pipeline.is_full:
            if self._fs.pipeline.is_full:
                await trio.to_thread.run_sync(self._fs.pipeline.wait_for_room)
            await self.pass_gate()

    async def fsync(self) -> None:
        """Make everything that was done before the call durable.

        Raises:
            NoSpaceError, StorageError: it could not be made durable.
        """
        if self.gate is None and not self._is_committing:
            try:
                is_logged = self._fs.committer.try_log()
            except _Database as error:
                raise self._fs.committer.fail(error) from error
            if is_logged:
                self._fs.committer.checkpoint_if_large()
                self._rows_committed += 1
                await self._sync_rows()
                return
        await self.commit()

    async def commit(self) -> None:
        """A full commit of everything that was done before the call, shared with others who want one.

        Raises:
            NoSpaceError, StorageError: it could not be made durable.
        """
        self._wanted += 1
        mine = self._wanted
        while self._done < mine:
            if self._is_committing:
                await self._commit_over.wait()
                continue
            self._is_committing = True
            self._commit_over = trio.Event()
            covered = self._wanted
            try:
                await self._commit_now()
                self._done = covered
            except _Database as error:
                raise self._fs.committer.fail(error) from error
            finally:
                self._is_committing = False
                self._commit_over.set()

    async def _commit_now(self) -> None:
        committer = self._fs.committer
        committer.stage()
        await trio.to_thread.run_sync(committer.wait_synced)
        self.gate = trio.Event()
        try:
            while True:
                committer.stage()
                if committer.can_finish:
                    break
                await trio.to_thread.run_sync(committer.wait_synced)
            committer.finish()
            # Not after waiting: it commits the open transaction, which then holds halves of later requests.
            committer.checkpoint_if_large()
            self._rows_committed += 1
        finally:
            gate, self.gate = self.gate, None
            gate.set()
        await self._sync_rows()
        committer.clean_up()
        if committer.is_reclaim_urgent:
            self._is_room_wanted.set()

    async def _sync_rows(self) -> None:
        """Make the rows committed so far durable."""
        wanted = self._rows_committed
        while self._rows_durable < wanted:
            if self._is_syncing:
                await self._sync_over.wait()
                continue
            self._is_syncing = True
            self._sync_over = trio.Event()
            covered = self._rows_committed
            try:
                # A hand-over to a thread and back costs about 100 us; a fast disk is done in less than that twice.
                if self._sync_ns < FAST_SYNC_NS:
                    self._timed_sync()
                else:
                    await trio.to_thread.run_sync(self._timed_sync)
                self._rows_durable = covered
            finally:
                self._is_syncing = False
                self._sync_over.set()

    # --- for snapshots

    async def run(self, steps: Steps[T]) -> T:
        """Carry out steps one after the other while requests go on; what may block runs in threads.

        Raises:
            VaultError: what the steps raise.
        """
        try:
            want = next(steps)
            while True:
                try:
                    await self._carry_out(want)
                except BaseException as error:  # noqa: BLE001  # the steps decide what it means; they raise it again
                    want = steps.throw(error)
                else:
                    want = next(steps)
        except StopIteration as done:
            result: T = done.value
            return result
        finally:
            self._let_go()

    async def _carry_out(self, want: Want) -> None:
        if want is Step.COMMIT:
            await self.commit()
        elif want is Step.HOLD:
            while self._is_committing:
                await self._commit_over.wait()
            self._is_held = self._is_committing = True
            self._commit_over = trio.Event()
            self.gate = trio.Event()
        elif want is Step.LET_GO:
            self._let_go()
        elif want is Step.ROOM:
            await self.room_to_write()
        elif isinstance(want, Step):
            await trio.sleep(SWEEP_PAUSE_S)
        else:
            await trio.to_thread.run_sync(want)

    def _let_go(self) -> None:
        """Let data be changed and commits happen again."""
        if self._is_held:
            self._is_held = self._is_committing = False
            gate, self.gate = self.gate, None
            assert gate is not None
            gate.set()
            self._commit_over.set()

    def _timed_sync(self) -> None:
        began_ns = time.perf_counter_ns()
        self._fs.committer.sync_wal()
        self._sync_ns = time.perf_counter_ns() - began_ns

    # --- in the background

    async def commit_regularly(self, interval_s: float, collect_pages: Callable[[], None], handles: Handles) -> None:
        """Commit every ``interval_s`` seconds if there is something to commit.  Runs until cancelled.

        What programs wrote may still be in the kernel's page cache, where it would stay for up to 30 s; so as long as a
        file is open for writing, the kernel is asked for it first.

        Args:
            interval_s: seconds.
            collect_pages: makes the kernel write its dirty pages to us; called in a thread.
            handles: tell whether any file is open for writing.

        A full disk is logged and tried again; programs learn of it by their own fsync and write.
        """
        while True:
            await trio.sleep(interval_s)
            give_back_memory()
            if handles.writers and self._fs.committer.failure is None:
                try:
                    await trio.to_thread.run_sync(collect_pages)
                except OSError as error:
                    log.warning("the kernel cannot write its dirty pages: %s", error)
            # Somebody may want something all the time; then this is when deleted files are released.
            await self._tidy_while(lambda: True)
            if self._fs.committer.is_clean or self._fs.committer.failure is not None:
                continue
            try:
                await self.commit()
            except NoSpaceError as error:
                log.warning("cannot commit yet: %s", error)
            except VaultError as error:
                log.critical("commit failed: %s", error)

    async def sweep_when_idle(self, counter: CountsRequests) -> None:
        """Release the extents of deleted files while nobody wants anything, and room at once if much is waiting.

        Runs until cancelled.
        """
        while True:
            before = counter.requests
            with trio.move_on_after(IDLE_SWEEP_S):
                await self._is_room_wanted.wait()
            self._is_room_wanted = trio.Event()
            await self._tidy_while(lambda: self._fs.committer.is_reclaim_urgent)
            await self._tidy_while(partial(_is_idle, counter, before))

    async def _tidy_while(self, is_wanted: Callable[[], bool]) -> None:
        """Release a bounded amount, in small steps, as long as nothing is being committed."""
        for _ in range(TIDY_STEPS):
            if self._is_committing or not is_wanted() or not self._tidy():
                break
            await trio.sleep(SWEEP_PAUSE_S)

    def _tidy(self) -> bool:
        """Release some of what deleted files had; return whether there is more to do."""
        fs = self._fs
        if fs.committer.failure is not None:
            return False
        try:
            is_swept = not fs.files.sweep(SWEPT_EXTENTS)
            return fs.committer.reclaim_step() or not is_swept
        except (VaultError, _Database) as error:
            fs.committer.fail(error)
            return False
