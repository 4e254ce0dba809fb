"""Ctrl-C and SIGTERM for commands that change a vault: noticed at once, obeyed where stopping is safe.

The core must not be torn apart in the middle of a change by an exception out of a signal handler.  So the handler only
takes a note, and whoever knows a safe place asks `Interrupts.check` there.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any, Final, NoReturn, Self

from vaultfs.cli.main import Terminated

_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)


class Interrupts:
    """A context manager; only one at a time makes sense, in the main thread."""

    def __init__(self) -> None:
        self._came: int | None = None
        self._is_raising = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        for number in _SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:  # nohup and its like stay obeyed
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        self._came = number
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
