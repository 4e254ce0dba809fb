"""Make ``metadata.db`` again when it is lost, or damaged so that SQLite cannot use it.

What it is made of, the first of these that there is:

1. the old database, as far as its pages can be read;
2. the image in the newest snapshot;
3. nothing.

Then the encrypted indexes of the sealed segments fill in what is missing: they tell for each chunk which file it was
written for, and where in it.  Files that have no name get their number in ``/lost+found``.  For files that a snapshot
knows and that were written to later, the snapshot's state stays in place, and ``NUMBER.newer`` is put beside.

What cannot come back from the indexes: names, attributes, symlinks; parts that deduplication shared with another file;
data that was only in the intent log, or in a segment that a crash left open.  Deleted files may come back.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterable
from itertools import groupby
from pathlib import Path
from typing import Final, NamedTuple, Self

from vaultfs.crypto.aead import OVERHEAD_BYTES
from vaultfs.errors import IntegrityError, StorageError, VaultError
from vaultfs.ids import ROOT_INODE, InodeId, SegmentName, SnapshotSeq
from vaultfs.metadata.check_chunk_rows import CheckChunkRows
from vaultfs.metadata.chunk_rows import ChunkRow, ChunkRows
from vaultfs.metadata.database import MetadataDatabase, database_failures
from vaultfs.metadata.rebuild_rows import Described, RebuildRows
from vaultfs.metadata.salvage import Salvaged, salvage
from vaultfs.metadata.snapshot_rows import SnapshotRow, SnapshotRows
from vaultfs.storage.durable import fsync_directory, storage_errors
from vaultfs.storage.kept_manifests import kept_files
from vaultfs.storage.layout import VaultLayout
from vaultfs.storage.manifest_format import Manifest
from vaultfs.storage.segment_format import IndexEntry, SegmentHeader
from vaultfs.vault.adoption_record import foreign_segments
from vaultfs.vault.fsck_repair import Examination
from vaultfs.vault.fsck_report import Finding, FsckReport
from vaultfs.vault.fsck_segments import add_found_segment, move_aside
from vaultfs.vault.fsck_tree import settle_tree
from vaultfs.vault.inspection import Inspection
from vaultfs.vault.metadata_image import open_image
from vaultfs.vault.opening import DEFAULT_CHUNK_BYTES, LARGEST_CHUNK_BYTES, SMALLEST_CHUNK_BYTES, open_database
from vaultfs.vault.segment_index import chunk_opens, open_by_header, read_index
from vaultfs.vault.segments import ReadableSegment
from vaultfs.vault.snapshot_image import image_pieces
from vaultfs.vault.snapshot_manifest import SnapshotContent, SnapshotHold, manifest_files, open_manifest
from vaultfs.vault.tree import FIRST_COOKIE

_NEW_NAME: Final = ".metadata.db.rebuilt"
_CHUNKS_PER_UNKNOWN_SEGMENT: Final = 1 << 16
"""Chunk numbers that may have been used in a segment whose index cannot be read; they are not used again."""
_OPEN_SEGMENTS: Final = 64


class _Base(NamedTuple):
    """What the new database begins with.

    Attributes:
        text: for the report.
        has_all: the segments can add nothing.
        first_chunk: the first number of a chunk that they may add.
        is_snapshot: what they add is newer.
    """

    text: str
    has_all: bool
    first_chunk: int
    is_snapshot: bool


def rebuild(inspection: Inspection, report: FsckReport, generation: int) -> MetadataDatabase:
    """Make the database again, move the old one aside, and open the new one.

    The result still needs the checks of a repair: they find the chunks by the segments' indexes, and count them.

    Args:
        inspection: the vault; its database is closed.
        report: is told what was done.
        generation: of the new database.

    Raises:
        NoSpaceError, StorageError: the disk failed; the old database is where it was.
    """
    layout, keyring = inspection.layout, inspection.keyring
    new = layout.root / _NEW_NAME
    for path in (new, Path(f"{new}-wal")):
        with storage_errors(f"cannot remove {path}"):
            path.unlink(missing_ok=True)
    settings: dict[str, int | bytes] = {"chunk_size": DEFAULT_CHUNK_BYTES, "generation": generation}
    MetadataDatabase.create(new, keyring.current.metadata, settings)
    database = MetadataDatabase.open(new, keyring.current.metadata)
    try:
        text = _fill(inspection, report, database)
        database.set_setting("generation", generation)
        database.set_setting("key_epoch", keyring.epoch)
        database.commit()
        database.checkpoint(truncate=True)
    finally:
        database.close()
    aside = [move_aside(layout, path) for path in (layout.database, *inspection.wal_paths()) if _is_there(path)]
    with storage_errors(f"cannot put {new} in place"):
        os.rename(new, layout.database)  # noqa: PTH104  # named as the system call
    fsync_directory(layout.root)
    saved = f"the old one is {aside[0]}" if aside else ""
    report.add(
        Finding(
            "rebuilt", "error", f"metadata.db was made again from {text}", saved=saved, is_repaired=True, is_lost=True
        )
    )
    return open_database(layout, keyring)


def _numbered(layout: VaultLayout) -> list[tuple[SnapshotSeq, str]]:
    return [*manifest_files(layout), *kept_files(layout)]


def _is_there(path: Path) -> bool:
    return path.is_symlink() or path.exists()


def _fill(inspection: Inspection, report: FsckReport, database: MetadataDatabase) -> str:
    """Fill the new database, and say with what."""
    described = RebuildRows(database)
    names, unreadable = _read_indexes(inspection, report, described)
    database.set_setting("chunk_size", _likely_chunk_size(described.longest()))
    database.set_setting("is_compressing", int(described.any_compressed()))
    database.set_setting("snapshot_seq", max((seq for seq, _ in _numbered(inspection.layout)), default=0))
    base = _from_old_database(inspection, database) or _from_snapshot(inspection, report, database)
    if base is None:
        base = _Base("the segments' own indexes", has_all=False, first_chunk=0, is_snapshot=False)
    ex = Examination(inspection, database, report, is_repairing=True)
    ex.chunk_size = database.setting("chunk_size")
    known = ex.tree.setting("next_inode")
    database.set_setting("next_inode", max(known if isinstance(known, int) else 0, described.largest_inode() + 1))
    ex.begin_numbers(FIRST_COOKIE)
    if not base.has_all:
        if ex.tree.root_kind() is None:
            ex.make_directory(ROOT_INODE)
        with _Sources(ex, names) as sources:
            count = _fill_in(ex, base, described, sources)
        if count:
            base = base._replace(text=f"{base.text}; {count} files without a name are in /lost+found")
        ex.begin_numbers(FIRST_COOKIE)
    ex.end_numbers()
    newest = max(ex.data.largest_chunk(), described.largest_chunk())
    database.set_setting("next_chunk", newest + 1 + unreadable * _CHUNKS_PER_UNKNOWN_SEGMENT)
    return base.text


def _likely_chunk_size(longest: int) -> int:
    """The size of chunks in bytes: files of more than one chunk have some of full length."""
    size = SMALLEST_CHUNK_BYTES
    while size < longest:
        size *= 2
    return size if size == longest else min(max(size, DEFAULT_CHUNK_BYTES), LARGEST_CHUNK_BYTES)


def _read_indexes(inspection: Inspection, report: FsckReport, described: RebuildRows) -> tuple[list[SegmentName], int]:
    """Read the indexes of all sealed segments; return their names, by number, and how many have none that opens."""
    names: list[SegmentName] = []
    unreadable = len(inspection.layout.open_tokens())
    foreign = foreign_segments(inspection.layout, inspection.adoption) - _of_snapshots(inspection.layout)
    for name in inspection.layout.sealed_names():
        if name in foreign:
            continue  # of another history, in which the same numbers mean other things
        try:
            indexed = read_index(inspection.layout, name, inspection.keyring)
        except VaultError as error:
            unreadable += 1
            report.add(Finding("no-index", "note", f"what is in segment {name} is not known: {error}"))
            continue
        number = len(names)
        names.append(name)
        described.add(
            Described(each.chunk_id, number, each.offset, each.stored, each.length, each.inode, each.index)
            for each in indexed.entries
        )
    described.index()
    return names, unreadable


def _of_snapshots(layout: VaultLayout) -> set[SegmentName]:
    """The segments that ordinary snapshots name, which are of the present's own history."""
    found: set[SegmentName] = set()
    for seq, snapshot_id in manifest_files(layout):
        with contextlib.suppress(VaultError, OSError):  # `_from_snapshot` reports it
            manifest, _ = Manifest.decode(layout.manifest_path(seq, snapshot_id).read_bytes())
            found.update(name for name, _ in manifest.segments)
    return found


