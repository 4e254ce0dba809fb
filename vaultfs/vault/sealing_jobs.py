"""What passes between the core and the thread that appends: the open segment, jobs, and what happened."""

from __future__ import annotations

from typing import Final

from vaultfs.crypto.aead import SegmentCipher
from vaultfs.errors import NoSpaceError
from vaultfs.ids import ChunkId, InodeId, SegmentId, SegmentName
from vaultfs.storage.segment_format import IndexEntry
from vaultfs.storage.segment_writer import SegmentWriter
from vaultfs.vault.inodes import Inode

NOBODY: Final = InodeId(0)
"""Whose chunk it is if it is no file's."""


class SegmentBeingWritten:
    """An open segment of this process.

    Attributes:
        id: its row; None until the core has made one.
        cipher: seals, and opens for reading back.
        planned_bytes: size once all batches are appended.
        planned_chunks: chunks sealed for it.
        entries: what was appended.
        synced: how many of the entries are durable.
        replacement: where its batches go since it failed.
    """

    __slots__ = (
        "cipher",
        "entries",
        "id",
        "planned_bytes",
        "planned_chunks",
        "replacement",
        "salt",
        "synced",
        "writer",
    )

    def __init__(self, writer: SegmentWriter, salt: bytes, cipher: SegmentCipher) -> None:
        self.writer = writer
        self.salt = salt
        self.cipher = cipher
        self.planned_bytes = writer.size_bytes
        self.planned_chunks = 0
        self.entries: list[IndexEntry] = []
        self.synced = 0
        self.replacement: SegmentBeingWritten | None = None
        self.id: SegmentId | None = None

    @property
    def token(self) -> str:
        """Its name while open."""
        return self.writer.token


class SealJob:
    """One chunk on its way into a segment.

    Attributes:
        inode: None for a piece of a snapshot's image or a chunk that is only moved.
        owner: number of the inode for the segment's index; 0 if it is nobody's.
        data: the plaintext; must not change any more.
        fingerprint: of ``data`` if the core has computed it already.
        segment: set with ``offset`` and ``stored`` (bytes) once appended.
        error: set if the disk was full.
    """

    __slots__ = (
        "chunk",
        "data",
        "error",
        "fingerprint",
        "index",
        "inode",
        "length",
        "offset",
        "owner",
        "segment",
        "stored",
    )

    def __init__(
        self,
        chunk: ChunkId,
        data: bytes | bytearray | memoryview,
        fingerprint: bytes | None,
        *,
        inode: Inode | None = None,
        owner: InodeId = NOBODY,
        index: int = 0,
    ) -> None:
        self.chunk = chunk
        self.data = data
        self.length = len(data)
        self.fingerprint = fingerprint
        self.inode = inode
        self.owner = owner if inode is None else inode.id
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
