"""What the tests of compaction share."""

from __future__ import annotations

from pathlib import Path

from vaultfs.crypto.slots import Secret
from vaultfs.metadata.chunk_rows import SegmentRow
from vaultfs.metadata.compaction_rows import Policy
from vaultfs.vault.api import Vault
from vaultfs.vault.compaction import CompactionStep, Compactor, compact
from vaultfs.vault.filesystem import FileSystem

KEY, _ = Secret.generate_recovery()
EAGER = Policy(least_gain=4096, live_percent=30, waste_percent=25, small=0, most_small=0)
"""For segments of 1 MiB."""


def write(vault: Vault, name: str, content: bytes, offset: int = 0) -> None:
    with vault.open(name, "r+b" if vault.exists(name) else "wb") as file:
        file.pwrite(content, offset)


def read(vault: Vault, name: str) -> bytes:
    with vault.open(name) as file:
        content: bytes = file.read()
        return content


def settle(fs: FileSystem) -> None:
    """Commit until nothing more becomes free."""
    fs.committer.commit()
    while not fs.committer.is_clean:
        fs.committer.commit()


def thinned(vault: Vault, data: bytes, keep_every: int = 8) -> bytes:
    """A file whose segments have little left: all chunks but each eighth were overwritten; return its content."""
    fs = vault.filesystem
    write(vault, "/file", data)
    settle(fs)
    fs.pipeline.seal()
    settle(fs)
    size = fs.chunk_size
    new = bytearray(data)
    for number in range(len(data) // size):
        if number % keep_every:
            piece = bytes([number % 251 + 1]) * size
            new[number * size : (number + 1) * size] = piece
            write(vault, "/file", piece, number * size)
    settle(fs)
    return bytes(new)


def sealed(fs: FileSystem) -> dict[int, SegmentRow]:
    return {row.id: row for row in fs.chunk_rows.segments() if row.name is not None}


def next_step(compactor: Compactor) -> CompactionStep:
    step = compactor.plan()
    assert step is not None
    return step


def compacted(fs: FileSystem, policy: Policy = EAGER) -> None:
    compact(fs, policy=policy)


def disk_bytes(path: Path) -> int:
    """What the vault takes on the disk, holes not counted."""
    return sum(file.lstat().st_blocks * 512 for file in path.rglob("*"))


def require_exact_counts(fs: FileSystem) -> None:
    """Every segment's count of living bytes is the sum of its chunks."""
    for row in fs.chunk_rows.segments():
        assert row.live == sum(chunk.stored for chunk in fs.chunk_rows.chunks_of_segment(row.id)), row
