"""Compaction: segments with little left, and all that older keys sealed, are written again into the open segment.

A chunk keeps its number and gets a new place.  Each is read and opened first, so damage is found here and never copied;
its row follows only when the new copy was appended (`Compactor.submit`, called back by `ChunkTable.took_move`), and is
committed only when that is durable.  The old range is reclaimed after that commit, like any other garbage.  So a crash
at any instant loses nothing but work, and the next mount goes on: what is left to do is found in the tables, not
remembered.

What is rewritten (`POLICY`): sealed segments with little left in them; with much that is dead but that no hole gives
back, because small chunks die one by one inside the disk's blocks; small ones, once there are many; all segments of
older key epochs, until those keys can be thrown away (`Compactor.retire`); and in a vault that has remotes, those with
holes, because only whole ones can be copied there.  A segment that is not on this disk is fetched for this only if its
key is to be thrown away; while it cannot be had, it waits.  What a snapshot needs stays where its image
says it is: such a segment is passed over while the snapshot lives, and so is one that a kept snapshot needs.

It goes in steps of a few MiB, which whoever has time carries out: a mounted vault when it is idle, `compact` at once.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Final

from vaultfs.errors import IntegrityError, NoSpaceError, ObjectMissingError, RemoteError, VaultError
from vaultfs.ids import InodeId, SegmentId, SegmentName
from vaultfs.metadata.chunk_rows import ChunkPlace, ChunkRow
from vaultfs.metadata.compaction_rows import CompactionRows, Policy
from vaultfs.metadata.rekeying import key_epoch
from vaultfs.storage.durable import atomic_replace
from vaultfs.vault.opening import load_header
from vaultfs.vault.reading import read_sealed
from vaultfs.vault.sealing_jobs import NOBODY, SealJob
from vaultfs.vault.segment_index import index_entries
from vaultfs.vault.writeback import DEDUP_MIN_BYTES

if TYPE_CHECKING:
    from vaultfs.vault.filesystem import FileSystem
    from vaultfs.vault.segments import ReadableSegment

log = logging.getLogger(__name__)

POLICY: Final = Policy(
    least_gain=256 << 10,  # under this, rewriting the metadata costs as much as it saves
    live_percent=30,
    waste_percent=25,
    small=4 << 20,
    most_small=32,  # every mount leaves at least one
)
NOTHING_MORE: Final = Policy(least_gain=1 << 62, live_percent=0, waste_percent=100, small=0, most_small=0)
"""Only what must be rewritten."""
STEP_BYTES: Final = 4 << 20
"""Of plaintext; sealing it takes the core about a millisecond."""
STEP_CHUNKS: Final = 256
"""The rows of so many chunks take the core a few milliseconds."""
LOOKS_PER_STEP: Final = 64
"""Segments that are looked at, and passed over, in one step."""

AWAY_PAUSE_S: Final = 60.0
"""After so long it is tried again to fetch what is to be rewritten."""

CompactProgress = Callable[[int, int], None]
"""Told bytes done and bytes in all."""


def _is_away(error: VaultError) -> bool:
    """Whether a segment elsewhere may be had later: a remote cannot be reached, or there is no room to fetch into."""
    return isinstance(error, RemoteError | NoSpaceError) and not isinstance(error, ObjectMissingError)


class _Source:
    """A segment that is being rewritten.

    Attributes:
        number: of its row.
        is_due: an older key has sealed it, so it must be rewritten, wherever it lies.
        name: of its file.
        after: number of the last chunk that a step has.
        owners: for which file, and where in it, each chunk was written; None until `load_owners`.
    """

    def __init__(self, number: SegmentId, name: SegmentName, *, is_due: bool) -> None:
        self.number = number
        self.is_due = is_due
        self.name = name
        self.after = 0
        self.owners: dict[int, tuple[InodeId, int]] | None = None

    def load_owners(self, segment: ReadableSegment) -> dict[int, tuple[InodeId, int]]:
        """Read the segment's own index, so that the new segment's can say as much.  Any thread.

        A segment that a crash left open has none; then the new one knows as little.

        Args:
            segment: the same, open.

        Raises:
            VaultError: it cannot be had now.
        """
        if self.owners is None:
            try:
                entries = index_entries(segment)
            except VaultError as error:
                if _is_away(error):
                    raise
                log.info("what compaction moves is not in the new segment's index: %s", error)
                entries = []
            self.owners = {each.chunk_id: (each.inode, each.index) for each in entries}
        return self.owners


class CompactionStep:
    """A few chunks of one segment.

    Args:
        source: the segment.
        segment: the same, open.
        rows: the chunks.
    """

    def __init__(self, source: _Source, segment: ReadableSegment, rows: list[ChunkRow]) -> None:
        self._source = source
        self._segment = segment
        self.rows = rows
        self.owners: dict[int, tuple[InodeId, int]] = {}
        self.opened: list[tuple[ChunkRow, bytes]] = []
        self.is_damaged = False
        self.away: VaultError | None = None
        """Why the rest cannot be had now."""

    def read(self) -> None:
        """Read and open the chunks.  Any thread, under a lease of the segments.

        What cannot be read or opened is logged and left where it is; fsck tells which files it belongs to.
        """
        try:
            self.owners = self._source.load_owners(self._segment)
            self._read_chunks()
        except VaultError as error:
            self.away = error

    def _read_chunks(self) -> None:
        for row in self.rows:
            place = ChunkPlace(0, row.id, row.segment, row.offset, row.stored, row.length)
            try:
                self.opened.append((row, read_sealed(place, self._segment)))
            except VaultError as error:
                if _is_away(error):
                    raise
                self.is_damaged = True
                log.error("segment %s, chunk %d stays where it is: %s", self._segment.label, row.id, error)  # noqa: TRY400


class Compactor:
    """Rewrites the segments of one open vault.

    Args:
        fs: the vault, open for writing.
        policy: what is worth it.
        clock: seconds, never going back.

    Attributes:
        moved_bytes: plaintext handed to the sealing thread so far.
        full: set if the disk was full for the last step.
    """

    def __init__(self, fs: FileSystem, policy: Policy = POLICY, clock: Callable[[], float] = time.monotonic) -> None:
        self._fs = fs
        self._clock = clock
        self._away_until_s: float | None = None
        self._policy = policy
        self._rows = CompactionRows(fs.database)
        self._queue: deque[SegmentId] = deque()
        self._looked_at = (-1, False)
        self._source: _Source | None = None
        self._damaged: set[SegmentId] = set()
        self._kept_epochs: set[int] = set(fs.keyring.epochs)
        self.moved_bytes = 0
        self.full: NoSpaceError | None = None

    # --- the steps, in the core but for `CompactionStep.read`

    def plan(self) -> CompactionStep | None:
        """The next step; None if there is nothing to do now (`has_more` says whether there may be right after).

        A lease of the segments must be taken before anything else happens, and held until `CompactionStep.read` ends.
        """
        if self._fs.is_snapshot_busy:
            return None
        for _ in range(LOOKS_PER_STEP):
            if self._source is None:
                self._source = self._next_source()
            if self._source is None:
                return None
            step = self._step_in(self._source)
            if step is not None:
                return step
            self._source = None
        return None

    @property
    def has_more(self) -> bool:
        """Whether `plan` has begun something that it has not finished."""
        return self._source is not None or bool(self._queue)

    def _next_source(self) -> _Source | None:
        """The next segment that looks worth it; the tables are searched only if something has changed in them."""
        if self._away_until_s is not None and self._clock() >= self._away_until_s:
            self._away_until_s = None
            self._looked_at = (-1, False)
        if not self._queue:
            keeps_whole = self._fs.reclaimer.keeps_whole
            state = (self._fs.database.changes(), keeps_whole)
            if state == self._looked_at:
                return None
            self._looked_at = state
            found = self._rows.worth_rewriting(self._fs.keyring.epoch, self._policy, keeps_whole=keeps_whole)
            self._queue.extend(number for number in found if number not in self._damaged)
        while self._queue:
            row = self._fs.chunk_rows.segment(self._queue.popleft())
            if row is not None and row.name is not None:
                return _Source(row.id, SegmentName(row.name), is_due=row.epoch < self._fs.keyring.epoch)
        return None

    def _step_in(self, source: _Source) -> CompactionStep | None:
        """A step in one segment, or None if it is done, unreadable, or needed by a snapshot."""
        if self._rows.is_needed_by_snapshots(source.number) or self._is_kept(source.name):
            return None
        rows: list[ChunkRow] = []
        size = 0
        for chunk in self._rows.chunks_after(source.number, source.after, STEP_CHUNKS):
            size += chunk.length
            if rows and size > STEP_BYTES:
                break
            rows.append(chunk)
        if not rows:
            return None
        source.after = rows[-1].id
        try:
            segment = self._fs.segments.get(source.number)
        except VaultError as error:
            log.error("segment %d stays as it is: %s", source.number, error)  # noqa: TRY400  # the message says it all
            self._damaged.add(source.number)
            return None
        if not segment.is_here and (not source.is_due or self._away_until_s is not None):
            return None  # to fetch all of it would cost more than it gives back; or it cannot be had now
        return CompactionStep(source, segment, rows)

    def _is_kept(self, name: SegmentName) -> bool:
        """Whether a kept snapshot needs a segment; rewriting it would give nothing back."""
        try:
            return name in self._fs.kept.names()
        except VaultError as error:
            log.error("segment %s stays as it is: %s", name, error)  # noqa: TRY400  # the message says it all
            return True

    def submit(self, step: CompactionStep) -> None:
        """Seal what a step has read; a commit after this makes it count.

        Raises:
            NoSpaceError, StorageError: a new segment cannot be made; nothing of the rest was sealed.
        """
        fs = self._fs
        self.full = None
        if step.is_damaged:
            self._damaged.add(step.rows[0].segment)
        if step.away is not None:
            log.warning("what older keys sealed is written again when it can be had; now: %s", step.away)
            self._away_until_s = self._clock() + AWAY_PAUSE_S
            self._source = None
        if fs.is_snapshot_busy:
            self._begin_anew()  # the state that is being kept names these places
            return
        moves = fs.chunks.moves
        for row, data in step.opened:
            if row.id in moves:
                continue
            moves[row.id] = partial(self._arrived, row)
            owner, index = step.owners.get(row.id, (NOBODY, 0))
            try:
                fs.pipeline.submit(SealJob(row.id, data, None, owner=owner, index=index))
            except VaultError:
                del moves[row.id]
                self._begin_anew()
                raise
            self.moved_bytes += row.length

    def _arrived(self, was: ChunkRow, job: SealJob) -> None:
        """A chunk was sealed again: let its row follow, unless something happened to it meanwhile."""
        fs = self._fs
        if job.error is not None or job.segment is None or job.fingerprint is None:
            self.full = job.error  # the old place is as good as ever
            self._begin_anew()
            return
        row = fs.chunk_rows.chunk(was.id)
        if row is None or (row.segment, row.offset) != (was.segment, was.offset) or fs.chunks.is_kept(row):
            fs.chunks.garbage(job)
            return
        new = fs.chunks.segment_id(job.segment)
        fs.chunk_rows.put_reclaim(row.segment, row.offset, row.stored)
        fs.chunk_rows.move_chunk(row.id, new, job.offset, job.stored)
        fs.chunk_rows.add_live(row.segment, -row.stored)
        fs.chunk_rows.add_live(new, job.stored)
        if row.fingerprint is None and row.length >= DEDUP_MIN_BYTES:
            # A rotation made it forget; deduplication finds it again from here on.
            self._rows.put_fingerprint(row.id, job.fingerprint[:16])

    def _begin_anew(self) -> None:
        """Search the tables again, although nothing may have changed in them."""
        self._source = None
        self._looked_at = (-1, False)

    # --- the end of a rotation

    def unneeded_epochs(self) -> set[int]:
        """Older epochs of which nothing is left, as soon as everything so far is durable.  None comes back."""
        if len(self._kept_epochs) == 1:
            return set()
        used = {self._fs.keyring.epoch, key_epoch(self._fs.database)} | self._rows.epochs()
        unneeded = self._kept_epochs - used
        return unneeded - self._fs.kept.epochs(self._fs.keyring) if unneeded else unneeded

    def retire(self, epochs: set[int]) -> None:
        """Throw away older keys.

        Args:
            epochs: from `unneeded_epochs`, called before the last commit began.

        Raises:
            IntegrityError: ``vault.json`` was tampered with.
            NoSpaceError, StorageError: it stays as it was.
        """
        kept = self._kept_epochs - epochs
        # The vault's lock is held while it is open, so nobody else writes the header meanwhile.
        header = load_header(self._fs.layout)
        if header.epoch != self._fs.keyring.epoch:
            raise IntegrityError(f"{self._fs.layout.header} was replaced while the vault was open; restore it")
        # Who has just ended an adoption has keys that only kept snapshots need, and that the header is not to have.
        in_header = header.unlock_with(self._fs.keyring).epochs
        smaller, _ = header.retire_epochs(self._fs.keyring, kept.intersection(in_header))
        atomic_replace(self._fs.layout.header, smaller.encode())
        log.info("threw away the keys of epochs %s", sorted(epochs))
        self._kept_epochs = kept


def compact(
    fs: FileSystem, *, progress: CompactProgress | None = None, old_keys_only: bool = False, policy: Policy = POLICY
) -> None:
    """Do all there is to do, step after step, waiting for the disk.

    Args:
        fs: the vault; nothing else happens in it meanwhile.
        progress: told after each step.
        old_keys_only: only what older keys have sealed.
        policy: what else is worth it.

    Raises:
        NoSpaceError, StorageError: what is done is durable; the rest can be done later.
    """
    chosen = NOTHING_MORE if old_keys_only else policy
    compactor = Compactor(fs, chosen)
    total_bytes = CompactionRows(fs.database).old_data(fs.keyring.epoch).live_bytes
    while True:
        fs.check_room(STEP_BYTES)
        with fs.changing():
            step = compactor.plan()
        if step is not None:
            step.read()
            with fs.changing():
                compactor.submit(step)
                fs.committer.commit()
            if compactor.full is not None:
                raise compactor.full
            if progress is not None:
                progress(min(compactor.moved_bytes, total_bytes), total_bytes)
        elif not compactor.has_more:
            break
    with fs.changing():
        while not fs.committer.is_clean:
            fs.committer.commit()  # the one before deleted segments; their rows go with this one
        epochs = compactor.unneeded_epochs()
        if epochs:
            fs.committer.commit()
            compactor.retire(epochs)
