"""Fetching parts of segments before a copy gets there, in a few threads: each request to a remote takes a while.

The copy goes through files in one order, which is known: so are the blocks that it is going to need.  They are planned
bit by bit in the thread of the core, as the copy tells how far it is, and fetched into the cache by threads, which see
neither database nor keys.  Nothing depends on it: what did not come in time, or failed, the copy fetches itself, and
says so if it cannot.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from types import TracebackType
from typing import Final, NamedTuple, Self

from vaultfs.errors import IntegrityError, VaultError
from vaultfs.ids import InodeId, SegmentId
from vaultfs.storage.segment_cache import BLOCK_BYTES
from vaultfs.vault.filesystem import FileSystem
from vaultfs.vault.inodes import Inode
from vaultfs.vault.segments import ChunkReader

WINDOW_BYTES: Final = 64 << 20
"""How far ahead of the copy, in bytes of files."""
RUN_BLOCKS: Final = 4
GRACE_S: Final = 5.0
"""What does not end in this time, because a server has gone silent, is left alone."""
_WINDOW_CHUNKS: Final = 1024
"""Extents asked for at once."""


class Run(NamedTuple):
    """Blocks side by side.

    Attributes:
        segment: number.
        first: block.
        last: block, included.
        position: bytes of files that come before the first byte that needs it.
    """

    segment: SegmentId
    first: int
    last: int
    position: int


def needed_runs(fs: FileSystem, tops: Iterable[Inode]) -> Iterator[Run]:
    """The blocks that copying files and trees needs, each once, in the order in which it needs them.

    Args:
        fs: the vault.
        tops: what is copied, in order.
    """
    seen: set[tuple[SegmentId, int]] = set()
    run: Run | None = None
    for segment, block, position in _needed_blocks(fs, tops):
        if (segment, block) in seen:
            continue
        seen.add((segment, block))
        if run is not None:
            if segment == run.segment and block == run.last + 1 and block - run.first < RUN_BLOCKS:
                run = run._replace(last=block)
                continue
            yield run
        run = Run(segment, block, block, position)
    if run is not None:
        yield run


def _needed_blocks(fs: FileSystem, tops: Iterable[Inode]) -> Iterator[tuple[SegmentId, int, int]]:
    position = 0
    for inode in _files(fs, tops):
        first = fs.chunk_rows.next_extent(inode.id, 0)
        while first is not None:
            for place in fs.chunk_rows.places(inode.id, first, first + _WINDOW_CHUNKS - 1):
                end = (place.offset + place.stored - 1) // BLOCK_BYTES
                for block in range(place.offset // BLOCK_BYTES, end + 1):
                    yield place.segment, block, position + place.idx * fs.chunk_size
            first = fs.chunk_rows.next_extent(inode.id, first + _WINDOW_CHUNKS)
        position += inode.size


def _files(fs: FileSystem, tops: Iterable[Inode]) -> Iterator[Inode]:
    """The regular files, each once, in the order in which `vaultfs.vault.transfer_out` copies them."""
    for top in tops:
        linked: set[InodeId] = set()
        levels = [iter([top])]
        while levels:
            inode = next(levels[-1], None)
            if inode is None:
                levels.pop()
            elif inode.is_directory:
                levels.append(entry.inode for entry in fs.tree.entries(inode.id))
            elif inode.is_regular and inode.id not in linked:
                if inode.nlink > 1:
                    linked.add(inode.id)
                yield inode


class FetchAhead:
    """Fetches what a copy is going to need; a context manager, around the copy.

    Args:
        fs: the vault.
        tops: what is copied, in order.
        threads: how many requests at once.
        hurry: is called if the copy fails, or is interrupted; makes requests end soon.
    """

    def __init__(self, fs: FileSystem, tops: Iterable[Inode], threads: int, hurry: Callable[[], None]) -> None:
        self._fs: Final = fs
        self._hurry: Final = hurry
        self._runs: Final = needed_runs(fs, tops)
        self._next: Run | None = None
        self._jobs: Final[queue.SimpleQueue[tuple[ChunkReader, Run] | None]] = queue.SimpleQueue()
        self._ending: Final = threading.Event()
        self._threads: Final = [
            threading.Thread(target=self._work, name=f"vaultfs-ahead-{number}", daemon=True)
            for number in range(threads)
        ]

    def __enter__(self) -> Self:
        self._next = next(self._runs, None)
        for thread in self._threads:
            thread.start()
        self.reached(0)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End.  Requests that are under way are waited for, because they write into the cache, but not for long."""
        self._ending.set()
        if kind is not None:
            self._hurry()
        for _ in self._threads:
            self._jobs.put(None)
        until_s = time.monotonic() + GRACE_S
        for thread in self._threads:
            thread.join(max(0.0, until_s - time.monotonic()))

    def reached(self, position: int) -> None:
        """Plan what is needed next.  In the core only.

        Args:
            position: bytes of files that were copied.
        """
        while self._next is not None and self._next.position <= position + WINDOW_BYTES:
            with suppress(IntegrityError):  # the copy says more
                found = self._fs.segments.get(self._next.segment)
                if not found.is_here:
                    self._jobs.put((found.reader, self._next))
            self._next = next(self._runs, None)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            reader, run = job
            if self._ending.is_set():
                continue
            start = run.first * BLOCK_BYTES
            with suppress(VaultError):  # the copy meets it as well, and tells
                reader.read(start, min((run.last + 1) * BLOCK_BYTES, reader.size_bytes()) - start)
