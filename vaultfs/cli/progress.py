"""Progress of long commands: percent, rate and time left, as a bar on a terminal, as lines in a pipe, as JSON lines.

It goes to standard error, so that results on standard output stay clean.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import Final, Literal, Protocol, Self, TextIO

from vaultfs.cli.output import printable
from vaultfs.cli.sizes import format_duration, format_size

ProgressStyle = Literal["auto", "plain", "json", "none"]

_PLAIN_INTERVAL_S: Final = 5.0
_JSON_INTERVAL_S: Final = 1.0


class Progress(Protocol):
    """What a command tells while it works; a context manager."""

    def __call__(self, done_bytes: int, total_bytes: int | None, files: int | None = None) -> None:
        """So much is done.

        Args:
            done_bytes: so far.
            total_bytes: in all; None where nobody knows.
            files: finished so far; None where files do not matter.
        """

    def __enter__(self) -> Self:
        """Begin."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End: the last state is shown."""


def progress(title: str, style: ProgressStyle = "auto", *, resumable: bool = False) -> Progress:
    """The progress display for this run.

    Args:
        title: what is done, as in ``put film.mkv``.
        style: ``auto`` is a bar on a terminal and plain lines elsewhere.
        resumable: whether an interrupted run goes on where it stopped; JSON says it.
    """
    if style == "none":
        return SilentProgress()
    if style == "json":
        return LineProgress(title, _json_line(resumable), _JSON_INTERVAL_S)
    if style == "auto" and sys.stderr.isatty():
        return BarProgress(title)
    return LineProgress(title, plain_line, _PLAIN_INTERVAL_S)


class SilentProgress:
    """Shows nothing."""

    def __call__(self, done_bytes: int, total_bytes: int | None, files: int | None = None) -> None:
        """Ignore it."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing was shown."""


Line = Callable[[str, int, int | None, int | None, float, bool], str]
"""Title, bytes done, bytes in all, files done, seconds since the start, whether it is the last line of a success -> a
line."""


def plain_line(title: str, done: int, total: int | None, files: int | None, elapsed_s: float, finished: bool) -> str:
    """``put film.mkv: 50 %, 1.00 GiB of 2.00 GiB, 512 MiB/s, 0:02 left``."""
    rate = done / elapsed_s if elapsed_s > 0 else 0.0
    speed = f"{format_size(rate)}/s"
    several = f"{files} files, " if files is not None and files > 1 else ""
    if finished:
        return f"{title}: done, {several}{format_size(done)} in {format_duration(elapsed_s)}, {speed}"
    if total is None:
        return f"{title}: {several}{format_size(done)}, {speed}"
    percent = 100 * done // total if total else 100
    left = f", {format_duration((total - done) / rate)} left" if rate and done <= total else ""
    return f"{title}: {percent} %, {several}{format_size(done)} of {format_size(total)}, {speed}{left}"


def _json_line(resumable: bool) -> Line:
    """JSON lines: one object each, with the same members always."""

    def line(title: str, done: int, total: int | None, files: int | None, elapsed_s: float, finished: bool) -> str:
        rate = done / elapsed_s if elapsed_s > 0 else 0.0
        left = max(total - done, 0) / rate if total is not None and rate else None
        state = {
            "title": title,
            "done_bytes": done,
            "total_bytes": total,
            "files": files,
            "rate_bytes_per_s": round(rate, 1),
            "left_s": None if left is None else round(left, 1),
            "resumable": resumable,
            "finished": finished,
        }
        return json.dumps(state)

    return line


class LineProgress:
    """A line now and then.

    Args:
        title: what is done.
        line: formats a line.
        interval_s: at least so many seconds between two lines.
        stream: where to; standard error by default.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        title: str,
        line: Line,
        interval_s: float,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._title = title
        self._line = line
        self._interval_s = interval_s
        self._stream = stream or sys.stderr
        self._clock = clock
        self._start = self._shown = clock()
        self._done = 0
        self._total: int | None = None
        self._files: int | None = None

    def __call__(self, done_bytes: int, total_bytes: int | None, files: int | None = None) -> None:
        """Print a line if the last one is old enough."""
        self._done, self._total, self._files = done_bytes, total_bytes, files
        now = self._clock()
        if now - self._shown >= self._interval_s:
            self._shown = now
            self._print(now, finished=False)

    def _print(self, now: float, *, finished: bool) -> None:
        elapsed_s = now - self._start
        line = self._line(self._title, self._done, self._total, self._files, elapsed_s, finished)
        self._stream.write(printable(line) + "\n")
        self._stream.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Print the last line, if it was a success."""
        if kind is None:
            self._print(self._clock(), finished=True)


class BarProgress:
    """A bar with percent, sizes, rate and time left on the terminal.

    Args:
        title: what is done.
    """

    def __init__(self, title: str) -> None:
        from rich.console import Console  # noqa: PLC0415  # only a terminal needs rich
        from rich.markup import escape  # noqa: PLC0415
        from rich.progress import (  # noqa: PLC0415
            BarColumn,
            DownloadColumn,
            ProgressColumn,
            Task,
            TaskProgressColumn,
            TextColumn,
            TimeRemainingColumn,
        )
        from rich.progress import Progress as RichProgress  # noqa: PLC0415
        from rich.text import Text  # noqa: PLC0415

        class Rate(ProgressColumn):
            """In the units of the amounts beside it; rich's own column has decimal ones."""

            def render(self, task: Task) -> Text:
                speed = task.finished_speed or task.speed
                return Text("?" if speed is None else f"{format_size(speed)}/s", style="progress.data.speed")

        self._bar = RichProgress(
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            DownloadColumn(binary_units=True),
            Rate(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
        )
        self._title = escape(printable(title))
        self._task = self._bar.add_task(self._title, total=None)

    def __call__(self, done_bytes: int, total_bytes: int | None, files: int | None = None) -> None:
        """Move the bar; rich draws it ten times a second."""
        several = f" ({files} files)" if files is not None and files > 1 else ""
        self._bar.update(self._task, completed=done_bytes, total=total_bytes, description=f"{self._title}{several}")

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave the last state of the bar on the screen."""
        self._bar.stop()
