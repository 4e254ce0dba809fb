"""Ctrl-C and SIGTERM during a put: the right exit code, and nothing in the vault; a get cleans up locally."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from pathlib import Path

import pytest

from vaultfs.cli.interrupts import Interrupts
from vaultfs.cli.main import Terminated
from vaultfs.errors import ExitCode

from .conftest import command, listing, opened, process, write_file

PATIENCE_S = 60


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, ExitCode.SIGINT), (signal.SIGTERM, ExitCode.SIGTERM)])
def test_put_that_waits_for_its_input(vault: Path, passfile: Path, number: signal.Signals, code: ExitCode) -> None:
    """The signal comes when some MiB are in the vault, and the pipe gives no more."""
    words = command("put", vault, "-", "/stream", "--passfile", passfile, "--json")
    with subprocess.Popen(words, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=False) as put:
        assert put.stdin is not None
        assert put.stderr is not None
        # More than pipe and read-ahead hold together, so that when this returns the vault has taken some.
        put.stdin.write(os.urandom(8 << 20))
        put.send_signal(number)
        said = put.stderr.read().decode().splitlines()
        assert put.wait(PATIENCE_S) == code
        put.stdin.close()
    assert [line for line in said if not line.startswith("{")] == [
        f"vaultfs: {'interrupted' if number == signal.SIGINT else 'terminated'}"
    ]
    assert listing(vault) == []
    with opened(vault) as found:
        assert found.status()["live_bytes"] == 0


def test_put_in_the_middle_of_a_file(
    vault: Path, passfile: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A real signal to this process, at each tenth of the way: noticed at the next safe place."""
    from vaultfs.cli.main import main
    from vaultfs.vault.filesystem import FileSystem

    write_file(vault, "/old", b"old")
    (tmp_path / "file").write_bytes(os.urandom(10 << 20))
    real = FileSystem.write
    for when in range(1, 11, 3):
        calls = 0

        def write(self: FileSystem, *arguments: object, when: int = when, **more: object) -> None:
            nonlocal calls
            calls += 1
            if calls == when:
                signal.raise_signal(signal.SIGINT)
            real(self, *arguments, **more)  # type: ignore[arg-type]

        monkeypatch.setattr(FileSystem, "write", write)
        words = ["put", str(vault), str(tmp_path / "file"), "/new", "--passfile", str(passfile)]
        assert main(words) == ExitCode.SIGINT
        assert calls == when
        assert listing(vault) == [b"old"]
    assert "interrupted" in capfd.readouterr().err


def test_get_that_is_interrupted(vault: Path, passfile: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vaultfs.cli.main import main

    write_file(vault, "/file", os.urandom(3 << 20))
    out = tmp_path / "out"
    out.mkdir()
    real = os.pwrite

    def pwrite(*arguments: object) -> int:
        written = real(*arguments)  # type: ignore[arg-type]
        signal.raise_signal(signal.SIGINT)
        return written

    monkeypatch.setattr(os, "pwrite", pwrite)
    assert main(["get", str(vault), "/file", str(out / "back"), "--passfile", str(passfile)]) == ExitCode.SIGINT
    assert os.listdir(out) == []


def test_signal_is_kept_until_somebody_asks() -> None:
    with Interrupts() as interrupts:
        interrupts.check()
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(Terminated):
            interrupts.check()
    with Interrupts() as interrupts:
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            interrupts.reader(lambda size: b"x" * size)(1)


def test_handlers_are_as_before() -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with Interrupts():
        assert signal.getsignal(signal.SIGINT) != before[0]
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_blocked_reading_is_interrupted_at_once() -> None:
    reading, writing = os.pipe()
    main_thread = threading.main_thread().ident
    assert main_thread is not None
    interrupter = threading.Timer(0.1, lambda: signal.pthread_kill(main_thread, signal.SIGINT))
    with Interrupts() as interrupts:
        interrupter.start()
        with pytest.raises(KeyboardInterrupt):
            interrupts.reader(lambda size: os.read(reading, size))(1)
    interrupter.join()
    os.close(reading)
    os.close(writing)


def test_ignored_signals_stay_ignored(vault: Path, passfile: Path, tmp_path: Path) -> None:
    """As in the background of a script, or under nohup."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with Interrupts() as interrupts:
            signal.raise_signal(signal.SIGINT)
            interrupts.check()
    finally:
        signal.signal(signal.SIGINT, before)
    (tmp_path / "file").write_bytes(b"x")
    assert process("put", vault, tmp_path / "file", "/", "--passfile", passfile).code == 0
