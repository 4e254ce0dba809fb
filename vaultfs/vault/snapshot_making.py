"""Snapshots are made in steps: a snapshot is the database as of one commit whose chunks all lie in sealed segments.

| step | durable afterwards | a crash after it: the next mount |
|---|---|---|
| the moment: commit, seal, commit, checkpoint | the state, once in the WAL and then in the file | nothing to do |
| pieces of the file become chunks | rows of pieces, ``snapshot_making`` | gives the pieces back (`cleaning`) |
| their segment is sealed, and committed | all that the manifest will name | likewise |
| the manifest | the snapshot, complete | finishes it: HEAD, row |
| HEAD, generation + 1 | | likewise |
| the row, ``snapshot_making`` 0 | | nothing to do |

Writers wait only while the moment's last chunks are synced, the segment is sealed, and the WAL is written into the
file.  That file then stays as it is until the pieces are read, because checkpoints wait (`is_image_in_use`).  From the
moment on, chunks are kept for the snapshot although it does not exist yet.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Collection
from functools import partial
from typing import TYPE_CHECKING, Final

from vaultfs.crypto.keys import fingerprint
from vaultfs.errors import IntegrityError, NoSpaceError, StorageError, UsageError, VaultError
from vaultfs.ids import ChunkId, KeyEpoch, SegmentId, SegmentName, SnapshotSeq
from vaultfs.metadata.chunk_rows import ChunkRows, SegmentRow
from vaultfs.metadata.snapshot_rows import PiecePlace, SnapshotRow
from vaultfs.metadata.tree_rows import TreeRows
from vaultfs.vault.metadata_image import open_image
from vaultfs.vault.sealing_jobs import SealJob
from vaultfs.vault.snapshot_deleting import cleaning, one_at_a_time
from vaultfs.vault.snapshot_manifest import Piece, SegmentFacts, SnapshotContent, SnapshotInfo, write_manifest
from vaultfs.vault.steps import Step, Steps, run

if TYPE_CHECKING:
    from vaultfs.vault.filesystem import FileSystem

log = logging.getLogger(__name__)

LONGEST_LABEL_BYTES: Final = 255
READ_BYTES: Final = 4 << 20
"""Of the image at once; so much of it is in memory, and as much may wait in the sealing thread."""
MOMENT_TRIES: Final = 20
_PIECE_DOMAIN: Final = b"vaultfs 1 snapshot piece"


def create_snapshot(fs: FileSystem, label: str = "") -> SnapshotInfo:
    """Make a snapshot of the whole vault as it is now; durable on return.

    Args:
        fs: the vault; nothing else happens in it meanwhile.
        label: for people.

    Raises:
        UsageError: the label cannot be used.
        ReadOnlyError: the vault is open read-only.
        NoSpaceError, StorageError: there is no snapshot.
    """
    return run(fs, creating(fs, label))


def creating(fs: FileSystem, label: str, avoiding: Collection[SegmentId] = ()) -> Steps[SnapshotInfo]:
    """As `create_snapshot`, in steps.

    Args:
        fs: the vault.
        label: for people.
        avoiding: segments whose pieces of older images are not shared, so that they can go some day.
    """
    if len(label.encode(errors="surrogateescape")) > LONGEST_LABEL_BYTES or not (label.isprintable()):
        raise UsageError(f"a label has at most {LONGEST_LABEL_BYTES} bytes, and no control characters")
    with one_at_a_time(fs):
        if fs.snapshot_rows.is_cleaning():
            yield from cleaning(fs)
        making = _Making(fs, label, avoiding)
        try:
            yield from making.moment()
            yield from making.store_image()
            return (yield from making.publish())
        except GeneratorExit:  # abandoned as in a crash; the next mount does the rest
            raise
        except VaultError:
            yield Step.LET_GO
            if making.undo():
                yield from cleaning(fs)
            raise
        except BaseException:  # cancelled: nothing can be waited for; the next one, or the next mount, cleans up
            making.undo()
            raise


class _Making:
    """One snapshot on its way."""

    def __init__(self, fs: FileSystem, label: str, avoiding: Collection[SegmentId]) -> None:
        self._fs = fs
        self._label = label
        self._avoiding = avoiding
        self._seq: SnapshotSeq | None = None
        self._version = 0
        self._created_ns = 0
        self._database_bytes = 0
        self._totals = (0, 0)
        self._segments: list[SegmentRow] = []
        self._batch: list[tuple[bytes, bytes]] = []
        self._id = ""

    def moment(self) -> Steps[None]:
        """Bring about a state that is complete in the database file and in sealed segments, and remember it."""
        fs = self._fs
        while fs.files.sweep():  # or the snapshot would keep what is deleted already
            yield Step.PAUSE
        yield Step.COMMIT  # most of what there is to sync, while writers go on
        yield Step.HOLD
        for _ in range(MOMENT_TRIES):
            fs.committer.stage()
            if fs.committer.can_finish and not fs.pipeline.has_open_segment:
                break
            fs.pipeline.seal_soon()
            yield fs.committer.wait_synced
        else:
            raise StorageError("no moment for a snapshot was found: the vault changed all the time; try again")
        self._require_sealed()
        # From here to LET_GO nothing can come in between.
        fs.committer.finish_into_file()
        seq = SnapshotSeq(fs.chunks.snapshot_seq + 1)
        fs.chunks.snapshot_taken(seq)
        fs.database.set_setting("snapshot_seq", seq)
        fs.snapshot_rows.set_making(seq)
        fs.committer.is_image_in_use = True
        self._seq = seq
        self._version = fs.inodes.version
        self._created_ns = time.time_ns()
        fs.committer.clean_up()
        yield Step.LET_GO

    def store_image(self) -> Steps[None]:
        """Make chunks of the database file, but for pieces that an earlier snapshot has already."""
        fs = self._fs
        yield self._look_at_image
        index = 0
        offset = 0
        while offset < self._database_bytes:
            yield partial(self._read, offset)
            yield Step.ROOM
            for data, known in self._batch:
                self._place(index, data, known)
                index += 1
                offset += len(data)
        self._batch.clear()
        fs.committer.is_image_in_use = False
        fs.pipeline.seal_soon()
        yield Step.COMMIT
        if fs.chunks.pieces:
            raise NoSpaceError("the disk below the vault is full; there is no room for the snapshot's metadata")
        if any(place.name is None for place in fs.snapshot_rows.places(self._number)):
            raise StorageError(
                "the segment with the snapshot's metadata could not be sealed; free space, and try again"
            )

    def _require_sealed(self) -> None:
        """Refuse while a chunk lies in an open segment, as after a full disk; only the next mount seals that.

        A chunk whose open segment is not there at all is lost, and keeps nobody from saving the others.
        """
        for token in self._fs.chunk_rows.unsealed_tokens():
            if self._fs.layout.open_path(token).exists():
                raise StorageError(
                    f"segment open/{token} is not sealed, because the disk was full or failed; unmount the vault, "
                    "mount it again, and then make the snapshot"
                )

    @property
    def _number(self) -> SnapshotSeq:
        assert self._seq is not None
        return self._seq

    def _look_at_image(self) -> None:
        """What is to be told of the image; in a thread, through a connection of its own that sees only the file."""
        fs = self._fs
        self._database_bytes = fs.database.image_bytes()
        image = open_image(fs.database.path, fs.keyring)
        try:
            self._totals = TreeRows(image).totals()
            self._segments = ChunkRows(image).segments_of_files()
        finally:
            image.close()

    def _read(self, offset: int) -> None:
        """Read and fingerprint some pieces; in a thread."""
        fs = self._fs
        size = fs.chunk_size
        self._batch = []
        end = min(offset + max(READ_BYTES, size), self._database_bytes)
        while offset < end:
            data = fs.database.read_image(offset, min(size, self._database_bytes - offset))
            self._batch.append((data, _piece_fingerprint(fs.keyring.current.fingerprint, data)))
            offset += len(data)

    def _place(self, index: int, data: bytes, known: bytes) -> None:
        """One piece: share the chunk that holds the same bytes, or have one sealed."""
        fs = self._fs
        twin = fs.chunk_rows.by_fingerprint(known[:16], len(data))
        if twin is not None:
            if not self._is_avoided(twin):
                fs.chunks.retain(twin)
                fs.snapshot_rows.put_piece(self._number, index, twin)
                return
            fs.chunk_rows.forget_fingerprint(twin)  # or the next snapshot would find this one again
        fs.check_room(len(data))
        job = SealJob(fs.chunks.new_id(), data, known, index=index)
        fs.pipeline.submit(job)
        fs.chunks.pieces[job.chunk] = self._number

    def _is_avoided(self, chunk: ChunkId) -> bool:
        rows = self._fs.chunk_rows
        if self._fs.reclaimer.keeps_whole and rows.lies_beside_holes(chunk):
            return True
        row = rows.chunk(chunk) if self._avoiding else None
        return row is not None and row.segment in self._avoiding

    def publish(self) -> Steps[SnapshotInfo]:
        """Write the manifest, then HEAD, then the row."""
        fs = self._fs
        seq = self._number
        content = self._content(fs.snapshot_rows.places(seq))
        record = fs.head.record
        if record is None:
            raise IntegrityError("HEAD was never read")
        yield partial(self._write_manifest, content, record.manifest_hash)
        yield from announcing(fs, self._id)
        add_row(fs, content, self._id)
        fs.newest_snapshot = (seq, self._version)
        self._seq = None  # from here on it exists, even if the commit has to be tried again
        yield Step.COMMIT
        log.info("made snapshot %d", seq)
        return content.info(self._id)

    def _content(self, places: list[PiecePlace]) -> SnapshotContent:
        facts = {row.name: _facts(row.name, row.epoch, row.salt, row.size) for row in self._segments if row.name}
        for place in places:
            assert place.name is not None
            facts.setdefault(place.name, _facts(place.name, place.epoch, place.salt, place.size))
        table = tuple(facts[name] for name in sorted(facts))
        position = {each.name: number for number, each in enumerate(table)}
        return SnapshotContent(
            self._number,
            self._created_ns,
            self._label,
            *self._totals,
            self._fs.chunk_size,
            self._database_bytes,
            table,
            tuple(Piece(position[SegmentName(str(p.name))], p.offset, p.stored, p.length, p.chunk) for p in places),
        )

    def _write_manifest(self, content: SnapshotContent, previous: bytes | None) -> None:
        self._id = write_manifest(self._fs.layout, self._fs.keyring, content, previous)

    def undo(self) -> bool:
        """Give the snapshot up; return whether something is to be cleaned.  What can be left stands in the database."""
        fs = self._fs
        fs.committer.is_image_in_use = False
        fs.chunks.pieces.clear()
        seq, self._seq = self._seq, None
        if seq is None or fs.committer.failure is not None:
            return False
        fs.chunks.snapshot_ended(seq)
        fs.snapshot_rows.set_making(None)
        fs.snapshot_rows.set_cleaning(True)
        return True


def _facts(name: str, epoch: int, salt: bytes, size: int) -> SegmentFacts:
    return SegmentFacts(SegmentName(name), KeyEpoch(epoch), salt, size)


def _piece_fingerprint(key: bytes, data: bytes) -> bytes:
    """In a domain of its own, so that a piece and a file's chunk never share a row."""
    return fingerprint(key, _PIECE_DOMAIN + fingerprint(key, data))


def announcing(fs: FileSystem, snapshot_id: str) -> Steps[None]:
    """HEAD names the newest manifest from now on.  It must say the new generation before the database does."""
    record = fs.head.record
    assert record is not None
    generation = record.generation + 1
    base = fs.database.setting("generation")
    yield partial(fs.head.write_open, generation, base, manifest_hash=bytes.fromhex(snapshot_id))
    fs.database.set_setting("generation", generation)


def add_row(fs: FileSystem, content: SnapshotContent, snapshot_id: str) -> None:
    """From the next commit on the snapshot exists, and none is being made."""
    row = SnapshotRow(content.seq, snapshot_id, content.created_ns, content.label, content.files, content.bytes)
    fs.snapshot_rows.insert(row)
    fs.snapshot_rows.set_making(None)
