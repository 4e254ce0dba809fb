"""Scrubbing a mounted vault for the command line: some of it per request on the control socket.

The client keeps the position and asks again, so it can show progress and stop at any time, and the daemon remembers
nothing.
"""

from __future__ import annotations

from typing import Any, Final

import trio

from vaultfs.errors import UsageError
from vaultfs.metadata.check_chunk_rows import CheckChunkRows
from vaultfs.vault.filesystem import FileSystem
from vaultfs.vault.scrub import DamagedRange, known_lost
from vaultfs.vault.scrub_step import Position, judge, plan, ranges_in

REQUEST_BYTES: Final = 64 << 20
"""Read per request: a tenth of a second on a fast disk."""
MOST_RANGES: Final = 1000
"""Damaged ranges in one answer; the request ends early then."""
MOST_ELSEWHERE: Final = 256
"""Likewise segments; to pass over one takes the loop as long as a request."""


async def scrub_some(fs: FileSystem, arguments: dict[str, Any]) -> dict[str, Any]:
    """Open the next chunks of a mounted vault.

    Args:
        fs: the vault.
        arguments: ``segment`` and ``chunk`` as the answer before gave them; 0 to begin.

    Returns:
        ``segment`` and ``chunk``: where to go on; ``done``; ``chunks`` and ``bytes`` read; ``total_bytes``; ``damaged``
        and ``others``, see :class:`vaultfs.vault.scrub.ScrubReport`; ``lost_chunks`` in the first answer;
        ``elsewhere``: names and bytes of segments that are not on this disk, which only the client can judge.

    Raises:
        UsageError: the arguments are no numbers.
    """
    try:
        position = Position(int(arguments.get("segment", 0)), int(arguments.get("chunk", 0)))
    except (TypeError, ValueError, OverflowError):
        raise UsageError("scrub wants two numbers, segment and chunk") from None
    if not all(0 <= number < 1 << 63 for number in position):
        raise UsageError("scrub wants two numbers that a row can have")
    chunks = read = 0
    damaged_chunks = lost_chunks = 0
    ranges: list[DamagedRange] = []
    others: list[str] = []
    if position == Position(0, 0):
        lost = known_lost(CheckChunkRows(fs.database))
        lost_chunks = len(lost)
        ranges, others = ranges_in(fs, lost)
    elsewhere: list[tuple[str, int]] = []
    is_done = False
    while read < REQUEST_BYTES and len(ranges) < MOST_RANGES and len(elsewhere) < MOST_ELSEWHERE:
        step = plan(fs, position)
        if step is None:
            is_done = True
            break
        position = step.position
        if step.elsewhere is not None:
            elsewhere.append((step.elsewhere.name, step.elsewhere.size))
            continue
        fs.segments.lease()
        try:
            await trio.to_thread.run_sync(step.read)
        finally:
            fs.segments.end_lease()
        found, rest = judge(fs, step)
        ranges += found
        others += rest
        damaged_chunks += len({each.chunk for each in found}) + len(rest)
        chunks += len(step.chunks)
        read += step.stored_bytes
    return {
        "segment": position.segment,
        "chunk": position.chunk,
        "done": is_done,
        "chunks": chunks,
        "bytes": read,
        "total_bytes": CheckChunkRows(fs.database).total_live_bytes(),
        "damaged_chunks": damaged_chunks,
        "lost_chunks": lost_chunks,
        "damaged": [each._asdict() for each in ranges],
        "others": others,
        "elsewhere": elsewhere,
    }
