"""Commit: the one place that orders what reaches the disk.

The order of a full commit, each step durable before the next begins to matter:

1. hand all dirty chunks to the sealing thread (`stage`);
2. append and ``fdatasync`` the segment (`wait_synced`, any thread);
3. rows of chunks and inodes, and ``COMMIT`` into the WAL (`finish`); only if nothing became dirty since 1;
4. ``fdatasync`` the WAL (`sync_wal`, any thread);
5. give back space that the committed state does not need (`clean_up`).

So the metadata on the disk never refers to a chunk that is not there, and a chunk that it refers to is never punched.
An ``fsync`` of little data takes the short way (`try_log`): no chunk is sealed; the records of `WriteLog` go into the
database with the metadata, and only step 4 remains.  Both kinds commit the whole vault, so that the disk always shows
one moment.
"""

from __future__ import annotations

import logging

from vaultfs.errors import NoSpaceError, StorageError, VaultError
from vaultfs.metadata.chunk_rows import ChunkRows
from vaultfs.metadata.database import MetadataDatabase
from vaultfs.metadata.tree_rows import TreeRows
from vaultfs.storage.layout import VaultLayout
from vaultfs.storage.segment_writer import discard_open_name
from vaultfs.vault.chunk_table import ChunkTable
from vaultfs.vault.files import Files
from vaultfs.vault.inodes import InodeTable
from vaultfs.vault.pipeline import SealingPipeline
from vaultfs.vault.reclaim import Reclaimer
from vaultfs.vault.tree import Tree
from vaultfs.vault.writeback import Writeback

log = logging.getLogger(__name__)

CHECKPOINT_BYTES = 48 << 20
"""Size of the WAL at which it is moved into the database; takes about 0.1 s."""

URGENT_RECLAIM_BYTES = 32 << 20
"""Whoever overwrites 300 MB in a second must not need 1.5 GB of room until the next regular commit."""


