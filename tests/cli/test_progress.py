"""What a person and a program see of progress: percent, rate, time left; a bar on a terminal, lines elsewhere."""

from __future__ import annotations

import io
import json
import os
import pty
import sys
from pathlib import Path

import pytest

from vaultfs.cli.arriving import ArrivingProgress
from vaultfs.cli.progress import BarProgress, LineProgress, SilentProgress, _json_line, plain_line, progress
from vaultfs.sync.workers import SyncProgress

from .conftest import command

MIB = 1 << 20


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def test_plain_line() -> None:
    assert plain_line("put x", MIB, 4 * MIB, 1, 2.0, False) == "put x: 25 %, 1.00 MiB of 4.00 MiB, 512 KiB/s, 0:06 left"
    assert plain_line("put x", MIB, 4 * MIB, 7, 2.0, False).startswith("put x: 25 %, 7 files, 1.00 MiB of")
    assert plain_line("put -", MIB, None, 1, 2.0, False) == "put -: 1.00 MiB, 512 KiB/s"
    assert plain_line("put x", 4 * MIB, 4 * MIB, 2, 4.0, True) == "put x: done, 2 files, 4.00 MiB in 0:04, 1.00 MiB/s"
    assert plain_line("put x", 0, 0, 0, 0.0, False) == "put x: 100 %, 0 B of 0 B, 0 B/s"
    assert "left" not in plain_line("put x", 5 * MIB, 4 * MIB, 1, 2.0, False), "the file grew"


def test_lines_come_at_intervals_and_at_the_end() -> None:
    clock, out = Clock(), io.StringIO()
    with LineProgress("get x", plain_line, 5.0, out, clock) as bar:
        for second in range(12):
            clock.now_s = 100.0 + second
            bar(second * MIB, 12 * MIB, 0)
        clock.now_s = 112.0
        bar(12 * MIB, 12 * MIB, 1)
    lines = out.getvalue().splitlines()
    assert [line.split(",")[0] for line in lines] == ["get x: 41 %", "get x: 83 %", "get x: done"]


def test_no_last_line_after_a_failure() -> None:
    out = io.StringIO()
    with pytest.raises(KeyError), LineProgress("get x", plain_line, 5.0, out, Clock()):
        raise KeyError
    assert out.getvalue() == ""


def test_json_lines_always_have_the_same_members() -> None:
    clock, out = Clock(), io.StringIO()
    with LineProgress("get x", _json_line(False), 1.0, out, clock) as bar:
        clock.now_s += 2
        bar(MIB, None, None)
        clock.now_s += 2
        bar(2 * MIB, 4 * MIB, 3)
    first, second, last = map(json.loads, out.getvalue().splitlines())
    assert set(first) == set(second) == set(last)
    assert first["left_s"] is None
    assert second == {
        "title": "get x",
        "done_bytes": 2 * MIB,
        "total_bytes": 4 * MIB,
        "files": 3,
        "rate_bytes_per_s": MIB / 2,
        "left_s": 4.0,
        "resumable": False,
        "finished": False,
    }
    assert last["finished"] is True


def test_names_do_not_drive_the_terminal() -> None:
    out = io.StringIO()
    with LineProgress("put \x1b[31m\n[bold]", plain_line, 5.0, out, Clock()):
        pass
    assert out.getvalue().startswith("put \\x1b[31m\\n[bold]: done")
    assert len(out.getvalue().splitlines()) == 1


def test_styles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False, raising=False)
    assert isinstance(progress("x"), LineProgress)
    assert isinstance(progress("x", "json"), LineProgress)
    assert isinstance(progress("x", "none"), SilentProgress)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert isinstance(progress("x"), BarProgress)


def test_bar_on_a_terminal(vault: Path, passfile: Path, tmp_path: Path) -> None:
    """Percent, sizes, rate and time; no line per step as in a pipe."""
    (tmp_path / "[bold]file").write_bytes(os.urandom(3 * MIB))
    child, terminal = pty.fork()
    if child == 0:
        os.environ.update({"TERM": "xterm", "COLUMNS": "120"})
        os.execv(sys.executable, command("put", vault, tmp_path / "[bold]file", "/", "--passfile", passfile))
    said = b""
    try:
        while piece := os.read(terminal, 1 << 16):
            said += piece
    except OSError:
        pass  # the child has ended
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0, said
    text = said.decode()
    assert "[bold]file" in text
    assert "100%" in text
    assert "3.1/3.1 MB" in text or "3.0/3.0 MiB" in text
    assert "done," not in text


# --- what is counted as it arrives


class Arriving:
    pending_bytes = 0


class RecordingProgress(SilentProgress):
    def __init__(self) -> None:
        self.shown: list[tuple[int, int | None]] = []

    def __call__(self, done_bytes: int, total_bytes: int | None, files: int | None = None) -> None:
        self.shown.append((done_bytes, total_bytes))


def test_what_arrives_moves_the_bar() -> None:
    bar, store = RecordingProgress(), Arriving()
    shown = bar.shown
    arriving = ArrivingProgress(bar, store)
    look = arriving.looking(lambda: True)
    store.pending_bytes = 5
    assert look()
    assert shown == [], "nobody has said how much there is"
    arriving(SyncProgress(10, 100))
    store.pending_bytes = 50
    look()
    look()
    store.pending_bytes = 0
    look()
    store.pending_bytes = 500
    look()
    assert shown == [(15, 100), (60, 100), (10, 100), (100, 100)]


def test_other_stores_have_nothing_that_arrives() -> None:
    bar = RecordingProgress()
    arriving = ArrivingProgress(bar, None)
    arriving(SyncProgress(10, 100))
    assert not arriving.looking(lambda: False)()
    assert bar.shown == [(10, 100)]
