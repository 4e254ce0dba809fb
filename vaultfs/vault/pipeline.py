"""The sealing thread: turns chunks of plaintext into bytes of the open segment, beside the core.

The core hands over jobs and goes on; the thread seals a batch into one buffer, appends it with one call, and puts what
happened on a queue that the core empties with :meth:`SealingPipeline.collect`.  Nothing of that may be committed
before :meth:`SealingPipeline.sync` has returned.

Errors: an append that fails is tried again once in a new segment.  A failed fdatasync is not believed a second time
(the kernel marks the pages clean): what was not synced is read back, opened, and sealed into a new segment once.  If
the disk is full, the jobs come back with ``error`` set, and the core keeps their data.  Anything else is final:
:attr:`SealingPipeline.failure` is set, and the vault becomes read-only.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections import deque
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Final

from vaultfs.crypto.aead import OVERHEAD_BYTES, SegmentCipher
from vaultfs.crypto.compression import compress
from vaultfs.crypto.keys import Keyring, fingerprint
from vaultfs.errors import IntegrityError, NoSpaceError, StorageError, VaultError
from vaultfs.ids import ChunkId, InodeId, KeyEpoch, SegmentId, SegmentName
from vaultfs.storage.layout import VaultLayout
from vaultfs.storage.segment_format import (
    HEADER_BYTES,
    TRAILER_BYTES,
    IndexEntry,
    SegmentHeader,
    encode_index,
    encode_trailer,
)
from vaultfs.storage.segment_writer import SegmentWriter
from vaultfs.vault.inodes import Inode

SEGMENT_TARGET_BYTES: Final = 64 << 20
SEGMENT_MAX_CHUNKS: Final = 1 << 16
BATCH_BYTES: Final = 2 << 20
BATCH_JOBS: Final = 256
BACKLOG_LIMIT_BYTES: Final = 16 << 20
"""Plaintext that may wait for the thread; then the writer waits."""

_Task = Callable[[], None]


class SegmentBeingWritten:
    """The open segment of this process.

    Attributes:
        id: its row; None until the core has made one.
        cipher: for reading back.
    """

    __slots__ = ("cipher", "entries", "id", "salt", "writer")

    def __init__(self, writer: SegmentWriter, salt: bytes, cipher: SegmentCipher) -> None:
        self.writer = writer
        self.salt = salt
        self.cipher = cipher
        self.entries: list[IndexEntry] = []
        self.id: SegmentId | None = None

    @property
    def token(self) -> str:
        """Its name while open."""
        return self.writer.token


class SealJob:
    """One chunk on its way into a segment.

    Attributes:
        inode: None for a piece of a snapshot's image or a chunk that is only moved.
        data: the plaintext; must not change any more.
        fingerprint: of ``data`` if the core has computed it already.
        segment: set with ``offset`` and ``stored`` (bytes) once appended.
        error: set if the disk was full.
    """

    __slots__ = ("chunk", "data", "error", "fingerprint", "index", "inode", "length", "offset", "segment", "stored")

    def __init__(
        self,
        chunk: ChunkId,
        data: bytes | bytearray | memoryview,
        fingerprint: bytes | None,
        *,
        inode: Inode | None = None,
        index: int = 0,
    ) -> None:
        self.chunk = chunk
        self.data = data
        self.length = len(data)
        self.fingerprint = fingerprint
        self.inode = inode
        self.index = index
        self.segment: SegmentBeingWritten | None = None
        self.offset = 0
        self.stored = 0
        self.error: NoSpaceError | None = None


class SegmentSealed:
    """Event: a segment got its final name; its open name may go once the row that says so is durable."""

    __slots__ = ("name", "segment", "size")

    def __init__(self, segment: SegmentBeingWritten, name: SegmentName, size: int) -> None:
        self.segment = segment
        self.name = name
        self.size = size


class ChunkMoved:
    """Event: after a failed sync a chunk lies elsewhere than reported before."""

    __slots__ = ("chunk", "offset", "old", "old_offset", "segment", "stored")

    def __init__(self, entry: IndexEntry, old: SegmentBeingWritten, segment: SegmentBeingWritten, offset: int) -> None:
        self.chunk = ChunkId(entry.chunk_id)
        self.old = old
        self.old_offset = entry.offset
        self.stored = entry.stored
        self.segment = segment
        self.offset = offset


Event = SealJob | SegmentSealed | ChunkMoved


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
        self._queue: SimpleQueue[SealJob | _Task | None] = SimpleQueue()
        self._events: deque[Event] = deque()
        self._thread: threading.Thread | None = None
        self._submitted_bytes = 0
        self._finished_bytes = 0
        self._room = threading.Event()
        self._segment: SegmentBeingWritten | None = None
        self._synced_entries = 0
        self._is_synced = True
        self._buffer = bytearray()
        self.failure: VaultError | None = None

    # --- for the core

    def submit(self, job: SealJob) -> None:
        """Hand over a job."""
        self._submitted_bytes += job.length
        self._is_synced = False
        self._put(job)

    def _put(self, item: SealJob | _Task) -> None:
        if self._thread is None:
            # Not earlier: a process that forks into the background must not have threads yet.
            self._thread = threading.Thread(target=self._run, name="vaultfs-seal", daemon=True)
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
        """Whether everything that was handed over is durable."""
        return self._is_synced

    def collect(self) -> list[Event]:
        """What has happened since the last call, in order."""
        events: list[Event] = []
        while True:
            try:
                events.append(self._events.popleft())
            except IndexError:
                return events

    def sync(self) -> None:
        """Block until all jobs handed over before are appended and durable.  Any thread.

        Raises:
            StorageError: the disk failed; see :attr:`failure`.  A full disk is told by the jobs themselves.
        """
        if self._thread is None:
            return
        self._is_synced = True  # a job submitted meanwhile takes it back
        self._call(self._sync_segment)

    def seal(self) -> None:
        """Block until the open segment is sealed; the next job begins another.  Any thread.

        Raises:
            StorageError: the disk failed.
        """
        if self._thread is not None:
            self._call(self._seal_segment)

    def close(self) -> None:
        """End the thread; an open segment stays as it is, for recovery."""
        if self._thread is not None:
            self._queue.put(None)
            self._thread.join()
            self._thread = None
        if self._segment is not None:
            self._segment.writer.close()
            self._segment = None

    def _call(self, work: Callable[[], None]) -> None:
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
        item: SealJob | _Task | None = None
        while True:
            item = self._queue.get()
            while isinstance(item, SealJob):
                batch, item = self._gather(item)
                self._guarded(lambda batch=batch: self._seal_batch(batch))  # type: ignore[misc]
                self._finished_bytes += sum(job.length for job in batch)
                self._room.set()
            if item is None:
                return
            if not isinstance(item, SealJob):
                self._guarded(item)

    def _gather(self, first: SealJob) -> tuple[list[SealJob], SealJob | _Task | None]:
        """What is waiting, up to the limits of a batch, and the item after it (a task that does nothing if none)."""
        batch = [first]
        size = first.length
        while size < BATCH_BYTES and len(batch) < BATCH_JOBS:
            try:
                item = self._queue.get_nowait()
            except Empty:
                break
            if not isinstance(item, SealJob):
                return batch, item
            batch.append(item)
            size += item.length
        return batch, _nothing

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except VaultError as error:
            self.failure = error
        except Exception as error:  # noqa: BLE001  # a dead thread would hang every writer; this way they all get EIO
            self.failure = StorageError(f"sealing failed: {type(error).__name__}: {error}")
            self.failure.__cause__ = error

    def _seal_batch(self, batch: list[SealJob]) -> None:
        if self.failure is not None:
            return
        try:
            try:
                self._append(batch)
            except NoSpaceError:
                raise
            except StorageError:
                self._retire_segment()
                self._append(batch)
        except NoSpaceError as error:
            for job in batch:
                job.error = error
                self._events.append(job)
        segment = self._segment
        if segment is not None and (
            segment.writer.size_bytes >= SEGMENT_TARGET_BYTES or len(segment.entries) + BATCH_JOBS > SEGMENT_MAX_CHUNKS
        ):
            with contextlib.suppress(NoSpaceError):  # there is no room for the index yet; the next batch tries again
                self._seal_segment()

    def _open_segment(self) -> SegmentBeingWritten:
        if self._segment is None:
            salt = os.urandom(32)
            subkeys = self._keyring.current
            header = SegmentHeader(self._keyring.vault_id, KeyEpoch(self._keyring.epoch), salt)
            cipher = SegmentCipher(subkeys.chunk, self._keyring.vault_id, salt)
            self._segment = SegmentBeingWritten(SegmentWriter.create(self._layout, header), salt, cipher)
            self._synced_entries = 0
        return self._segment

    def _append(self, batch: list[SealJob]) -> None:
        """Seal a batch and append it with one call."""
        segment = self._open_segment()
        needed = sum(job.length + OVERHEAD_BYTES for job in batch)
        if len(self._buffer) < needed:
            self._buffer = bytearray(max(needed, BATCH_BYTES + (BATCH_BYTES >> 2)))
        view = memoryview(self._buffer)
        fingerprint_key = self._keyring.current.fingerprint
        position = 0
        starts: list[int] = []
        for job in batch:
            payload = job.data
            if job.fingerprint is None:
                job.fingerprint = fingerprint(fingerprint_key, payload)
            if self._is_compressing:
                payload = compress(payload) or payload
            starts.append(position)
            position += segment.cipher.seal_into(
                view[position:], job.chunk, payload, job.fingerprint, length=job.length
            )
        base = segment.writer.append([view[:position]])
        starts.append(position)
        for number, job in enumerate(batch):
            job.segment = segment
            job.offset = base + starts[number]
            job.stored = starts[number + 1] - starts[number]
            inode_number = InodeId(0) if job.inode is None else job.inode.id
            segment.entries.append(IndexEntry(job.chunk, job.offset, job.stored, job.length, inode_number, job.index))
            self._events.append(job)

    def _sync_segment(self) -> None:
        segment = self._segment
        if segment is None or self._synced_entries == len(segment.entries):
            return
        try:
            segment.writer.sync()
        except StorageError:
            self._rewrite_unsynced(segment)
            return
        self._synced_entries = len(segment.entries)

    def _rewrite_unsynced(self, old: SegmentBeingWritten) -> None:
        """After a failed fdatasync: seal what was not durable into a new segment, once."""
        lost = old.entries[self._synced_entries :]
        self._segment = None
        segment = self._open_segment()
        fingerprint_key = self._keyring.current.fingerprint
        for entry in lost:
            sealed = old.writer.read(entry.offset, entry.stored)
            payload = old.cipher.open(entry.chunk_id, sealed, length=entry.length)
            buffer = memoryview(bytearray(entry.stored))
            # The payload may be compressed; its own fingerprint serves the nonce as well as the chunk's.
            segment.cipher.seal_into(
                buffer, entry.chunk_id, payload, fingerprint(fingerprint_key, payload), length=entry.length
            )
            offset = segment.writer.append([buffer])
            segment.entries.append(entry._replace(offset=offset))
            self._events.append(ChunkMoved(entry, old, segment, offset))
        segment.writer.sync()
        self._synced_entries = len(segment.entries)
        old.writer.close()

    def _retire_segment(self) -> None:
        """Leave a segment that cannot be appended to; what it holds is synced, or moved."""
        segment = self._segment
        if segment is None:
            return
        self._sync_segment()
        if self._segment is segment:
            self._segment = None

    def _seal_segment(self) -> None:
        """Write index and trailer, and give the segment its final name."""
        segment = self._segment
        if segment is None:
            return
        self._sync_segment()
        if self._segment is not segment:
            return  # the sync failed and its data moved; the new segment is sealed at the next occasion
        index = segment.cipher.seal_record(b"index", encode_index(segment.entries))
        offset = segment.writer.size_bytes
        trailer = segment.cipher.seal_record(b"trailer", encode_trailer(offset, len(index), len(segment.entries)))
        if offset < HEADER_BYTES or len(trailer) != TRAILER_BYTES:
            raise IntegrityError("a segment's trailer has another length")
        segment.writer.append([index, trailer])
        size = segment.writer.size_bytes
        name = segment.writer.seal()
        self._segment = None
        self._events.append(SegmentSealed(segment, name, size))


def _nothing() -> None:
    """The task after a batch when none was waiting."""
