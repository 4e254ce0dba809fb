"""Snapshots: made, listed and deleted in steps, so that a mounted vault goes on meanwhile.

A snapshot is the database as of one commit whose chunks all lie in sealed segments.  `creating` yields what is to be
done between its steps: a function that may block and runs in any thread, or a `Step`.  Between two yields it runs in
the core's thread, and quickly.  `run` does all of it at once, for callers that may block.

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

Deleting takes the row away (durable), then the manifest, then pieces and chunks in small steps; ``snapshot_cleaning``
says that this is not over, and a mount goes on with it.
"""

from __future__ import annotations

import contextlib
import enum
import logging
import time
from collections.abc import Callable, Collection, Generator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

from vaultfs.crypto.keys import Keyring, fingerprint
from vaultfs.errors import IntegrityError, NoSpaceError, StorageError, UsageError, VaultError, VaultLockedError
from vaultfs.ids import ChunkId, KeyEpoch, SegmentId, SegmentName, SnapshotSeq
from vaultfs.metadata.chunk_rows import ChunkRows, SegmentRow
from vaultfs.metadata.database import MetadataDatabase
from vaultfs.metadata.snapshot_rows import PiecePlace, SnapshotRow
from vaultfs.metadata.tree_rows import TreeRows
from vaultfs.storage.durable import fsync_directory, storage_errors
from vaultfs.storage.kept_manifests import kept_files
from vaultfs.storage.layout import VaultLayout
from vaultfs.vault.kept_snapshots import dropping, list_kept
from vaultfs.vault.sealing_jobs import SealJob
from vaultfs.vault.snapshot_manifest import (
    Piece,
    SegmentFacts,
    SnapshotContent,
    SnapshotHold,
    SnapshotInfo,
    choose,
    manifest_files,
    open_manifest,
    remove_leftovers,
    write_manifest,
)

if TYPE_CHECKING:
    from vaultfs.vault.filesystem import FileSystem

log = logging.getLogger(__name__)

LONGEST_LABEL_BYTES: Final = 255
READ_BYTES: Final = 4 << 20
"""Of the image at once; so much of it is in memory, and as much may wait in the sealing thread."""
SWEEP_CHUNKS: Final = 1000
MOMENT_TRIES: Final = 20
_PIECE_DOMAIN: Final = b"vaultfs 1 snapshot piece"


class Step(enum.Enum):
    """What the one who carries out the steps does between two of them."""

    COMMIT = enum.auto()
    """A full commit, durable."""
    HOLD = enum.auto()
    """Let nobody change data or commit, until LET_GO or the end."""
    LET_GO = enum.auto()
    ROOM = enum.auto()
    """Wait until the sealing thread takes more, and data may be changed."""
    PAUSE = enum.auto()
    """Let others work."""


T = TypeVar("T")
Want = Step | Callable[[], object]
Steps = Generator[Want, None, T]


def run(fs: FileSystem, steps: Steps[T]) -> T:
    """Carry out all steps, waiting where they wait."""
    try:
        want = next(steps)
        while True:
            try:
                if want is Step.COMMIT:
                    fs.committer.commit()
                elif want is Step.ROOM:
                    fs.pipeline.wait_for_room()
                elif not isinstance(want, Step):
                    want()
            except BaseException as error:  # noqa: BLE001  # the steps decide what it means
                want = steps.throw(error)
            else:
                want = next(steps)
    except StopIteration as done:
        result: T = done.value
        return result


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


def list_snapshots(fs: FileSystem) -> list[SnapshotInfo]:
    """All snapshots, oldest first."""
    with fs.database_safe():
        return [SnapshotInfo(r.seq, r.id, r.label, r.created_ns, r.files, r.bytes) for r in fs.snapshot_rows.all()]


def all_snapshots(fs: FileSystem) -> list[SnapshotInfo]:
    """All snapshots in order of their times, the kept ones included, each once."""
    own = list_snapshots(fs)
    ids = {info.id for info in own}
    found = [*own, *(info for info in list_kept(fs.layout, fs.keyring) if info.id not in ids)]
    return sorted(found, key=lambda info: (info.created_ns, info.seq, info.id))


