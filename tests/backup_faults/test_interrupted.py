"""Ctrl-C, SIGTERM and SIGKILL at every request of every command, in each part of it; then the same command again.

Real processes, and a store that stops at the n-th request: so "at any moment" is every moment that the store can tell
from another.  What happens between requests is in tests/sync/test_killed.py, at each system call that matters.
"""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest
from cli.conftest import Run, make_snapshot, write_file

from vaultfs.errors import ExitCode

from .conftest import require_complete_heads, require_next_is_clean, require_restored, verified
from .real_processes import Ended, Forker
from .s3_double import S3Double, Stop, at

CODES: Final = {
    signal.SIGINT: ExitCode.SIGINT,
    signal.SIGTERM: ExitCode.SIGTERM,
    signal.SIGKILL: -signal.SIGKILL,
}
WORDS: Final = {signal.SIGINT: "vaultfs: interrupted", signal.SIGTERM: "vaultfs: terminated"}
PARTS: Final[tuple[Stop, ...]] = (Stop("before"), Stop("sending"), Stop("after"), Stop("answering"))
GRACE_S: Final = 30.0
"""A request that is never answered would end after a minute."""


def moments(requests: int, *, is_long: bool) -> Iterator[tuple[int, Stop, signal.Signals]]:
    """Every request with each part and signal; in the short form one of these, another one for each request."""
    every = [(part, number) for part in PARTS for number in CODES]
    for request in range(1, requests + 1):
        for part, number in every if is_long else [every[5 * request % len(every)]]:
            yield request, part, number


def interrupted(
    forker: Forker, double: S3Double, moment: tuple[int, Stop, signal.Signals], words: list[str | Path]
) -> Ended:
    """Run a command, and send it a signal while a request is stopped."""
    request, part, number = moment
    double.heal()
    double.plan = at(request, part)
    running = forker.start(*words)
    double.stopped()
    running.send(number)
    if number != signal.SIGKILL:
        double.release()
    ended = running.wait()
    double.release()
    return ended


def require_told(ended: Ended, moment: tuple[int, Stop, signal.Signals], requests: int) -> None:
    """It ended as the signal wants, with one line; or was done before it came to that."""
    request, _, number = moment
    if ended.code == 0:
        assert request == requests, f"{moment}: the signal was not obeyed"
        return
    assert ended.code == CODES[number], f"{moment}: {ended.err}"
    if number != signal.SIGKILL:
        assert ended.last_line == WORDS[number], moment
        assert "Traceback" not in ended.err
        assert ended.out == ""