# --- what to begin with


def _from_old_database(inspection: Inspection, database: MetadataDatabase) -> _Base | None:
    """What can be read of the database that is there."""
    old: MetadataDatabase | None = None
    try:
        old = open_database(inspection.layout, inspection.keyring, immutable=inspection.was_closed)
        tables = salvage(old, database)
    except (VaultError, database_failures()):
        return None
    finally:
        if old is not None:
            with contextlib.suppress(VaultError):  # it is damaged, and is moved aside next
                old.close()
    if tables is None:
        return None
    damaged = [name for name, table in tables.items() if not table.is_complete]
    text = f"the old one, of which {tables['inode'].rows} inodes and {tables['entry'].rows} names could be read"
    if damaged:
        text += f"; parts are missing of: {', '.join(damaged)}"
    has_all = all(tables[name].is_complete for name in ("inode", "extent"))
    return _Base(text, has_all=has_all, first_chunk=0, is_snapshot=False)


def _from_snapshot(inspection: Inspection, report: FsckReport, database: MetadataDatabase) -> _Base | None:
    """The image in the newest snapshot that can be read."""
    for seq, snapshot_id in reversed(manifest_files(inspection.layout)):
        try:
            hold = SnapshotHold.take(inspection.layout, seq, snapshot_id, is_exclusive=False)
            try:
                _, content = open_manifest(inspection.keyring, hold.data, seq, snapshot_id)
                tables = _copy_image(inspection, content, database)
            finally:
                hold.release()
        except (IntegrityError, StorageError, database_failures()) as error:
            report.add(Finding("snapshot-unreadable", "note", f"snapshot {seq} cannot serve: {error}"))
            continue
        if tables is None:
            continue
        first_chunk = database.setting("next_chunk")
        _add_snapshot(database, content, snapshot_id)
        return _Base(f"snapshot {seq}", has_all=False, first_chunk=first_chunk, is_snapshot=True)
    return None