def delete_snapshot(fs: FileSystem, which: str | int) -> SnapshotInfo:
    """Delete a snapshot and give back what it alone needed; return what it was.

    Args:
        fs: the vault; nothing else happens in it meanwhile.
        which: its number, or the beginning of its id.

    Raises:
        UsageError: there is no such snapshot.
        VaultLockedError: it is mounted, or being read.
        ReadOnlyError: the vault is open read-only.
        NoSpaceError, StorageError: it is not durably deleted.
    """
    return run(fs, deleting(fs, which))


@contextlib.contextmanager
def _alone(fs: FileSystem) -> Generator[None]:
    """One snapshot at a time is made or deleted."""
    fs.check_writable()
    if fs.is_snapshot_busy:
        raise VaultLockedError("another snapshot is being made or deleted; try again when that is done")
    fs.is_snapshot_busy = True
    try:
        with fs.database_safe():
            yield
    finally:
        fs.is_snapshot_busy = False


# --- making


def creating(fs: FileSystem, label: str, avoiding: Collection[SegmentId] = ()) -> Steps[SnapshotInfo]:
    """As `create_snapshot`, in steps.

    Args:
        fs: the vault.
        label: for people.
        avoiding: segments whose pieces of older images are not shared, so that they can go some day.
    """
    if len(label.encode(errors="surrogateescape")) > LONGEST_LABEL_BYTES or not (label.isprintable()):
        raise UsageError(f"a label has at most {LONGEST_LABEL_BYTES} bytes, and no control characters")
    with _alone(fs):
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
        yield from _announcing(fs, self._id)
        _add_row(fs, content, self._id)
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


def _announcing(fs: FileSystem, snapshot_id: str) -> Steps[None]:
    """HEAD names the newest manifest from now on.  It must say the new generation before the database does."""
    record = fs.head.record
    assert record is not None
    generation = record.generation + 1
    base = fs.database.setting("generation")
    yield partial(fs.head.write_open, generation, base, manifest_hash=bytes.fromhex(snapshot_id))
    fs.database.set_setting("generation", generation)


def _add_row(fs: FileSystem, content: SnapshotContent, snapshot_id: str) -> None:
    row = SnapshotRow(content.seq, snapshot_id, content.created_ns, content.label, content.files, content.bytes)
    fs.snapshot_rows.insert(row)
    fs.snapshot_rows.set_making(None)


def open_image(path: Path, keyring: Keyring) -> MetadataDatabase:
    """A database file that nobody changes, opened for reading with the key that fits; a WAL beside it does not count.

    Raises:
        IntegrityError: no key opens it.
    """
    for epoch in reversed(keyring.epochs[1:]):
        with contextlib.suppress(IntegrityError):
            return MetadataDatabase.open(path, keyring.subkeys(epoch).metadata, immutable=True)
    return MetadataDatabase.open(path, keyring.subkeys(keyring.epochs[0]).metadata, immutable=True)


# --- deleting


def deleting(fs: FileSystem, which: str | int) -> Steps[SnapshotInfo]:
    """As `delete_snapshot`, in steps."""
    with _alone(fs):
        known = {info.seq: info for info in list_snapshots(fs)}
        kept = kept_files(fs.layout)
        seq, snapshot_id = choose(which, [*((info.seq, info.id) for info in known.values()), *kept])
        if (seq, snapshot_id) in kept:
            return (yield from dropping(fs, seq, snapshot_id))
        hold = None
        if fs.layout.manifest_path(seq, snapshot_id).is_file():
            hold = SnapshotHold.take(fs.layout, seq, snapshot_id, is_exclusive=True)
        try:
            fs.snapshot_rows.delete(seq)
            fs.snapshot_rows.set_cleaning(True)
            fs.chunks.snapshot_ended(seq)
            yield Step.COMMIT
            log.info("deleted snapshot %d", seq)
            yield from cleaning(fs)
        finally:
            if hold is not None:
                hold.release()
        return known[seq]


