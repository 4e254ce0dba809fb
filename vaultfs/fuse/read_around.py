"""Gives the kernel the rest of a chunk of which a program read a part.

A chunk is opened as a whole; the kernel asked for a page of it.  What is around that page is put into the page cache
(FUSE_NOTIFY_STORE), so that reads nearby, and random reads of a file that is not huge, cost no request each.  The
kernel does the same with files of its own when they are mapped (128 KiB around a fault).

The call may wait for a page that a queued read has locked, and that read waits for the event loop; so a thread makes
it.  It overwrites the pages and may lengthen the file, so there must be neither dirty pages nor a change of size: it is
done only while nobody has the file open for writing, and who wants to open it so, or to cut it, waits for `settled`.
"""

from __future__ import annotations

import logging
import threading
from queue import SimpleQueue
from typing import Final

import pyfuse3
import trio
from pyfuse3 import InodeT

from vaultfs.ids import InodeId

log = logging.getLogger(__name__)

PAGE_BYTES: Final = 4096
BACKLOG: Final = 64
"""Stores that may wait for the thread; more are not made."""


class _Store:
    __slots__ = ("data", "inode", "offset")

    def __init__(self, inode: InodeId, offset: int, data: memoryview) -> None:
        self.inode = inode
        self.offset = offset
        self.data = data


class ReadAround:
    """The thread and what it has to do.

    Args:
        is_on: False: do nothing.
    """

    def __init__(self, *, is_on: bool) -> None:
        self.is_on = is_on
        self.stores = 0
        self._queue: SimpleQueue[_Store | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._under_way: dict[InodeId, int] = {}
        self._lock = threading.Condition()
        self._waiting = 0

    def offer(self, inode: InodeId, base: int, data: bytes, start: int, end: int) -> None:
        """Put what is around a read into the page cache, some time soon.

        Args:
            inode: nobody writes it.
            base: where the chunk begins in the file, in bytes.
            data: the chunk, cut at the file's end.
            start: where the read began, in bytes from ``base``.
            end: where it ended.
        """
        if self._waiting >= BACKLOG:
            return
        view = memoryview(data)
        before = start // PAGE_BYTES * PAGE_BYTES
        after = -(-end // PAGE_BYTES) * PAGE_BYTES
        for offset, part in ((base, view[:before]), (base + after, view[after:])):
            if part:
                self._put(_Store(inode, offset, part))

    def _put(self, store: _Store) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="vaultfs-around", daemon=True)
            self._thread.start()
        with self._lock:
            self._under_way[store.inode] = self._under_way.get(store.inode, 0) + 1
            self._waiting += 1
        self._queue.put(store)

    def is_settled(self, inode: InodeId) -> bool:
        """Whether nothing is under way for a file."""
        return inode not in self._under_way

    async def settled(self, inode: InodeId) -> None:
        """Wait until nothing is under way for a file; nothing new may be offered meanwhile."""
        await trio.to_thread.run_sync(self._wait, inode)

    def _wait(self, inode: InodeId) -> None:
        with self._lock:
            self._lock.wait_for(lambda: inode not in self._under_way)

    def close(self) -> None:
        """End the thread; call when no session serves any more."""
        if self._thread is not None:
            self._queue.put(None)
            self._thread.join()
            self._thread = None

    def _run(self) -> None:
        while (store := self._queue.get()) is not None:
            try:
                pyfuse3.notify_store(InodeT(store.inode), store.offset, store.data)  # type: ignore[arg-type]  # any buffer
                self.stores += 1
            except OSError as error:
                # The kernel has forgotten the file, or the session is over: then nobody needs the pages.
                log.debug("read-around of inode %d: %s", store.inode, error)
            finally:
                with self._lock:
                    left = self._under_way[store.inode] - 1
                    if left:
                        self._under_way[store.inode] = left
                    else:
                        del self._under_way[store.inode]
                    self._waiting -= 1
                    self._lock.notify_all()