def _copy_image(
    inspection: Inspection, content: SnapshotContent, database: MetadataDatabase
) -> dict[str, Salvaged] | None:
    with storage_errors("cannot make a temporary file for the snapshot's metadata"):
        directory = Path(tempfile.mkdtemp(prefix="vaultfs-rebuild-"))
    path = directory / "image.db"
    try:
        with storage_errors(f"cannot write the snapshot's metadata to {path}"), path.open("xb") as file:
            for piece in image_pieces(inspection.layout, inspection.keyring, content):
                file.write(piece)
        image = open_image(path, inspection.keyring)
        try:
            return salvage(image, database)
        finally:
            image.close()
    finally:
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
        directory.rmdir()


def _add_snapshot(database: MetadataDatabase, content: SnapshotContent, snapshot_id: str) -> None:
    """The rows of the snapshot itself, which its image cannot have."""
    rows, chunks, data = SnapshotRows(database), ChunkRows(database), CheckChunkRows(database)
    rows.set_making(None)
    rows.set_cleaning(False)
    rows.insert(SnapshotRow(content.seq, snapshot_id, content.created_ns, content.label, content.files, content.bytes))
    database.set_setting("snapshot_seq", max(database.setting("snapshot_seq"), content.seq))
    known = {row.name: row.id for row in chunks.segments()}
    for index, piece in enumerate(content.pieces):
        facts = content.segments[piece.segment]
        if facts.name not in known:
            known[facts.name] = data.add_segment(facts.name[:32], facts.name, facts.epoch, facts.salt, facts.size)
        if chunks.chunk(piece.chunk) is None:
            place = (known[facts.name], piece.offset, piece.stored, piece.length)
            chunks.insert_chunk(ChunkRow(piece.chunk, *place, 1, content.seq, None, None))
        rows.put_piece(content.seq, index, piece.chunk)


