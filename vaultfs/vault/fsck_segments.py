"""The checks of fsck on segment files: what the rows of ``segment`` promise, and what lies on the disk.

A damaged segment stays where it is, with every byte of it: chunks in it that open are still used.  It is marked as one
whose hash does not match its name any more, as those with holes are.  Two things are mended in place: a header that was
changed, as the metadata holds all of it; and bytes that somebody has added, if the hash proves that the rest is whole.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Container
from pathlib import Path
from typing import Final, NamedTuple

from vaultfs.errors import IntegrityError, StorageError, VaultError
from vaultfs.ids import ChunkId, KeyEpoch, SegmentId, SegmentName
from vaultfs.metadata.chunk_rows import SegmentRow
from vaultfs.storage.durable import fsync_directory, storage_errors
from vaultfs.storage.layout import VaultLayout, is_segment_name
from vaultfs.storage.segment_file import open_for_change
from vaultfs.storage.segment_format import HEADER_BYTES, SegmentHeader
from vaultfs.storage.segment_reader import SegmentReader, hash_file
from vaultfs.vault.adoption_record import foreign_segments
from vaultfs.vault.fsck_repair import Examination
from vaultfs.vault.fsck_report import Severity
from vaultfs.vault.scrub import bad_places, open_leniently, place_of

ASIDE: Final = "damaged"
"""The directory in the vault's into which repairs move what they replace."""
_PROBES: Final = 64
"""Chunks that are tried to find out whether a file with another header is the segment all the same."""


class SegmentProblem(NamedTuple):
    """A segment that is not what its row says; ``is_gone``: none of its chunks can be read from its place."""

    row: SegmentRow
    code: str
    message: str
    is_gone: bool = False


def path_of(row: SegmentRow, layout: VaultLayout) -> Path:
    """Where the file of a segment must lie.

    Raises:
        IntegrityError: the row's name or token is none.
    """
    return layout.open_path(row.token) if row.name is None else layout.sealed_path(SegmentName(row.name))


def move_aside(layout: VaultLayout, path: Path) -> Path:
    """Move something out of the way, into the directory ``damaged``; return where it is now.

    Raises:
        StorageError: it could not be moved.
    """
    directory = layout.root / ASIDE
    with storage_errors(f"cannot move {path} into {directory}"):
        directory.mkdir(mode=0o700, exist_ok=True)
        target, number = directory / path.name, 1
        while target.is_symlink() or target.exists():
            number += 1
            target = directory / f"{path.name}.{number}"
        os.rename(path, target)  # noqa: PTH104  # named as the system call
    fsync_directory(directory)
    fsync_directory(layout.root)
    fsync_directory(path.parent)
    return target


def check_segments(ex: Examination, *, is_hashing: bool) -> list[SegmentProblem]:
    """Compare rows and files; report, and mend what can be mended in place.

    Args:
        ex: the run.
        is_hashing: read every segment that has no holes as a whole and compare its hash.

    Returns:
        what is left of problems; chunks of these segments must be tried one by one.
    """
    layout = ex.inspection.layout
    being_punched = {each.segment for each in ex.data.reclaims()}
    left: list[SegmentProblem] = []
    rows = ex.chunk_rows.segments()
    for row in rows:
        problem = _problem_of(ex, row, is_hashing=is_hashing and row.id not in being_punched)
        if problem is None:
            continue
        end = ex.chunk_rows.referenced_end(row.id)
        if problem.is_gone and not end:
            # The file of a segment in which nothing is left goes before its row does.
            severity: Severity = "warning" if ex.inspection.was_closed else "note"
            ex.found("empty-segment", severity, f"segment {problem.message}; nothing was in it any more")
            if ex.is_repairing and ex.inspection.was_closed:
                ex.chunk_rows.delete_segment(row.id)
            continue
        if problem.code == "segment-missing" and row.name in ex.elsewhere:
            ex.absent.add(row.id)
            ex.report.elsewhere_segments += 1
            ex.report.elsewhere_bytes += row.size
            continue
        saved = _mend(ex, problem) if ex.is_repairing else ""
        ex.found(problem.code, "error", f"segment {problem.message}", saved=saved)
        if not saved:
            left.append(problem)
    _check_strangers(ex, rows, layout)
    return left


