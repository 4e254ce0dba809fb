"""Ctrl-C and SIGTERM for commands that change a vault: noticed at once, obeyed where stopping is safe.

The core must not be torn apart in the middle of a change by an exception out of a signal handler.  So the handler only
takes a note, and whoever knows a safe place asks `Interrupts.check` there.

What waits for a server in threads cannot always be woken up: a request that is under way ends when its server answers,
or a minute later.  Nobody waits that long after Ctrl-C.  So with ``grace_s`` the process ends by itself, as `kill -9`
would end it, which is for commands that may be killed at any moment.
"""

from __future__ import annotations

import os
import queue
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any, Final, NoReturn, Self

from vaultfs.cli.main import Terminated
from vaultfs.cli.output import error_line
from vaultfs.errors import ExitCode

_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)
_SHOW_CURSOR: Final = "\x1b[?25h"


class Interrupts:
    """A context manager; only one at a time makes sense, in the main thread.

    Args:
        grace_s: so long after the first signal the process ends, if the block was not left before; None: never.
    """

    def __init__(self, grace_s: float | None = None) -> None:
        self._grace_s = grace_s
        self._asked: queue.SimpleQueue[bool] = queue.SimpleQueue()  # unlike an Event, safe in a signal handler
        self._left = threading.Event()
        self._came: int | None = None
        self._is_raising = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if self._grace_s is not None:
            threading.Thread(target=self._watch, args=(self._grace_s,), daemon=True).start()
        for number in _SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:  # nohup and its like stay obeyed
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._left.set()
        self._asked.put(False)

    def _watch(self, grace_s: float) -> None:
        if self._asked.get() and not self._left.wait(grace_s):
            if sys.stderr.isatty():  # a progress bar has hidden it
                sys.stderr.write(f"{_SHOW_CURSOR}\n")
            is_term = self._came == signal.SIGTERM
            error_line("terminated" if is_term else "interrupted")
            sys.stderr.flush()
            os._exit(ExitCode.SIGTERM if is_term else ExitCode.SIGINT)

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        self._came = number
        self._asked.put(True)
        if self._is_raising:
            self._raise()

    def _raise(self) -> NoReturn:
        if self._came == signal.SIGTERM:
            raise Terminated
        raise KeyboardInterrupt

    @property
    def is_asked(self) -> bool:
        """Whether a signal came since the start: for work in threads, which stops by itself before `check`."""
        return self._came is not None

    def check(self) -> None:
        """Raise what a signal asked for since the start.

        Raises:
            KeyboardInterrupt, Terminated: it came.
        """
        if self._came is not None:
            self._raise()

    @contextmanager
    def raising(self) -> Iterator[None]:
        """Within this, signals interrupt at once: for waiting on a pipe, outside the core."""
        self.check()
        self._is_raising = True
        try:
            yield
        finally:
            self._is_raising = False

    def reader(self, read: Callable[[int], bytes]) -> Callable[[int], bytes]:
        """The same function, but interruptible."""

        def interruptible(size: int) -> bytes:
            with self.raising():
                return read(size)

        return interruptible
