"""Finding worn segments: those of which files need little, and no snapshot that a person made anything.

In pieces of a few milliseconds, because a vault has a million chunks and programs wait meanwhile.  What changes between
two pieces makes the answer inexact and nothing worse: a segment too many is copied, or one too few.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from vaultfs.metadata.compaction_rows import CompactionRows
from vaultfs.vault.steps import Step

if TYPE_CHECKING:
    from vaultfs.ids import SegmentId
    from vaultfs.vault.filesystem import FileSystem
    from vaultfs.vault.steps import Steps

ROWS_AT_ONCE: Final = 1024
ASKED_AT_ONCE: Final = 16


def finding_worn(fs: FileSystem, label: str, percent: int, least_gain: int, most_bytes: int) -> Steps[list[SegmentId]]:
    """The worn segments, on this disk or not, those of which files need the least first.

    Args:
        fs: the vault.
        label: of snapshots that will be gone soon; all others count.
        percent: files need less than this share of a worn segment's size.
        least_gain: bytes that files do not need, at least.
        most_bytes: of all together files need so many, or what one segment more has.
    """
    rows = CompactionRows(fs.database)
    dead_bytes: dict[SegmentId, int] = {}
    place = (0, 0)
    while dead := rows.dead_after(place, ROWS_AT_ONCE):
        for row in dead:
            dead_bytes[row.segment] = dead_bytes.get(row.segment, 0) + row.stored
        place = dead[-1].died, dead[-1].id
        yield Step.PAUSE
    found: list[tuple[int, SegmentId]] = []
    after = 0
    while sizes := rows.sizes_after(after, ROWS_AT_ONCE):
        for size in sizes:
            needed = size.live - dead_bytes.get(size.id, 0)
            if needed > 0 and needed * 100 < size.size * percent and size.size - needed > least_gain:
                found.append((needed, size.id))
        after = sizes[-1].id
        yield Step.PAUSE
    has_others = rows.has_others(label)
    worn: list[SegmentId] = []
    total_bytes = 0
    for number, (needed, segment) in enumerate(sorted(found)):
        if total_bytes >= most_bytes:
            break
        if not has_others or not rows.is_needed_by_others(segment, label):
            worn.append(segment)
            total_bytes += needed
        if number % ASKED_AT_ONCE == ASKED_AT_ONCE - 1:
            yield Step.PAUSE
    return worn