def _problem_of(ex: Examination, row: SegmentRow, *, is_hashing: bool) -> SegmentProblem | None:
    label = row.name or f"open/{row.token}"
    try:
        path = path_of(row, ex.inspection.layout)
        chunk_key_epoch = ex.inspection.keyring.subkeys(KeyEpoch(row.epoch)).epoch
        reader = SegmentReader.open(path, segment=label)
    except StorageError as error:
        return SegmentProblem(row, "segment-unreadable", f"{label}: {error}", is_gone=True)
    except IntegrityError as error:
        code = "segment-missing" if "is missing" in str(error) else "segment-replaced"
        return SegmentProblem(row, code, f"{label}: {error}", is_gone=True)
    try:
        size = reader.size_bytes()
        head = reader.read(0, min(size, HEADER_BYTES))
    finally:
        reader.close()
    if head != SegmentHeader(ex.inspection.keyring.vault_id, chunk_key_epoch, row.salt).encode():
        return SegmentProblem(row, "segment-header", f"{label}: its header is not the one that was written")
    if row.name is None:
        end = ex.chunk_rows.referenced_end(row.id)
        if size < end:
            return SegmentProblem(row, "segment-cut", f"{label} has {size} bytes; {end} were durable")
        return None
    if size < row.size:
        return SegmentProblem(row, "segment-cut", f"{label} has {size} bytes; it must have {row.size}")
    if size > row.size:
        return SegmentProblem(row, "segment-extended", f"{label} has {size} bytes; it must have {row.size}")
    if is_hashing and not row.holes and hash_file(path) != row.name:
        return SegmentProblem(row, "segment-altered", f"{label}: its bytes do not have the hash that is its name")
    return None


def _mend(ex: Examination, problem: SegmentProblem) -> str:
    """Try to bring a file back to what it was; return what was done, or an empty text."""
    row, layout = problem.row, ex.inspection.layout
    try:
        if problem.code == "segment-header" and _is_ours(ex, row):
            epoch = KeyEpoch(row.epoch)
            _write(path_of(row, layout), SegmentHeader(ex.inspection.keyring.vault_id, epoch, row.salt).encode())
        elif problem.code != "segment-extended":
            return ""
        if problem.code == "segment-extended" and not _cut_if_whole(path_of(row, layout), row):
            return ""
        again = _problem_of(ex, row, is_hashing=True)
    except VaultError as error:
        ex.found("not-repaired", "error", f"segment {row.name or row.token}: {error}", is_repaired=False)
        return ""
    if again is not None:
        return ""
    return "its header was written again" if problem.code == "segment-header" else "the bytes added to it were cut off"


def _is_ours(ex: Examination, row: SegmentRow) -> bool:
    """Whether a file with another header holds chunks of this segment."""
    places = [place_of(chunk) for chunk in ex.chunk_rows.chunks_of_segment(row.id)[:_PROBES]]
    segment = open_leniently(row, ex.inspection.layout, ex.inspection.keyring)
    try:
        return sum(1 for _ in bad_places(places, segment)) < len(places)
    finally:
        segment.reader.close()


def _write(path: Path, header: bytes) -> None:
    descriptor = open_for_change(path, segment=path.name)
    try:
        with storage_errors(f"cannot write the header of {path}"):
            os.pwrite(descriptor, header, 0)
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _cut_if_whole(path: Path, row: SegmentRow) -> bool:
    """Cut a file to its size if what remains has the hash that is its name; else leave it as it is."""
    import blake3  # noqa: PLC0415  # only here

    descriptor = open_for_change(path, segment=path.name)
    try:
        with storage_errors(f"cannot mend {path}"):
            hasher, offset = blake3.blake3(), 0
            while offset < row.size and (block := os.pread(descriptor, min(1 << 20, row.size - offset), offset)):
                hasher.update(block)
                offset += len(block)
            if hasher.hexdigest() != row.name:
                return False
            os.ftruncate(descriptor, row.size)
            os.fsync(descriptor)
            return True
    finally:
        os.close(descriptor)


def give_up_segments(ex: Examination, problems: list[SegmentProblem], bad: Container[ChunkId]) -> None:
    """Remove the rows of segments of which no chunk can be read; what lies in their place may be another segment."""
    given_up: dict[bytes, SegmentName] = {}
    for problem in problems:
        row = problem.row
        if all(chunk.id in bad for chunk in ex.chunk_rows.chunks_of_segment(row.id)):
            ex.chunk_rows.delete_segment(row.id)
            _clear_place(ex, row)
            if row.name is not None and is_segment_name(row.name):
                given_up[row.salt] = SegmentName(row.name)
    if given_up:
        _put_in_place(ex, given_up)