def cleaning(fs: FileSystem) -> Steps[None]:
    """Give back what ended snapshots have left: manifests, pieces, chunks.  May be interrupted and begun again."""
    rows = fs.snapshot_rows
    yield partial(_remove_manifests, fs.layout, {row.seq for row in rows.all()}, fs.chunks.snapshot_seq)
    while pieces := rows.take_stray_pieces(SWEEP_CHUNKS):
        fs.chunks.release_pieces(pieces)
        yield Step.PAUSE
    position: tuple[int, ChunkId] | None = (0, ChunkId(0))
    while position is not None:
        position = fs.chunks.sweep_dead(position, SWEEP_CHUNKS)
        yield Step.PAUSE
    rows.set_cleaning(False)
    yield Step.COMMIT


def _remove_manifests(layout: VaultLayout, living: set[SnapshotSeq], newest: int) -> None:
    """Remove manifests of snapshots that do not exist.  Those of later ones are not ours to judge."""
    for seq, snapshot_id in manifest_files(layout):
        if seq not in living and seq <= newest:
            path = layout.manifest_path(seq, snapshot_id)
            with storage_errors(f"cannot delete {path}"):
                path.unlink(missing_ok=True)
    remove_leftovers(layout)
    fsync_directory(layout.heads)


# --- at mount


def check_newest(fs: FileSystem) -> None:
    """Compare the newest snapshot with HEAD.

    Raises:
        IntegrityError: they are not of one vault state.
    """
    record = fs.head.record
    newest = fs.snapshot_rows.all()[-1:]
    if record is None or not newest or newest[0].seq != fs.chunks.snapshot_seq or fs.snapshot_rows.making():
        return
    if record.manifest_hash != bytes.fromhex(newest[0].id):
        raise IntegrityError(
            f"HEAD does not name the newest snapshot, {newest[0].seq}: one of metadata.db and HEAD was replaced; "
            "restore both together, or run vaultfs fsck"
        )


def finish_interrupted(fs: FileSystem) -> None:
    """Finish or give up the snapshot that was being made when the vault stopped.  Before anything releases a chunk.

    Raises:
        NoSpaceError, StorageError: the disk failed.
    """
    seq = fs.snapshot_rows.making()
    if seq is None:
        return
    found = _complete_manifest(fs, seq)
    if found is None:
        log.info("snapshot %d was not finished, and is given up", seq)
        fs.snapshot_rows.set_making(None)
        fs.snapshot_rows.set_cleaning(True)
        return
    snapshot_id, content = found
    fs.chunks.snapshot_taken(seq)
    record = fs.head.record
    if record is None or record.manifest_hash != bytes.fromhex(snapshot_id):
        fs.committer.commit()  # the generation that HEAD says now, before it says the next one
        run(fs, _announcing(fs, snapshot_id))
    _add_row(fs, content, snapshot_id)
    log.info("snapshot %d was interrupted, and is finished now", seq)


def _complete_manifest(fs: FileSystem, seq: SnapshotSeq) -> tuple[str, SnapshotContent] | None:
    """The manifest of the snapshot being made, if it got that far."""
    places = fs.snapshot_rows.places(seq)
    for number, snapshot_id in manifest_files(fs.layout):
        if number != seq:
            continue
        hold = SnapshotHold.take(fs.layout, seq, snapshot_id, is_exclusive=False)
        try:
            _, content = open_manifest(fs.keyring, hold.data, seq, snapshot_id)
        except IntegrityError as error:
            log.warning("snapshot %d: %s", seq, error)
            continue
        finally:
            hold.release()
        named = [(content.segments[p.segment].name, p.offset, p.stored, p.length, p.chunk) for p in content.pieces]
        if named == [(p.name, p.offset, p.stored, p.length, p.chunk) for p in places]:
            return snapshot_id, content
    return None


def clean_up(fs: FileSystem) -> None:
    """Go on with `cleaning` if it was interrupted.

    Raises:
        NoSpaceError, StorageError: the disk failed.
    """
    if fs.snapshot_rows.is_cleaning():
        run(fs, cleaning(fs))
