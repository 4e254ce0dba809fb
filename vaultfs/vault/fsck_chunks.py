"""The checks of fsck on data: extents, chunks, their places and counts, and whether each chunk opens.

A chunk whose bytes are lost keeps its row, with the segment `LOST_SEGMENT`.  So reading it fails for ever, instead of
giving zeros; writing the whole range anew, or deleting the file, ends it.  If the segment that held it is put back
later, the next repair finds it by the segment's own index, and the file is whole again.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby

from vaultfs.errors import VaultError
from vaultfs.ids import ChunkId, InodeId, SegmentName
from vaultfs.metadata.check_chunk_rows import LOST_SEGMENT, UnneededRange
from vaultfs.metadata.chunk_rows import ChunkRow, SegmentRow
from vaultfs.vault.fsck_repair import Examination
from vaultfs.vault.fsck_report import MOST_FINDINGS_OF_A_KIND, ByteRange
from vaultfs.vault.fsck_segments import (
    SegmentProblem,
    add_found_segment,
    check_segments,
    every_segment,
    give_up_segments,
    settle_segments,
)
from vaultfs.vault.scrub import (
    BadChunk,
    DamagedRange,
    OnProgress,
    describe_other,
    known_lost,
    ranges_of,
    scrub_segment,
)
from vaultfs.vault.segment_index import chunk_opens, open_by_header, read_index


def check_data(ex: Examination, *, reads_data: bool, on_progress: OnProgress | None) -> None:
    """All checks of data.

    Args:
        ex: the run.
        reads_data: open every chunk; otherwise only those in segments that are not what they should be.
        on_progress: called after every segment.
    """
    for inode, count in ex.data.negative_extents():
        ex.found("extent", "error", f"{count} of its extents lie before its beginning", inodes=[inode], is_lost=True)
        ex.touched.add(inode)
    if ex.is_repairing:
        ex.data.delete_negative_extents()
    bad = _without_place(ex)
    problems = check_segments(ex, is_hashing=reads_data)
    bad |= _that_do_not_open(ex, problems, reads_data=reads_data, on_progress=on_progress)
    _report_overlaps(ex)
    if ex.is_repairing:
        give_up_segments(ex, problems, bad)
        _find_again(ex, bad)
    _report_bad(ex, bad)
    _report_known_lost(ex, set(bad))
    if ex.is_repairing:
        settle_segments(ex, problems)
    _check_reclaims(ex)
    _check_ends(ex)
    if ex.is_repairing:
        settle_counts(ex)


def _without_place(ex: Examination) -> dict[ChunkId, BadChunk]:
    """Chunks that extents name but that have no row, or a row that leads nowhere."""
    bad: dict[ChunkId, BadChunk] = {}
    for inode, index, chunk in ex.data.extents_without_chunk():
        if chunk not in bad:
            bad[chunk] = BadChunk(chunk, LOST_SEGMENT, "metadata.db has no row for it")
            if ex.is_repairing:
                row = ex.tree_rows.inode(inode)
                left = ex.chunk_size if row is None else row.size - index * ex.chunk_size
                ex.data.insert_lost(chunk, max(1, min(left, ex.chunk_size)), _born(ex))
    for seq, chunk in ex.data.pieces_without_chunk():
        bad[chunk] = BadChunk(chunk, LOST_SEGMENT, f"metadata.db has no row for it, a piece of snapshot {seq}")
        if ex.is_repairing and ex.chunk_rows.chunk(chunk) is None:
            ex.data.insert_lost(chunk, ex.chunk_size, max(1, seq))
    for found in ex.data.without_segment():
        bad[found.id] = BadChunk(found.id, found.segment, f"metadata.db has no row for its segment, {found.segment}")
    for found in ex.data.bad_places():
        reason = f"its row says {found.stored} bytes at {found.offset} of segment {found.segment}, which cannot be"
        bad[found.id] = BadChunk(found.id, found.segment, reason)
    return bad


def _born(ex: Examination) -> int:
    seq = ex.tree.setting("snapshot_seq")
    return seq + 1 if isinstance(seq, int) else 1


def _that_do_not_open(
    ex: Examination, problems: list[SegmentProblem], *, reads_data: bool, on_progress: OnProgress | None
) -> dict[ChunkId, BadChunk]:
    suspects = {problem.row.id for problem in problems} | {each.segment for each in ex.data.overlaps()}
    segments = ex.chunk_rows.segments()
    total = ex.data.total_live_bytes() - sum(segment.live for segment in segments if segment.id in ex.absent)
    bad: dict[ChunkId, BadChunk] = {}
    for segment in segments:
        if segment.id in ex.absent:
            continue
        chunks = ex.chunk_rows.chunks_of_segment(segment.id)
        if reads_data or segment.id in suspects:
            sane = [chunk for chunk in chunks if _is_sane(chunk)]
            for each in _scrubbed(ex, segment, sane):
                bad[each.chunk] = each
            ex.report.read_bytes += sum(chunk.stored for chunk in sane)
        if on_progress is not None and reads_data:
            on_progress(ex.report.read_bytes, total)
    return bad


def _scrubbed(ex: Examination, segment: SegmentRow, chunks: list[ChunkRow]) -> Iterable[BadChunk]:
    return scrub_segment(segment, chunks, ex.inspection.layout, ex.inspection.keyring)


def _is_sane(chunk: ChunkRow) -> bool:
    """Whether the numbers of a row can be used to read; others are reported already."""
    return chunk.offset >= 0 and 0 < chunk.stored <= 8 << 20 and 0 < chunk.length <= 4 << 20


def _report_overlaps(ex: Examination) -> None:
    for each in ex.data.overlaps():
        # The number of a chunk is bound into its ciphertext, so that at most one of the two opens.
        ex.found(
            "overlap", "error", f"chunks {each.first} and {each.second} claim the same bytes of segment {each.segment}"
        )


# --- chunks that are lost, and found again


def _find_again(ex: Examination, bad: dict[ChunkId, BadChunk]) -> None:
    """Look for lost chunks in segments that have no row: one may have been put back, or have lost its row."""
    wanted = set(bad) | {row.id for row in ex.data.lost()}
    found: list[ChunkId] = []
    for name in every_segment(ex) if wanted else []:
        try:
            found += _found_in(ex, name, wanted)
        except VaultError:
            continue  # without an index, or damaged; whether it ought to be there is another check's business
    users: dict[InodeId, int] = {}
    for use in ex.tree.users_of_chunks(found):
        users[use.inode] = users.get(use.inode, 0) + 1
    for inode, count in users.items():
        message = f"{count} of its chunks that had been lost were found in a segment that is there again"
        ex.found("found-again", "warning", message, inodes=[inode])
    for chunk in found:
        bad.pop(chunk, None)


def _found_in(ex: Examination, name: SegmentName, wanted: set[ChunkId]) -> list[ChunkId]:
    """Let chunks that are wanted, and open in this segment, lie there from now on."""
    indexed = read_index(ex.inspection.layout, name, ex.inspection.keyring)
    entries = [entry for entry in indexed.entries if entry.chunk_id in wanted]
    if not entries:
        return []
    found: list[ChunkId] = []
    number = next((row.id for row in ex.chunk_rows.segments() if row.name == name), None)
    header, segment = open_by_header(ex.inspection.layout, name, ex.inspection.keyring)
    try:
        for entry in entries:
            if entry.chunk_id in wanted and chunk_opens(entry, segment):
                if number is None:
                    number = add_found_segment(ex, name, header, indexed.size)
                ex.data.place(entry.chunk_id, number, entry.offset, entry.stored, entry.length)
                wanted.discard(entry.chunk_id)
                found.append(entry.chunk_id)
    finally:
        segment.reader.close()
    return found


def _report_bad(ex: Examination, bad: dict[ChunkId, BadChunk]) -> None:
    """Report damaged chunks by file; in a repair, mark them as lost and make readable copies."""
    ranges, others = ranges_of(bad.values(), ex.tree, ex.paths, ex.chunk_size)
    if ex.is_repairing:
        ex.data.lose(bad)
    for inode, parts in groupby(ranges, key=lambda each: each.inode):
        _report_file(ex, inode, list(parts))
    for each in others:
        what = describe_other(each, ex.data)
        if not ex.data.snapshots_of_chunk(each.chunk):
            ex.found("damaged-garbage", "warning", what)
        else:
            ex.found("damaged-snapshot", "error", what, is_lost=True)


def _report_file(ex: Examination, inode: InodeId, parts: list[DamagedRange]) -> None:
    merged = _merged(parts)
    lost_bytes = sum(part.length for part in merged)
    where = ", ".join(f"{part.offset} to {part.offset + part.length - 1}" for part in merged[:8])
    more = f" and {len(merged) - 8} more ranges" if len(merged) > 8 else ""
    row = ex.tree_rows.inode(inode)
    size = 0 if row is None else row.size
    saved = f"{max(size - lost_bytes, 0)} of {size} bytes can be read"
    if ex.is_repairing and ex.is_readable_copy(inode):
        ex.data.drop_lost_extents(inode)
        ex.touched.add(inode)
        saved = f"{saved}, and the rest is holes like what was lost before"
    elif ex.is_repairing:
        copy = ex.readable_copy(inode)
        if copy is None:
            saved = "none of it can be read; the file stays, and reading it fails"
        else:
            saved = f"{saved}: {copy} has them, with holes for the rest; the file stays, and reading the rest fails"
    reasons = sorted({part.reason for part in parts})
    ex.found(
        "damaged-data",
        "error",
        f"bytes {where}{more} are damaged: {reasons[0]}" + (f" (and {len(reasons) - 1} more)" if reasons[1:] else ""),
        inodes=[inode],
        ranges=merged,
        saved=saved,
        is_lost=True,
    )


def _merged(parts: Iterable[DamagedRange]) -> list[ByteRange]:
    """Byte ranges with those joined that touch."""
    merged: list[ByteRange] = []
    for part in parts:
        if merged and merged[-1].offset + merged[-1].length == part.offset:
            merged[-1] = ByteRange(merged[-1].offset, merged[-1].length + part.length)
        else:
            merged.append(ByteRange(part.offset, part.length))
    return merged


def _report_known_lost(ex: Examination, new: set[ChunkId]) -> None:
    lost = [each for each in known_lost(ex.data) if each.chunk not in new]
    ranges, _ = ranges_of(lost, ex.tree, ex.paths, ex.chunk_size)
    for inode, parts in groupby(ranges, key=lambda each: each.inode):
        merged = _merged(parts)
        message = f"{sum(part.length for part in merged)} bytes of it are lost since an earlier repair"
        ex.found("known-loss", "note", message, inodes=[inode], ranges=merged)


# --- counts


def check_counts(ex: Examination) -> None:
    """References, births and ends of chunks; before anything else changes them."""
    seq = ex.tree.setting("snapshot_seq")
    seq = seq if isinstance(seq, int) else 0
    wrong = ex.data.reference_counts()
    users: dict[int, list[InodeId]] = {}
    for use in ex.tree.users_of_chunks(count.id for count in wrong[:MOST_FINDINGS_OF_A_KIND]):
        users.setdefault(use.chunk, []).append(use.inode)
    for count in wrong:
        message = f"chunk {count.id} has {count.right} references, not {count.stored}"
        ex.found("reference-count", "warning", message, inodes=sorted(set(users.get(count.id, ())))[:16])
    dead = ex.data.wrongly_dead()
    if dead:
        ex.found("reference-count", "warning", f"{dead} chunks in use are said to have ended")
    born = ex.data.births_in_the_future(seq)
    if born:
        ex.found("birth", "warning", f"{born} chunks are said to be born after the present, or before all time")
        if ex.is_repairing:
            ex.data.clamp_births(seq)
    if ex.is_repairing:
        ex.data.count_references()
    unended = ex.data.unended()
    if unended:
        ex.found("unended-chunk", "warning", f"{len(unended)} chunks that only snapshots need are not marked so")
        if ex.is_repairing:
            for chunk in unended:
                ex.chunk_rows.set_refs(chunk, 0, seq + 1)
    unneeded = _unneeded(ex)
    if unneeded:
        stored = sum(row.stored for row in unneeded)
        ex.found("unneeded-chunk", "warning", f"{len(unneeded)} chunks, {stored} bytes, are needed by nothing")
    for live in ex.data.live_bytes():
        ex.found("live-count", "warning", f"segment {live.id} has {live.right} bytes in use, not {live.stored}")
    if ex.is_repairing:
        settle_counts(ex)


def settle_counts(ex: Examination) -> None:
    """Set all counts right, as repairs have changed them; what nothing needs is to be given back."""
    ex.data.count_references()
    for row in _unneeded(ex):
        ex.chunk_rows.delete_chunk(row.id)
        if row.segment != LOST_SEGMENT:
            ex.chunk_rows.put_reclaim(row.segment, row.offset, row.stored)
    ex.data.count_live_bytes()


def _unneeded(ex: Examination) -> list[ChunkRow]:
    """Chunks that nothing needs; none while a mount has still to clean up after snapshots, as it knows better."""
    is_cleaning = any(ex.tree.setting(name) for name in ("snapshot_making", "snapshot_cleaning"))
    return [] if is_cleaning else ex.data.unneeded()


def _check_reclaims(ex: Examination) -> None:
    """No range that is to be punched may touch a chunk."""
    segments = {row.id for row in ex.chunk_rows.segments()}
    wrong: list[UnneededRange] = []
    for number, group in groupby(ex.data.reclaims(), key=lambda each: each.segment):
        ranges = list(group)
        if number == LOST_SEGMENT:
            continue  # a lost chunk has ended; there is nothing to punch
        if number not in segments:
            wrong += ranges
            continue
        chunks = ex.chunk_rows.chunks_of_segment(number)
        position = 0
        for each in ranges:
            while position < len(chunks) and chunks[position].offset + chunks[position].stored <= each.offset:
                position += 1
            if each.length <= 0 or (position < len(chunks) and chunks[position].offset < each.offset + each.length):
                wrong.append(each)
    for each in wrong:
        message = f"{each.length} bytes at {each.offset} of segment {each.segment} are to be given back, but in use"
        if each.segment not in segments:
            message = f"bytes of segment {each.segment}, which is not there, are to be given back"
        ex.found("reclaim", "error" if each.segment in segments else "warning", message)
        if ex.is_repairing:
            ex.chunk_rows.delete_reclaim(each.segment, each.offset)


def _check_ends(ex: Examination) -> None:
    """Bytes past the end of files; while the intent log has records, the last chunk may be longer than the file."""
    intents = ex.data.intent_count()
    if intents:
        ex.found("intents", "note", f"{intents} writes are in the log; the next mount puts them into their files")
        return
    for inode, size, end in ex.data.chunks_over_the_end(ex.chunk_size):
        ex.found("chunk-past-end", "error", f"its last chunk reaches to {end}, past its size of {size}", inodes=[inode])
        if ex.is_repairing:
            ex.readable_copy(inode, suffix=b".longer", size=end)
            ex.too_long.append((inode, size, end))