def _first_bytes(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(HEADER_BYTES)


def _put_in_place(ex: Examination, given_up: dict[bytes, SegmentName]) -> None:
    """If somebody has swapped segments, give each that was given up its own name again.

    Args:
        ex: the run.
        given_up: names by salt.  The salt is public, but only the right one lets the chunks open.
    """
    layout = ex.inspection.layout
    known = {row.name for row in ex.chunk_rows.segments()}
    misplaced: list[tuple[SegmentName, Path]] = []
    for name in layout.sealed_names():
        if name in known:
            continue
        path = layout.sealed_path(name)
        try:
            right = given_up.get(SegmentHeader.decode(_first_bytes(path)).salt, name)
        except (VaultError, OSError):
            continue  # no segment at all; it stays where it is
        if right != name:
            misplaced.append((right, move_aside(layout, path)))
    for name, aside in misplaced:
        path = layout.sealed_path(name)
        if path.is_symlink() or path.exists():
            continue
        with storage_errors(f"cannot move {aside} to {path}"):
            path.parent.mkdir(mode=0o700, exist_ok=True)
            os.rename(aside, path)  # noqa: PTH104
        fsync_directory(path.parent)
        fsync_directory(layout.segments)
        ex.found("misplaced-segment", "warning", f"segment {name} lay under another name; it is in its place again")


def settle_segments(ex: Examination, problems: list[SegmentProblem]) -> None:
    """After the lost chunks were marked: let the rows of damaged segments say what is there now."""
    layout = ex.inspection.layout
    for problem in problems:
        row = problem.row
        current = ex.chunk_rows.segment(row.id)
        if current is None or current.token != row.token:
            continue  # given up; the number may be another segment's by now
        path = path_of(row, layout)
        ex.data.accept_segment(row.id, path.stat().st_size if row.name is not None else 0)
        if problem.code == "segment-header":
            _write(path, SegmentHeader(ex.inspection.keyring.vault_id, KeyEpoch(row.epoch), row.salt).encode())


def add_found_segment(ex: Examination, name: SegmentName, header: SegmentHeader, size: int) -> SegmentId:
    """Add the row of a sealed segment that was found on the disk; ``size`` in bytes."""
    number = ex.data.add_segment(name[:32], name, header.epoch, header.salt, size)
    if hash_file(ex.inspection.layout.sealed_path(name)) != name:
        ex.data.accept_segment(number, size)  # holes were punched, or it is damaged; each chunk says for itself
    return number


def every_segment(ex: Examination) -> list[SegmentName]:
    """All sealed segments on disk that may hold what is missing, those without a row first.

    Those of another history may not: the same numbers of chunks mean other things there.
    """
    known = {row.name for row in ex.chunk_rows.segments()}
    foreign = foreign_segments(ex.inspection.layout, ex.inspection.adoption) - known
    return sorted(set(ex.inspection.layout.sealed_names()) - foreign, key=lambda name: (name in known, name))


def _clear_place(ex: Examination, row: SegmentRow) -> None:
    """Move away what took a segment's place if it is no file, so that the segment can be put back there."""
    if row.name is not None and not is_segment_name(row.name):
        return
    try:
        path = path_of(row, ex.inspection.layout)
        if (path.is_symlink() or path.exists()) and not stat.S_ISREG(path.lstat().st_mode):
            move_aside(ex.inspection.layout, path)
    except (VaultError, OSError) as error:
        ex.found("not-repaired", "warning", f"segment {row.name or row.token}: {error}", is_repaired=False)


def _check_strangers(ex: Examination, rows: list[SegmentRow], layout: VaultLayout) -> None:
    known = {row.name for row in rows if row.name is not None}
    tokens = {row.token for row in rows}
    known |= foreign_segments(layout, ex.inspection.adoption)
    count = sum(1 for name in layout.sealed_names() if name not in known)
    if count:
        ex.found("unreferenced-segment", "note", f"{count} sealed segments belong to no file of the vault")
    leftovers = [token for token in layout.open_tokens() if token not in tokens]
    if leftovers:
        ex.found(
            "leftover-segment", "note", f"{len(leftovers)} segments were being written; the next mount removes them"
        )
    unsealed = [row for row in rows if row.name is None]
    if unsealed:
        ex.found("open-segment", "note", f"{len(unsealed)} segments were being written; the next mount seals them")
