"""From plaintext chunks to bytes in a segment: sealed by the core into batches, appended by a thread.

Sealing 128 KiB takes 9 us and appending it 60 us, most of that for the kernel's pages; so the thread does only the long
calls (``pwritev``, hashing, ``fdatasync``) and the two hardly ever wait for the interpreter's lock.  A job's place in
the segment is known when it is submitted; it counts when the core has collected its event, and nothing of that may be
committed before :meth:`SealingPipeline.sync` has returned.

Errors: what cannot be appended is sealed again into a new segment, once.  A failed fdatasync is not believed a second
time (the kernel marks the pages clean): what was not synced is read back, opened, and sealed into a new segment.  If
the disk is full, the jobs come back with ``error`` set, and the core keeps their data.  Anything else is final:
:attr:`SealingPipeline.failure` is set, and the vault becomes read-only.
"""

from __future__ import annotations

import logging
import os
import threading
from collections import deque
from collections.abc import Callable
from queue import SimpleQueue
from typing import Final

from vaultfs.crypto.aead import OVERHEAD_BYTES, SegmentCipher
from vaultfs.crypto.compression import compress
from vaultfs.crypto.keys import Keyring, fingerprint
from vaultfs.errors import IntegrityError, NoSpaceError, StorageError, VaultError
from vaultfs.ids import KeyEpoch
from vaultfs.storage.layout import VaultLayout
from vaultfs.storage.segment_format import (
    TRAILER_BYTES,
    IndexEntry,
    SegmentHeader,
    encode_index,
    encode_trailer,
)
from vaultfs.storage.segment_writer import SegmentWriter
from vaultfs.vault.sealing_jobs import ChunkMoved, Event, SealJob, SegmentBeingWritten, SegmentSealed

log = logging.getLogger(__name__)

SEGMENT_TARGET_BYTES: Final = 64 << 20
SEGMENT_MAX_CHUNKS: Final = 1 << 16
BATCH_BYTES: Final = 2 << 20
BATCH_JOBS: Final = 256
BACKLOG_LIMIT_BYTES: Final = 16 << 20
"""Plaintext that may wait for the thread; then the writer waits."""

KEPT_BUFFERS: Final = 4

_Task = Callable[[], None]


class _Batch:
    """Jobs sealed for one segment, side by side in one buffer."""

    __slots__ = ("buffer", "jobs", "length", "plaintext_bytes", "segment")

    def __init__(self, segment: SegmentBeingWritten, buffer: bytearray) -> None:
        self.segment = segment
        self.buffer = buffer
        self.length = 0
        self.plaintext_bytes = 0
        self.jobs: list[SealJob] = []


