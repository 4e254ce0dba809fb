"""``vaultfs mesh fetch``: bring back what is missing on this disk, or damaged, from the peers.  No password."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Final

from vaultfs.cli.arriving import ArrivingProgress
from vaultfs.cli.mesh_work import MeshWork
from vaultfs.cli.offered_headers import OpenedPeers
from vaultfs.cli.output import counted, emit_json, error_line, say
from vaultfs.cli.progress import progress
from vaultfs.cli.sizes import format_size
from vaultfs.cli.targets import Stores, check_connections, parse_rate, vault_of
from vaultfs.errors import ExitCode
from vaultfs.mesh.store import mesh_url
from vaultfs.sync.bring_back import bring_back, needed_by_snapshots

_SHOWN: Final = 20


def fetch(
    path: Path,
    /,
    *,
    check: bool = False,
    bwlimit: str | None = None,
    connections: int = 4,
    quiet: bool = False,
    json: bool = False,
) -> int:
    """Bring what the snapshots of a vault need and this disk lacks back from the peers: of a clone, or what was lost.

    The vault may be mounted meanwhile. What an interrupted run has brought stays; the next one does the rest.

    Args:
        path: A vault, or a folder where one is mounted.
        check: Read also what is here, and replace what is damaged.
        bwlimit: Bytes per second at most, as in 500K or 10M.
        connections: So many segments at once.
        quiet: Show no progress.
        json: Show progress as JSON lines on standard error, and print the outcome as JSON.
    """
    check_connections(connections)
    rate = parse_rate(bwlimit)
    layout, _ = vault_of(path)
    work = MeshWork.of(str(path))
    needed = needed_by_snapshots(layout, work.page.vault_id)
    if not check:
        present = frozenset(layout.sealed_names())
        needed = {name: size for name, size in needed.items() if name not in present}
    bar = progress(f"fetch {path}", "none" if quiet or not needed else "json" if json else "auto", resumable=True)
    with Stores(rate) as stores:
        peers = OpenedPeers()
        store = stores.open(mesh_url(work.page.vault_id), {}, {"mesh": peers.open})
        arriving = ArrivingProgress(bar, peers.only if rate is None else None)
        with suppress(_NotAllError), bar, stores.interruptible() as is_stopped:
            done = bring_back(
                store,
                layout,
                needed,
                connections=connections,
                progress=arriving,
                is_stopped=arriving.looking(is_stopped),
            )
            if done.missing:
                raise _NotAllError
    if json:
        emit_json(
            {
                "vault": str(layout.root),
                "segments": done.segments,
                "bytes": done.bytes,
                "missing": sorted(done.missing),
            }
        )
    else:
        say(
            f"fetched {counted(done.segments, 'segment')}, {format_size(done.bytes)}"
            if done.segments
            else "nothing had to be fetched"
        )
        for name in sorted(done.missing)[:_SHOWN]:
            error_line(f"the segment {name} cannot be had: {done.missing[name]}")
        if len(done.missing) > _SHOWN:
            error_line(f"and {len(done.missing) - _SHOWN} more segments; --json names all")
    return ExitCode.INTEGRITY if done.missing else ExitCode.OK


class _NotAllError(Exception):
    """Something is missing, so the progress does not end with a success."""
