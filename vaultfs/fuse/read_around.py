"""Gives the kernel the rest of a chunk of which a program read a part.

A chunk is opened as a whole; the kernel asked for a page of it.  What is around that page is put into the page cache
(FUSE_NOTIFY_STORE), so that reads nearby, and random reads of a file that is not huge, cost no request each.  The
kernel does the same with files of its own when they are mapped (128 KiB around a fault).

The call may wait for a page that a queued read has locked, and that read waits for the event loop; so a thread makes
it.  It overwrites the pages and may lengthen the file, so there must be neither dirty pages nor a change of size: it is
done only while nobody has the file open for writing, and who wants to open it so, or to cut it, waits for `settled`.
What has not begun is dropped then.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from queue import SimpleQueue
from typing import Final

import pyfuse3
import trio
from pyfuse3 import InodeT

from vaultfs.fuse.admission import Admission
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


class _Settling:
    """Somebody waits until nothing is under way for a file; to be made in the event loop."""

    __slots__ = ("_token", "is_over", "waiting")

    def __init__(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        self.is_over = trio.Event()
        self.waiting = 0

    def end(self) -> None:
        """In any thread: nothing is under way any more."""
        with contextlib.suppress(trio.RunFinishedError):
            self._token.run_sync_soon(self.is_over.set)


class ReadAround:
    """The thread and what it has to do.

    Args:
        is_on: False: do nothing.
        admission: of the mount's requests.
    """

    def __init__(self, *, is_on: bool, admission: Admission | None = None) -> None:
        self.is_on = is_on
        self._admission = admission or Admission(0)
        self.stores = 0
        self._queue: SimpleQueue[_Store | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._under_way: dict[InodeId, int] = {}
        self._lock = threading.Lock()
        self._waiting = 0
        self._wanted: dict[InodeId, _Settling] = {}

    def offer(self, inode: InodeId, base: int, data: bytes, start: int, end: int) -> None:
        """Put what is around a read into the page cache, some time soon.

        Args:
            inode: nobody writes it.
            base: where the chunk begins in the file, in bytes.
            data: the chunk, cut at the file's end.
            start: where the read began, in bytes from ``base``.
            end: where it ended.
        """
        if self._waiting >= BACKLOG or inode in self._wanted:
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
        """Wait until nothing is under way for a file; nothing new begins meanwhile.

        What is under way may wait for a read that is still to be served, so who waits here must not hold up others.
        """
        with self._lock:
            if inode not in self._under_way:
                return
            settling = self._wanted.setdefault(inode, _Settling())
            settling.waiting += 1
        try:
            with self._admission.excused():
                await settling.is_over.wait()
        finally:
            settling.waiting -= 1
            if not settling.waiting:
                del self._wanted[inode]

    async def end(self) -> None:
        """Begin nothing more, and wait for what is under way; to be called while requests are still served.

        The thread may be in the kernel, waiting for a page that a queued read has locked.  If nobody serves that any
        more, it stays there for ever, and keeps the device open, so that not even the end of the process ends it.
        """
        self.is_on = False
        for inode in list(self._under_way):
            await self.settled(inode)

    def close(self) -> None:
        """End the thread; call when no session serves any more."""
        if self._thread is not None:
            self._queue.put(None)
            self._thread.join()
            self._thread = None

    def _run(self) -> None:
        while (store := self._queue.get()) is not None:
            try:
                if store.inode not in self._wanted:
                    pyfuse3.notify_store(InodeT(store.inode), store.offset, store.data)  # type: ignore[arg-type]  # any buffer
                    self.stores += 1
            except OSError as error:
                # The kernel has forgotten the file, or the session is over: then nobody needs the pages.
                log.debug("read-around of inode %d: %s", store.inode, error)
            finally:
                self._ended(store.inode)

    def _ended(self, inode: InodeId) -> None:
        """In the thread: one store less."""
        with self._lock:
            self._waiting -= 1
            self._under_way[inode] -= 1
            if self._under_way[inode]:
                return
            del self._under_way[inode]
            settling = self._wanted.get(inode)
        if settling is not None:
            settling.end()