@pytest.fixture
def fresh_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Makes this a machine that knows nothing."""
    count = 0

    def forget() -> None:
        nonlocal count
        count += 1
        monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / f"machine {count}"))

    return forget


def test_sync(
    source: Path, double: S3Double, forker: Forker, run: Run, impatient: None, fresh_state: Callable[[], None],
    long_run: bool,
) -> None:  # fmt: skip
    words: list[str | Path] = ["sync", source, "--quiet", "--connections", "1"]
    assert forker.run(*words).code == 0
    requests = len(double.asked)
    assert requests >= 10
    for moment in moments(requests, is_long=long_run):
        double.objects.clear()
        fresh_state()
        ended = interrupted(forker, double, moment, words)
        require_told(ended, moment, requests)
        require_next_is_clean(source, double, run)


def test_a_sync_that_adds_to_what_is_there(
    source: Path, double: S3Double, forker: Forker, run: Run, impatient: None, long_run: bool
) -> None:
    """The remote has a snapshot already: it stays complete, whatever becomes of the second."""
    assert run("sync", source, "--quiet", bare=True).code == 0
    first = double.stored()
    state = Path(os.environ["XDG_STATE_HOME"])
    shutil.copytree(state, state.with_name("before"))
    write_file(source, "/later", os.urandom(1000))
    assert make_snapshot(source, "second") == 2
    words: list[str | Path] = ["sync", source, "--quiet", "--connections", "1"]
    double.heal()
    assert forker.run(*words).code == 0
    requests = len(double.asked)
    for moment in list(moments(requests, is_long=long_run))[:: 1 if long_run else 3]:
        double.objects = {f"backup/{key}": data for key, data in first.items()}
        shutil.rmtree(state)
        shutil.copytree(state.with_name("before"), state)
        ended = interrupted(forker, double, moment, words)
        require_told(ended, moment, requests)
        assert first.items() <= double.stored().items()
        require_next_is_clean(source, double, run)


@pytest.mark.parametrize("verb", ["restore", "clone"])
def test_restore_and_clone(
    copied: Path, double: S3Double, forker: Forker, run: Run, passfile: Path, fresh_state: Callable[[], None],
    tmp_path: Path, verb: str, long_run: bool,
) -> None:  # fmt: skip
    stored = double.stored()
    more = ["--fill"] if verb == "clone" else []

    def words(back: Path) -> list[str | Path]:
        return [verb, double.url, back, *double.options, *more, "--quiet", "--connections", "1", "--passfile", passfile]

    fresh_state()
    assert forker.run(*words(tmp_path / "whole")).code == 0
    requests = len(double.asked)
    assert requests >= 6
    for index, moment in enumerate(list(moments(requests, is_long=long_run))[:: 1 if long_run else 2]):
        fresh_state()
        back = tmp_path / f"back {index}"
        ended = interrupted(forker, double, moment, words(back))
        assert ended.code != 0 or moment[0] == requests
        if ended.code:
            assert ended.code == CODES[moment[2]], f"{moment}: {ended.err}"
            assert moment[2] == signal.SIGKILL or ended.last_line == WORDS[moment[2]], ended.err
        double.heal()
        if ended.code or not (back / "heads" / "HEAD").exists():
            said = run(*map(str, words(back)[:-2]))
            assert said.code == 0, f"{moment}: {said.err}"
        require_restored(back)
        assert run("fsck", back, "--quiet").code == 0
        assert not list((back / "segments").rglob("*.part"))
        shutil.rmtree(back)
    assert double.stored() == stored, "nothing of it writes to the remote"
    assert verified(double, run).code == 0


def test_verify(copied: Path, double: S3Double, forker: Forker, run: Run, long_run: bool) -> None:
    words: list[str | Path] = ["verify", double.url, *double.options, "--read-data", "--quiet"]
    stored = double.stored()
    assert forker.run(*words).code == 0
    requests = len(double.asked)
    for moment in moments(requests, is_long=long_run):
        require_told(interrupted(forker, double, moment, words), moment, requests)
    assert double.stored() == stored
    require_next_is_clean(copied, double, run)


@pytest.mark.parametrize(
    ("request_number", "number", "words"),
    [
        (2, signal.SIGINT, ["sync", "VAULT", "--quiet"]),
        (8, signal.SIGTERM, ["remote", "test", "VAULT", "s3"]),
        pytest.param(2, signal.SIGTERM, ["verify", "VAULT", "s3", "--read-data", "--quiet"], marks=pytest.mark.long),
    ],
)
def test_a_server_that_never_answers_keeps_nobody_waiting(
    copied: Path,
    double: S3Double,
    forker: Forker,
    run: Run,
    request_number: int,
    number: signal.Signals,
    words: list[str],
) -> None:
    """The request would end by itself after a minute only."""
    double.plan = at(request_number, Stop("before"))
    running = forker.start(*(str(copied) if word == "VAULT" else word for word in words))
    double.stopped()
    begun = time.monotonic()
    running.send(number)
    ended = running.wait()
    assert time.monotonic() - begun < GRACE_S
    assert (ended.code, ended.last_line) == (CODES[number], WORDS[number])
    require_next_is_clean(copied, double, run)


def test_a_second_signal_changes_nothing(copied: Path, double: S3Double, forker: Forker, run: Run) -> None:
    double.plan = at(2, Stop("before"))
    running = forker.start("sync", copied, "--quiet")
    double.stopped()
    for _ in range(5):
        running.send(signal.SIGINT)
    double.release()
    ended = running.wait()
    assert (ended.code, ended.last_line) == (ExitCode.SIGINT, WORDS[signal.SIGINT])
    assert "Traceback" not in ended.err
    require_next_is_clean(copied, double, run)


def test_adding_a_remote(source: Path, double: S3Double, forker: Forker, run: Run, long_run: bool) -> None:
    """Nothing is remembered of a remote that was not tried out, and nothing there is in the way."""
    words: list[str | Path] = ["remote", "add", source, "second", f"{double.url}/second", *double.options]
    assert forker.run(*words).code == 0
    requests = len(double.asked)
    assert run("remote", "remove", source, "second", bare=True).code == 0
    for request in range(1, requests + 1, 1 if long_run else 7):
        for number in CODES if long_run else (signal.SIGINT, signal.SIGKILL):
            double.objects.clear()
            moment = (request, Stop("after"), number)
            ended = interrupted(forker, double, moment, words)
            require_told(ended, moment, requests)
            assert b"second" not in run("remote", "list", source, bare=True).out
            assert number == signal.SIGKILL or double.objects == {}, "what was stored to try it out is removed"
    double.heal()
    assert forker.run(*words).code == 0
    assert forker.run("sync", source, "second", "--quiet").code == 0
    require_complete_heads({key.removeprefix("second/"): data for key, data in double.stored().items()})
