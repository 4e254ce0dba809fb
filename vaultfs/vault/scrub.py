"""Scrub: open every chunk that anything refers to, to find what the disk has damaged while it is not too late.

Chunks are read in order of segment and offset, a few MiB at a time, so that memory is bounded and the disk reads
forward.  Nothing is changed.  A vault that is not mounted is read as a whole (`scrub`); in a mounted one, each
`ScrubStep` reads some chunks in a thread, and the requests of programs go on between and beside them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from vaultfs.crypto.aead import SegmentCipher
from vaultfs.errors import ChunkIntegrityError, ExitCode, IntegrityError, StorageError, VaultError
from vaultfs.ids import ChunkId, InodeId, KeyEpoch, SegmentId, SegmentName
from vaultfs.metadata.check_chunk_rows import LOST_SEGMENT, CheckChunkRows
from vaultfs.metadata.check_rows import CheckRows
from vaultfs.metadata.chunk_rows import ChunkPlace, ChunkRow, ChunkRows, SegmentRow
from vaultfs.storage.segment_reader import SegmentReader
from vaultfs.vault.inspection import inspecting
from vaultfs.vault.kept_check import kept_problems
from vaultfs.vault.reading import open_sealed
from vaultfs.vault.segments import ReadableSegment

if TYPE_CHECKING:
    from vaultfs.crypto.keys import Keyring
    from vaultfs.crypto.slots import Secret
    from vaultfs.storage.layout import VaultLayout

RUN_BYTES: Final = 4 << 20
"""Read at once; the largest chunk, 4 MiB, may exceed it by its overhead."""
LONGEST_PATH_DEPTH: Final = 2048
"""A path has at most 4,095 bytes; deeper ones are loops or nearly so."""

OnProgress = Callable[[int, int | None], None]
"""Called with bytes done and bytes in all."""


class BadChunk(NamedTuple):
    """A chunk that does not open."""

    chunk: ChunkId
    segment: SegmentId
    reason: str


class DamagedRange(NamedTuple):
    """A part of a file that cannot be read; offset and length in bytes, ``paths`` all names of the file."""

    paths: tuple[str, ...]
    inode: InodeId
    offset: int
    length: int
    chunk: ChunkId
    reason: str


@dataclass
class ScrubReport:
    """The outcome of one run.

    Attributes:
        chunks: opened.
        read_bytes: of sealed chunks.
        damaged_chunks: that do not open; segments and manifests, of kept snapshots.
        ranges: what of the files is damaged.
        others: damaged chunks that no file refers to now, but a snapshot.
        lost_chunks: known to be lost since an earlier fsck; their ranges are among ``ranges``.
        elsewhere_segments: are not on this disk, but may be on a remote; nothing in them was opened.
        elsewhere_bytes: of these.
    """

    chunks: int = 0
    read_bytes: int = 0
    damaged_chunks: int = 0
    lost_chunks: int = 0
    ranges: list[DamagedRange] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    elsewhere_segments: int = 0
    elsewhere_bytes: int = 0

    @property
    def exit_code(self) -> ExitCode:
        """0: everything opens; 15: something does not."""
        return ExitCode.INTEGRITY if self.damaged_chunks or self.lost_chunks else ExitCode.OK

    def as_json(self) -> dict[str, Any]:
        """For ``--json``."""
        return {
            "chunks": self.chunks,
            "read_bytes": self.read_bytes,
            "damaged_chunks": self.damaged_chunks,
            "lost_chunks": self.lost_chunks,
            "damaged": [ranged._asdict() for ranged in self.ranges],
            "damaged_in_snapshots": self.others,
            "elsewhere_segments": self.elsewhere_segments,
            "elsewhere_bytes": self.elsewhere_bytes,
            "exit_code": int(self.exit_code),
        }


def place_of(row: ChunkRow) -> ChunkPlace:
    """Where a chunk lies, for reading it."""
    return ChunkPlace(0, row.id, row.segment, row.offset, row.stored, row.length)


def open_leniently(row: SegmentRow, layout: VaultLayout, keyring: Keyring) -> ReadableSegment:
    """A segment for reading by what its row says, whatever its own header says.

    Raises:
        IntegrityError: there is no such file, or its key is not in the ring.
        StorageError: the disk failed.
    """
    if row.name is None:
        path, label = layout.open_path(row.token), f"open/{row.token}"
    else:
        path, label = layout.sealed_path(SegmentName(row.name)), row.name
    chunk_key = keyring.subkeys(KeyEpoch(row.epoch)).chunk
    reader = SegmentReader.open(path, segment=label)
    return ReadableSegment(reader, SegmentCipher(chunk_key, keyring.vault_id, row.salt), label)


def bad_places(places: Sequence[ChunkPlace], segment: ReadableSegment) -> Iterator[BadChunk]:
    """Open the chunks at these places of one segment, in order of offset, and yield those that do not open.

    Touches nothing but the file, so it may run in any thread.
    """
    start = 0
    while start < len(places):
        end = start + 1
        stop = places[start].offset + places[start].stored
        while (
            end < len(places)
            and places[end].offset == stop
            and stop + places[end].stored - places[start].offset <= RUN_BYTES
        ):
            stop += places[end].stored
            end += 1
        yield from _bad_in_run(places[start:end], segment)
        start = end


def _bad_in_run(run: Sequence[ChunkPlace], segment: ReadableSegment) -> Iterator[BadChunk]:
    """As `bad_places`, for chunks that lie side by side."""
    base = run[0].offset
    try:
        sealed = memoryview(segment.reader.read(base, run[-1].offset + run[-1].stored - base))
    except (IntegrityError, StorageError, OverflowError, ValueError) as error:
        # The file ends, or the disk fails, somewhere within: find out which chunks are concerned.
        if len(run) > 1:
            for place in run:
                yield from _bad_in_run([place], segment)
        else:
            yield BadChunk(run[0].chunk, run[0].segment, str(error))
        return
    for place in run:
        part = sealed[place.offset - base : place.offset - base + place.stored]
        try:
            data = open_sealed(place, segment, part)
        except ChunkIntegrityError as error:
            yield BadChunk(place.chunk, place.segment, f"segment {segment.label}: {error}")
            continue
        if len(data) != place.length:
            yield BadChunk(place.chunk, place.segment, f"segment {segment.label}: {len(data)} bytes in it")


def scrub_segment(
    row: SegmentRow, chunks: Sequence[ChunkRow], layout: VaultLayout, keyring: Keyring
) -> Iterator[BadChunk]:
    """Open these chunks of a segment; if it cannot be opened at all, none of them can."""
    try:
        segment = open_leniently(row, layout, keyring)
    except VaultError as error:
        yield from (BadChunk(chunk.id, row.id, str(error)) for chunk in chunks)
        return
    try:
        yield from bad_places([place_of(chunk) for chunk in chunks], segment)
    finally:
        segment.reader.close()


class Paths:
    """The names of inodes as paths, for messages.

    Args:
        rows: has them.
    """

    def __init__(self, rows: CheckRows) -> None:
        self._rows = rows
        self._above: dict[InodeId, tuple[bytes, ...]] = {}

    def of(self, inode: InodeId) -> tuple[str, ...]:
        """At most 16 paths; ``inode N`` if it has no name."""
        names = self._rows.names_of(inode)
        if not names:
            return ("/",) if inode == 1 else (f"inode {inode}",)
        return tuple(os.fsdecode(b"/".join((*self._directory(parent), name))) for parent, name in names)

    def _directory(self, inode: InodeId) -> tuple[bytes, ...]:
        known = self._above.get(inode)
        if known is not None:
            return known
        parts: list[bytes] = []
        number = inode
        while number != 1 and len(parts) < LONGEST_PATH_DEPTH:
            above = self._rows.names_of(number)
            if not above:
                parts.append(b"(inode %d)" % number)
                break
            number, name = above[0]
            parts.append(name)
        else:
            if number != 1:
                parts = [*parts[:2], b"(a loop)"]
        found = (b"", *reversed(parts))
        if len(self._above) > 10_000:
            self._above.clear()
        self._above[inode] = found
        return found


def ranges_of(
    bad: Iterable[BadChunk], rows: CheckRows, paths: Paths, chunk_size: int
) -> tuple[list[DamagedRange], list[BadChunk]]:
    """What of which files damaged chunks hold, in order of inode and offset; and those that no file refers to."""
    reasons = {each.chunk: each for each in bad}
    ranges: list[DamagedRange] = []
    used: set[int] = set()
    for use in rows.users_of_chunks(reasons):
        used.add(use.chunk)
        each = reasons[ChunkId(use.chunk)]
        length = chunk_size if use.length is None else min(use.length, chunk_size)
        ranges.append(
            DamagedRange(paths.of(use.inode), use.inode, use.idx * chunk_size, length, each.chunk, each.reason)
        )
    return ranges, [each for chunk, each in reasons.items() if chunk not in used]


def scrub(
    path: str | os.PathLike[str],
    secret: Secret,
    *,
    on_progress: OnProgress | None = None,
    on_unlocked: Callable[[], None] | None = None,
    elsewhere: Collection[str] = (),
) -> ScrubReport:
    """Open every chunk of a vault that is not mounted.

    Args:
        path: the vault's directory.
        secret: opens a key slot.
        on_progress: called after every segment.
        on_unlocked: called once the key derivation is done.
        elsewhere: names of segments that are not missed on this disk.

    Raises:
        NotAVaultError, FormatTooNewError, WrongPasswordError, VaultLockedError: as their names say.
        IntegrityError: the metadata is damaged or was replaced, so that nobody knows which chunks ought to be there.
    """
    with inspecting(path, secret, purpose="scrub", writable=False, on_unlocked=on_unlocked) as inspection:
        if inspection.problems or inspection.database is None:
            reason = inspection.problems[0].message if inspection.problems else "metadata.db cannot be opened"
            raise IntegrityError(f"{reason}; vaultfs fsck tells more")
        database = inspection.database
        rows, checks, tree = ChunkRows(database), CheckChunkRows(database), CheckRows(database)
        report = ScrubReport()
        segments = rows.segments()
        absent = {segment.id for segment in segments if _is_elsewhere(segment, inspection.layout, elsewhere)}
        report.elsewhere_segments = len(absent)
        report.elsewhere_bytes = sum(segment.size for segment in segments if segment.id in absent)
        total = checks.total_live_bytes() - sum(segment.live for segment in segments if segment.id in absent)
        bad: list[BadChunk] = []
        for segment in segments:
            if segment.id in absent:
                continue
            chunks = rows.chunks_of_segment(segment.id)
            bad += scrub_segment(segment, chunks, inspection.layout, inspection.keyring)
            report.chunks += len(chunks)
            report.read_bytes += sum(chunk.stored for chunk in chunks)
            if on_progress is not None:
                on_progress(report.read_bytes, total)
        report.damaged_chunks = len(bad)
        lost = known_lost(checks)
        report.lost_chunks = len(lost)
        paths = Paths(tree)
        report.ranges, others = ranges_of(bad + lost, tree, paths, database.setting("chunk_size"))
        report.others = [describe_other(each, checks) for each in others]
        for problem in kept_problems(
            inspection.layout, inspection.keyring, known=(), elsewhere=elsewhere, reads_data=True
        ):
            report.others.append(f"kept snapshot {problem.seq} ({problem.id[:12]}): {problem.message}")
            report.damaged_chunks += 1
        return report


def _is_elsewhere(row: SegmentRow, layout: VaultLayout, names: Collection[str]) -> bool:
    return row.name in names and row.name is not None and not os.path.lexists(layout.sealed_path(SegmentName(row.name)))


def known_lost(checks: CheckChunkRows) -> list[BadChunk]:
    """The chunks that an earlier fsck found to be lost."""
    return [BadChunk(row.id, LOST_SEGMENT, "an earlier fsck found it lost") for row in checks.lost()]


def describe_other(bad: BadChunk, checks: CheckChunkRows) -> str:
    """A sentence on a damaged chunk that no file refers to."""
    snapshots = checks.snapshots_of_chunk(bad.chunk)
    what = f"data of snapshot {', '.join(map(str, snapshots))}" if snapshots else "data that nothing refers to any more"
    return f"chunk {bad.chunk}, {what}: {bad.reason}"