class SealingPipeline:
    """The thread and its queues.  All methods are for the core's thread but where they say otherwise.

    Args:
        layout: of the vault.
        keyring: its current epoch seals.
        is_compressing: try zstd on each chunk.
    """

    def __init__(self, layout: VaultLayout, keyring: Keyring, *, is_compressing: bool) -> None:
        self._layout = layout
        self._keyring = keyring
        self._is_compressing = is_compressing
        self._queue: SimpleQueue[_Batch | _Task | None] = SimpleQueue()
        self._events: deque[Event] = deque()
        self._free_buffers: deque[bytearray] = deque()
        self._thread: threading.Thread | None = None
        self._room = threading.Event()
        self._segment: SegmentBeingWritten | None = None
        self._batch: _Batch | None = None
        self._submitted_bytes = 0
        self._finished_bytes = 0
        self._submitted_jobs = 0
        self._finished_jobs = 0
        self._synced_jobs = 0
        self._unsynced: list[SegmentBeingWritten] = []
        self.failure: VaultError | None = None

    # --- for the core

    def submit(self, job: SealJob) -> None:
        """Seal a job's chunk, and hand it to the thread with the next batch.

        Raises:
            NoSpaceError, StorageError: a new segment cannot be made; the job was not taken.
        """
        payload = job.data
        if job.fingerprint is None:
            job.fingerprint = fingerprint(self._keyring.current.fingerprint, payload)
        if self._is_compressing:
            payload = compress(payload) or payload
        needed = len(payload) + OVERHEAD_BYTES
        batch = self._batch_with_room(needed)
        segment = batch.segment
        start = batch.length
        job.stored = segment.cipher.seal_into(
            memoryview(batch.buffer)[start : start + needed], job.chunk, payload, job.fingerprint, length=job.length
        )
        job.segment = segment
        job.offset = segment.planned_bytes
        batch.length += job.stored
        batch.plaintext_bytes += job.length
        batch.jobs.append(job)
        segment.planned_bytes += job.stored
        segment.planned_chunks += 1
        self._submitted_bytes += job.length
        self._submitted_jobs += 1
        if segment.planned_bytes >= SEGMENT_TARGET_BYTES or segment.planned_chunks >= SEGMENT_MAX_CHUNKS:
            self.flush()
            self._put(lambda: self._seal_segment(segment))
            self._segment = None
        elif batch.length >= BATCH_BYTES or len(batch.jobs) >= BATCH_JOBS:
            self.flush()

    def _batch_with_room(self, needed: int) -> _Batch:
        batch = self._batch
        if batch is not None and (batch.length + needed > len(batch.buffer) or batch.segment.replacement is not None):
            self.flush()
            batch = None
        if batch is None:
            if self._segment is None or self._segment.replacement is not None:
                self._segment = self._create_segment()
            size = max(BATCH_BYTES + (BATCH_BYTES >> 1), needed)
            buffer = self._free_buffers.popleft() if self._free_buffers else bytearray(size)
            if len(buffer) < needed:
                buffer = bytearray(size)
            batch = self._batch = _Batch(self._segment, buffer)
        return batch

    def _create_segment(self) -> SegmentBeingWritten:
        salt = os.urandom(32)
        vault_id = self._keyring.vault_id
        header = SegmentHeader(vault_id, KeyEpoch(self._keyring.epoch), salt)
        cipher = SegmentCipher(self._keyring.current.chunk, vault_id, salt)
        return SegmentBeingWritten(SegmentWriter.create(self._layout, header), salt, cipher)

    def flush(self) -> None:
        """Hand the batch over, however small it is."""
        batch, self._batch = self._batch, None
        if batch is not None:
            self._put(batch)

    def _put(self, item: _Batch | _Task) -> None:
        if self._thread is None:
            # Not earlier: a process that forks into the background must not have threads yet.
            self._thread = threading.Thread(target=self._run, name="vaultfs-append", daemon=True)
            self._thread.start()
        self._queue.put(item)

    @property
    def is_full(self) -> bool:
        """Whether the writer should wait (`wait_for_room`)."""
        return self._submitted_bytes - self._finished_bytes > BACKLOG_LIMIT_BYTES and self.failure is None

    def wait_for_room(self) -> None:
        """Block until a job can be taken without growing the backlog over its limit.  Any thread."""
        while self.is_full:
            self._room.clear()
            if self.is_full:
                self._room.wait(1.0)

    @property
    def is_synced(self) -> bool:
        """Whether everything that was submitted is durable."""
        return self._synced_jobs == self._submitted_jobs

    def collect(self) -> list[Event]:
        """What has happened since the last call, in order."""
        events: list[Event] = []
        while True:
            try:
                events.append(self._events.popleft())
            except IndexError:
                return events

    def sync(self) -> None:
        """Block until everything that was flushed before is appended and durable.  Any thread.

        Raises:
            StorageError: the disk failed; see :attr:`failure`.  A full disk is told by the jobs themselves.
        """
        if self._thread is not None:
            self._call(self._sync_all)

    def seal(self) -> None:
        """Seal the open segment, if there is one, and block until that is done; the next job begins another.

        Raises:
            StorageError: the disk failed.
        """
        self.flush()
        segment, self._segment = self._segment, None
        if segment is not None:
            self._call(lambda: self._seal_segment(segment))

    def seal_soon(self) -> None:
        """Have the open segment sealed behind what is in it; `sync` waits for that too."""
        self.flush()
        segment, self._segment = self._segment, None
        if segment is not None:
            self._put(lambda: self._seal_segment(segment))

    @property
    def has_open_segment(self) -> bool:
        """Whether the next job joins others in a segment."""
        return self._segment is not None

    def close(self) -> None:
        """End the thread; an open segment stays as it is, for recovery."""
        if self._thread is not None:
            self._queue.put(None)
            self._thread.join()
            self._thread = None
        if self._segment is not None:
            self._segment.writer.close()
            self._segment = None

    def _call(self, work: _Task) -> None:
        done = threading.Event()

        def task() -> None:
            try:
                if self.failure is None:
                    work()
            finally:
                done.set()

        self._put(task)
        done.wait()
        if self.failure is not None:
            raise StorageError(str(self.failure)) from self.failure

    # --- in the thread

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            if isinstance(item, _Batch):
                self._finish_batch(item)
            else:
                self._guarded(item)

    def _guarded(self, work: _Task) -> None:
        try:
            work()
        except VaultError as error:
            self.failure = error
        except Exception as error:  # noqa: BLE001  # a dead thread would hang every writer; this way they all get EIO
            self.failure = StorageError(f"sealing failed: {type(error).__name__}: {error}")
            self.failure.__cause__ = error

    def _finish_batch(self, batch: _Batch) -> None:
        if self.failure is None:
            self._guarded(lambda: self._append(batch))
        self._finished_jobs += len(batch.jobs)
        self._finished_bytes += batch.plaintext_bytes
        if len(self._free_buffers) < KEPT_BUFFERS:
            self._free_buffers.append(batch.buffer)
        self._room.set()

    def _append(self, batch: _Batch) -> None:
        try:
            segment = batch.segment
            if segment.replacement is None:
                try:
                    if segment.writer.append([memoryview(batch.buffer)[: batch.length]]) != batch.jobs[0].offset:
                        raise StorageError(f"segment open/{segment.token} is not as long as it was planned")
                except VaultError:
                    # Later batches have places behind this one; so they all go elsewhere.
                    segment.replacement = self._create_segment()
                    self._reseal(batch, segment.replacement)
            else:
                self._reseal(batch, segment.replacement)
        except NoSpaceError as error:
            for job in batch.jobs:
                job.error = error
        else:
            for job in batch.jobs:
                self._appended(job)
        self._events.extend(batch.jobs)

    def _appended(self, job: SealJob) -> None:
        segment = job.segment
        assert segment is not None
        if segment.synced == len(segment.entries):
            self._unsynced.append(segment)
        segment.entries.append(IndexEntry(job.chunk, job.offset, job.stored, job.length, job.owner, job.index))

    def _reseal(self, batch: _Batch, segment: SegmentBeingWritten) -> None:
        """Seal the jobs of a batch into another segment than they were sealed for."""
        for job in batch.jobs:
            assert job.fingerprint is not None
            payload = (compress(job.data) or job.data) if self._is_compressing else job.data
            buffer = memoryview(bytearray(len(payload) + OVERHEAD_BYTES))
            stored = segment.cipher.seal_into(buffer, job.chunk, payload, job.fingerprint, length=job.length)
            job.offset = segment.writer.append([buffer[:stored]])
            job.stored = stored
            job.segment = segment

    def _sync_all(self) -> None:
        finished = self._finished_jobs
        unsynced, self._unsynced = self._unsynced, []
        for segment in unsynced:
            self._sync_segment(segment)
        self._synced_jobs = finished

    def _sync_segment(self, segment: SegmentBeingWritten) -> None:
        if segment.synced == len(segment.entries):
            return
        try:
            segment.writer.sync()
        except (StorageError, NoSpaceError):
            self._rewrite_unsynced(segment)
        segment.synced = len(segment.entries)

    def _rewrite_unsynced(self, old: SegmentBeingWritten) -> None:
        """After a failed fdatasync: seal what was not durable into a new segment, once."""
        segment = old.replacement = self._create_segment()
        key = self._keyring.current.fingerprint
        for entry in old.entries[old.synced :]:
            sealed = old.writer.read(entry.offset, entry.stored)
            payload = old.cipher.open(entry.chunk_id, sealed, length=entry.length)
            buffer = memoryview(bytearray(entry.stored))
            # The payload may be compressed; its own fingerprint serves the nonce as well as the chunk's.
            segment.cipher.seal_into(buffer, entry.chunk_id, payload, fingerprint(key, payload), length=entry.length)
            offset = segment.writer.append([buffer])
            segment.entries.append(entry._replace(offset=offset))
            self._events.append(ChunkMoved(entry, old, segment, offset))
        del old.entries[old.synced :]
        segment.writer.sync()
        segment.synced = len(segment.entries)

    def _seal_segment(self, segment: SegmentBeingWritten) -> None:
        """Write index and trailer, and give a segment its final name.  On a full disk it stays open, for recovery."""
        self._sync_segment(segment)
        if segment.replacement is not None:  # of which only its sync's failure is the last resort
            segment = segment.replacement
            self._sync_segment(segment)
        writer = segment.writer
        offset = writer.size_bytes
        index = segment.cipher.seal_record(b"index", encode_index(segment.entries))
        trailer = segment.cipher.seal_record(b"trailer", encode_trailer(offset, len(index), len(segment.entries)))
        if len(trailer) != TRAILER_BYTES:
            raise IntegrityError("a segment's trailer has another length")
        try:
            writer.append([index, trailer])
            name = writer.seal()
        except NoSpaceError as error:
            log.warning("segment open/%s stays open: %s", segment.token, error)
            return
        self._events.append(SegmentSealed(segment, name, writer.size_bytes))