class Committer:
    """Makes the state of a vault durable.

    Args:
        database: the metadata.
        tree_rows: for orphans.
        chunk_rows: for the intent log.
        tree: has a counter to store.
        inodes: to flush.
        chunks: has a counter to store.
        files: have the intent log, and orphans.
        writeback: has dirty chunks.
        pipeline: seals them.
        reclaimer: gives space back.
        layout: where the segments are.
    """

    def __init__(
        self,
        database: MetadataDatabase,
        tree_rows: TreeRows,
        chunk_rows: ChunkRows,
        tree: Tree,
        inodes: InodeTable,
        chunks: ChunkTable,
        files: Files,
        writeback: Writeback,
        pipeline: SealingPipeline,
        reclaimer: Reclaimer,
        layout: VaultLayout,
    ) -> None:
        self._database = database
        self._tree_rows = tree_rows
        self._chunk_rows = chunk_rows
        self._tree = tree
        self._inodes = inodes
        self._chunks = chunks
        self._files = files
        self._writeback = writeback
        self._pipeline = pipeline
        self._reclaimer = reclaimer
        self._layout = layout
        self._stored_counters = (0, 0, 0)
        self._changes_seen = database.changes()
        self.leftover_tokens: list[str] = []
        """Segments that recovery has sealed: their open names go once that is durable."""
        self.is_image_in_use = False
        """While a snapshot reads the database file it must not change, so the WAL grows past its limit."""
        self.failure: VaultError | None = None
        """Set once for all: something could not be made durable, and the vault is read-only."""

    # --- the steps

    @property
    def is_clean(self) -> bool:
        """Whether a commit would change nothing."""
        return (
            self._writeback.is_settled
            and self._files.write_log.is_empty
            and not self._inodes.has_changes()
            and self._database.changes() == self._changes_seen
        )

    def stage(self) -> None:
        """Step 1.

        Raises:
            NoSpaceError: the disk is full; nothing is lost while the vault stays open.
        """
        self._writeback.stage()
        self._pipeline.flush()
        self._writeback.collect()

    def wait_synced(self) -> None:
        """Step 2.  Any thread.

        Raises:
            StorageError: the disk failed for good.
        """
        self._pipeline.sync()

    @property
    def can_finish(self) -> bool:
        """Whether all data is in synced segments; otherwise `stage` and `wait_synced` once more."""
        return self._pipeline.is_synced and self._writeback.is_settled

    def finish(self) -> None:
        """Step 3.

        Raises:
            NoSpaceError: the disk is full; try again later.
            StorageError: the database failed; the vault is read-only from now on.
        """
        if self._files.write_log.clear():
            self._chunk_rows.clear_intents()
        self._reclaimer.note()
        self._commit_rows()

    def try_log(self) -> bool:
        """Steps 1 to 3 of the short way; False if it has to be the long way.

        Raises:
            NoSpaceError, StorageError: as `finish`.
        """
        write_log = self._files.write_log
        self._writeback.collect()
        if not write_log.is_usable or self._writeback.has_pending or not self._pipeline.is_synced:
            return False
        records = write_log.take()
        if records:
            self._chunk_rows.put_intents(records)
        self._commit_rows()
        self._database.reserve_wal()
        return True

    def _commit_rows(self) -> None:
        if self.failure is not None:
            raise self.failure
        try:
            self._files.store_orphans(self._tree_rows)
            self._inodes.flush()
            counters = (self._inodes.next_inode, self._chunks.next_chunk, self._tree.next_cookie)
            if counters != self._stored_counters:
                for name, value in zip(("next_inode", "next_chunk", "next_cookie"), counters, strict=True):
                    self._database.set_setting(name, value)
                self._stored_counters = counters
            self._database.commit()
        except NoSpaceError as error:
            if not self._database.is_intact:
                raise self.fail(error) from error
            raise
        except Exception as error:
            # Whatever it was, the rows are not on the disk, and it would be the same the next time.
            raise self.fail(error) from error
        self._changes_seen = self._database.changes()

    def fail(self, error: Exception) -> StorageError:
        """Make the vault read-only for good, and return what to raise."""
        if self.failure is None:
            log.critical("the vault is read-only until it is mounted again: %s", error)
            self.failure = StorageError(f"the vault is read-only until it is mounted again: {error}")
        assert isinstance(self.failure, StorageError)
        return self.failure

    def sync_wal(self) -> None:
        """Step 4.  Any thread.

        Raises:
            StorageError: the disk failed; the vault is read-only from now on.
        """
        if self.failure is not None:
            raise self.failure  # the kernel reports a failed sync once; the next one would lie
        try:
            self._database.sync_wal()
        except StorageError as error:
            raise self.fail(error) from error

    def clean_up(self) -> None:
        """Step 5, the part that is quick; `reclaim_step` does the rest, some time.

        Raises:
            StorageError: an open name cannot be deleted.
        """
        for segment in self._chunks.to_discard:
            segment.writer.discard_open_name()
            segment.writer.close()
        self._chunks.to_discard.clear()
        for token in self.leftover_tokens:
            discard_open_name(self._layout, token)
        self.leftover_tokens.clear()
        self._reclaimer.made_durable()

    @property
    def is_reclaim_urgent(self) -> bool:
        """Whether room should be given back now, and not in an idle moment: it is much, or more comes all the time."""
        reclaimer = self._reclaimer
        return reclaimer.has_work and (reclaimer.is_behind or reclaimer.waiting_bytes > URGENT_RECLAIM_BYTES)

    def reclaim_step(self) -> bool:
        """Give a little room back that the durable state does not need; return whether there is more to do."""
        if self.failure is not None or not self._reclaimer.has_work:
            return False
        self._reclaimer.step()
        return self._reclaimer.has_work

    def checkpoint_if_large(self) -> None:
        """Empty the WAL if it has grown; nothing else may be between two steps.

        Raises:
            StorageError: the disk failed.
        """
        if not self.is_image_in_use and self._database.wal_bytes() > CHECKPOINT_BYTES:
            self.checkpoint()

    def checkpoint(self) -> None:
        """Move the WAL into the database file; commits what the open transaction holds, so only call after `finish`.

        Raises:
            StorageError: the disk failed; the vault is read-only from now on.
        """
        try:
            self._database.checkpoint(truncate=False)
        except NoSpaceError as error:
            log.warning("the metadata's log cannot be emptied yet: %s", error)
        except VaultError as error:
            raise self.fail(error) from error

    def finish_into_file(self) -> None:
        """Step 3, and the same state as a database file without a WAL, durable on return.

        Raises:
            NoSpaceError, StorageError: as `finish`; the state is committed, but the file is not of that state.
        """
        self.finish()
        self.checkpoint()
        if self._database.wal_bytes():
            raise NoSpaceError("no space to empty the metadata's log; free space on the disk below the vault")

    # --- all of it, for callers that may block

    def commit(self) -> None:
        """All steps of a full commit, one after the other.

        Raises:
            NoSpaceError, StorageError: as the steps.
        """
        self.stage()
        self.wait_synced()
        self._writeback.collect()
        if not self.can_finish:
            raise StorageError("the sealing thread did not finish what it was given")
        self.finish()
        self.sync_wal()
        self.clean_up()
        while self.reclaim_step():
            pass
        self.checkpoint_if_large()

    def fsync(self) -> None:
        """Make everything durable the shortest way.

        Raises:
            NoSpaceError, StorageError: as the steps.
        """
        if self.try_log():
            self.sync_wal()
            self.checkpoint_if_large()
        else:
            self.commit()
