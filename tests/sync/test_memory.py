"""Memory does not grow with the vault: a segment for each connection to send, next to nothing to fetch."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from pathlib import Path

from sync.fabricated import Fabricated, target
from vaultfs.remotes.directory import DirectoryStore
from vaultfs.storage.layout import VaultLayout
from vaultfs.sync.download import fetch, heads
from vaultfs.sync.upload import sync
from vaultfs.sync.verify import verify

SEGMENT = 4 << 20
SEGMENTS = 10
PIECES = 2 << 20
"""Of a MiB each, on their way in each connection."""
SLACK = 1 << 20


def peak(action: Callable[[], object]) -> int:
    tracemalloc.start()
    try:
        action()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_memory_is_bounded_by_the_connections(scratch: Path) -> None:
    vault = Fabricated(scratch / "vault")
    vault.snapshot(*(vault.segment(SEGMENT) for _ in range(SEGMENTS)))
    vault.segments.clear()
    disks = [DirectoryStore(scratch / name) for name in ("one", "two")]
    targets = []
    for disk in disks:
        Path(disk.name.removeprefix("file://")).mkdir()
        targets.append(target(vault, disk, scratch / "state", disk.name[-3:]))
    for connections in (1, 3):
        for disk in disks:
            for info in list(disk.list("segments/")):
                disk.delete(info.key)
        used = peak(lambda: sync(vault.layout, targets, connections=connections, check=True))  # noqa: B023
        assert connections * SEGMENT < used < connections * (SEGMENT + PIECES) + SLACK
    [head] = heads(disks[0])
    assert peak(lambda: fetch(disks[0], VaultLayout(scratch / "restored"), head, connections=3)) < 3 * PIECES + SLACK
    assert peak(lambda: verify(disks[1], read_share=1.0)) < 4 * PIECES + SLACK