# --- what the segments add


class _Sources:
    """Segments by the numbers of their names, open while they are needed.

    Args:
        ex: the new database.
        names: by number.
    """

    def __init__(self, ex: Examination, names: list[SegmentName]) -> None:
        self._ex = ex
        self._names = names
        self._open: dict[int, tuple[SegmentHeader, ReadableSegment]] = {}
        self._rows = {row.name: row.id for row in ex.chunk_rows.segments()}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def _close(self) -> None:
        for _, segment in self._open.values():
            segment.reader.close()
        self._open.clear()

    def _get(self, number: int) -> tuple[SegmentHeader, ReadableSegment]:
        if number not in self._open:
            if len(self._open) >= _OPEN_SEGMENTS:
                self._close()
            inspection = self._ex.inspection
            self._open[number] = open_by_header(inspection.layout, self._names[number], inspection.keyring)
        return self._open[number]

    def choose(self, places: Iterable[Described]) -> Described | None:
        """The place of a chunk at which it opens; None if it was given up: its bytes were punched out, and are zeros.

        If it is damaged at all its places, one of them, so that it is reported.
        """
        damaged: Described | None = None
        for chunk in places:
            _, segment = self._get(chunk.segment)
            entry = IndexEntry(chunk.chunk, chunk.offset, chunk.stored, chunk.length, chunk.inode, chunk.idx)
            if chunk_opens(entry, segment):
                return chunk
            # A sealed chunk looks random: so many zeros do not occur in one.
            try:
                is_ended = bytes(OVERHEAD_BYTES) in segment.reader.read(chunk.offset, chunk.stored)
            except VaultError:
                is_ended = False
            if not is_ended:
                damaged = chunk
        return damaged

    def put(self, inode: InodeId, chunk: Described) -> None:
        """Let a chunk be part of a file, wherever it was found."""
        ex = self._ex
        if ex.chunk_rows.chunk(chunk.chunk) is None:
            name = self._names[chunk.segment]
            if name not in self._rows:
                header, segment = self._get(chunk.segment)
                self._rows[name] = add_found_segment(ex, name, header, segment.reader.size_bytes())
            born = ex.database.setting("snapshot_seq") + 1
            place = (self._rows[name], chunk.offset, chunk.stored, chunk.length)
            ex.chunk_rows.insert_chunk(ChunkRow(chunk.chunk, *place, 1, born, None, None))
        ex.chunk_rows.put_extent(inode, chunk.idx, chunk.chunk)


def _fill_in(ex: Examination, base: _Base, described: RebuildRows, sources: _Sources) -> int:
    """Give files the data that the segments know of and the base does not; return how many files came from nowhere."""
    count = 0
    incomplete = described.incomplete_inodes()
    for inode, group in groupby(described.newest(base.first_chunk), key=lambda each: each.inode):
        is_known = ex.tree_rows.inode(inode) is not None
        if is_known and not base.is_snapshot and inode not in incomplete:
            continue
        chosen = [sources.choose(places) for _, places in groupby(group, key=lambda each: each.idx)]
        chunks = [chunk for chunk in chosen if chunk is not None]
        target = inode
        if is_known and base.is_snapshot and chunks:
            end = max(chunk.idx * ex.chunk_size + chunk.length for chunk in chunks)
            target = ex.newer_copy(inode, end)
        for chunk in chunks:
            if base.is_snapshot or ex.chunk_rows.extent(target, chunk.idx) is None:
                sources.put(target, chunk)
        if chunks and not is_known:
            ex.make_file(inode)
            if not ex.tree.names_of(inode):
                ex.keep(inode)
                count += 1
    ex.data.count_references()
    ex.data.count_live_bytes()
    settle_tree(ex)
    return count
