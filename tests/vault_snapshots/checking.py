"""What must be true of a vault with snapshots whenever nothing is being made or deleted; written without its code."""

from __future__ import annotations

from collections import Counter

from vaultfs.crypto.aead import OVERHEAD_BYTES
from vaultfs.crypto.compression import decompress
from vaultfs.errors import VaultError
from vaultfs.ids import SegmentId
from vaultfs.vault.filesystem import FileSystem


def problems(fs: FileSystem) -> list[str]:
    """Everything that is wrong; the vault is open, committed, and nothing else happens in it."""
    return [*_rows(fs), *_places(fs), *_files(fs)]


def _rows(fs: FileSystem) -> list[str]:
    found = []
    rows = fs.database.rows
    seqs = [row[0] for row in rows("SELECT seq FROM snapshot ORDER BY seq")]
    extents = Counter(row[0] for row in rows("SELECT chunk FROM extent"))
    pieces = Counter(row[0] for row in rows("SELECT chunk FROM snapshot_piece"))
    chunks = {}
    for chunk, refs, born, died in rows("SELECT id, refs, born, died FROM chunk"):
        chunks[chunk] = refs
        if refs != extents[chunk] + pieces[chunk]:
            found.append(f"chunk {chunk}: {refs} references, {extents[chunk]} extents, {pieces[chunk]} pieces")
        if (refs == 0) != (died is not None):
            found.append(f"chunk {chunk}: {refs} references, died {died}")
        if refs == 0 and not any(born <= seq < died for seq in seqs):
            found.append(f"chunk {chunk} (born {born}, died {died}) is needed by none of {seqs}")
        if extents[chunk] and pieces[chunk]:
            found.append(f"chunk {chunk} is shared by a file and an image")
    found += [f"chunk {chunk} is named and not there" for chunk in (extents | pieces) if chunk not in chunks]
    found += [
        f"pieces of snapshot {row[0]}, which is not there"
        for row in rows("SELECT DISTINCT seq FROM snapshot_piece")
        if row[0] not in seqs
    ]
    if fs.snapshot_rows.making() or fs.snapshot_rows.is_cleaning():
        found.append("something was not finished")
    on_disk = {path.name for path in fs.layout.heads.iterdir()} - {"HEAD", "history"}
    wanted = {f"{seq:010d}-{name}.manifest" for seq, name in rows("SELECT seq, id FROM snapshot")}
    if on_disk != wanted:
        found.append(f"heads/ holds {on_disk}, and should hold {wanted}")
    return found


def _places(fs: FileSystem) -> list[str]:
    """Every chunk opens where it should be, and nothing that is needed is to be reclaimed."""
    found = []
    ranges: dict[int, list[tuple[int, int]]] = {}
    live: Counter[int] = Counter()
    for chunk, segment, offset, stored, length in fs.database.rows("SELECT id,segment,offset,stored,length FROM chunk"):
        live[segment] += stored
        ranges.setdefault(segment, []).append((offset, offset + stored))
        try:
            readable = fs.segments.get(SegmentId(segment))
            data = readable.cipher.open(chunk, readable.reader.read(offset, stored), length=length)
            if stored < length + OVERHEAD_BYTES:
                decompress(data, length)
        except VaultError as error:
            found.append(f"chunk {chunk}: {error}")
    for segment, counted in fs.database.rows("SELECT id, live FROM segment"):
        if live[segment] != counted:
            found.append(f"segment {segment}: live {counted}, chunks {live[segment]}")
    for segment, offset, length in fs.database.rows("SELECT segment, offset, length FROM reclaim"):
        for start, end in ranges.get(segment, []):
            if start < offset + length and offset < end:
                found.append(f"segment {segment}: [{start}, {end}) is needed, and to be reclaimed")
    return found


def _files(fs: FileSystem) -> list[str]:
    """Segment files are those that rows name."""
    rows = {row.name or row.token for row in fs.chunk_rows.segments()}
    files = {file.stem for file in fs.layout.segments.rglob("*.seg")}
    return [] if rows == files else [f"segments without row: {files - rows}, without file: {rows - files}"]
